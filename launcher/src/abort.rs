//! Ends a job: a rank that fails must take its peers with it, or they wait in a collective for ever
//! (an early return from `main`, or a panic that unwinds, would wait for them in MPI's finalizer).

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::c_int;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use dw_base::text;

use crate::watchdog::Watch;

/// Seconds that an abort may take until the process ends itself.
const ABORT_GRACE: u32 = 3;

static AFTER_PANIC: OnceLock<fn(i32) -> !> = OnceLock::new();
static WATCH: OnceLock<Arc<Watch>> = OnceLock::new();

/// A panic is reported to the supervisor's board, too.
pub(crate) fn tell_board(watch: Arc<Watch>) {
    // The first world of a process is the one that counts (tests make several).
    let _ = WATCH.set(watch);
}

/// TEMP
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure { /// m
 Memory, /// t
 Threads, /// d
 Device }
impl Failure { /// code
 pub fn exit_code(self) -> i32 { if self == Self::Device { 4 } else { 5 } } }
/// TEMP
pub fn classify(text: &str) -> Option<Failure> { if text.contains("ECC") { return Some(Failure::Device) } ran_out(text).map(|_| Failure::Memory) }
/// Whether a library's error says that memory, or threads, ran out. (Others mention memory, too: an
/// illegal access is a bug.)
pub fn out_of_memory(text: &str) -> bool {
    ran_out(text).is_some()
}

/// What ran out, by the words of the system (EAGAIN of a thread's start), std, libgomp and libtorch.
fn ran_out(text: &str) -> Option<&'static str> {
    const MEMORY: [&str; 4] =
        ["out of memory", "allocate memory", "not enough memory", "memory allocation of"];
    const THREADS: [&str; 3] =
        ["resource temporarily unavailable", "failed to spawn thread", "thread creation failed"];
    let text = text.to_lowercase();
    if MEMORY.iter().any(|t| text.contains(t)) {
        Some("memory ran out")
    } else if THREADS.iter().any(|t| text.contains(t)) {
        Some("no thread could be started: a limit of processes or memory is reached")
    } else {
        None
    }
}

/// Writes a rank's last message to standard error in one piece (a launcher that puts the rank in front
/// of every piece must not cut it up). Names in it may come from files: control characters are escaped.
pub fn last_words(text: &str) {
    // Nobody is left to be told that standard error is closed.
    let _ = std::io::stderr().write_all(format!("{}\n", text::lines(text)).as_bytes());
}

/// From now on a panic in any thread ends the whole job: exit code 5 when memory or threads ran out,
/// else 70 (a bug of ours).
pub fn install_panic_hook(rank: usize, end: fn(i32) -> !) {
    if AFTER_PANIC.set(end).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(move |info| {
        last_words(&describe(info));
        let text = info.payload_as_str().unwrap_or_default();
        let (code, what) = ran_out(text).map_or((70, "this is a bug in dw"), |what| (5, what));
        last_words(&format!("error: rank {rank} panicked: {what} (exit code {code})"));
        if let Some(watch) = WATCH.get() {
            let first = text.lines().next().unwrap_or_default();
            watch.tell_end(code, &format!("panicked: {what}: {first}"));
        }
        if let Some(end) = AFTER_PANIC.get() {
            // An abort that hangs must not keep the process alive.
            exit_after_grace(code);
            end(code);
        }
    }));
}

/// What std's own hook prints.
fn describe(info: &PanicHookInfo) -> String {
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("<unnamed>");
    let place = info.location().map(ToString::to_string).unwrap_or_default();
    let text = info.payload_as_str().unwrap_or("(a panic without a text)");
    let trace = Backtrace::capture();
    let trace = match trace.status() {
        BacktraceStatus::Captured => format!("\nstack backtrace:\n{trace}"),
        _ => String::new(),
    };
    format!("thread '{thread}' panicked at {place}:\n{text}{trace}")
}

static CODE: AtomicI32 = AtomicI32::new(70);

extern "C" fn on_alarm(_: c_int) {
    // SAFETY: async-signal-safe; no destructors, which may wait for peers.
    unsafe { libc::_exit(CODE.load(Ordering::Relaxed)) }
}

/// Ends this process with `code` after [`ABORT_GRACE`], whatever its threads do then. The clock is the
/// system's alarm and not a thread: a job that ends because no thread can be started needs it, too.
pub(crate) fn exit_after_grace(code: i32) {
    CODE.store(code, Ordering::Relaxed);
    // SAFETY: the handler has the signature of a plain one and calls `_exit` only; the signal is
    // unblocked for this thread, which has nothing else to do than to end the job.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = on_alarm as *const () as usize;
        libc::sigemptyset(&raw mut action.sa_mask);
        libc::sigaction(libc::SIGALRM, &raw const action, std::ptr::null_mut());
        let mut alarm: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut alarm);
        libc::sigaddset(&raw mut alarm, libc::SIGALRM);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &raw const alarm, std::ptr::null_mut());
        libc::alarm(ABORT_GRACE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::collectives::{Collectives, Solo};
    use crate::testing::{NO_STACK, rerun};

    #[test]
    fn what_ran_out_is_no_bug() {
        let std = "failed to spawn thread: Os { code: 11, kind: WouldBlock, message: \"x\" }";
        let pool = "ThreadPoolBuildError { kind: IOError(Resource temporarily unavailable) }";
        for text in [std, pool, "libgomp: Thread creation failed", "CUDA out of memory"] {
            assert!(out_of_memory(text), "{text}");
        }
        for text in ["CUDA error: an illegal memory access", "index out of bounds"] {
            assert!(!out_of_memory(text), "{text}");
        }
    }

    /// A panic because no thread starts: the hook itself must not need one.
    #[test]
    fn a_panic_without_threads_ends_with_5() {
        let name = "abort::tests::a_panic_without_threads_ends_with_5";
        let Some(out) = rerun(name, &[("RUST_MIN_STACK", NO_STACK)]) else {
            install_panic_hook(0, |code| Solo.abort(code));
            std::thread::spawn(|| ());
            unreachable!("a thread with that stack started");
        };
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(5), "{text}");
        assert!(text.contains("failed to spawn thread") && !text.contains("bug"), "{text}");
    }

    /// The abort of the library hangs, and no thread can be started that would end the process.
    #[test]
    fn an_abort_that_hangs_ends_without_threads() {
        let name = "abort::tests::an_abort_that_hangs_ends_without_threads";
        let Some(out) = rerun(name, &[("RUST_MIN_STACK", NO_STACK)]) else {
            install_panic_hook(0, |_| {
                loop {
                    std::thread::sleep(std::time::Duration::from_mins(1));
                }
            });
            panic!("a name from a file: \u{1b}[2J");
        };
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(70), "{text}");
        assert!(text.contains(r"\u{1b}[2J") && !text.contains('\u{1b}'), "{text}");
    }
}
