//! Feature pyramid network (Lin et al., CVPR 2017): C3..C5 to P3..P7, all with the same number of
//! channels.

use tch::Tensor;

use super::config::{FpnExtra, ModelConfig};
use super::layers::{Conv, ConvSpec, Size};
use super::params::{Init, Params};

/// Feature pyramid network.
#[derive(Debug)]
pub struct Fpn {
    lateral: Vec<Conv>,
    output: Vec<Conv>,
    extra: FpnExtra,
    relu: bool,
}

impl Fpn {
    /// Builds the network for C3, C4, C5 with `inputs` channels; the names of its tensors start
    /// with `neck.`.
    pub fn new(p: &mut Params, inputs: &[i64], config: &ModelConfig) -> Self {
        let (channels, extra) = (config.channels, config.fpn_extra);
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
                let from_c5 = i == inputs.len() && extra == FpnExtra::OnInput;
                let input = if from_c5 { inputs[i - 1] } else { channels };
                Conv::new(p, &format!("neck.fpn_convs.{i}.conv"), spec(input, 3, s), true)
            })
            .collect();
        Self { lateral, output, extra, relu: config.fpn_relu }
    }

    /// `[C3, C4, C5]` to `[P3, P4, P5, P6, P7]`.
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
        let p6 = self.output[3].forward(match self.extra {
            FpnExtra::OnOutput => &p[2],
            FpnExtra::OnInput => &c[2],
        });
        let p7 = self.output[4].forward(&if self.relu { p6.relu() } else { p6.shallow_clone() });
        p.extend([p6, p7]);
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

#[cfg(test)]
mod tests {
    use tch::{Device, Kind};

    use super::*;

    #[test]
    fn the_extra_levels_come_from_c5_or_p5() {
        for (extra, channels_of_p6, reaches_p5) in
            [(FpnExtra::OnInput, 6, false), (FpnExtra::OnOutput, 8, true)]
        {
            tch::manual_seed(2);
            let options = (Kind::Double, Device::Cpu);
            let mut params = Params::new(options.0, options.1);
            let config = ModelConfig { channels: 8, fpn_extra: extra, ..ModelConfig::default() };
            let fpn = Fpn::new(&mut params, &[2, 4, 6], &config);
            let maps = [(2, 8), (4, 4), (6, 2)];
            let c = maps.map(|(channels, side)| Tensor::randn([1, channels, side, side], options));
            fpn.forward(&c)[4].sum(Kind::Double).backward();
            let find = |name: &str| {
                &params.entries.iter().find(|e| e.name == format!("neck.{name}")).unwrap().tensor
            };
            assert_eq!(find("fpn_convs.3.conv.weight").size()[1], channels_of_p6);
            assert_eq!(find("fpn_convs.2.conv.weight").grad().defined(), reaches_p5);
        }
    }
}
