//! Ends a job: a rank that fails must take its peers with it, or they wait in a collective for ever
//! (an early return from `main`, or a panic that unwinds, would wait for them in MPI's finalizer).

mod failure;

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::c_int;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, OnceLock};

use dw_base::text;

pub use self::failure::{Failure, classify};
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

/// Writes a rank's last message to standard error in one piece (a launcher that puts the rank in
/// front of every piece must not cut it up). Names in it may come from files: control characters
/// are escaped.
pub fn last_words(text: &str) {
    // Nobody is left to be told that standard error is closed.
    let _ = std::io::stderr().write_all(format!("{}\n", text::lines(text)).as_bytes());
}

/// From now on a panic in any thread ends the whole job: exit code 5 when memory or threads ran
/// out, 4 when a GPU failed (see [`Failure`]), else 70 (a bug).
pub fn install_panic_hook(rank: usize, end: fn(i32) -> !) {
    if AFTER_PANIC.set(end).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(move |info| {
        last_words(&describe(info));
        let text = info.payload_as_str().unwrap_or_default();
        let failure = classify(text);
        let code = failure.map_or(70, Failure::exit_code);
        let what = failure.map_or_else(|| "this is a bug in dw".into(), Failure::describe);
        let hint = failure.map_or_else(String::new, |f| format!("\n{}", f.hint()));
        last_words(&format!("error: rank {rank} panicked: {what} (exit code {code}){hint}"));
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

/// Ends the process without running the destructors of libraries. Threads (of the loader, of NCCL) may still
/// be inside libtorch or the CUDA runtime, whose destructors would then crash, and the exit code would be lost.
pub fn exit_now(code: i32) -> ! {
    // Whoever reads standard output may be gone, or not read.
    exit_after_grace(code);
    let _ = std::io::stdout().flush();
    // SAFETY: writes what C libraries have buffered (NCCL's log), then ends the process; everything that must be on disk
    // was synced before.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(code)
    }
}

static CODE: AtomicI32 = AtomicI32::new(70);

extern "C" fn on_alarm(_: c_int) {
    // SAFETY: async-signal-safe; no destructors, which may wait for peers.
    unsafe { libc::_exit(CODE.load(Ordering::Relaxed)) }
}

/// Ends this process with `code` after [`ABORT_GRACE`], whatever its threads do then. The clock is
/// the system's alarm and not a thread: a job that ends because no thread can be started needs it,
/// too.
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

    #[test]
    fn a_panic_about_a_failed_gpu_ends_with_4_and_names_the_host() {
        let name = "abort::tests::a_panic_about_a_failed_gpu_ends_with_4_and_names_the_host";
        let Some(out) = rerun(name, &[]) else {
            install_panic_hook(3, |code| Solo.abort(code));
            panic!("CUDA error: uncorrectable ECC error encountered");
        };
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(4), "{text}");
        let host = crate::host();
        let words = format!("rank 3 panicked: a GPU of host {host}, or its driver, failed");
        assert!(text.contains(&format!("{words} (exit code 4)\nhint: ")), "{text}");
        assert!(text.contains("uncorrectable ECC") && !text.contains("bug"), "{text}");
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
