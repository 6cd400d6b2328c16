//! HTTP/1.1 and 1.0 requests: where each one ends, and what its head says.
//!
//! The worker decodes with [`HttpFraming`], and opens what it was handed with [`open`]; `rpc` decides what a request asks
//! for and writes the answers. A request is handed on as its head, as it was sent, and behind that its body, decoded.
//!
//! Servers and proxies that read one request differently are how a second request is smuggled past the first. So what can be
//! read in two ways is refused here and the connection closed, also where a lenient reading is common.

mod chunked;
mod head;

use super::{Decode, HttpError, Known, Progress, Step, WireError};
use chunked::Chunks;
use head::Search;

pub(crate) use head::{Body, Head, Version};

/// Empty lines before a request that are borne: some clients send one behind a body.
const MAX_EMPTY_LINES: u8 = 4;

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HttpFraming {
    /// The most bytes a request's body may have.
    pub(crate) max_message: usize,
}

/// What is known of a request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    empty_lines: u8,
    stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Head(Search),
    /// The head is read, and the request has so many bytes in all.
    Length {
        end: usize,
    },
    /// The head is read, its body begins at `head`.
    Chunked {
        head: usize,
        chunks: Chunks,
    },
}

impl Default for Stage {
    fn default() -> Self {
        Self::Head(Search::default())
    }
}

/// What the head of a message says, and where behind it the body begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Opened<'a> {
    pub(crate) head: Head<'a>,
    pub(crate) body_at: usize,
}

/// Opens a message that this framing has handed on.
///
/// An error where the message is none; one from a decoder is always one.
pub(crate) fn open(message: &[u8]) -> Result<Opened<'_>, WireError> {
    match head::parse(message) {
        Ok(Some((head, body_at))) => Ok(Opened { head, body_at }),
        Ok(None) => Err(WireError::Http(head::bad("a request with its whole head", "a part of it"))),
        Err(error) => Err(WireError::Http(error)),
    }
}

impl Decode for HttpFraming {
    fn decode(&self, arrived: &[u8], progress: &mut Progress) -> Step {
        self.decode_and_open(arrived, progress, &mut None)
    }
}

impl HttpFraming {
    /// As [`decode`](Decode::decode), and leaves in `opened` what was read of the message's head, where that was read just now: most
    /// requests arrive whole, and are parsed once.
    pub(super) fn decode_and_open<'a>(
        self,
        arrived: &'a [u8],
        progress: &mut Progress,
        opened: &mut Option<Opened<'a>>,
    ) -> Step {
        let mut request = if let Known::Http(request) = progress.0 { request } else { Request::default() };
        *progress = Progress::default();
        match self.read(&mut request, arrived, opened) {
            Ok(step) => {
                if let Step::NeedMore { .. } | Step::Invite { .. } | Step::Skip { .. } = step {
                    *progress = Progress(Known::Http(request));
                }
                step
            }
            Err(error) => Step::Wrong(error),
        }
    }

    fn read<'a>(
        self,
        request: &mut Request,
        arrived: &'a [u8],
        opened: &mut Option<Opened<'a>>,
    ) -> Result<Step, WireError> {
        let mut waits_for_us = false;
        if let Stage::Head(search) = &mut request.stage {
            if let Some(step) = before_the_head(arrived, &mut request.empty_lines)? {
                return Ok(step);
            }
            let Some((head, end)) = search.go_on(arrived)? else {
                return Ok(Step::NeedMore { at_least: arrived.len() + 1 });
            };
            waits_for_us = head.expects_continue && arrived.len() == end;
            request.stage = self.body_of(&head, end)?;
            *opened = Some(Opened { head, body_at: end });
        }
        let step = match &mut request.stage {
            Stage::Length { end } if arrived.len() >= *end => Step::Message { body: 0..*end, consumed: *end },
            Stage::Length { end } => Step::NeedMore { at_least: *end },
            Stage::Chunked { head, chunks } => self.read_chunks(*head, chunks, arrived)?,
            // It was read above.
            Stage::Head(_) => Step::NeedMore { at_least: arrived.len() + 1 },
        };
        Ok(match step {
            Step::NeedMore { at_least } if waits_for_us => Step::Invite { at_least },
            step => step,
        })
    }

    fn body_of(self, head: &Head<'_>, end: usize) -> Result<Stage, WireError> {
        let limit = self.max_message;
        match head.body {
            Body::None => Ok(Stage::Length { end }),
            Body::Length(length) if length > limit => Err(WireError::TooLarge { length, limit }),
            Body::Length(length) => Ok(Stage::Length { end: end + length }),
            Body::Chunked => Ok(Stage::Chunked { head: end, chunks: Chunks::default() }),
        }
    }

    fn read_chunks(self, head: usize, chunks: &mut Chunks, arrived: &[u8]) -> Result<Step, WireError> {
        let body = arrived.get(head..).unwrap_or_default();
        let Some(end) = chunks.go_on(body, self.max_message, |_| {})? else {
            return Ok(Step::NeedMore { at_least: head + chunks.at_least(body.len()) });
        };
        // Read once more to take it out: nothing is allocated before all of it is there.
        let mut message = Vec::with_capacity(head + chunks.length());
        message.extend_from_slice(arrived.get(..head).unwrap_or_default());
        Chunks::default().go_on(body, self.max_message, |data| message.extend_from_slice(data))?;
        Ok(Step::Assembled { message, consumed: head + end })
    }
}

/// What stands before a request: nothing, or an empty line or two.
fn before_the_head(arrived: &[u8], empty_lines: &mut u8) -> Result<Option<Step>, HttpError> {
    match arrived {
        [] => Ok(Some(Step::NeedMore { at_least: 1 })),
        [b'\r'] => Ok(Some(Step::NeedMore { at_least: 2 })),
        [b'\r', b'\n', ..] if *empty_lines < MAX_EMPTY_LINES => {
            *empty_lines += 1;
            Ok(Some(Step::Skip { consumed: 2 }))
        }
        [b'\r', b'\n', ..] => Err(head::bad("a request", "one empty line after another")),
        [b'\r' | b'\n', ..] => Err(head::BARE_LINE_END),
        _ => Ok(None),
    }
}

#[cfg(test)]
mod tests;
