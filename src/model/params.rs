//! Named parameters and buffers of a network, in the order they are used.
//!
//! Names are mmdetection's state-dict keys verbatim, so that checkpoints travel both ways.

use tch::{Device, Kind, Tensor};

/// How a parameter starts when nothing is loaded.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// All the same.
    Const(f64),
    /// Normal around 0.
    Normal(f64),
    /// He's normal for ReLU networks, by fan-out (mmdetection's ResNet).
    KaimingFanOut,
    /// Glorot's uniform (FPN).
    XavierUniform,
    /// Uniform within 1 / sqrt(fan-in) (mmcv's deformable convolution).
    UniformFanIn,
}

/// A convolution's weights with the channels innermost in memory, which is the layout of the images: libtorch would
/// otherwise convert weights that are not trained in every step (trained ones get their layout from the flat buffers).
fn channels_last(t: &Tensor) -> Tensor {
    if t.dim() == 4 {
        t.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
    } else {
        t.shallow_clone()
    }
}

/// What a named tensor is to the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A weight or bias, trained unless its stage is frozen.
    Parameter,
    /// A statistic that training changes (batch norm's running mean and variance); ranks keep it equal.
    RunningStatistic,
    /// A number that no step changes: statistics of frozen norm layers, priors.
    Constant,
    /// State that a strategy changes after steps, the same way on every rank.
    StrategyState,
    /// A count that nothing here reads, stored because loaders of other tools expect it.
    Counter,
}

/// A named tensor.
#[derive(Debug)]
pub struct Entry {
    /// State-dict key.
    pub name: String,
    /// The tensor that the layers share.
    pub tensor: Tensor,
    /// Trained by SGD.
    pub trainable: bool,
    /// Weight decay applies (not to norm layers).
    pub decay: bool,
    /// What it is.
    pub role: Role,
}

/// All named tensors of one network.
#[derive(Debug)]
pub struct Params {
    /// In the order of use.
    pub entries: Vec<Entry>,
    /// Kind of all floats.
    pub kind: Kind,
    /// Where they live.
    pub device: Device,
}

impl Params {
    /// No tensors yet.
    pub fn new(kind: Kind, device: Device) -> Self {
        Self { entries: vec![], kind, device }
    }

    fn push(
        &mut self,
        name: String,
        tensor: &Tensor,
        trainable: bool,
        decay: bool,
        role: Role,
    ) -> Tensor {
        let tensor = channels_last(&tensor.to_device(self.device)).set_requires_grad(trainable);
        let shared = tensor.shallow_clone();
        self.entries.push(Entry { name, tensor, trainable, decay, role });
        shared
    }

    /// Adds a parameter.
    pub fn param(
        &mut self,
        name: impl Into<String>,
        shape: &[i64],
        init: Init,
        trainable: bool,
        decay: bool,
    ) -> Tensor {
        let options = (self.kind, Device::Cpu);
        let receptive: i64 = shape.iter().skip(2).product();
        let (fan_in, fan_out) =
            (receptive * shape.get(1).unwrap_or(&1), receptive * shape.first().unwrap_or(&1));
        let mut t = Tensor::zeros(shape, options);
        let _ = match init {
            Init::Const(v) => t.fill_(v),
            Init::Normal(std) => t.normal_(0.0, std),
            Init::KaimingFanOut => t.normal_(0.0, (2.0 / fan_out as f64).sqrt()),
            Init::XavierUniform => {
                let bound = (6.0 / (fan_in + fan_out) as f64).sqrt();
                t.uniform_(-bound, bound)
            }
            Init::UniformFanIn => {
                let bound = 1.0 / (fan_in as f64).sqrt();
                t.uniform_(-bound, bound)
            }
        };
        self.push(name.into(), &t, trainable, decay, Role::Parameter)
    }

    /// Adds numbers that SGD does not train, all `value` at the start.
    pub fn buffer(
        &mut self,
        name: impl Into<String>,
        shape: &[i64],
        value: f64,
        role: Role,
    ) -> Tensor {
        let t = Tensor::full(shape, value, (self.kind, Device::Cpu));
        self.push(name.into(), &t, false, false, role)
    }

    /// Adds an integer counter (batch norm's `num_batches_tracked`, which loaders of other tools expect).
    pub fn counter(&mut self, name: impl Into<String>) -> Tensor {
        self.push(
            name.into(),
            &Tensor::zeros([0i64; 0], (Kind::Int64, Device::Cpu)),
            false,
            false,
            Role::Counter,
        )
    }

    /// Number of trained and of all parameters.
    pub fn counts(&self) -> (usize, usize) {
        let of = |only: bool| {
            self.entries
                .iter()
                .filter(|e| e.role == Role::Parameter && (e.trainable || !only))
                .map(|e| e.tensor.numel())
                .sum()
        };
        (of(true), of(false))
    }
}
