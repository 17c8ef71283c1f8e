//! The position of the parser in a memory-mapped annotation file: named in errors, and used to
//! release text that has been parsed.

use std::cell::Cell;
use std::fmt;

use memmap2::{Mmap, UncheckedAdvice};

/// Parsed text is released from memory once this many bytes have accumulated.
const WINDOW: usize = 32 << 20;

/// The position of the parser. Its [`Display`](fmt::Display) is the entry, as `images[3]`.
pub(super) struct Position<'t> {
    /// Section and number of the entry; an empty section is the top level.
    pub(super) entry: Cell<(&'static str, usize)>,
    text: &'t Mmap,
    /// Bytes at the front that were released.
    released: Cell<usize>,
}

impl<'t> Position<'t> {
    /// The beginning of `text`.
    pub(super) fn new(text: &'t Mmap) -> Self {
        Self { entry: Cell::new(("", 0)), text, released: Cell::new(0) }
    }

    /// Releases the pages of the text before `here`, a slice of the text that the parser has
    /// reached, from the memory of this process.
    pub(super) fn release_before(&self, here: &[u8]) {
        let position = (here.as_ptr() as usize).wrapping_sub(self.text.as_ptr() as usize);
        let from = self.released.get();
        if position >= self.text.len() || position < from + WINDOW {
            return;
        }
        let length = (position - from) / 4096 * 4096;
        // SAFETY: the map is read-only and backed by a file, so pages that are accessed again,
        // through strings borrowed from them, are read from the file.
        let _ =
            unsafe { self.text.unchecked_advise_range(UncheckedAdvice::DontNeed, from, length) };
        self.released.set(from + length);
    }
}

impl fmt::Display for Position<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry.get() {
            ("", _) => f.write_str("top level"),
            (section, i) => write!(f, "{section}[{i}]"),
        }
    }
}
