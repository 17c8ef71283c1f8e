// Process-wide settings of libtorch (denormals, TF32, determinism), its version, whether it has
// found its CUDA library, the CPU's instruction sets, and the text of the last error.

#include <ATen/Context.h>
#include <ATen/cpu/Utils.h>
#include <c10/util/Exception.h>
#include <torch/version.h>

#include <mutex>
#include <set>
#include <string>

#include "common.h"

namespace {
thread_local std::string last_error;
thread_local bool last_error_is_memory = false;

// Prints each warning once: libtorch repeats "does not have a deterministic implementation" in
// every step. Warnings of the autograd engine's threads are raised on the thread that called
// backward.
struct WarnOnce : c10::WarningHandler {
  std::mutex mutex;
  std::set<std::string> printed;

  void process(const c10::Warning &warning) override {
    const std::lock_guard<std::mutex> lock(mutex);
    if (printed.insert(warning.msg()).second) c10::WarningHandler::process(warning);
  }
};
}  // namespace

void dw::set_last_error(const char *what, bool out_of_memory) noexcept {
  last_error_is_memory = out_of_memory;
  try {
    last_error = what;
  } catch (...) {
    last_error.clear();
  }
}

bool dw::cpu_has(const char *instructions) {
  static const auto capabilities = at::cpu::get_cpu_capabilities();
  const auto found = capabilities.find(instructions);
  return found != capabilities.end() && found->second.isBool() && found->second.toBool();
}

extern "C" {

// Whether this machine's CPU has an instruction set, by libtorch's name for it.
int dw_cpu_has(const char *instructions) {
  return dw::guarded(0, [&] { return dw::cpu_has(instructions) ? 1 : 0; });
}

// Text of the exception that ended the last failing call on this thread. Valid until the next one.
const char *dw_last_error() { return last_error.c_str(); }

// Whether that exception was libtorch's or the standard library's for exhausted memory.
int dw_last_error_is_memory() { return last_error_is_memory ? 1 : 0; }

// Version of the libtorch headers this file was compiled against.
const char *dw_torch_version() { return TORCH_VERSION; }

// Denormal numbers cost hundreds of cycles each on x86 and do not matter in training.
void dw_flush_denormals() { at::globalContext().setFlushDenormal(true); }

// Whether cuDNN's f32 convolutions round their inputs to TF32 (libtorch's default is yes). Matrix
// products of cuBLAS are set to IEEE f32 in both cases.
int dw_allow_tf32_convolutions(int allow) {
  return dw::status([&] {
    at::globalContext().setAllowTF32CuDNN(allow != 0);
    at::globalContext().setAllowTF32CuBLAS(false);
  });
}

// Selects deterministic algorithms where libtorch has them; where it has none, libtorch warns on
// standard error, once for each operation.
int dw_deterministic(int on) {
  return dw::status([&] {
    static WarnOnce warn_once;
    if (on) c10::WarningUtils::set_warning_handler(&warn_once);
    auto &context = at::globalContext();
    context.setDeterministicAlgorithms(on != 0, /*warn_only=*/true);
    context.setDeterministicCuDNN(on != 0);
    // On by default in deterministic mode: fills every new tensor, which is slow and only helps to
    // find reads of uninitialised memory.
    context.setDeterministicFillUninitializedMemory(false);
  });
}

// Whether libtorch found the hooks of its CUDA library. It looks them up once per process, at the
// first use. `compiledWithCuDNN` needs neither a driver nor a device; the stub hooks return false.
int dw_has_cuda_hooks() {
  return dw::guarded(0, [] { return at::detail::getCUDAHooks().compiledWithCuDNN() ? 1 : 0; });
}
}
