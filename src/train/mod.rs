//! The training loop, top to bottom: batch, forward, assignment, loss over all ranks, backward, gradients over all
//! ranks, one finite check that all ranks share, SGD, log, checkpoint, evaluation.

pub mod buckets;
pub mod checkpoint;
pub mod flat;
pub mod init;
pub mod lock;
pub mod metrics;
pub mod progress;
pub mod resume;
pub mod saver;
pub mod schedule;
pub mod sgd;
pub mod start;
pub mod unmatched;
pub mod work_dir;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dw_launch::drill::{self, Drill};
use dw_launch::{Op, World, signals};
use dw_metric::Params;
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
use buckets::{Buckets, Cost, buffer_of};
use checkpoint::Snapshot;
use flat::Flat;
use metrics::Metrics;
use progress::Progress;
use saver::{Output, Saver};
use unmatched::Unmatched;

/// A run: everything the loop needs.
pub struct Run<'a> {
    /// Resolved settings.
    pub plan: &'a Plan,
    /// The other ranks.
    pub world: Arc<World>,
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
    /// Number of this start of the run, from 1.
    pub attempt: usize,
}

/// What one step measured.
struct Step {
    loss: Loss,
    grad_norm: f64,
    lr: f64,
    backward_s: f64,
    cost: Cost,
}

