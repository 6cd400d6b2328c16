//! JSON text, walked once: what is a value, where it ends, and nothing about what it means.
//!
//! `message` walks a message with this and keeps the places of what it needs, `params` the params of a call. It
//! allocates nothing and doesn't recurse, so that neither a quick call nor 100,000 brackets cost more than their bytes. It checks
//! everything that JSON asks of a text, because what it has passed is handed on, and sent back, as it was written.

use std::borrow::Cow;
use std::fmt;

use super::error::Error;
use super::json::Span;

/// How deep arrays and objects may be nested inside one value: as deep as `serde_json` decodes, so that whether params
/// are understood or passed through makes no difference.
pub(crate) const MAX_DEPTH: u32 = 127;

/// What some programs write before a text.
const BYTE_ORDER_MARK: char = '\u{feff}';

/// A place in a text, from which it is read on.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
    half: Option<HalfPair>,
}

/// An escape that is one half of a surrogate pair, without the other: what Python and JavaScript write for a text that was cut
/// inside an emoji. The grammar of JSON allows it, and it stands for no character.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HalfPair {
    /// The byte where the escape begins.
    pub(super) at: usize,
}

/// The text is not JSON. Boxed, so that what is right is handed on in registers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Fault(Box<Mismatch>);

/// What was found in place of what. `at` counts bytes from 0.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Mismatch {
    at: usize,
    expected: &'static str,
    found: Option<char>,
}

/// A text in quotes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Text {
    /// Quotes included.
    pub(super) span: Span,
    escaped: bool,
}

impl Text {
    /// The bytes between the quotes, where they stand for themselves.
    #[inline]
    pub(super) fn plain(self, text: &str) -> Option<&[u8]> {
        let quoted = self.span.bytes_of(text);
        if self.escaped { None } else { quoted.get(1..quoted.len().saturating_sub(1)) }
    }

