// Group norm followed by ReLU on channels-last tensors: forward and backward.
//
// libtorch's group norm on CUDA works on channel-first memory only and copies its input; these
// kernels read and write the layout of the convolutions around them, and add the bias of the
// convolution before them.
//
// Shapes, in addition to those of common.cuh: G groups of D channels. Tensors x, y, dy, dx are
// [B, P, C]; bias, gamma and beta [C]; partial sums [B, K, C, n]; stats [B, G, 2]: mean and inverse
// standard deviation. The kernels that sum over chunks are launched as grid (G, B).
//
// With u = x + bias, h = (u - mean) * rstd and z = gamma * h + beta: y = max(z, 0).

// Affine functions of one thread's channels: h = scale * x + shift, z = gamma * h + beta.
struct Affine {
  float scale[WIDTH], shift[WIDTH], gamma[WIDTH], beta[WIDTH];

  __device__ Affine(const Part &part, const float *bias, const float *gammas, const float *betas,
                    const float *stats, int channels, int groups) {
    for (int i = 0; i < WIDTH; ++i) {
      const int c = part.channel + i, g = c / (channels / groups);
      const float *s = stats + 2 * (blockIdx.y * groups + g);
      scale[i] = s[1];
      shift[i] = ((bias ? bias[c] : 0.0f) - s[0]) * s[1];
      gamma[i] = gammas[c];
      beta[i] = betas[c];
    }
  }

  __device__ float h(int i, float x) const { return scale[i] * x + shift[i]; }
  __device__ float z(int i, float h) const { return gamma[i] * h + beta[i]; }
};

// Adds partial sums over chunks: N sums of each channel of the block's group, in f64. The result is
// valid in threads below D; all threads must take part.
template <int N>
__device__ void sum_chunks(const float *partial, int chunks, int channels, int per_group,
                           double out[N]) {
  __shared__ double all[THREADS];
  const int lanes = THREADS / per_group, d = threadIdx.x % per_group,
            lane = threadIdx.x / per_group, c = blockIdx.x * per_group + d;
  for (int n = 0; n < N; ++n) {
    double sum = 0;
    if (lane < lanes)
      for (int k = lane; k < chunks; k += lanes)
        sum += partial[((size_t)(blockIdx.y * chunks + k) * channels + c) * N + n];
    __syncthreads();
    all[threadIdx.x] = sum;
    __syncthreads();
    if (threadIdx.x < per_group)
      for (int l = 1; l < lanes; ++l) sum += all[l * per_group + d];
    out[n] = sum;
  }
}

// Adds `value` of the threads below D.
__device__ double sum_group(double value, int per_group) {
  __shared__ double all[THREADS];
  __syncthreads();
  all[threadIdx.x] = value;
  __syncthreads();
  double sum = 0;
  for (int d = 0; d < per_group; ++d) sum += all[d];
  return sum;
}

template <typename T>
__device__ void forward_sums(const T *x, const float *bias, float *partial, int positions,
                             int channels) {
  const Part part(positions, channels);
  const T *image = x + (size_t)blockIdx.y * positions * channels + part.channel;
  float sums[2][WIDTH] = {}, b[WIDTH], v[WIDTH];
  for (int i = 0; i < WIDTH; ++i) b[i] = bias ? bias[part.channel + i] : 0.0f;
  for (int p = part.first; p < part.end; p += part.rows) {
    load(image + (size_t)p * channels, v);
    for (int i = 0; i < WIDTH; ++i) {
      const float u = v[i] + b[i];
      sums[0][i] += u;
      sums[1][i] += u * u;
    }
  }
  write_sums<2>(part, sums, partial, channels);
}

template <typename T>
__device__ void forward(const T *x, const float *bias, const float *gamma, const float *beta,
                        const float *stats, T *y, int positions, int channels, int groups) {
  const Part part(positions, channels);
  const Affine affine(part, bias, gamma, beta, stats, channels, groups);
  const size_t image = (size_t)blockIdx.y * positions * channels + part.channel;
  float v[WIDTH];
  for (int p = part.first; p < part.end; p += part.rows) {
    const size_t at = image + (size_t)p * channels;
    load(x + at, v);
    for (int i = 0; i < WIDTH; ++i) v[i] = relu(affine.z(i, affine.h(i, v[i])));
    store(y + at, v);
  }
}

// Sums of g, g h and h, where g is the gradient before the ReLU.
template <typename T>
__device__ void backward_sums(const T *x, const T *dy, const float *bias, const float *gamma,
                              const float *beta, const float *stats, float *partial, int positions,
                              int channels, int groups) {
  const Part part(positions, channels);
  const Affine affine(part, bias, gamma, beta, stats, channels, groups);
  const size_t image = (size_t)blockIdx.y * positions * channels + part.channel;
  float sums[3][WIDTH] = {}, v[WIDTH], d[WIDTH];
  for (int p = part.first; p < part.end; p += part.rows) {
    const size_t at = image + (size_t)p * channels;
    load(x + at, v);
    load(dy + at, d);
    for (int i = 0; i < WIDTH; ++i) {
      const float h = affine.h(i, v[i]), g = behind_relu(affine.z(i, h), d[i]);
      sums[0][i] += g;
      sums[1][i] += g * h;
      sums[2][i] += h;
    }
  }
  write_sums<3>(part, sums, partial, channels);
}

