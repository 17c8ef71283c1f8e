//! A strict JSON parser that builds no tree and rounds numbers correctly.

use std::borrow::Cow;

/// An invalid value.
#[derive(Debug)]
pub(crate) struct Bad {
    /// Offset of the value in bytes: in the cursor's bytes, or in the file once returned by a
    /// stream.
    pub(crate) at: u64,
    /// Field that holds the value, if any.
    pub(crate) field: Option<&'static str>,
    /// What was expected and what was found.
    pub(crate) problem: String,
}

/// Why a value could not be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The bytes end within the value.
    End,
    /// The value is invalid.
    Bad(Box<Bad>),
    /// The file could not be read.
    Io(std::io::Error),
}

impl Fault {
    /// Adds the field that holds the value, unless an inner one is set.
    fn of(mut self, field: &'static str) -> Self {
        if let Self::Bad(bad) = &mut self {
            bad.field.get_or_insert(field);
        }
        self
    }
}

/// Result of parsing a value.
pub(crate) type Parse<T> = Result<T, Fault>;

/// Maximum nesting of a skipped value.
const MAX_DEPTH: usize = 128;

/// The powers of ten that are exact as f64.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// A position in JSON text.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    /// The text.
    pub(crate) bytes: &'a [u8],
    /// Index of the next byte.
    pub(crate) at: usize,
}

impl<'a> Cursor<'a> {
    /// A fault at this position that names what was expected and what was found.
    pub(crate) fn bad<T>(&self, expected: &str) -> Parse<T> {
        Err(match self.found() {
            None => Fault::End,
            Some(found) => self.fault(format!("expected {expected}, found {found}")),
        })
    }

    /// A fault at this position.
    pub(crate) fn fault(&self, problem: String) -> Fault {
        Fault::Bad(Box::new(Bad { at: self.at as u64, field: None, problem }))
    }

    /// Describes the value at this position; `None` if it may continue beyond the end of the bytes.
    fn found(&self) -> Option<String> {
        let rest = &self.bytes[self.at..];
        Some(match rest.first()? {
            b'"' => "a string".into(),
            b'{' => "an object".into(),
            b'[' => "a list".into(),
            _ => {
                let end =
                    rest.iter().position(|b| !(b.is_ascii_alphanumeric() || b"+-.".contains(b)))?;
                let word = &rest[..end.clamp(1, 40)];
                format!("`{}`", String::from_utf8_lossy(word))
            }
        })
    }

    /// Skips white space.
    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    /// Skips white space and returns the next byte without consuming it.
    pub(crate) fn peek(&mut self) -> Parse<u8> {
        self.space();
        self.bytes.get(self.at).copied().ok_or(Fault::End)
    }

    /// Consumes one byte of punctuation.
    pub(crate) fn take(&mut self, byte: u8, expected: &str) -> Parse<()> {
        if self.peek()? != byte {
            return self.bad(expected);
        }
        self.at += 1;
        Ok(())
    }

    /// Consumes what follows an element; `true` for a comma, `false` for `close`.
    pub(crate) fn more(&mut self, close: u8) -> Parse<bool> {
        let next = self.peek()?;
        if next != b',' && next != close {
            return self.bad(&format!("`,` or `{}`", close as char));
        }
        self.at += 1;
        Ok(next == b',')
    }

    /// Parses an object; `field` gets each key and parses its value.
    pub(crate) fn object(
        &mut self,
        mut field: impl FnMut(&mut Self, &[u8]) -> Parse<()>,
    ) -> Parse<()> {
        self.take(b'{', "an object")?;
        if self.peek()? == b'}' {
            self.at += 1;
            return Ok(());
        }
        loop {
            let key = self.key()?;
            field(self, &key)?;
            if !self.more(b'}')? {
                return Ok(());
            }
        }
    }

