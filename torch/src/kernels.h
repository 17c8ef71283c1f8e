// Custom CUDA kernels (`src/device/kernels`), for the C++ files of this folder.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <string>

namespace dw {

// The kernels, as CUfunction, in the order of `NAMES` in `src/device/kernels.rs`. Those with two
// entries are for f32 and bf16.
struct Kernels {
  void *forward_sums[2], *forward[2], *backward_sums[2], *backward[2], *add_bias[2], *bias_sums[2],
      *fold[2], *add_gradients[2], *forward_stats, *backward_stats, *add_params, *dw_pairs,
      *dw_negatives, *dw_covered, *dw_sums, *dw_negatives_backward, *dw_covered_backward,
      *dw_pairs_backward;
};

// cuLaunchKernel of the CUDA driver.
using Launch = int (*)(void *function, unsigned grid_x, unsigned grid_y, unsigned grid_z,
                       unsigned block_x, unsigned block_y, unsigned block_z, unsigned shared,
                       void *stream, void **arguments, void **extra);

// cuGetErrorString of the CUDA driver.
using Describe = int (*)(int code, const char **text);

// Null if no kernels are loaded for the type of device that `on` is on.
const Kernels *kernels(const at::Tensor &on);
Launch launcher();

// The driver's text for an error code, as in libtorch's errors: it distinguishes a failed GPU from
// a bug.
std::string cuda_error(int code);

// The same as in `src/device/kernels/common.cuh`.
constexpr int THREADS = 256, WIDTH = 8;

// The current stream of the device that `on` is on; null on a CPU.
inline void *stream_of(const at::Tensor &on) {
  if (on.is_cpu()) return nullptr;
  return c10::impl::VirtualGuardImpl(on.device().type()).getStream(on.device()).native_handle();
}

// Runs a kernel on the current stream of the device that `on` is on.
template <typename... Arguments>
void launch(void *kernel, const at::Tensor &on, int64_t grid_x, int64_t grid_y,
            Arguments... arguments) {
  // A launch goes to this thread's current device.
  const c10::DeviceGuard guard(on.device());
  void *pointers[] = {&arguments...};
  const int code = launcher()(kernel, static_cast<unsigned>(grid_x), static_cast<unsigned>(grid_y),
                              1, THREADS, 1, 1, 0, stream_of(on), pointers, nullptr);
  TORCH_CHECK(code == 0, "CUDA error: ", cuda_error(code), " (launching a kernel)");
}

// The data of a contiguous f32 tensor, to read; null if it is undefined.
inline const float *floats(const at::Tensor &t) {
  return t.defined() ? t.const_data_ptr<float>() : nullptr;
}

// The data of a parameter's gradient buffer; null if the parameter is undefined.
inline float *gradient_of(const at::Tensor &param) {
  return param.defined() ? param.grad().mutable_data_ptr<float>() : nullptr;
}

// Whether the kernels are loaded and can work on a tensor [B, C, H, W].
inline bool has_kernels(const at::Tensor &x) {
  const auto kind = x.scalar_type();
  return kernels(x) != nullptr && x.numel() > 0 &&
         (kind == at::kFloat || kind == at::kBFloat16) && x.size(1) % WIDTH == 0 &&
         x.size(1) <= THREADS * WIDTH;
}

// Index of a tensor's kind in the entries of `Kernels`.
inline int kind_index(const at::Tensor &x) { return x.scalar_type() == at::kBFloat16 ? 1 : 0; }

// The sizes of a tensor [B, C, H, W], and the number of chunks of its positions.
struct Positions {
  int images, positions, channels;
  int64_t chunks;

  explicit Positions(const at::Tensor &x)
      : images(static_cast<int>(x.size(0))),
        positions(static_cast<int>(x.size(2) * x.size(3))),
        channels(static_cast<int>(x.size(1))),
        // About a thousand blocks, of at least 32 positions each.
        chunks(std::clamp<int64_t>(1024 / std::max(images, 1), 1,
                                   std::max<int64_t>(positions / 32, 1))) {}
};

}  // namespace dw
