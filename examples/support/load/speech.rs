//! What a client speaks: how a message of one call or a few is framed, where an answer ends, whose it is, and whether it is
//! right.
//!
//! Pure, like `content`, which knows what is said; `client` sends what this writes and brings what came.

use std::collections::BTreeSet;
use std::io::Write;
use std::ops::Range;

use serde_json::value::RawValue;

use super::content::{self, Envelope, Failure, Name, Verdict, Work, method_of, write_call};

/// A framing and what is said in it. A message's number says which calls it carries; it is the number of its call where it has one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Speech {
    pub framing: Framing,
    pub saying: Saying,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Framing {
    Length,
    /// One value after another.
    Stream,
    Header,
    /// `POST`, now and then with a chunked body, or asking whether to send it.
    Http,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Saying {
    /// The native envelope.
    Native { ids: bool },
    /// JSON-RPC 2.0.
    JsonRpc,
    /// `POST /METHOD`, which needs HTTP: no envelope; the status tells what became of the call.
    Bare,
    /// Batches of that many calls of JSON-RPC 2.0.
    Batch { calls: u64 },
}

/// Calls of a batch.
const A_FEW: u64 = 4;

/// What an answer may be before its head ends.
const MOST_HEAD: usize = 4096;

/// Where an answer lies in the input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub body: Range<usize>,
    /// Where the next one begins.
    pub end: usize,
    /// 200 where the framing has none.
    pub status: u16,
    /// It says that nothing comes behind it.
    pub is_goodbye: bool,
}

impl Speech {
    pub const PLAIN: &'static [Self] = &[Self::new(Framing::Length, Saying::Native { ids: false })];

    pub const PLAIN_WITH_IDS: &'static [Self] = &[Self::new(Framing::Length, Saying::Native { ids: true })];

