// Loops that the compiler turns into vector instructions.
#pragma once

// Compiles a function for three levels of x86-64, of which the program takes the CPU's when it is
// loaded: without it there is only SSE2. The results are equal to the last bit, because sums are
// written out and products and sums are not contracted (`build.rs`). Only gcc 12 and newer have it.
#if defined(__x86_64__) && !defined(__clang__) && __GNUC__ >= 12
#define DW_FOR_EACH_CPU \
  __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DW_FOR_EACH_CPU
#endif
