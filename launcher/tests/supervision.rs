//! What happens to a job when its `dw-launch` receives a signal, with a program in place of mpirun.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dw_base::process::find;

/// Starts `dw-launch` with an mpirun that runs for a minute; returns it and mpirun's process id.
fn start(dir: &Path) -> (Child, u32) {
    let mpirun = dir.join("mpirun");
    std::fs::write(&mpirun, "#!/bin/sh\necho $$ >pid.new\nmv pid.new pid\nexec sleep 60\n")
        .unwrap();
    std::fs::set_permissions(&mpirun, std::fs::Permissions::from_mode(0o755)).unwrap();
    let path = std::env::var("PATH").unwrap();
    let child = Command::new(env!("CARGO_BIN_EXE_dw-launch"))
        .args(["-n", "1", "--", "true"])
        .current_dir(dir)
        .env("PATH", format!("{}:{path}", dir.display()))
        .env_remove("SLURM_JOB_ID")
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let file = dir.join("pid");
    assert!(becomes_true(|| file.exists()), "mpirun was not started");
    (child, std::fs::read_to_string(file).unwrap().trim().parse().unwrap())
}

fn send(child: &Child, signal: i32) {
    // SAFETY: a signal to a child that has not been waited for.
    assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
}

fn becomes_true(condition: impl Fn() -> bool) -> bool {
    let began = Instant::now();
    while !condition() {
        if began.elapsed() > Duration::from_secs(20) {
            return false;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    true
}

#[test]
fn a_killed_supervisor_leaves_no_job_behind() {
    let dir = tempfile::tempdir().unwrap();
    let (mut child, mpirun) = start(dir.path());
    assert!(find(mpirun).is_some(), "mpirun runs");
    send(&child, libc::SIGKILL);
    child.wait().unwrap();
    assert!(becomes_true(|| find(mpirun).is_none()), "mpirun still runs");
}

/// Ctrl-\ in a terminal.
#[test]
fn quit_requests_a_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let (child, mpirun) = start(dir.path());
    send(&child, libc::SIGQUIT);
    let out = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert!(text.contains("requesting a checkpoint"), "{text}");
    assert!(out.status.code().is_some() && find(mpirun).is_none(), "{out:?}");
}