    pub const ALL: &'static [Self] = &[
        Self::new(Framing::Length, Saying::Native { ids: false }),
        Self::new(Framing::Http, Saying::JsonRpc),
        Self::new(Framing::Stream, Saying::JsonRpc),
        Self::new(Framing::Http, Saying::Bare),
        Self::new(Framing::Length, Saying::Batch { calls: A_FEW }),
        Self::new(Framing::Header, Saying::JsonRpc),
        Self::new(Framing::Http, Saying::Batch { calls: A_FEW }),
        Self::new(Framing::Length, Saying::JsonRpc),
        Self::new(Framing::Length, Saying::Native { ids: true }),
        Self::new(Framing::Stream, Saying::Batch { calls: A_FEW }),
    ];

    /// The same without batches, for calls so long that four of them are too long for one message.
    pub const SINGLE: &'static [Self] = &[
        Self::new(Framing::Length, Saying::Native { ids: false }),
        Self::new(Framing::Http, Saying::JsonRpc),
        Self::new(Framing::Stream, Saying::JsonRpc),
        Self::new(Framing::Http, Saying::Bare),
        Self::new(Framing::Header, Saying::JsonRpc),
    ];

    pub const fn new(framing: Framing, saying: Saying) -> Self {
        Self { framing, saying }
    }

    pub fn name(self) -> &'static str {
        match (self.framing, self.saying) {
            (Framing::Length, Saying::Native { ids: false }) => "native",
            (Framing::Length, Saying::Native { ids: true }) => "native with ids",
            (Framing::Length, Saying::JsonRpc | Saying::Bare) => "JSON-RPC",
            (Framing::Length, Saying::Batch { .. }) => "batches",
            (Framing::Stream, Saying::Batch { .. }) => "batches in a stream",
            (Framing::Stream, _) => "JSON stream",
            (Framing::Header, Saying::Batch { .. }) => "batches behind headers",
            (Framing::Header, _) => "headers",
            (Framing::Http, Saying::Bare) => "HTTP without envelope",
            (Framing::Http, Saying::Batch { .. }) => "batches in HTTP",
            (Framing::Http, _) => "HTTP",
        }
    }

    /// How many calls a message carries.
    pub fn calls(self) -> u64 {
        match self.saying {
            Saying::Batch { calls } => calls,
            _ => 1,
        }
    }

    /// A thread has to be free for a message even where its method needs none: one takes a batch apart, and a body in chunks is run by
    /// one.
    pub fn may_need_thread(self) -> bool {
        self.framing == Framing::Http || matches!(self.saying, Saying::Batch { .. })
    }

    fn envelope(self) -> Envelope {
        match self.saying {
            Saying::Native { ids } => Envelope::Native { ids },
            Saying::Bare => Envelope::None,
            Saying::JsonRpc | Saying::Batch { .. } => Envelope::JsonRpc,
        }
    }

    /// Writes a message.
    pub fn write_message(self, out: &mut Vec<u8>, work: Work, client: u64, message: u64) {
        let target = match self.saying {
            Saying::Bare => method_of(work, Name { client, call: message }),
            _ => "",
        };
        self.write_framed(out, target, message, |out| match self.saying {
            Saying::Batch { .. } => {
                for (nth, call) in self.numbers(message).enumerate() {
                    out.push(if nth == 0 { b'[' } else { b',' });
                    write_call(out, self.envelope(), work, Name { client, call });
                }
                out.push(b']');
            }
            _ => write_call(out, self.envelope(), work, Name { client, call: message }),
        });
    }

    /// Frames what `write` writes. `target` is what HTTP has behind the slash; `message` says which of the ways to frame one
    /// that are the same to the service.
    pub fn write_framed(
        self,
        out: &mut Vec<u8>,
        target: &str,
        message: u64,
        write: impl FnOnce(&mut Vec<u8>),
    ) {
        match self.framing {
            Framing::Length => behind_length(out, write),
            Framing::Stream => {
                write(out);
                // Nothing has to stand between two values.
                if message.is_multiple_of(2) {
                    out.push(b'\n');
                }
            }
            Framing::Header => {
                let mut body = Vec::new();
                write(&mut body);
                let _ = write!(out, "Content-Length: {}\r\n\r\n", body.len());
                out.extend_from_slice(&body);
            }
            Framing::Http => {
                let mut body = Vec::new();
                write(&mut body);
                write_post(out, target, &body, message);
            }
        }
    }

    fn numbers(self, message: u64) -> Range<u64> {
        message * self.calls()..(message + 1) * self.calls()
    }

    /// The first answer in the input. None where it isn't all there; `looked` bytes were looked at in vain before.
    pub fn find_answer(self, input: &[u8], looked: usize) -> Result<Option<Found>, String> {
        let (start, length, status, is_goodbye) = match self.framing {
            Framing::Length => {
                let Some(prefix) = input.get(..4) else { return Ok(None) };
                let length = prefix.iter().rev().fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
                (4, length, 200, false)
            }
            Framing::Stream => {
                let end = input.iter().skip(looked).position(|byte| *byte == b'\n');
                return Ok(end.map(|end| Found {
                    body: 0..looked + end,
                    end: looked + end + 1,
                    status: 200,
                    is_goodbye: false,
                }));
            }
            Framing::Header => {
                let Some(head) = head_at(input, 0)? else { return Ok(None) };
                (head.end, head.length()?, 200, false)
            }
            Framing::Http => {
                let Some(mut head) = head_at(input, 0)? else { return Ok(None) };
                // The answer to the question whether to send a body, which was sent meanwhile.
                while head.text.starts_with("HTTP/1.1 100 ") {
                    let Some(next) = head_at(input, head.end)? else { return Ok(None) };
                    head = next;
                }
                (head.end, head.length()?, head.status()?, head.field("Connection") == Some("close"))
            }
        };
        let end = start + length;
        Ok((end <= input.len()).then_some(Found { body: start..end, end, status, is_goodbye }))
    }

    /// Which message an answer is to, by what it says itself; None where that goes by the order alone.
    pub fn message_of(self, answer: &[u8]) -> Option<u64> {
        if self.is_ordered() {
            return None;
        }
        match self.saying {
            Saying::Batch { calls } => {
                let last = content::id_of(answer.strip_suffix(b"]")?)?;
                Some(last / calls)
            }
            _ => content::id_of(answer),
        }
    }

    /// Answers come in the order of their messages.
    pub fn is_ordered(self) -> bool {
        self.framing == Framing::Http || matches!(self.saying, Saying::Native { ids: false } | Saying::Bare)
    }

    /// Judges an answer to a message: a verdict for each of its calls, or one that it is wrong as a whole.
    pub fn judge(
        self,
        scratch: &mut Vec<u8>,
        (answer, status): (&[u8], u16),
        work: Work,
        (client, message): (u64, u64),
    ) -> Vec<Verdict> {
        let mut one = |answer: &[u8], call: u64| {
            content::judge(scratch, answer, self.envelope(), work, Name { client, call })
        };
        let Saying::Batch { .. } = self.saying else {
            let verdict = one(answer, message);
            return vec![self.with_status(verdict, status)];
        };
        if status != 200 {
            return vec![Verdict::Wrong(format!("expected status 200 to a batch, found {status}"))];
        }
        let Ok(members) = serde_json::from_slice::<Vec<&RawValue>>(answer) else {
            let head = String::from_utf8_lossy(&answer[..answer.len().min(200)]).into_owned();
            return vec![Verdict::Wrong(format!("expected an array of answers, found {head}"))];
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

    /// The verdict, if the status says the same.
    fn with_status(self, verdict: Verdict, status: u16) -> Verdict {
        let expected = match (&verdict, self.saying) {
            (Verdict::Error(failure), Saying::Bare) => status_of(failure),
            _ => 200,
        };
        match verdict {
            Verdict::Wrong(why) => Verdict::Wrong(why),
            _ if status != expected => {
                Verdict::Wrong(format!("expected status {expected} to {verdict:?}, found {status}"))
            }
            verdict => verdict,
        }
    }
}

/// The status that goes with an error where there is no envelope.
fn status_of(failure: &Failure) -> u16 {
    match failure.code {
        -32700 | -32600 => 400,
        -32601 => 404,
        -32602 => 422,
        -32000 | -32004 => 503,
        -32001 => 504,
        -32002 => 502,
        -32003 => 413,
        _ => 500,
    }
}

fn behind_length(out: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    write(out);
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

fn write_post(out: &mut Vec<u8>, target: &str, body: &[u8], message: u64) {
    let _ = write!(out, "POST /{target} HTTP/1.1\r\nHost: rig\r\nContent-Type: application/json\r\n");
    if message % 5 == 4 {
        out.extend_from_slice(b"Expect: 100-continue\r\n");
    }
    if message % 3 != 2 {
        let _ = write!(out, "Content-Length: {}\r\n\r\n", body.len());
        out.extend_from_slice(body);
        return;
    }
    out.extend_from_slice(b"Transfer-Encoding: chunked\r\n\r\n");
    let (first, second) = body.split_at(body.len() / 3);
    for chunk in [first, second].into_iter().filter(|chunk| !chunk.is_empty()) {
        let _ = write!(out, "{:x}\r\n", chunk.len());
        out.extend_from_slice(chunk);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"0\r\n\r\n");
}

/// What stands before a body.
struct Head<'a> {
    text: std::borrow::Cow<'a, str>,
    /// Where the body begins.
    end: usize,
}

/// The head that begins at `from`. None where it isn't all there.
fn head_at(input: &[u8], from: usize) -> Result<Option<Head<'_>>, String> {
    let rest = input.get(from..).unwrap_or_default();
    let beginning = &rest[..rest.len().min(MOST_HEAD)];
    let Some(end) = beginning.windows(4).position(|window| window == b"\r\n\r\n") else {
        return if rest.len() < MOST_HEAD {
            Ok(None)
        } else {
            Err("expected a head, found no end of it".into())
        };
    };
    Ok(Some(Head { text: String::from_utf8_lossy(&rest[..end]), end: from + end + 4 }))
}

impl Head<'_> {
    fn field(&self, name: &str) -> Option<&str> {
        let lines = self.text.split("\r\n").filter_map(|line| line.split_once(": "));
        lines.into_iter().find(|(found, _)| *found == name).map(|(_, value)| value)
    }

    fn length(&self) -> Result<usize, String> {
        let length = self.field("Content-Length").and_then(|length| length.parse().ok());
        length.ok_or_else(|| format!("expected a head with a length, found {:?}", self.text))
    }

    fn status(&self) -> Result<u16, String> {
        let status = self.text.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
        let status = status.and_then(|status| status.parse().ok());
        status.ok_or_else(|| format!("expected the head of an answer, found {:?}", self.text))
    }
}

#[cfg(test)]
mod tests;
