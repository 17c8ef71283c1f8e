//! Runs tests that end their process in a child of the test program.

use std::process::{Command, Output};

/// Value of `RUST_MIN_STACK` with which no thread starts: the address space has no room for such a
/// stack. Unlike the limit of processes, this also holds for root.
pub(crate) const NO_STACK: &str = "140737488355328";

/// Runs the test `name` (its path within the crate) in a child process with these environment
/// variables and returns its output; `None` in the child itself.
pub(crate) fn rerun(name: &str, env: &[(&str, &str)]) -> Option<Output> {
    const CHILD: &str = "DW_LAUNCH_TEST_CHILD";
    if std::env::var_os(CHILD).is_some() {
        return None;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([name, "--exact", "--nocapture", "--test-threads=1"]).env(CHILD, "1");
    Some(command.envs(env.iter().copied()).output().unwrap())
}
