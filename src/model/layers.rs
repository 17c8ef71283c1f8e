//! Convolutions and norm layers.

use dw_torch::Convolution;
use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use super::params::{Init, Params, Role};

/// `model.norm`: kind of the backbone's norm layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NormKind {
    /// Batch norm with fixed statistics and trained weight and bias: the paper's setting, which
    /// requires pretrained weights.
    FrozenBn,
    /// Batch norm with the statistics of each rank's batch.
    Bn,
    /// Group norm (Wu and He, ECCV 2018).
    Gn,
}

/// A 2-d convolution.
#[derive(Debug)]
pub struct Conv {
    weight: Tensor,
    /// Copy of the weight in the kind of the activations, without gradient; see [`Conv::rounded`].
    rounded: Option<Tensor>,
    bias: Option<Tensor>,
    stride: i64,
    padding: i64,
    groups: i64,
}

/// Size `(height, width)` of an image or feature map: pixels of the network input, or cells.
pub type Size = (i64, i64);

/// Shape and initial values of a convolution.
#[derive(Debug, Clone, Copy)]
pub struct ConvSpec {
    /// Input channels.
    pub input: i64,
    /// Output channels.
    pub output: i64,
    /// Side of the square kernel.
    pub kernel: i64,
    /// Stride along both axes.
    pub stride: i64,
    /// Number of groups of channels, each convolved on its own (ResNeXt).
    pub groups: i64,
    /// Initial weights.
    pub init: Init,
    /// Initial bias; `None` for a convolution without bias.
    pub bias: Option<f64>,
}

impl Conv {
    /// Builds the convolution `name`, padded to keep the size at stride 1.
    pub fn new(p: &mut Params, name: &str, spec: ConvSpec, trainable: bool) -> Self {
        let ConvSpec { input, output, kernel, stride, groups, init, bias } = spec;
        let weight = p.param(
            format!("{name}.weight"),
            &[output, input / groups, kernel, kernel],
            init,
            trainable,
            true,
        );
        let bias = bias
            .map(|b| p.param(format!("{name}.bias"), &[output], Init::Const(b), trainable, true));
        Self { weight, rounded: None, bias, stride, padding: kernel / 2, groups }
    }

    /// One convolution that computes the outputs of several, concatenated. They have the same input
    /// channels, kernel, stride and padding, and all or none have a bias.
    pub fn merged(convs: &[&Self]) -> Self {
        let all = |tensors: Vec<&Tensor>| Tensor::cat(&tensors, 0);
        let biases: Vec<&Tensor> = convs.iter().filter_map(|c| c.bias.as_ref()).collect();
        let Self { stride, padding, groups, .. } = *convs[0];
        let weight = all(convs.iter().map(|c| &c.weight).collect());
        let bias = (!biases.is_empty()).then(|| all(biases));
        Self { weight, rounded: None, bias, stride, padding, groups }
    }

    /// The same convolution for several inputs of `kind`: its weight is rounded once, here, instead
    /// of for each input. Gradients reach the weight itself, in its own kind.
    #[must_use]
    pub fn rounded(&self, kind: Kind) -> Self {
        let Self { stride, padding, groups, .. } = *self;
        let other = self.weight.kind() != kind;
        let rounded = other.then(|| self.weight.detach().to_kind(kind));
        let bias = self.bias.as_ref().map(Tensor::shallow_clone);
        Self { weight: self.weight.shallow_clone(), rounded, bias, stride, padding, groups }
    }

    /// `[B, Cin, H, W]` to `[B, Cout, H', W']` of the same kind, whatever the parameters' kind is.
    pub fn forward(&self, x: &Tensor) -> Tensor {
        dw_torch::convolution(x, &self.spec(Then::default()))
    }

    /// Like [`Conv::forward`], with output of `kind`. The bias is added in that kind: in bf16, a
    /// large bias would leave few bits for the value that it is added to.
    pub fn forward_as(&self, x: &Tensor, kind: Kind) -> Tensor {
        match &self.bias {
            Some(bias) if x.kind() != kind => {
                let without_bias = Convolution { bias: None, ..self.spec(Then::default()) };
                dw_torch::convolution(x, &without_bias).to_kind(kind) + bias.view([1, -1, 1, 1])
            }
            _ => self.forward(x).to_kind(kind),
        }
    }

    /// The convolution followed by `norm` and `then`. Batch norm with fixed statistics is folded
    /// into weight and bias, and everything runs in one call. With `train`, batch norm uses the
    /// statistics of the batch and updates the running ones, unless they are fixed.
    pub fn normalised(&self, x: &Tensor, norm: &Norm, then: Then, train: bool) -> Tensor {
        match norm {
            Norm::Batch { weight, bias, mean, var, fixed }
                if (*fixed || !train) && self.bias.is_none() =>
            {
                let spec = Convolution {
                    bias: Some(bias),
                    norm: Some([weight, mean, var]),
                    rounded: None,
                    ..self.spec(then)
                };
                dw_torch::convolution(x, &spec)
            }
            Norm::Group { weight, bias, groups } if then.relu && then.residual.is_none() => {
                // On a GPU group norm also adds the bias, which saves a pass over the tensor. On a
                // CPU the convolution adds it without an extra pass.
                let (first, second) = match &self.bias {
                    bias if x.device().is_cuda() => (None, bias.as_ref()),
                    bias => (bias.as_ref(), None),
                };
                let conv = Convolution { bias: first, ..self.spec(Then::default()) };
                let y = dw_torch::convolution(x, &conv);
                dw_torch::group_norm_relu(&y, second, weight, bias, *groups)
            }
            _ => then.apply(norm.forward(&self.forward(x), train)),
        }
    }

