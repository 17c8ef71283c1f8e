//! Heads: pyramid features P3..P7 to raw predictions, and these to scores and boxes for
//! post-processing.
//!
//! * [`fcos`]: FCOS's head with its variants and DW's box refinement; [`quality`]: the predictor of
//!   GFLv2
//! * [`tood`]: TOOD's task-aligned head
//! * [`vfnet`]: VarifocalNet's head
//! * [`parts`]: building blocks of several heads
//! * [`sampling`]: sampling of maps for the box refinements of DW and TOOD

pub mod fcos;
pub mod parts;
pub mod quality;
pub mod sampling;
pub mod tood;
pub mod vfnet;

use tch::{Kind, Reduction, Tensor};

use crate::geometry::{self, Grid};
use crate::loss::functions::bce_with_logits;
use crate::model::config::{HeadKind, ModelConfig};
use crate::model::layers::Size;
use crate::model::params::Params;

/// Raw predictions for one batch, one tensor for each level.
#[derive(Debug)]
pub struct Outputs {
    /// Class logits or probabilities `[B, C, h, w]`.
    pub cls: Vec<Tensor>,
    /// Whether `cls` are logits or probabilities.
    pub cls_is: ClassOutput,
    /// Distances (l, t, r, b) `[B, 4, h, w]`, pixels; not negative, except for `Distances::Deltas`
    /// and TOOD's head.
    pub distances: Vec<Tensor>,
    /// Distances before refinement `[B, 4, h, w]`, pixels, if the head has a loss for them; else
    /// empty.
    pub first: Vec<Tensor>,
    /// Quality logits `[B, 1, h, w]`: objectness in DW (without a target of its own), centre-ness
    /// in FCOS. Empty without a quality branch.
    pub quality: Vec<Tensor>,
    /// Logits of the distributions of the distances `[B, 4 * 17, h, w]`, side by side; empty unless
    /// the head predicts distributions.
    pub bins: Vec<Tensor>,
    /// Offset of the points within their cells, see [`Grid::offset`].
    pub offset: f64,
}

/// Raw predictions for one batch, with the points of all levels in one dimension.
#[derive(Debug)]
pub struct Predictions {
    /// Class logits or probabilities `[B, P, C]`.
    pub cls: Tensor,
    /// Whether `cls` are logits or probabilities.
    pub cls_is: ClassOutput,
    /// Distances (l, t, r, b) `[B, P, 4]`, pixels; not negative, except for `Distances::Deltas` and
    /// TOOD's head.
    pub distances: Tensor,
    /// Distances before refinement `[B, P, 4]`, pixels, if the head has a loss for them.
    pub first: Option<Tensor>,
    /// Quality logits `[B, P]`, if the head has a quality branch.
    pub quality: Option<Tensor>,
    /// Logits of the distributions of the distances `[B, P, 4 * 17]`, if the head predicts them.
    pub bins: Option<Tensor>,
    /// The points.
    pub grid: Grid,
}

/// What a head's class scores are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ClassOutput {
    /// Logits.
    #[default]
    Logit,
    /// Probabilities (GFLv2, where they are multiplied by the quality; TOOD).
    Probability,
}

/// Post-processing; chosen by the assignment strategy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Inference {
    /// How predictions are ranked.
    pub rank: Rank,
    /// Whether each detected box is replaced by the weighted mean of the candidates around it
    /// (PAA's score voting).
    pub vote: bool,
}

impl From<Rank> for Inference {
    /// Ranking without voting.
    fn from(rank: Rank) -> Self {
        Self { rank, vote: false }
    }
}

/// How post-processing ranks predictions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Rank {
    /// The score threshold and the limit of candidates per level apply to the score: class
    /// probability times quality.
    #[default]
    Score,
    /// They apply to the square root of that product (PAA, OTA).
    Root,
    /// They apply to the class probability, which is multiplied by the quality before NMS.
    Class,
}

/// A head.
#[derive(Debug)]
pub enum Head {
    /// FCOS and its variants.
    Fcos(Box<fcos::Head>),
    /// TOOD.
    Tood(Box<tood::Head>),
    /// VarifocalNet.
    Vfnet(Box<vfnet::Head>),
}

impl Head {
    /// Builds the head of a configuration for `classes` classes.
    pub fn new(p: &mut Params, config: &ModelConfig, classes: i64) -> Self {
        match config.head {
            HeadKind::Fcos => Self::Fcos(Box::new(fcos::Head::new(p, config, classes))),
            HeadKind::Tood => Self::Tood(Box::new(tood::Head::new(p, config, classes))),
            HeadKind::Vfnet => Self::Vfnet(Box::new(vfnet::Head::new(p, config, classes))),
        }
    }

    /// Features `[P3, .., P7]`, each `[B, channels, h, w]`, to raw predictions. See
    /// [`Grid::offset`] for `offset`.
    pub fn forward(&self, pyramid: &[Tensor], offset: f64) -> Outputs {
        match self {
            Self::Fcos(head) => head.forward(pyramid, offset),
            Self::Tood(head) => head.forward(pyramid, offset),
            Self::Vfnet(head) => head.forward(pyramid, offset),
        }
    }

    /// Multiply-adds for P3..P7 of sizes `p`.
    pub fn cost(&self, p: &[Size]) -> u64 {
        match self {
            Self::Fcos(head) => head.cost(p),
            Self::Tood(head) => head.cost(p),
            Self::Vfnet(head) => head.cost(p),
        }
    }
}

