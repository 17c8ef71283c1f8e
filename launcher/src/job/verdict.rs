//! Exit code and reason of a job that has ended, from the status reports of its ranks and the
//! launcher's messages.

use std::fmt::Write as _;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use dw_base::exit;
use dw_base::text::{lines, shown};

use super::monitor::{LastStatus, Ranks};
use super::output::{LauncherReport, USR1};
use crate::rank::status::Status;

/// Time for a rank to reconnect after its connection has closed.
const RECONNECT: Duration = Duration::from_secs(1);
/// A rank without a report for this long before another one timed out is listed as lagging.
const SILENT: Duration = Duration::from_millis(2500);

/// How an attempt to run the job ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Exit code for `dw-launch`.
    pub(crate) code: i32,
    /// Whether a rank was lost, so that a restart may help.
    pub(crate) lost: bool,
    /// Message to log; may be empty.
    pub(crate) text: String,
}

/// The rank that failed first.
#[derive(Debug, Clone)]
pub(crate) struct FirstFailure {
    rank: usize,
    /// All ranks at the time of detection: a launcher that ends the job also wakes stopped ranks.
    ranks: Ranks,
    /// Time of detection.
    pub(crate) detected: Instant,
}

impl FirstFailure {
    /// Finds the rank that was the first to report a non-zero exit code, or whose connection closed
    /// without a report and was not reopened. Only failures up to the time `until` count. A closed
    /// connection counts as a failure only [`RECONNECT`] later, so that a reported exit code takes
    /// precedence: ranks that the launcher kills do not report one.
    pub(crate) fn find(ranks: &Ranks, until: Option<Instant>) -> Option<Self> {
        let failed = |last: &LastStatus| match &last.status.end {
            Some((exit::OK, _)) => None,
            Some(_) => Some(last.received),
            None => last.closed.map(|at| at + RECONNECT),
        };
        let failed = |last: &LastStatus| failed(last).filter(|at| until.is_none_or(|u| *at <= u));
        let (_, rank) = ranks.iter().filter_map(|(rank, s)| Some((failed(s)?, *rank))).min()?;
        Some(Self { rank, ranks: ranks.clone(), detected: Instant::now() })
    }
}

/// Everything that is known about a job that has ended.
pub(crate) struct Outcome<'a> {
    /// Exit status of the launcher.
    pub(crate) status: ExitStatus,
    /// The rank that failed first.
    pub(crate) failure: Option<FirstFailure>,
    /// Latest reports of the ranks.
    pub(crate) ranks: &'a Ranks,
    /// What the launcher has printed.
    pub(crate) launcher: LauncherReport,
}

impl Outcome<'_> {
    /// Exit code and reason. Host names, tags and messages come from other machines: their control
    /// characters are escaped.
    pub(crate) fn verdict(&self) -> Verdict {
        if self.launcher_code() == exit::OK {
            return Verdict { code: exit::OK, lost: false, text: String::new() };
        }
        if self.killed_by_checkpoint_request() {
            let text = "SIGUSR1 ended ranks that were not training yet, or have nothing to save; \
                        run the same command again";
            return Verdict { code: exit::PREEMPTED, lost: false, text: text.into() };
        }
        let first = self.failure.as_ref().and_then(|f| Some((f, self.ranks.get(&f.rank)?)));
        let Some((failure, first)) = first else { return self.without_reports() };
        match &first.status.end {
            Some((exit::PREEMPTED, _)) => {
                Verdict { code: exit::PREEMPTED, lost: false, text: String::new() }
            }
            Some((exit::PEER, why)) => aborted(first, why, &failure.ranks),
            Some((code, why)) => Verdict {
                code: *code,
                lost: false,
                text: format!(
                    "{} failed first, with code {code}: {}",
                    describe(&first.status),
                    shown(why.lines().next().unwrap_or_default())
                ),
            },
            None => self.lost(&first.status),
        }
    }

    /// The launcher's exit code as a shell returns it.
    fn launcher_code(&self) -> i32 {
        self.status.code().unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }

    /// Exit code of the task that ended first if the launcher has printed it, else the launcher's.
    fn code(&self) -> i32 {
        let printed = self.launcher.code.filter(|_| self.launcher.signal.is_none());
        printed.unwrap_or_else(|| self.launcher_code())
    }

    /// Whether SIGUSR1 ended the ranks because they had not installed its handler yet.
    fn killed_by_checkpoint_request(&self) -> bool {
        let killed = self.code() == 128 + libc::SIGUSR1
            || self.launcher.signal.as_ref().is_some_and(|s| s.contains(USR1));
        killed && !self.ranks.values().any(|r| r.status.end.is_some())
    }

    /// No rank has sent a report: an error before the ranks joined, or a program without reports.
    fn without_reports(&self) -> Verdict {
        let code = self.code();
        let lost = code > 128 || code == exit::PEER;
        let text = if code == exit::PREEMPTED {
            String::new()
        } else {
            format!("the job ended with code {code}")
        };
        Verdict { code: if lost { exit::PEER } else { code }, lost, text }
    }

    /// A rank's connection closed before it reported an exit code.
    fn lost(&self, status: &Status) -> Verdict {
        let signal = &self.launcher.signal;
        let cause = signal.as_ref().map_or_else(String::new, |c| format!(": {}", shown(c)));
        // Below 128 it is the exit code that the process chose; 1 is mpirun's own.
        let code = self.code();
        let chosen = (2..128).contains(&code) && signal.is_none();
        let (code, lost) = if chosen { (code, code == exit::PEER) } else { (exit::PEER, true) };
        let mut text = format!(
            "{} was lost{cause}; its last collective was {}",
            describe(status),
            collective(status)
        );
        for other in self.ranks.values().map(|r| &r.status).filter(|o| o.rank != status.rank) {
            let waiting = other.waiting_s.map_or_else(String::new, |w| format!(" for {w:.1} s"));
            let _ = write!(
                text,
                "\n  rank {} on {} was in collective {}{waiting}",
                other.rank,
                shown(&other.host),
                collective(other)
            );
        }
        Verdict { code, lost, text }
    }
}

