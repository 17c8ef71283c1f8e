//! The last collectives of this rank, numbered: when a job hangs, the rank whose number is behind is
//! the one to look at.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Calls that are kept.
pub const KEPT: usize = 64;

/// What a collective is for, as `gradients 3`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tag {
    /// The purpose.
    pub name: &'static str,
    /// Which of several.
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

/// One call.
#[derive(Debug, Clone)]
pub struct Call {
    /// From 1, the same on all ranks.
    pub number: u64,
    /// Purpose.
    pub tag: Tag,
    /// Bytes of this rank.
    pub bytes: usize,
    /// When it began.
    pub began: Instant,
    /// How long it took; `None` while it is under way.
    pub took: Option<Duration>,
}

#[derive(Debug, Default)]
struct Ring {
    calls: VecDeque<Call>,
    last: u64,
}

/// The last [`KEPT`] calls.
#[derive(Debug, Default)]
pub struct CallLog(Mutex<Ring>);

impl CallLog {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        // A thread that panicked while it held the lock left whole entries: each change is one push or one field.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes the beginning of a call; returns its number.
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

    /// Notes the end of a call.
    pub fn end(&self, number: u64) {
        if let Some(call) = self.ring().calls.iter_mut().find(|c| c.number == number) {
            call.took = Some(call.began.elapsed());
        }
    }

    /// Notes the end of all calls from `number` on.
    pub fn end_from(&self, number: u64) {
        for call in self.ring().calls.iter_mut().filter(|c| c.number >= number && c.took.is_none())
        {
            call.took = Some(call.began.elapsed());
        }
    }

    /// The oldest call that is under way.
    pub fn waiting(&self) -> Option<Call> {
        self.ring().calls.iter().find(|c| c.took.is_none()).cloned()
    }

    /// The newest call.
    pub fn last(&self) -> Option<Call> {
        self.ring().calls.back().cloned()
    }

    /// The newest `n` calls as text, several a line, oldest first.
    pub fn dump(&self, n: usize) -> String {
        let ring = self.ring();
        let skip = ring.calls.len().saturating_sub(n);
        let words: Vec<String> = ring
            .calls
            .iter()
            .skip(skip)
            .map(|c| {
                let state = c.took.map_or_else(
                    || format!("waiting for {:.1} s", c.began.elapsed().as_secs_f64()),
                    |t| format!("{:.1} ms", t.as_secs_f64() * 1e3),
                );
                format!("#{} {} {} B: {state}", c.number, c.tag, c.bytes)
            })
            .collect();
        words.chunks(4).map(|line| format!("  {}", line.join(" | "))).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keeps_the_last_calls_and_knows_what_is_under_way() {
        let log = CallLog::default();
        for i in 0..100 {
            let n = log.begin(Tag { name: "gradients", part: Some(i) }, 4 * i);
            assert_eq!(n, i as u64 + 1);
            if i != 97 {
                log.end(n);
            }
        }
        assert_eq!(log.ring().calls.len(), KEPT);
        let open = log.waiting().unwrap();
        assert_eq!((open.number, open.tag.to_string()), (98, "gradients 97".into()));
        assert_eq!(log.last().unwrap().number, 100);
        let text = log.dump(3);
        assert!(
            text.contains("#98 gradients 97 388 B: waiting")
                && text.contains("#100 gradients 99 396 B: 0."),
            "{text}"
        );
        assert!(!text.contains("#97 "), "{text}");
        log.end_from(90);
        assert!(log.waiting().is_none());
    }
}
