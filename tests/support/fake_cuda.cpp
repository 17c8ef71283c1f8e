// Stands in for libtorch_cuda.so: registers itself with libtorch as the real library does, and says on standard error
// when it is opened and looked up. FAKE_DEVICES: number of devices (default 0).
#include <ATen/detail/CUDAHooksInterface.h>

#include <cstdio>
#include <cstdlib>

namespace {

int number(const char *name) {
  const char *text = std::getenv(name);
  return text ? std::atoi(text) : 0;
}

// The name is the key by which libtorch looks for it.
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) { std::fputs("fake: hooks found\n", stderr); }
  bool hasCUDA() const override { return number("FAKE_DEVICES") > 0; }
  int getNumGPUs() const override { return number("FAKE_DEVICES"); }
  at::DeviceIndex deviceCount() const override { return static_cast<at::DeviceIndex>(number("FAKE_DEVICES")); }
  bool compiledWithCuDNN() const override { return true; }
};

struct Life {
  Life() {
    const char *allocator = std::getenv("PYTORCH_CUDA_ALLOC_CONF");
    std::fprintf(stderr, "fake: cuda opened, allocator %s\n", allocator ? allocator : "unset");
  }
  // As the real runtime may when threads are still inside it.
  ~Life() { std::abort(); }
} life;

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
