//! What a call carries and what its answer must be: bytes made from the client's number and the call's, so that an
//! answer that belongs to another call is never taken for the right one.
//!
//! Pure: no sockets, no clock. `client` sends what this writes and asks it to judge what came.

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

/// Writes the call behind its length. With `id` the call's number is its id.
pub fn write_call(out: &mut Vec<u8>, work: Work, name: Name, id: bool) {
    let start = out.len();
    out.extend_from_slice(&[0; 4]);
    match sort(work, name) {
        Sort::Text { bytes } => {
            out.extend_from_slice(br#"{"in":"echo","params":""#);
            write_text(out, name, bytes);
            out.push(b'"');
        }
        Sort::Blob { bytes } => {
            let _ = write!(out, r#"{{"in":"blob","params":{{"bytes":{bytes},"of":"{}"}}"#, token(name));
        }
        Sort::Sleep { ms } => {
            let _ = write!(out, r#"{{"in":"sleep","params":{{"ms":{ms}}}"#);
        }
        Sort::Fixed { method, params, .. } => {
            let _ = write!(out, r#"{{"in":"{method}","params":{params}"#);
        }
    }
    if id {
        let _ = write!(out, r#","id":{}"#, name.call);
    }
    out.push(b'}');
    let length = u32::try_from(out.len() - start - 4).unwrap_or(u32::MAX);
    out[start..start + 4].copy_from_slice(&length.to_le_bytes());
}

/// The id of an answer, which stands at its end.
pub fn id_of(answer: &[u8]) -> Option<u64> {
    let tail = answer.strip_suffix(b"}")?;
    let digits = tail.iter().rev().take_while(|byte| byte.is_ascii_digit()).count();
    let (rest, id) = tail.split_at(tail.len() - digits);
    rest.strip_suffix(br#","id":"#)?;
    std::str::from_utf8(id).ok()?.parse().ok()
}

/// Judges an answer without its length. `scratch` is memory for what is expected.
pub fn judge(scratch: &mut Vec<u8>, answer: &[u8], work: Work, name: Name, id: bool) -> Verdict {
    scratch.clear();
    match sort(work, name) {
        Sort::Text { bytes } => {
            scratch.extend_from_slice(br#"{"out":"echo","result":""#);
            write_text(scratch, name, bytes);
            scratch.push(b'"');
        }
        Sort::Blob { bytes } => {
            scratch.extend_from_slice(br#"{"out":"blob","result":""#);
            write_repeated(scratch, token(name).as_bytes(), bytes);
            scratch.push(b'"');
        }
        Sort::Sleep { .. } => scratch.extend_from_slice(br#"{"out":"sleep","result":null"#),
        Sort::Fixed { method, result: Some(result), .. } => {
            let _ = write!(scratch, r#"{{"out":"{method}","result":{result}"#);
        }
        Sort::Fixed { result: None, .. } => {}
    }
    if !scratch.is_empty() {
        if id {
            let _ = write!(scratch, r#","id":{}"#, name.call);
        }
        scratch.push(b'}');
        if scratch == answer {
            return Verdict::Right;
        }
    }
    error_in(answer).map_or_else(|| Verdict::Wrong(difference(scratch, answer)), Verdict::Error)
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

fn error_in(answer: &[u8]) -> Option<Failure> {
    if !answer.starts_with(br#"{"out":"error""#) {
        return None;
    }
    let value: Value = serde_json::from_slice(answer).ok()?;
    let error = &value["result"];
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
