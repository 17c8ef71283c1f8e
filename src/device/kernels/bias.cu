// The bias of a convolution and its gradient: libtorch's own operations take several times as long
// on channels-last tensors. Shapes are those of common.cuh.

// x += bias, in place.
template <typename T>
__device__ void add_bias(T *x, const float *bias, int positions, int channels) {
  const Part part(positions, channels);
  T *image = x + (size_t)blockIdx.y * positions * channels + part.channel;
  float b[WIDTH], v[WIDTH];
  for (int i = 0; i < WIDTH; ++i) b[i] = bias[part.channel + i];
  for (int p = part.first; p < part.end; p += part.rows) {
    load(image + (size_t)p * channels, v);
    for (int i = 0; i < WIDTH; ++i) v[i] += b[i];
    store(image + (size_t)p * channels, v);
  }
}

// The gradient g before the ReLU whose output is y, and its sums over the positions of each chunk
// [B, K, C]. If y is null there is no ReLU: g is dy and is not written.
template <typename T>
__device__ void bias_sums(const T *dy, const T *y, T *g, float *partial, int positions,
                          int channels) {
  const Part part(positions, channels);
  const size_t image = (size_t)blockIdx.y * positions * channels + part.channel;
  float sums[1][WIDTH] = {}, d[WIDTH], v[WIDTH];
  for (int p = part.first; p < part.end; p += part.rows) {
    const size_t at = image + (size_t)p * channels;
    load(dy + at, d);
    if (y) {
      load(y + at, v);
      for (int i = 0; i < WIDTH; ++i) d[i] = behind_relu(v[i], d[i]);
      store(g + at, d);
    }
    for (int i = 0; i < WIDTH; ++i) sums[0][i] += d[i];
  }
  write_sums<1>(part, sums, partial, channels);
}

#define BIAS_FOR_TYPE(T, NAME)                                                                    \
  extern "C" __global__ void __launch_bounds__(THREADS)                                           \
      add_bias_##NAME(T *x, const float *bias, int positions, int channels) {                     \
    add_bias(x, bias, positions, channels);                                                       \
  }                                                                                               \
  extern "C" __global__ void __launch_bounds__(THREADS) bias_sums_##NAME(                         \
      const T *dy, const T *y, T *g, float *partial, int positions, int channels) {               \
    bias_sums(dy, y, g, partial, positions, channels);                                            \
  }

BIAS_FOR_TYPE(float, f32)
BIAS_FOR_TYPE(bf16, bf16)
