//! The training loop: fetch, step, check, record, checkpoint, evaluate, stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dw_launch::fault::Fault;
use dw_launch::{World, signals};

use super::checkpoint;
use super::config::OnError;
use super::due::{Due, Intervals};
use super::input::{Input, Pixels};
use super::log::{Log, StepRecord, jsonl};
use super::plan::Plan;
use super::queue::{Queue, Running, StepResult};
use super::saver::Saver;
use super::snapshot::{self, Snapshot};
use super::step::Step;
use super::validation::{self, Validation};
use crate::assign::Progress;
use crate::data::images::Normalisation;
use crate::data::loader::{Batch, BatchSettings};
use crate::data::{Dataset, Loader};
use crate::{Error, Result};

/// How long a step waits for its batches before the host waits for earlier steps on the device.
const DATA_WAIT: Duration = Duration::from_millis(500);

/// A training run.
pub struct Run<'a> {
    /// Resolved settings.
    pub plan: &'a Plan,
    /// The communicator of all ranks.
    pub world: Arc<World>,
    /// Training images.
    pub train: Arc<Dataset>,
    /// The validation split; `None` if the run is not evaluated.
    pub validation: Option<Validation>,
    /// The network and its optimiser.
    pub step: Step,
    /// Number of steps that were completed before this attempt.
    pub start: usize,
    /// Folder of checkpoints and metrics.
    pub work_dir: PathBuf,
    /// Number of this attempt of the run, from 1; used on rank 0.
    pub attempt: usize,
}

/// The outputs of a run.
struct Outputs {
    /// On rank 0 only.
    log: Option<Log>,
    /// Used on rank 0 only.
    saver: Saver,
    /// AP and step of the evaluations so far, the best first.
    best: Vec<(f64, usize)>,
}

