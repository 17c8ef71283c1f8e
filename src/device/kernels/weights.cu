// A convolution's weight [O, K], f32, followed by a batch norm with fixed statistics. Launched as
// grid (O, 1): each block processes one row.
//
// `norm` [3, O] contains the bias with the norm folded in, the inverse standard deviation, and its
// product with gamma, which is the scale of the rows.

// Computes the weight times scale, `norm`, and its bias rounded to T.
template <typename T>
__device__ void fold(const float *weight, const float *gamma, const float *beta, const float *mean,
                     const float *var, T *folded, T *bias, float *norm, int columns, float eps) {
  const int row = blockIdx.x, rows = gridDim.x;
  const float inverse = 1.0f / sqrtf(var[row] + eps), scale = gamma[row] * inverse;
  const size_t start = (size_t)row * columns;
  for (int i = threadIdx.x; i < columns; i += THREADS)
    set(folded + start + i, weight[start + i] * scale);
  if (threadIdx.x == 0) {
    norm[row] = beta[row] - mean[row] * scale;
    norm[rows + row] = inverse;
    norm[2 * rows + row] = scale;
    set(bias + row, norm[row]);
  }
}

// Adds the gradients of weight, gamma and beta to their sums, from those of the folded weight and
// of the bias. Without norm (null) adds only that of the weight.
template <typename T>
__device__ void add_gradients(const T *dfolded, const float *dbias, const float *weight,
                              const float *mean, const float *norm, float *weight_sum,
                              float *gamma_sum, float *beta_sum, int columns) {
  __shared__ float all[THREADS];
  const int row = blockIdx.x, rows = gridDim.x;
  const float scale = norm ? norm[2 * rows + row] : 1.0f;
  const size_t start = (size_t)row * columns;
  float product = 0;
  for (int i = threadIdx.x; i < columns; i += THREADS) {
    const float d = number(dfolded[start + i]);
    if (norm) product += d * weight[start + i];
    weight_sum[start + i] += d * scale;
  }
  if (!norm) return;
  all[threadIdx.x] = product;
  for (int n = THREADS / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) all[threadIdx.x] += all[threadIdx.x + n];
  }
  if (threadIdx.x == 0) {
    gamma_sum[row] += (all[0] - mean[row] * dbias[row]) * norm[rows + row];
    beta_sum[row] += dbias[row];
  }
}

#define WEIGHTS_FOR_TYPE(T, NAME)                                                                 \
  extern "C" __global__ void __launch_bounds__(THREADS) fold_##NAME(                              \
      const float *weight, const float *gamma, const float *beta, const float *mean,              \
      const float *var, T *folded, T *bias, float *norm, int columns, float eps) {                \
    fold(weight, gamma, beta, mean, var, folded, bias, norm, columns, eps);                       \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) add_gradients_##NAME(                     \
      const T *dfolded, const float *dbias, const float *weight, const float *mean,               \
      const float *norm, float *weight_sum, float *gamma_sum, float *beta_sum, int columns) {     \
    add_gradients(dfolded, dbias, weight, mean, norm, weight_sum, gamma_sum, beta_sum, columns);  \
  }

WEIGHTS_FOR_TYPE(float, f32)
WEIGHTS_FOR_TYPE(bf16, bf16)
