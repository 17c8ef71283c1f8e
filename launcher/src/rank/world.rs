//! The communicator that the trainer uses: collectives that are numbered, logged, and ended by a
//! watchdog when they exceed their deadline.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dw_base::Result;

use super::calls::{CallLog, Tag};
use super::collectives::{Buffer, Collectives, Memory, Number, Op, Solo};
use super::watchdog::{self, Watch};

/// Default deadline of a collective before the first step, in evaluations and at the end of a run.
pub const START_DEADLINE: Duration = Duration::from_mins(30);

/// All ranks of one job.
pub struct World {
    backend: Arc<dyn Collectives>,
    calls: Arc<CallLog>,
    watch: Arc<Watch>,
    /// Number of the first sum that was started and not finished; 0 if there is none.
    started: AtomicU64,
    /// Number of the first sum enqueued on a device whose completion the host has not observed.
    on_device: Mutex<Option<u64>>,
}

impl World {
    /// A communicator with a watchdog.
    ///
    /// # Errors
    /// The watchdog's thread cannot be started. The rank must then exit; its launcher ends the
    /// peers.
    pub fn new(backend: Arc<dyn Collectives>) -> Result<Self> {
        let world = Self::without_watchdog(backend);
        if let Err(e) = watchdog::start(&world.watch, &world.backend) {
            // Dropping MPI would wait for the peers, without a deadline.
            std::mem::forget(world);
            return Err(e);
        }
        Ok(world)
    }

    /// A job of one process without a watchdog, for tests and benchmarks.
    pub fn solo() -> Self {
        Self::without_watchdog(Arc::new(Solo))
    }

    fn without_watchdog(backend: Arc<dyn Collectives>) -> Self {
        let calls = Arc::new(CallLog::default());
        let watch = Arc::new(Watch::new(backend.rank(), &calls, START_DEADLINE));
        Self { backend, calls, watch, started: AtomicU64::new(0), on_device: Mutex::new(None) }
    }

    /// Rank of this process, `0..size`.
    pub fn rank(&self) -> usize {
        self.backend.rank()
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.backend.size()
    }

    /// Name of the backend for the settings table, such as "MPI (Open MPI 4.1.4)".
    pub fn name(&self) -> String {
        self.backend.name()
    }

    /// Sets the deadline of the following collectives. Start-up, evaluation and the end of a run
    /// need a longer one than steps.
    pub fn set_deadline(&self, deadline: Duration) {
        self.watch.set_deadline(deadline);
    }

    /// Sets the step that `dw-launch` reports if this rank is lost.
    pub fn set_step(&self, step: usize) {
        self.watch.set_step(step);
    }

    /// Logs `f` as a collective.
    fn logged<T>(
        &self,
        tag: impl Into<Tag>,
        bytes: usize,
        f: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let number = self.calls.begin(tag.into(), bytes);
        let out = f();
        self.calls.end(number);
        out
    }

    fn on_device(&self) -> MutexGuard<'_, Option<u64>> {
        self.on_device.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reduces a buffer over all ranks, in place.
    ///
    /// # Safety
    /// As [`Collectives::all_reduce`].
    ///
    /// # Errors
    /// A failed peer, or a buffer that the backend does not support.
    pub unsafe fn all_reduce_raw(&self, buffer: Buffer, op: Op, tag: impl Into<Tag>) -> Result<()> {
        // SAFETY: the caller upholds the contract.
        self.logged(tag, buffer.count * buffer.number.width(), || unsafe {
            self.backend.all_reduce(buffer, op)
        })
    }

    /// Reduces host numbers over all ranks, in place.
    pub fn all_reduce(&self, values: &mut [f64], op: Op, tag: impl Into<Tag>) -> Result<()> {
        let buffer = Buffer {
            ptr: values.as_mut_ptr().cast(),
            count: values.len(),
            number: Number::F64,
            memory: Memory::Host,
        };
        // SAFETY: the slice is borrowed mutably for the whole call.
        unsafe { self.all_reduce_raw(buffer, op, tag) }?;
        self.device_synchronized();
        Ok(())
    }

    /// Starts a non-blocking sum of a buffer over all ranks; [`World::finish`] waits for it.
    ///
    /// # Safety
    /// As [`Collectives::start_sum`].
    ///
    /// # Errors
    /// As [`World::all_reduce_raw`].
    pub unsafe fn start_sum(&self, buffer: Buffer, tag: impl Into<Tag>) -> Result<()> {
        let number = self.calls.begin(tag.into(), buffer.count * buffer.number.width());
        let _ = self.started.compare_exchange(0, number, Ordering::Relaxed, Ordering::Relaxed);
        if buffer.memory == Memory::Cuda {
            self.on_device().get_or_insert(number);
        }
        // SAFETY: the caller upholds the contract.
        unsafe { self.backend.start_sum(buffer) }
    }

    /// Polls pending non-blocking sums.
    ///
    /// # Errors
    /// A failed peer.
    pub fn progress(&self) -> Result<()> {
        self.backend.progress()
    }

