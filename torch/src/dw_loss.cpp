// The loss of dual weighting in the released formula, by the kernels of
// `src/device/kernels/dw_loss.cu`, whose first lines define the shapes.

#include <ATen/Context.h>
#include <ATen/core/grad_mode.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <atomic>
#include <optional>
#include <utility>

#include "common.h"
#include "kernels.h"

namespace {

using at::Tensor;
using dw::floats;
using torch::autograd::AutogradContext;
using torch::autograd::tensor_list;

// The structures of the kernels, with the same layout.
struct Settings {
  float beta, mu, gamma1, gamma2, prior_above;
};

struct Predictions {
  const float *cls, *quality, *distances;
  int rows, classes;
};

struct Pairs {
  const int64_t *point, *gt, *labels;
  const float *target, *stride, *mean, *sigma;
  int count;
};

// Targets and constants of the loss, in the order in which they are passed from Rust.
struct Targets {
  Tensor point, gt, labels, target, stride, mean, sigma, index, last_pair;

  Pairs pairs() const {
    const auto ints = [](const Tensor &t) { return t.const_data_ptr<int64_t>(); };
    return {ints(point),   ints(gt),    ints(labels),  floats(target),
            floats(stride), floats(mean), floats(sigma), static_cast<int>(point.numel())};
  }
};

float *to_write(const Tensor &t) { return t.defined() ? t.mutable_data_ptr<float>() : nullptr; }

Predictions predictions(const Tensor &cls, const Tensor &distances, const Tensor &quality) {
  const auto classes = cls.size(2);
  return {floats(cls), floats(quality), floats(distances),
          static_cast<int>(cls.numel() / classes), static_cast<int>(classes)};
}

// Number of blocks for `count` elements.
int64_t blocks(int64_t count) {
  return std::clamp<int64_t>((count + dw::THREADS - 1) / dw::THREADS, 1, 1024);
}

// The gradient of a scalar output, which may be absent.
Tensor or_zero(const Tensor &gradient, const Tensor &like) {
  return gradient.defined() ? gradient.contiguous() : at::zeros({}, like.options());
}

struct DwLoss : torch::autograd::Function<DwLoss> {
  // Returns the sums of the positive, localisation and negative terms and of 1 - P_neg, the
  // positive weights [N] and P_neg [U].
  static tensor_list forward(AutogradContext *ctx, const Tensor &cls, const Tensor &distances,
                             const std::optional<Tensor> &optional_quality, const Targets &t,
                             const Settings &s) {
    const auto quality = optional_quality.value_or(Tensor());
    const auto x = predictions(cls, distances, quality);
    const auto pairs = t.pairs();
    const auto &k = *dw::kernels(cls);
    const int64_t boxes = t.labels.numel(), covered = t.index.numel();
    const int64_t chunks = blocks(cls.numel()), covered_chunks = blocks(covered);
    const auto doubles = cls.options().dtype(at::kDouble);
    const auto w_pos = at::empty({pairs.count}, cls.options());
    const auto of_pairs = at::empty_like(w_pos);
    const auto p_neg = at::empty({covered}, cls.options());
    const auto of_boxes = at::empty({boxes, 2}, doubles), of_all = at::empty({chunks, 2}, doubles),
               of_covered = at::empty({covered_chunks, 2}, doubles);
    const auto sums = [](const Tensor &sums) { return sums.mutable_data_ptr<double>(); };
    if (boxes > 0)
      dw::launch(k.dw_pairs, cls, boxes, 1, x, pairs, s, to_write(w_pos), to_write(of_pairs),
                 sums(of_boxes));
    dw::launch(k.dw_negatives, cls, chunks, 1, x, s, sums(of_all));
    dw::launch(k.dw_covered, cls, covered_chunks, 1, x, s, floats(of_pairs),
               t.index.const_data_ptr<int64_t>(), t.last_pair.const_data_ptr<int64_t>(),
               static_cast<int>(covered), to_write(p_neg), sums(of_covered));
    tensor_list out;
    for (int i = 0; i < 4; ++i) out.push_back(at::empty({}, cls.options()));
    dw::launch(k.dw_sums, cls, 1, 1, sums(of_boxes), static_cast<int>(boxes), sums(of_all),
               static_cast<int>(chunks), sums(of_covered), static_cast<int>(covered_chunks),
               to_write(out[0]), to_write(out[1]), to_write(out[2]), to_write(out[3]));
    out.insert(out.end(), {w_pos, p_neg});
    ctx->save_for_backward({cls, distances, quality, w_pos, p_neg, t.point, t.gt, t.labels,
                            t.target, t.stride, t.mean, t.sigma, t.index, t.last_pair});
    ctx->mark_non_differentiable({out[3], w_pos, p_neg});
    ctx->set_materialize_grads(false);
    for (const auto &[name, value] : {std::pair("beta", s.beta),
                                      {"mu", s.mu},
                                      {"gamma1", s.gamma1},
                                      {"gamma2", s.gamma2},
                                      {"prior_above", s.prior_above}})
      ctx->saved_data[name] = static_cast<double>(value);
    return out;
  }

