//! Log of this rank's latest collectives. They are numbered: when a job hangs, the rank with the
//! lowest number is the one that the others wait for.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Number of calls that are kept.
pub const KEPT: usize = 64;

/// Purpose of a collective, displayed as `gradients 3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The purpose.
    pub name: &'static str,
    /// Index where several collectives have the same purpose.
    pub part: Option<usize>,
}

impl From<&'static str> for Tag {
    fn from(name: &'static str) -> Self {
        Self { name, part: None }
    }
}

impl fmt::Display for Tag {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.part {
            Some(n) => write!(f, "{} {n}", self.name),
            None => f.write_str(self.name),
        }
    }
}

/// A collective in the log.
#[derive(Debug, Clone)]
pub struct Call {
    /// Sequence number from 1, the same on all ranks.
    pub number: u64,
    /// Purpose.
    pub tag: Tag,
    /// Size of this rank's buffer in bytes.
    pub bytes: usize,
    /// Start time.
    pub began: Instant,
    /// Duration; `None` while the call is pending.
    pub took: Option<Duration>,
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{} {} {} B: ", self.number, self.tag, self.bytes)?;
        match self.took {
            Some(took) => write!(f, "{:.1} ms", took.as_secs_f64() * 1e3),
            None => write!(f, "pending for {:.1} s", self.began.elapsed().as_secs_f64()),
        }
    }
}

#[derive(Debug, Default)]
struct Ring {
    calls: VecDeque<Call>,
    last: u64,
}

/// The latest [`KEPT`] calls.
#[derive(Debug, Default)]
pub struct CallLog(Mutex<Ring>);

impl CallLog {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // Every change is a single push or assignment, so that a panic leaves no partial entry.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a call; returns its number.
    pub fn begin(&self, tag: Tag, bytes: usize) -> u64 {
        let mut ring = self.ring();
        ring.last += 1;
        let number = ring.last;
        if ring.calls.len() == KEPT {
            ring.calls.pop_front();
        }
        ring.calls.push_back(Call { number, tag, bytes, began: Instant::now(), took: None });
        number
    }

    /// Marks a call as completed.
    pub fn end(&self, number: u64) {
        if let Some(call) = self.ring().calls.iter_mut().find(|c| c.number == number) {
            call.took = Some(call.began.elapsed());
        }
    }

    /// Marks the pending calls of these numbers as completed.
    pub fn end_all(&self, numbers: std::ops::RangeInclusive<u64>) {
        let mut ring = self.ring();
        let pending = |c: &&mut Call| numbers.contains(&c.number) && c.took.is_none();
        for call in ring.calls.iter_mut().filter(pending) {
            call.took = Some(call.began.elapsed());
        }
    }

    /// The oldest pending call.
    pub fn pending(&self) -> Option<Call> {
        self.ring().calls.iter().find(|c| c.took.is_none()).cloned()
    }

    /// The newest call.
    pub fn last(&self) -> Option<Call> {
        self.ring().calls.back().cloned()
    }

    /// The newest `n` calls as text, oldest first, four per line.
    pub fn dump(&self, n: usize) -> String {
        let ring = self.ring();
        let skip = ring.calls.len().saturating_sub(n);
        let calls: Vec<String> = ring.calls.iter().skip(skip).map(ToString::to_string).collect();
        calls.chunks(4).map(|line| format!("  {}", line.join(" | "))).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_keeps_the_newest_calls_and_finds_the_pending_one() {
        let log = CallLog::default();
        for i in 0..100 {
            let n = log.begin(Tag { name: "gradients", part: Some(i) }, 4 * i);
            assert_eq!(n, i as u64 + 1);
            if i != 97 {
                log.end(n);
            }
        }
        assert_eq!(log.ring().calls.len(), KEPT);
        let pending = log.pending().unwrap();
        assert_eq!((pending.number, pending.tag.to_string()), (98, "gradients 97".into()));
        assert_eq!(log.last().unwrap().number, 100);
        let text = log.dump(3);
        for call in ["#98 gradients 97 388 B: pending", "#100 gradients 99 396 B: 0."] {
            assert!(text.contains(call), "{text}");
        }
        assert!(!text.contains("#97 "), "{text}");
        log.end_all(90..=97);
        assert!(log.pending().is_some());
        log.end_all(98..=100);
        assert!(log.pending().is_none());
    }
}
