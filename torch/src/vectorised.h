// Loops that the compiler turns into vector instructions.
#pragma once

// Compiles a function for three levels of x86-64, of which the loader selects the CPU's; otherwise
// the compiler uses only SSE2. The results are equal to the last bit, because the order of sums is
// written out and products and sums are not contracted (`build.rs`). Requires gcc 12 or newer.
#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ >= 12
#define DW_FOR_EACH_CPU \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DW_FOR_EACH_CPU
#endif
