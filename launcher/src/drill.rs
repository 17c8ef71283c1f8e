//! Faults on demand, to see on one's own cluster how a job ends: `DW_FAULT=KIND@RANK:STEP` makes that rank fail at that
//! step. Kinds: `panic`, `exit` (code 7), `kill`, `stop` (SIGSTOP), `oom`, `nan`. A restarted job is spared, unless `!` follows.

use crate::collectives::{Error, Result};

/// The variable.
pub const VARIABLE: &str = "DW_FAULT";

/// Behind a fault that comes again after a restart.
pub const ALWAYS: char = '!';

/// What happens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A panic.
    Panic,
    /// The process exits with code 7 without a word.
    Exit,
    /// SIGKILL.
    Kill,
    /// SIGSTOP: the process is there and does nothing.
    Stop,
    /// Memory runs out (the trainer asks libtorch for too much).
    Oom,
    /// A gradient becomes NaN (the trainer's part).
    Nan,
}

/// A planned fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drill {
    kind: Kind,
    rank: usize,
    step: usize,
}

impl Drill {
    /// The planned fault, if there is one.
    ///
    /// # Errors
    /// A value of another form.
    pub fn from_env() -> Result<Option<Self>> {
        std::env::var(VARIABLE).ok().map(|v| Self::parse(&v)).transpose()
    }

    fn parse(text: &str) -> Result<Self> {
        let bad = || {
            Error::Failed(format!(
                "{VARIABLE}={text}: expected KIND@RANK:STEP with KIND panic, exit, kill, stop, oom or nan"
            ))
        };
        let (kind, place) =
            text.strip_suffix(ALWAYS).unwrap_or(text).split_once('@').ok_or_else(bad)?;
        let (rank, step) = place.split_once(':').ok_or_else(bad)?;
        let kind = match kind {
            "panic" => Kind::Panic,
            "exit" => Kind::Exit,
            "kill" => Kind::Kill,
            "stop" => Kind::Stop,
            "oom" => Kind::Oom,
            "nan" => Kind::Nan,
            _ => return Err(bad()),
        };
        Ok(Self {
            kind,
            rank: rank.parse().map_err(|_| bad())?,
            step: step.parse().map_err(|_| bad())?,
        })
    }

    /// Fails when it is time. The kinds that only the trainer can do are returned.
    pub fn at(&self, rank: usize, step: usize) -> Option<Kind> {
        if (self.rank, self.step) != (rank, step) {
            return None;
        }
        tracing::warn!("{VARIABLE}: rank {rank} fails at step {step}: {:?}", self.kind);
        // SAFETY: signals to this process itself, and an exit without destructors.
        unsafe {
            match self.kind {
                Kind::Panic => panic!("a fault drill ({VARIABLE})"),
                Kind::Exit => libc::_exit(7),
                Kind::Kill => libc::kill(libc::getpid(), libc::SIGKILL),
                Kind::Stop => libc::kill(libc::getpid(), libc::SIGSTOP),
                Kind::Oom | Kind::Nan => return Some(self.kind),
            }
        };
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_its_variable() {
        assert_eq!(
            Drill::parse("kill@1:20").unwrap(),
            Drill { kind: Kind::Kill, rank: 1, step: 20 }
        );
        for bad in ["kill", "kill@1", "fire@1:2", "kill@one:2"] {
            assert!(Drill::parse(bad).unwrap_err().to_string().contains("KIND@RANK:STEP"), "{bad}");
        }
        assert_eq!(Drill::parse("oom@1:2!").unwrap().at(1, 2), Some(Kind::Oom));
        assert_eq!(Drill::parse("oom@1:2").unwrap().at(0, 2), None);
    }
}
