//! The training loop: fetch, step, log, checkpoint, evaluate, stop.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dw_launch::drill::Drill;
use dw_launch::{World, signals};

use super::checkpoint::{self, Snapshot};
use super::log::{Log, StepRecord, jsonl};
use super::saver::Saver;
use super::step::{Done, Input, Step};
use super::validation::{self, Validation};
use crate::assign::Progress;
use crate::data::loader::{Batch, Recipe};
use crate::data::{Dataset, Loader};
use crate::{Error, Result};
use crate::train::plan::Plan;

/// A run: everything the loop needs.
pub struct Run<'a> {
    /// Resolved settings.
    pub plan: &'a Plan,
    /// The other ranks.
    pub world: Arc<World>,
    /// Training images.
    pub train: Arc<Dataset>,
    /// The validation split; without one nothing is evaluated.
    pub validation: Option<Validation>,
    /// The network and how it learns.
    pub step: Step,
    /// Steps done before.
    pub start: usize,
    /// Where results go.
    pub work_dir: PathBuf,
    /// Number of this start of the run, from 1.
    pub attempt: usize,
}

/// What rank 0 records and the best evaluation so far.
struct Records {
    /// On rank 0.
    log: Option<Log>,
    saver: Saver,
    /// AP, and the step of its checkpoint.
    best: Option<(f64, usize)>,
}

