//! One training step: forward, assignment, loss over all ranks, backward with the all-reduce of the
//! gradients, finite check, update. The loop, benches and tests all use this implementation.

use std::sync::Arc;
use std::time::Instant;

use dw_launch::World;
use dw_launch::fault;
use dw_torch::Readback;
use tch::{Device, Kind, Tensor};

use super::buckets::{Buckets, Cost};
use super::config::TrainConfig;
use super::flat::Flat;
use super::input::{Input, Pixels};
use super::kernels;
use super::queue::Enqueued;
use super::{sgd, statistics};
use crate::assign::{Criterion, Matcher, Probe, Progress, Strategy, Targets};
use crate::loss::{self, Reduced, Term};
use crate::model::{Detector, Outputs};
use crate::{Error, Result};

/// The network and everything else that a step reads or changes, except the batch.
pub struct Step {
    /// The network.
    pub detector: Detector,
    /// The buffers of its trained parameters, their gradients and momentum.
    pub flat: Flat,
    buckets: Buckets,
    world: Arc<World>,
    strategy: Strategy,
    train: TrainConfig,
    device: Device,
}

/// Parts of a step, for measurements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Part {
    /// Forward pass, from images to predictions.
    Forward,
    /// Assignment, and loss over all ranks.
    Loss,
    /// Backward, and all-reduce of the gradients.
    Backward,
    /// Finite check and update.
    Update,
}

/// The terms of the loss of predictions. `probe` receives intermediate values of the strategy.
fn terms_of(
    criterion: &dyn Criterion,
    predicted: &Outputs,
    targets: &Targets,
    at: &Progress,
    probe: &mut dyn Probe,
) -> Vec<Term> {
    let predicted = predicted.flatten();
    let targets = targets.to(predicted.cls.kind(), predicted.cls.device());
    criterion.terms(&predicted, &targets, at, probe)
}

/// The loss of predictions over all ranks. `probe` receives intermediate values of the strategy;
/// `stop` is this rank's vote to stop after the step.
///
/// # Errors
/// A lost peer.
pub fn loss_of(
    criterion: &dyn Criterion,
    predicted: &Outputs,
    targets: &Targets,
    at: &Progress,
    probe: &mut dyn Probe,
    (stop, world): (bool, &World),
) -> Result<Reduced> {
    loss::reduce(&terms_of(criterion, predicted, targets, at, probe), None, stop, world)
}

impl Step {
    /// Moves the network's trained parameters into flat buffers, and registers the gradient hooks.
    /// `strategy` must have been built for this network.
    ///
    /// # Errors
    /// Memory that cannot be allocated, or a buffer or hook that libtorch rejects.
    pub fn new(
        mut detector: Detector,
        strategy: Strategy,
        config: &TrainConfig,
        world: &Arc<World>,
    ) -> Result<Self> {
        strategy.attach(&mut detector);
        let flat = Flat::new(&mut detector.params)?;
        let buckets = Buckets::new(&detector.params, &flat, config, world)?;
        let (device, train) = (detector.params.device, config.clone());
        // The kernels compute in f32.
        if detector.params.kind == Kind::Float {
            kernels::prepare(&strategy, detector.classes, device);
        }
        Ok(Self { detector, flat, buckets, world: world.clone(), strategy, train, device })
    }

    /// Predictions for a batch of images, with gradients.
    pub fn forward(&self, images: Pixels) -> Outputs {
        self.detector.forward(&images.prepare(self.device, self.detector.activations), true)
    }

    /// The terms of the loss of predictions for a part of this rank's batch.
    fn terms(&self, predicted: &Outputs, part: &Input) -> Vec<Term> {
        terms_of(&*self.strategy.criterion, predicted, part.targets, &part.at, &mut ())
    }

    /// [Numbers](loss::numbers) of parts of this rank's batch, added up; `None` without parts.
    fn numbers(&self, parts: &[Input]) -> Option<Tensor> {
        let of_part = |part: &Input| {
            tch::no_grad(|| loss::numbers(&self.terms(&self.forward(part.images), part), false))
        };
        parts.iter().map(of_part).reduce(|sum, numbers| sum + numbers)
    }