    /// The text that is meant, borrowed unless escapes had to be replaced.
    #[inline]
    pub(super) fn decoded(self, text: &str) -> Cow<'_, str> {
        let quoted = self.span.of(text);
        if self.escaped {
            // What has half a surrogate pair in it means no text, and is taken as it was written.
            serde_json::from_str(quoted).map_or(Cow::Borrowed(quoted), Cow::Owned)
        } else {
            Cow::Borrowed(quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default())
        }
    }
}

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Scanner { text, at: 0, half: None }
    }

    /// For a whole message, which may begin with a byte order mark (RFC 8259, 8.1, lets a reader ignore it).
    #[inline]
    pub(super) fn of_message(text: &'a str) -> Self {
        let at = if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 };
        Scanner { text, at, half: None }
    }

    /// The first half of a pair that was met since this was asked last.
    #[inline]
    pub(super) fn take_half(&mut self) -> Option<HalfPair> {
        self.half.take()
    }

    /// What was met from this place on doesn't matter.
    #[inline]
    pub(super) fn forget_half_from(&mut self, place: usize) {
        self.half = self.half.filter(|half| half.at < place);
    }

    /// The next byte that is not white space.
    #[inline]
    pub(super) fn next_byte(&mut self) -> Option<u8> {
        loop {
            match self.peek()? {
                b' ' | b'\t' | b'\n' | b'\r' => self.at += 1,
                byte => return Some(byte),
            }
        }
    }

    /// Enters an object, up to behind the colon of its first member; `None` if it has none and is left again.
    #[inline]
    pub(super) fn first_member(&mut self) -> Result<Option<Text>, Fault> {
        if self.next_byte() != Some(b'{') {
            return Err(self.fault("an object"));
        }
        self.at += 1;
        if self.next_byte() == Some(b'}') {
            self.at += 1;
            return Ok(None);
        }
        self.key().map(Some)
    }

    /// Behind a member's value: goes on behind the colon of the next member, or leaves the object.
    #[inline]
    pub(super) fn next_member(&mut self) -> Result<Option<Text>, Fault> {
        match self.next_byte() {
            Some(b',') => {
                self.at += 1;
                self.key().map(Some)
            }
            Some(b'}') => {
                self.at += 1;
                Ok(None)
            }
            _ => Err(self.fault("`,` or `}`")),
        }
    }

    /// Enters an array, up to its first element; false if it has none and is left again.
    pub(super) fn first_element(&mut self) -> Result<bool, Fault> {
        if self.next_byte() != Some(b'[') {
            return Err(self.fault("an array"));
        }
        self.at += 1;
        if self.next_byte() == Some(b']') {
            self.at += 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// Behind an element: goes on behind the comma, or leaves the array, and tells which.
    pub(super) fn next_element(&mut self) -> Result<bool, Fault> {
        let more = match self.next_byte() {
            Some(b',') => true,
            Some(b']') => false,
            _ => return Err(self.fault("`,` or `]`")),
        };
        self.at += 1;
        Ok(more)
    }

    /// Where it is, in bytes.
    pub(super) fn place(&self) -> usize {
        self.at
    }

    /// Passes a text in quotes.
    #[inline]
    pub(super) fn text(&mut self) -> Result<Text, Fault> {
        if self.next_byte() != Some(b'"') {
            return Err(self.fault("a text in quotes"));
        }
        let start = self.at;
        let escaped = self.string()?;
        Ok(Text { span: Span::new(start, self.at), escaped })
    }

    /// Passes one value of any kind and says where it stands.
    #[inline]
    pub(super) fn value(&mut self) -> Result<Span, Fault> {
        let opening = self.next_byte();
        let start = self.at;
        if let Some(b'{' | b'[') = opening {
            self.nested()?;
        } else {
            self.scalar(opening)?;
        }
        Ok(Span::new(start, self.at))
    }

    /// From an opening bracket to behind the closing one.
    fn nested(&mut self) -> Result<(), Fault> {
        let mut nest = Nest::default();
        loop {
            match self.next_byte() {
                Some(b'{') => {
                    nest.enter(true).map_err(|TooDeep| self.too_deep())?;
                    if self.first_member()?.is_some() {
                        continue;
                    }
                    nest.leave();
                }
                Some(b'[') => {
                    nest.enter(false).map_err(|TooDeep| self.too_deep())?;
                    self.at += 1;
                    if self.next_byte() != Some(b']') {
                        continue;
                    }
                    self.at += 1;
                    nest.leave();
                }
                other => self.scalar(other)?,
            }
            // A value has ended; so have all that end with it.
            loop {
                match nest.innermost_is_object() {
                    None => return Ok(()),
                    Some(true) => {
                        if self.next_member()?.is_some() {
                            break;
                        }
                    }
                    Some(false) => match self.next_byte() {
                        Some(b',') => {
                            self.at += 1;
                            break;
                        }
                        Some(b']') => self.at += 1,
                        _ => return Err(self.fault("`,` or `]`")),
                    },
                }
                nest.leave();
            }
        }
    }

    /// Passes a value without others in it, which starts with this byte.
    #[inline]
    fn scalar(&mut self, first: Option<u8>) -> Result<(), Fault> {
        match first {
            Some(b'"') => self.string().map(drop),
            Some(b'-' | b'0'..=b'9') => self.number(),
            Some(b't') => self.word("true"),
            Some(b'f') => self.word("false"),
            Some(b'n') => self.word("null"),
            _ => Err(self.fault("a value")),
        }
    }

    /// Only white space may follow.
    #[inline]
    pub(super) fn end(&mut self) -> Result<(), Fault> {
        match self.next_byte() {
            None => Ok(()),
            Some(_) => Err(self.fault("the end of the message")),
        }
    }

    #[inline]
    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    #[inline]
    fn key(&mut self) -> Result<Text, Fault> {
        if self.next_byte() != Some(b'"') {
            return Err(self.fault("a member's name in quotes"));
        }
        let start = self.at;
        let escaped = self.string()?;
        let key = Text { span: Span::new(start, self.at), escaped };
        if self.next_byte() != Some(b':') {
            return Err(self.fault("`:`"));
        }
        self.at += 1;
        Ok(key)
    }

    fn word(&mut self, word: &'static str) -> Result<(), Fault> {
        if !self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes())) {
            return Err(self.fault("a value"));
        }
        self.at += word.len();
        Ok(())
    }

    fn number(&mut self) -> Result<(), Fault> {
        if self.peek() == Some(b'-') {
            self.at += 1;
        }
        if self.peek() == Some(b'0') {
            self.at += 1;
        } else {
            self.digits()?;
        }
        if self.peek() == Some(b'.') {
            self.at += 1;
            self.digits()?;
        }
        if let Some(b'e' | b'E') = self.peek() {
            self.at += 1;
            if let Some(b'+' | b'-') = self.peek() {
                self.at += 1;
            }
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Fault> {
        if !self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            return Err(self.fault("a digit"));
        }
        while self.peek().is_some_and(|byte| byte.is_ascii_digit()) {
            self.at += 1;
        }
        Ok(())
    }

    /// From the opening quote to behind the closing one; tells whether there were escapes. Most texts have none, and are
    /// passed right here.
    #[inline]
    fn string(&mut self) -> Result<bool, Fault> {
        self.at += 1;
        self.at += plain_run(self.text.as_bytes().get(self.at..).unwrap_or_default());
        if self.peek() == Some(b'"') {
            self.at += 1;
            return Ok(false);
        }
        self.rest_of_string()
    }

    /// From what is special in a text to behind its closing quote.
    #[cold]
    fn rest_of_string(&mut self) -> Result<bool, Fault> {
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(true);
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.fault("an escape in place of a control character")),
                None => return Err(self.fault("the closing quote of a text")),
            }
            self.at += plain_run(self.text.as_bytes().get(self.at..).unwrap_or_default());
        }
    }

    fn escape(&mut self) -> Result<(), Fault> {
        let backslash = self.at;
        self.at += 1;
        match self.peek() {
            Some(b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't') => {
                self.at += 1;
                Ok(())
            }
            Some(b'u') => {
                self.at += 1;
                match self.hex4()? {
                    0xd800..=0xdbff if self.second_half()? => {}
                    0xd800..=0xdfff => {
                        self.half.get_or_insert(HalfPair { at: backslash });
                    }
                    _ => {}
                }
                Ok(())
            }
            _ => Err(self.fault("an escape that JSON knows")),
        }
    }

    /// Passes the escape that stands next if it is the second half of a pair, and tells whether it was.
    fn second_half(&mut self) -> Result<bool, Fault> {
        let behind = self.at;
        if !self.text.as_bytes().get(behind..).is_some_and(|rest| rest.starts_with(b"\\u")) {
            return Ok(false);
        }
        self.at += 2;
        let is_second = matches!(self.hex4()?, 0xdc00..=0xdfff);
        if !is_second {
            self.at = behind;
        }
        Ok(is_second)
    }

    fn hex4(&mut self) -> Result<u32, Fault> {
        let mut value = 0;
        for _ in 0..4 {
            let Some(digit) = self.peek().and_then(|byte| char::from(byte).to_digit(16)) else {
                return Err(self.fault("four hexadecimal digits"));
            };
            value = value * 16 + digit;
            self.at += 1;
        }
        Ok(value)
    }

    fn too_deep(&self) -> Fault {
        self.fault("at most 127 levels of nesting")
    }

    #[cold]
    fn fault(&self, expected: &'static str) -> Fault {
        let found = self.text.get(self.at..).and_then(|rest| rest.chars().next());
        Fault(Box::new(Mismatch { at: self.at, expected, found }))
    }
}

