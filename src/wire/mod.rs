//! Bytes to messages and back: the framings, without sockets.
//!
//! A connection hands over what has arrived, from the first byte of the next message on, and is told whether that is
//! a message, *not yet* one, or *wrong*. Nothing here knows what a message means (that is `rpc`) or where the
//! bytes come from (that is the worker's connection). `detect` says which framing a new connection speaks; from then on
//! its [`Framing`] decodes.

pub(crate) mod detect;
mod error;
mod fields;
pub(crate) mod header;
pub(crate) mod http;
mod kinds;
pub(crate) mod length;
pub(crate) mod pieces;
pub(crate) mod stream;

use std::ops::Range;

use serde::{Deserialize, Serialize};

pub(crate) use error::{HttpError, WireError};
pub(crate) use kinds::{Kind, Kinds};

use header::HeaderFraming;
use http::{HttpFraming, Opened};
use length::{AnswerTooLong, LengthFraming, Mark};
use stream::StreamFraming;

/// How a length prefix is written; a listener is told by `prefix` in its config.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ByteOrder {
    #[default]
    Little,
    Big,
}

/// What a listener takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accepts {
    pub(crate) kinds: Kinds,
    pub(crate) order: ByteOrder,
    /// The most bytes a message may have.
    pub(crate) max_message: usize,
}

/// A framing with its limits, as one connection has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    Length(LengthFraming),
    Stream(StreamFraming),
    Header(HeaderFraming),
    Http(HttpFraming),
}

/// A framing without its limits, which is all that answers depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Dialect {
    pub(crate) kind: Kind,
    order: ByteOrder,
}

/// Bytes to messages.
pub(crate) trait Decode {
    /// Looks at the start of `arrived`, which is all that has arrived from the end of what was last consumed on.
    ///
    /// `progress` belongs to the connection: it comes back as the last call left it, with the same bytes and more behind
    /// them, or as its default, when nothing is known of the bytes.
    fn decode(&self, arrived: &[u8], progress: &mut Progress) -> Step;
}

/// What is known of the incomplete message at the start of the input, so that bytes are looked at once: a message that
/// comes a byte at a time costs no more than its length. A step that consumes leaves it as it is at a message's start.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress(Known);

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Known {
    #[default]
    Nothing,
    Stream(stream::Scan),
    Header(header::Block),
    Http(http::Request),
}

/// What a decoder makes of the bytes that have arrived so far.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Incomplete, not malformed. Asking again is pointless before `at_least` bytes (counted from the start of this
    /// message, always more than were given) are there.
    NeedMore { at_least: usize },
    /// As `NeedMore`, but the caller waits to be told `100 Continue` before it sends the rest. Said once for a message.
    Invite { at_least: usize },
    /// So many bytes belong to no message: white space between JSON values, an empty line before an HTTP request.
    Skip { consumed: usize },
    /// One whole message: what is handed on is `body`; the next message starts `consumed` bytes on. With HTTP `body` has
    /// the request's head too; [`http::open`] tells them apart.
    Message { body: Range<usize>, consumed: usize },
    /// The same, for a message that did not lie in one piece.
    Assembled { message: Vec<u8>, consumed: usize },
    /// No message, and more bytes would not make it one.
    Wrong(WireError),
}

impl Framing {
    pub(crate) fn new(kind: Kind, Accepts { order, max_message, .. }: Accepts) -> Self {
        match kind {
            Kind::Length => Self::Length(LengthFraming { order, max_message }),
            Kind::Stream => Self::Stream(StreamFraming { max_message }),
            Kind::Header => Self::Header(HeaderFraming { max_message }),
            Kind::Http => Self::Http(HttpFraming { max_message }),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        match self {
            Self::Length(_) => Kind::Length,
            Self::Stream(_) => Kind::Stream,
            Self::Header(_) => Kind::Header,
            Self::Http(_) => Kind::Http,
        }
    }

    /// As [`decode`](Decode::decode). What that has read of a message's head on the way is left in `opened`, for whoever opens
    /// the message next; it need not be there.
    #[inline]
    pub(crate) fn decode_and_open<'a>(
        &self,
        arrived: &'a [u8],
        progress: &mut Progress,
        opened: &mut Option<Opened<'a>>,
    ) -> Step {
        match self {
            Self::Http(framing) => framing.decode_and_open(arrived, progress, opened),
            framing => framing.decode(arrived, progress),
        }
    }

