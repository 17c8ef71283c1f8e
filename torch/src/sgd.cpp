// The fused SGD update.

#include <ATen/ops/_fused_sgd.h>

#include <vector>

#include "common.h"

extern "C" {

// SGD in one pass: v <- momentum v + (grad + weight_decay p), p <- p - lr v; nothing changes if
// `skip`, a scalar f32 on the same device, is 1. 0 on success.
int dw_fused_sgd(const at::Tensor *param, const at::Tensor *grad, const at::Tensor *velocity,
                 const at::Tensor *skip, double weight_decay, double momentum, double lr) {
  return dw::status([&] {
    // libtorch accepts momentum buffers only with a momentum other than 0.
    const auto velocities =
        momentum == 0.0 ? std::vector<at::Tensor>{} : std::vector<at::Tensor>{*velocity};
    at::_fused_sgd_({*param}, {*grad}, velocities, weight_decay, momentum, lr, /*dampening=*/0.0,
                    /*nesterov=*/false, /*maximize=*/false, /*is_first_step=*/false,
                    /*grad_scale=*/std::nullopt, /*found_inf=*/*skip);
  });
}
}
