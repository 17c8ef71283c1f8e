// The one place that speaks C++ to libtorch: what the Rust bindings lack.
// No exception leaves these functions: a C caller could not catch it.

#include <ATen/Context.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/_fused_sgd.h>
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

// One pass of SGD: g + wd p, v <- m v + that, p <- p - lr v. 0 on success.
int dw_fused_sgd(const at::Tensor *param, const at::Tensor *grad, const at::Tensor *velocity, double weight_decay,
                 double momentum, double lr) {
  try {
    at::_fused_sgd_({*param}, {*grad}, {*velocity}, weight_decay, momentum, lr, /*dampening=*/0.0,
                    /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false);
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
