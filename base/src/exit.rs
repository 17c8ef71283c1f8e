//! Exit codes of all programs. Scripts and the supervisor depend on them.

/// Success.
pub const OK: i32 = 0;
/// An error in the command line, the configuration or the environment.
pub const USAGE: i32 = 2;
/// Invalid file contents, a failed read or write, or a loss that is not finite.
pub const DATA: i32 = 3;
/// A lost rank, a timeout or a failed GPU: a restart may succeed.
pub const PEER: i32 = 4;
/// Out of memory, threads, processes or file descriptors.
pub const RESOURCES: i32 = 5;
/// A bug in the program.
pub const BUG: i32 = 70;
/// Preempted by a signal after writing a checkpoint: the same command resumes the run.
pub const PREEMPTED: i32 = 75;
