//! Fault injection, to test how a job ends on a given cluster. `DW_FAULT=KIND@RANK:STEP` makes that
//! rank fail at that step; kinds: `panic`, `exit` (code 7), `kill`, `stop` (SIGSTOP), `oom`, `nan`.
//! The fault is not repeated after a restart, unless the value ends with `!`.

use dw_base::{Error, Result};

/// The environment variable.
pub const VARIABLE: &str = "DW_FAULT";

/// Suffix of a fault that is repeated after a restart.
pub const ALWAYS: char = '!';

/// Kind of a fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A panic.
    Panic,
    /// Exit with code 7 and no message.
    Exit,
    /// SIGKILL.
    Kill,
    /// SIGSTOP: the process exists but makes no progress.
    Stop,
    /// An allocation that fails; done by the trainer.
    Oom,
    /// A NaN gradient; done by the trainer.
    Nan,
}

/// A fault to inject.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fault {
    kind: Kind,
    rank: usize,
    step: usize,
}

impl Fault {
    /// Reads [`VARIABLE`]; `None` if it is not set.
    ///
    /// # Errors
    /// A value that is not of the form `KIND@RANK:STEP`.
    pub fn from_env() -> Result<Option<Self>> {
        std::env::var(VARIABLE).ok().map(|v| Self::parse(&v)).transpose()
    }

    fn parse(text: &str) -> Result<Self> {
        let invalid = || {
            Error::Usage(format!(
                "{VARIABLE}={text}: expected KIND@RANK:STEP with KIND panic, exit, kill, stop, \
                 oom or nan"
            ))
        };
        let (kind, place) =
            text.strip_suffix(ALWAYS).unwrap_or(text).split_once('@').ok_or_else(invalid)?;
        let (rank, step) = place.split_once(':').ok_or_else(invalid)?;
        let kind = match kind {
            "panic" => Kind::Panic,
            "exit" => Kind::Exit,
            "kill" => Kind::Kill,
            "stop" => Kind::Stop,
            "oom" => Kind::Oom,
            "nan" => Kind::Nan,
            _ => return Err(invalid()),
        };
        let number = |text: &str| text.parse().map_err(|_| invalid());
        Ok(Self { kind, rank: number(rank)?, step: number(step)? })
    }

    /// Fails if this is the fault's rank and step. The kinds that the trainer has to carry out are
    /// returned.
    pub fn trigger(&self, rank: usize, step: usize) -> Option<Kind> {
        if (self.rank, self.step) != (rank, step) {
            return None;
        }
        tracing::warn!("{VARIABLE}: rank {rank} fails at step {step}: {:?}", self.kind);
        // SAFETY: signals to this process itself, and an exit without destructors.
        unsafe {
            match self.kind {
                Kind::Panic => panic!("injected fault ({VARIABLE})"),
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
    fn values_are_parsed_and_errors_name_the_form() {
        assert_eq!(
            Fault::parse("kill@1:20").unwrap(),
            Fault { kind: Kind::Kill, rank: 1, step: 20 }
        );
        for bad in ["kill", "kill@1", "fire@1:2", "kill@one:2"] {
            let e = Fault::parse(bad).unwrap_err();
            assert_eq!(e.exit_code(), 2);
            assert!(e.to_string().contains("KIND@RANK:STEP"), "{e}");
        }
        assert_eq!(Fault::parse("oom@1:2!").unwrap().trigger(1, 2), Some(Kind::Oom));
        assert_eq!(Fault::parse("oom@1:2").unwrap().trigger(0, 2), None);
    }
}
