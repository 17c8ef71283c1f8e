//! Runs a job, and restarts it when a rank was lost. Forwards output and signals, and ends a
//! launcher that does not exit by itself after a failure.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dw_base::program::print_message;
use dw_base::{Error, Result, exit, host};

use super::command::LaunchCommand;
use super::family::Family;
use super::monitor::Monitor;
use super::output::{LauncherReport, forward};
use super::shutdown::{Action, Received, Shutdown};
use super::verdict::{FirstFailure, Outcome, Verdict};
use crate::rank::{fault, restart, signals, status};

const POLL: Duration = Duration::from_millis(50);
/// Time to wait for the ranks' last output after the launcher has exited.
const LAST_OUTPUT: Duration = Duration::from_secs(3);

/// Settings of the supervisor.
#[derive(Debug, Clone)]
pub struct Options {
    /// Largest number of restarts after a lost rank.
    pub max_restarts: usize,
    /// Pause before a restart.
    pub restart_delay: Duration,
    /// Time for a checkpoint after SIGINT or SIGTERM.
    pub grace: Duration,
    /// Time for the launcher to exit after a rank's failure.
    pub tear_down: Duration,
    /// Pass output on unchanged, without the rank before each line.
    pub raw_stdout: bool,
}

/// Counters of the signals that `dw-launch` has received.
#[derive(Default)]
struct Signals {
    checkpoint: Arc<AtomicUsize>,
    stop: Arc<AtomicUsize>,
    hangup: Arc<AtomicUsize>,
}

impl Signals {
    /// Installs the handlers.
    fn listen() -> Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1};
        let s = Self::default();
        let stop = [SIGINT, SIGQUIT, SIGTERM].map(|signal| (signal, &s.stop));
        let all = [(SIGUSR1, &s.checkpoint), (SIGHUP, &s.hangup)].into_iter().chain(stop);
        // nohup makes a job ignore SIGHUP; a shell script makes its background jobs ignore SIGINT
        // and SIGQUIT.
        let handled =
            |signal| ![SIGINT, SIGQUIT, SIGHUP].contains(&signal) || !signals::is_ignored(signal);
        for (signal, counter) in all.filter(|(signal, _)| handled(*signal)) {
            let counter = counter.clone();
            let count = move || {
                counter.fetch_add(1, Ordering::Relaxed);
            };
            // SAFETY: the handler only increments an atomic.
            unsafe { signal_hook::low_level::register(signal, count) }
                .map_err(|e| Error::system("cannot install signal handlers", &e, Error::Usage))?;
        }
        Ok(s)
    }

    fn received(&self) -> Received {
        // A terminal that closes sends SIGHUP more than once: together they are one request.
        let hangup = self.hangup.load(Ordering::Relaxed).min(1);
        Received {
            checkpoint: self.checkpoint.load(Ordering::Relaxed),
            stop: self.stop.load(Ordering::Relaxed) + hangup,
        }
    }

    fn any(&self) -> bool {
        self.received() != Received::default()
    }
}

/// Runs the job with its restarts; returns the exit code for `dw-launch`.
///
/// # Errors
/// The launcher cannot be started, or the system refuses a thread, pipe or socket.
pub fn run(command: &LaunchCommand, options: &Options) -> Result<i32> {
    let signals = Signals::listen()?;
    let mut command = command.clone();
    for restarts in 0.. {
        let verdict = attempt(&command, restarts, options, &signals)?;
        if !verdict.text.is_empty() {
            log(&verdict.text);
        }
        if verdict.lost && restarts < options.max_restarts && signals.any() {
            log("received a signal: run the same command to resume");
            return Ok(exit::PREEMPTED);
        }
        if verdict.lost && restarts < options.max_restarts && command.reads_stdin() {
            log("not restarted: the list on standard input has been read");
            return Ok(verdict.code);
        }
        if !verdict.lost || restarts == options.max_restarts {
            if verdict.lost && options.max_restarts > 0 && restarts == options.max_restarts {
                log(&format!("giving up after {restarts} restarts, as set by --max-restarts"));
            }
            return Ok(verdict.code);
        }
        log(&format!(
            "restarting from the newest checkpoint ({} of {})",
            restarts + 1,
            options.max_restarts
        ));
        let lost = Instant::now();
        while lost.elapsed() < options.restart_delay && !signals.any() {
            std::thread::sleep(POLL.min(options.restart_delay));
        }
        if signals.any() {
            log("received a signal before the restart: run the same command to resume");
            return Ok(exit::PREEMPTED);
        }
        remove_fault(&mut command);
    }
    unreachable!("the loop returns after the last restart")
}