impl Run<'_> {
    /// Trains to the end of the plan.
    ///
    /// # Errors
    /// Bad data, a lost peer, a loss that is not finite, preemption (after a checkpoint).
    pub fn train(&mut self) -> Result<()> {
        let stop = signals::listen().map_err(Error::io("cannot listen to", std::path::Path::new("signals")))?;
        let drill = Drill::from_env().map_err(|e| Error::Usage(e.to_string()))?;
        let plan = self.plan;
        let recipe = Recipe {
            data: plan.config.data.clone(),
            assign: plan.config.assign.clone(),
            seed: plan.config.train.seed,
            global_batch: plan.global_batch,
            rank: plan.rank,
            world: plan.world,
            device: plan.device,
        };
        let mut buckets = Buckets::new(&self.detector.params, &self.flat, &plan.config.train, &self.world)?;
        let lead = plan.rank == 0;
        let mut metrics = if lead { Some(Metrics::open(&self.work_dir.join("metrics.jsonl"), self.start, self.attempt)?) } else { None };
        let mut best = if lead { self.best_so_far()? } else { None };
        let mut saver = Saver::new(self.work_dir.join("checkpoints"), &plan.config.checkpoint);
        if let Some(ap) = self.make_up(&mut metrics, &mut saver, &stop)?
            && best.is_none_or(|b| ap > b.0)
        {
            best = Some((ap, self.start));
        }
        if self.start >= plan.total_steps {
            tracing::info!("nothing more to do: {} of {} steps are done", self.start, plan.total_steps);
            return Ok(());
        }
        let steps = self.start..plan.total_steps;
        let mut loader = Loader::start(&self.train, &recipe, steps, plan.workers, plan.prefetch.batches)?;
        let mut unmatched = Unmatched::default();
        let mut progress = Progress::new(self.start, plan.total_steps);
        for step in self.start..plan.total_steps {
            self.world.at_step(step + 1);
            let fault = drill.and_then(|d| d.at(plan.rank, step + 1));
            let began = Instant::now();
            let Some(batch) = loader.next_batch() else { break };
            let data_s = loader.waited_s;
            let done = match self.step(step, &batch?, &mut buckets, stop.load(Ordering::Relaxed), fault) {
                Err(e @ Error::NotFinite(_)) => {
                    // The last good checkpoint may be half-way to the disk; its own error, if any, matters less than this one.
                    let _ = saver.finish();
                    return Err(e);
                }
                done => done?,
            };
            let step_s = began.elapsed().as_secs_f64();
            if step == self.start {
                // From the first whole step on, all ranks are known to be there and warm.
                self.patience(plan.config.train.step_deadline_s);
            }
            let epoch = step / plan.steps_per_epoch;
            if let Some(m) = &mut metrics {
                saver.tolerate(Output::Row, m.row(step_row(step, epoch, &done, data_s, step_s, plan.global_batch)))?;
                if let Some(warning) = unmatched.see(done.loss.without_positive()) {
                    tracing::warn!("{warning}");
                }
                progress.log(step, epoch, &done.loss, done.lr, plan.global_batch);
            }
            saver.look()?;
            let last = step + 1 == plan.total_steps;
            let epoch_end = (step + 1).is_multiple_of(plan.steps_per_epoch);
            let every = plan.config.checkpoint.every_steps;
            let evaluate = self.evaluates_after(step);
            let preempted = done.loss.stop_votes > 0;
            let minutes = plan.config.checkpoint.every_minutes;
            let periodic = (every > 0 && (step + 1).is_multiple_of(every))
                || (every == 0 && epoch_end)
                || (minutes > 0.0 && saver.age().as_secs_f64() >= 60.0 * minutes);
            if lead && (last || preempted || evaluate || periodic) {
                if let Some(m) = &metrics {
                    saver.tolerate(Output::Row, m.sync())?;
                }
                saver.save(|| self.snapshot(step + 1), best.map(|b| b.1), !(last || preempted || evaluate))?;
            }
            if preempted && (!last || evaluate) {
                // An evaluation that is due here is made up by the next start.
                self.settle(&mut saver)?;
                return Err(Error::Preempted(format!("stopped by a signal; checkpoint of step {} written, run again to go on", step + 1)));
            }
            if evaluate
                && let Some(ap) = self.evaluate(step, metrics.as_mut(), &mut saver, &stop)?
                && best.is_none_or(|b| ap > b.0)
            {
                best = Some((ap, step + 1));
            }
        }
        if unmatched.total() > 0 {
            tracing::warn!("{} of {} steps had no positive weight", unmatched.total(), plan.total_steps - self.start);
        }
        self.settle(&mut saver)
    }

    /// Is there to be an evaluation behind this step?
    fn evaluates_after(&self, step: usize) -> bool {
        let (plan, every) = (self.plan, self.plan.config.eval.every_epochs);
        let epochs = (step + 1) / plan.steps_per_epoch;
        let epoch_end = (step + 1).is_multiple_of(plan.steps_per_epoch);
        every > 0 && self.val.is_some() && (step + 1 == plan.total_steps || (epoch_end && epochs.is_multiple_of(every)))
    }

    /// The evaluation of the checkpoint that the run goes on from, if it was due and the run ended before it.
    fn make_up(&self, metrics: &mut Option<Metrics>, saver: &mut Saver, stop: &AtomicBool) -> Result<Option<f64>> {
        if self.start == 0 || !self.evaluates_after(self.start - 1) {
            return Ok(None);
        }
        let mut missing = vec![];
        if self.plan.rank == 0 {
            let is_it = |r: &Map<String, Value>| r.contains_key("AP") && r["step"].as_u64() == Some(self.start as u64);
            missing.push(u8::from(!metrics::read(&self.work_dir.join("metrics.jsonl"))?.iter().any(is_it)));
        }
        if self.world.broadcast_bytes(missing, "evaluation to make up")? != [1] {
            return Ok(None);
        }
        tracing::info!("evaluating the checkpoint of step {}, which the run before did not get to", self.start);
        let ap = self.evaluate(self.start - 1, metrics.as_mut(), saver, stop)?;
        // The first step is still to come, and it is slow.
        self.patience(self.plan.config.train.start_deadline_s);
        Ok(ap)
    }

    /// No rank leaves before the last checkpoint is on disk: a launcher may end the job when the first one does.
    fn settle(&self, saver: &mut Saver) -> Result<()> {
        self.patience(self.plan.config.train.start_deadline_s);
        saver.finish()?;
        Ok(self.world.barrier("last checkpoint")?)
    }

    /// How long ranks wait for each other from now on.
    fn patience(&self, seconds: f64) {
        self.world.set_deadline(Duration::from_secs_f64(seconds));
    }

    /// One step on this rank's part of the global batch.
    fn step(&mut self, step: usize, batch: &Batch, buckets: &mut Buckets, stop: bool, fault: Option<drill::Kind>) -> Result<Step> {
        let plan = self.plan;
        let images = to_device(&batch.images, plan.device, self.detector.params.kind);
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
        let mut loss = loss::reduce(&terms, stop, &self.world)?;
        if !loss.total().is_finite() {
            return Err(self.not_finite(step, batch, &loss, None));
        }
        match fault {
            Some(drill::Kind::Nan) => loss.local *= f64::NAN,
            // More than any machine has: libtorch's own error is what a user would meet.
            Some(drill::Kind::Oom) => drop(Tensor::f_zeros([1 << 50], (Kind::Float, plan.device))?),
            _ => {}
        }
        let began = Instant::now();
        let cost = buckets.backward(&loss.local)?;
        let backward_s = began.elapsed().as_secs_f64();
        if plan.world > 1 {
            self.average_statistics()?;
        }
        let grad_norm = self.flat.grad_norm()?;
        self.world.seen();
        if !grad_norm.is_finite() {
            return Err(self.not_finite(step, batch, &loss, Some(grad_norm)));
        }
        let t = &plan.config.train;
        let scale = if t.clip_norm > 0.0 && grad_norm > t.clip_norm { t.clip_norm / grad_norm } else { 1.0 };
        let lr = plan.schedule.lr(step);
        sgd::step(&mut self.flat, lr, t.momentum, t.weight_decay, scale)?;
        Ok(Step { loss, grad_norm, lr, backward_s, cost })
    }

    /// Batch norm's running statistics become the ranks' mean, so that every rank saves and evaluates the same network.
    fn average_statistics(&self) -> Result<()> {
        if self.plan.config.model.norm != crate::model::NormKind::Bn {
            return Ok(());
        }
        let stats: Vec<&Tensor> = self.detector.params.entries.iter().filter(|e| e.name.contains(".running_")).map(|e| &e.tensor).collect();
        let flat = Tensor::cat(&stats, 0) / self.plan.world as f64;
        // SAFETY: `flat` is contiguous and lives through the call.
        unsafe { self.world.all_reduce_raw(buffer_of(&flat), Op::Sum, "batch norm statistics") }?;
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
        let images: Vec<i64> = match self.world.gather_bytes(&ids, "images") {
            Ok(all) => all.concat().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default())).collect(),
            Err(e) => return e.into(),
        };
        let terms: Vec<String> = loss.terms.iter().map(|(n, v)| format!("{n} {v}")).collect();
        let what = grad_norm.map_or_else(|| "the loss".to_owned(), |n| format!("the gradient's norm ({n})"));
        Error::NotFinite(format!(
            "step {}: {what} is not a finite number: {}; images {images:?}\nhint: lower train.lr, lengthen train.warmup_steps or set train.clip_norm; {}",
            step + 1,
            terms.join(", "),
            if step > self.start || self.start > 0 {
                "the last checkpoint is whole"
            } else {
                "it is the first step: look at the starting weights"
            },
        ))
    }

    /// Best AP of a run that goes on, with the step of its checkpoint.
    fn best_so_far(&self) -> Result<Option<(f64, usize)>> {
        if self.start == 0 {
            return Ok(None);
        }
        let rows = metrics::read(&self.work_dir.join("metrics.jsonl"))?;
        let found = rows.iter().filter_map(|r| Some((r.get("AP")?.as_f64()?, r.get("step")?.as_u64()? as usize)));
        // As in training: a later checkpoint must be better. One that is gone is no candidate.
        let there = |f: &(f64, usize)| f.1 <= self.start && checkpoint::exists(&self.work_dir.join("checkpoints"), f.1);
        Ok(found.filter(there).reduce(|best, f| if f.0 > best.0 { f } else { best }))
    }

    fn snapshot(&self, step: usize) -> Result<Snapshot> {
        let state = checkpoint::State {
            step,
            seed: self.plan.config.train.seed,
            global_batch: self.plan.global_batch,
            data: self.train.split.fingerprint(),
            categories: self.train.categories().to_vec(),
        };
        Snapshot::take(state, &self.plan.config, &self.detector.params, &self.flat)
    }

    /// AP on rank 0, after step `step` (from 0).
    fn evaluate(&self, step: usize, metrics: Option<&mut Metrics>, saver: &mut Saver, stop: &AtomicBool) -> Result<Option<f64>> {
        let Some(val) = &self.val else { return Ok(None) };
        let (began, epoch) = (Instant::now(), step / self.plan.steps_per_epoch);
        let t = &self.plan.config.train;
        // Ranks come to the gathering at different times, and matching is rank 0's alone (a deadline for steps would end a sound job).
        self.patience(t.start_deadline_s);
        let job = eval::Job { data: val, config: &self.plan.config, device: self.plan.device, world: &self.world, stop };
        let report = match eval::evaluate(&self.detector, &job, &Params::default()) {
            Err(e @ Error::Preempted(_)) => {
                self.settle(saver)?;
                return Err(e);
            }
            report => report?,
        };
        self.world.barrier("evaluation's end")?;
        self.patience(t.step_deadline_s);
        let (Some(report), Some(metrics)) = (report, metrics) else { return Ok(None) };
        let s = report.evaluation.summary();
        let mut row = Map::new();
        row.insert("step".into(), json!(step + 1));
        row.insert("epoch".into(), json!(epoch + 1));
        for (name, value) in s.named() {
            row.insert(name.into(), json!(value));
        }
        row.insert("eval_s".into(), json!(began.elapsed().as_secs_f64()));
        saver.tolerate(Output::Row, metrics.row(row))?;
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

/// Images to the device in the network's kind, channels-last: the layout of the weights.
pub fn to_device(images: &Tensor, device: Device, kind: Kind) -> Tensor {
    // Page-locked images (the loader's, for a GPU) are copied while the host goes on.
    let there = images.to_device_(device, images.kind(), true, false).to_kind(kind);
    there.permute([0, 2, 3, 1]).contiguous().permute([0, 3, 1, 2])
}

fn step_row(step: usize, epoch: usize, s: &Step, data_s: f64, step_s: f64, images: usize) -> Map<String, Value> {
    let mut row = Map::new();
    row.insert("step".into(), json!(step + 1));
    row.insert("epoch".into(), json!(epoch + 1));
    row.insert("loss".into(), json!(s.loss.total()));
    for (name, value) in &s.loss.terms {
        row.insert((*name).into(), json!(value));
    }
    row.insert("no_positive".into(), json!(u8::from(s.loss.without_positive())));
    row.insert("grad_norm".into(), json!(s.grad_norm));
    row.insert("lr".into(), json!(s.lr));
    row.insert("data_s".into(), json!(data_s));
    row.insert("step_s".into(), json!(step_s));
    row.insert("images_per_s".into(), json!(images as f64 / step_s));
    row.insert("backward_s".into(), json!(s.backward_s));
    row.insert("comm_exposed_s".into(), json!(s.cost.exposed_s));
    if let Some(hidden) = s.cost.hidden {
        row.insert("comm_hidden".into(), json!(hidden));
    }
    row
}
