//! Runs a job and starts it again when a rank was lost: forwards output and signals, knows from the board who failed
//! first, and never waits for a launcher that does not end.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::board::{Board, Seen, VARIABLE};
use crate::collectives::{Error, Result};
use crate::command::Launch;
use crate::drill;
use crate::host;
use crate::output::{Said, USR1, forward};

const POLL: Duration = Duration::from_millis(50);
/// From the request to end to the end by force.
const KILL_AFTER: Duration = Duration::from_secs(2);
/// A rank whose connection closed has this long to connect again.
const COMES_BACK: Duration = Duration::from_secs(1);
/// What the ranks wrote may take this long to come after the launcher's end.
const LAST_OUTPUT: Duration = Duration::from_secs(3);
/// A rank that has said nothing for this long when another gave up waiting is the one behind.
const SILENT: Duration = Duration::from_millis(2500);

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

/// How an attempt ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// Exit code.
    pub code: i32,
    /// A rank was lost: starting again may help.
    pub lost: bool,
    /// What happened, for people.
    pub text: String,
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
                .map_err(|e| Error(format!("cannot listen to signals: {e}")))?;
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
    eprintln!("dw-launch: {text}");
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
    let mut board =
        Board::open(!launch.remote).map_err(|e| Error(format!("cannot open the board: {e}")))?;
    let hosts = if launch.remote { addresses() } else { vec![Ipv4Addr::LOCALHOST.to_string()] };
    let address =
        board.variable(&hosts).map_err(|e| Error(format!("cannot open the board: {e}")))?;
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
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // A Ctrl-C of the terminal comes to the supervisor alone, which asks for a checkpoint first.
        .process_group(0)
        .spawn()
        .map_err(|e| {
            Error(format!("cannot start {program}: {e}\nhint: `make setup` installs Open MPI; a module system may need `module load`"))
        })?;
    let said = Arc::new(Mutex::new(Said::default()));
    let readers = [
        forward(child.stdout.take(), std::io::stdout(), options.raw_stdout, &said),
        forward(child.stderr.take(), std::io::stderr(), false, &said),
    ];
    let end = watch(&mut child, &mut board, options, signals)?;
    // Not for ever: what the launcher started (an ssh to a host that is gone) may hold its output open.
    let ended = Instant::now();
    for reader in readers.into_iter().flatten() {
        while !reader.is_finished() && ended.elapsed() < LAST_OUTPUT {
            std::thread::sleep(POLL);
        }
    }
    let said = said.lock().unwrap_or_else(PoisonError::into_inner).clone();
    Ok(verdict(&end, &board.ranks, &said))
}

type Ranks = BTreeMap<usize, Seen>;