impl Outputs {
    /// Outputs without any level.
    pub fn empty(cls_is: ClassOutput, offset: f64) -> Self {
        Self {
            cls: vec![],
            cls_is,
            distances: vec![],
            first: vec![],
            quality: vec![],
            bins: vec![],
            offset,
        }
    }

    /// Concatenates the points of all levels, each level row by row.
    pub fn flatten(&self) -> Predictions {
        let rows = |levels: &[Tensor]| {
            let flat: Vec<Tensor> =
                levels.iter().map(|t| t.permute([0, 2, 3, 1]).flatten(1, 2)).collect();
            Tensor::cat(&flat, 1)
        };
        let optional = |levels: &[Tensor]| (!levels.is_empty()).then(|| rows(levels));
        Predictions {
            cls: rows(&self.cls),
            cls_is: self.cls_is,
            distances: rows(&self.distances),
            first: optional(&self.first),
            quality: optional(&self.quality).map(|t| t.squeeze_dim(-1)),
            bins: optional(&self.bins),
            grid: Grid { sizes: self.sizes(), offset: self.offset },
        }
    }

    /// Size `(h, w)` of each level, cells.
    pub fn sizes(&self) -> Vec<(i64, i64)> {
        self.cls.iter().map(|t| (t.size()[2], t.size()[3])).collect()
    }
}

impl Predictions {
    /// Class probabilities `[B, P, C]`.
    pub fn probabilities(&self) -> Tensor {
        match self.cls_is {
            ClassOutput::Logit => self.cls.sigmoid(),
            ClassOutput::Probability => self.cls.shallow_clone(),
        }
    }

    /// Binary cross entropy of the class scores with targets `[B, P, C]` in `0..=1`, not reduced.
    pub fn class_bce(&self, target_bpc: &Tensor) -> Tensor {
        match self.cls_is {
            ClassOutput::Logit => bce_with_logits(&self.cls, target_bpc),
            // libtorch aborts on NaN here, in the targets too, which may come from predictions.
            ClassOutput::Probability => {
                let p = self.cls.nan_to_num(0.5, 1.0, 0.0);
                let target_bpc = target_bpc.nan_to_num(0.0, 1.0, 0.0).clamp(0.0, 1.0);
                p.binary_cross_entropy::<Tensor>(&target_bpc, None, Reduction::None)
            }
        }
    }

    /// The quality logits.
    ///
    /// # Panics
    /// If the head has no quality branch: the strategy does not fit the head.
    pub fn quality(&self) -> &Tensor {
        self.quality.as_ref().unwrap_or_else(|| panic!("the strategy needs a quality branch"))
    }

    /// The logits of the distances' distributions.
    ///
    /// # Panics
    /// If the head does not predict them: the strategy does not fit the head.
    pub fn bins(&self) -> &Tensor {
        self.bins.as_ref().unwrap_or_else(|| panic!("the strategy needs distributions"))
    }

    /// 0, or NaN if any of these tensors holds NaN or infinity. Without gradient. Every strategy
    /// adds it to a term, because most of them read some predictions at the positive points only,
    /// and because the score of an infinite logit is finite.
    pub fn nan_if_invalid(&self) -> Tensor {
        let of = |t: &Tensor| {
            let (least, most) = t.detach().aminmax(None, false);
            least * 0.0 + most * 0.0
        };
        let optional = self.quality.iter().chain(&self.first).chain(&self.bins);
        optional.fold(of(&self.cls) + of(&self.distances), |sum, t| sum + of(t))
    }
}

/// Scores and boxes of all points, in f32: the input of post-processing.
#[derive(Debug)]
pub struct Scored {
    /// Values to rank by `[B, P, C]`: class probabilities ([`Rank::Class`]) or the scores.
    pub ranked: Tensor,
    /// Quality `[B, P]` by which class probabilities are multiplied after ranking; `None`
    /// unless [`Rank::Class`], and without a quality branch.
    pub factor: Option<Tensor>,
    /// Boxes `[B, P, 4]`, pixels of the network input, not clipped.
    pub boxes: Tensor,
    /// Number of points of each level.
    pub levels: Vec<usize>,
}

/// Computes scores and boxes of a batch from raw predictions.
pub fn scored(outputs: &Outputs, rank: Rank) -> Scored {
    let p = outputs.flatten();
    let cls_bpc = match p.cls_is {
        ClassOutput::Logit => p.cls.to_kind(Kind::Float).sigmoid(),
        ClassOutput::Probability => p.cls.to_kind(Kind::Float),
    };
    let quality_bp = p.quality.as_ref().map(|q| q.to_kind(Kind::Float).sigmoid());
    let points_p2 = p.grid.points(Kind::Float, cls_bpc.device());
    let boxes = geometry::decode(&points_p2, &p.distances.to_kind(Kind::Float));
    let levels = p.grid.sizes.iter().map(|(h, w)| (h * w) as usize).collect();
    let (ranked, factor) = match rank {
        Rank::Class => (cls_bpc, quality_bp),
        Rank::Score | Rank::Root => {
            let score_bpc = match quality_bp {
                Some(quality_bp) => cls_bpc * quality_bp.unsqueeze(-1),
                None => cls_bpc,
            };
            (if rank == Rank::Root { score_bpc.sqrt() } else { score_bpc }, None)
        }
    };
    Scored { ranked, factor, boxes, levels }
}
