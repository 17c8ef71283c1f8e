//! A job as its ranks see it: every collective is numbered and logged, and a watchdog sees to it that none waits for ever.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::calls::{CallLog, Tag};
use crate::collectives::{Buffer, Collectives, Memory, Number, Op, Result, Solo};
use crate::watchdog::{self, Watch};

/// What a rank may wait before the first step, in evaluations and at the end, when nothing is configured.
pub const START_DEADLINE: Duration = Duration::from_mins(30);

/// All ranks of one job.
pub struct World {
    how: Arc<dyn Collectives>,
    calls: Arc<CallLog>,
    watch: Arc<Watch>,
    /// Number of the first sum that was started and not finished; 0: none.
    started: AtomicU64,
    /// Of sums that the host has handed to a device: the first whose end it has not seen.
    unseen: Mutex<Option<u64>>,
}

impl World {
    /// Watches over an implementation from now on.
    ///
    /// # Errors
    /// [`Error::Resources`](crate::Error): no thread could be started. The rank must then end with
    /// exit code 5; its launcher ends the peers.
    pub fn new(how: Arc<dyn Collectives>) -> Result<Self> {
        let world = Self::unwatched(how);
        if let Err(e) = watchdog::start(&world.watch, &world.how) {
            // Dropped, MPI would wait for the peers, and nobody watches.
            std::mem::forget(world);
            return Err(e);
        }
        Ok(world)
    }

    /// A job of one process that nobody watches, for tests and measurements.
    pub fn solo() -> Self {
        Self::unwatched(Arc::new(Solo))
    }

    fn unwatched(how: Arc<dyn Collectives>) -> Self {
        let calls = Arc::new(CallLog::default());
        let watch = Arc::new(Watch::new(how.rank(), &calls, START_DEADLINE));
        Self { how, calls, watch, started: AtomicU64::new(0), unseen: Mutex::new(None) }
    }

    /// `0..size`.
    pub fn rank(&self) -> usize {
        self.how.rank()
    }

    /// Number of processes.
    pub fn size(&self) -> usize {
        self.how.size()
    }

    /// Name for the settings table, as "MPI (Open MPI 4.1.4)".
    pub fn name(&self) -> String {
        self.how.name()
    }

    /// How long a collective may take from now on. Start-up, evaluation and the end take longer than
    /// steps: a deadline for steps would end them.
    pub fn set_deadline(&self, deadline: Duration) {
        self.watch.set_deadline(deadline);
    }

    /// Where the rank is in its work, for whoever asks when it is lost.
    pub fn at_step(&self, step: usize) {
        self.watch.set_step(step);
    }

