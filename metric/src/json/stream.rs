//! A source as a stream of JSON values. A window moves over the source; a value that is cut off at
//! the end of the window is parsed again after the window has been extended.

use std::path::Path;

use dw_base::Error;

use super::cursor::{Cursor, Fault, Parse};
use super::source::Source;

/// Result of reading an item of a file: a fault comes with the item's name, as `results[3]`.
pub(crate) type ItemResult<T> = Result<T, (String, Fault)>;

/// Minimum number of bytes by which the window is extended.
const STEP: usize = 1 << 18;

/// A window that moves over a source.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    source: &'a Source,
    window: &'a mut Vec<u8>,
    /// Offset of the window in the source.
    offset: u64,
    /// Index of the next byte in the window.
    at: usize,
}

impl<'a> Stream<'a> {
    /// A stream from byte `offset` on, whose first window has `first` bytes. `window` is the
    /// buffer.
    pub(crate) fn new(
        source: &'a Source,
        offset: u64,
        first: usize,
        window: &'a mut Vec<u8>,
    ) -> Parse<Self> {
        window.clear();
        source.append(offset, first, window).map_err(Fault::Io)?;
        if offset == 0 && (window.starts_with(b"\xff\xfe") || window.starts_with(b"\xfe\xff")) {
            let problem = "expected UTF-8, found UTF-16\nhint: save the file as UTF-8".into();
            return Err(Cursor { bytes: window, at: 0 }.fault(problem));
        }
        // JSON has no byte-order mark, but some editors write one.
        let mark = offset == 0 && window.starts_with(b"\xef\xbb\xbf");
        Ok(Self { source, window, offset, at: if mark { 3 } else { 0 } })
    }

    /// Offset of the next byte in the source.
    pub(crate) fn position(&self) -> u64 {
        self.offset + self.at as u64
    }

    /// The window from the next byte on.
    pub(crate) fn window(&self) -> &[u8] {
        &self.window[self.at..]
    }

    /// Skips `n` bytes of the window.
    pub(crate) fn advance(&mut self, n: usize) {
        self.at += n;
    }

    /// Parses one value. If the value is cut off at the end of the window, `read` is called again
    /// from its start.
    #[inline]
    pub(crate) fn next<T>(&mut self, mut read: impl FnMut(&mut Cursor) -> Parse<T>) -> Parse<T> {
        loop {
            let mut cursor = Cursor { bytes: self.window, at: self.at };
            match read(&mut cursor) {
                Ok(value) => {
                    self.at = cursor.at;
                    return Ok(value);
                }
                Err(Fault::End) if self.extend()? => {}
                Err(Fault::Bad(mut bad)) => {
                    bad.at += self.offset;
                    return Err(Fault::Bad(bad));
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Parses a list: `read` parses an element, `keep` stores it. An error has the element's index.
    pub(crate) fn list<T>(
        &mut self,
        mut read: impl FnMut(&mut Cursor) -> Parse<T>,
        mut keep: impl FnMut(T),
    ) -> Result<(), (usize, Fault)> {
        let opened = self.next(|c| {
            c.take(b'[', "a list")?;
            let empty = c.peek()? == b']';
            c.at += usize::from(empty);
            Ok(!empty)
        });
        let mut more = opened.map_err(|f| (0, f))?;
        let mut n = 0;
        while more {
            let (value, comma) =
                self.next(|c| Ok((read(c)?, c.more(b']')?))).map_err(|f| (n, f))?;
            keep(value);
            (more, n) = (comma, n + 1);
        }
        Ok(())
    }

    /// Checks that only white space is left in the source.
    pub(crate) fn finish(&mut self) -> Parse<()> {
        let more = |c: &mut Cursor| {
            c.peek()?;
            Err(c.fault("expected the end of the file, found more".into()))
        };
        match self.next(more) {
            Err(Fault::End) => Ok(()),
            other => other,
        }
    }

    /// Extends the window; `false` at the end of the source.
    fn extend(&mut self) -> Parse<bool> {
        let end = self.offset + self.window.len() as u64;
        self.window.drain(..self.at);
        (self.offset, self.at) = (self.offset + self.at as u64, 0);
        let before = self.window.len();
        self.source.append(end, STEP.max(before), self.window).map_err(Fault::Io)?;
        Ok(self.window.len() > before)
    }
}

/// The error for a fault in `item` of a file of `length` bytes.
pub(crate) fn error(path: &Path, item: &str, fault: Fault, length: u64) -> Error {
    match fault {
        Fault::End => Error::data(
            path,
            item,
            format!(
                "the file ends within it, at byte {length}\n\
                 hint: the file is truncated; write or copy it again"
            ),
        ),
        Fault::Io(e) => Error::data(path, item, format!("cannot read the file: {e}")),
        Fault::Bad(bad) => {
            let field = bad.field.map_or_else(String::new, |f| format!("`{f}`: "));
            Error::data(path, item, format!("{field}{} (byte {})", bad.problem, bad.at))
        }
    }
}
