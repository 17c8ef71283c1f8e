//! Ends this process, and with it the job, after a panic, an error or a timeout.
//!
//! A rank that fails must end its peers, which would otherwise wait for it in a collective forever.
//! Returning from `main` or unwinding is not enough: MPI's finalizer waits for all ranks.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::ffi::c_int;
use std::io::Write;
use std::panic::PanicHookInfo;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

use dw_base::exit;
use dw_base::failure::{Failure, classify};
use dw_base::program::print_message;

/// Seconds after which the process ends itself when an abort hangs.
const ABORT_GRACE: u32 = 3;

/// Receives exit code and reason of a panic.
type Report = Box<dyn Fn(i32, &str) + Send + Sync>;

static AFTER_PANIC: OnceLock<fn(i32) -> !> = OnceLock::new();
static REPORT: OnceLock<Report> = OnceLock::new();

/// Calls `report` with the exit code and the reason before a panic ends the job. Only the first
/// call in a process has an effect.
pub(crate) fn report_panics(report: impl Fn(i32, &str) + Send + Sync + 'static) {
    // Tests create several watchdogs in one process.
    let _ = REPORT.set(Box::new(report));
}

/// Installs a panic hook that ends the whole job through `end` after a panic in any thread. Exit
/// code 5 if memory or threads ran out, 4 if a GPU failed (see [`Failure`]), else 70 (a bug).
pub fn install_panic_hook(rank: usize, end: fn(i32) -> !) {
    if AFTER_PANIC.set(end).is_err() {
        return;
    }
    std::panic::set_hook(Box::new(move |info| {
        print_message(&describe(info));
        let text = info.payload_as_str().unwrap_or_default();
        let failure = classify(text);
        let code = failure.map_or(exit::BUG, Failure::exit_code);
        let what = failure.map_or_else(|| "this is a bug in dw".into(), Failure::describe);
        let hint = failure.map_or_else(String::new, |f| format!("\n{}", f.hint()));
        print_message(&format!("error: rank {rank} panicked: {what} (exit code {code}){hint}"));
        if let Some(report) = REPORT.get() {
            let first = text.lines().next().unwrap_or_default();
            report(code, &format!("panicked: {what}: {first}"));
        }
        if let Some(end) = AFTER_PANIC.get() {
            exit_after_grace(code);
            end(code);
        }
    }));
}

/// The text that std's own panic hook prints.
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

/// Ends the process without running the destructors of libraries. Threads (of the loader, of NCCL)
/// may still be inside libtorch or the CUDA runtime, whose destructors would then crash, and the
/// exit code would be lost.
pub fn exit_now(code: i32) -> ! {
    // Flushing blocks if standard output is a full pipe that nobody reads.
    exit_after_grace(code);
    let _ = std::io::stdout().flush();
    // SAFETY: flushes the buffers of C libraries (NCCL's log), then ends the process; all files
    // that must be on disk were synced before.
    unsafe {
        libc::fflush(std::ptr::null_mut());
        libc::_exit(code)
    }
}

static CODE: AtomicI32 = AtomicI32::new(exit::BUG);

extern "C" fn on_alarm(_: c_int) {
    // SAFETY: async-signal-safe, and runs no destructors, which may wait for peers.
    unsafe { libc::_exit(CODE.load(Ordering::Relaxed)) }
}

/// Ends this process with `code` after [`ABORT_GRACE`] seconds, whatever its threads do until then.
/// Uses `alarm` and not a thread: it must also work when no thread can be started.
pub(crate) fn exit_after_grace(code: i32) {
    CODE.store(code, Ordering::Relaxed);
    // SAFETY: the handler has the signature of a plain handler and only calls `_exit`; SIGALRM is
    // unblocked for this thread, which does nothing else than end the job.
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
    use crate::testing::{NO_STACK, rerun};

    /// The panic hook must not need a thread: the panic may be about a thread that did not start.
    #[test]
    fn panic_without_threads_exits_with_5() {
        let name = "rank::abort::tests::panic_without_threads_exits_with_5";
        let Some(out) = rerun(name, &[("RUST_MIN_STACK", NO_STACK)]) else {
            install_panic_hook(0, |code| exit_now(code));
            std::thread::spawn(|| ());
            unreachable!("a thread with that stack started");
        };
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(5), "{text}");
        assert!(text.contains("failed to spawn thread") && !text.contains("bug"), "{text}");
    }

    #[test]
    fn panic_about_a_failed_gpu_exits_with_4_and_names_the_host() {
        let name = "rank::abort::tests::panic_about_a_failed_gpu_exits_with_4_and_names_the_host";
        let Some(out) = rerun(name, &[]) else {
            install_panic_hook(3, |code| exit_now(code));
            panic!("CUDA error: uncorrectable ECC error encountered");
        };
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(4), "{text}");
        let error = text.split_once("error: rank 3 panicked: ").unwrap().1;
        for key in [dw_base::host::name().as_str(), "(exit code 4)", "\nhint: "] {
            assert!(error.contains(key), "{key}: {text}");
        }
        assert!(text.contains("uncorrectable ECC") && !text.contains("bug"), "{text}");
    }

    /// The library's abort hangs, and no thread can be started that would end the process.
    #[test]
    fn abort_that_hangs_still_ends_the_process() {
        let name = "rank::abort::tests::abort_that_hangs_still_ends_the_process";
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