impl Run<'_> {
    /// Trains until all steps of the plan are done.
    ///
    /// # Errors
    /// Bad data, a lost peer, a loss or gradient that is not finite, an output that cannot be
    /// written, or a stop signal (after a checkpoint was written).
    pub fn train(&mut self) -> Result<()> {
        let stop = signals::catch_interrupt()
            .and_then(|()| signals::listen())
            .map_err(Error::io("cannot handle", std::path::Path::new("signals")))?;
        let faults = Fault::from_env()?;
        let mut outputs = self.open_outputs()?;
        self.run_missed_evaluation(&mut outputs, &stop)?;
        let total = self.plan.total_steps;
        if self.start >= total {
            tracing::info!("nothing to train: {} of {total} steps are done", self.start);
            return Ok(());
        }
        let mut loader = self.start_loader()?;
        let device = self.plan.inputs.device;
        let (mut queue, normalisation) = (Queue::new(device), Normalisation::new(device));
        let intervals = self.intervals();
        for step in self.start..total {
            self.world.set_step(step + 1);
            let fault = faults.and_then(|f| f.trigger(self.plan.rank, step + 1));
            let began = Instant::now();
            if !loader.has_within(DATA_WAIT, self.plan.parts) {
                // A longer wait must not count towards the deadline of sums that the device has
                // completed.
                self.complete(&mut queue, true, &mut outputs)?;
            }
            let batches = self.next_batches(&mut loader)?;
            let data_s = began.elapsed().as_secs_f64();
            let (lr, at) = (self.plan.schedule.lr(step), self.progress(step));
            let input = |b| input(b, &normalisation, at);
            let parts: Vec<Input> = batches.iter().map(input).collect();
            let enqueued =
                self.step.run(&parts, lr, stop.load(Ordering::Relaxed), fault, |_| ())?;
            let image_ids = batches.into_iter().flat_map(|b| b.image_ids).collect();
            queue.running.push_back(Running { step, enqueued, image_ids, lr, data_s, began });
            self.complete(&mut queue, false, &mut outputs)?;
            // Before anything reads the network, all of its steps must have been found finite.
            let due = intervals.after(step + 1, outputs.saver.age());
            let all_empty = queue.stops_after(step, false) || due.on_all_ranks();
            if all_empty || due.by_time {
                self.complete(&mut queue, true, &mut outputs)?;
            }
            let stop_requested = queue.stops_after(step, all_empty);
            self.save_if_due(step + 1, due, stop_requested, &mut outputs)?;
            self.stop_if_requested(step + 1, due, stop_requested, &mut outputs)?;
            if due.evaluation {
                self.evaluate(step + 1, &mut outputs, &stop)?;
            }
        }
        self.complete(&mut queue, true, &mut outputs)?;
        if let Some(log) = &outputs.log {
            log.close(total - self.start);
        }
        self.finish_checkpoint(&mut outputs.saver)
    }

    /// Opens the log and the writer of checkpoints.
    fn open_outputs(&self) -> Result<Outputs> {
        let saver = Saver::new(self.checkpoints(), &self.plan.config.checkpoint);
        if self.plan.rank > 0 {
            return Ok(Outputs { log: None, saver, best: vec![] });
        }
        let log = Some(Log::open(&self.work_dir, self.start, self.plan, self.attempt)?);
        Ok(Outputs { log, saver, best: self.best_so_far()? })
    }

    /// The folder of all checkpoints.
    fn checkpoints(&self) -> PathBuf {
        self.work_dir.join("checkpoints")
    }

    /// AP and step of the existing checkpoints of a resumed run, the best first.
    fn best_so_far(&self) -> Result<Vec<(f64, usize)>> {
        if self.start == 0 {
            return Ok(vec![]);
        }
        let rows = jsonl::read(&self.work_dir.join(jsonl::NAME))?;
        let evaluations = rows
            .iter()
            .filter_map(|r| Some((r.get("AP")?.as_f64()?, r.get("step")?.as_u64()? as usize)));
        let candidate = |(_, step): &(f64, usize)| {
            *step <= self.start && checkpoint::exists(&self.checkpoints(), *step)
        };
        let mut all: Vec<_> = evaluations.filter(candidate).collect();
        // The sort is stable: among equal APs the earlier one is the best, as during training.
        all.sort_by(|a, b| b.0.total_cmp(&a.0));
        Ok(all)
    }

    /// Evaluates the checkpoint that the run resumes from, if the previous attempt ended after
    /// writing it and before the evaluation that was due.
    fn run_missed_evaluation(&mut self, outputs: &mut Outputs, stop: &AtomicBool) -> Result<()> {
        if !self.intervals().after(self.start, Duration::ZERO).evaluation {
            return Ok(());
        }
        let missing = match self.plan.rank {
            0 => vec![u8::from(!validation::is_recorded(&self.work_dir, self.start)?)],
            _ => vec![],
        };
        if self.world.broadcast_bytes(missing, "missed evaluation")? != [1] {
            return Ok(());
        }
        tracing::info!(
            "evaluating the checkpoint of step {}, which the previous attempt did not do",
            self.start
        );
        self.evaluate(self.start, outputs, stop)?;
        // The first step includes warm-up and needs the longer deadline.
        self.set_deadline(self.plan.config.train.start_deadline_s);
        Ok(())
    }

    /// Starts the threads that prepare the batches of the remaining steps.
    fn start_loader(&self) -> Result<Loader> {
        let plan = self.plan;
        let settings = BatchSettings {
            data: plan.config.data.clone(),
            matcher: self.step.matcher(),
            seed: plan.config.train.seed,
            global_batch: plan.inputs.global_batch,
            rank: plan.rank,
            world_size: plan.world_size,
            parts: plan.parts,
            device: plan.inputs.device,
        };
        let batches = self.start * settings.parts..plan.total_steps * settings.parts;
        Loader::start(&self.train, &settings, batches, plan.workers, plan.prefetch.batches)
    }

    /// The batches of the next step.
    fn next_batches(&self, loader: &mut Loader) -> Result<Vec<Batch>> {
        let ended = || Err(Error::Bug("the data loader ended before the run".into()));
        (0..self.plan.parts).map(|_| loader.next_batch().unwrap_or_else(ended)).collect()
    }

    /// Progress before a step.
    fn progress(&self, step: usize) -> Progress {
        Progress {
            step,
            epoch: step / self.plan.steps_per_epoch,
            total_steps: self.plan.total_steps,
            seed: self.plan.config.train.seed,
        }
    }

    /// Waits for enqueued steps, until none is left (`all`) or no more than the queue's depth;
    /// checks and records them. Fails if a loss or gradient is not finite: on all ranks alike,
    /// because both are sums over all ranks.
    fn complete(&mut self, queue: &mut Queue, all: bool, outputs: &mut Outputs) -> Result<()> {
        while let Some(running) = queue.next(all) {
            let Running { step, enqueued, image_ids, lr, data_s, began } = running;
            let result = enqueued.wait(&self.world)?;
            if !result.is_finite {
                let images = self.images_of_all_ranks(&image_ids)?;
                // Completes a pending checkpoint, from which the run can be resumed. An error of
                // that write is ignored: the loss or gradient that is not finite is the cause.
                let _ = self.finish_checkpoint(&mut outputs.saver);
                return Err(self.not_finite(step, &images, &result));
            }
            let since = began.max(queue.completed);
            queue.completed = Instant::now();
            let step_s = (queue.completed - since).as_secs_f64();
            if step == self.start {
                // Only the first step includes warm-up and the start-up of other ranks.
                self.set_deadline(self.plan.config.train.step_deadline_s);
            }
            if result.loss.stop_votes > 0 {
                queue.stop.get_or_insert(step);
            }
            self.record(step, &result, [lr, data_s, step_s], outputs)?;
        }
        Ok(())
    }

    fn intervals(&self) -> Intervals {
        Intervals::new(self.plan, self.validation.is_some())
    }

    /// The ids of the images that all ranks used in a step, on rank 0.
    fn images_of_all_ranks(&self, ids: &[i64]) -> Result<Vec<i64>> {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let all = self.world.gather_bytes(&ids, "images")?.concat();
        let number = |b: &[u8]| i64::from_le_bytes(b.try_into().unwrap_or_default());
        Ok(all.chunks_exact(8).map(number).collect())
    }

    /// The error of a step whose loss or gradient is not finite.
    fn not_finite(&self, step: usize, images: &[i64], result: &StepResult) -> Error {
        let terms = result.loss.terms.iter();
        let terms: Vec<String> = terms.map(|(name, value)| format!("{name} {value}")).collect();
        let what = result.not_finite();
        Error::NotFinite(format!(
            "step {}: {what} is not a finite number: {}; images {images:?}\nhint: lower train.lr, \
             lengthen train.warmup_steps or set train.clip_norm; {}",
            step + 1,
            terms.join(", "),
            match checkpoint::newest_step(&self.checkpoints()) {
                Ok(Some(newest)) => format!("the newest checkpoint is that of step {newest}"),
                Ok(None) if step > 0 => "no checkpoint has been written yet".to_owned(),
                Ok(None) => "this is the first step: check the initial weights".to_owned(),
                Err(e) => e.to_string(),
            },
        ))
    }

    /// Writes the record of a step, and handles a checkpoint that has been written meanwhile.
    fn record(
        &self,
        step: usize,
        result: &StepResult,
        [lr, data_s, step_s]: [f64; 3],
        outputs: &mut Outputs,
    ) -> Result<()> {
        if let Some(log) = &mut outputs.log {
            let record = StepRecord {
                step: step + 1,
                epoch: step / self.plan.steps_per_epoch + 1,
                loss: &result.loss,
                grad_norm: result.grad_norm,
                lr,
                data_s,
                step_s,
                backward_s: result.backward_s,
                images: self.plan.inputs.global_batch,
                cost: result.cost,
            };
            log.step(&record, &mut outputs.saver)?;
        }
        outputs.saver.poll()
    }

    /// Starts to write a checkpoint on rank 0, if one is due after `steps_done` steps.
    fn save_if_due(
        &self,
        steps_done: usize,
        due: Due,
        stop_requested: bool,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let required = due.end || stop_requested || due.evaluation;
        if self.plan.rank > 0 || !(required || due.by_steps || due.by_time) {
            return Ok(());
        }
        // While rank 0 waits for a pending write, the other ranks wait in the next step, at most
        // until its deadline.
        let may_wait = self.plan.config.checkpoint.on_error == OnError::Stop && due.by_steps;
        if let Some(log) = &outputs.log {
            log.sync(&mut outputs.saver)?;
        }
        let best: Vec<usize> = outputs.best.iter().map(|b| b.1).collect();
        outputs.saver.save(|| self.snapshot(steps_done), best, !required && !may_wait)
    }

    /// Ends the run if any rank has received a stop signal, unless all its work is done.
    fn stop_if_requested(
        &self,
        steps_done: usize,
        due: Due,
        stop_requested: bool,
        outputs: &mut Outputs,
    ) -> Result<()> {
        let finished = due.end && !due.evaluation;
        if !stop_requested || finished {
            return Ok(());
        }
        self.finish_checkpoint(&mut outputs.saver)?;
        Err(Error::Preempted(format!(
            "stopped by a signal; checkpoint of step {steps_done} written"
        )))
    }

    /// Copies the state after `steps_done` steps.
    fn snapshot(&self, steps_done: usize) -> Result<Snapshot> {
        let state = snapshot::State {
            step: steps_done,
            seed: self.plan.config.train.seed,
            global_batch: self.plan.inputs.global_batch,
            data: self.train.split.fingerprint(),
            validation: self.validation.as_ref().map(|v| v.data.split.fingerprint()),
            categories: self.train.categories().to_vec(),
        };
        let (config, step) = (&self.plan.inputs.toml, &self.step);
        Snapshot::take(state, config, &step.detector.params, &step.flat)
    }

    /// Evaluates the network after `steps_done` steps, records the metrics and updates the best AP.
    fn evaluate(
        &mut self,
        steps_done: usize,
        outputs: &mut Outputs,
        stop: &AtomicBool,
    ) -> Result<()> {
        // Ranks finish inference at different times, and only rank 0 computes the metrics, which
        // can take longer than the deadline of a step.
        self.set_deadline(self.plan.config.train.start_deadline_s);
        let Some(validation) = &mut self.validation else { return Ok(()) };
        let (step, world) = (&self.step, &self.world);
        let record = match validation.evaluate(step, self.plan, world, stop, steps_done) {
            Err(e @ Error::Preempted(_)) => {
                self.finish_checkpoint(&mut outputs.saver)?;
                return Err(e);
            }
            result => result?,
        };
        self.set_deadline(self.plan.config.train.step_deadline_s);
        let (Some(record), Some(log)) = (record, &mut outputs.log) else { return Ok(()) };
        log.evaluation(&record, &mut outputs.saver)?;
        let ap = record.number("AP");
        // Among equal APs the first one is the best.
        let at = outputs.best.partition_point(|best| best.0 >= ap);
        outputs.best.insert(at, (ap, steps_done));
        Ok(())
    }

    /// Waits on all ranks until the pending checkpoint is written: a launcher may end the job when
    /// the first rank exits.
    fn finish_checkpoint(&self, saver: &mut Saver) -> Result<()> {
        self.set_deadline(self.plan.config.train.start_deadline_s);
        saver.finish()?;
        self.world.barrier("last checkpoint")
    }

    /// Sets how long collectives wait for other ranks.
    fn set_deadline(&self, seconds: f64) {
        self.world.set_deadline(Duration::from_secs_f64(seconds));
    }
}

/// A batch of the loader as the input of a step.
fn input<'a>(batch: &'a Batch, normalisation: &'a Normalisation, at: Progress) -> Input<'a> {
    Input { images: Pixels::Bytes(&batch.images, normalisation), targets: &batch.targets, at }
}
