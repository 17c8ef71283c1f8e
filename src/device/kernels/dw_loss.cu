// The loss of dual weighting in the released formula (`src/assign/strategies/dw.rs`, which computes
// the same by tensor operations), and its gradient.
//
// Shapes: R rows, the points of all images; C classes, G boxes, N pairs of point and box, sorted by
// box, U covered logits. Class logits [R, C], quality logits [R] (null: 1), distances [R, 4].

struct DwSettings {
  float beta, mu, gamma1, gamma2;
  // The hard prior is 1 above this value; negative: the prior itself.
  float prior_above;
};

// The predictions. Their gradients have the same shapes.
struct DwPredictions {
  const float *cls, *quality, *distances;
  int rows, classes;
};

struct DwPairs {
  // Row [N], box [N], class [G].
  const long long *point, *gt, *labels;
  // Distances from the point to the sides of the box [4, N] and stride of its level [N], pixels.
  const float *target, *stride;
  // Means and standard deviations (x, y) of the prior of each class [C, 2], strides.
  const float *mean, *sigma;
  int count;
};

#define DW_TINY 1e-12f
#define DW_POSITIVE_SCALE 0.25f
#define DW_AREA_EPS 1e-6f
#define DW_MAX_DISTANCE 1e9f

__device__ inline float dw_power(float x, float exponent) {
  return exponent == 2.0f ? x * x : powf(x, exponent);
}

__device__ inline float dw_sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// -ln(p), at most 100, and its derivative, as in libtorch.
__device__ inline float dw_cross_entropy(float p) { return -fmaxf(logf(p), -100.0f); }
__device__ inline float dw_cross_entropy_slope(float p) {
  return (p - 1.0f) / fmaxf((1.0f - p) * p, DW_TINY);
}

// A score and its factors.
struct DwScore {
  float cls, quality, value;

  __device__ DwScore(const DwPredictions &x, int row, int c) {
    cls = dw_sigmoid(x.cls[(size_t)row * x.classes + c]);
    quality = x.quality ? dw_sigmoid(x.quality[row]) : 1.0f;
    value = cls * quality;
  }

  // Derivatives by the class logit and the quality logit.
  __device__ float by_cls() const { return value * (1.0f - cls); }
  __device__ float by_quality() const { return value * (1.0f - quality); }
};

// The negative loss of a score, -s^gamma2 ln(1 - s), and its derivative.
__device__ inline float dw_negative(float s, float gamma2) {
  return dw_power(s, gamma2) * -fmaxf(log1pf(-s), -100.0f);
}
__device__ inline float dw_negative_slope(float s, float gamma2) {
  const float entropy = -fmaxf(log1pf(-s), -100.0f);
  const float slope = s / fmaxf((1.0f - s) * s, DW_TINY);
  const float power = gamma2 == 2.0f ? s : powf(s, gamma2 - 1.0f);
  return gamma2 * power * entropy + dw_power(s, gamma2) * slope;
}

// IoU and GIoU of a predicted box and a ground truth, as distances (l, t, r, b) from one point.
struct DwOverlap {
  float predicted[4], target[4];
  // Widths and heights: of the prediction, the ground truth, the overlap (negative if there is
  // none) and the hull.
  float a[2], b[2], o[2], h[2];
  float overlap, joined, hull, iou, giou;
  bool bounded[4];

  __device__ DwOverlap(const DwPredictions &x, const DwPairs &pairs, int n) {
    for (int i = 0; i < 4; ++i) {
      const float d = x.distances[4 * (size_t)pairs.point[n] + i];
      bounded[i] = d <= DW_MAX_DISTANCE;
      predicted[i] = fminf(d, DW_MAX_DISTANCE);
      target[i] = pairs.target[(size_t)i * pairs.count + n];
    }
    for (int i = 0; i < 2; ++i) {
      a[i] = predicted[i] + predicted[i + 2];
      b[i] = target[i] + target[i + 2];
      o[i] = fminf(predicted[i], target[i]) + fminf(predicted[i + 2], target[i + 2]);
      h[i] = a[i] + b[i] - o[i];
    }
    overlap = fmaxf(o[0], 0.0f) * fmaxf(o[1], 0.0f);
    joined = fmaxf(a[0] * a[1] + b[0] * b[1] - overlap, DW_AREA_EPS);
    hull = fmaxf(h[0] * h[1], DW_AREA_EPS);
    iou = overlap / joined;
    giou = iou - 1.0f + joined / hull;
  }

