//! Steps that are enqueued on the device and whose numbers the host has not read.

use std::collections::VecDeque;
use std::time::Instant;

use dw_launch::World;
use dw_torch::Readback;
use tch::Device;

use super::buckets::Cost;
use crate::loss::{Loss, Reduced};
use crate::{Error, Result};

/// A step whose work is enqueued on the device, and whose numbers the host has not read.
#[derive(Debug)]
pub struct Enqueued {
    /// The loss.
    pub loss: Reduced,
    /// The sums of the loss, gradient norm, and 1 if the update was skipped.
    pub numbers: Readback,
    /// Number of the step's last collective.
    pub latest: u64,
    /// Seconds of backward on the host.
    pub backward_s: f64,
    /// The cost of communication.
    pub cost: Cost,
}

/// The result of a step.
#[derive(Debug)]
pub struct StepResult {
    /// The loss over the global batch.
    pub loss: Loss,
    /// L2 norm of the gradient before clipping.
    pub grad_norm: f64,
    /// Whether loss and gradient norm are finite; otherwise the network was not updated.
    pub is_finite: bool,
    /// Seconds of backward on the host, including its part of the all-reduce.
    pub backward_s: f64,
    /// The cost of communication.
    pub cost: Cost,
}

impl StepResult {
    /// What is not finite, as text for an error.
    pub fn not_finite(&self) -> String {
        if self.loss.total().is_finite() {
            format!("the gradient's norm ({})", self.grad_norm)
        } else {
            "the loss".to_owned()
        }
    }
}

impl Enqueued {
    /// Waits until the device has completed the step.
    ///
    /// # Errors
    /// A failed device.
    pub fn wait(self, world: &World) -> Result<StepResult> {
        let Self { loss, numbers, latest, backward_s, cost } = self;
        let numbers = numbers.wait()?;
        world.device_reached(latest);
        let [sums @ .., grad_norm, skipped] = &numbers[..] else {
            return Err(Error::Bug("a step without numbers".into()));
        };
        let (loss, is_finite) = (loss.loss(sums), *skipped == 0.0);
        Ok(StepResult { loss, grad_norm: *grad_norm, is_finite, backward_s, cost })
    }
}

/// A step that the device may not have completed yet.
pub struct Running {
    /// Index of the step, from 0.
    pub step: usize,
    /// Its pending numbers.
    pub enqueued: Enqueued,
    /// COCO ids of this rank's images.
    pub image_ids: Vec<i64>,
    /// Learning rate.
    pub lr: f64,
    /// Seconds that this rank waited for its batch.
    pub data_s: f64,
    /// Start of the step on the host.
    pub began: Instant,
}

/// The steps that are enqueued and not completed, oldest first.
pub struct Queue {
    /// The steps.
    pub running: VecDeque<Running>,
    /// Largest number of steps left in the queue while the next one is prepared: 1 on a GPU, which
    /// then never waits for the host. On a CPU a queue gains nothing, so it is 0.
    pub depth: usize,
    /// When the latest step was completed.
    pub completed: Instant,
    /// The first completed step in which a rank requested to stop.
    pub stop: Option<usize>,
}

impl Queue {
    /// An empty queue.
    pub fn new(device: Device) -> Self {
        let depth = usize::from(device.is_cuda());
        Self { running: VecDeque::new(), depth, completed: Instant::now(), stop: None }
    }

    /// Removes and returns the oldest step if it must be completed now: always with `all`, else
    /// only if the queue is longer than its depth.
    pub fn next(&mut self, all: bool) -> Option<Running> {
        let keep = if all { 0 } else { self.depth };
        if self.running.len() > keep { self.running.pop_front() } else { None }
    }

    /// Whether the run stops after `step`: a rank requested it in a step that all ranks have read.
    /// A rank that empties its queue reads steps that others may not have read; `all_empty` means
    /// that all have emptied theirs.
    pub fn stops_after(&self, step: usize, all_empty: bool) -> bool {
        let depth = if all_empty { 0 } else { self.depth };
        self.stop.is_some_and(|requested| requested + depth <= step)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ranks_stop_after_the_same_step_whichever_has_read_further() {
        let queue = |device, stop| Queue { stop, ..Queue::new(device) };
        let (cpu, gpu) = (queue(Device::Cpu, Some(7)), queue(Device::Cuda(0), Some(7)));
        assert!(cpu.stops_after(7, false));
        // On a GPU the vote of step 7 is read during step 8; rank 0 may have read it earlier for a
        // checkpoint of its own.
        assert!(!gpu.stops_after(7, false) && gpu.stops_after(8, false));
        assert!(gpu.stops_after(7, true));
        assert!(!queue(Device::Cpu, None).stops_after(100, true));
    }
}
