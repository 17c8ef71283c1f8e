//! Text from files (names, categories, paths) on its way to a terminal or a log.
//!
//! A terminal obeys the control characters in what it prints: escape sequences can hide lines, set the
//! title or, on some terminals, type commands. Every message that may hold foreign text passes through
//! here: [`shown`] for one name inside a message, [`lines`] for a message as a whole.

use std::fmt::{self, Display, Write as _};

/// Text that is safe to print; made by [`shown`] and [`lines`].
#[derive(Debug, Clone, Copy)]
pub struct Safe<T> {
    text: T,
    keep_lines: bool,
}

/// One piece of foreign text: control characters, line breaks included, become escapes such as `\u{1b}`.
pub fn shown<T: Display>(text: T) -> Safe<T> {
    Safe { text, keep_lines: false }
}

/// A whole message: as [`shown`], but line breaks and tabs stay.
pub fn lines<T: Display>(text: T) -> Safe<T> {
    Safe { text, keep_lines: true }
}

impl<T: Display> Display for Safe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Filter { out: f, keep_lines: self.keep_lines }, "{}", self.text)
    }
}

/// Passes text on, with escapes for what [`is_unsafe`] names.
struct Filter<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    keep_lines: bool,
}

impl fmt::Write for Filter<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let bad = |c: char| is_unsafe(c) && !(self.keep_lines && matches!(c, '\n' | '\t'));
        let mut rest = text;
        while let Some((at, c)) = rest.char_indices().find(|&(_, c)| bad(c)) {
            self.out.write_str(&rest[..at])?;
            write!(self.out, "{}", c.escape_default())?;
            rest = &rest[at + c.len_utf8()..];
        }
        self.out.write_str(rest)
    }
}

/// An error's text with the texts of its causes: some libraries (libloading) say only in the cause what failed.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let _ = write!(text, ": {e}");
        cause = e.source();
    }
    text
}

/// Control characters (C0, DEL and C1), line and paragraph separators, and the marks that reorder the
/// text around them (Unicode bidirectional controls), with which one name can pass for another.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Serialised JSON that is safe to print and means the same: what [`is_unsafe`] names becomes `\uXXXX`.
/// Line breaks and tabs stay; in JSON they stand between values alone.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && !matches!(c, '\n' | '\r' | '\t') {
            // All of them lie in the basic plane, so that one unit of UTF-16 is enough.
            let _ = write!(out, "\\u{:04x}", c as u32);
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escape_sequences_do_not_reach_the_terminal() {
        let name = "a\u{1b}]0;title\u{7}\r\n\u{9b}31m\u{202e}gpj.jpg";
        assert_eq!(shown(name).to_string(), r"a\u{1b}]0;title\u{7}\r\n\u{9b}31m\u{202e}gpj.jpg");
        assert_eq!(
            lines("error: a\u{1b}[2J\nhint:\tb").to_string(),
            "error: a\\u{1b}[2J\nhint:\tb"
        );
        let raw = "{\n\"a\u{9b}\": \"\u{7f}\u{202e}Ü\"}";
        assert_eq!(json(raw), "{\n\"a\\u009b\": \"\\u007f\\u202eÜ\"}");
        assert_eq!(
            shown("Straße 鳥 😀").to_string(),
            "Straße 鳥 😀",
            "other alphabets stay readable"
        );
    }
}