    /// This convolution without norm.
    fn spec<'a>(&'a self, then: Then<'a>) -> Convolution<'a> {
        Convolution {
            weight: &self.weight,
            bias: self.bias.as_ref(),
            norm: None,
            residual: then.residual,
            rounded: self.rounded.as_ref(),
            stride: self.stride,
            padding: self.padding,
            groups: self.groups,
            relu: then.relu,
        }
    }

    /// The weights `[Cout, Cin / groups, K, K]`.
    pub fn weight(&self) -> &Tensor {
        &self.weight
    }

    /// Number of output channels.
    pub fn outputs(&self) -> i64 {
        self.weight.size()[0]
    }

    /// Multiply-adds for an input of `size`, and the output's size.
    pub fn cost(&self, size: Size) -> (u64, Size) {
        let kernel = self.weight.size()[2];
        let out = |n: i64| (n + 2 * self.padding - kernel) / self.stride + 1;
        let size = (out(size.0), out(size.1));
        (self.weight.numel() as u64 * (size.0 * size.1) as u64, size)
    }
}

/// What follows a convolution and its norm.
#[derive(Debug, Clone, Copy, Default)]
pub struct Then<'a> {
    /// Added to the output, with its shape and kind.
    pub residual: Option<&'a Tensor>,
    /// Whether ReLU is applied last.
    pub relu: bool,
}

impl Then<'_> {
    /// ReLU alone.
    pub const RELU: Self = Self { residual: None, relu: true };

    /// Applies this to the output of a norm, which it may overwrite.
    pub fn apply(self, y: Tensor) -> Tensor {
        let mut y = match self.residual {
            Some(residual) => y + residual,
            None => y,
        };
        if self.relu { y.relu_() } else { y }
    }
}

/// Added to the variance by norm layers.
pub(crate) const EPSILON: f64 = 1e-5;

/// A norm layer.
#[derive(Debug)]
pub enum Norm {
    /// Batch norm.
    Batch {
        /// Weight (scale) `[C]`.
        weight: Tensor,
        /// Bias (shift) `[C]`.
        bias: Tensor,
        /// Running mean `[C]`.
        mean: Tensor,
        /// Running variance `[C]`.
        var: Tensor,
        /// Whether training also uses the running statistics, and never updates them.
        fixed: bool,
    },
    /// No norm.
    None,
    /// Group norm.
    Group {
        /// Weight (scale) `[C]`.
        weight: Tensor,
        /// Bias (shift) `[C]`.
        bias: Tensor,
        /// Number of groups.
        groups: i64,
    },
}

/// Number of groups of a group norm: 32 for 256 channels as in the paper's head; for narrower
/// networks a divisor of the channels that leaves at least four channels per group, if there is
/// one.
pub(crate) fn groups(channels: i64) -> i64 {
    let most = if channels % 32 == 0 && channels >= 256 { 32 } else { (channels / 4).clamp(1, 32) };
    (1..=most).rev().find(|g| channels % g == 0).unwrap_or(1)
}

impl Norm {
    /// Builds the norm layer `name`, with initial weights `scale`.
    pub fn new(
        p: &mut Params,
        name: &str,
        channels: i64,
        kind: NormKind,
        scale: f64,
        trainable: bool,
    ) -> Self {
        let weight =
            p.param(format!("{name}.weight"), &[channels], Init::Const(scale), trainable, false);
        let bias = p.param(format!("{name}.bias"), &[channels], Init::Const(0.0), trainable, false);
        if kind == NormKind::Gn {
            return Self::Group { weight, bias, groups: groups(channels) };
        }
        let fixed = kind == NormKind::FrozenBn || !trainable;
        let role = if fixed { Role::Constant } else { Role::RunningStatistic };
        let mean = p.buffer(format!("{name}.running_mean"), &[channels], 0.0, role);
        let var = p.buffer(format!("{name}.running_var"), &[channels], 1.0, role);
        let _ = p.counter(format!("{name}.num_batches_tracked"));
        Self::Batch { weight, bias, mean, var, fixed }
    }

    /// Normalises `[B, C, H, W]`. With `train`, batch norm uses the statistics of the batch and
    /// updates the running ones, unless they are fixed.
    pub fn forward(&self, x: &Tensor, train: bool) -> Tensor {
        match self {
            Self::Batch { weight, bias, mean, var, fixed } => x.batch_norm(
                Some(weight),
                Some(bias),
                Some(mean),
                Some(var),
                train && !fixed,
                0.1,
                EPSILON,
                true,
            ),
            Self::None => x.shallow_clone(),
            Self::Group { weight, bias, groups } if x.device().is_cuda() => {
                // On a GPU libtorch's group norm requires parameters of the input's kind.
                let [weight, bias] = [weight, bias].map(|t| Some(t.to_kind(x.kind())));
                x.group_norm(*groups, weight, bias, EPSILON, true)
            }
            Self::Group { weight, bias, groups } => dw_torch::group_norm(x, weight, bias, *groups),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::groups;

    #[test]
    fn groups_divide_the_channels() {
        assert_eq!([256, 512, 128, 64, 16, 24, 6].map(groups), [32, 32, 32, 16, 4, 6, 1]);
    }
}