  // Derivatives of GIoU by the predicted distances.
  __device__ void slopes(float out[4]) const {
    const float by_joined =
        a[0] * a[1] + b[0] * b[1] - overlap >= DW_AREA_EPS ? 1.0f / hull - iou / joined : 0.0f;
    const float by_overlap = 1.0f / joined - by_joined;
    const float by_hull = h[0] * h[1] >= DW_AREA_EPS ? -joined / (hull * hull) : 0.0f;
    for (int i = 0; i < 4; ++i) {
      const int axis = i % 2, other = 1 - axis;
      const float p = predicted[i], t = target[i];
      // The derivative of min(p, t) by p. Where both are equal, libtorch gives each a half.
      const float inside = p < t ? 1.0f : p == t ? 0.5f : 0.0f;
      const float overlap_slope = o[axis] >= 0.0f ? fmaxf(o[other], 0.0f) * inside : 0.0f;
      const float slope = by_joined * a[other] + by_overlap * overlap_slope +
                          by_hull * h[other] * (1.0f - inside);
      out[i] = bounded[i] ? slope : 0.0f;
    }
  }

  // exp(-beta (1 - GIoU)), at most 1: rounding could exceed it.
  __device__ float localisation(float beta) const {
    return fminf(expf((giou - 1.0f) * beta), 1.0f);
  }
};

// The centre prior of a pair.
__device__ inline float dw_prior(const DwPairs &pairs, int n, int c, float above) {
  float squared = 0;
  for (int i = 0; i < 2; ++i) {
    const float near = pairs.target[(size_t)i * pairs.count + n],
                far = pairs.target[(size_t)(i + 2) * pairs.count + n];
    const float off = (near - far) / (2.0f * pairs.stride[n]) - pairs.mean[2 * c + i];
    const float sigma = pairs.sigma[2 * c + i];
    squared += off * off / (2.0f * sigma * sigma);
  }
  const float prior = expf(-squared);
  return above < 0.0f ? prior : prior > above ? 1.0f : 0.0f;
}

// Combines a value of each thread of the block; the result is valid in all of them.
enum DwCombine { DW_SUM, DW_MIN, DW_MAX };

template <DwCombine HOW, typename T>
__device__ T dw_combine(T value) {
  __shared__ T all[THREADS];
  __syncthreads();
  all[threadIdx.x] = value;
  for (int n = THREADS / 2; n > 0; n /= 2) {
    __syncthreads();
    if (threadIdx.x < n) {
      const T other = all[threadIdx.x + n], own = all[threadIdx.x];
      if (HOW == DW_SUM)
        all[threadIdx.x] = own + other;
      else if (HOW == DW_MIN ? other < own : other > own)
        all[threadIdx.x] = other;
    }
  }
  __syncthreads();
  return all[0];
}

