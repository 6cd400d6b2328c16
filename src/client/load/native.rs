//! Calls of one method in the native envelope and length-prefix framing, and the check of their answers.
//!
//! The first answer of a connection is parsed; what it looked like is what the following ones are compared with.

use std::borrow::Cow;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;
use serde_json::value::RawValue;

use super::error::LoadError;
use super::exchange::{Answer, Exchange, excerpt};

/// The length prefix's size in bytes.
const HEAD: usize = 4;

/// An answer that announces more is no answer: it would fill the memory before it could be judged.
const LONGEST_ANSWER: usize = 64 << 20;

/// Calls of one method of a tine server: native envelope, length-prefix framing, without ids, so answers come in order.
///
/// What is checked:
///
/// - Where the result is known (`ping` and `echo` answer with their params; any method with
///   [`expecting`](Self::expecting)), the first answer of a connection must have that result as a JSON value, and every
///   later one is compared with the first byte by byte. One that is written differently is parsed, and right if
///   it says the same.
/// - Otherwise the first answer must be an object with a name in `out` and a `result`. Later ones must have the same name;
///   their results are not read.
/// - `{"out":"error",…}` is an error answer, whatever the method.
///
/// ```
/// use tine::load::{Answer, Exchange, Native};
///
/// let mut ping = Native::new("ping", Some("\"ireader 0\""))?;
/// let mut request = Vec::new();
/// ping.request(&mut request);
/// assert_eq!(&request[4..], br#"{"in":"ping","params":"ireader 0"}"#);
///
/// let body = br#"{"out":"pong","result":"ireader 0"}"#;
/// let answer = [&(body.len() as u32).to_le_bytes(), &body[..]].concat();
/// assert_eq!(ping.answer(&answer), Answer::Right { consumed: answer.len() });
/// # Ok::<(), tine::load::LoadError>(())
/// ```
#[derive(Debug, Clone)]
pub struct Native {
    request: Arc<[u8]>,
    /// The name and result of a right answer, as far as they are known before one is seen.
    out: Option<Arc<str>>,
    result: Option<Arc<Value>>,
    /// Learned from this connection's first right answer: the whole frame where the result is known, else the body up to
    /// its result.
    seen: Vec<u8>,
}

#[derive(Deserialize)]
struct Body<'a> {
    #[serde(borrow)]
    out: Cow<'a, str>,
    #[serde(borrow)]
    result: &'a RawValue,
}

impl Native {
    /// Calls of `method` with `params`, which is JSON; without it the calls have none.
    ///
    /// # Errors
    ///
    /// [`LoadError::Params`] when `params` is no JSON, or too long for one message.
    pub fn new(method: &str, params: Option<&str>) -> Result<Self, LoadError> {
        let params = params
            .map(serde_json::from_str::<&RawValue>)
            .transpose()
            .map_err(|error| LoadError::Params(format!("the params are not JSON: {error}")))?;
        let method_json = Value::from(method);
        let body = match params {
            Some(params) => format!(r#"{{"in":{method_json},"params":{params}}}"#),
            None => format!(r#"{{"in":{method_json}}}"#),
        };
        let length = u32::try_from(body.len()).map_err(|_| {
            LoadError::Params(format!(
                "the params are too long: one message has at most {} bytes, found {}",
                u32::MAX,
                body.len()
            ))
        })?;
        let request = [&length.to_le_bytes(), body.as_bytes()].concat().into();
        let out = match method {
            "ping" => Some("pong".into()),
            "echo" => Some("echo".into()),
            _ => None,
        };
        let native = Self { request, out, result: None, seen: Vec::new() };
        // The built-in methods answer with their params.
        if native.out.is_some() { native.expecting(params.map_or("null", RawValue::get)) } else { Ok(native) }
    }

    /// As it is, but every answer must have `result`, which is JSON.
    ///
    /// # Errors
    ///
    /// [`LoadError::Params`] when `result` is no JSON.
    ///
    /// ```
    /// # use tine::load::Native;
    /// let sleep = Native::new("sleep", Some("{\"ms\": 5}"))?.expecting("null")?;
    /// # Ok::<(), tine::load::LoadError>(())
    /// ```
    pub fn expecting(mut self, result: &str) -> Result<Self, LoadError> {
        let result = serde_json::from_str(result)
            .map_err(|error| LoadError::Params(format!("the expected result is not JSON: {error}")))?;
        self.result = Some(Arc::new(result));
        self.seen.clear();
        Ok(self)
    }

    /// Judges an answer by what it says. Once for each connection where answers are all alike.
    fn parse(&mut self, frame: &[u8]) -> Answer {
        let body = frame.get(HEAD..).unwrap_or_default();
        let parsed: Body<'_> = match serde_json::from_slice(body) {
            Ok(parsed) => parsed,
            Err(error) => {
                return wrong(&format!("an answer such as {{\"out\":NAME,\"result\":ANY}} ({error})"), body);
            }
        };
        if parsed.out == "error" {
            return Answer::Error { consumed: frame.len() };
        }
        match &self.out {
            Some(out) if **out != *parsed.out => return wrong(&format!("an answer of {out:?}"), body),
            Some(_) => {}
            None => self.out = Some(parsed.out.as_ref().into()),
        }
        if let Some(result) = &self.result {
            if serde_json::from_str::<Value>(parsed.result.get()).ok().as_ref() != Some(&**result) {
                return wrong(&format!("the result {result}"), body);
            }
            frame.clone_into(&mut self.seen);
        } else if self.seen.is_empty() {
            // Only where the result is the last member is what follows it known to be one brace.
            let before_result = body.strip_suffix(b"}").and_then(|rest| {
                rest.strip_suffix(parsed.result.get().as_bytes()).filter(|rest| rest.ends_with(b":"))
            });
            before_result.unwrap_or_default().clone_into(&mut self.seen);
        }
        Answer::Right { consumed: frame.len() }
    }

    fn looks_as_seen(&self, frame: &[u8]) -> bool {
        let Some(body) = frame.get(HEAD..) else { return false };
        !self.seen.is_empty() && body.starts_with(&self.seen) && body.ends_with(b"}")
    }
}

impl Exchange for Native {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, bytes: &[u8]) -> Answer {
        if self.result.is_some() && !self.seen.is_empty() && bytes.starts_with(&self.seen) {
            return Answer::Right { consumed: self.seen.len() };
        }
        let Some(head) = bytes.first_chunk::<HEAD>() else { return Answer::NeedMore };
        let length = u32::from_le_bytes(*head) as usize;
        if length == 0 || length > LONGEST_ANSWER {
            return wrong(&format!("a length from 1 to {LONGEST_ANSWER}"), bytes);
        }
        let Some(frame) = bytes.get(..HEAD + length) else { return Answer::NeedMore };
        if self.result.is_none() && self.looks_as_seen(frame) {
            return Answer::Right { consumed: frame.len() };
        }
        self.parse(frame)
    }
}

