//! A chunked body: chunks with their lengths before them, then trailer fields, which are read and dropped.
//!
//! The body itself is bounded, and so is what stands around it: a caller can't make a worker hold more than about twice the
//! limit with chunks of one byte and long extensions.

use std::ops::Range;

use super::head::{BARE_LINE_END, bad};
use crate::wire::WireError;
use crate::wire::fields::{self, Line};

/// The most bytes of a chunk's line: its length and extensions, which are dropped.
const MAX_LINE: usize = 256;

/// The most bytes of the trailer.
const MAX_TRAILER: usize = 4 * 1024;

/// What a body may have around its chunks, besides as many bytes as the body itself may have.
const AROUND: usize = 16 * 1024;

/// Line end, last chunk and an empty trailer: the least that stands behind a chunk.
const LEAST_BEHIND: usize = b"\r\n0\r\n\r\n".len();

/// How far a body has been read. Places are counted from the body's first byte.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Chunks {
    /// Where that begins which is read next.
    at: usize,
    /// Up to here a line that begins at `at` has no end.
    looked_at: usize,
    /// Bytes in the chunks so far, the one included that is being read.
    length: usize,
    next: Next,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Next {
    #[default]
    Size,
    /// The chunk from `at` on has so many bytes, and a line end.
    Data { size: usize },
    /// The trailer, of which so many bytes are read.
    Trailer { size: usize },
}

impl Chunks {
    /// Reads on. The length of the body as it was sent, once all of it is there; each whole chunk goes to `sink`.
    pub(super) fn go_on(
        &mut self,
        body: &[u8],
        limit: usize,
        mut sink: impl FnMut(&[u8]),
    ) -> Result<Option<usize>, WireError> {
        loop {
            match self.next {
                Next::Size => {
                    let Some(line) = self.line(body, MAX_LINE)? else { return Ok(None) };
                    let size = size_in(body.get(line).unwrap_or_default())?;
                    self.begin_chunk(size, limit)?;
                }
                Next::Data { size } => {
                    let end = self.at + size;
                    let Some(line_end) = body.get(end..end + 2) else { return Ok(None) };
                    if line_end != b"\r\n" {
                        return Err(bad("CR LF behind a chunk", "another byte: its length is wrong").into());
                    }
                    sink(body.get(self.at..end).unwrap_or_default());
                    (self.at, self.looked_at, self.next) = (end + 2, end + 2, Next::Size);
                }
                Next::Trailer { size } => {
                    let start = self.at;
                    let Some(line) = self.line(body, MAX_TRAILER - size)? else { return Ok(None) };
                    if line.is_empty() {
                        return Ok(Some(self.at));
                    }
                    if fields::split(body.get(line).unwrap_or_default()).is_none() {
                        return Err(
                            bad("`Name: value` in each line of the trailer", "a line without that").into()
                        );
                    }
                    self.next = Next::Trailer { size: size + (self.at - start) };
                }
            }
        }
    }

    /// Bytes in all the chunks, once they are read.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// How many bytes of the body must be there, at the least, before reading on makes sense; `arrived` are.
    pub(super) fn at_least(&self, arrived: usize) -> usize {
        match self.next {
            Next::Data { size } => self.at + size + LEAST_BEHIND,
            Next::Size | Next::Trailer { .. } => arrived + 1,
        }
    }

    fn begin_chunk(&mut self, size: u64, limit: usize) -> Result<(), WireError> {
        if size == 0 {
            self.next = Next::Trailer { size: 0 };
            return Ok(());
        }
        let length = usize::try_from(size).ok().and_then(|size| self.length.checked_add(size));
        match length {
            Some(length) if length <= limit && self.at - self.length <= limit.saturating_add(AROUND) => {
                self.next = Next::Data { size: length - self.length };
                self.length = length;
                Ok(())
            }
            _ => Err(WireError::Endless { limit }),
        }
    }

    /// The line at `at`, which is then behind it; None where it is not whole.
    fn line(&mut self, body: &[u8], longest: usize) -> Result<Option<Range<usize>>, WireError> {
        let within = body.get(..self.at + longest).unwrap_or(body);
        match fields::line(within, self.at, self.looked_at) {
            Line::Whole { text, next } => {
                (self.at, self.looked_at) = (next, next);
                Ok(Some(text))
            }
            Line::BareLineFeed => Err(BARE_LINE_END.into()),
            Line::NotYet if within.len() >= self.at + longest => {
                Err(bad("short lines around the chunks", "a long one").into())
            }
            Line::NotYet => {
                self.looked_at = within.len();
                Ok(None)
            }
        }
    }
}

/// The length that a chunk's line begins with.
fn size_in(line: &[u8]) -> Result<u64, WireError> {
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extensions) = line.split_at_checked(digits).unwrap_or_default();
    let is_size =
        (1..=16).contains(&digits) && matches!(extensions, [] | [b';', ..]) && fields::is_text(extensions);
    let size = std::str::from_utf8(size).ok().filter(|_| is_size);
    size.and_then(|size| u64::from_str_radix(size, 16).ok())
        .ok_or_else(|| bad("a chunk's length in at most 16 hexadecimal digits", "another line").into())
}
