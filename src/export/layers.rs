//! Convolutions, plain and deformable, and norm layers as ONNX operators. Weights are read from the
//! network's parameters by name; batch norm is folded into the convolution before it, in f64.

use std::collections::BTreeMap;

use tch::{Kind, Tensor};

use super::graph::{Graph, float, int, ints};
use crate::model::Params;
use crate::model::layers::{EPSILON, groups};
use crate::{Error, Result};

/// The network's tensors by name.
#[derive(Debug)]
pub struct Source<'a>(BTreeMap<&'a str, &'a Tensor>);

impl<'a> Source<'a> {
    /// The tensors of a network.
    pub fn new(params: &'a Params) -> Self {
        Self(params.entries.iter().map(|e| (e.name.as_str(), &e.tensor)).collect())
    }

    /// Whether there is a tensor of this name.
    pub fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// Shape and numbers of a tensor.
    ///
    /// # Errors
    /// No such tensor: the description of the network here differs from the network.
    pub fn read(&self, name: &str) -> Result<(Vec<i64>, Vec<f64>)> {
        let Some(t) = self.0.get(name) else {
            return Err(Error::Bug(format!("export: the network has no tensor `{name}`")));
        };
        let flat = t.detach().to_kind(Kind::Double).contiguous().view([-1]);
        Ok((t.size(), Vec::try_from(flat).map_err(dw_torch::error)?))
    }

    /// A tensor of one element.
    ///
    /// # Errors
    /// See [`Source::read`].
    pub fn scalar(&self, name: &str) -> Result<f64> {
        Ok(self.read(name)?.1[0])
    }
}

