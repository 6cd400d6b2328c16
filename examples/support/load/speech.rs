//! What a client speaks: how a message of one call or a few is framed, where an answer ends, whose it is, and whether it is
//! right.
//!
//! Pure, like `content`, which knows what is said; `client` sends what this writes and brings what came.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;

use serde_json::value::RawValue;

use super::content::{self, Envelope, Name, Verdict, Work, write_call};

/// A framing and an envelope. A message's number says which calls it carries; it is the number of its call where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Speech {
    /// The native envelope behind a length.
    Native { ids: bool },
    /// JSON-RPC 2.0 behind a length.
    JsonRpc,
    /// JSON-RPC 2.0, one value after another.
    Stream,
    /// JSON-RPC 2.0 behind headers.
    Header,
    /// JSON-RPC 2.0 in `POST /`, every third time with a chunked body.
    Http,
    /// Batches of that many calls of JSON-RPC 2.0, behind a length.
    Batch { calls: u64 },
}

/// Calls of a batch.
const A_FEW: u64 = 4;

/// One connection in so many of `Speech::ALL` sends batches, of this many calls each.
pub const MOST_IN_A_MESSAGE: u64 = A_FEW;

/// What an answer to HTTP may be before its head ends.
const MOST_HEAD: usize = 4096;

impl Speech {
    pub const PLAIN: &'static [Self] = &[Self::Native { ids: false }];

    pub const PLAIN_WITH_IDS: &'static [Self] = &[Self::Native { ids: true }];

    pub const ALL: &'static [Self] = &[
        Self::Native { ids: false },
        Self::Http,
        Self::Stream,
        Self::Header,
        Self::JsonRpc,
        Self::Batch { calls: A_FEW },
        Self::Native { ids: true },
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::Native { ids: false } => "native",
            Self::Native { ids: true } => "native with ids",
            Self::JsonRpc => "JSON-RPC",
            Self::Stream => "JSON stream",
            Self::Header => "headers",
            Self::Http => "HTTP",
            Self::Batch { .. } => "batches",
        }
    }

    /// How many calls a message carries.
    pub fn calls(self) -> u64 {
        match self {
            Self::Batch { calls } => calls,
            _ => 1,
        }
    }

    fn envelope(self) -> Envelope {
        match self {
            Self::Native { ids } => Envelope::Native { ids },
            _ => Envelope::JsonRpc,
        }
    }

    /// Writes a message.
    pub fn write_message(self, out: &mut Vec<u8>, work: Work, client: u64, message: u64) {
        let call = |out: &mut Vec<u8>| {
            write_call(out, self.envelope(), work, Name { client, call: message });
        };
        match self {
            Self::Native { .. } | Self::JsonRpc => behind_length(out, call),
            Self::Batch { .. } => behind_length(out, |out| {
                for (nth, call) in self.numbers(message).enumerate() {
                    out.push(if nth == 0 { b'[' } else { b',' });
                    write_call(out, self.envelope(), work, Name { client, call });
                }
                out.push(b']');
            }),
            Self::Stream => {
                call(out);
                // Nothing has to stand between two values.
                if message.is_multiple_of(2) {
                    out.push(b'\n');
                }
            }
            Self::Header => {
                let mut body = Vec::new();
                call(&mut body);
                let _ = write!(out, "Content-Length: {}\r\n\r\n", body.len());
                out.extend_from_slice(&body);
            }
            Self::Http => {
                let mut body = Vec::new();
                call(&mut body);
                write_post(out, &body, message % 3 == 2);
            }
        }
    }

    fn numbers(self, message: u64) -> Range<u64> {
        message * self.calls()..(message + 1) * self.calls()
    }

    /// Where the first answer in the input lies, and where it ends with all that belongs to it. None where it isn't all there.
    /// `looked` bytes were looked at in vain before.
    pub fn find_answer(self, input: &[u8], looked: usize) -> Result<Option<(Range<usize>, usize)>, String> {
        let found = match self {
            Self::Native { .. } | Self::JsonRpc | Self::Batch { .. } => input.get(..4).map(|prefix| {
                let length = prefix.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
                (4, length)
            }),
            Self::Stream => {
                let end = input.iter().skip(looked).position(|byte| *byte == b'\n');
                return Ok(end.map(|end| (0..looked + end, looked + end + 1)));
            }
            Self::Header | Self::Http => head_of(input, self == Self::Http)?,
        };
        let is_there =
            found.map(|(start, length)| start..start + length).filter(|body| body.end <= input.len());
        Ok(is_there.map(|body| (body.clone(), body.end)))
    }

    /// Which message an answer is to, by what it says itself; None where that goes by the order alone.
    pub fn message_of(self, answer: &[u8]) -> Option<u64> {
        match self {
            Self::Native { ids: false } | Self::Http => None,
            Self::Batch { calls } => {
                let last = content::id_of(answer.strip_suffix(b"]")?)?;
                Some(last / calls)
            }
            _ => content::id_of(answer),
        }
    }

    /// Answers come in the order of their messages.
    pub fn is_ordered(self) -> bool {
        matches!(self, Self::Native { ids: false } | Self::Http)
    }

    /// Judges an answer to a message: a verdict for each of its calls, or one that it is wrong as a whole.
    pub fn judge(
        self,
        scratch: &mut Vec<u8>,
        answer: &[u8],
        work: Work,
        (client, message): (u64, u64),
    ) -> Vec<Verdict> {
        let mut one = |answer: &[u8], call: u64| {
            content::judge(scratch, answer, self.envelope(), work, Name { client, call })
        };
        let Self::Batch { .. } = self else {
            return vec![one(answer, message)];
        };
        let Ok(members) = serde_json::from_slice::<Vec<&RawValue>>(answer) else {
            return vec![Verdict::Wrong("expected an array of answers".to_owned())];
        };
        let mut missing: BTreeSet<u64> = self.numbers(message).collect();
        let mut verdicts = Vec::new();
        for member in members {
            let member = member.get().as_bytes();
            match content::id_of(member).filter(|id| missing.remove(id)) {
                Some(call) => verdicts.push(one(member, call)),
                None => verdicts.push(Verdict::Wrong(format!(
                    "expected the answers to {:?}, found beside others {}",
                    self.numbers(message),
                    String::from_utf8_lossy(&member[..member.len().min(200)])
                ))),
            }
        }
        if !missing.is_empty() {
            verdicts.push(Verdict::Wrong(format!("no answers to {missing:?} in the one to their batch")));
        }
        verdicts
    }
}

