// Lets CUDA kernels be compiled as C++ and run on a CPU: the threads of a block are contexts that
// take turns at each barrier, and blocks run one after the other. Include it before the kernels'
// source, and `cuda_on_cpu_launch.h` after it.
#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
  unsigned x, y, z;
};
static Index threadIdx, blockIdx, blockDim, gridDim;

struct float4 {
  float x, y, z, w;
};
struct uint4 {
  unsigned x, y, z, w;
};
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

inline unsigned __float_as_uint(float v) {
  unsigned bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

inline float __uint_as_float(unsigned bits) {
  float v;
  std::memcpy(&v, &bits, sizeof v);
  return v;
}

using std::min;

inline float atomicAdd(float *at, float v) {
  const float old = *at;
  *at += v;
  return old;
}

// A thread of a block. It is started once and then runs one kernel after another.
struct Context {
  std::vector<char> stack;
  jmp_buf position;
  bool started = false, done = false;
};

static jmp_buf scheduler;
static std::vector<Context> contexts;

// Returns to the scheduler until it resumes this thread. (`swapcontext` would make a system call
// each time.)
inline void __syncthreads() {
  if (_setjmp(contexts[threadIdx.x].position) == 0) _longjmp(scheduler, 1);
}
