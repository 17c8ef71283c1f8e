// Copies of tensors to the host that do not block it.

#include <ATen/ops/empty_like.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <optional>

#include "common.h"

using at::Tensor;

namespace {
// A copy in progress. `done` is absent if the source was in host memory.
struct Readback {
  Tensor host;
  std::optional<c10::Event> done;
};
}  // namespace

extern "C" {

void dw_readback_drop(Readback *copy) { delete copy; }

// Starts to copy `t` to (page-locked) host memory, after the work enqueued so far. Null on failure.
Readback *dw_readback_start(const Tensor *t) {
  return dw::guarded(static_cast<Readback *>(nullptr), [&] {
    const auto device = t->device();
    const auto options = t->options().device(c10::kCPU).pinned_memory(!device.is_cpu());
    auto host = at::empty_like(*t, options);
    host.copy_(*t, /*non_blocking=*/true);
    auto *out = new Readback{host, std::nullopt};
    if (!device.is_cpu()) {
      const c10::impl::VirtualGuardImpl guard(device.type());
      out->done.emplace(device.type());
      out->done->record(guard.getStream(device));
    }
    return out;
  });
}

// Waits for the copy and returns it, or null on failure. Frees `copy` in both cases.
Tensor *dw_readback_wait(Readback *copy) {
  auto *out = dw::guarded(static_cast<Tensor *>(nullptr), [&] {
    if (copy->done) copy->done->synchronize();
    return new Tensor(copy->host);
  });
  dw_readback_drop(copy);
  return out;
}
}
