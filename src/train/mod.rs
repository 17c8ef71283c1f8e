//! The training loop, top to bottom: batch, forward, assignment, loss over all ranks, backward, gradients over all
//! ranks, one finite check that all ranks share, SGD, log, checkpoint, evaluation.

pub mod checkpoint;
pub mod flat;
pub mod init;
pub mod metrics;
pub mod schedule;
pub mod sgd;
pub mod start;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dw_launch::collectives::Buffer;
use dw_launch::{Collectives, Op};
use serde_json::{Map, Value, json};
use tch::{Device, Kind, Tensor};

use crate::assign::dw::{self, CenterPrior};
use crate::data::loader::{Batch, Recipe};
use crate::data::{Dataset, Loader};
use crate::error::{Error, Result};
use crate::eval;
use crate::loss::{self, Loss};
use crate::model::Detector;
use crate::plan::Plan;
use flat::Flat;
use metrics::Metrics;

/// Steps that the loader may be ahead.
const PREFETCH: usize = 4;
/// Seconds between progress lines.
const LOG_EVERY: Duration = Duration::from_secs(5);

/// A run: everything the loop needs.
pub struct Run<'a> {
    /// Resolved settings.
    pub plan: &'a Plan,
    /// The other ranks.
    pub world: &'a dyn Collectives,
    /// Training images.
    pub train: Arc<Dataset>,
    /// Validation images.
    pub val: Option<Dataset>,
    /// The network.
    pub detector: Detector,
    /// Its trained parameters.
    pub flat: Flat,
    /// Steps done before.
    pub start: usize,
    /// Where results go.
    pub work_dir: PathBuf,
}

/// What one step measured.
struct Step {
    loss: Loss,
    grad_norm: f64,
    lr: f64,
}

