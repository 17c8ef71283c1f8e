// Replaces libtorch_cuda.so in tests: registers itself with libtorch as the real library does, and
// logs to standard error when it is opened and when libtorch looks up its hooks.
// FAKE_DEVICES: number of devices (default 0).
#include <ATen/detail/CUDAHooksInterface.h>

#include <cstdio>
#include <cstdlib>

namespace {

int number(const char *name) {
  const char *text = std::getenv(name);
  return text ? std::atoi(text) : 0;
}

// libtorch finds the class by this name.
struct CUDAHooks : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) { std::fputs("fake: hooks found\n", stderr); }
  bool hasCUDA() const override { return number("FAKE_DEVICES") > 0; }
  int getNumGPUs() const override { return number("FAKE_DEVICES"); }
  at::DeviceIndex deviceCount() const override {
    return static_cast<at::DeviceIndex>(number("FAKE_DEVICES"));
  }
  bool compiledWithCuDNN() const override { return true; }
};

struct Library {
  Library() {
    const char *allocator = std::getenv("PYTORCH_CUDA_ALLOC_CONF");
    std::fprintf(stderr, "fake: cuda opened, allocator %s\n", allocator ? allocator : "unset");
  }
  // The real runtime may abort like this when it is unloaded while threads still use it.
  ~Library() { std::abort(); }
} library;

}  // namespace

namespace at {
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at