/// A norm layer after a convolution, by the name of its tensors.
#[derive(Debug, Clone, Copy)]
pub enum NormOf<'a> {
    /// None.
    None,
    /// Batch norm in evaluation.
    Batch(&'a str),
    /// Group norm.
    Group(&'a str),
}

/// A convolution with its norm, as names of constants. May be used several times.
#[derive(Debug)]
pub struct Layer {
    weight: String,
    bias: Option<String>,
    kernel: i64,
    stride: i64,
    groups: i64,
    /// Convolution of offsets and mask of a deformable convolution.
    offset: Option<Box<Layer>>,
    norm: Option<GroupNorm>,
}

#[derive(Debug)]
struct GroupNorm {
    groups: i64,
    ones: String,
    zeros: String,
    weight: String,
    bias: String,
}

impl GroupNorm {
    fn new(g: &mut Graph, source: &Source, name: &str) -> Result<Self> {
        let (shape, weight) = source.read(&format!("{name}.weight"))?;
        let (_, bias) = source.read(&format!("{name}.bias"))?;
        let (channels, groups) = (shape[0], groups(shape[0]));
        let dims = [1, channels, 1, 1];
        Ok(Self {
            groups,
            ones: g.floats(&vec![1.0; groups as usize], &[groups]),
            zeros: g.floats(&vec![0.0; groups as usize], &[groups]),
            weight: g.named(&format!("{name}.weight"), &weight, &dims),
            bias: g.named(&format!("{name}.bias"), &bias, &dims),
        })
    }

    /// Before operator set 21 `GroupNormalization` has a different definition, so every group is
    /// normalised as one channel of `InstanceNormalization`.
    fn apply(&self, g: &mut Graph, x: &str) -> String {
        let shape = g.op("Shape", &[x]);
        let grouped = g.reshape(x, &[0, self.groups, -1]);
        let epsilon = vec![float("epsilon", EPSILON as f32)];
        let inputs = [grouped.as_str(), &self.ones, &self.zeros];
        let y = g.with("InstanceNormalization", &inputs, epsilon);
        let y = g.op("Reshape", &[&y, &shape]);
        let y = g.op("Mul", &[&y, &self.weight]);
        g.op("Add", &[&y, &self.bias])
    }
}

impl Layer {
    /// The convolution `name`, padded to keep the size at stride 1, and its norm. It is deformable
    /// if the network has a convolution of offsets for it.
    ///
    /// # Errors
    /// See [`Source::read`].
    pub fn new(
        g: &mut Graph,
        source: &Source,
        name: &str,
        norm: NormOf,
        (stride, groups): (i64, i64),
    ) -> Result<Self> {
        let (shape, mut weight) = source.read(&format!("{name}.weight"))?;
        let bias_name = format!("{name}.bias");
        let mut bias = if source.has(&bias_name) { Some(source.read(&bias_name)?.1) } else { None };
        if let NormOf::Batch(norm) = norm {
            fold(source, norm, &mut weight, &mut bias)?;
        }
        let offset_name = format!("{name}.conv_offset");
        let offset = if source.has(&format!("{offset_name}.weight")) {
            let plain = Self::new(g, source, &offset_name, NormOf::None, (stride, 1))?;
            Some(Box::new(plain))
        } else {
            None
        };
        Ok(Self {
            weight: g.named(&format!("{name}.weight"), &weight, &shape),
            bias: bias.map(|b| g.named(&bias_name, &b, &shape[..1])),
            kernel: shape[2],
            stride,
            groups,
            offset,
            norm: match norm {
                NormOf::Group(norm) => Some(GroupNorm::new(g, source, norm)?),
                _ => None,
            },
        })
    }

    /// A plain convolution with stride 1 and no norm.
    ///
    /// # Errors
    /// See [`Source::read`].
    pub fn plain(g: &mut Graph, source: &Source, name: &str) -> Result<Self> {
        Self::new(g, source, name, NormOf::None, (1, 1))
    }

    /// `[N, Cin, H, W]` to `[N, Cout, H', W']`: convolution and norm.
    pub fn apply(&self, g: &mut Graph, x: &str) -> String {
        let bias = self.bias.as_deref();
        let y = match &self.offset {
            None => {
                let inputs: Vec<&str> = [x, &self.weight].into_iter().chain(bias).collect();
                g.with("Conv", &inputs, self.attributes())
            }
            Some(offset) => {
                let taps = self.kernel * self.kernel;
                let predicted = offset.apply(g, x);
                let places = g.slice(&predicted, 1, 0, 2 * taps);
                let mask = g.slice(&predicted, 1, 2 * taps, 3 * taps);
                let mask = g.op("Sigmoid", &[&mask]);
                let inputs = [x, &self.weight, &places, bias.unwrap_or(""), &mask];
                g.with("DeformConv", &inputs, self.attributes())
            }
        };
        match &self.norm {
            Some(norm) => norm.apply(g, &y),
            None => y,
        }
    }

    /// Like [`Layer::apply`], followed by ReLU.
    pub fn relu(&self, g: &mut Graph, x: &str) -> String {
        let y = self.apply(g, x);
        g.op("Relu", &[&y])
    }

    /// A deformable convolution of `x` whose taps are at the given offsets, without mask.
    pub fn deformed(&self, g: &mut Graph, x: &str, places: &str) -> String {
        g.with("DeformConv", &[x, &self.weight, places], self.attributes())
    }

    fn attributes(&self) -> Vec<super::proto::AttributeProto> {
        vec![
            ints("kernel_shape", &[self.kernel; 2]),
            ints("strides", &[self.stride; 2]),
            ints("pads", &[self.kernel / 2; 4]),
            int("group", self.groups),
        ]
    }
}

/// Folds batch norm `norm` into weight and bias.
fn fold(
    source: &Source,
    norm: &str,
    weight: &mut [f64],
    bias: &mut Option<Vec<f64>>,
) -> Result<()> {
    let of = |what: &str| Ok::<_, Error>(source.read(&format!("{norm}.{what}"))?.1);
    let (gamma, beta) = (of("weight")?, of("bias")?);
    let (mean, var) = (of("running_mean")?, of("running_var")?);
    let own = bias.take().unwrap_or_else(|| vec![0.0; beta.len()]);
    let per_output = weight.len() / beta.len().max(1);
    let mut folded = vec![];
    for (i, row) in weight.chunks_exact_mut(per_output.max(1)).enumerate() {
        let factor = gamma[i] / (var[i] + EPSILON).sqrt();
        for w in row {
            *w *= factor;
        }
        folded.push(beta[i] + (own[i] - mean[i]) * factor);
    }
    *bias = Some(folded);
    Ok(())
}