/// How a launcher ended.
struct End {
    status: ExitStatus,
    /// The rank that failed first, and what was known of all ranks then: a launcher that tears down wakes those that had
    /// stopped.
    first: Option<(usize, Ranks)>,
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
            child.try_wait().map_err(|e| Error(format!("cannot wait for the launcher: {e}")))?
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
        let late = asked.is_some_and(|t| t.elapsed() > options.grace + options.tear_down)
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

/// The rank that failed first, up to a moment or ever: it said so, or its connection closed without a word and did not come
/// back. A word counts before a silence: what a launcher ends in a hurry says nothing.
fn first_failure(ranks: &Ranks, until: Option<Instant>) -> Option<usize> {
    let failed = |s: &Seen| match &s.state.end {
        Some((0, _)) => None,
        Some(_) => Some(s.at),
        None => s.closed.map(|at| at + COMES_BACK),
    };
    let failed = |s: &Seen| failed(s).filter(|at| until.is_none_or(|u| *at <= u));
    ranks.iter().filter_map(|(rank, s)| Some((failed(s)?, *rank))).min().map(|f| f.1)
}

/// `ranks`: what is known of them in the end.
fn verdict(end: &End, ranks: &Ranks, said: &Said) -> Verdict {
    let own = end.status.code().unwrap_or_else(|| 128 + end.status.signal().unwrap_or(0));
    if own == 0 {
        return Verdict { code: 0, lost: false, text: String::new() };
    }
    let cause = said.death.as_deref();
    let own = said.code.filter(|_| cause.is_none()).unwrap_or(own);
    // Ranks that are still starting up do not listen yet.
    if (own == 128 + libc::SIGUSR1 || cause.is_some_and(|c| c.contains(USR1)))
        && !ranks.values().any(|r| r.state.end.is_some())
    {
        let text =
            "the signal ended ranks that were not training yet, or have nothing to save: run again"
                .to_owned();
        return Verdict { code: 75, lost: false, text };
    }
    let Some((seen, then)) =
        end.first.as_ref().and_then(|(rank, then)| Some((ranks.get(rank)?, then)))
    else {
        // Nobody was at the board: a mistake before the ranks joined, or another program.
        let lost = own > 128 || own == 4;
        let code = if lost { 4 } else { own };
        let text =
            if code == 75 { String::new() } else { format!("the job ended with code {own}") };
        return Verdict { code, lost, text };
    };
    let s = &seen.state;
    let place = |s: &crate::board::State| {
        format!("rank {} on {} (process {}, step {})", s.rank, s.host, s.pid, s.step)
    };
    let others = ranks.values().filter(|o| o.state.rank != s.rank);
    match &s.end {
        Some((75, _)) => Verdict { code: 75, lost: false, text: String::new() },
        Some((4, why)) => {
            let behind: Vec<String> = then
                .values()
                .filter(|o| {
                    o.state.end.is_none() && (o.at + SILENT < seen.at || o.state.call < s.call)
                })
                .map(|o| {
                    let silent = seen.at.saturating_duration_since(o.at).as_secs_f64();
                    format!(
                        "\n  behind: {}, silent for {silent:.1} s, its last collective #{} `{}`",
                        place(&o.state),
                        o.state.call,
                        o.state.tag
                    )
                })
                .collect();
            Verdict {
                code: 4,
                lost: true,
                text: format!("{} gave up: {why}{}", place(s), behind.concat()),
            }
        }
        Some((code, why)) => Verdict {
            code: *code,
            lost: false,
            text: format!(
                "{} failed first, with code {code}: {}",
                place(s),
                why.lines().next().unwrap_or_default()
            ),
        },
        None => {
            let cause = cause.map_or_else(String::new, |c| format!(": {c}"));
            let waiting: Vec<String> = others
                .map(|o| {
                    let w =
                        o.state.waiting_s.map_or_else(String::new, |w| format!(" for {w:.1} s"));
                    format!(
                        "\n  rank {} on {} was in collective #{} `{}`{w}",
                        o.state.rank, o.state.host, o.state.call, o.state.tag
                    )
                })
                .collect();
            // An exit code that a process chose is told; one that stands for a signal, or none, means that it was lost.
            let chosen = (1..128).contains(&own) && cause.is_empty() && own != 1;
            let (code, lost) = if chosen { (own, own == 4) } else { (4, true) };
            let last = format!("its last collective was #{} `{}`", s.call, s.tag);
            Verdict {
                code,
                lost,
                text: format!("{} was lost{cause}; {last}{}", place(s), waiting.concat()),
            }
        }
    }
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
    use crate::board::State;
    use crate::output::{death, exit_code};

    #[test]
    fn what_a_launcher_says_decides_where_no_rank_has_spoken() {
        let line = "srun: error: n1: tasks 0-1: User defined signal 1\n";
        let v = verdict(
            &End { status: ExitStatus::from_raw(138 << 8), first: None },
            &Ranks::new(),
            &Said { death: death(line), code: None },
        );
        assert_eq!((v.code, v.lost), (75, false), "{}", v.text);
        // A mistake of rank 0, for which srun ends the others.
        let said = Said {
            death: None,
            code: exit_code("srun: error: n1: task 0: Exited with exit code 2\n"),
        };
        let v = verdict(
            &End { status: ExitStatus::from_raw(143 << 8), first: None },
            &Ranks::new(),
            &said,
        );
        assert_eq!((v.code, v.lost), (2, false), "{}", v.text);
    }

    fn seen(
        rank: usize,
        call: u64,
        ago_ms: u64,
        end: Option<(i32, &str)>,
        closed: bool,
    ) -> (usize, Seen) {
        let at = Instant::now().checked_sub(Duration::from_millis(ago_ms)).unwrap();
        let end = end.map(|(c, t)| (c, t.to_owned()));
        let state = State {
            rank,
            host: format!("n{rank}"),
            pid: 9,
            step: 5,
            call,
            tag: "loss".into(),
            waiting_s: Some(0.5),
            end,
        };
        (rank, Seen { state, at, closed: closed.then_some(at) })
    }

    fn judge(code: i32, ranks: Vec<(usize, Seen)>) -> Verdict {
        let ranks: Ranks = ranks.into_iter().collect();
        let first = first_failure(&ranks, None).map(|rank| (rank, ranks.clone()));
        verdict(&End { status: ExitStatus::from_raw(code << 8), first }, &ranks, &Said::default())
    }

    #[test]
    fn the_first_failure_decides() {
        let v = judge(137, vec![seen(0, 8, 100, None, true), seen(1, 7, 900, None, true)]);
        assert_eq!((v.code, v.lost), (4, true));
        assert!(
            v.text.contains("rank 1 on n1")
                && v.text.contains("rank 0 on n0 was in collective #8 `loss` for 0.5 s"),
            "{}",
            v.text
        );
        let v = judge(
            3,
            vec![seen(0, 8, 100, None, true), seen(1, 7, 900, Some((3, "bad shard\nmore")), true)],
        );
        assert_eq!((v.code, v.lost), (3, false));
        assert!(v.text.contains("code 3: bad shard"), "{}", v.text);
        let v = judge(
            4,
            vec![seen(0, 8, 100, Some((4, "waited 10.0 s")), false), seen(1, 7, 9000, None, false)],
        );
        assert_eq!((v.code, v.lost), (4, true));
        assert!(
            v.text.contains("behind: rank 1 on n1 (process 9, step 5), silent for 8.9 s"),
            "{}",
            v.text
        );
        assert_eq!(judge(75, vec![seen(0, 8, 1, Some((75, "")), true)]).code, 75);
        assert_eq!(judge(7, vec![seen(0, 8, 1, None, true)]).code, 7);
        let v = judge(2, vec![]);
        assert_eq!((v.code, v.lost), (2, false));
    }

    /// An ssh of mpirun's to a host that is gone lives on and holds the launcher's output open.
    #[test]
    fn a_helper_that_stays_is_not_waited_for() {
        let argv = ["sh", "-c", "setsid sleep 30 & exit 3"].map(Into::into).to_vec();
        let launch =
            Launch { ranks: 1, srun: false, remote: false, argv, env: vec![], without: vec![] };
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
        let mut launch =
            Launch { ranks: 1, srun: false, remote: false, argv, env: vec![], without: vec![] };
        resume_automatically(&mut launch);
        assert_eq!(launch.argv[3..], ["auto", "--resume=auto"].map(std::ffi::OsString::from));
    }
}
