// A second stream of an accelerator, through libtorch's device-generic interface, which needs no
// CUDA headers.

#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include "common.h"

namespace {
// A stream next to the compute stream, which is the device's current one.
struct Side {
  c10::impl::VirtualGuardImpl guard;
  c10::Device device;
  c10::Stream stream;
};
}  // namespace

extern "C" {

// A high-priority stream of CUDA device `index`; null on failure.
Side *dw_side_stream(int64_t index) {
  return dw::guarded(static_cast<Side *>(nullptr), [&] {
    const c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    const c10::Device device(c10::DeviceType::CUDA, static_cast<c10::DeviceIndex>(index));
    return new Side{guard, device, guard.getStreamFromGlobalPool(device, /*isHighPriority=*/true)};
  });
}

void dw_side_drop(Side *side) { delete side; }

// The stream's cudaStream_t.
void *dw_side_handle(const Side *side) { return side->stream.native_handle(); }

// Makes later work of one stream wait for all work enqueued so far on the other: the side stream
// waits for the compute stream if `side_waits` is not 0, else the other way round. 0 on success.
int dw_side_order(const Side *side, int side_waits) {
  return dw::status([&] {
    const auto compute = side->guard.getStream(side->device);
    c10::Event event(c10::DeviceType::CUDA);
    event.record(side_waits ? compute : side->stream);
    event.block(side_waits ? side->stream : compute);
  });
}

// Runs `call(context)` with the side stream as this thread's current stream. 0 on success.
int dw_side_run(const Side *side, void (*call)(void *), void *context) {
  return dw::status([&] {
    const auto before = side->guard.exchangeStream(side->stream);
    call(context);
    side->guard.exchangeStream(before);
  });
}
}