// First pair of a box, or of the first one after it that has pairs.
__device__ inline int dw_first_pair(const DwPairs &pairs, int box) {
  int low = 0, high = pairs.count;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (pairs.gt[middle] < box)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

// Positive weights and P_neg of the pairs [N], and the sums of the positive terms of each box
// [G, 2]. Launched as grid (G, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_pairs(DwPredictions x, DwPairs pairs, DwSettings s, float *w_pos, float *p_neg,
             double *sums) {
  const int box = blockIdx.x, begin = dw_first_pair(pairs, box),
            end = dw_first_pair(pairs, box + 1);
  const float scale = 1.0f / (1.0f - powf(0.5f, s.gamma1));
  float below = 0, least = 3e38f, most = -3e38f;
  for (int n = begin + (int)threadIdx.x; n < end; n += THREADS) {
    const int c = (int)pairs.labels[box];
    const DwScore score(x, (int)pairs.point[n], c);
    const DwOverlap o(x, pairs, n);
    const float p = score.value * o.localisation(s.beta);
    const float with_prior = p * dw_prior(pairs, n, c, s.prior_above);
    below += expf(p * (s.mu * 0.6f)) * with_prior;
    w_pos[n] = expf(p * s.mu) * with_prior;
    const float f = (1.0f - dw_power(o.iou, s.gamma1)) * scale;
    p_neg[n] = f;
    least = fminf(least, f);
    most = fmaxf(most, f);
  }
  below = fmaxf(dw_combine<DW_SUM>(below), DW_TINY);
  least = dw_combine<DW_MIN>(least);
  most = fminf(dw_combine<DW_MAX>(most), 1.0f);
  double positive = 0, located = 0;
  for (int n = begin + (int)threadIdx.x; n < end; n += THREADS) {
    const DwScore score(x, (int)pairs.point[n], (int)pairs.labels[box]);
    const DwOverlap o(x, pairs, n);
    w_pos[n] /= below;
    p_neg[n] = o.iou < 0.5f ? 1.0f : (p_neg[n] - least + DW_TINY) / (most - least + DW_TINY);
    positive += w_pos[n] * dw_cross_entropy(score.value);
    located += w_pos[n] * dw_cross_entropy(o.localisation(s.beta));
  }
  positive = dw_combine<DW_SUM>(positive);
  located = dw_combine<DW_SUM>(located);
  if (threadIdx.x == 0) sums[2 * box] = positive, sums[2 * box + 1] = located;
}

// The negative loss of all logits with P_neg = 1, summed for each block [K, 2]; the second sum is
// 0, or NaN if a prediction is not finite. Launched as grid (K, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_negatives(DwPredictions x, DwSettings s, double *sums) {
  const int step = gridDim.x * THREADS, first = blockIdx.x * THREADS + threadIdx.x;
  const int count = x.rows * x.classes;
  double negative = 0;
  float invalid = 0;
  for (int i = first; i < count; i += step) {
    negative += dw_negative(DwScore(x, i / x.classes, i % x.classes).value, s.gamma2);
    invalid += x.cls[i] * 0.0f;
  }
  for (int row = first; row < x.rows; row += step) {
    if (x.quality) invalid += x.quality[row] * 0.0f;
    for (int i = 0; i < 4; ++i) invalid += x.distances[4 * (size_t)row + i] * 0.0f;
  }
  negative = dw_combine<DW_SUM>(negative);
  const double any = dw_combine<DW_SUM>((double)invalid);
  if (threadIdx.x == 0) sums[2 * blockIdx.x] = negative, sums[2 * blockIdx.x + 1] = any;
}

// P_neg of the covered logits [U]; and, summed for each block [K, 2], by how much it changes the
// negative loss, and 1 - P_neg. Launched as grid (K, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_covered(DwPredictions x, DwSettings s, const float *p_neg_of_pair, const long long *index,
               const long long *last_pair, int count, float *p_neg, double *sums) {
  double change = 0, removed = 0;
  for (int u = blockIdx.x * THREADS + threadIdx.x; u < count; u += gridDim.x * THREADS) {
    p_neg[u] = p_neg_of_pair[last_pair[u]];
    const DwScore score(x, (int)(index[u] / x.classes), (int)(index[u] % x.classes));
    change += (p_neg[u] - 1.0f) * dw_negative(score.value, s.gamma2);
    removed += 1.0f - p_neg[u];
  }
  change = dw_combine<DW_SUM>(change);
  removed = dw_combine<DW_SUM>(removed);
  if (threadIdx.x == 0) sums[2 * blockIdx.x] = change, sums[2 * blockIdx.x + 1] = removed;
}

