// Custom CUDA kernels: set by `src/device/kernels.rs`, used by `conv.cpp`, `dw_loss.cpp`,
// `fold.cpp` and `group_norm.cpp`.

#include "kernels.h"

#include <atomic>

namespace {
dw::Kernels loaded;
bool for_cpu = false;
std::atomic<dw::Launch> launch_function{nullptr};
dw::Describe describe_function = nullptr;
}  // namespace

const dw::Kernels *dw::kernels(const at::Tensor &on) {
  return launch_function.load() && (for_cpu ? on.is_cpu() : on.is_cuda()) ? &loaded : nullptr;
}

dw::Launch dw::launcher() { return launch_function.load(); }

std::string dw::cuda_error(int code) {
  const char *text = nullptr;
  if (describe_function) describe_function(code, &text);
  return text ? text : "code " + std::to_string(code);
}

extern "C" {

// Sets the kernels and the driver's cuLaunchKernel and cuGetErrorString; a null launcher switches
// the kernels off. With `on_cpu` they are functions for tensors in host memory.
void dw_set_kernels(void *const *functions, void *launcher, void *describe, int on_cpu) {
  static_assert(sizeof(loaded) == 26 * sizeof(void *), "NUM_KERNELS in kernels.rs");
  if (launcher) std::copy_n(functions, sizeof(loaded) / sizeof(void *), &loaded.forward_sums[0]);
  for_cpu = on_cpu != 0;
  describe_function = reinterpret_cast<dw::Describe>(describe);
  launch_function = reinterpret_cast<dw::Launch>(launcher);
}

// Whether the kernels are loaded.
int dw_has_kernels() { return launch_function.load() ? 1 : 0; }
}