  static tensor_list backward(AutogradContext *ctx, const tensor_list &grads) {
    TORCH_CHECK(!at::GradMode::is_enabled(), "the loss has no second derivative");
    const auto saved = ctx->get_saved_variables();
    const auto &cls = saved[0], &distances = saved[1], &quality = saved[2], &w_pos = saved[3],
               &p_neg = saved[4];
    const Targets t{saved[5],  saved[6],  saved[7],  saved[8], saved[9],
                    saved[10], saved[11], saved[12], saved[13]};
    const auto number = [&](const char *name) {
      return static_cast<float>(ctx->saved_data[name].toDouble());
    };
    const Settings s{number("beta"), number("mu"), number("gamma1"), number("gamma2"),
                     number("prior_above")};
    const auto x = predictions(cls, distances, quality);
    const auto pairs = t.pairs();
    const auto &k = *dw::kernels(cls);
    const auto dpositive = or_zero(grads[0], cls), dlocated = or_zero(grads[1], cls),
               dnegative = or_zero(grads[2], cls);
    const auto dcls = at::empty_like(cls), ddistances = at::empty_like(distances);
    const auto dquality = quality.defined() ? at::empty_like(quality) : Tensor();
    const int64_t covered = t.index.numel();
    dw::launch(k.dw_negatives_backward, cls, blocks(32 * int64_t{x.rows}), 1, x, s,
               floats(dnegative), to_write(dcls), to_write(dquality), to_write(ddistances));
    dw::launch(k.dw_covered_backward, cls, blocks(covered), 1, x, s, floats(dnegative),
               floats(p_neg), t.index.const_data_ptr<int64_t>(), static_cast<int>(covered),
               to_write(dcls), to_write(dquality));
    dw::launch(k.dw_pairs_backward, cls, blocks(pairs.count), 1, x, pairs, s, floats(w_pos),
               floats(dpositive), floats(dlocated), to_write(dcls), to_write(dquality),
               to_write(ddistances));
    // One entry for each argument of forward.
    return {dcls, ddistances, dquality, Tensor(), Tensor()};
  }
};

// A contiguous tensor, as the kernels require.
Tensor plain(const Tensor *t) { return t->contiguous(); }

std::atomic<bool> switched_on{false};

// The kernels index logits in 32 bits, and pass the last one by up to the number of threads.
constexpr int64_t MOST_LOGITS = (int64_t{1} << 31) - (1 << 20);

}  // namespace

extern "C" {

// Switches the kernels of the loss on or off.
void dw_use_loss_kernels(int on) { switched_on = on != 0; }

// Whether `dw_loss` supports predictions like `cls`. Not with deterministic algorithms: it adds
// gradients in no fixed order.
int dw_has_dw_loss(const Tensor *cls) {
  return switched_on && dw::kernels(*cls) && cls->scalar_type() == at::kFloat && cls->numel() > 0 &&
         cls->numel() < MOST_LOGITS &&
         !at::globalContext().deterministicAlgorithms();
}

// cls [B, P, C], distances [B, P, 4], quality [B, P] (null: none), the nine tensors of `Targets`,
// five `settings`. Writes the six results of `DwLoss::forward`. 0 on success.
int dw_dw_loss(const Tensor *cls, const Tensor *distances, const Tensor *quality,
               const Tensor *const *targets, const float *settings, Tensor **out) {
  return dw::status([&] {
    const auto optional = quality ? std::optional(plain(quality)) : std::nullopt;
    const Targets t{plain(targets[0]), plain(targets[1]), plain(targets[2]),
                    plain(targets[3]), plain(targets[4]), plain(targets[5]),
                    plain(targets[6]), plain(targets[7]), plain(targets[8])};
    const auto rows = cls->numel() / cls->size(2);
    TORCH_CHECK(distances->numel() == 4 * rows && (!quality || quality->numel() == rows) &&
                    t.target.numel() == 4 * t.point.numel() && t.gt.numel() == t.point.numel() &&
                    t.stride.numel() == t.point.numel() && t.mean.numel() == 2 * cls->size(2) &&
                    t.sigma.numel() == t.mean.numel() && t.last_pair.numel() == t.index.numel(),
                "shapes do not match");
    const Settings s{settings[0], settings[1], settings[2], settings[3], settings[4]};
    const auto found = DwLoss::apply(plain(cls), plain(distances), optional, t, s);
    for (std::size_t i = 0; i < found.size(); ++i) out[i] = new Tensor(found[i]);
  });
}
}
