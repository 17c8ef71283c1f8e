// The fused optimiser step.

#include <ATen/ops/_fused_sgd.h>

#include <vector>

#include "common.h"

extern "C" {

// One pass of SGD: g + wd p, v <- m v + that, p <- p - lr v. 0 on success.
int dw_fused_sgd(const at::Tensor *param, const at::Tensor *grad, const at::Tensor *velocity, double weight_decay,
                 double momentum, double lr) {
  return dw::status([&] {
    // libtorch takes momentum buffers only with a momentum.
    const auto velocities = momentum == 0.0 ? std::vector<at::Tensor>{} : std::vector<at::Tensor>{*velocity};
    at::_fused_sgd_({*param}, {*grad}, velocities, weight_decay, momentum, lr, /*dampening=*/0.0,
                    /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false);
  });
}
}