fn log(text: &str) {
    print_message(&format!("dw-launch: {text}"));
}

/// Removes an injected fault, which applies to the first start only, unless it ends with
/// [`fault::ALWAYS`].
fn remove_fault(command: &mut LaunchCommand) {
    if std::env::var(fault::VARIABLE).is_ok_and(|v| v.ends_with(fault::ALWAYS)) {
        return;
    }
    command.removed_env.push(fault::VARIABLE.to_owned());
    let exported = |w: &[std::ffi::OsString]| w[0] == "-x" && w[1] == fault::VARIABLE;
    while let Some(i) = command.argv.windows(2).position(exported) {
        command.argv.drain(i..i + 2);
    }
}

/// Runs the job once, after `restarts` restarts.
fn attempt(
    command: &LaunchCommand,
    restarts: usize,
    options: &Options,
    signals: &Signals,
) -> Result<Verdict> {
    let no_monitor =
        |e: io::Error| Error::system("cannot listen for status reports", &e, Error::Usage);
    let mut monitor = Monitor::open(!command.remote).map_err(no_monitor)?;
    let hosts = if command.remote { addresses() } else { vec![Ipv4Addr::LOCALHOST.to_string()] };
    let address = monitor.address(&hosts).map_err(no_monitor)?;
    // Started before the ranks, which would block on a full pipe without a reader.
    let report = Arc::new(Mutex::new(LauncherReport::default()));
    let (stdout, out) = forward(io::stdout(), options.raw_stdout, &report)?;
    let (stderr, err) = forward(io::stderr(), options.raw_stdout, &report)?;
    let mut process = process(command);
    let mut child = process
        .env(status::VARIABLE, address)
        .env(restart::VARIABLE, restarts.to_string())
        .stdout(stdout)
        .stderr(stderr)
        .spawn()
        .map_err(|e| not_started(&command.argv[0].to_string_lossy(), &e))?;
    // Closes this process's ends of the pipes: otherwise the readers would never reach the end.
    drop(process);
    let (status, failure) = watch(&mut child, &mut monitor, options, signals)?;
    // With a timeout: a process of the launcher (an ssh to a host that is gone) may keep the
    // output open. Output that has arrived is passed on however slow its reader is.
    let (ended, before) = (Instant::now(), signals.received());
    for output in [&out, &err] {
        while !output.is_finished()
            && (ended.elapsed() < LAST_OUTPUT || output.is_writing())
            && signals.received() == before
        {
            std::thread::sleep(POLL);
        }
    }
    let launcher = report.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let verdict = Outcome { status, failure, ranks: &monitor.ranks, launcher }.verdict();
    match out.take_problem() {
        // A result on standard output is incomplete.
        Some(e) if verdict.code == 0 => {
            Err(Error::io("cannot write", Path::new("standard output"))(e))
        }
        _ => Ok(verdict),
    }
}

/// The launcher's process without its output.
fn process(command: &LaunchCommand) -> Command {
    let mut process = Command::new(&command.argv[0]);
    for name in &command.removed_env {
        process.env_remove(name);
    }
    process
        .args(&command.argv[1..])
        .envs(command.env.iter().map(|(k, v)| (k, v)))
        .stdin(if command.reads_stdin() { Stdio::inherit() } else { Stdio::null() })
        // So that Ctrl-C only reaches the supervisor, which first requests a checkpoint.
        .process_group(0);
    let supervisor = std::process::id();
    // A supervisor that is killed must not leave ranks behind, which would hold the lock of the
    // work directory. The launcher gets the signal at the end of the thread that has started it,
    // which is the one that then waits for it.
    // SAFETY: prctl and getppid are async-signal-safe and do not touch memory.
    unsafe {
        process.pre_exec(move || {
            libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGTERM);
            if libc::getppid() as u32 == supervisor {
                return Ok(());
            }
            // It was killed before the call.
            Err(io::Error::from_raw_os_error(libc::ESRCH))
        });
    }
    process
}

fn not_started(program: &str, e: &io::Error) -> Error {
    Error::system(&format!("cannot start {program}"), e, |text| {
        Error::Usage(format!(
            "{text}\nhint: `make setup` installs Open MPI; clusters may need `module load`"
        ))
    })
}

