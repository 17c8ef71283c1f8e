// Page-locked host memory, copies to it, and peak memory of an accelerator.

#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common.h"

using at::Tensor;

extern "C" {

// A copy of `t` in host memory; page-locked if `t` is on an accelerator. Null on failure.
Tensor *dw_to_host(const Tensor *t) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const auto options = t->options().device(c10::kCPU).pinned_memory(t->is_cuda());
    return new Tensor(at::empty_like(*t, options, at::MemoryFormat::Preserve).copy_(*t));
  });
}

// An uninitialised u8 tensor in host memory, page-locked if `pinned` is not 0. Null on failure.
Tensor *dw_host_bytes(const int64_t *shape, size_t dimensions, int pinned) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const auto options = at::TensorOptions(at::kByte).pinned_memory(pinned != 0);
    return new Tensor(at::empty({shape, dimensions}, options));
  });
}

// A copy of `t`, which is in host memory, in page-locked memory. Null on failure.
Tensor *dw_page_locked(const Tensor *t) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const auto options = t->options().pinned_memory(true);
    return new Tensor(at::empty_like(*t, options).copy_(*t));
  });
}

// Peak of the bytes allocated to tensors on an accelerator since the last `dw_reset_peak_bytes`;
// -1 on failure.
int64_t dw_peak_bytes(int64_t index) {
  return dw::guarded(int64_t{-1}, [&] {
    const auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(index));
    constexpr auto all = static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE);
    return stats.allocated_bytes[all].peak;
  });
}

// Restarts the measurement of `dw_peak_bytes`. 0 on success.
int dw_reset_peak_bytes(int64_t index) {
  return dw::status(
      [&] { at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(index)); });
}
}
