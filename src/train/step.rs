//! One training step: forward, assignment, loss over all ranks, backward with the all-reduce of the
//! gradients, finite check, update. The loop, benches and tests all use this implementation.

use std::sync::Arc;
use std::time::Instant;

use dw_launch::fault;
use dw_launch::{Op, World};
use tch::{Device, Kind, Tensor};

use super::buckets::{Buckets, Cost};
use super::config::TrainConfig;
use super::flat::Flat;
use super::sgd;
use crate::assign::{Criterion, Matcher, Probe, Progress, Strategy, Targets};
use crate::device::upload;
use crate::loss::{self, Loss};
use crate::model::params::Role;
use crate::model::{Detector, Outputs};
use crate::{Result, torch};

/// The network and everything beside the batch that a step reads or changes.
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

/// The input of a step.
#[derive(Debug, Clone, Copy)]
pub struct Input<'a> {
    /// Normalised images `[B, 3, H, W]`, in host or device memory.
    pub images: &'a Tensor,
    /// Targets of the images, in host or device memory.
    pub targets: &'a Targets,
    /// Progress of the run.
    pub at: Progress,
}

/// The result of a step.
#[derive(Debug)]
pub struct StepResult {
    /// The loss over the global batch.
    pub loss: Loss,
    /// L2 norm of the gradient before clipping; `None` if the loss was not finite, so that backward
    /// was skipped.
    pub grad_norm: Option<f64>,
    /// Seconds of backward on the host, including its part of the all-reduce.
    pub backward_s: f64,
    /// The cost of communication.
    pub cost: Cost,
}

