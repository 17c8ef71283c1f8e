//! Exit codes of every program, as scripts and the supervisor read them.

/// The program did what it was asked to do.
pub const OK: i32 = 0;
/// A mistake in the command line, the configuration or the environment.
pub const USAGE: i32 = 2;
/// A file holds something it must not, or could not be read or written; a loss is not finite.
pub const DATA: i32 = 3;
/// Another rank was lost or timed out, or a GPU failed: starting again may help.
pub const PEER: i32 = 4;
/// Memory, threads, processes or file descriptors ran out.
pub const RESOURCES: i32 = 5;
/// A bug in the program.
pub const BUG: i32 = 70;
/// Stopped by a signal after a checkpoint: the same command continues the run.
pub const PREEMPTED: i32 = 75;
