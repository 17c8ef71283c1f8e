//! Runs a job and starts it again when a rank was lost: forwards output and signals, knows from the board who failed
//! first, and never waits for a launcher that does not end.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use dw_base::text::lines;

use crate::board::{Board, VARIABLE};
use crate::collectives::{Error, Result};
use crate::command::Launch;
use crate::drill;
use crate::host;
use crate::output::{Said, forward};
use crate::verdict::{End, Ranks, Verdict, first_failure, verdict};

const POLL: Duration = Duration::from_millis(50);
/// From the request to end to the end by force.
const KILL_AFTER: Duration = Duration::from_secs(2);
/// What the ranks wrote may take this long to come after the launcher's end.
const LAST_OUTPUT: Duration = Duration::from_secs(3);

/// What to do beside the job.
#[derive(Debug, Clone)]
pub struct Options {
    /// Times to start again after a lost rank.
    pub max_restarts: usize,
    /// Pause before that.
    pub restart_delay: Duration,
    /// What a checkpoint may take after INT or TERM.
    pub grace: Duration,
    /// After the first failure the launcher gets this long to end the others.
    pub tear_down: Duration,
    /// Leave standard output as the ranks write it.
    pub raw_stdout: bool,
}

/// Signals that came to the supervisor, counted.
struct Signals {
    usr1: Arc<AtomicUsize>,
    end: Arc<AtomicUsize>,
}

impl Signals {
    fn listen() -> Result<Self> {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM, SIGUSR1};
        let s = Self { usr1: Arc::default(), end: Arc::default() };
        for (signal, counter) in
            [(SIGUSR1, &s.usr1), (SIGINT, &s.end), (SIGTERM, &s.end), (SIGHUP, &s.end)]
        {
            let counter = counter.clone();
            let count = move || {
                counter.fetch_add(1, Ordering::Relaxed);
            };
            // SAFETY: the handler only adds to an atomic number.
            unsafe { signal_hook::low_level::register(signal, count) }
                .map_err(|e| Error::system("cannot listen to signals", &e))?;
        }
        Ok(s)
    }

    fn any(&self) -> bool {
        self.usr1.load(Ordering::Relaxed) + self.end.load(Ordering::Relaxed) > 0
    }
}

/// Runs the job to its end.
///
/// # Errors
/// The launcher cannot be started.
pub fn run(launch: &Launch, options: &Options) -> Result<i32> {
    let signals = Signals::listen()?;
    let mut launch = launch.clone();
    for restarts in 0.. {
        let verdict = attempt(&launch, options, &signals)?;
        if !verdict.text.is_empty() {
            say(&verdict.text);
        }
        if !verdict.lost || restarts == options.max_restarts || signals.any() {
            if verdict.lost && options.max_restarts > 0 && restarts == options.max_restarts {
                say(&format!(
                    "started again {restarts} times, as allowed by --max-restarts: giving up"
                ));
            }
            return Ok(verdict.code);
        }
        say(&format!(
            "starting again from the newest checkpoint ({} of {})",
            restarts + 1,
            options.max_restarts
        ));
        std::thread::sleep(options.restart_delay);
        if signals.any() {
            // The checkpoint that was asked for is there already.
            say("asked to end while nothing ran: run again to go on");
            return Ok(75);
        }
        resume_automatically(&mut launch);
        drop_drill(&mut launch);
    }
    unreachable!("the loop ends at the last restart")
}

#[expect(clippy::print_stderr, reason = "the supervisor's log")]
fn say(text: &str) {
    eprintln!("dw-launch: {}", lines(text));
}

/// `--resume none` and `--resume PATH` are meant for the first start.
fn resume_automatically(launch: &mut Launch) {
    let words = &mut launch.argv;
    for i in 0..words.len() {
        let word = words[i].to_string_lossy().into_owned();
        if word == "--resume" && i + 1 < words.len() {
            words[i + 1] = "auto".into();
        } else if word.starts_with("--resume=") {
            words[i] = "--resume=auto".into();
        }
    }
}

/// A rehearsed fault is meant for the first start, unless it says otherwise (`kill@1:20!`).
fn drop_drill(launch: &mut Launch) {
    if std::env::var(drill::VARIABLE).is_ok_and(|v| v.ends_with(drill::ALWAYS)) {
        return;
    }
    launch.without.push(drill::VARIABLE.to_owned());
    while let Some(i) = launch.argv.windows(2).position(|w| w[0] == "-x" && w[1] == drill::VARIABLE)
    {
        launch.argv.drain(i..i + 2);
    }
}

