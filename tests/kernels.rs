//! The program's own CUDA kernels, compiled as C++ for the CPU, pass the checks that run at start
//! on a GPU; with a mistake in any of them they do not. (The golden tests run the kernels of the
//! loss, too.)

#[path = "support/kernels.rs"]
mod support;

use dw::assign::{DwConfig, Prior};
use dw::device::kernels::{SOURCE, check};
use support::use_on_cpu;
use tch::Device;

/// Mistakes in the kernels of the network: text of the source, and what replaces it.
const IN_NETWORK: [(&str, &str); 12] = [
    ("sums[1][i] += u * u;", "sums[1][i] += u;"),
    ("fmaxf(affine.z(i, affine.h(i, v[i])), 0.0f)", "affine.z(i, affine.h(i, v[i]))"),
    ("(m1[i] + h * m2[i])", "m1[i]"),
    ("1.0 / sqrt(var + eps)", "1.0 / (var + eps)"),
    ("out[1] = (float)sums[1];", "out[1] = (float)sums[2];"),
    ("gamma_sum[c] += (float)sums[1];", "gamma_sum[c] = (float)sums[1];"),
    ("v[i] += b[i];", "v[i] += b[0];"),
    ("d[i] = v[i] > 0 ? d[i] : 0.0f;", ""),
    ("beta[row] - mean[row] * scale", "beta[row]"),
    ("weight_sum[start + i] += d * scale;", "weight_sum[start + i] += d;"),
    ("(all[0] - mean[row] * dbias[row])", "all[0]"),
    // Some threads of a block do not reach its barrier.
    ("if (threadIdx.x < n) all[", "if (threadIdx.x >= n) return; else all["),
];

/// Mistakes in the kernels of the loss.
const IN_LOSS: [(&str, &str); 10] = [
    ("(s.mu * 0.6f)", "s.mu"),
    ("o.iou < 0.5f ? 1.0f :", ""),
    ("(float)(sums[2] + sums[4] + invalid)", "(float)(sums[2] + invalid)"),
    ("removed += 1.0f - p_neg[u];", "removed += p_neg[u];"),
    ("last_pair[u]]", "last_pair[0]]"),
    ("sum += slope * score.by_quality();", "sum += slope;"),
    ("dcls[index[u]] = p_neg[u] * slope", "dcls[index[u]] = slope"),
    ("by_hull * h[other] * (1.0f - inside)", "by_hull * h[other]"),
    ("squared += off * off", "squared = off * off"),
    ("by_score * score.by_quality()", "by_score"),
];

/// One test: the kernels are those of the whole process.
#[test]
fn the_kernels_equal_the_operations_of_libtorch() {
    tch::manual_seed(1);
    use_on_cpu("", "");
    assert_eq!(check(Device::Cpu), Ok(()));
    let hard = DwConfig { prior: Prior::Threshold, prior_value: 0.4, ..DwConfig::default() };
    let steep = DwConfig { gamma1: 1.3, gamma2: 2.5, mu: 3.0, beta: 2.0, ..DwConfig::default() };
    for config in [DwConfig::default(), hard, steep] {
        let off = config.kernel_difference(Device::Cpu);
        assert!(off < 1e-4, "{off}: {config:?}");
    }
    for (mistakes, in_loss) in [(&IN_NETWORK[..], false), (&IN_LOSS[..], true)] {
        for (from, to) in mistakes {
            assert!(SOURCE.to_str().unwrap().contains(from), "{from}");
            use_on_cpu(from, to);
            let passes = std::panic::catch_unwind(|| {
                if in_loss {
                    DwConfig::default().kernel_difference(Device::Cpu) < 1e-3
                } else {
                    check(Device::Cpu).is_ok()
                }
            });
            assert!(!passes.unwrap_or(false), "not noticed: {to} instead of {from}");
        }
    }
}