impl Run<'_> {
    /// Trains to the end of the plan.
    ///
    /// # Errors
    /// Bad data, a lost peer, a loss that is not finite, preemption (after a checkpoint).
    pub fn train(&mut self) -> Result<()> {
        let stop = signals::listen()
            .map_err(Error::io("cannot listen to", std::path::Path::new("signals")))?;
        let drill = Drill::from_env().map_err(|e| Error::Usage(e.to_string()))?;
        let (plan, total) = (self.plan, self.plan.total_steps);
        let mut records = self.open_records()?;
        self.make_up_evaluation(&mut records, &stop)?;
        if self.start >= total {
            tracing::info!("nothing more to do: {} of {total} steps are done", self.start);
            return Ok(());
        }
        let steps = self.start..total;
        let mut loader = Loader::start(
            &self.train,
            &self.recipe(),
            steps.clone(),
            plan.workers,
            plan.prefetch.batches,
        )?;
        for step in steps {
            self.world.at_step(step + 1);
            let fault = drill.and_then(|d| d.at(plan.rank, step + 1));
            let began = Instant::now();
            let Some(batch) = loader.next_batch() else { break };
            let batch = batch?;
            let (lr, asked) = (plan.schedule.lr(step), stop.load(Ordering::Relaxed));
            let input =
                Input { images: &batch.images, targets: &batch.targets, at: self.progress(step) };
            let done = self.step.run(input, lr, asked, fault, |_| ())?;
            if !done.is_finite() {
                let error = self.not_finite(step, &batch, &done);
                // The last good checkpoint may be half-way to the disk; its own error, if any, matters less than this one.
                let _ = records.saver.finish();
                return Err(error);
            }
            let (data_s, step_s) = (loader.waited_s, began.elapsed().as_secs_f64());
            if step == self.start {
                // From the first whole step on, all ranks are known to be there and warm.
                self.set_deadline(plan.config.train.step_deadline_s);
            }
            self.record(step, &done, (lr, data_s, step_s), &mut records)?;
            self.after_step(step + 1, done.loss.stop_votes > 0, &mut records, &stop)?;
        }
        if let Some(log) = &records.log {
            log.close(total - self.start);
        }
        self.settle(&mut records.saver)
    }

    /// Everything that decides a batch.
    fn recipe(&self) -> Recipe {
        let plan = self.plan;
        Recipe {
            data: plan.config.data.clone(),
            matcher: self.step.matcher(),
            seed: plan.config.train.seed,
            global_batch: plan.global_batch,
            rank: plan.rank,
            world: plan.world,
            device: plan.device,
        }
    }

    fn progress(&self, step: usize) -> Progress {
        let plan = self.plan;
        let epoch = step / plan.steps_per_epoch;
        Progress { step, epoch, total_steps: plan.total_steps, seed: plan.config.train.seed }
    }

    fn open_records(&self) -> Result<Records> {
        let saver = Saver::new(self.work_dir.join("checkpoints"), &self.plan.config.checkpoint);
        if self.plan.rank > 0 {
            return Ok(Records { log: None, saver, best: None });
        }
        let log = Some(Log::open(&self.work_dir, self.start, self.plan.total_steps, self.attempt)?);
        Ok(Records { log, saver, best: self.best_so_far()? })
    }

    /// Best AP of a run that goes on, with the step of its checkpoint.
    fn best_so_far(&self) -> Result<Option<(f64, usize)>> {
        if self.start == 0 {
            return Ok(None);
        }
        let rows = jsonl::read(&self.work_dir.join(jsonl::NAME))?;
        let found = rows
            .iter()
            .filter_map(|r| Some((r.get("AP")?.as_f64()?, r.get("step")?.as_u64()? as usize)));
        // As in training: a later checkpoint must be better. One that is gone is no candidate.
        let there = |f: &(f64, usize)| {
            f.1 <= self.start && checkpoint::exists(&self.work_dir.join("checkpoints"), f.1)
        };
        Ok(found.filter(there).reduce(|best, f| if f.0 > best.0 { f } else { best }))
    }

    /// Evaluates the checkpoint that the run goes on from, if that was due and the run ended before it.
    fn make_up_evaluation(&mut self, records: &mut Records, stop: &AtomicBool) -> Result<()> {
        if self.start == 0 || !self.evaluates_after(self.start) {
            return Ok(());
        }
        let missing = match self.plan.rank {
            0 => vec![u8::from(!validation::is_recorded(&self.work_dir, self.start)?)],
            _ => vec![],
        };
        if self.world.broadcast_bytes(missing, "evaluation to make up")? != [1] {
            return Ok(());
        }
        tracing::info!(
            "evaluating the checkpoint of step {}, which the run before did not get to",
            self.start
        );
        self.evaluate(self.start, records, stop)?;
        // The first step is still to come, and it is slow.
        self.set_deadline(self.plan.config.train.start_deadline_s);
        Ok(())
    }

    fn evaluates_after(&self, done: usize) -> bool {
        self.validation.is_some() && Validation::is_due(self.plan, done)
    }

    fn record(
        &self,
        step: usize,
        done: &Done,
        (lr, data_s, step_s): (f64, f64, f64),
        records: &mut Records,
    ) -> Result<()> {
        if let Some(log) = &mut records.log {
            let record = StepRecord {
                step: step + 1,
                epoch: step / self.plan.steps_per_epoch + 1,
                loss: &done.loss,
                grad_norm: done.grad_norm.unwrap_or(f64::NAN),
                lr,
                data_s,
                step_s,
                backward_s: done.backward_s,
                images: self.plan.global_batch,
                cost: done.cost,
            };
            log.step(&record, &mut records.saver)?;
        }
        records.saver.look()
    }

    /// Checkpoint and evaluation, where they are due after `done` steps; the end, where the ranks agreed to stop.
    fn after_step(
        &mut self,
        done: usize,
        preempted: bool,
        records: &mut Records,
        stop: &AtomicBool,
    ) -> Result<()> {
        let plan = self.plan;
        let last = done == plan.total_steps;
        let evaluate = self.evaluates_after(done);
        let needed = last || preempted || evaluate;
        if plan.rank == 0 && (needed || self.checkpoint_is_due(done, &records.saver)) {
            if let Some(log) = &records.log {
                log.sync(&mut records.saver)?;
            }
            records.saver.save(|| self.snapshot(done), records.best.map(|b| b.1), !needed)?;
        }
        if preempted && (!last || evaluate) {
            // An evaluation that is due here is made up by the next start.
            self.settle(&mut records.saver)?;
            return Err(Error::Preempted(format!(
                "stopped by a signal; checkpoint of step {done} written, run again to go on"
            )));
        }
        if evaluate {
            self.evaluate(done, records, stop)?;
        }
        Ok(())
    }

    /// Whether a checkpoint is due by steps, epochs or time alone.
    fn checkpoint_is_due(&self, done: usize, saver: &Saver) -> bool {
        let c = &self.plan.config.checkpoint;
        let by_steps = if c.every_steps > 0 { c.every_steps } else { self.plan.steps_per_epoch };
        let by_time = c.every_minutes > 0.0 && saver.age().as_secs_f64() >= 60.0 * c.every_minutes;
        done.is_multiple_of(by_steps) || by_time
    }

    fn snapshot(&self, done: usize) -> Result<Snapshot> {
        let state = checkpoint::State {
            step: done,
            seed: self.plan.config.train.seed,
            global_batch: self.plan.global_batch,
            data: self.train.split.fingerprint(),
            categories: self.train.categories().to_vec(),
        };
        Snapshot::take(state, &self.plan.config, &self.step.detector.params, &self.step.flat)
    }

    /// Evaluates after `done` steps, records the numbers and notes whether they are the best.
    fn evaluate(&mut self, done: usize, records: &mut Records, stop: &AtomicBool) -> Result<()> {
        // Ranks come to the gathering at different times, and matching is rank 0's alone: a deadline for steps would end a
        // sound job.
        self.set_deadline(self.plan.config.train.start_deadline_s);
        let Some(validation) = &mut self.validation else { return Ok(()) };
        let found =
            match validation.evaluate(&self.step.detector, self.plan, &self.world, stop, done) {
                Err(e @ Error::Preempted(_)) => {
                    self.settle(&mut records.saver)?;
                    return Err(e);
                }
                found => found?,
            };
        self.set_deadline(self.plan.config.train.step_deadline_s);
        let (Some(record), Some(log)) = (found, &mut records.log) else { return Ok(()) };
        log.evaluation(&record, &mut records.saver)?;
        let ap = record.number("AP");
        if records.best.is_none_or(|best| ap > best.0) {
            records.best = Some((ap, done));
        }
        Ok(())
    }

    /// Waits for the last checkpoint on all ranks: a launcher may end the job when the first one leaves.
    fn settle(&self, saver: &mut Saver) -> Result<()> {
        self.set_deadline(self.plan.config.train.start_deadline_s);
        saver.finish()?;
        Ok(self.world.barrier("last checkpoint")?)
    }

    /// How long ranks wait for each other from now on.
    fn set_deadline(&self, seconds: f64) {
        self.world.set_deadline(Duration::from_secs_f64(seconds));
    }

    /// The error of a step whose loss or gradient is not finite. All ranks come here together: the numbers that
    /// failed are sums over all of them.
    fn not_finite(&self, step: usize, batch: &Batch, done: &Done) -> Error {
        let ids: Vec<u8> = batch.image_ids.iter().flat_map(|id| id.to_le_bytes()).collect();
        let images: Vec<i64> = match self.world.gather_bytes(&ids, "images") {
            Ok(all) => all
                .concat()
                .chunks_exact(8)
                .map(|b| i64::from_le_bytes(b.try_into().unwrap_or_default()))
                .collect(),
            Err(e) => return e.into(),
        };
        let terms: Vec<String> = done.loss.terms.iter().map(|(n, v)| format!("{n} {v}")).collect();
        let what = done
            .grad_norm
            .map_or_else(|| "the loss".to_owned(), |n| format!("the gradient's norm ({n})"));
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
}