impl StepResult {
    /// Whether loss and gradient norm are finite; otherwise the network was not updated.
    pub fn is_finite(&self) -> bool {
        self.loss.total().is_finite() && self.grad_norm.is_some_and(f64::is_finite)
    }
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
) -> Result<Loss> {
    let predicted = predicted.flatten();
    let targets = targets.to(predicted.cls.kind(), predicted.cls.device());
    let terms = criterion.terms(&predicted, &targets, at, probe);
    loss::reduce(&terms, stop, world)
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
        Ok(Self { detector, flat, buckets, world: world.clone(), strategy, train, device })
    }

    /// Predictions for a batch of images `[B, 3, H, W]`, with gradients.
    pub fn forward(&self, images: &Tensor) -> Outputs {
        self.detector.forward(&upload(images, self.device, self.detector.params.kind), true)
    }

    /// The loss of predictions over all ranks. `stop` is this rank's vote to stop after the step.
    ///
    /// # Errors
    /// A lost peer.
    pub fn loss(
        &self,
        predicted: &Outputs,
        targets: &Targets,
        at: &Progress,
        stop: bool,
    ) -> Result<Loss> {
        loss_of(&*self.strategy.criterion, predicted, targets, at, &mut (), (stop, &self.world))
    }

    /// The part of the strategy that the loader's threads run.
    pub fn matcher(&self) -> Arc<dyn Matcher> {
        self.strategy.matcher.clone()
    }

    /// Computes the gradients of the global batch, in the flat buffer of every rank.
    ///
    /// # Errors
    /// A lost peer.
    pub fn backward(&mut self, loss: &Loss) -> Result<Cost> {
        let cost = self.buckets.backward(&loss.local)?;
        if self.world.size() > 1 {
            self.average_statistics()?;
        }
        Ok(cost)
    }

    /// Clips and applies the gradients if their norm is finite, and sets them to zero. Returns
    /// their L2 norm before clipping.
    ///
    /// # Errors
    /// A failed device, or memory that cannot be allocated.
    pub fn update(&mut self, lr: f64) -> Result<f64> {
        let norm = self.flat.grad_norm()?;
        self.world.device_synchronized();
        if norm.is_finite() {
            let t = &self.train;
            let scale =
                if t.clip_norm > 0.0 && norm > t.clip_norm { t.clip_norm / norm } else { 1.0 };
            sgd::step(&mut self.flat, lr, t.momentum, t.weight_decay, scale)?;
        }
        Ok(norm)
    }

    /// Runs a complete step on this rank's part of the global batch; skips the update if loss or
    /// gradient is not finite (see [`StepResult::is_finite`]). `stop` is this rank's vote to stop
    /// after the step, `fault` a failure to inject for tests; `after` is called at the end of each
    /// part.
    ///
    /// # Errors
    /// A lost peer, a failed device, or memory that cannot be allocated.
    pub fn run(
        &mut self,
        input: Input,
        lr: f64,
        stop: bool,
        fault: Option<fault::Kind>,
        mut after: impl FnMut(Part),
    ) -> Result<StepResult> {
        let predicted = self.forward(input.images);
        after(Part::Forward);
        let mut loss = self.loss(&predicted, input.targets, &input.at, stop)?;
        drop(predicted);
        after(Part::Loss);
        if !loss.total().is_finite() {
            return Ok(StepResult {
                loss,
                grad_norm: None,
                backward_s: 0.0,
                cost: Cost::default(),
            });
        }
        match fault {
            Some(fault::Kind::Nan) => loss.local *= f64::NAN,
            // 4 PiB, more than any machine has, so that libtorch reports its own error.
            Some(fault::Kind::Oom) => {
                let options = (Kind::Float, self.device);
                drop(Tensor::f_zeros([1 << 50], options).map_err(torch::error)?);
            }
            _ => {}
        }
        let began = Instant::now();
        let cost = self.backward(&loss)?;
        let backward_s = began.elapsed().as_secs_f64();
        after(Part::Backward);
        let grad_norm = self.update(lr)?;
        if grad_norm.is_finite() {
            self.strategy.criterion.after_step(&loss);
        }
        after(Part::Update);
        Ok(StepResult { loss, grad_norm: Some(grad_norm), backward_s, cost })
    }

    /// Number of gradient buckets, and seconds of an all-reduce of all of them without overlap (0
    /// until measured).
    pub fn communication(&self) -> (usize, f64) {
        self.buckets.stats()
    }

    /// Averages the running statistics of batch norm over the ranks, so that all ranks save and
    /// evaluate the same network.
    fn average_statistics(&self) -> Result<()> {
        let entries = self.detector.params.entries.iter();
        let stats: Vec<&Tensor> =
            entries.filter(|e| e.role == Role::RunningStatistic).map(|e| &e.tensor).collect();
        if stats.is_empty() {
            return Ok(());
        }
        let flat = Tensor::cat(&stats, 0) / self.world.size() as f64;
        let buffer = torch::buffer_of(&flat);
        // SAFETY: `flat` is contiguous and lives through the call.
        unsafe { self.world.all_reduce_raw(buffer, Op::Sum, "batch norm statistics") }?;
        let mut at = 0;
        for mut s in stats.into_iter().map(Tensor::shallow_clone) {
            let n = s.numel() as i64;
            tch::no_grad(|| s.copy_(&flat.narrow(0, at, n)));
            at += n;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::assign::{AssignConfig, ImageBoxes};
    use crate::geometry::{Grid, level_sizes};
    use crate::loss::Term;
    use crate::model::Predictions;
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

        fn after_step(&mut self, loss: &Loss) {
            assert!(loss.total().is_finite());
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

    #[test]
    fn a_strategy_chooses_the_grid_and_has_state_that_is_checkpointed() {
        let config = crate::config::load("smoke", &[]).unwrap();
        let mut net = Detector::new(&config.model, 3, Kind::Float, Device::Cpu);
        let fcos = AssignConfig::all()[1].build(&mut net.params, 3);
        let count = net.params.buffer("bbox_head.count", &[1], 0.0, Role::StrategyState);
        let criterion = Box::new(Counting { fcos: fcos.criterion, count });
        let strategy =
            Strategy { matcher: Arc::new(Corners(fcos.matcher)), criterion, rank: fcos.rank };
        let mut step = Step::new(net, strategy, &config.train, &Arc::new(World::solo())).unwrap();
        let truth = [ImageBoxes { boxes: vec![[8.0, 8.0, 50.0, 60.0]], labels: vec![1] }];
        let grid = Grid { sizes: level_sizes(64, 64).to_vec(), offset: step.matcher().offset() };
        let targets = step.matcher().targets(&grid, &truth);
        let images = Tensor::rand([1, 3, 64, 64], (Kind::Float, Device::Cpu));
        for _ in 0..3 {
            let input = Input { images: &images, targets: &targets, at: Progress::default() };
            assert!(step.run(input, 1e-4, false, None, |_| ()).unwrap().is_finite());
        }
        let state = State { step: 3, seed: 0, global_batch: 1, data: 0, categories: vec![] };
        let saved = Snapshot::take(state, "", &step.detector.params, &step.flat).unwrap();
        assert_eq!(saved.tensor("bbox_head.count").unwrap().double_value(&[0]), 3.0);
    }
}
