//! Ends a job: a rank that fails must take its peers with it, or they wait in a collective for ever
//! (an early return from `main`, or a panic that unwinds, would wait for them in MPI's finalizer).

use std::sync::OnceLock;

static AFTER_PANIC: OnceLock<fn(i32) -> !> = OnceLock::new();

/// From now on a panic ends the whole job with exit code 70 (a bug of ours).
#[expect(clippy::print_stderr, reason = "the last words of a process")]
pub fn install_panic_hook(rank: usize, end: fn(i32) -> !) {
    if AFTER_PANIC.set(end).is_err() {
        return;
    }
    let default = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        default(info);
        eprintln!("error: rank {rank} panicked: this is a bug in dw (exit code 70)");
        if let Some(end) = AFTER_PANIC.get() {
            end(70);
        }
    }));
}
