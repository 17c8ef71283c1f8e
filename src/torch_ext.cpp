// The one place that speaks C++ to libtorch: what the Rust bindings lack.
// No exception leaves these functions: a C caller could not catch it.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <torch/version.h>

extern "C" {

// Makes `grad` (same shape as `param`) the tensor that backward accumulates into. 0 on success.
int dw_set_grad(const at::Tensor *param, const at::Tensor *grad) {
  try {
    const_cast<at::Tensor *>(param)->mutable_grad() = *grad;
    return 0;
  } catch (...) {
    return 1;
  }
}

// libtorch's version as it was compiled against.
const char *dw_torch_version() { return TORCH_VERSION; }

// Tiny numbers near zero cost hundreds of cycles each on x86; training does not need them.
void dw_flush_denormals() { at::globalContext().setFlushDenormal(true); }
}
