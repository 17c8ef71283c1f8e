//! Escaping of control characters in untrusted text (names, categories, paths).
//!
//! Terminal escape sequences can hide lines, set the window title and, on some terminals, inject
//! input. Messages that may contain untrusted text are therefore escaped: [`shown`] for a single
//! value inside a message, [`lines`] for a complete message.

use std::fmt::{self, Display, Write as _};

/// Displays a value with control characters escaped. Created by [`shown`] and [`lines`].
#[derive(Debug, Clone, Copy)]
pub struct Safe<T> {
    text: T,
    /// Whether line breaks and tabs are kept.
    keep_lines: bool,
}

/// Escapes all control characters in a value, including line breaks, for example as `\u{1b}`.
pub fn shown<T: Display>(text: T) -> Safe<T> {
    Safe { text, keep_lines: false }
}

/// Escapes a complete message: like [`shown`], but line breaks and tabs are kept.
pub fn lines<T: Display>(text: T) -> Safe<T> {
    Safe { text, keep_lines: true }
}

impl<T: Display> Display for Safe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(Escape { out: f, keep_lines: self.keep_lines }, "{}", self.text)
    }
}

/// Writer that escapes the characters matched by [`is_unsafe`].
struct Escape<'a, 'b> {
    out: &'a mut fmt::Formatter<'b>,
    keep_lines: bool,
}

impl fmt::Write for Escape<'_, '_> {
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

/// Formats an error with its chain of sources, separated by `: `. Some libraries (libloading) give
/// the reason only in the source.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(e) = cause {
        let _ = write!(text, ": {e}");
        cause = e.source();
    }
    text
}

/// Whether a character must be escaped: control characters (C0, DEL and C1), line and paragraph
/// separators, and Unicode bidirectional controls, which can make one name look like another.
pub fn is_unsafe(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}')
        || matches!(c, '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Escapes serialised JSON as `\uXXXX` without changing its value. Line breaks and tabs are kept:
/// in JSON they occur only between tokens.
pub fn json(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) && !matches!(c, '\n' | '\r' | '\t') {
            // All are in the basic multilingual plane: one UTF-16 code unit is enough.
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
    fn control_characters_are_escaped() {
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
            "other scripts are not escaped"
        );
    }
}
