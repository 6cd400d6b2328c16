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
mod tests {
    use super::*;

    const WORK: Work = Work::Echo { bytes: 10 };

    /// The answer of a service that echoes, and what is found in it at each length of what has arrived.
    fn found(speech: Speech, answer: &[u8]) -> Found {
        let mut looked = 0;
        for length in 0..answer.len() {
            let found = speech.find_answer(&answer[..length], looked);
            assert_eq!(found, Ok(None), "{speech:?}: {length} of {}", answer.len());
            looked = length;
        }
        // What comes behind it is no part of it.
        let more = [answer, b"more\r\n\r\n"].concat();
        let found = speech.find_answer(&more, looked).expect("an answer").expect("all of it");
        assert_eq!(found.end, answer.len(), "{speech:?}");
        found
    }

    fn judged(speech: Speech, answer: &[u8], message: u64) -> Vec<Verdict> {
        let Found { body, status, .. } = found(speech, answer);
        speech.judge(&mut Vec::new(), (&answer[body], status), WORK, (7, message))
    }

    fn framed(speech: Speech, status: &str, body: &str) -> Vec<u8> {
        let length = body.len();
        match speech.framing {
            Framing::Length => [&u32::try_from(length).unwrap().to_le_bytes(), body.as_bytes()].concat(),
            Framing::Stream => format!("{body}\n").into(),
            Framing::Header => format!("Content-Length: {length}\r\n\r\n{body}").into(),
            Framing::Http => format!("HTTP/1.1 {status}\r\nContent-Length: {length}\r\n\r\n{body}").into(),
        }
    }

    /// What the service answers to these calls.
    fn body(speech: Speech, calls: Range<u64>) -> String {
        let one = |call: u64| {
            let text = format!("7.{call}.7.{call}.7.{call}.")[..10].to_owned();
            match speech.saying {
                Saying::Native { ids: false } => format!(r#"{{"out":"echo","result":"{text}"}}"#),
                Saying::Native { ids: true } => format!(r#"{{"out":"echo","result":"{text}","id":{call}}}"#),
                Saying::Bare => format!(r#""{text}""#),
                _ => format!(r#"{{"jsonrpc":"2.0","result":["{text}"],"id":{call}}}"#),
            }
        };
        let all: Vec<String> = calls.map(one).collect();
        if speech.calls() > 1 { format!("[{}]", all.join(",")) } else { all.concat() }
    }

    #[test]
    fn the_right_answer_is_right_and_any_other_calls_is_not() {
        for speech in Speech::ALL.iter().copied() {
            let right = framed(speech, "200 OK", &body(speech, speech.numbers(3)));
            let verdicts = judged(speech, &right, 3);
            assert_eq!(verdicts.len() as u64, speech.calls(), "{speech:?}");
            assert!(verdicts.iter().all(|verdict| *verdict == Verdict::Right), "{speech:?}: {verdicts:?}");
            let other = framed(speech, "200 OK", &body(speech, speech.numbers(4)));
            let verdicts = judged(speech, &other, 3);
            assert!(verdicts.iter().any(|verdict| matches!(verdict, Verdict::Wrong(_))), "{speech:?}");
            if speech.framing == Framing::Http {
                let verdicts = judged(speech, &framed(speech, "502 Bad Gateway", &body(speech, 3..4)), 3);
                assert!(verdicts.iter().any(|verdict| matches!(verdict, Verdict::Wrong(_))), "{speech:?}");
            }
        }
    }

    #[test]
    fn an_error_is_one_in_its_own_form_and_with_its_own_status_alone() {
        let error = r#"{"code":-32002,"message":"m","data":{"method":"echo","cause":"SIGKILL"}}"#;
        let failure = Failure { code: -32002, method: "echo".into(), cause: "SIGKILL".into() };
        for speech in Speech::ALL.iter().copied() {
            let message = 2;
            let body = |call: u64| match speech.saying {
                Saying::Native { ids: false } => format!(r#"{{"out":"error","result":{error}}}"#),
                Saying::Native { ids: true } => format!(r#"{{"out":"error","result":{error},"id":{call}}}"#),
                Saying::Bare => error.to_owned(),
                _ => format!(r#"{{"jsonrpc":"2.0","error":{error},"id":{call}}}"#),
            };
            let all: Vec<String> = speech.numbers(message).map(body).collect();
            let all = if speech.calls() > 1 { format!("[{}]", all.join(",")) } else { all.concat() };
            let is_bare = speech.saying == Saying::Bare;
            let (right, wrong) =
                if is_bare { ("502 Bad Gateway", "200 OK") } else { ("200 OK", "502 Bad Gateway") };
            let verdicts = judged(speech, &framed(speech, right, &all), message);
            assert_eq!(verdicts.len() as u64, speech.calls(), "{speech:?}");
            assert!(
                verdicts.iter().all(|verdict| *verdict == Verdict::Error(failure.clone())),
                "{speech:?}: {verdicts:?}"
            );
            if speech.framing == Framing::Http {
                let verdicts = judged(speech, &framed(speech, wrong, &all), message);
                assert!(matches!(verdicts[..], [Verdict::Wrong(_)]), "{speech:?}: {verdicts:?}");
            }
        }
    }

    #[test]
    fn an_answer_says_which_message_it_is_to_unless_the_order_does() {
        for speech in Speech::ALL.iter().copied() {
            let expected = (!speech.is_ordered()).then_some(5);
            let answer = body(speech, speech.numbers(5));
            assert_eq!(speech.message_of(answer.as_bytes()), expected, "{speech:?}");
        }
    }

    #[test]
    fn a_batch_must_be_answered_whole_and_each_call_once() {
        let speech = Speech::new(Framing::Length, Saying::Batch { calls: 3 });
        let wrong = |calls: &[u64]| {
            let single = Speech::new(Framing::Length, Saying::JsonRpc);
            let all: Vec<String> = calls.iter().map(|call| body(single, *call..call + 1)).collect();
            let verdicts = judged(speech, &framed(speech, "", &format!("[{}]", all.join(","))), 1);
            verdicts.iter().filter(|verdict| matches!(verdict, Verdict::Wrong(_))).count()
        };
        assert_eq!(wrong(&[3, 4, 5]), 0);
        assert_eq!(wrong(&[5, 3, 4]), 0);
        assert_eq!(wrong(&[3, 5]), 1);
        assert_eq!(wrong(&[3, 4, 4, 5]), 1);
        assert_eq!(wrong(&[3, 4, 5, 6]), 1);
        assert!(matches!(judged(speech, &framed(speech, "", "{}"), 1)[..], [Verdict::Wrong(_)]));
    }

    #[test]
    fn interim_answers_are_passed_over_and_goodbyes_heard() {
        let speech = Speech::new(Framing::Http, Saying::Bare);
        let go_on = "HTTP/1.1 100 Continue\r\n\r\n";
        let answer = format!(
            "{go_on}{go_on}HTTP/1.1 504 Gateway Timeout\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{{}}"
        );
        let found = found(speech, answer.as_bytes());
        assert_eq!((found.status, found.is_goodbye), (504, true));
        assert_eq!(&answer[found.body], "{}");
        assert!(speech.find_answer(b"HTTP/1.1 200 OK\r\n\r\n", 0).is_err());
        assert!(speech.find_answer(b"what?\r\nContent-Length: 1\r\n\r\n1", 0).is_err());
    }
}
