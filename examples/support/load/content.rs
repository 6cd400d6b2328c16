//! What a call carries and what its answer must be: bytes made from the client's number and the call's, so that an
//! answer that belongs to another call is never taken for the right one.
//!
//! Pure: no sockets, no clock. `speech` frames what this writes and has it judge what came.

use std::io::Write;

use serde_json::Value;

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Work {
    /// Text of about that many bytes, sent back as it is.
    Echo { bytes: usize },
    /// An answer of that many bytes to a short question.
    Blob { bytes: usize },
    /// Text sent back, and each `every`-th call a sleep of `ms` instead: with ids, answers come out of order.
    Mixed { bytes: usize, every: u64, ms: u64 },
    /// The same call each time. `result` is what it answers, or None where only errors are expected.
    Fixed { method: &'static str, params: &'static str, result: Option<&'static str> },
}

/// Which call of which client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name {
    pub client: u64,
    pub call: u64,
}

/// Why an answer is not the result that was asked for: what the error says.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Failure {
    pub code: i64,
    /// `data.method`, empty without.
    pub method: String,
    /// `data.cause`, empty without.
    pub cause: String,
}

/// What an answer turned out to be.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict {
    Right,
    Error(Failure),
    Wrong(String),
}

/// How a call and its answer are written, apart from their framing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Envelope {
    /// With ids or without, in which case answers come in order.
    Native { ids: bool },
    /// JSON-RPC 2.0, always with ids: a call without one is never answered.
    JsonRpc,
    /// Params and results alone. What is called and how it ended is said elsewhere.
    None,
}

impl Envelope {
    /// The call's number is its id.
    fn has_ids(self) -> bool {
        matches!(self, Self::Native { ids: true } | Self::JsonRpc)
    }

