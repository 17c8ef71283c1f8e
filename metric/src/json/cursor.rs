//! JSON values from bytes, one after another, without a tree: strict about the format, exact about numbers.

use std::borrow::Cow;

/// What a value can be wrong in.
#[derive(Debug)]
pub(crate) struct Bad {
    /// Byte where the value starts; from the start of the file once a stream has passed it on.
    pub(crate) at: u64,
    /// Field of the object, if it is in one that we read.
    pub(crate) field: Option<&'static str>,
    /// Expected and found.
    pub(crate) problem: String,
}

/// Why a value could not be read.
#[derive(Debug)]
pub(crate) enum Fault {
    /// The bytes end within it.
    End,
    /// It is not what was expected.
    Bad(Box<Bad>),
    /// The file could not be read.
    Io(std::io::Error),
}

impl Fault {
    /// In this field of an object.
    fn of(mut self, field: &'static str) -> Self {
        if let Self::Bad(bad) = &mut self {
            bad.field.get_or_insert(field);
        }
        self
    }
}

/// Result of reading a value.
pub(crate) type Parse<T> = Result<T, Fault>;

/// Deepest nesting of a value that is passed over.
const DEEPEST: usize = 128;

/// Powers of ten that are exact as f64.
const POWERS: [f64; 23] = [
    1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16,
    1e17, 1e18, 1e19, 1e20, 1e21, 1e22,
];

/// A place in bytes of JSON.
#[derive(Debug)]
pub(crate) struct Cursor<'a> {
    pub(crate) bytes: &'a [u8],
    pub(crate) at: usize,
}

impl<'a> Cursor<'a> {
    /// A fault here: `expected`, and what stands here instead.
    pub(crate) fn bad<T>(&self, expected: &str) -> Parse<T> {
        Err(match self.found() {
            None => Fault::End,
            Some(found) => self.fault(format!("expected {expected}, found {found}")),
        })
    }

    /// A fault here.
    pub(crate) fn fault(&self, problem: String) -> Fault {
        Fault::Bad(Box::new(Bad { at: self.at as u64, field: None, problem }))
    }

    /// What stands here, in words.
    fn found(&self) -> Option<String> {
        let rest = &self.bytes[self.at..];
        Some(match rest.first()? {
            b'"' => "a string".into(),
            b'{' => "an object".into(),
            b'[' => "a list".into(),
            _ => {
                // A word that reaches the end may go on beyond it.
                let end =
                    rest.iter().position(|b| !(b.is_ascii_alphanumeric() || b"+-.".contains(b)))?;
                let word = &rest[..end.clamp(1, 40)];
                format!("`{}`", String::from_utf8_lossy(word))
            }
        })
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.bytes.get(self.at) {
            self.at += 1;
        }
    }

    /// The next byte after white space, which stays.
    pub(crate) fn peek(&mut self) -> Parse<u8> {
        self.space();
        self.bytes.get(self.at).copied().ok_or(Fault::End)
    }

    /// Takes one byte of punctuation.
    pub(crate) fn take(&mut self, byte: u8, expected: &str) -> Parse<()> {
        if self.peek()? != byte {
            return self.bad(expected);
        }
        self.at += 1;
        Ok(())
    }

    /// After an element: `true` for a comma, `false` for `close`.
    pub(crate) fn more(&mut self, close: u8) -> Parse<bool> {
        let next = self.peek()?;
        if next != b',' && next != close {
            return self.bad(&format!("`,` or `{}`", close as char));
        }
        self.at += 1;
        Ok(next == b',')
    }

    /// Reads an object: `field` reads the value of each key.
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

    /// A key and its colon.
    pub(crate) fn key(&mut self) -> Parse<Cow<'a, [u8]>> {
        let key = self.string("a key")?;
        self.take(b':', "`:`")?;
        Ok(if key.contains(&b'\\') {
            Cow::Owned(self.decoded(key)?.into_bytes())
        } else {
            Cow::Borrowed(key)
        })
    }

    /// Reads a field's value; a fault names the field.
    pub(crate) fn field<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self) -> Parse<T>,
    ) -> Parse<T> {
        read(self).map_err(|f| f.of(name))
    }

    /// A field that must be there.
    pub(crate) fn required<T>(&self, name: &'static str, value: Option<T>) -> Parse<T> {
        value.ok_or_else(|| self.fault("is missing".into()).of(name))
    }

    /// A string without its quotes, escapes as they are.
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

    /// The text of a string's bytes.
    fn decoded(&self, string: &[u8]) -> Parse<String> {
        let quoted = [b"\"", string, b"\""].concat();
        serde_json::from_slice(&quoted)
            .map_err(|e| self.fault(format!("a string before this is damaged: {e}")))
    }

    /// A string's text.
    pub(crate) fn text(&mut self) -> Parse<String> {
        let string = self.string("a string")?;
        self.decoded(string)
    }

    /// Takes `null` if it stands here.
    pub(crate) fn null(&mut self) -> Parse<bool> {
        Ok(self.peek()? == b'n' && self.word(b"null").is_ok())
    }

    fn word(&mut self, word: &[u8]) -> Parse<()> {
        let rest = &self.bytes[self.at..];
        if !rest.starts_with(word) {
            return if word.starts_with(rest) { Err(Fault::End) } else { self.bad("a value") };
        }
        self.at += word.len();
        Ok(())
    }

    /// A flag: a number (0 is false), `true` or `false`.
    pub(crate) fn flag(&mut self) -> Parse<bool> {
        match self.peek()? {
            b't' => self.word(b"true").map(|()| true),
            b'f' => self.word(b"false").map(|()| false),
            _ => Ok(self.number()? != 0.0),
        }
    }

    /// Digits from `i` on, their end and value (wrapped if there are too many).
    fn digits(&self, mut i: usize, mut value: u64) -> (usize, u64) {
        while let Some(d) = self.bytes.get(i).map(|b| b.wrapping_sub(b'0')).filter(|d| *d < 10) {
            value = value.wrapping_mul(10).wrapping_add(u64::from(d));
            i += 1;
        }
        (i, value)
    }

    /// A finite number, rounded exactly.
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
            // Both are exact, so the one division rounds once.
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

    /// A whole number, also as 1.0.
    pub(crate) fn id(&mut self) -> Parse<i64> {
        const EXPECTED: &str = "a whole number";
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

    /// `[x, y, w, h]`
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

    /// Passes over any value.
    pub(crate) fn skip(&mut self) -> Parse<()> {
        self.skip_within(DEEPEST)
    }

    fn skip_within(&mut self, depth: usize) -> Parse<()> {
        if depth == 0 {
            return Err(self.fault(format!("expected at most {DEEPEST} levels, found more")));
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
            b'-' | b'0'..=b'9' => self.number().map(|_| ()),
            _ => self.bad("a value"),
        }
    }
}
