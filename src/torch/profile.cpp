// libtorch's profiler (operations on the host, kernels and copies on a GPU, as a Chrome trace), and the number of
// times that the host waits for a CUDA device.

#include <c10/util/Exception.h>
#include <dlfcn.h>
#include <torch/csrc/autograd/profiler_kineto.h>

#include <atomic>
#include <string>

#include "common.h"

namespace {
using torch::profiler::impl::ActivityType;

torch::profiler::impl::ProfilerConfig config() {
  return torch::profiler::impl::ProfilerConfig(torch::profiler::impl::ProfilerState::KINETO);
}

std::set<ActivityType> activities(int cuda) {
  if (cuda) return {ActivityType::CPU, ActivityType::CUDA};
  return {ActivityType::CPU};
}

// Counts the warnings of libtorch's sync debug mode and passes on all others. The autograd engine hands the
// warnings of its own threads to the thread that called backward.
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
c10::WarningHandler *handler_before = nullptr;

// c10::cuda::warning_state(), an enum of 0 (nothing), 1 (warn), 2 (throw); found by name, since no binary links
// libc10_cuda. Null where that is not loaded.
int *sync_debug_mode() {
  return static_cast<int *>(dlsym(RTLD_DEFAULT, "_ZZN3c104cuda13warning_stateEvE14warning_state_"));
}
}  // namespace

extern "C" {

// Records from now on. 0 on success.
int dw_profile_start(int cuda) {
  return dw::status([&] {
    torch::autograd::profiler::prepareProfiler(config(), activities(cuda));
    torch::autograd::profiler::enableProfiler(config(), activities(cuda), {at::RecordScope::FUNCTION});
  });
}

// Ends the recording and writes it to `path`. 0 on success.
int dw_profile_stop(const char *path) {
  return dw::status([&] { torch::autograd::profiler::disableProfiler()->save(path); });
}

// Counts the calls of this thread, and of backward, that wait for a CUDA device. 0 on success.
int dw_count_syncs_start() {
  return dw::status([&] {
    auto *mode = sync_debug_mode();
    TORCH_CHECK(mode != nullptr, "libtorch's CUDA half is not loaded");
    counter.count = 0;
    handler_before = c10::WarningUtils::get_warning_handler();
    c10::WarningUtils::set_warning_handler(&counter);
    *mode = 1;
  });
}

// Ends the counting and returns the number.
int64_t dw_count_syncs_stop() {
  if (auto *mode = sync_debug_mode()) *mode = 0;
  c10::WarningUtils::set_warning_handler(handler_before);
  return counter.count;
}
}