    fn begin_call(self, out: &mut Vec<u8>, method: &str) {
        let _ = match self {
            Self::Native { .. } => write!(out, r#"{{"in":"{method}","params":"#),
            Self::JsonRpc => write!(out, r#"{{"jsonrpc":"2.0","method":"{method}","params":"#),
            Self::None => Ok(()),
        };
    }

    /// `method` replies with its own name.
    fn begin_result(self, out: &mut Vec<u8>, method: &str) {
        let _ = match self {
            Self::Native { .. } => write!(out, r#"{{"out":"{method}","result":"#),
            Self::JsonRpc => write!(out, r#"{{"jsonrpc":"2.0","result":"#),
            Self::None => Ok(()),
        };
    }

    /// Ends a call or an answer.
    fn end(self, out: &mut Vec<u8>, name: Name) {
        if self.has_ids() {
            let _ = write!(out, r#","id":{}"#, name.call);
        }
        if self != Self::None {
            out.push(b'}');
        }
    }

    /// A text that is sent and comes back; the params of JSON-RPC have to be an array or an object.
    fn write_text(self, out: &mut Vec<u8>, name: Name, bytes: usize) {
        let (before, after): (&[u8], &[u8]) = match self {
            Self::Native { .. } | Self::None => (b"\"", b"\""),
            Self::JsonRpc => (b"[\"", b"\"]"),
        };
        out.extend_from_slice(before);
        write_text(out, name, bytes);
        out.extend_from_slice(after);
    }
}

/// What a call is of.
pub fn method_of(work: Work, name: Name) -> &'static str {
    match sort(work, name) {
        Sort::Text { .. } => "echo",
        Sort::Blob { .. } => "blob",
        Sort::Sleep { .. } => "sleep",
        Sort::Fixed { method, .. } => method,
    }
}

/// Writes a call.
pub fn write_call(out: &mut Vec<u8>, envelope: Envelope, work: Work, name: Name) {
    envelope.begin_call(out, method_of(work, name));
    match sort(work, name) {
        Sort::Text { bytes } => envelope.write_text(out, name, bytes),
        Sort::Blob { bytes } => {
            let _ = write!(out, r#"{{"bytes":{bytes},"of":"{}"}}"#, token(name));
        }
        Sort::Sleep { ms } => {
            let _ = write!(out, r#"{{"ms":{ms}}}"#);
        }
        Sort::Fixed { params, .. } => out.extend_from_slice(params.as_bytes()),
    }
    envelope.end(out, name);
}

/// The id of an answer, which stands at its end.
pub fn id_of(answer: &[u8]) -> Option<u64> {
    let tail = answer.strip_suffix(b"}")?;
    let digits = tail.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, id) = tail.split_at(tail.len() - digits);
    rest.strip_suffix(br#","id":"#)?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// True of what nobody takes for the answer to a call: no JSON at all, an answer of JSON-RPC that doesn't say whose it is, or such an
/// error in any form, as to a message of which nothing could be made, or to a call of a batch.
pub fn is_nobodys(answer: &[u8]) -> bool {
    let Ok(value) = serde_json::from_slice::<Value>(answer) else { return true };
    value.as_array().map_or_else(|| names_no_call(&value), |answers| answers.iter().any(names_no_call))
}

fn names_no_call(value: &Value) -> bool {
    let is_error = value["out"] == "error" || value["error"].is_object() || value["code"].is_i64();
    (is_error || value["jsonrpc"].is_string()) && value["id"].is_null()
}

/// Judges an answer. `scratch` is memory for what is expected.
pub fn judge(scratch: &mut Vec<u8>, answer: &[u8], envelope: Envelope, work: Work, name: Name) -> Verdict {
    scratch.clear();
    match sort(work, name) {
        Sort::Text { bytes } => {
            envelope.begin_result(scratch, "echo");
            envelope.write_text(scratch, name, bytes);
        }
        Sort::Blob { bytes } => {
            envelope.begin_result(scratch, "blob");
            scratch.push(b'"');
            write_repeated(scratch, token(name).as_bytes(), bytes);
            scratch.push(b'"');
        }
        Sort::Sleep { .. } => {
            envelope.begin_result(scratch, "sleep");
            scratch.extend_from_slice(b"null");
        }
        Sort::Fixed { method, result: Some(result), .. } => {
            envelope.begin_result(scratch, method);
            scratch.extend_from_slice(result.as_bytes());
        }
        Sort::Fixed { result: None, .. } => {}
    }
    if !scratch.is_empty() {
        envelope.end(scratch, name);
        if scratch == answer {
            return Verdict::Right;
        }
    }
    let is_its_own = !envelope.has_ids() || id_of(answer) == Some(name.call);
    let failure = error_in(answer, envelope).filter(|_| is_its_own);
    failure.map_or_else(|| Verdict::Wrong(difference(scratch, answer)), Verdict::Error)
}

enum Sort {
    Text { bytes: usize },
    Blob { bytes: usize },
    Sleep { ms: u64 },
    Fixed { method: &'static str, params: &'static str, result: Option<&'static str> },
}

fn sort(work: Work, name: Name) -> Sort {
    match work {
        Work::Echo { bytes } => Sort::Text { bytes },
        Work::Blob { bytes } => Sort::Blob { bytes },
        Work::Mixed { every, ms, .. } if name.call % every == every - 1 => Sort::Sleep { ms },
        Work::Mixed { bytes, .. } => Sort::Text { bytes },
        Work::Fixed { method, params, result } => Sort::Fixed { method, params, result },
    }
}

fn token(name: Name) -> String {
    format!("{}.{}.", name.client, name.call)
}

fn write_text(out: &mut Vec<u8>, name: Name, bytes: usize) {
    let start = out.len();
    let _ = write!(out, "{}.{}.", name.client, name.call);
    let token = out.len() - start;
    // Repeated in doubling steps, of what is there already.
    while out.len() - start < bytes {
        let whole = (out.len() - start) / token * token;
        let more = whole.min(bytes - (out.len() - start));
        out.extend_from_within(start..start + more);
    }
}

fn write_repeated(out: &mut Vec<u8>, token: &[u8], bytes: usize) {
    let end = out.len() + bytes;
    while out.len() < end {
        out.extend_from_slice(&token[..token.len().min(end - out.len())]);
    }
}

fn error_in(answer: &[u8], envelope: Envelope) -> Option<Failure> {
    let (beginning, place): (&[u8], _) = match envelope {
        Envelope::Native { .. } => (br#"{"out":"error","result":"#, "/result"),
        Envelope::JsonRpc => (br#"{"jsonrpc":"2.0","error":"#, "/error"),
        Envelope::None => (br#"{"code":"#, ""),
    };
    if !answer.starts_with(beginning) {
        return None;
    }
    let value: Value = serde_json::from_slice(answer).ok()?;
    let error = value.pointer(place)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    Some(Failure {
        code: error["code"].as_i64()?,
        method: text(&error["data"]["method"]),
        cause: text(&error["data"]["cause"]),
    })
}

fn difference(expected: &[u8], found: &[u8]) -> String {
    let at = expected.iter().zip(found).take_while(|(a, b)| a == b).count();
    let piece = |bytes: &[u8]| {
        let from = at.saturating_sub(40).min(bytes.len());
        String::from_utf8_lossy(&bytes[from..bytes.len().min(at + 60)]).into_owned()
    };
    format!(
        "expected {} bytes, found {}; they differ from byte {at} on: expected …{:?}, found …{:?}",
        expected.len(),
        found.len(),
        piece(expected),
        piece(found)
    )
}
