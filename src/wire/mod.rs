//! Bytes to messages and back: the framings, without sockets.
//!
//! A connection hands over what has arrived, from the first byte of the next message on, and is told whether that is
//! a message, *not yet* one, or *wrong*. Nothing here knows what a message means (that is `rpc`) or where the
//! bytes come from (that is the worker's connection).

pub(crate) mod detect;
pub(crate) mod length;

use std::fmt;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// How a length prefix is written; a listener is told by `prefix` in its config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ByteOrder {
    #[default]
    Little,
    Big,
}

/// What a decoder makes of the bytes that have arrived so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Incomplete, not malformed. Asking again is pointless before `at_least` bytes (counted from the start of this
    /// message, always more than were given) are there.
    NeedMore { at_least: usize },
    /// One whole message: its text is `body`; the next message starts `consumed` bytes on.
    Message { body: Range<usize>, consumed: usize },
    /// No message, and more bytes would not make it one.
    Wrong(WireError),
}

/// What is wrong with a message before anybody looks into it. Each kind is answered; see [`WireError::consumed`]
/// for whether the connection can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WireError {
    /// A message of no bytes, behind a prefix of `prefix` bytes.
    Empty { prefix: usize },
    /// A message that says it is longer than `max_message`.
    TooLarge { length: usize, limit: usize },
}

impl WireError {
    /// How many bytes to skip to the next message, or `None` if the connection must be closed after the answer,
    /// because what follows is the unwanted message itself.
    pub(crate) fn consumed(self) -> Option<usize> {
        match self {
            WireError::Empty { prefix } => Some(prefix),
            WireError::TooLarge { .. } => None,
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
        }
    }
}

impl std::error::Error for WireError {}