    /// The loss over all ranks, of the predictions for a part of this rank's batch and of the
    /// `earlier` parts, if any, given their [numbers](loss::numbers). `stop` is this rank's vote to
    /// stop after the step.
    ///
    /// # Errors
    /// A lost peer.
    pub fn loss(
        &self,
        predicted: &Outputs,
        part: &Input,
        earlier: Option<&Tensor>,
        stop: bool,
    ) -> Result<Reduced> {
        loss::reduce(&self.terms(predicted, part), earlier, stop, &self.world)
    }

    /// The strategy of the network.
    pub fn strategy(&self) -> &Strategy {
        &self.strategy
    }

    /// The part of the strategy that the loader's threads run.
    pub fn matcher(&self) -> Arc<dyn Matcher> {
        self.strategy.matcher.clone()
    }

    /// Computes the gradients of the global batch, in the flat buffer of every rank. `earlier` are
    /// the parts of this rank's batch other than that of `loss`.
    ///
    /// # Errors
    /// A lost peer.
    pub fn backward(&mut self, loss: &Reduced, earlier: &[Input]) -> Result<Cost> {
        let mut local = loss.local.shallow_clone();
        for part in earlier {
            // The gradients are added to the buffer, and reduced with those of the last part.
            local.backward();
            let predicted = self.forward(part.images);
            local = loss.local_of(&self.terms(&predicted, part));
        }
        let cost = self.buckets.backward(&local)?;
        statistics::average(&self.detector.params, &self.world)?;
        Ok(cost)
    }

    /// Clips and applies the gradients if loss and norm are finite, and sets them to zero. Returns
    /// their L2 norm before clipping, and 1 if they were not applied, else 0, as f64 scalars on the
    /// device.
    ///
    /// # Errors
    /// A failed device, or memory that cannot be allocated.
    pub fn update(&mut self, loss: &Reduced, lr: f64) -> Result<(Tensor, Tensor)> {
        tch::no_grad(|| {
            let norm = self.flat.grad_norm()?;
            let t = &self.train;
            if t.clip_norm > 0.0 {
                let scale = (t.clip_norm / &norm).clamp_max(1.0);
                let _ = self.flat.grads.g_mul_(&scale);
            }
            let finite = loss.sums.isfinite().all().logical_and(&norm.isfinite());
            let skip = finite.logical_not();
            let factor = skip.to_kind(Kind::Float);
            sgd::step(&mut self.flat, lr, t.momentum, t.weight_decay, &factor)?;
            Ok((norm, skip.to_kind(Kind::Double)))
        })
    }

    /// Enqueues a complete step on this rank's share of the global batch, which is processed in
    /// `parts`, at least one; the update is skipped if loss or gradient is not finite (see
    /// [`StepResult`](super::queue::StepResult)). `stop` is this rank's vote to stop after the
    /// step, `fault` a failure to inject for tests; `after` is called at the end of each [`Part`].
    ///
    /// The normalisers of the loss are sums over the global batch, so its gradient is known only
    /// after a forward pass of all parts: of n parts, n - 1 are computed once more.
    ///
    /// On a GPU the host does not wait for the device, so it can enqueue the next step before this
    /// one is complete.
    ///
    /// # Errors
    /// A lost peer, a failed device, or memory that cannot be allocated.
    pub fn run(
        &mut self,
        parts: &[Input],
        lr: f64,
        stop: bool,
        fault: Option<fault::Kind>,
        mut after: impl FnMut(Part),
    ) -> Result<Enqueued> {
        let Some((part, earlier)) = parts.split_last() else {
            return Err(Error::Bug("a step without a batch".into()));
        };
        // Before the last part, whose activations are kept for its backward pass.
        let numbers = self.numbers(earlier);
        let predicted = self.forward(part.images);
        after(Part::Forward);
        let mut loss = self.loss(&predicted, part, numbers.as_ref(), stop)?;
        drop(predicted);
        after(Part::Loss);
        match fault {
            Some(fault::Kind::Nan) => loss.local *= f64::NAN,
            // 4 PiB, more than any machine has, so that libtorch reports its own error.
            Some(fault::Kind::Oom) => {
                let options = (Kind::Float, self.device);
                drop(Tensor::f_zeros([1 << 50], options).map_err(dw_torch::error)?);
            }
            _ => {}
        }
        let began = Instant::now();
        let cost = self.backward(&loss, earlier)?;
        let backward_s = began.elapsed().as_secs_f64();
        after(Part::Backward);
        let (norm, skipped) = self.update(&loss, lr)?;
        self.strategy.criterion.after_step(&loss);
        let verdict = Tensor::stack(&[norm, skipped], 0);
        let numbers = Readback::start(&Tensor::cat(&[&loss.sums, &verdict], 0))?;
        after(Part::Update);
        Ok(Enqueued { loss, numbers, latest: self.world.latest(), backward_s, cost })
    }