// Adds the sums of the three kernels above. Launched as grid (1, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_sums(const double *of_boxes, int boxes, const double *of_all, int chunks,
            const double *of_covered, int covered_chunks, float *positive, float *located,
            float *negative, float *removed) {
  double sums[6] = {};
  const double *from[3] = {of_boxes, of_all, of_covered};
  const int counts[3] = {boxes, chunks, covered_chunks};
  for (int k = 0; k < 3; ++k) {
    for (int i = threadIdx.x; i < counts[k]; i += THREADS)
      for (int n = 0; n < 2; ++n) sums[2 * k + n] += from[k][2 * i + n];
    for (int n = 0; n < 2; ++n) sums[2 * k + n] = dw_combine<DW_SUM>(sums[2 * k + n]);
  }
  if (threadIdx.x == 0) {
    const double invalid = sums[3];
    *positive = (float)(sums[0] * DW_POSITIVE_SCALE + invalid);
    *located = (float)(sums[1] * DW_POSITIVE_SCALE + invalid);
    *negative = (float)(sums[2] + sums[4] + invalid);
    *removed = (float)sums[5];
  }
}

// The gradient of the negative loss with P_neg = 1 by the logits, and zeros for the distances. Each
// group of 32 threads of a block processes one row. Launched as grid (K, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_negatives_backward(DwPredictions x, DwSettings s, const float *dnegative, float *dcls,
                          float *dquality, float *ddistances) {
  __shared__ float all[THREADS];
  const int lane = threadIdx.x % 32, group = threadIdx.x / 32, groups = THREADS / 32;
  for (int start = blockIdx.x * groups; start < x.rows; start += gridDim.x * groups) {
    const int row = start + group;
    float sum = 0;
    if (row < x.rows) {
      for (int c = lane; c < x.classes; c += 32) {
        const DwScore score(x, row, c);
        const float slope = *dnegative * dw_negative_slope(score.value, s.gamma2);
        dcls[(size_t)row * x.classes + c] = slope * score.by_cls();
        sum += slope * score.by_quality();
      }
      if (lane < 4) ddistances[4 * (size_t)row + lane] = 0.0f;
    }
    all[threadIdx.x] = sum;
    __syncthreads();
    if (lane == 0 && row < x.rows && dquality) {
      for (int i = 1; i < 32; ++i) sum += all[threadIdx.x + i];
      dquality[row] = sum;
    }
    __syncthreads();
  }
}

// Corrects the gradient of dw_negatives_backward at the covered logits. Launched as grid (K, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_covered_backward(DwPredictions x, DwSettings s, const float *dnegative, const float *p_neg,
                        const long long *index, int count, float *dcls, float *dquality) {
  for (int u = blockIdx.x * THREADS + threadIdx.x; u < count; u += gridDim.x * THREADS) {
    const int row = (int)(index[u] / x.classes);
    const DwScore score(x, row, (int)(index[u] % x.classes));
    const float slope = *dnegative * dw_negative_slope(score.value, s.gamma2);
    dcls[index[u]] = p_neg[u] * slope * score.by_cls();
    if (dquality) atomicAdd(dquality + row, (p_neg[u] - 1.0f) * slope * score.by_quality());
  }
}

// Adds the gradients of the positive terms. Launched as grid (K, 1).
extern "C" __global__ void __launch_bounds__(THREADS)
    dw_pairs_backward(DwPredictions x, DwPairs pairs, DwSettings s, const float *w_pos,
                      const float *dpositive, const float *dlocated, float *dcls, float *dquality,
                      float *ddistances) {
  for (int n = blockIdx.x * THREADS + threadIdx.x; n < pairs.count; n += gridDim.x * THREADS) {
    const int row = (int)pairs.point[n], c = (int)pairs.labels[pairs.gt[n]];
    const DwScore score(x, row, c);
    const float weight = DW_POSITIVE_SCALE * w_pos[n];
    const float by_score = *dpositive * weight * dw_cross_entropy_slope(score.value);
    atomicAdd(dcls + (size_t)row * x.classes + c, by_score * score.by_cls());
    if (dquality) atomicAdd(dquality + row, by_score * score.by_quality());
    const DwOverlap o(x, pairs, n);
    const float p = o.localisation(s.beta);
    // No gradient where p was clamped to 1.
    if (expf((o.giou - 1.0f) * s.beta) > 1.0f) continue;
    const float by_giou = *dlocated * weight * dw_cross_entropy_slope(p) * s.beta * p;
    float slopes[4];
    o.slopes(slopes);
    for (int i = 0; i < 4; ++i)
      atomicAdd(ddistances + 4 * (size_t)row + i, by_giou * slopes[i]);
  }
}