fn attempt(launch: &Launch, options: &Options, signals: &Signals) -> Result<Verdict> {
    let no_board = |e: io::Error| Error::system("cannot open the board", &e);
    let mut board = Board::open(!launch.remote).map_err(no_board)?;
    let hosts = if launch.remote { addresses() } else { vec![Ipv4Addr::LOCALHOST.to_string()] };
    let address = board.variable(&hosts).map_err(no_board)?;
    // Before the ranks: output that nobody reads would stop them.
    let said = Arc::new(Mutex::new(Said::default()));
    let (stdout, out) = forward(io::stdout(), options.raw_stdout, &said)?;
    let (stderr, err) = forward(io::stderr(), false, &said)?;
    let program = launch.argv[0].to_string_lossy().into_owned();
    let mut command = Command::new(&launch.argv[0]);
    for name in &launch.without {
        command.env_remove(name);
    }
    let mut child = command
        .args(&launch.argv[1..])
        .envs(launch.env.iter().map(|(k, v)| (k, v)))
        .env(VARIABLE, address)
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(stderr)
        // A Ctrl-C of the terminal comes to the supervisor alone, which asks for a checkpoint first.
        .process_group(0)
        .spawn()
        .map_err(|e| not_started(&program, &e))?;
    // It holds this process's ends of the pipes, with which the readers would never see an end.
    drop(command);
    let end = watch(&mut child, &mut board, options, signals)?;
    // Not for ever: what the launcher started (an ssh to a host that is gone) may hold its output open.
    let ended = Instant::now();
    for reader in [out, err] {
        while !reader.is_finished() && ended.elapsed() < LAST_OUTPUT {
            std::thread::sleep(POLL);
        }
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(verdict(&end, &board.ranks, &said))
}

fn not_started(program: &str, e: &io::Error) -> Error {
    match Error::system(&format!("cannot start {program}"), e) {
        Error::Failed(text) => Error::Failed(format!(
            "{text}\nhint: `make setup` installs Open MPI; a module system may need `module load`"
        )),
        full @ Error::Resources(_) => full,
    }
}

/// Waits for the end.
fn watch(
    child: &mut Child,
    board: &mut Board,
    options: &Options,
    signals: &Signals,
) -> Result<End> {
    let mut first: Option<(usize, Ranks, Instant)> = None;
    let found = |board: &Board, until| {
        Some((first_failure(&board.ranks, until)?, board.ranks.clone(), Instant::now()))
    };
    let mut killing: Option<Instant> = None;
    let mut asked: Option<Instant> = None;
    let (mut usr1, mut ends) = (signals.usr1.load(Ordering::Relaxed), 0);
    loop {
        std::thread::sleep(POLL);
        board.look();
        first = first.or_else(|| found(board, Some(Instant::now())));
        if let Some(status) =
            child.try_wait().map_err(|e| Error::system("cannot wait for the launcher", &e))?
        {
            // What the ranks said last may still be on its way.
            std::thread::sleep(POLL);
            board.look();
            let first = first.or_else(|| found(board, None)).map(|(rank, then, _)| (rank, then));
            return Ok(End { status, first });
        }
        if signals.usr1.load(Ordering::Relaxed) > usr1 {
            usr1 += 1;
            signal(child, libc::SIGUSR1);
        }
        let now = signals.end.load(Ordering::Relaxed);
        if now > ends {
            ends = now;
            if ends == 1 {
                say(&format!(
                    "asking the ranks for a checkpoint; they have {} s (once more: end at once)",
                    options.grace.as_secs()
                ));
                signal(child, libc::SIGUSR1);
                asked = Some(Instant::now());
            } else {
                signal(child, libc::SIGTERM);
                asked =
                    Some(Instant::now().checked_sub(options.grace).unwrap_or_else(Instant::now));
            }
        }
        let late = asked
            .is_some_and(|t| t.elapsed() > options.grace.saturating_add(options.tear_down))
            || first.as_ref().is_some_and(|f| f.2.elapsed() > options.tear_down);
        if let Some(began) = killing {
            if began.elapsed() > KILL_AFTER {
                signal_group(child, libc::SIGKILL);
            }
        } else if late {
            say("the launcher does not end: ending it");
            // srun ends its remote tasks only if it may.
            signal_group(child, libc::SIGTERM);
            killing = Some(Instant::now());
        } else if asked.is_some_and(|t| t.elapsed() > options.grace) && ends == 1 {
            signal(child, libc::SIGTERM);
            ends = usize::MAX;
        }
    }
}

fn signal(child: &Child, signal: i32) {
    // SAFETY: the child is not reaped before its status was taken, so its number is still its own.
    unsafe { libc::kill(child.id() as i32, signal) };
}

fn signal_group(child: &Child, signal: i32) {
    // SAFETY: as above; the child leads a group of its own.
    unsafe { libc::kill(-(child.id() as i32), signal) };
}

/// Names by which other machines may reach this one.
fn addresses() -> Vec<String> {
    let mut found = vec![host()];
    // The address of the interface that the default route uses; nothing is sent.
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

    fn plain(argv: Vec<std::ffi::OsString>) -> Launch {
        let (env, without, warnings) = (vec![], vec![], vec![]);
        Launch { ranks: 1, srun: false, remote: false, argv, env, without, warnings }
    }

    /// An ssh of mpirun's to a host that is gone lives on and holds the launcher's output open.
    #[test]
    fn a_helper_that_stays_is_not_waited_for() {
        let argv = ["sh", "-c", "setsid sleep 30 & exit 3"].map(Into::into).to_vec();
        let launch = plain(argv);
        let options = Options {
            max_restarts: 0,
            restart_delay: Duration::ZERO,
            grace: Duration::ZERO,
            tear_down: Duration::ZERO,
            raw_stdout: false,
        };
        let began = Instant::now();
        let v = attempt(&launch, &options, &Signals { usr1: Arc::default(), end: Arc::default() })
            .unwrap();
        assert_eq!(v.code, 3);
        assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    }

    #[test]
    fn a_restart_resumes() {
        let argv =
            ["mpirun", "dw-train", "--resume", "none", "--resume=x"].map(Into::into).to_vec();
        let mut launch = plain(argv);
        resume_automatically(&mut launch);
        assert_eq!(launch.argv[3..], ["auto", "--resume=auto"].map(std::ffi::OsString::from));
    }
}