fn behind_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn write_post(out: &mut Vec<u8>, body: &[u8], is_chunked: bool) {
    out.extend_from_slice(b"POST / HTTP/1.1\r\nHost: rig\r\nContent-Type: application/json\r\n");
    if !is_chunked {
        let _ = write!(out, "Content-Length: {}\r\n\r\n", body.len());
        out.extend_from_slice(body);
        return;
    }
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    let (first, second) = body.split_at(body.len() / 3);
    for chunk in [first, second] {
        let _ = write!(out, "{:x}\r\n", chunk.len());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// Where the body after a head begins, and its length. None where the head isn't all there.
fn head_of(input: &[u8], is_http: bool) -> Result<Option<(usize, usize)>, String> {
    let beginning = &input[..input.len().min(MOST_HEAD)];
    let Some(end) = beginning.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if input.len() < MOST_HEAD {
            Ok(None)
        } else {
            Err("expected a head, found no end of it".into())
        };
    };
    let head = String::from_utf8_lossy(&input[..end]);
    let mut lines = head.split("\r\n");
    if is_http && lines.next() != Some("HTTP/1.1 200 OK") {
        return Err(format!("expected an answer with 200, found {head:?}"));
    }
    let length = lines.filter_map(|line| line.split_once(": ")).find(|(name, _)| *name == "Content-Length");
    match length.map(|(_, length)| length.parse()) {
        Some(Ok(length)) => Ok(Some((end + 4, length))),
        _ => Err(format!("expected a head with a length, found {head:?}")),
    }
}