// dx = rstd (gamma g - (s1 + h s2) / N), with s1 and s2 / N in `means` [B, G, 2].
template <typename T>
__device__ void backward(const T *x, const T *dy, const float *bias, const float *gamma,
                         const float *beta, const float *stats, const float *means, T *dx,
                         int positions, int channels, int groups) {
  const Part part(positions, channels);
  const Affine affine(part, bias, gamma, beta, stats, channels, groups);
  const size_t image = (size_t)blockIdx.y * positions * channels + part.channel;
  float m1[WIDTH], m2[WIDTH], v[WIDTH], d[WIDTH];
  for (int i = 0; i < WIDTH; ++i) {
    const int g = (part.channel + i) / (channels / groups);
    const float *m = means + 2 * (blockIdx.y * groups + g);
    m1[i] = m[0], m2[i] = m[1];
  }
  for (int p = part.first; p < part.end; p += part.rows) {
    const size_t at = image + (size_t)p * channels;
    load(x + at, v);
    load(dy + at, d);
    for (int i = 0; i < WIDTH; ++i) {
      const float h = affine.h(i, v[i]), g = behind_relu(affine.z(i, h), d[i]);
      v[i] = affine.scale[i] * (affine.gamma[i] * g - (m1[i] + h * m2[i]));
    }
    store(dx + at, v);
  }
}

#define FOR_TYPE(T, NAME)                                                                         \
  extern "C" __global__ void __launch_bounds__(THREADS) forward_sums_##NAME(                      \
      const T *x, const float *bias, float *partial, int positions, int channels) {               \
    forward_sums(x, bias, partial, positions, channels);                                          \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) forward_##NAME(                           \
      const T *x, const float *bias, const float *gamma, const float *beta, const float *stats,   \
      T *y, int positions, int channels, int groups) {                                            \
    forward(x, bias, gamma, beta, stats, y, positions, channels, groups);                         \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) backward_sums_##NAME(                     \
      const T *x, const T *dy, const float *bias, const float *gamma, const float *beta,          \
      const float *stats, float *partial, int positions, int channels, int groups) {              \
    backward_sums(x, dy, bias, gamma, beta, stats, partial, positions, channels, groups);         \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) backward_##NAME(                          \
      const T *x, const T *dy, const float *bias, const float *gamma, const float *beta,          \
      const float *stats, const float *means, T *dx, int positions, int channels, int groups) {   \
    backward(x, dy, bias, gamma, beta, stats, means, dx, positions, channels, groups);            \
  }

FOR_TYPE(float, f32)
FOR_TYPE(bf16, bf16)

// Mean and inverse standard deviation of each group.
extern "C" __global__ void __launch_bounds__(THREADS)
    forward_stats(const float *partial, float *stats, int chunks, int positions, int channels,
                  int groups, float eps) {
  const int per_group = channels / groups;
  double sums[2];
  sum_chunks<2>(partial, chunks, channels, per_group, sums);
  const double count = (double)positions * per_group;
  const double mean = sum_group(sums[0], per_group) / count;
  const double square = sum_group(sums[1], per_group) / count;
  if (threadIdx.x == 0) {
    const double var = fmax(square - mean * mean, 0.0);
    float *out = stats + 2 * (blockIdx.y * groups + blockIdx.x);
    out[0] = (float)mean;
    out[1] = (float)(1.0 / sqrt(var + eps));
  }
}

// Means over each group [B, G, 2], and the gradients of bias, gamma and beta for each image
// [B, C, 3].
extern "C" __global__ void __launch_bounds__(THREADS)
    backward_stats(const float *partial, const float *gamma, const float *stats, float *means,
                   float *dparams, int chunks, int positions, int channels, int groups) {
  const int per_group = channels / groups, c = blockIdx.x * per_group + threadIdx.x;
  const bool valid = threadIdx.x < per_group;
  double sums[3];
  sum_chunks<3>(partial, chunks, channels, per_group, sums);
  const double weight = valid ? gamma[c] : 0.0, count = (double)positions * per_group;
  const double m1 = sum_group(weight * sums[0], per_group) / count;
  const double m2 = sum_group(weight * sums[1], per_group) / count;
  const int at = blockIdx.y * groups + blockIdx.x;
  if (threadIdx.x == 0) means[2 * at] = (float)m1, means[2 * at + 1] = (float)m2;
  if (valid) {
    float *out = dparams + 3 * (size_t)(blockIdx.y * channels + c);
    out[0] = (float)(stats[2 * at + 1] * (weight * sums[0] - (positions * m1 + sums[2] * m2)));
    out[1] = (float)sums[1];
    out[2] = (float)sums[0];
  }
}

// Adds the gradients of all images [B, C, 3] to those of bias (null: none), gamma and beta.
// Launched as grid (ceil(C / THREADS), 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    add_params(const float *dparams, float *bias_sum, float *gamma_sum, float *beta_sum,
               int images, int channels) {
  const int c = blockIdx.x * THREADS + threadIdx.x;
  if (c >= channels) return;
  double sums[3] = {};
  for (int image = 0; image < images; ++image)
    for (int n = 0; n < 3; ++n) sums[n] += dparams[3 * ((size_t)image * channels + c) + n];
  if (bias_sum) bias_sum[c] += (float)sums[0];
  gamma_sum[c] += (float)sums[1];
  beta_sum[c] += (float)sums[2];
}