/// Kinds of the values around the current one: one bit each, set for an object, the innermost lowest.
#[derive(Default)]
struct Nest {
    kinds: u128,
    depth: u32,
}

struct TooDeep;

impl Nest {
    fn enter(&mut self, object: bool) -> Result<(), TooDeep> {
        if self.depth == MAX_DEPTH {
            return Err(TooDeep);
        }
        self.kinds = self.kinds << 1 | u128::from(object);
        self.depth += 1;
        Ok(())
    }

    fn leave(&mut self) {
        self.kinds >>= 1;
        self.depth = self.depth.saturating_sub(1);
    }

    fn innermost_is_object(&self) -> Option<bool> {
        (self.depth > 0).then_some(self.kinds & 1 == 1)
    }
}

/// How many bytes at the start of `bytes` are neither a quote, a backslash nor a control character.
///
/// Eight at a time: most of a long message is the inside of texts. The subtractions borrow into higher bytes, so
/// only the lowest hit of a word is certain, and only that one is used.
#[inline]
fn plain_run(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([0x01; 8]);
    const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
    const QUOTES: u64 = u64::from_ne_bytes([b'"'; 8]);
    const BACKSLASHES: u64 = u64::from_ne_bytes([b'\\'; 8]);
    let zeros = |word: u64| word.wrapping_sub(ONES) & !word;

    let mut at = 0;
    while let Some(word) = bytes.get(at..).and_then(<[u8]>::first_chunk::<8>) {
        let word = u64::from_le_bytes(*word);
        let controls = word.wrapping_sub(ONES * 0x20) & !word;
        let hits = (controls | zeros(word ^ QUOTES) | zeros(word ^ BACKSLASHES)) & HIGHS;
        if hits != 0 {
            return at + hits.trailing_zeros() as usize / 8;
        }
        at += 8;
    }
    while let Some(&byte) = bytes.get(at) {
        if byte < 0x20 || byte == b'"' || byte == b'\\' {
            break;
        }
        at += 1;
    }
    at
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Mismatch { at, expected, found } = &*self.0;
        write!(f, "byte {at}: expected {expected}, found ")?;
        match found {
            Some(BYTE_ORDER_MARK) => f.write_str("a byte order mark"),
            Some(found) if found.is_control() => write!(f, "`{}`", found.escape_default()),
            Some(found) => write!(f, "`{found}`"),
            None => f.write_str("the end of the message"),
        }
    }
}

impl fmt::Display for HalfPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {}: expected both halves of a surrogate pair, found one alone", self.at)
    }
}

impl From<Fault> for Error {
    fn from(fault: Fault) -> Error {
        Error::parse(fault.0.at, &fault)
    }
}

#[cfg(test)]
mod tests;
