// libtorch's profiler (host operations, kernels and copies on a GPU, written as a Chrome trace),
// and a count of the calls that block the host until a CUDA device has finished.

#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <atomic>
#include <set>
#include <string>

#include "common.h"

namespace {
using torch::profiler::impl::ActivityType;
using torch::profiler::impl::ProfilerConfig;

ProfilerConfig config() {
  return ProfilerConfig(torch::profiler::impl::ProfilerState::KINETO);
}

std::set<ActivityType> activities(int cuda) {
  if (cuda) return {ActivityType::CPU, ActivityType::CUDA};
  return {ActivityType::CPU};
}

// Counts the warnings of libtorch's sync debug mode and prints all others. Warnings of the autograd
// engine's threads are raised on the thread that called backward.
struct SyncCounter : c10::WarningHandler {
  std::atomic<int64_t> count{0};

  void process(const c10::Warning &warning) override {
    if (warning.msg().find("synchronizing CUDA operation") != std::string::npos) {
      ++count;
    } else {
      c10::WarningHandler::process(warning);
    }
  }
};

SyncCounter counter;
c10::WarningHandler *previous_handler = nullptr;

// The static of c10::cuda::warning_state(), an enum: 0 off, 1 warn, 2 throw. Looked up by its
// mangled name because the binaries do not link libc10_cuda; null if that is not loaded.
int *sync_debug_mode() {
  return static_cast<int *>(dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_"));
}
}  // namespace

extern "C" {

// Starts recording. 0 on success.
int dw_profile_start(int cuda) {
  return dw::status([&] {
    using torch::autograd::profiler::enableProfiler;
    torch::autograd::profiler::prepareProfiler(config(), activities(cuda));
    enableProfiler(config(), activities(cuda), {at::RecordScope::FUNCTION});
  });
}

// Stops recording and writes the trace to `path`. 0 on success.
int dw_profile_stop(const char *path) {
  return dw::status([&] { torch::autograd::profiler::disableProfiler()->save(path); });
}

// Starts counting the calls on this thread, backward included, that wait for a CUDA device. 0 on
// success.
int dw_count_syncs_start() {
  return dw::status([&] {
    auto *mode = sync_debug_mode();
    TORCH_CHECK(mode != nullptr, "libtorch's CUDA library is not loaded");
    counter.count = 0;
    previous_handler = c10::WarningUtils::get_warning_handler();
    c10::WarningUtils::set_warning_handler(&counter);
    *mode = 1;
  });
}

// Stops counting and returns the count.
int64_t dw_count_syncs_stop() {
  if (auto *mode = sync_debug_mode()) *mode = 0;
  c10::WarningUtils::set_warning_handler(previous_handler);
  return counter.count;
}
}