impl Run<'_> {
    /// Trains to the end of the plan.
    ///
    /// # Errors
    /// Bad data, a lost peer, a loss that is not finite, preemption (after a checkpoint).
    pub fn train(&mut self) -> Result<()> {
        let stop = stop_signals()?;
        let plan = self.plan;
        let recipe = Recipe {
            data: plan.config.data.clone(),
            assign: plan.config.assign.clone(),
            seed: plan.config.train.seed,
            global_batch: plan.global_batch,
            rank: plan.rank,
            world: plan.world,
            pin: matches!(plan.device, Device::Cuda(_)),
        };
        let workers = if plan.config.data.workers == 0 { plan.threads } else { plan.config.data.workers };
        let mut loader = Loader::start(&self.train, &recipe, self.start..plan.total_steps, workers, PREFETCH.max(workers + 1));
        let lead = plan.rank == 0;
        let mut metrics = if lead { Some(Metrics::open(&self.work_dir.join("metrics.jsonl"), self.start > 0)?) } else { None };
        let mut best = if lead { self.best_so_far()? } else { None };
        let mut progress = Progress::new(self.start, plan.total_steps);
        for step in self.start..plan.total_steps {
            let began = Instant::now();
            let Some(batch) = loader.next_batch() else { break };
            let data_s = loader.waited_s;
            let done = self.step(step, &batch?, stop.load(Ordering::Relaxed))?;
            let step_s = began.elapsed().as_secs_f64();
            let epoch = step / plan.steps_per_epoch;
            if let Some(m) = &mut metrics {
                m.row(&step_row(step, epoch, &done, data_s, step_s, plan.global_batch))?;
                progress.log(step, epoch, &done, plan.global_batch);
            }
            let last = step + 1 == plan.total_steps;
            let epoch_end = (step + 1).is_multiple_of(plan.steps_per_epoch);
            let every = plan.config.checkpoint.every_steps;
            let eval_every = plan.config.eval.every_epochs;
            let evaluate = eval_every > 0 && (last || (epoch_end && (epoch + 1).is_multiple_of(eval_every)));
            let preempted = done.loss.stop_votes > 0;
            if last || preempted || evaluate || (every > 0 && (step + 1).is_multiple_of(every)) || (every == 0 && epoch_end) {
                self.checkpoint(step + 1, best.map(|b| b.1))?;
            }
            if preempted && !last {
                return Err(Error::Preempted(format!("stopped by a signal; checkpoint of step {} written, run again to go on", step + 1)));
            }
            if evaluate
                && let Some(ap) = self.evaluate(step, epoch, metrics.as_mut())?
                && best.is_none_or(|b| ap > b.0)
            {
                best = Some((ap, step + 1));
            }
        }
        Ok(())
    }

    /// One step on this rank's part of the global batch.
    fn step(&mut self, step: usize, batch: &Batch, stop: bool) -> Result<Step> {
        let plan = self.plan;
        let images = to_device(&batch.images, plan.device);
        let outputs = self.detector.forward(&images, true);
        let (cls, distances, objectness) = outputs.flatten();
        let (mean, sigma) = &self.detector.head().prior;
        let inputs = dw::Inputs {
            cls: &cls,
            distances: &distances,
            objectness: &objectness,
            pairs: &batch.pairs.to(cls.kind(), plan.device),
            prior: CenterPrior { mean, sigma },
        };
        let (terms, _) = dw::terms(&plan.config.assign, &inputs);
        let loss = loss::reduce(&terms, stop, self.world)?;
        if !loss.total().is_finite() {
            return Err(self.not_finite(step, batch, &loss, None));
        }
        loss.local.backward();
        all_reduce(&self.flat.grads, self.world)?;
        if plan.world > 1 {
            self.average_statistics()?;
        }
        let grad_norm = self.flat.grad_norm()?;
        if !grad_norm.is_finite() {
            return Err(self.not_finite(step, batch, &loss, Some(grad_norm)));
        }
        let t = &plan.config.train;
        let scale = if t.clip_norm > 0.0 && grad_norm > t.clip_norm { t.clip_norm / grad_norm } else { 1.0 };
        let lr = plan.schedule.lr(step);
        sgd::step(&mut self.flat, lr, t.momentum, t.weight_decay, scale);
        Ok(Step { loss, grad_norm, lr })
    }

    /// Batch norm's running statistics become the ranks' mean, so that every rank saves and evaluates the same network.
    fn average_statistics(&self) -> Result<()> {
        if self.plan.config.model.norm != crate::model::NormKind::Bn {
            return Ok(());
        }
        let stats: Vec<&Tensor> = self.detector.params.entries.iter().filter(|e| e.name.contains(".running_")).map(|e| &e.tensor).collect();
        let flat = Tensor::cat(&stats, 0) / self.plan.world as f64;
        all_reduce(&flat, self.world)?;
        let mut at = 0;
        for mut s in stats.into_iter().map(Tensor::shallow_clone) {
            let n = s.numel() as i64;
            tch::no_grad(|| s.copy_(&flat.narrow(0, at, n)));
            at += n;
        }
        Ok(())
    }

    /// All ranks come here together: the numbers that failed are sums over all of them.
    fn not_finite(&self, step: usize, batch: &Batch, loss: &Loss, grad_norm: Option<f64>) -> Error {
        let ids: Vec<u8> = batch.image_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let images: Vec<i64> = match self.world.gather_bytes(&ids) {
            Ok(all) => all.concat().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect(),
            Err(e) => return e.into(),
        };
        let terms: Vec<String> = loss.terms.iter().map(|(n, v)| format!("{n} {v}")).collect();
        let what = grad_norm.map_or_else(|| "the loss".to_owned(), |n| format!("the gradient's norm ({n})"));
        Error::NotFinite(format!(
            "step {step}: {what} is not a finite number: {}; images {images:?}\nhint: lower train.lr, lengthen train.warmup_steps or set train.clip_norm; the last checkpoint is whole",
            terms.join(", ")
        ))
    }

    /// Best AP of a run that goes on, with the step of its checkpoint.
    fn best_so_far(&self) -> Result<Option<(f64, usize)>> {
        if self.start == 0 {
            return Ok(None);
        }
        let rows = metrics::read(&self.work_dir.join("metrics.jsonl"))?;
        let found = rows.iter().filter_map(|r| Some((r.get("AP")?.as_f64()?, r.get("step")?.as_u64()? as usize + 1)));
        Ok(found.filter(|f| f.1 <= self.start).max_by(|a, b| a.0.total_cmp(&b.0)))
    }

    fn checkpoint(&self, step: usize, best: Option<usize>) -> Result<()> {
        if self.plan.rank == 0 {
            let state = checkpoint::State {
                step,
                seed: self.plan.config.train.seed,
                global_batch: self.plan.global_batch,
                data: self.train.split.fingerprint(),
                categories: self.train.categories().to_vec(),
            };
            let dir = self.work_dir.join("checkpoints");
            let path = checkpoint::save(&dir, &state, &self.plan.config, &self.detector.params, &self.flat)?;
            checkpoint::prune(&dir, step, self.plan.config.checkpoint.keep, best)?;
            tracing::info!("checkpoint {}", path.display());
        }
        Ok(self.world.barrier()?)
    }

    /// AP on rank 0.
    fn evaluate(&self, step: usize, epoch: usize, metrics: Option<&mut Metrics>) -> Result<Option<f64>> {
        let Some(val) = &self.val else { return Ok(None) };
        let began = Instant::now();
        let report = eval::evaluate(&self.detector, val, &self.plan.config, self.plan.device, self.world)?;
        self.world.barrier()?;
        let (Some(report), Some(metrics)) = (report, metrics) else { return Ok(None) };
        let s = &report.summary;
        let mut row = Map::new();
        row.insert("step".into(), json!(step));
        row.insert("epoch".into(), json!(epoch));
        for (name, value) in s.named() {
            row.insert(name.into(), json!(value));
        }
        row.insert("eval_s".into(), json!(began.elapsed().as_secs_f64()));
        metrics.row(&row)?;
        tracing::info!(
            "epoch {}: AP {:.3}, AP50 {:.3}, AP75 {:.3} ({:.0} s)",
            epoch + 1,
            s.ap,
            s.ap50,
            s.ap75,
            began.elapsed().as_secs_f64()
        );
        Ok(Some(s.ap))
    }
}

