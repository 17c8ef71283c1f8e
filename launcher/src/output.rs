//! The ranks' output on its way through the supervisor: the rank in front of each line, and what the launcher says between them
//! about processes that ended.

use std::io::{BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crate::collectives::{Error, Result};

/// What launchers call the signal that asks for a checkpoint.
pub(crate) const USR1: &str = "User defined signal 1";

/// Most bytes of a line that are held at a time; a longer one is copied in pieces.
const PIECE: u64 = 1 << 20;

/// What a launcher said about processes that ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Said {
    /// How a signal ended the first of those that one ended.
    pub(crate) death: Option<String>,
    /// Exit code of the first that chose one: srun's own is often that of the ranks it ended then.
    pub(crate) code: Option<i32>,
}

/// A pipe whose lines a thread copies to `to`, the rank in front; the thread ends with the last writer.
///
/// # Errors
/// No pipe or no thread: what the ranks write would be lost.
pub(crate) fn forward<W: Write + Send + 'static>(
    to: W,
    raw: bool,
    said: &Arc<Mutex<Said>>,
) -> Result<(PipeWriter, JoinHandle<()>)> {
    const NAME: &str = "dw-output";
    let (from, writer) =
        std::io::pipe().map_err(|e| Error::system("cannot open a pipe for the output", &e))?;
    let said = said.clone();
    let thread = std::thread::Builder::new().name(NAME.into());
    let thread = thread.spawn(move || copy(from, to, raw, &said));
    Ok((writer, thread.map_err(|e| Error::thread(NAME, &e))?))
}

fn copy(from: PipeReader, mut to: impl Write, raw: bool, said: &Mutex<Said>) {
    let mut lines = BufReader::new(from);
    let (mut line, mut within) = (vec![], false);
    while lines.by_ref().take(PIECE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        let (killed, code) = (death(&text), exit_code(&text));
        if killed.is_some() || code.is_some() {
            let mut said = said.lock().unwrap_or_else(PoisonError::into_inner);
            let first = said.clone();
            *said = Said { death: first.death.or(killed), code: first.code.or(code) };
        }
        let tag = untag(&text).filter(|_| !within);
        let text = match tag {
            Some((_, rest)) if raw => rest.to_owned(),
            Some((rank, rest)) => format!("[{rank}] {rest}"),
            None => text,
        };
        // A reader that has gone away does not end the training.
        let _ = to.write_all(text.as_bytes()).and_then(|()| to.flush());
        within = line.last() != Some(&b'\n');
        line.clear();
    }
}

/// Rank and text of mpirun's `[1,RANK]<stderr>:text` or srun's `RANK: text`.
fn untag(line: &str) -> Option<(usize, &str)> {
    if let Some(rest) = line.strip_prefix('[') {
        let (place, text) = rest.split_once("]<std")?;
        let text = text.strip_prefix("out>:").or_else(|| text.strip_prefix("err>:"))?;
        return Some((place.split_once(',')?.1.parse().ok()?, text));
    }
    let (rank, text) = line.trim_start().split_once(':')?;
    Some((rank.parse().ok()?, text.strip_prefix(' ').unwrap_or(text)))
}

/// What a launcher says about a process that a signal ended.
pub(crate) fn death(line: &str) -> Option<String> {
    if let Some((_, rest)) = line.split_once(" exited on signal ") {
        return Some(format!("signal {}", rest.trim().trim_end_matches('.')));
    }
    let words = ["Killed", "Aborted", "Segmentation fault", "Bus error", USR1];
    let killed = line.contains("srun: error:") && words.iter().any(|w| line.contains(w));
    killed.then(|| line.trim().trim_start_matches("srun: error: ").to_owned())
}

/// What srun says about a task that ended by itself.
pub(crate) fn exit_code(line: &str) -> Option<i32> {
    line.strip_prefix("srun: error: ")?
        .split_once(": Exited with exit code ")?
        .1
        .trim()
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_shows_the_rank() {
        assert_eq!(untag("[1,3]<stderr>:loss: 4\n"), Some((3, "loss: 4\n")));
        assert_eq!(untag("[1,0]<stdout>:\n"), Some((0, "\n")));
        assert_eq!(untag(" 5: text: more\n"), Some((5, "text: more\n")));
        assert_eq!(untag("error: no such thing\n"), None);
        assert_eq!(untag("[rank 1] error: x\n"), None);
        let line = "mpirun noticed that process rank 1 with PID 0 on node n1 exited on signal 9 (Killed).\n";
        assert_eq!(death(line).unwrap(), "signal 9 (Killed)");
        assert_eq!(death("srun: error: n1: task 1: Killed\n").unwrap(), "n1: task 1: Killed");
    }
}