    /// How answers are put into it.
    pub(crate) fn dialect(&self) -> Dialect {
        let order = if let Self::Length(framing) = self { framing.order } else { ByteOrder::default() };
        Dialect { kind: self.kind(), order }
    }
}

impl Dialect {
    /// Begins an answer: what is appended to `out` from here on is its text. An HTTP answer has a head, which is not
    /// written here, and nothing around its body.
    pub(crate) fn begin_message(self, out: &mut Vec<u8>) -> Mark {
        match self.kind {
            Kind::Length => LengthFraming::begin_message(out),
            Kind::Stream | Kind::Header | Kind::Http => Mark::at_end_of(out),
        }
    }

    /// The longest text that an answer may have.
    pub(crate) fn most_answer(self) -> usize {
        match self.kind {
            Kind::Length => length::MAX_ANSWER,
            Kind::Stream | Kind::Header | Kind::Http => usize::MAX,
        }
    }

    /// Ends the answer begun at the mark, or takes it back if it is longer than the framing carries.
    pub(crate) fn end_message(self, out: &mut Vec<u8>, mark: Mark) -> Result<(), AnswerTooLong> {
        match self.kind {
            Kind::Length => return LengthFraming::end_message(self.order, out, mark),
            Kind::Stream => stream::end_message(out),
            Kind::Header => HeaderFraming::end_message(out, mark),
            Kind::Http => {}
        }
        Ok(())
    }
}

impl Decode for Framing {
    fn decode(&self, arrived: &[u8], progress: &mut Progress) -> Step {
        match self {
            Self::Length(framing) => framing.decode(arrived, progress),
            Self::Stream(framing) => framing.decode(arrived, progress),
            Self::Header(framing) => framing.decode(arrived, progress),
            Self::Http(framing) => framing.decode(arrived, progress),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Quadratic work would show: the test would take minutes.
    #[test]
    fn a_long_message_that_comes_a_byte_at_a_time_is_looked_at_once() {
        const LONG: usize = 300_000;
        let text = format!("[\"{}\"]", "x".repeat(LONG - 4));
        let post = "POST / HTTP/1.1\r\nHost: a\r\n";
        let framing_of = |kind| {
            Framing::new(kind, Accepts { kinds: Kinds::default(), order: ByteOrder::Big, max_message: LONG })
        };
        for (kind, bytes) in [
            (Kind::Length, [&u32::try_from(LONG).unwrap().to_be_bytes()[..], text.as_bytes()].concat()),
            (Kind::Stream, text.clone().into_bytes()),
            (Kind::Header, format!("Content-Length: {LONG}\r\n\r\n{text}").into_bytes()),
            (Kind::Http, format!("{post}Content-Length: {LONG}\r\n\r\n{text}").into_bytes()),
            (
                Kind::Http,
                format!("{post}Transfer-Encoding: chunked\r\n\r\n{LONG:x}\r\n{text}\r\n0\r\n\r\n")
                    .into_bytes(),
            ),
            (
                Kind::Http,
                format!("{post}Transfer-Encoding: chunked\r\n\r\n{}0\r\n\r\n", "1\r\nx\r\n".repeat(50_000))
                    .into_bytes(),
            ),
        ] {
            let outcome = pieces::decode(framing_of(kind), &bytes, 1).unwrap();
            assert_eq!((outcome.messages.len(), outcome.consumed), (1, bytes.len()), "{kind:?}");
        }
    }
}
