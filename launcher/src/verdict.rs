//! Why a job ended: the rank that failed first, by the board, and what the launcher said.

use std::collections::BTreeMap;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use dw_base::text::{lines, shown};

use crate::board::Seen;
use crate::output::{Said, USR1};

/// A rank whose connection closed has this long to connect again.
const COMES_BACK: Duration = Duration::from_secs(1);
/// A rank that has said nothing for this long when another gave up waiting is the one behind.
const SILENT: Duration = Duration::from_millis(2500);

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

/// What is known of each rank.
pub(crate) type Ranks = BTreeMap<usize, Seen>;

/// How a launcher ended.
pub(crate) struct End {
    pub(crate) status: ExitStatus,
    /// The rank that failed first, and what was known of all ranks then: a launcher that tears down wakes those that had
    /// stopped.
    pub(crate) first: Option<(usize, Ranks)>,
}

/// The rank that failed first, up to a moment or ever: it said so, or its connection closed without a word and did not come
/// back. A word counts before a silence: what a launcher ends in a hurry says nothing.
pub(crate) fn first_failure(ranks: &Ranks, until: Option<Instant>) -> Option<usize> {
    let failed = |s: &Seen| match &s.state.end {
        Some((0, _)) => None,
        Some(_) => Some(s.at),
        None => s.closed.map(|at| at + COMES_BACK),
    };
    let failed = |s: &Seen| failed(s).filter(|at| until.is_none_or(|u| *at <= u));
    ranks.iter().filter_map(|(rank, s)| Some((failed(s)?, *rank))).min().map(|f| f.1)
}

/// What ended the job. `ranks`: what is known of them in the end. Hosts and tags come over the network,
/// the launcher's words from the output of the ranks: their control characters are escaped.
pub(crate) fn verdict(end: &End, ranks: &Ranks, said: &Said) -> Verdict {
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
        format!("rank {} on {} (process {}, step {})", s.rank, shown(&s.host), s.pid, s.step)
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
                        shown(&o.state.tag)
                    )
                })
                .collect();
            Verdict {
                code: 4,
                lost: true,
                text: format!("{} gave up: {}{}", place(s), lines(why), behind.concat()),
            }
        }
        Some((code, why)) => Verdict {
            code: *code,
            lost: false,
            text: format!(
                "{} failed first, with code {code}: {}",
                place(s),
                shown(why.lines().next().unwrap_or_default())
            ),
        },
        None => {
            let cause = cause.map_or_else(String::new, |c| format!(": {}", shown(c)));
            let waiting: Vec<String> = others
                .map(|o| {
                    let w =
                        o.state.waiting_s.map_or_else(String::new, |w| format!(" for {w:.1} s"));
                    format!(
                        "\n  rank {} on {} was in collective #{} `{}`{w}",
                        o.state.rank,
                        shown(&o.state.host),
                        o.state.call,
                        shown(&o.state.tag)
                    )
                })
                .collect();
            // An exit code that a process chose is told; one that stands for a signal, or none, means that it was lost.
            let chosen = (1..128).contains(&own) && cause.is_empty() && own != 1;
            let (code, lost) = if chosen { (own, own == 4) } else { (4, true) };
            let last = format!("its last collective was #{} `{}`", s.call, shown(&s.tag));
            Verdict {
                code,
                lost,
                text: format!("{} was lost{cause}; {last}{}", place(s), waiting.concat()),
            }
        }
    }
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

    #[test]
    fn what_others_name_is_escaped() {
        let mut ranks = vec![seen(0, 8, 100, None, true), seen(1, 7, 900, None, true)];
        for (_, s) in &mut ranks {
            s.state.host = "n\u{1b}]0;x\u{7}".into();
            s.state.tag = "loss\u{9b}2J\n".into();
        }
        let text = judge(137, ranks).text;
        assert!(
            text.contains(r"on n\u{1b}]0;x\u{7}") && text.contains(r"`loss\u{9b}2J\n`"),
            "{text}"
        );
        assert!(text.chars().all(|c| c == '\n' || !c.is_control()), "{text:?}");
    }
}
