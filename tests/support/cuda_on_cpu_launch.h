// `cuLaunchKernel` for the kernels before this file; see `cuda_on_cpu.h`.
#pragma once

#include <cstddef>
#include <tuple>
#include <utility>

// Calls a kernel with pointers to its arguments.
using Kernel = void (*)(void **);

template <auto F>
struct Call;

template <typename... A, void (*F)(A...)>
struct Call<F> {
  template <std::size_t... I>
  static void with(void **arguments, std::index_sequence<I...>) {
    F(*static_cast<A *>(arguments[I])...);
  }
  static void run(void **arguments) { with(arguments, std::index_sequence_for<A...>()); }
};

static Kernel running;
static void **running_arguments;

static void thread_main() {
  for (;;) {
    running(running_arguments);
    contexts[threadIdx.x].done = true;
    __syncthreads();
  }
}

// Runs a thread to its next barrier, or to its end.
static void resume(unsigned thread) {
  threadIdx = {thread, 0, 0};
  if (_setjmp(scheduler) != 0) return;
  auto &c = contexts[thread];
  if (c.started) _longjmp(c.position, 1);
  c.started = true;
  c.stack.resize(64 << 10);
  static ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = c.stack.data();
  start.uc_stack.ss_size = c.stack.size();
  start.uc_link = nullptr;
  makecontext(&start, thread_main, 0);
  setcontext(&start);
}

// The order of the threads alternates between launches, because in one of the orders a missing
// barrier may have no effect.
static bool descending = false;

// Runs the threads of a block; false if some end while others wait at a barrier.
static bool run_block(unsigned threads) {
  contexts.resize(threads);
  for (auto &c : contexts) c.done = false;
  for (unsigned done = 0; done == 0;) {
    for (unsigned i = 0; i < threads; ++i) {
      const unsigned t = descending ? threads - 1 - i : i;
      resume(t);
      done += contexts[t].done;
    }
    if (done != 0 && done != threads) return false;
  }
  return true;
}

// 0, or 1 (CUDA_ERROR_INVALID_VALUE) on a barrier that not all threads reach.
extern "C" int launch_on_cpu(void *kernel, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                             unsigned block_x, unsigned, unsigned, unsigned, void *,
                             void **arguments, void **) {
  running = reinterpret_cast<Kernel>(kernel);
  running_arguments = arguments;
  gridDim = {grid_x, grid_y, grid_z};
  blockDim = {block_x, 1, 1};
  descending = !descending;
  for (unsigned y = 0; y < grid_y; ++y)
    for (unsigned x = 0; x < grid_x; ++x) {
      blockIdx = {x, y, 0};
      if (!run_block(block_x)) return 1;
    }
  return 0;
}