    /// Waits for all pending sums; see [`Collectives::finish`].
    ///
    /// # Errors
    /// A failed peer.
    pub fn finish(&self) -> Result<()> {
        self.backend.finish()?;
        let first = self.started.swap(0, Ordering::Relaxed);
        if first > 0 && self.on_device().is_none() {
            self.calls.end_all(first..=u64::MAX);
        }
        Ok(())
    }

    /// Marks the sums on the device as completed. To be called when the host has read a result that
    /// was enqueued after them.
    pub fn device_synchronized(&self) {
        self.device_reached(u64::MAX);
    }

    /// Number of the latest collective, for [`World::device_reached`].
    pub fn latest(&self) -> u64 {
        self.calls.last().map_or(0, |call| call.number)
    }

    /// Marks the sums on the device up to collective `latest` as completed. To be called when the
    /// host has read a result that was enqueued after them and before later ones.
    pub fn device_reached(&self, latest: u64) {
        let mut on_device = self.on_device();
        if let Some(first) = on_device.take_if(|first| *first <= latest) {
            self.calls.end_all(first..=latest);
            *on_device = (latest < self.latest()).then(|| latest + 1);
        }
    }

    /// Gathers the bytes of every rank on rank 0, in rank order; empty on the other ranks.
    pub fn gather_bytes(&self, bytes: &[u8], tag: impl Into<Tag>) -> Result<Vec<Vec<u8>>> {
        self.logged(tag, bytes.len(), || self.backend.gather_bytes(bytes))
    }

    /// Broadcasts the bytes of rank 0; the argument of the other ranks is ignored.
    pub fn broadcast_bytes(&self, bytes: Vec<u8>, tag: impl Into<Tag>) -> Result<Vec<u8>> {
        self.logged(tag, bytes.len(), || self.backend.broadcast_bytes(bytes))
    }

    /// Waits until every rank has called it.
    pub fn barrier(&self, tag: impl Into<Tag>) -> Result<()> {
        self.logged(tag, 0, || self.backend.barrier())
    }

    /// Runs a collective operation that this type does not have (joining NCCL), logged and under
    /// the watchdog like any other.
    ///
    /// # Errors
    /// Those of `f`, which gets the backend.
    pub fn run_collective<T>(
        &self,
        tag: impl Into<Tag>,
        f: impl FnOnce(Arc<dyn Collectives>) -> Result<T>,
    ) -> Result<T> {
        self.logged(tag, 0, || f(self.backend.clone()))
    }

    /// The same job, call log and watchdog with another backend, which is built on the present one.
    #[must_use]
    pub fn with_backend(&self, backend: Arc<dyn Collectives>) -> Self {
        self.watch.watch_device(&backend);
        let (calls, watch) = (self.calls.clone(), self.watch.clone());
        Self { backend, calls, watch, started: AtomicU64::new(0), on_device: Mutex::new(None) }
    }

    /// Shuts the job down and reports this exit code to the supervisor; no call may follow.
    pub fn leave(&self, code: i32) {
        // MPI's finalizer waits for the peers: under the watchdog, like any collective.
        let number = self.calls.begin("leaving".into(), 0);
        self.backend.leave();
        self.calls.end(number);
        self.watch.report_exit(code, "");
        self.watch.stop();
    }

    /// Ends every rank of the job immediately with this exit code; reports `why` to the supervisor.
    pub fn abort(&self, code: i32, why: &str) -> ! {
        self.watch.report_exit(code, why);
        watchdog::abort_job(&self.backend, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NO_STACK, rerun};

    #[test]
    fn a_watchdog_that_cannot_start_is_an_error() {
        let name = "rank::world::tests::a_watchdog_that_cannot_start_is_an_error";
        let Some(out) = rerun(name, &[("RUST_MIN_STACK", NO_STACK)]) else {
            let e = World::new(Arc::new(Solo)).err().expect("a thread with that stack started");
            assert_eq!(e.exit_code(), 5);
            let text = e.to_string();
            assert!(text.contains("dw-watchdog") && text.contains("hint:"), "{text}");
            return;
        };
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }

    #[test]
    fn collectives_of_one_process_return_their_input() {
        let world = World::solo();
        let mut v = [1.0, 2.0];
        world.all_reduce(&mut v, Op::Sum, "test").unwrap();
        assert_eq!(v, [1.0, 2.0]);
        assert_eq!(world.gather_bytes(b"a", "test").unwrap(), [b"a".to_vec()]);
        assert_eq!(world.broadcast_bytes(b"b".to_vec(), "test").unwrap(), b"b");
        let buffer = Buffer {
            ptr: v.as_mut_ptr().cast(),
            count: 2,
            number: Number::F64,
            memory: Memory::Host,
        };
        // SAFETY: `v` outlives the sum and is not accessed before it is finished.
        unsafe { world.start_sum(buffer, Tag { name: "test", part: Some(0) }) }.unwrap();
        assert_eq!(world.calls.pending().unwrap().tag.to_string(), "test 0");
        world.finish().unwrap();
        assert!(world.calls.pending().is_none());
        assert_eq!(world.calls.last().unwrap().number, 4);
    }
}
