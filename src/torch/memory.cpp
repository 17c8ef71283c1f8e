// Copies to the host in page-locked memory, and what the device's allocator counts.

#include <ATen/DeviceAccelerator.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>

#include "common.h"

using at::Tensor;

extern "C" {

// A copy of `t` in host memory; page-locked where `t` is on an accelerator. Null on failure.
Tensor *dw_to_host(const Tensor *t) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const auto options = t->options().device(c10::kCPU).pinned_memory(t->is_cuda());
    return new Tensor(at::empty_like(*t, options, at::MemoryFormat::Preserve).copy_(*t));
  });
}

// Uninitialised f32 numbers in host memory, page-locked on request. Null on failure.
Tensor *dw_host_floats(const int64_t *shape, size_t dimensions, int pinned) {
  return dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    const auto options = at::TensorOptions(at::kFloat).pinned_memory(pinned != 0);
    return new Tensor(at::empty({shape, dimensions}, options));
  });
}

// Largest number of bytes that tensors of an accelerator have held at once since `dw_reset_peak_bytes`; -1 on failure.
int64_t dw_peak_bytes(int64_t index) {
  return dw::guarded(int64_t{-1}, [&] {
    const auto stats = at::accelerator::getDeviceStats(static_cast<c10::DeviceIndex>(index));
    return stats.allocated_bytes[static_cast<size_t>(c10::CachingAllocator::StatType::AGGREGATE)].peak;
  });
}

int dw_reset_peak_bytes(int64_t index) {
  return dw::status([&] { at::accelerator::resetPeakStats(static_cast<c10::DeviceIndex>(index)); });
}
}
