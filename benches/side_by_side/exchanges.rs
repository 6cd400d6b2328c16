//! What servers of others speak: enough of it to send one kind of call and to check its answers.

use std::io::Write;
use std::sync::Arc;

use tine::load::{Answer, Exchange};

/// Longer heads than any server here sends.
const LONGEST_HEAD: usize = 16 * 1024;

/// HTTP/1.1 requests that are all alike, on connections that stay open. Of an answer the status, the length and the
/// body are checked; other headers may say what they like (nginx puts the time in).
#[derive(Debug, Clone)]
pub(crate) struct Http {
    request: Arc<[u8]>,
    body: Arc<[u8]>,
}

impl Http {
    /// `GET /`, answered with this body.
    pub(crate) fn get(body: &str) -> Self {
        let request = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n";
        Self { request: Arc::from(&request[..]), body: Arc::from(body.as_bytes()) }
    }
}

impl Exchange for Http {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, bytes: &[u8]) -> Answer {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return if bytes.len() > LONGEST_HEAD {
                wrong("the end of a head", bytes)
            } else {
                Answer::NeedMore
            };
        };
        let head = &bytes[..end];
        if !head.starts_with(b"HTTP/1.1 200 ") {
            return wrong("the status 200", bytes);
        }
        if content_length(head) != Some(self.body.len()) {
            return wrong("a Content-Length that is the body's", bytes);
        }
        let consumed = end + 4 + self.body.len();
        match bytes.get(end + 4..consumed) {
            None => Answer::NeedMore,
            Some(body) if body == &*self.body => Answer::Right { consumed },
            Some(_) => wrong("the body", bytes),
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    })?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// Calls of `ping(params: String)` in the JSON transport of tarpc 0.38: a big-endian length, then a message with an id
/// that is this connection's own. Answers may come in any order.
#[derive(Debug, Clone)]
pub(crate) struct Tarpc {
    /// A request up to its id, and from there on.
    head: Arc<[u8]>,
    tail: Arc<[u8]>,
    /// An answer behind its id.
    answer: Arc<[u8]>,
    next: u64,
    under_way: Vec<u64>,
}

impl Tarpc {
    const ANSWER_HEAD: &[u8] = br#"{"request_id":"#;

    /// With a deadline of nearly 10 seconds and a trace id, as its own client sends.
    pub(crate) fn ping(params: &str) -> Self {
        let trace = "[201,87,14,163,92,250,6,118,45,33,190,71,228,9,154,60]";
        let context = format!(
            r#"{{"deadline":{{"secs":9,"nanos":999998437}},"trace_context":{{"trace_id":{trace},"span_id":11672590843917440321,"sampling_decision":"Unsampled"}}}}"#
        );
        let head = format!(r#"{{"Request":{{"context":{context},"id":"#);
        let tail = format!(r#","message":{{"Ping":{{"params":{params}}}}}}}}}"#);
        let answer = format!(r#","message":{{"Ok":{{"Ping":{params}}}}}}}"#);
        let bytes = |text: String| Arc::from(text.into_bytes());
        Self {
            head: bytes(head),
            tail: bytes(tail),
            answer: bytes(answer),
            next: 0,
            under_way: Vec::with_capacity(64),
        }
    }

    /// The id of a right answer.
    fn id_of(&self, body: &[u8]) -> Option<u64> {
        let id = body.strip_prefix(Self::ANSWER_HEAD)?.strip_suffix(&*self.answer)?;
        std::str::from_utf8(id).ok()?.parse().ok()
    }
}

impl Exchange for Tarpc {
    fn request(&mut self, out: &mut Vec<u8>) {
        let start = out.len();
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&self.head);
        // Writing to a Vec can't fail.
        let _ = write!(out, "{}", self.next);
        out.extend_from_slice(&self.tail);
        let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
        out[start..start + 4].copy_from_slice(&length.to_be_bytes());
        self.under_way.push(self.next);
        self.next += 1;
    }

    fn answer(&mut self, bytes: &[u8]) -> Answer {
        let Some(prefix) = bytes.first_chunk::<4>() else { return Answer::NeedMore };
        let consumed = 4 + u32::from_be_bytes(*prefix) as usize;
        if consumed > LONGEST_HEAD {
            return wrong("a short answer", bytes);
        }
        let Some(body) = bytes.get(4..consumed) else { return Answer::NeedMore };
        let id = self.id_of(body);
        match id.and_then(|id| self.under_way.iter().position(|under_way| *under_way == id)) {
            Some(index) => {
                self.under_way.swap_remove(index);
                Answer::Right { consumed }
            }
            None => wrong("the params back, for a call that is under way", bytes),
        }
    }
}

fn wrong(expected: &str, found: &[u8]) -> Answer {
    let found = String::from_utf8_lossy(&found[..found.len().min(300)]);
    Answer::Wrong { why: format!("expected {expected}, found {found}") }
}