/// Images to the device, channels-last: the layout of the weights.
pub fn to_device(images: &Tensor, device: Device) -> Tensor {
    // Page-locked images (the loader's, for a GPU) are copied while the host goes on.
    images.to_device_(device, images.kind(), true, false).permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

/// Adds a contiguous buffer over all ranks, in place.
///
/// # Errors
/// A lost peer.
pub fn all_reduce(buffer: &Tensor, world: &dyn Collectives) -> Result<()> {
    let (ptr, count) = (buffer.data_ptr(), buffer.numel());
    let place = match (buffer.device(), buffer.kind()) {
        (Device::Cuda(_), Kind::Float) => Buffer::CudaF32 { ptr: ptr.cast(), count },
        (_, Kind::Double) => Buffer::HostF64 { ptr: ptr.cast(), count },
        _ => Buffer::HostF32 { ptr: ptr.cast(), count },
    };
    // SAFETY: `buffer` is contiguous, holds `count` numbers of this kind, and lives through the call.
    unsafe { world.all_reduce_raw(place, Op::Sum) }?;
    Ok(())
}

/// A flag that USR1 and TERM set: checkpoint, then exit code 75.
fn stop_signals() -> Result<Arc<AtomicBool>> {
    let flag = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGUSR1, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, flag.clone()).map_err(Error::io("cannot listen to signals", Path::new("")))?;
    }
    Ok(flag)
}

fn step_row(step: usize, epoch: usize, s: &Step, data_s: f64, step_s: f64, images: usize) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("step".into(), json!(step));
    row.insert("epoch".into(), json!(epoch));
    row.insert("loss".into(), json!(s.loss.total()));
    for (name, value) in &s.loss.terms {
        row.insert((*name).into(), json!(value));
    }
    row.insert("grad_norm".into(), json!(s.grad_norm));
    row.insert("lr".into(), json!(s.lr));
    row.insert("data_s".into(), json!(data_s));
    row.insert("step_s".into(), json!(step_s));
    row.insert("images_per_s".into(), json!(images as f64 / step_s));
    row
}

/// A line with ETA now and then; mpirun's output is no terminal, so there is no bar to redraw.
struct Progress {
    began: Instant,
    logged: Option<Instant>,
    start: usize,
    total: usize,
}

impl Progress {
    fn new(start: usize, total: usize) -> Self {
        Self { began: Instant::now(), logged: None, start, total }
    }

    fn log(&mut self, step: usize, epoch: usize, s: &Step, images: usize) {
        if step + 1 < self.total && self.logged.is_some_and(|t| t.elapsed() < LOG_EVERY) {
            return;
        }
        self.logged = Some(Instant::now());
        let done = (step + 1 - self.start) as f64;
        let pace = self.began.elapsed().as_secs_f64() / done;
        let eta = indicatif::HumanDuration(Duration::from_secs_f64(pace * (self.total - step - 1) as f64));
        let terms: Vec<String> = s.loss.terms.iter().map(|(n, v)| format!("{} {v:.3}", n.trim_start_matches("loss_"))).collect();
        tracing::info!(
            "step {}/{} epoch {} loss {:.3} ({}) lr {:.2e} {:.1} images/s ETA {eta:#}",
            step + 1,
            self.total,
            epoch + 1,
            s.loss.total(),
            terms.join(", "),
            s.lr,
            images as f64 / pace
        );
    }
}
