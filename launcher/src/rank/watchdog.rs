//! A thread of each rank that ends the job when a collective exceeds its deadline, when the
//! communicator of a device reports an error, or when no checkpoint was written in time after
//! SIGTERM. It also sends status reports to `dw-launch`.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use dw_base::program::print_message;
use dw_base::{Error, Result, exit, host};

use super::abort::{exit_after_grace, report_panics};
use super::calls::CallLog;
use super::collectives::Collectives;
use super::signals;
use super::status::{Reporter, Status};

const CHECK_INTERVAL: Duration = Duration::from_millis(100);
const REPORT_INTERVAL: Duration = Duration::from_millis(400);
/// Pause between reporting a timeout and the abort. Ranks that wait in the same collective time out
/// at nearly the same moment: each of them gets to report before the first abort ends the job.
const ABORT_DELAY: Duration = Duration::from_secs(1);
/// Number of calls that are printed on a timeout.
const PRINTED_CALLS: usize = 32;
/// Name of the thread.
const NAME: &str = "dw-watchdog";

/// State that the watchdog shares with the rank's other threads.
pub struct Watch {
    deadline_ms: AtomicU64,
    step: AtomicU64,
    stopped: AtomicBool,
    reporter: Mutex<Option<Reporter>>,
    rank: usize,
    calls: Arc<CallLog>,
    /// Backend of the device, whose asynchronous errors are checked.
    device: OnceLock<Arc<dyn Collectives>>,
}

impl Watch {
    /// State for a watchdog that has not been started; see [`start`].
    pub fn new(rank: usize, calls: &Arc<CallLog>, deadline: Duration) -> Self {
        Self {
            deadline_ms: AtomicU64::new(deadline.as_millis() as u64),
            step: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            reporter: Mutex::new(None),
            rank,
            calls: calls.clone(),
            device: OnceLock::new(),
        }
    }

    /// Sets the deadline of a collective, from its start.
    pub fn set_deadline(&self, deadline: Duration) {
        self.deadline_ms.store(deadline.as_millis() as u64, Ordering::Relaxed);
    }

    /// Sets the step for status reports.
    pub fn set_step(&self, step: usize) {
        self.step.store(step as u64, Ordering::Relaxed);
    }

    /// Also checks this backend for asynchronous errors. Only the first call has an effect: a rank
    /// has one device.
    pub fn watch_device(&self, backend: &Arc<dyn Collectives>) {
        let _ = self.device.set(backend.clone());
    }

    /// Stops the watchdog.
    pub fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    fn send(&self, status: &Status) {
        let mut reporter = self.reporter.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = reporter.as_mut().is_some_and(|r| r.send(status).is_err());
        if status.end.is_some() {
            // The last report: while the job is being aborted, the watchdog would replace it by
            // one without an exit code.
            *reporter = None;
        } else if failed {
            // The write timed out while the supervisor was stopped, for example: reconnect. If
            // that fails, training continues without reports.
            *reporter = Reporter::from_env();
        }
    }

    fn status(&self) -> Status {
        let call = self.calls.pending().or_else(|| self.calls.last());
        Status {
            rank: self.rank,
            host: host::name(),
            pid: std::process::id(),
            step: self.step.load(Ordering::Relaxed),
            call: call.as_ref().map_or(0, |c| c.number),
            tag: call.as_ref().map(|c| c.tag.to_string()).unwrap_or_default(),
            waiting_s: call.filter(|c| c.took.is_none()).map(|c| c.began.elapsed().as_secs_f64()),
            end: None,
        }
    }

    /// Reports exit code and reason of this rank to the supervisor. Later reports are not sent.
    pub fn report_exit(&self, code: i32, why: &str) {
        self.send(&Status { end: Some((code, why.to_owned())), ..self.status() });
    }
}

/// Starts the watchdog of a rank, which aborts the job through `backend`.
///
/// # Errors
/// The thread cannot be started: a rank without it would wait for a lost peer forever.
pub fn start(watch: &Arc<Watch>, backend: &Arc<dyn Collectives>) -> Result<()> {
    *watch.reporter.lock().unwrap_or_else(PoisonError::into_inner) = Reporter::from_env();
    let panics = watch.clone();
    report_panics(move |code, why| panics.report_exit(code, why));
    let watchdog = Watchdog { watch: watch.clone(), backend: backend.clone() };
    let builder = std::thread::Builder::new().name(NAME.into());
    if let Err(e) = builder.spawn(move || watchdog.run()) {
        let e = Error::threads(&format!("the thread `{NAME}`"), &e);
        watch.report_exit(e.exit_code(), &e.to_string());
        return Err(e);
    }
    Ok(())
}