fn wrong(expected: &str, found: &[u8]) -> Answer {
    Answer::Wrong { why: format!("expected {expected}, found {}", excerpt(found)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &str) -> Vec<u8> {
        let length = u32::try_from(body.len()).expect("short");
        [&length.to_le_bytes(), body.as_bytes()].concat()
    }

    fn judged(native: &mut Native, body: &str) -> &'static str {
        let frame = frame(body);
        for end in 1..frame.len() {
            assert_eq!(native.answer(&frame[..end]), Answer::NeedMore, "{body} up to {end}");
        }
        let followed = [&frame[..], b"\x05\0\0"].concat();
        match native.answer(&followed) {
            Answer::Right { consumed } if consumed == frame.len() => "right",
            Answer::Error { consumed } if consumed == frame.len() => "error",
            Answer::Wrong { why } => {
                assert!(why.starts_with("expected "), "{why}");
                "wrong"
            }
            other => panic!("{body}: {other:?}"),
        }
    }

    #[test]
    fn a_known_result_is_compared_also_when_it_is_written_differently() {
        let mut ping = Native::new("ping", Some(r#"{"a":[1]}"#)).expect("JSON");
        for (body, expected) in [
            (r#"{"out": "pong", "result": {"a": [1]}}"#, "right"),
            (r#"{"out":"pong","result":{"a":[1]}}"#, "right"),
            (r#"{"out":"pong","result":{"a":[1]}}"#, "right"),
            (r#"{"out":"pong","result":{"a":[2]}}"#, "wrong"),
            (r#"{"out":"ping","result":{"a":[1]}}"#, "wrong"),
            (r#"{"out":"pong"}"#, "wrong"),
            (r#"{"out":"error","result":{"code":1,"message":"x"}}"#, "error"),
            (r#"{"out":"pong","result":{"a":[1]}}"#, "right"),
        ] {
            assert_eq!(judged(&mut ping, body), expected, "{body}");
        }
    }

    #[test]
    fn an_unknown_result_may_change_but_its_name_may_not() {
        let mut rand = Native::new("rand", None).expect("no params");
        for (body, expected) in [
            (r#"{"out":"error","result":{"code":-32000,"message":"x"}}"#, "error"),
            (r#"{"out":"rand","result":1}"#, "right"),
            (r#"{"out":"rand","result":[2]}"#, "right"),
            (r#"{"result":3,"out":"rand"}"#, "right"),
            (r#"{"out":"error","result":{"code":1,"message":"x"}}"#, "error"),
            (r#"{"out":"sleep","result":1}"#, "wrong"),
            (r#"{"out":"rand","result":"#, "wrong"),
            ("[]", "wrong"),
        ] {
            assert_eq!(judged(&mut rand, body), expected, "{body}");
        }
    }

    #[test]
    fn an_answer_whose_result_is_not_last_is_parsed_each_time() {
        let mut rand = Native::new("rand", None).expect("no params");
        for _ in 0..2 {
            assert_eq!(judged(&mut rand, r#"{"result":"x","out":"rand"}"#), "right");
        }
        assert!(rand.seen.is_empty());
    }

    #[test]
    fn a_length_that_no_answer_has_is_wrong_at_once() {
        let mut ping = Native::new("ping", None).expect("no params");
        for head in [[0, 0, 0, 0], [0, 0, 0, 255], *b"HTTP"] {
            assert!(matches!(ping.answer(&head), Answer::Wrong { .. }), "{head:?}");
        }
    }

    #[test]
    fn without_params_ping_is_answered_with_null() {
        let mut ping = Native::new("ping", None).expect("no params");
        let mut request = Vec::new();
        ping.request(&mut request);
        assert_eq!(request, frame(r#"{"in":"ping"}"#));
        assert_eq!(judged(&mut ping, r#"{"out":"pong","result":null}"#), "right");
    }

    #[test]
    fn params_and_results_that_are_no_json_are_refused() {
        assert!(matches!(Native::new("ping", Some("oops")), Err(LoadError::Params(_))));
        let sleep = Native::new("sleep", None).expect("no params");
        assert!(matches!(sleep.expecting(""), Err(LoadError::Params(_))));
    }
}