/// Waits until the launcher has exited; returns its status and the rank that failed first.
fn watch(
    child: &mut Child,
    monitor: &mut Monitor,
    options: &Options,
    signals: &Signals,
) -> Result<(ExitStatus, Option<FirstFailure>)> {
    let mut shutdown = Shutdown::new(options.grace, options.tear_down);
    let mut failure: Option<FirstFailure> = None;
    let mut family = Family::default();
    loop {
        std::thread::sleep(POLL);
        monitor.poll();
        let now = Instant::now();
        failure = failure.or_else(|| FirstFailure::find(&monitor.ranks, Some(now)));
        let status = child
            .try_wait()
            .map_err(|e| Error::system("cannot wait for the launcher", &e, Error::Usage))?;
        if let Some(status) = status {
            let left = family.kill();
            if left > 0 {
                log(&format!("killed {left} processes of the job that were still running"));
            }
            // The last reports may still be in flight.
            std::thread::sleep(POLL);
            monitor.poll();
            return Ok((status, failure.or_else(|| FirstFailure::find(&monitor.ranks, None))));
        }
        let failed = failure.as_ref().map(|f| f.detected);
        for action in shutdown.advance(signals.received(), failed, now) {
            if action == Action::TerminateGroup {
                family = Family::of(child.id());
            }
            perform(action, child, options.grace);
        }
    }
}

/// Carries out a step of the shutdown.
fn perform(action: Action, child: &Child, grace: Duration) {
    // SAFETY: the child's status was not taken yet, so its id is still its own.
    let signal = |signal| unsafe {
        libc::kill(child.id() as i32, signal);
    };
    // SAFETY: as above; the child leads a process group of its own.
    let signal_group = |signal| unsafe {
        libc::kill(-(child.id() as i32), signal);
    };
    match action {
        Action::Checkpoint => signal(libc::SIGUSR1),
        Action::CheckpointAndStop => {
            signal(libc::SIGUSR1);
            log(&format!(
                "requesting a checkpoint; the ranks have {} s (a second signal ends them now)",
                grace.as_secs()
            ));
        }
        Action::Terminate => signal(libc::SIGTERM),
        // SIGTERM first: after SIGKILL srun would not end its tasks on other nodes.
        Action::TerminateGroup => {
            signal_group(libc::SIGTERM);
            log("the launcher does not exit: ending its process group");
        }
        Action::KillGroup => signal_group(libc::SIGKILL),
    }
}

/// Host names and addresses under which other machines may reach this one.
fn addresses() -> Vec<String> {
    let mut found = vec![host::name()];
    // Connecting a UDP socket sends nothing, but selects the interface of the default route.
    let routed = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).and_then(|s| {
        s.connect((Ipv4Addr::new(192, 0, 2, 1), 9))?;
        s.local_addr()
    });
    found.extend(routed.ok().map(|a| a.ip().to_string()));
    found.push(Ipv4Addr::LOCALHOST.to_string());
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(argv: &[&str]) -> LaunchCommand {
        LaunchCommand {
            ranks: 1,
            ranks_from: None,
            remote: false,
            argv: argv.iter().map(Into::into).collect(),
            env: vec![],
            removed_env: vec![],
            warnings: vec![],
        }
    }

    /// Like an ssh process of mpirun to a host that is gone, which keeps the launcher's output
    /// open.
    #[test]
    fn output_that_stays_open_is_not_waited_for() {
        let command = command(&["sh", "-c", "setsid sleep 30 & exit 3"]);
        let options = Options {
            max_restarts: 0,
            restart_delay: Duration::ZERO,
            grace: Duration::ZERO,
            tear_down: Duration::ZERO,
            raw_stdout: false,
        };
        let began = Instant::now();
        let verdict = attempt(&command, 0, &options, &Signals::default()).unwrap();
        assert_eq!(verdict.code, 3);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn a_closing_terminal_is_one_request_however_often_it_says_so() {
        let signals = Signals::default();
        signals.hangup.fetch_add(3, Ordering::Relaxed);
        assert_eq!(signals.received(), Received { checkpoint: 0, stop: 1 });
        signals.stop.fetch_add(1, Ordering::Relaxed);
        assert_eq!(signals.received().stop, 2, "Ctrl-C after it ends the ranks");
    }
}
