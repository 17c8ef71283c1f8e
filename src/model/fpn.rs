//! Feature pyramid network (Lin et al., CVPR 2017): C3..C5 to P3..P7, all with the same number of
//! channels.

use tch::Tensor;

use super::layers::{Conv, ConvSpec, Size};
use super::params::{Init, Params};

/// Feature pyramid network.
#[derive(Debug)]
pub struct Fpn {
    lateral: Vec<Conv>,
    output: Vec<Conv>,
}

impl Fpn {
    /// Builds the network for C3, C4, C5 with `inputs` channels; the names of its tensors start
    /// with `neck.`.
    pub fn new(p: &mut Params, inputs: &[i64], channels: i64) -> Self {
        let spec = |input, kernel, stride| ConvSpec {
            input,
            output: channels,
            kernel,
            stride,
            groups: 1,
            init: Init::XavierUniform,
            bias: Some(0.0),
        };
        let lateral = inputs
            .iter()
            .enumerate()
            .map(|(i, &c)| {
                Conv::new(p, &format!("neck.lateral_convs.{i}.conv"), spec(c, 1, 1), true)
            })
            .collect();
        let strides = [1, 1, 1, 2, 2];
        let output = strides
            .iter()
            .enumerate()
            .map(|(i, &s)| {
                Conv::new(p, &format!("neck.fpn_convs.{i}.conv"), spec(channels, 3, s), true)
            })
            .collect();
        Self { lateral, output }
    }

    /// `[C3, C4, C5]` to `[P3, P4, P5, P6, P7]`. P6 is a convolution of P5, and P7 one of relu(P6).
    pub fn forward(&self, c: &[Tensor]) -> Vec<Tensor> {
        let mut lateral: Vec<Tensor> =
            c.iter().zip(&self.lateral).map(|(x, conv)| conv.forward(x)).collect();
        for i in (1..lateral.len()).rev() {
            let size = lateral[i - 1].size();
            let up = lateral[i].upsample_nearest2d([size[2], size[3]], None, None);
            lateral[i - 1] = &lateral[i - 1] + up;
        }
        let mut p: Vec<Tensor> =
            lateral.iter().zip(&self.output).map(|(x, conv)| conv.forward(x)).collect();
        p.push(self.output[3].forward(&p[2]));
        p.push(self.output[4].forward(&p[3].relu()));
        p
    }

    /// Multiply-adds for C3, C4, C5 of sizes `c`, and the sizes of P3..P7.
    pub fn cost(&self, c: &[Size]) -> (u64, Vec<Size>) {
        let mut sizes = c.to_vec();
        let lateral: u64 = c.iter().zip(&self.lateral).map(|(size, conv)| conv.cost(*size).0).sum();
        let mut output: u64 =
            c.iter().zip(&self.output).map(|(size, conv)| conv.cost(*size).0).sum();
        for conv in &self.output[c.len()..] {
            let (macs, size) = conv.cost(sizes[sizes.len() - 1]);
            output += macs;
            sizes.push(size);
        }
        (lateral + output, sizes)
    }
}
