//! JSON text, walked once: what is a value, where it ends, and nothing about what it means.
//!
//! `message` walks a message with this and keeps the places of what it needs, `params` the params of a call. It
//! allocates nothing and doesn't recurse, so that neither a quick call nor 100,000 brackets cost more than their bytes. It checks
//! everything that JSON asks of a text, because what it has passed is handed on, and sent back, as it was written.

mod runs;

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
    /// A text that was passed since this was unset last has escapes.
    escaped: bool,
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
    pub(super) escaped: bool,
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
        Scanner { text, at: 0, escaped: false, half: None }
    }

    /// For a whole message, which may begin with a byte order mark (RFC 8259, 8.1, lets a reader ignore it).
    #[inline]
    pub(super) fn of_message(text: &'a str) -> Self {
        let at = if text.starts_with(BYTE_ORDER_MARK) { BYTE_ORDER_MARK.len_utf8() } else { 0 };
        Scanner { text, at, escaped: false, half: None }
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
        self.at = past_space(self.text.as_bytes(), self.at);
        self.peek()
    }

    /// Enters an object, up to its first member; false if it has none and is left again.
    #[inline]
    pub(super) fn first_member(&mut self) -> Result<bool, Fault> {
        if self.next_byte() != Some(b'{') {
            return Err(self.fault("an object"));
        }
        self.at += 1;
        if self.next_byte() == Some(b'}') {
            self.at += 1;
            return Ok(false);
        }
        Ok(true)
    }

    /// Passes the name of the member that stands next, and its colon.
    #[inline]
    pub(super) fn name(&mut self) -> Result<Text, Fault> {
        let bytes = self.text.as_bytes();
        let start = past_space(bytes, self.at);
        if byte_at(bytes, start) != b'"' {
            return Err(self.fault_at(start, "a member's name in quotes"));
        }
        self.escaped = false;
        let end = self.pass_string(start)?;
        let colon = past_space(bytes, end);
        if byte_at(bytes, colon) != b':' {
            return Err(self.fault_at(colon, "`:`"));
        }
        self.at = colon + 1;
        Ok(Text { span: Span::new(start, end), escaped: self.escaped })
    }

    /// Behind a member's value: goes on behind the comma, or leaves the object, and tells which.
    #[inline]
    pub(super) fn next_member(&mut self) -> Result<bool, Fault> {
        let more = match self.next_byte() {
            Some(b',') => true,
            Some(b'}') => false,
            _ => return Err(self.fault("`,` or `}`")),
        };
        self.at += 1;
        Ok(more)
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
        self.escaped = false;
        self.at = self.pass_string(start)?;
        Ok(Text { span: Span::new(start, self.at), escaped: self.escaped })
    }

    /// Passes one value of any kind and says where it stands.
    #[inline]
    pub(super) fn value(&mut self) -> Result<Span, Fault> {
        let bytes = self.text.as_bytes();
        self.at = past_space(bytes, self.at);
        let start = self.at;
        match byte_at(bytes, start) {
            b'{' | b'[' => self.nested()?,
            first => self.at = self.pass_scalar(first, start)?,
        }
        Ok(Span::new(start, self.at))
    }

    /// From an opening bracket to behind the closing one. Most of a long message is passed here, so the place is kept in a variable
    /// of its own, and nothing is noted of what is passed.
    fn nested(&mut self) -> Result<(), Fault> {
        let bytes = self.text.as_bytes();
        let mut nest = Nest::default();
        let mut at = self.at;
        loop {
            // A value stands next.
            at = past_space(bytes, at);
            match byte_at(bytes, at) {
                b'{' => {
                    nest.enter(true).map_err(|TooDeep| self.too_deep(at))?;
                    at = past_space(bytes, at + 1);
                    if byte_at(bytes, at) != b'}' {
                        at = self.pass_key(at)?;
                        continue;
                    }
                    at += 1;
                    nest.leave();
                }
                b'[' => {
                    nest.enter(false).map_err(|TooDeep| self.too_deep(at))?;
                    at = past_space(bytes, at + 1);
                    if byte_at(bytes, at) != b']' {
                        continue;
                    }
                    at += 1;
                    nest.leave();
                }
                first => at = self.pass_scalar(first, at)?,
            }
            // A value has ended; so have all that end with it.
            loop {
                let Some(is_object) = nest.innermost_is_object() else {
                    self.at = at;
                    return Ok(());
                };
                at = past_space(bytes, at);
                match (byte_at(bytes, at), is_object) {
                    (b',', false) => {
                        at += 1;
                        break;
                    }
                    (b',', true) => {
                        at = self.pass_key(past_space(bytes, at + 1))?;
                        break;
                    }
                    (b']', false) | (b'}', true) => at += 1,
                    (_, false) => return Err(self.fault_at(at, "`,` or `]`")),
                    (_, true) => return Err(self.fault_at(at, "`,` or `}`")),
                }
                nest.leave();
            }
        }
    }

    /// From the opening quote of a member's name to behind its colon.
    #[inline]
    fn pass_key(&mut self, at: usize) -> Result<usize, Fault> {
        let bytes = self.text.as_bytes();
        if byte_at(bytes, at) != b'"' {
            return Err(self.fault_at(at, "a member's name in quotes"));
        }
        let at = self.pass_string(at)?;
        let at = past_space(bytes, at);
        if byte_at(bytes, at) != b':' {
            return Err(self.fault_at(at, "`:`"));
        }
        Ok(at + 1)
    }

    /// Passes a value without others in it, which starts here with this byte.
    #[inline]
    fn pass_scalar(&mut self, first: u8, at: usize) -> Result<usize, Fault> {
        match first {
            b'"' => self.pass_string(at),
            b'-' | b'0'..=b'9' => self.pass_number(first, at),
            b't' => self.pass_word("true", at),
            b'f' => self.pass_word("false", at),
            b'n' => self.pass_word("null", at),
            _ => Err(self.fault_at(at, "a value")),
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
    fn pass_word(&self, word: &'static str, at: usize) -> Result<usize, Fault> {
        if !rest(self.text.as_bytes(), at).starts_with(word.as_bytes()) {
            return Err(self.fault_at(at, "a value"));
        }
        Ok(at + word.len())
    }

    #[inline]
    fn pass_number(&self, first: u8, at: usize) -> Result<usize, Fault> {
        let bytes = self.text.as_bytes();
        let mut at = if first == b'-' { at + 1 } else { at };
        if byte_at(bytes, at) == b'0' {
            at += 1;
        } else {
            at = self.pass_digits(at)?;
        }
        if byte_at(bytes, at) == b'.' {
            at = self.pass_digits(at + 1)?;
        }
        if let b'e' | b'E' = byte_at(bytes, at) {
            at += 1;
            if let b'+' | b'-' = byte_at(bytes, at) {
                at += 1;
            }
            at = self.pass_digits(at)?;
        }
        Ok(at)
    }

    #[inline]
    fn pass_digits(&self, at: usize) -> Result<usize, Fault> {
        match runs::digits(rest(self.text.as_bytes(), at)) {
            0 => Err(self.fault_at(at, "a digit")),
            count => Ok(at + count),
        }
    }

    /// From the opening quote to behind the closing one. Most texts have no escapes, and are passed right here.
    #[inline]
    fn pass_string(&mut self, quote: usize) -> Result<usize, Fault> {
        let bytes = self.text.as_bytes();
        let at = quote + 1 + runs::plain(rest(bytes, quote + 1));
        if byte_at(bytes, at) == b'"' {
            return Ok(at + 1);
        }
        self.at = at;
        self.rest_of_string()?;
        Ok(self.at)
    }

    /// From what is special in a text to behind its closing quote.
    #[cold]
    fn rest_of_string(&mut self) -> Result<(), Fault> {
        self.escaped = true;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(());
                }
                Some(b'\\') => self.escape()?,
                Some(_) => return Err(self.fault("an escape in place of a control character")),
                None => return Err(self.fault("the closing quote of a text")),
            }
            self.at += runs::plain(rest(self.text.as_bytes(), self.at));
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

    #[cold]
    fn too_deep(&self, at: usize) -> Fault {
        self.fault_at(at, "at most 127 levels of nesting")
    }

    #[cold]
    fn fault(&self, expected: &'static str) -> Fault {
        self.fault_at(self.at, expected)
    }

    #[cold]
    fn fault_at(&self, at: usize, expected: &'static str) -> Fault {
        let found = self.text.get(at..).and_then(|rest| rest.chars().next());
        Fault(Box::new(Mismatch { at, expected, found }))
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

/// The byte there; 0, which begins nothing in JSON, behind the end.
#[inline]
fn byte_at(bytes: &[u8], at: usize) -> u8 {
    bytes.get(at).copied().unwrap_or(0)
}

#[inline]
fn rest(bytes: &[u8], at: usize) -> &[u8] {
    bytes.get(at..).unwrap_or_default()
}

/// Where the next byte is that is not white space, or the end.
#[inline]
fn past_space(bytes: &[u8], mut at: usize) -> usize {
    while let b' ' | b'\t' | b'\n' | b'\r' = byte_at(bytes, at) {
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