    /// Parses a key and its colon.
    pub(crate) fn key(&mut self) -> Parse<Cow<'a, [u8]>> {
        let key = self.string("a key")?;
        self.take(b':', "`:`")?;
        Ok(if key.contains(&b'\\') {
            Cow::Owned(self.decoded(key)?.into_bytes())
        } else {
            Cow::Borrowed(key)
        })
    }

    /// Parses the value of field `name`, and attributes faults to this field.
    pub(crate) fn field<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Parse<T>,
    ) -> Parse<T> {
        read(self).map_err(|f| f.of(name))
    }

    /// The value of a required field.
    pub(crate) fn required<T>(&self, name: &'static str, value: Option<T>) -> Parse<T> {
        value.ok_or_else(|| self.fault("is missing".into()).of(name))
    }

    /// Parses a string; returns the bytes between the quotes, escapes unchanged.
    fn string(&mut self, expected: &str) -> Parse<&'a [u8]> {
        self.take(b'"', expected)?;
        let start = self.at;
        loop {
            match self.bytes.get(self.at) {
                None => return Err(Fault::End),
                Some(b'"') => break,
                Some(b'\\') => self.at += 2,
                Some(0..32) => return self.bad("no line breaks or control characters in a string"),
                Some(_) => self.at += 1,
            }
        }
        self.at += 1;
        Ok(&self.bytes[start..self.at - 1])
    }

    /// Decodes the bytes of [`Self::string`].
    fn decoded(&self, string: &[u8]) -> Parse<String> {
        let quoted = [b"\"", string, b"\""].concat();
        serde_json::from_slice(&quoted)
            .map_err(|e| self.fault(format!("invalid string before this byte: {e}")))
    }

    /// Parses a string.
    pub(crate) fn text(&mut self) -> Parse<String> {
        let string = self.string("a string")?;
        self.decoded(string)
    }

    /// Parses a string; `None` if it is not Unicode, such as a half of a surrogate pair (`\ud800`).
    pub(crate) fn text_if_unicode(&mut self) -> Parse<Option<String>> {
        let string = self.string("a string")?;
        Ok(self.decoded(string).ok())
    }

    /// Whether a number is next.
    pub(crate) fn is_number(&mut self) -> Parse<bool> {
        Ok(matches!(self.peek()?, b'-' | b'0'..=b'9'))
    }

    /// Parses the name of a category: a string, or a number, which is taken as text. `None` for
    /// `null`.
    pub(crate) fn name(&mut self) -> Parse<Option<String>> {
        if self.null()? {
            return Ok(None);
        }
        if !self.is_number()? {
            return self.text().map(Some);
        }
        let start = self.at;
        self.number()?;
        Ok(Some(String::from_utf8_lossy(&self.bytes[start..self.at]).into_owned()))
    }

    /// Consumes `null` if it is next.
    pub(crate) fn null(&mut self) -> Parse<bool> {
        Ok(self.peek()? == b'n' && self.word(b"null").is_ok())
    }

    /// Consumes a literal such as `true`.
    fn word(&mut self, word: &[u8]) -> Parse<()> {
        let rest = &self.bytes[self.at..];
        if !rest.starts_with(word) {
            return if word.starts_with(rest) { Err(Fault::End) } else { self.bad("a value") };
        }
        self.at += word.len();
        Ok(())
    }

    /// Parses a flag: `true`, `false`, or a number (0 is false).
    pub(crate) fn flag(&mut self) -> Parse<bool> {
        match self.peek()? {
            b't' => self.word(b"true").map(|()| true),
            b'f' => self.word(b"false").map(|()| false),
            _ => Ok(self.number()? != 0.0),
        }
    }

    /// Scans digits from index `i` on; returns the index of their end, and `value` with the digits
    /// appended (wrapping on overflow).
    fn digits(&self, mut i: usize, mut value: u64) -> (usize, u64) {
        while let Some(d) = self.bytes.get(i).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(d));
            i += 1;
        }
        (i, value)
    }

    /// Parses a finite number, correctly rounded.
    pub(crate) fn number(&mut self) -> Parse<f64> {
        const EXPECTED: &str = "a finite number";
        let minus = self.peek()? == b'-';
        let first = self.at + usize::from(minus);
        let (point, whole) = self.digits(first, 0);
        let length = point - first;
        if length == 0 || (length > 1 && self.bytes[first] == b'0') {
            return self.bad(EXPECTED);
        }
        let (mut end, mut mantissa, mut scale) = (point, whole, 0);
        if self.bytes.get(point) == Some(&b'.') {
            (end, mantissa) = self.digits(point + 1, whole);
            scale = end - point - 1;
            if scale == 0 && end < self.bytes.len() {
                return self.bad(EXPECTED);
            }
        }
        let Some(next) = self.bytes.get(end) else { return Err(Fault::End) };
        let exact = !matches!(next, b'e' | b'E');
        if exact && length + scale <= 15 {
            // Both operands are exact, so the division rounds once.
            let value = mantissa as f64 / POWERS[scale];
            self.at = end;
            return Ok(if minus { -value } else { value });
        }
        if !exact {
            let sign = usize::from(matches!(self.bytes.get(end + 1), Some(b'+' | b'-')));
            let from = end + 1 + sign;
            (end, _) = self.digits(from, 0);
            if end == self.bytes.len() {
                return Err(Fault::End);
            }
            if end == from {
                return self.bad(EXPECTED);
            }
        }
        let value =
            fast_float2::parse::<f64, _>(&self.bytes[self.at..end]).ok().filter(|v| v.is_finite());
        let Some(value) = value else { return self.bad(EXPECTED) };
        self.at = end;
        Ok(value)
    }

    /// Parses an integer; forms such as `1.0` are accepted too.
    pub(crate) fn id(&mut self) -> Parse<i64> {
        const EXPECTED: &str = "an integer";
        let minus = self.peek()? == b'-';
        let first = self.at + usize::from(minus);
        let (end, value) = self.digits(first, 0);
        let plain =
            end > first && end - first <= 18 && (end - first == 1 || self.bytes[first] != b'0');
        match self.bytes.get(end) {
            Some(b'.' | b'e' | b'E') => {}
            Some(_) if plain => {
                self.at = end;
                return Ok(if minus { -(value as i64) } else { value as i64 });
            }
            // 19 digits, as in 64-bit hashes, may not fit in an `i64`.
            Some(_) if end - first == 19 && self.bytes[first] != b'0' => {
                let text = str::from_utf8(&self.bytes[self.at..end]).unwrap_or_default();
                let Ok(value) = text.parse() else { return self.bad(EXPECTED) };
                self.at = end;
                return Ok(value);
            }
            _ => {
                return if self.at >= self.bytes.len() || end == self.bytes.len() {
                    Err(Fault::End)
                } else {
                    self.bad(EXPECTED)
                };
            }
        }
        let start = self.at;
        let value = self.number()?;
        if value.fract() != 0.0 || value.abs() >= 9e15 {
            self.at = start;
            return self.bad(EXPECTED);
        }
        Ok(value as i64)
    }

    /// Parses `[x, y, w, h]`.
    pub(crate) fn bbox(&mut self) -> Parse<[f64; 4]> {
        const EXPECTED: &str = "4 numbers";
        let (mut out, mut n) = ([0.0; 4], 0);
        self.peek()?;
        let start = self.at;
        self.take(b'[', EXPECTED)?;
        if self.peek()? != b']' {
            loop {
                let value = self.number()?;
                if let Some(slot) = out.get_mut(n) {
                    *slot = value;
                }
                n += 1;
                if !self.more(b']')? {
                    break;
                }
            }
        }
        if n != 4 {
            self.at = start;
            return Err(self.fault(format!("expected {EXPECTED}, found {n}")));
        }
        Ok(out)
    }

    /// Skips any value.
    pub(crate) fn skip(&mut self) -> Parse<()> {
        self.skip_within(MAX_DEPTH)
    }

    fn skip_within(&mut self, depth: usize) -> Parse<()> {
        if depth == 0 {
            return Err(
                self.fault(format!("expected at most {MAX_DEPTH} levels of nesting, found more"))
            );
        }
        match self.peek()? {
            b'{' => self.object(|c, _| c.skip_within(depth - 1)),
            b'[' => {
                self.at += 1;
                if self.peek()? == b']' {
                    self.at += 1;
                    return Ok(());
                }
                loop {
                    self.skip_within(depth - 1)?;
                    if !self.more(b']')? {
                        return Ok(());
                    }
                }
            }
            b'"' => self.string("a string").map(|_| ()),
            b't' => self.word(b"true"),
            b'f' => self.word(b"false"),
            b'n' => self.word(b"null"),
            // Python's json module writes these.
            b'N' => self.word(b"NaN"),
            b'I' => self.word(b"Infinity"),
            b'-' if self.bytes.get(self.at + 1) == Some(&b'I') => self.word(b"-Infinity"),
            b'-' | b'0'..=b'9' => self.number().map(|_| ()),
            _ => self.bad("a value"),
        }
    }
}
