//! What servers of others speak, beside HTTP: enough of it to send one kind of call and to check its answers.

use std::io::Write;
use std::sync::Arc;

use tine::load::{Answer, Exchange};

use super::support::http::wrong;

/// Longer answers than any server here sends.
const LONGEST_ANSWER: usize = 16 * 1024;

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
        if consumed > LONGEST_ANSWER {
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
