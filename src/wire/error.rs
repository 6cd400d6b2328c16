//! What can be wrong with a message before anybody looks into it.
//!
//! The decoders find it, the worker asks whether the connection can go on, `rpc` gives it a code.

use std::fmt;

/// What is wrong with a message. Each kind is answered; see [`WireError::consumed`] for whether the connection can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireError {
    /// A message of no bytes, behind `prefix` bytes that say so.
    Empty { prefix: usize },
    /// A message that says it is longer than `max_message`.
    TooLarge { length: usize, limit: usize },
    /// A message that does not say how long it is and has not ended within `max_message`.
    Endless { limit: usize },
    /// A byte in a JSON stream that no JSON value begins with.
    Stray { found: u8 },
    /// A content-length header block that does not say how long the message is.
    Header { expected: &'static str, found: &'static str },
    /// An HTTP request that is not answered as asked.
    Http(HttpError),
}

/// What is wrong with an HTTP request. All of it closes the connection: whoever sent it may see another request in these
/// bytes than we do, and what follows must not be taken for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HttpError {
    pub(crate) status: u16,
    pub(crate) expected: &'static str,
    pub(crate) found: &'static str,
}

impl WireError {
    /// How many bytes to skip to the next message, or `None` if the connection must be closed after the answer,
    /// because what follows is the unwanted message itself, or can't be told from it.
    pub(crate) fn consumed(self) -> Option<usize> {
        match self {
            WireError::Empty { prefix } => Some(prefix),
            WireError::TooLarge { .. }
            | WireError::Endless { .. }
            | WireError::Stray { .. }
            | WireError::Header { .. }
            | WireError::Http(_) => None,
        }
    }

    /// The status of the answer, where it is an HTTP answer.
    pub(crate) fn http_status(self) -> u16 {
        match self {
            WireError::TooLarge { .. } | WireError::Endless { .. } => 413,
            WireError::Http(error) => error.status,
            WireError::Empty { .. } | WireError::Stray { .. } | WireError::Header { .. } => 400,
        }
    }
}

impl fmt::Display for WireError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WireError::Empty { .. } => {
                write!(f, "the message has a length of 0; a message is a JSON value of at least one byte")
            }
            WireError::TooLarge { length, limit } => write!(
                f,
                "the message has a length of {length} bytes; this server takes at most {limit} (`max_message`)"
            ),
            WireError::Endless { limit } => write!(
                f,
                "the message has no end within {limit} bytes, which is the most that this server takes (`max_message`)"
            ),
            WireError::Stray { found } => {
                write!(f, "expected a JSON value, found `{}`", found.escape_ascii())
            }
            WireError::Header { expected, found } => {
                write!(f, "in the header before the message, expected {expected}, found {found}")
            }
            WireError::Http(error) => error.fmt(f),
        }
    }
}

impl fmt::Display for HttpError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "expected {}, found {}", self.expected, self.found)
    }
}

impl std::error::Error for WireError {}

impl From<HttpError> for WireError {
    fn from(error: HttpError) -> Self {
        Self::Http(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_says_what_was_expected_and_what_was_found() {
        let limit = 8;
        let http = HttpError { status: 400, expected: "one Content-Length", found: "several" };
        for (error, text, consumed, status) in [
            (
                WireError::Empty { prefix: 4 },
                "the message has a length of 0; a message is a JSON value of at least one byte",
                Some(4),
                400,
            ),
            (
                WireError::TooLarge { length: 9, limit },
                "the message has a length of 9 bytes; this server takes at most 8 (`max_message`)",
                None,
                413,
            ),
            (
                WireError::Endless { limit },
                "the message has no end within 8 bytes, which is the most that this server takes (`max_message`)",
                None,
                413,
            ),
            (WireError::Stray { found: b']' }, "expected a JSON value, found `]`", None, 400),
            (WireError::Stray { found: 0 }, "expected a JSON value, found `\\x00`", None, 400),
            (
                WireError::Header { expected: "a Content-Length", found: "none" },
                "in the header before the message, expected a Content-Length, found none",
                None,
                400,
            ),
            (WireError::Http(http), "expected one Content-Length, found several", None, 400),
        ] {
            assert_eq!(error.to_string(), text);
            assert_eq!((error.consumed(), error.http_status()), (consumed, status), "{text}");
        }
    }
}
