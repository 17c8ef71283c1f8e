// Shared by all kernels on channels-last tensors [B, P, C]: B images, P positions (height x width)
// and C channels, in f32 or bf16. Kernels over positions are launched as grid (K, B) with THREADS
// threads: each block processes a chunk of an image's positions, and each thread WIDTH channels of
// some of them.

#define THREADS 256
// Channels of one thread: 16 bytes of bf16.
#define WIDTH 8

typedef unsigned short bf16;

__device__ inline void load(const float *p, float v[WIDTH]) {
  const float4 a = reinterpret_cast<const float4 *>(p)[0];
  const float4 b = reinterpret_cast<const float4 *>(p)[1];
  v[0] = a.x, v[1] = a.y, v[2] = a.z, v[3] = a.w;
  v[4] = b.x, v[5] = b.y, v[6] = b.z, v[7] = b.w;
}

__device__ inline void store(float *p, const float v[WIDTH]) {
  reinterpret_cast<float4 *>(p)[0] = make_float4(v[0], v[1], v[2], v[3]);
  reinterpret_cast<float4 *>(p)[1] = make_float4(v[4], v[5], v[6], v[7]);
}

__device__ inline void load(const bf16 *p, float v[WIDTH]) {
  const uint4 a = *reinterpret_cast<const uint4 *>(p);
  const unsigned words[4] = {a.x, a.y, a.z, a.w};
  for (int i = 0; i < 4; ++i) {
    v[2 * i] = __uint_as_float(words[i] << 16);
    v[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

// A value rounded to bf16, to the nearest and to even; NaN stays NaN.
__device__ inline unsigned rounded(float v) {
  const unsigned bits = __float_as_uint(v);
  return v == v ? (bits + 0x7fff + (bits >> 16 & 1)) >> 16 : 0x7fff;
}

// Two values rounded to bf16, `low` in the lower half.
__device__ inline unsigned rounded(float low, float high) {
#if __CUDA_ARCH__ >= 800
  unsigned both;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
  return both;
#else
  return rounded(low) | rounded(high) << 16;
#endif
}

__device__ inline void store(bf16 *p, const float v[WIDTH]) {
  unsigned words[4];
  for (int i = 0; i < 4; ++i) words[i] = rounded(v[2 * i], v[2 * i + 1]);
  *reinterpret_cast<uint4 *>(p) = make_uint4(words[0], words[1], words[2], words[3]);
}

__device__ inline float number(float v) { return v; }
__device__ inline float number(bf16 v) { return __uint_as_float((unsigned)v << 16); }

__device__ inline void set(float *p, float v) { *p = v; }
__device__ inline void set(bf16 *p, float v) { *p = (bf16)rounded(v, 0.0f); }

// ReLU, and the gradient before it, given its input or output v. Both keep NaN, as in libtorch.
__device__ inline float relu(float v) { return v < 0.0f ? 0.0f : v; }
__device__ inline float behind_relu(float v, float d) { return v <= 0.0f ? 0.0f : d; }

// The part of one thread in a kernel over positions: WIDTH channels from `channel` on, of every
// `rows`-th position from `first` to `end`.
struct Part {
  int channel, first, end, rows;

  __device__ Part(int positions, int channels) {
    const int lanes = channels / WIDTH;
    rows = THREADS / lanes;
    channel = threadIdx.x % lanes * WIDTH;
    const int row = threadIdx.x / lanes;
    const int chunk = (positions + gridDim.x - 1) / gridDim.x;
    const int start = blockIdx.x * chunk;
    end = min(positions, start + chunk);
    first = row < rows ? start + row : end;
  }
};

// Adds N sums of each channel over the block's threads and writes them to `partial`.
template <int N>
__device__ void write_sums(const Part &part, const float sums[N][WIDTH], float *partial,
                           int channels) {
  __shared__ float all[THREADS * WIDTH];
  const int row = threadIdx.x / (channels / WIDTH);
  float *out = partial + (size_t)(blockIdx.y * gridDim.x + blockIdx.x) * channels * N;
  for (int n = 0; n < N; ++n) {
    __syncthreads();
    if (row < part.rows)
      for (int i = 0; i < WIDTH; ++i) all[row * channels + part.channel + i] = sums[n][i];
    __syncthreads();
    for (int c = threadIdx.x; c < channels; c += THREADS) {
      float sum = 0;
      for (int r = 0; r < part.rows; ++r) sum += all[r * channels + c];
      out[c * N + n] = sum;
    }
  }
}
