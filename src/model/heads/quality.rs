//! The quality predictor of GFLv2 (Li et al., CVPR 2021, Sec. 3.3): how good a box is, from the
//! shape of the predicted distributions of its distances.

use tch::Tensor;

use crate::geometry::BINS;
use crate::model::layers::{Conv, ConvSpec, Size, Then};
use crate::model::params::{Init, Params};

/// Number of the largest probabilities of a distribution that are read, in addition to their mean.
pub(crate) const TOP: i64 = 4;
/// Channels of the hidden layer.
const HIDDEN: i64 = 64;

/// Two 1x1 convolutions, shared by all levels.
#[derive(Debug)]
pub struct QualityPredictor {
    hidden: Conv,
    last: Conv,
}

impl QualityPredictor {
    /// Builds the predictor; the names of its tensors start with `bbox_head.reg_conf`.
    pub fn new(p: &mut Params) -> Self {
        let conv = |p: &mut Params, index: i64, input, output| {
            let init = Init::Normal(0.01);
            let bias = Some(0.0);
            let spec = ConvSpec { input, output, kernel: 1, stride: 1, groups: 1, init, bias };
            Conv::new(p, &format!("bbox_head.reg_conf.{index}"), spec, true)
        };
        Self { hidden: conv(p, 0, 4 * (TOP + 1), HIDDEN), last: conv(p, 2, HIDDEN, 1) }
    }

    /// Logits of distributions `[B, 4 * 17, h, w]` to qualities from 0 to 1 `[B, 1, h, w]`.
    pub fn forward(&self, bins: &Tensor) -> Tensor {
        let (b, h, w) = (bins.size()[0], bins.size()[2], bins.size()[3]);
        let p = bins.contiguous().view([b, 4, BINS, h, w]).softmax(2, None);
        let (top, _) = p.topk(TOP, 2, true, true);
        let mean = top.mean_dim(2, true, None);
        let statistics = Tensor::cat(&[top, mean], 2).view([b, 4 * (TOP + 1), h, w]);
        let hidden = Then::RELU.apply(self.hidden.forward(&statistics));
        self.last.forward(&hidden).sigmoid()
    }

    /// Multiply-adds for a level of `size`.
    pub fn cost(&self, size: Size) -> u64 {
        self.hidden.cost(size).0 + self.last.cost(size).0
    }
}