    /// Number of gradient buckets, and seconds of an all-reduce of all of them without overlap (0
    /// until measured).
    pub fn communication(&self) -> (usize, f64) {
        self.buckets.stats()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::{AssignConfig, ImageBoxes};
    use crate::geometry::{Grid, level_sizes};
    use crate::model::Predictions;
    use crate::model::params::Role;
    use crate::train::snapshot::{Snapshot, State};

    /// FCOS with anchor points at the corners of cells, and a counter of steps among the network's
    /// tensors.
    struct Counting {
        fcos: Box<dyn Criterion>,
        count: Tensor,
    }

    impl Criterion for Counting {
        fn terms(
            &self,
            p: &Predictions,
            t: &Targets,
            at: &Progress,
            probe: &mut dyn Probe,
        ) -> Vec<Term> {
            assert_eq!(p.grid.offset, 0.0, "predictions use the grid of the matcher");
            self.fcos.terms(p, t, at, probe)
        }

        fn after_step(&mut self, loss: &Reduced) {
            assert_eq!(loss.sums.size(), [10], "three numbers of three terms, and the vote");
            tch::no_grad(|| drop(self.count.g_add_scalar_(1)));
        }
    }

    /// A matcher with anchor points at the corners of cells.
    struct Corners(Arc<dyn Matcher>);

    impl Matcher for Corners {
        fn offset(&self) -> f64 {
            0.0
        }

        fn targets(&self, grid: &Grid, images: &[ImageBoxes]) -> Targets {
            self.0.targets(grid, images)
        }
    }

    /// One box on a square image.
    fn batch(step: &Step, side: i64) -> (Tensor, Targets) {
        let boxes = vec![[8.0, 8.0, 50.0, 60.0]];
        let truth = [ImageBoxes { boxes, labels: vec![1], padded: None }];
        let sizes = level_sizes(side, side).to_vec();
        let targets =
            step.matcher().targets(&Grid { sizes, offset: step.matcher().offset() }, &truth);
        (Tensor::rand([1, 3, side, side], (Kind::Float, Device::Cpu)) * 4.0 - 2.0, targets)
    }

    fn build(config: &str, clip_norm: f64) -> Step {
        let config = crate::config::load(config, &[]).unwrap();
        let mut net = Detector::new(&config.model, 3, Kind::Float, Device::Cpu);
        let strategy = config.assign.build(&mut net.params, 3);
        let train = TrainConfig { clip_norm, ..config.train };
        Step::new(net, strategy, &train, &Arc::new(World::solo())).unwrap()
    }

    #[test]
    fn the_gradient_in_bf16_points_where_that_in_f32_does() {
        tch::manual_seed(1);
        let mut step = build("dw_r50_fpn_1x", 0.0);
        let (images, targets) = batch(&step, 256);
        let mut gradient = |activations| {
            step.detector.activations = activations;
            let images = Pixels::Normalised(&images);
            let input = Input { images, targets: &targets, at: Progress::default() };
            let predicted = step.forward(images);
            let loss = step.loss(&predicted, &input, None, false).unwrap();
            step.backward(&loss, &[]).unwrap();
            let gradient = step.flat.grads.to_kind(Kind::Double);
            let _ = step.flat.grads.zero_();
            gradient
        };
        let (f32, bf16) = (gradient(Kind::Float), gradient(Kind::BFloat16));
        assert!(!bf16.allclose(&f32, 0.0, 0.0, false), "bf16 rounds");
        let cosine = (f32.dot(&bf16) / (f32.norm() * bf16.norm())).double_value(&[]);
        // Rounding moves some activations to the other side of a ReLU. That alone lowers the cosine
        // to about 0.995 for the gradients of the towers' first convolutions, and to 0.9999 for
        // those of the branches.
        assert!(cosine > 0.995, "cosine {cosine}");
    }

    /// A step whose loss or gradient is not finite changes nothing and reports that; clipping
    /// bounds the update. The host reads nothing inside a step.
    #[test]
    fn a_step_that_is_not_finite_is_skipped_on_the_device() {
        tch::manual_seed(2);
        let mut step = build("smoke", 1e-3);
        let (images, targets) = batch(&step, 64);
        let run = |step: &mut Step, fault| {
            let before = step.flat.params.copy();
            let images = Pixels::Normalised(&images);
            let input = Input { images, targets: &targets, at: Progress::default() };
            let waits = Readback::waits_of_this_thread();
            let enqueued = step.run(&[input], 0.5, true, fault, |_| ()).unwrap();
            assert_eq!(Readback::waits_of_this_thread(), waits, "the host waits inside a step");
            let result = enqueued.wait(&World::solo()).unwrap();
            assert_eq!(result.loss.stop_votes, 1);
            let moved = (&step.flat.params - before).norm().double_value(&[]);
            (result.is_finite, result.grad_norm, moved)
        };
        let (is_finite, norm, moved) = run(&mut step, Some(fault::Kind::Nan));
        assert!(!is_finite && norm.is_nan() && moved == 0.0, "{norm} {moved}");
        let (is_finite, norm, moved) = run(&mut step, None);
        assert!(is_finite && norm > 1e-3, "{norm}");
        // Weight decay adds a little to lr x clip_norm.
        assert!(moved > 4e-4 && moved < 0.5 * (1e-3 + 1e-4 * 200.0), "{moved}");
    }

    #[test]
    fn a_strategy_chooses_the_grid_and_has_state_that_is_checkpointed() {
        let config = crate::config::load("smoke", &[]).unwrap();
        let mut net = Detector::new(&config.model, 3, Kind::Float, Device::Cpu);
        let fcos = AssignConfig::all()[1].build(&mut net.params, 3);
        let count = net.params.buffer("bbox_head.count", &[1], 0.0, Role::StrategyState);
        let criterion = Box::new(Counting { fcos: fcos.criterion, count });
        let strategy = Strategy {
            matcher: Arc::new(Corners(fcos.matcher)),
            criterion,
            inference: fcos.inference,
        };
        let mut step = Step::new(net, strategy, &config.train, &Arc::new(World::solo())).unwrap();
        let (images, targets) = batch(&step, 64);
        for _ in 0..3 {
            let images = Pixels::Normalised(&images);
            let input = Input { images, targets: &targets, at: Progress::default() };
            let enqueued = step.run(&[input], 1e-4, false, None, |_| ()).unwrap();
            assert!(enqueued.wait(&World::solo()).unwrap().is_finite);
        }
        let state = State {
            step: 3,
            seed: 0,
            global_batch: 1,
            data: 0,
            validation: None,
            categories: vec![],
        };
        let saved = Snapshot::take(state, "", &step.detector.params, &step.flat).unwrap();
        assert_eq!(saved.tensor("bbox_head.count").unwrap().double_value(&[0]), 3.0);
    }
}
