// The fused optimiser step.

#include <ATen/ops/_fused_sgd.h>

#include "common.h"

extern "C" {

// One pass of SGD: g + wd p, v <- m v + that, p <- p - lr v. 0 on success.
int dw_fused_sgd(const at::Tensor *param, const at::Tensor *grad, const at::Tensor *velocity, double weight_decay,
                 double momentum, double lr) {
  return dw::status([&] {
    at::_fused_sgd_({*param}, {*grad}, {*velocity}, weight_decay, momentum, lr, /*dampening=*/0.0,
                    /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false);
  });
}
}
