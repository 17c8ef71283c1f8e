//! Ends a job: a rank that fails must take its peers with it, or they wait in a collective for ever
//! (an early return from `main`, or a panic that unwinds, would wait for them in MPI's finalizer).

use std::io::Write;
use std::sync::{Arc, OnceLock};

use crate::watchdog::Watch;

static AFTER_PANIC: OnceLock<fn(i32) -> !> = OnceLock::new();
static WATCH: OnceLock<Arc<Watch>> = OnceLock::new();

/// A panic is told to the supervisor's board, too.
pub(crate) fn tell_board(watch: Arc<Watch>) {
    // The first world of a process is the one that counts (tests make several).
    let _ = WATCH.set(watch);
}

/// Does a library's error say that memory ran out? (Others speak of memory, too: an illegal access is a bug.)
pub fn out_of_memory(text: &str) -> bool {
    let text = text.to_lowercase();
    ["out of memory", "can't allocate memory", "not enough memory"].iter().any(|t| text.contains(t))
}

/// Writes to standard error in one piece: a launcher that puts the rank in front of every piece must not cut it up.
pub fn last_words(text: &str) {
    // Nobody is left to be told that standard error is closed.
    let _ = std::io::stderr().write_all(format!("{text}\n").as_bytes());
}

/// From now on a panic in any thread ends the whole job: exit code 5 when memory ran out, else 70 (a bug of ours).
pub fn install_panic_hook(rank: usize, end: fn(i32) -> !) {
    if AFTER_PANIC.set(end).is_err() {
        return;
    }
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        let text = info.payload_as_str().unwrap_or_default();
        let (code, what) =
            if out_of_memory(text) { (5, "memory ran out") } else { (70, "this is a bug in dw") };
        last_words(&format!("error: rank {rank} panicked: {what} (exit code {code})"));
        if let Some(watch) = WATCH.get() {
            watch.tell_end(
                code,
                &format!("panicked: {what}: {}", text.lines().next().unwrap_or_default()),
            );
        }
        if let Some(end) = AFTER_PANIC.get() {
            // An abort that hangs must not keep the process alive.
            std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_secs(3));
                // SAFETY: ends the process without destructors, which may wait for peers.
                unsafe { libc::_exit(code) }
            });
            end(code);
        }
    }));
}
