//! JSON that stays as it was written: a checked, borrowed piece of a message, and its place in that message.
//!
//! Params and ids are handed around like this, so that a message is walked once, a handler's params are decoded
//! straight into its own type, and what is only passed through comes back byte for byte.

use std::fmt;
use std::ops::Range;

use serde::de::DeserializeOwned;
use serde::{Serialize, Serializer};
use serde_json::value::RawValue;

use super::error::Error;
use super::params;
use super::scan::Scanner;
use crate::sys;

/// One JSON value as text: known to be JSON, not decoded.
///
/// The params of a [raw handler](crate::Server::raw_method) and the [id of a call](crate::Call::id) are of this
/// type. It borrows from the request and is cheap to copy.
///
/// ```
/// use tine::RawJson;
///
/// let json = RawJson::parse(r#"{"ms": 1e1}"#)?;
/// assert_eq!(json.get(), r#"{"ms": 1e1}"#);
/// assert_eq!(json.decode::<serde_json::Value>()?["ms"], 10.0);
/// # Ok::<(), tine::Error>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RawJson<'a>(&'a str);

impl<'a> RawJson<'a> {
    /// The value `null`.
    pub const NULL: RawJson<'static> = RawJson("null");

    /// Checks that `text` is one JSON value, white space around it aside.
    ///
    /// # Errors
    ///
    /// [`Error::PARSE`] with the place of the first fault, also when values are nested more than 127 deep, or a text has one half
    /// of a surrogate pair in it.
    pub fn parse(text: &'a str) -> Result<Self, Error> {
        let mut scanner = Scanner::new(text);
        let span = scanner.value()?;
        scanner.end()?;
        match scanner.take_half() {
            Some(half) => Err(Error::parse(half.at, &half)),
            None => Ok(RawJson(span.of(text))),
        }
    }

    /// The text as it was written, without white space around it.
    pub fn get(self) -> &'a str {
        self.0
    }

    /// Decodes the value.
    ///
    /// # Errors
    ///
    /// [`Error::INVALID_PARAMS`], naming the field, what was expected of it and what was found.
    pub fn decode<T: DeserializeOwned>(self) -> Result<T, Error> {
        params::decode(self)
    }
}

impl<'a> From<&'a RawValue> for RawJson<'a> {
    /// Nothing is checked again: a [`RawValue`] is JSON already.
    fn from(value: &'a RawValue) -> Self {
        RawJson(value.get())
    }
}

impl fmt::Display for RawJson<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

impl Serialize for RawJson<'_> {
    /// As written for `serde_json`'s writers. This reads the text once more; [`Reply::raw`](crate::Reply::raw)
    /// doesn't.
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let value: &RawValue = serde_json::from_str(self.0).map_err(serde::ser::Error::custom)?;
        value.serialize(serializer)
    }
}

/// Where in a message a value stands, in bytes.
///
/// It has no lifetime: a call that waits for a pool thread keeps its message and the spans, and nothing is walked
/// again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Span {
    start: u32,
    end: u32,
}

impl Span {
    /// No message is as long as 4 GiB.
    pub(super) fn new(start: usize, end: usize) -> Span {
        let whole = |at| u32::try_from(at).unwrap_or(u32::MAX);
        Span { start: whole(start), end: whole(end) }
    }

    pub(super) fn range(self) -> Range<usize> {
        self.start as usize..self.end as usize
    }

    /// Bytes of it.
    pub(crate) fn len(self) -> usize {
        self.range().len()
    }

    /// The piece of `text`, which must be the one that was scanned.
    pub(super) fn of(self, text: &str) -> &str {
        text.get(self.range()).unwrap_or_default()
    }

    pub(super) fn bytes_of(self, text: &str) -> &[u8] {
        text.as_bytes().get(self.range()).unwrap_or_default()
    }

    /// The value in the message it was found in. None if what stands there is no text, so that `message` isn't that one, or not any
    /// more.
    pub(crate) fn in_message(self, message: &[u8]) -> Option<RawJson<'_>> {
        let text = sys::text::text(message.get(self.range())?).ok()?;
        (!text.is_empty()).then_some(RawJson(text))
    }

    /// The value's bytes, white space around it not among them.
    pub(crate) fn bytes_in(self, message: &[u8]) -> &[u8] {
        message.get(self.range()).unwrap_or_default()
    }

    /// The value in the text it was found in.
    pub(super) fn json(self, text: &str) -> RawJson<'_> {
        RawJson(self.of(text))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_kept_as_written_and_freed_of_white_space() {
        let json = RawJson::parse(" [1.0, 1e400]\n").unwrap();
        assert_eq!(json.get(), "[1.0, 1e400]");
        assert_eq!(serde_json::to_string(&json).unwrap(), "[1.0, 1e400]");
    }

    #[test]
    fn two_values_are_not_one() {
        assert_eq!(RawJson::parse("1 2").unwrap_err().code(), Error::PARSE);
    }

    #[test]
    fn a_span_finds_its_value_in_a_moved_message() {
        let message = br#"{"id":[7]}"#.to_vec();
        let span = Span::new(6, 9);
        let moved = message;
        assert_eq!(span.in_message(&moved).unwrap().get(), "[7]");
        assert_eq!(span.in_message(b"short"), None);
    }
}