/// Aborts the job. Ends this process even if the backend's abort hangs.
pub fn abort_job(backend: &Arc<dyn Collectives>, code: i32) -> ! {
    exit_after_grace(code);
    backend.abort(code)
}

struct Watchdog {
    watch: Arc<Watch>,
    backend: Arc<dyn Collectives>,
}

impl Watchdog {
    fn run(&self) {
        let mut reported = Instant::now();
        let mut terminated: Option<Instant> = None;
        self.watch.send(&self.watch.status());
        while !self.watch.stopped.load(Ordering::Relaxed) {
            std::thread::sleep(CHECK_INTERVAL);
            if reported.elapsed() >= REPORT_INTERVAL {
                reported = Instant::now();
                self.watch.send(&self.watch.status());
            }
            if signals::terminated() {
                terminated = terminated.or_else(|| Some(Instant::now()));
            }
            let failed = self
                .device_error()
                .or_else(|| self.missed_deadline())
                .or_else(|| missing_checkpoint(terminated?));
            if let Some((code, why)) = failed {
                self.abort(code, &why);
            }
        }
    }

    /// Exit code and text of an asynchronous error of the device's backend.
    fn device_error(&self) -> Option<(i32, String)> {
        let e = self.watch.device.get()?.health().err()?;
        Some((e.exit_code(), e.to_string()))
    }

    /// Exit code and reason if the oldest pending collective has exceeded the deadline.
    fn missed_deadline(&self) -> Option<(i32, String)> {
        let call = self.watch.calls.pending()?;
        let elapsed = call.began.elapsed();
        if elapsed <= Duration::from_millis(self.watch.deadline_ms.load(Ordering::Relaxed)) {
            return None;
        }
        let (seconds, number) = (elapsed.as_secs_f64(), call.number);
        let why = format!("timed out after {seconds:.1} s in collective #{number} `{}`", call.tag);
        Some((exit::PEER, why))
    }

    /// Prints the rank's latest calls and aborts the job.
    fn abort(&self, code: i32, why: &str) -> ! {
        let (rank, host) = (self.watch.rank, host::name());
        let calls = self.watch.calls.dump(PRINTED_CALLS);
        print_message(&format!(
            "[rank {rank}] error: rank {rank} on {host}: {why}; aborting the job (exit code \
             {code})\nhint: look at the rank that prints no such message, or whose last collective \
             has the lowest number\nlast calls of rank {rank}:\n{calls}"
        ));
        self.watch.report_exit(code, why);
        std::thread::sleep(ABORT_DELAY);
        abort_job(&self.backend, code)
    }
}

/// Exit code and reason if the time for a checkpoint after SIGTERM is over.
fn missing_checkpoint(terminated: Instant) -> Option<(i32, String)> {
    let limit = signals::TERM_GRACE;
    (terminated.elapsed() > limit)
        .then(|| (exit::PEER, format!("no checkpoint within {} s after SIGTERM", limit.as_secs())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::job::monitor::Monitor;

    /// The abort of a job may take longer than the time between two reports of the watchdog.
    #[test]
    fn exit_code_is_the_last_report() {
        let mut monitor = Monitor::open(true).unwrap();
        let address = monitor.address(&["127.0.0.1".into()]).unwrap();
        let watch = Watch::new(1, &Arc::default(), Duration::from_secs(1));
        *watch.reporter.lock().unwrap() = Reporter::connect(&address);
        watch.send(&watch.status());
        watch.report_exit(5, "out of memory");
        watch.send(&watch.status());
        let closed = |m: &Monitor| m.ranks.get(&1).is_some_and(|r| r.closed.is_some());
        let began = Instant::now();
        while !closed(&monitor) {
            assert!(began.elapsed() < Duration::from_secs(5), "{:?}", monitor.ranks);
            monitor.poll();
        }
        assert_eq!(monitor.ranks[&1].status.end, Some((5, "out of memory".into())));
    }
}
