//! A source as a stream of JSON values: a window moves over it, and a value that it cuts is read again in a larger one.

use std::path::Path;

use super::cursor::{Cursor, Fault, Parse};
use super::source::Source;
use crate::error::Error;

/// Bytes read at a time.
const STEP: usize = 1 << 18;

/// A window that moves over a source.
#[derive(Debug)]
pub(crate) struct Stream<'a> {
    source: &'a Source,
    window: &'a mut Vec<u8>,
    /// Place of the window in the source.
    offset: u64,
    /// Next byte in the window.
    at: usize,
}

impl<'a> Stream<'a> {
    /// From byte `offset` on, with a first window of `first` bytes in the memory of `window`.
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
        // Some editors put a byte-order mark in front, which is no part of JSON.
        let mark = offset == 0 && window.starts_with(b"\xef\xbb\xbf");
        Ok(Self { source, window, offset, at: if mark { 3 } else { 0 } })
    }

    /// Place of the next byte in the source.
    pub(crate) fn place(&self) -> u64 {
        self.offset + self.at as u64
    }

    /// The window from the next byte on.
    pub(crate) fn window(&self) -> &[u8] {
        &self.window[self.at..]
    }

    /// Moves on by `n` bytes of the window.
    pub(crate) fn advance(&mut self, n: usize) {
        self.at += n;
    }

    /// Reads one value; `read` may be called again from the value's start on.
    #[inline]
    pub(crate) fn next<T>(&mut self, mut read: impl FnMut(&mut Cursor) -> Parse<T>) -> Parse<T> {
        loop {
            let mut cursor = Cursor { bytes: self.window, at: self.at };
            match read(&mut cursor) {
                Ok(value) => {
                    self.at = cursor.at;
                    return Ok(value);
                }
                Err(Fault::End) if self.widen()? => {}
                Err(Fault::Bad(mut bad)) => {
                    bad.at += self.offset;
                    return Err(Fault::Bad(bad));
                }
                Err(fault) => return Err(fault),
            }
        }
    }

    /// Reads a list: `read` an element, `keep` it with its number.
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

    /// Expects nothing but white space up to the end of the source.
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

    /// Reads on; `false` at the end of the source.
    fn widen(&mut self) -> Parse<bool> {
        let end = self.offset + self.window.len() as u64;
        self.window.drain(..self.at);
        (self.offset, self.at) = (self.offset + self.at as u64, 0);
        let before = self.window.len();
        self.source.append(end, STEP.max(before), self.window).map_err(Fault::Io)?;
        Ok(self.window.len() > before)
    }
}

/// The error of a fault in `item` of a file of `length` bytes.
pub(crate) fn error(path: &Path, item: &str, fault: Fault, length: u64) -> Error {
    match fault {
        Fault::End => Error::data(
            path,
            item,
            format!(
                "the file ends within it, at byte {length}\nhint: it was cut; write or copy it again"
            ),
        ),
        Fault::Io(e) => Error::data(path, item, format!("cannot be read: {e}")),
        Fault::Bad(bad) => {
            let field = bad.field.map_or_else(String::new, |f| format!("`{f}`: "));
            Error::data(path, item, format!("{field}{} (byte {})", bad.problem, bad.at))
        }
    }
}
