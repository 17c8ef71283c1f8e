//! Forwards the output of the ranks, with the rank at the start of each line, and parses the
//! launcher's messages about processes that have ended.

use std::io::{self, BufRead, BufReader, PipeReader, PipeWriter, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use dw_base::{Error, Result};

/// Name of SIGUSR1 in messages of launchers.
pub(crate) const USR1: &str = "User defined signal 1";

/// Largest part of a line that is buffered, in bytes; longer lines are forwarded in parts.
const PIECE: u64 = 1 << 20;

/// What the launcher has printed about processes that ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct LauncherReport {
    /// The first message about a process that was ended by a signal.
    pub(crate) signal: Option<String>,
    /// The first exit code of a task. srun's own exit code is often that of the ranks that it
    /// ended afterwards.
    pub(crate) code: Option<i32>,
}

/// A thread that forwards output.
pub(crate) struct Output {
    thread: JoinHandle<()>,
    writing: Arc<AtomicBool>,
    /// The first failed write, other than to a closed pipe.
    problem: Arc<Mutex<Option<io::Error>>>,
}

impl Output {
    /// Whether all output has been forwarded and all writers are closed.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }

    /// Whether it is writing, or waits for a slow reader of this program's output.
    pub(crate) fn is_writing(&self) -> bool {
        self.writing.load(Ordering::Relaxed)
    }

    /// Why output was lost, such as a full disk. `None` if the reader was gone: it did not want
    /// more.
    pub(crate) fn take_problem(&self) -> Option<io::Error> {
        self.problem.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// Creates a pipe and starts a thread that forwards its lines to `to`, with `raw` unchanged. The
/// thread ends when all writers are closed.
///
/// # Errors
/// The pipe or the thread cannot be created: the ranks' output would be lost.
pub(crate) fn forward<W: Write + Send + 'static>(
    to: W,
    raw: bool,
    report: &Arc<Mutex<LauncherReport>>,
) -> Result<(PipeWriter, Output)> {
    const NAME: &str = "dw-output";
    let (from, writer) = std::io::pipe()
        .map_err(|e| Error::system("cannot open a pipe for the output", &e, Error::Usage))?;
    let report = report.clone();
    let writing = Arc::new(AtomicBool::new(false));
    let problem = Arc::new(Mutex::new(None));
    let copy = {
        let (writing, problem) = (writing.clone(), problem.clone());
        move || copy(from, to, raw, &report, &writing, &problem)
    };
    let thread = std::thread::Builder::new().name(NAME.into()).spawn(copy);
    let thread = thread.map_err(|e| Error::threads(&format!("the thread `{NAME}`"), &e))?;
    Ok((writer, Output { thread, writing, problem }))
}

fn copy(
    from: PipeReader,
    mut to: impl Write,
    raw: bool,
    report: &Mutex<LauncherReport>,
    writing: &AtomicBool,
    problem: &Mutex<Option<io::Error>>,
) {
    let mut lines = BufReader::new(from);
    let (mut line, mut continued) = (vec![], false);
    while lines.by_ref().take(PIECE).read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
        let text = String::from_utf8_lossy(&line).into_owned();
        let (signal, code) = (killed_by(&text), exit_code(&text));
        if signal.is_some() || code.is_some() {
            let mut report = report.lock().unwrap_or_else(PoisonError::into_inner);
            report.signal = report.signal.take().or(signal);
            report.code = report.code.or(code);
        }
        let (mark, start) = match split_rank(&text).filter(|_| !continued && !raw) {
            // The prefix is ASCII, so its length in `text` is its length in `line`.
            Some((rank, rest)) => (format!("[{rank}] "), text.len() - rest.len()),
            None => (String::new(), 0),
        };
        writing.store(true, Ordering::Relaxed);
        let written = to
            .write_all(mark.as_bytes())
            .and_then(|()| to.write_all(line.get(start..).unwrap_or(&line)))
            .and_then(|()| to.flush());
        writing.store(false, Ordering::Relaxed);
        // The job continues.
        if let Err(e) = written
            && e.kind() != io::ErrorKind::BrokenPipe
        {
            problem.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
        }
        continued = line.last() != Some(&b'\n');
        line.clear();
    }
}

/// Splits mpirun's `[1,RANK]<stderr>:text` or srun's `RANK: text` into rank and text.
fn split_rank(line: &str) -> Option<(usize, &str)> {
    if let Some(rest) = line.strip_prefix('[') {
        let (place, text) = rest.split_once("]<std")?;
        let text = text.strip_prefix("out>:").or_else(|| text.strip_prefix("err>:"))?;
        return Some((place.split_once(',')?.1.parse().ok()?, text));
    }
    let (rank, text) = line.trim_start().split_once(':')?;
    Some((rank.parse().ok()?, text.strip_prefix(' ').unwrap_or(text)))
}

/// The signal, from a message of mpirun or srun about a process that was ended by one.
pub(crate) fn killed_by(line: &str) -> Option<String> {
    if let Some((_, rest)) = line.split_once(" exited on signal ") {
        return Some(format!("signal {}", rest.trim().trim_end_matches('.')));
    }
    let signals = ["Killed", "Aborted", "Segmentation fault", "Bus error", USR1];
    let killed = line.contains("srun: error:") && signals.iter().any(|s| line.contains(s));
    killed.then(|| line.trim().trim_start_matches("srun: error: ").to_owned())
}

/// The exit code, from srun's message about a task that exited.
pub(crate) fn exit_code(line: &str) -> Option<i32> {
    let (_, code) = line.strip_prefix("srun: error: ")?.split_once(": Exited with exit code ")?;
    code.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_output_is_recorded() {
        let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
        let (mut writer, output) = forward(full, true, &Arc::default()).unwrap();
        writer.write_all(b"result\n").unwrap();
        drop(writer);
        let Output { thread, problem, .. } = output;
        thread.join().unwrap();
        let e = problem.lock().unwrap().take().unwrap();
        assert_eq!(e.kind(), io::ErrorKind::StorageFull);
    }

    #[test]
    fn ranks_and_signals_are_parsed() {
        assert_eq!(split_rank("[1,3]<stderr>:loss: 4\n"), Some((3, "loss: 4\n")));
        assert_eq!(split_rank("[1,0]<stdout>:\n"), Some((0, "\n")));
        assert_eq!(split_rank(" 5: text: more\n"), Some((5, "text: more\n")));
        assert_eq!(split_rank("error: no such thing\n"), None);
        assert_eq!(split_rank("[rank 1] error: x\n"), None);
        let line = "mpirun noticed that process rank 1 with PID 0 on node n1 exited on signal 9 \
                    (Killed).\n";
        assert_eq!(killed_by(line).unwrap(), "signal 9 (Killed)");
        assert_eq!(killed_by("srun: error: n1: task 1: Killed\n").unwrap(), "n1: task 1: Killed");
    }
}
