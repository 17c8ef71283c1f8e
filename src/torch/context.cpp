// Settings and facts of the process: version, rounding of f32, determinism, and the last error's text.

#include <ATen/Context.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <mutex>
#include <set>
#include <string>

#include "common.h"

namespace {
thread_local std::string last_error;

// Passes on each warning once: libtorch repeats "does not have a deterministic implementation" in every step.
// Warnings of the autograd engine's threads come to the thread that called backward.
struct Once : c10::WarningHandler {
  std::mutex mutex;
  std::set<std::string> seen;

  void process(const c10::Warning &warning) override {
    const std::lock_guard<std::mutex> lock(mutex);
    if (seen.insert(warning.msg()).second) c10::WarningHandler::process(warning);
  }
};
}  // namespace

void dw::remember(const char *what) noexcept {
  try {
    last_error = what;
  } catch (...) {
    last_error.clear();
  }
}

extern "C" {

// What the last failing call on this thread said.
const char *dw_last_error() { return last_error.c_str(); }

// libtorch's version as it was compiled against.
const char *dw_torch_version() { return TORCH_VERSION; }

// Denormal numbers cost hundreds of cycles each on x86; training does not need them.
void dw_flush_denormals() { at::globalContext().setFlushDenormal(true); }

// libtorch rounds the inputs of cuDNN's f32 convolutions to TF32 unless it is told not to. Matrix products
// of cuBLAS stay in f32 in every mode.
int dw_allow_tf32_convolutions(int allow) {
  return dw::status([&] {
    at::globalContext().setAllowTF32CuDNN(allow != 0);
    at::globalContext().setAllowTF32CuBLAS(false);
  });
}

// Deterministic algorithms wherever libtorch has one; where it has none it warns on standard error, once each.
int dw_deterministic(int on) {
  return dw::status([&] {
    static Once once;
    if (on) c10::WarningUtils::set_warning_handler(&once);
    auto &context = at::globalContext();
    context.setDeterministicAlgorithms(on != 0, /*warn_only=*/true);
    context.setDeterministicCuDNN(on != 0);
    // By default libtorch then fills every new tensor, which only helps to find reads of uninitialised memory.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

// Whether libtorch found the hooks of its CUDA half at its first look, which it never repeats. This question needs
// neither a driver nor a device, and is answered with no by the hooks that stand in for missing ones.
int dw_sees_cuda() {
  return dw::guarded(0, [] { return at::detail::getCUDAHooks().compiledWithCuDNN() ? 1 : 0; });
}
}