    fn call<T>(
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

    /// Combines a buffer over all ranks, in place.
    ///
    /// # Safety
    /// As [`Collectives::all_reduce`].
    ///
    /// # Errors
    /// A failed peer, or a buffer this job has no way for.
    pub unsafe fn all_reduce_raw(&self, buffer: Buffer, op: Op, tag: impl Into<Tag>) -> Result<()> {
        // SAFETY: the caller's promise is passed on.
        self.call(tag, buffer.count * buffer.number.width(), || unsafe {
            self.how.all_reduce(buffer, op)
        })
    }

    /// Combines host numbers over all ranks, in place.
    pub fn all_reduce(&self, values: &mut [f64], op: Op, tag: impl Into<Tag>) -> Result<()> {
        let buffer = Buffer {
            ptr: values.as_mut_ptr().cast(),
            count: values.len(),
            number: Number::F64,
            memory: Memory::Host,
        };
        // SAFETY: the slice is borrowed mutably for the whole call.
        unsafe { self.all_reduce_raw(buffer, op, tag) }?;
        self.seen();
        Ok(())
    }

    /// Starts to add a buffer over all ranks; [`World::finish`] waits for it.
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
            self.unseen.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(number);
        }
        // SAFETY: the caller's promise is passed on.
        unsafe { self.how.start_sum(buffer) }
    }

    /// Moves started sums on.
    ///
    /// # Errors
    /// A failed peer.
    pub fn progress(&self) -> Result<()> {
        self.how.progress()
    }

    /// Waits for all started sums.
    ///
    /// # Errors
    /// A failed peer.
    pub fn finish(&self) -> Result<()> {
        self.how.finish()?;
        let first = self.started.swap(0, Ordering::Relaxed);
        if first > 0 && self.unseen.lock().unwrap_or_else(PoisonError::into_inner).is_none() {
            self.calls.end_from(first);
        }
        Ok(())
    }

    /// The host has read a number that comes after everything it enqueued on its device.
    pub fn seen(&self) {
        if let Some(first) = self.unseen.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.calls.end_from(first);
        }
    }

    /// Every rank's bytes on rank 0 in rank order; empty on the others.
    pub fn gather_bytes(&self, bytes: &[u8], tag: impl Into<Tag>) -> Result<Vec<Vec<u8>>> {
        self.call(tag, bytes.len(), || self.how.gather_bytes(bytes))
    }

    /// Rank 0's bytes on every rank.
    pub fn broadcast_bytes(&self, bytes: Vec<u8>, tag: impl Into<Tag>) -> Result<Vec<u8>> {
        self.call(tag, bytes.len(), || self.how.broadcast_bytes(bytes))
    }

    /// Returns when every rank has called it.
    pub fn barrier(&self, tag: impl Into<Tag>) -> Result<()> {
        self.call(tag, 0, || self.how.barrier())
    }

    /// What all ranks do together outside of this type (joining another library), logged and watched as any call.
    ///
    /// # Errors
    /// Those of `f`, which gets the implementation below.
    pub fn together<T>(
        &self,
        tag: impl Into<Tag>,
        f: impl FnOnce(Arc<dyn Collectives>) -> Result<T>,
    ) -> Result<T> {
        self.call(tag, 0, || f(self.how.clone()))
    }

    /// The same job with the same watchdog over an implementation that has the present one underneath.
    #[must_use]
    pub fn over(&self, how: Arc<dyn Collectives>) -> Self {
        self.watch.also_watch(&how);
        let (calls, watch) = (self.calls.clone(), self.watch.clone());
        Self { how, calls, watch, started: AtomicU64::new(0), unseen: Mutex::new(None) }
    }

    /// Leaves in peace, with the exit code that the supervisor is told; no call may follow.
    pub fn leave(&self, code: i32) {
        // Leaving waits for the peers: as any call, not for ever.
        let number = self.calls.begin("leaving".into(), 0);
        self.how.leave();
        self.calls.end(number);
        self.watch.tell_end(code, "");
        self.watch.stop();
    }

    /// Ends every rank of the job at once with this exit code; `why` goes to the supervisor.
    pub fn abort(&self, code: i32, why: &str) -> ! {
        self.watch.tell_end(code, why);
        watchdog::end_hard(&self.how, code)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NO_STACK, rerun};

    #[test]
    fn a_world_that_nobody_can_watch_is_an_error() {
        let name = "world::tests::a_world_that_nobody_can_watch_is_an_error";
        let Some(out) = rerun(name, &[("RUST_MIN_STACK", NO_STACK)]) else {
            let e = World::new(Arc::new(Solo)).err().expect("a thread with that stack started");
            assert!(e.out_of_resources(), "{e}");
            let text = e.to_string();
            assert!(text.contains("dw-watchdog") && text.contains("hint:"), "{text}");
            return;
        };
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    }

    #[test]
    fn one_process_agrees_with_itself() {
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
        // SAFETY: `v` outlives the sum and is not touched before it is finished.
        unsafe { world.start_sum(buffer, Tag { name: "test", part: Some(0) }) }.unwrap();
        assert_eq!(world.calls.waiting().unwrap().tag.to_string(), "test 0");
        world.finish().unwrap();
        assert!(world.calls.waiting().is_none());
        assert_eq!(world.calls.last().unwrap().number, 4);
    }
}