/// A rank aborted the job with exit code 4, after a timeout for example: lists the ranks without a
/// recent report, and those that had not reached the same collective.
fn aborted(first: &LastStatus, why: &str, ranks: &Ranks) -> Verdict {
    let mut text = format!("{} aborted: {}", describe(&first.status), lines(why));
    let lagging = |other: &&LastStatus| {
        other.status.end.is_none()
            && (other.received + SILENT < first.received || other.status.call < first.status.call)
    };
    for other in ranks.values().filter(lagging) {
        let silent = first.received.saturating_duration_since(other.received).as_secs_f64();
        let _ = write!(
            text,
            "\n  lagging: {}, no report for {silent:.1} s, its last collective was {}",
            describe(&other.status),
            collective(&other.status)
        );
    }
    Verdict { code: exit::PEER, lost: true, text }
}

fn describe(s: &Status) -> String {
    format!("rank {} on {} (process {}, step {})", s.rank, shown(&s.host), s.pid, s.step)
}

fn collective(s: &Status) -> String {
    format!("#{} `{}`", s.call, shown(&s.tag))
}

#[cfg(test)]
mod tests {
    use super::super::output::{exit_code, killed_by};
    use super::*;

    fn without_ranks(code: i32, launcher: LauncherReport) -> Verdict {
        let status = ExitStatus::from_raw(code << 8);
        Outcome { status, failure: None, ranks: &Ranks::new(), launcher }.verdict()
    }

    #[test]
    fn launcher_messages_are_used_where_no_rank_has_reported() {
        let line = "srun: error: n1: tasks 0-1: User defined signal 1\n";
        let v = without_ranks(138, LauncherReport { signal: killed_by(line), code: None });
        assert_eq!((v.code, v.lost), (75, false), "{}", v.text);
        // A usage error of rank 0, after which srun kills the others.
        let code = exit_code("srun: error: n1: task 0: Exited with exit code 2\n");
        let v = without_ranks(143, LauncherReport { signal: None, code });
        assert_eq!((v.code, v.lost), (2, false), "{}", v.text);
    }

    fn last(
        rank: usize,
        call: u64,
        ago_ms: u64,
        end: Option<(i32, &str)>,
        closed: bool,
    ) -> (usize, LastStatus) {
        let received = Instant::now().checked_sub(Duration::from_millis(ago_ms)).unwrap();
        let status = Status {
            rank,
            host: format!("n{rank}"),
            pid: 9,
            step: 5,
            call,
            tag: "loss".into(),
            waiting_s: Some(0.5),
            end: end.map(|(code, why)| (code, why.to_owned())),
        };
        (rank, LastStatus { status, received, closed: closed.then_some(received) })
    }

    fn verdict(code: i32, ranks: Vec<(usize, LastStatus)>) -> Verdict {
        let ranks: Ranks = ranks.into_iter().collect();
        let (status, launcher) = (ExitStatus::from_raw(code << 8), LauncherReport::default());
        let failure = FirstFailure::find(&ranks, None);
        Outcome { status, failure, ranks: &ranks, launcher }.verdict()
    }

    fn assert_contains(v: &Verdict, parts: &[&str]) {
        for part in parts {
            assert!(v.text.contains(part), "expected `{part}` in: {}", v.text);
        }
    }

    #[test]
    fn lost_rank_is_named_with_the_collectives_of_the_others() {
        let v = verdict(137, vec![last(0, 8, 100, None, true), last(1, 7, 900, None, true)]);
        assert_eq!((v.code, v.lost), (4, true));
        let other = "rank 0 on n0 was in collective #8 `loss` for 0.5 s";
        assert_contains(&v, &["rank 1 on n1", other]);
        assert_eq!(verdict(7, vec![last(0, 8, 1, None, true)]).code, 7);
    }

    #[test]
    fn reported_exit_code_is_returned() {
        let failed = last(1, 7, 900, Some((3, "bad shard\nmore")), true);
        let v = verdict(3, vec![last(0, 8, 100, None, true), failed]);
        assert_eq!((v.code, v.lost), (3, false));
        assert_contains(&v, &["rank 1 on n1", "code 3: bad shard"]);
        assert_eq!(verdict(75, vec![last(0, 8, 1, Some((75, "")), true)]).code, 75);
        let v = verdict(2, vec![]);
        assert_eq!((v.code, v.lost), (2, false));
    }

    #[test]
    fn timeout_lists_the_lagging_ranks() {
        let timed_out = last(0, 8, 100, Some((4, "timed out")), false);
        let v = verdict(4, vec![timed_out, last(1, 7, 9000, None, false)]);
        assert_eq!((v.code, v.lost), (4, true));
        assert_contains(&v, &["lagging: rank 1 on n1 (process 9, step 5)", "8.9 s"]);
    }

    #[test]
    fn control_characters_of_hosts_and_tags_are_escaped() {
        let mut ranks = vec![last(0, 8, 100, None, true), last(1, 7, 900, None, true)];
        for (_, s) in &mut ranks {
            s.status.host = "n\u{1b}]0;x\u{7}".into();
            s.status.tag = "loss\u{9b}2J\n".into();
        }
        let v = verdict(137, ranks);
        assert_contains(&v, &[r"on n\u{1b}]0;x\u{7}", r"`loss\u{9b}2J\n`"]);
        assert!(v.text.chars().all(|c| c == '\n' || !c.is_control()), "{:?}", v.text);
    }
}
