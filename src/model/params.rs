//! Named parameters and buffers of a network, in the order of use.
//!
//! Names are mmdetection's state-dict keys, so that either program loads the other's checkpoints.

use tch::{Device, Kind, Tensor};

/// Initial values of a parameter.
#[derive(Debug, Clone, Copy)]
pub enum Init {
    /// A constant.
    Const(f64),
    /// Normal distribution with mean 0 and this standard deviation.
    Normal(f64),
    /// Normal distribution with variance 2 / fan-out (He et al., ICCV 2015; mmdetection's ResNet).
    KaimingFanOut,
    /// Uniform within sqrt(6 / (fan-in + fan-out)) (Glorot and Bengio, AISTATS 2010; FPN).
    XavierUniform,
    /// Uniform from minus to plus this bound.
    Uniform(f64),
    /// Uniform within sqrt(6 / fan-in) (He et al., ICCV 2015; mmcv's deformable convolution).
    KaimingUniform,
}

/// Converts convolution weights to channels-last, the memory layout of the images. Otherwise
/// libtorch would convert frozen weights in every step. (Trained ones get their layout from the
/// flat buffers.)
fn channels_last(t: &Tensor) -> Tensor {
    let [o, i, h, w] = t.size()[..] else { return t.shallow_clone() };
    // A new tensor instead of a permuted view: a view would keep the memory of its base alive even
    // after the flat buffers have replaced its data.
    let mut out =
        Tensor::empty_strided([o, i, h, w], [h * w * i, 1, w * i, i], (t.kind(), t.device()));
    out.copy_(t);
    out
}

/// Role of a named tensor in the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// A weight or bias; trained unless its stage is frozen.
    Parameter,
    /// A running statistic of batch norm, updated in training and kept equal on all ranks.
    RunningStatistic,
    /// A constant: statistics of frozen norm layers, centre priors.
    Constant,
    /// State of a strategy, which updates it after a step in the same way on all ranks.
    StrategyState,
    /// A counter that is only stored because loaders of other programs expect it.
    Counter,
}

/// A named tensor.
#[derive(Debug)]
pub struct Entry {
    /// State-dict key.
    pub name: String,
    /// The tensor; layers hold shallow clones of it.
    pub tensor: Tensor,
    /// Whether the optimiser updates it.
    pub trainable: bool,
    /// Whether weight decay applies (not to norm layers).
    pub decay: bool,
    /// Its role.
    pub role: Role,
}

/// All named tensors of one network.
#[derive(Debug)]
pub struct Params {
    /// The tensors in the order of use.
    pub entries: Vec<Entry>,
    /// Kind of the floating-point tensors.
    pub kind: Kind,
    /// Device of all tensors.
    pub device: Device,
}

impl Params {
    /// Creates an empty list.
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

    /// Adds a parameter and returns a shallow clone for the layer. Initial values are drawn on the
    /// CPU, so that they do not depend on the device.
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
            Init::Uniform(bound) => t.uniform_(-bound, bound),
            Init::KaimingUniform => {
                let bound = (6.0 / fan_in as f64).sqrt();
                t.uniform_(-bound, bound)
            }
        };
        self.push(name.into(), &t, trainable, decay, Role::Parameter)
    }

    /// Adds a tensor that the optimiser does not train, filled with `value`.
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

    /// A constant for the computations of a layer, on the network's device. It has no name and is
    /// not in checkpoints. Create it once: a copy in every step would make the host wait for the
    /// GPU.
    pub fn constant(&self, values: &[f32], shape: &[i64]) -> Tensor {
        Tensor::from_slice(values).to_kind(self.kind).to_device(self.device).view(shape)
    }

    /// Adds an integer counter that is 0 (batch norm's `num_batches_tracked`, see
    /// [`Role::Counter`]).
    pub fn counter(&mut self, name: impl Into<String>) -> Tensor {
        self.push(
            name.into(),
            &Tensor::zeros([0i64; 0], (Kind::Int64, Device::Cpu)),
            false,
            false,
            Role::Counter,
        )
    }

    /// Number of elements of the trained parameters, and of all parameters.
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
