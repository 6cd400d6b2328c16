//! The client's half of the native envelope: a call to bytes, an answer's bytes to what it says.
//!
//! No sockets here. The framing is the length prefix: a little-endian u32, then that many bytes of JSON.

use std::borrow::Cow;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::error::{ClientError, RemoteError};

/// The length prefix's size in bytes.
pub(super) const HEAD: usize = 4;

#[derive(Serialize)]
struct Request<'a> {
    #[serde(rename = "in")]
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
struct Answer<'a> {
    #[serde(borrow)]
    out: Cow<'a, str>,
    #[serde(borrow)]
    result: &'a RawValue,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

/// One call as it goes over the connection, prefix included. `left` is the caller's deadline.
pub(super) fn request(
    id: u64,
    method: &str,
    params: Option<&RawValue>,
    left: Option<Duration>,
) -> Result<Vec<u8>, ClientError> {
    // A deadline under a millisecond is still a deadline: 0 would say that it has passed.
    let timeout_ms = left.map(|left| u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1));
    let mut frame = vec![0; HEAD];
    serde_json::to_writer(&mut frame, &Request { method, params, id, timeout_ms })
        .map_err(ClientError::Params)?;
    let length = u32::try_from(frame.len() - HEAD).map_err(|_| {
        let most = u32::MAX;
        let found = frame.len() - HEAD;
        ClientError::Params(serde::ser::Error::custom(format!("{found} bytes, one message holds {most}")))
    })?;
    frame.splice(..HEAD, length.to_le_bytes());
    Ok(frame)
}

/// The answer to a call, read.
#[derive(Debug)]
pub(super) struct Reply {
    pub(super) outcome: Result<Box<RawValue>, RemoteError>,
    /// False for an error without an id: the server did not read the call as far as its id, and may hang up.
    pub(super) goes_on: bool,
}

/// What the answer to call `id` says. `Err(Protocol)` if these bytes are not its answer.
///
/// An error without an id answers the call too: nothing else was asked on this connection.
pub(super) fn reply(body: &[u8], id: u64) -> Result<Reply, ClientError> {
    let answer: Answer<'_> = serde_json::from_slice(body).map_err(|error| {
        protocol(format!(
            "expected an answer such as {{\"out\":NAME,\"result\":ANY,\"id\":{id}}}, found {error}"
        ))
    })?;
    let failed = answer.out == "error";
    match answer.id.map(RawValue::get) {
        Some(found) if found.parse() == Ok(id) => {}
        None if failed => {}
        found => {
            let found = found.unwrap_or("none");
            return Err(protocol(format!("expected the answer to call {id}, found one with id {found}")));
        }
    }
    if failed {
        let error: RemoteError = serde_json::from_str(answer.result.get()).map_err(|error| {
            protocol(format!("expected an error with code and message in answer to call {id}, found {error}"))
        })?;
        return Ok(Reply { outcome: Err(error), goes_on: answer.id.is_some() });
    }
    Ok(Reply { outcome: Ok(answer.result.to_owned()), goes_on: true })
}

fn protocol(text: String) -> ClientError {
    ClientError::Protocol(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn body(frame: &[u8]) -> &str {
        let (head, body) = frame.split_at(HEAD);
        assert_eq!(head, u32::try_from(body.len()).expect("short").to_le_bytes());
        std::str::from_utf8(body).expect("JSON is text")
    }

    #[test]
    fn params_go_out_as_they_were_written_and_only_what_is_set_is_sent() {
        let params: Box<RawValue> = serde_json::from_str(r#"[1.50, "\u0041"]"#).expect("JSON");
        let frame = request(7, "add", Some(&params), Some(Duration::from_millis(250))).expect("a frame");
        assert_eq!(body(&frame), r#"{"in":"add","params":[1.50, "\u0041"],"id":7,"timeout_ms":250}"#);
        let frame = request(8, "pi\"ng", None, None).expect("a frame");
        assert_eq!(body(&frame), r#"{"in":"pi\"ng","id":8}"#);
    }

    #[test]
    fn a_deadline_under_a_millisecond_is_sent_as_one() {
        let frame = request(1, "ping", None, Some(Duration::from_micros(3))).expect("a frame");
        assert_eq!(body(&frame), r#"{"in":"ping","id":1,"timeout_ms":1}"#);
    }

    #[test]
    fn a_result_comes_back_as_it_was_written() {
        for result in ["1.50", r#""\u0041""#, "null", "{\"a\": [ ] }"] {
            let answer = format!(r#"{{"out":"pong","result":{result},"id":7}}"#);
            let reply = reply(answer.as_bytes(), 7).expect("an answer");
            assert_eq!(reply.outcome.expect("a result").get(), result);
        }
    }

    #[test]
    fn an_answer_may_bring_members_that_this_client_does_not_know() {
        let answer = br#"{"took_ms":1,"out":"p\u006fng","id": 7 ,"result":0}"#;
        let reply = reply(answer, 7).expect("an answer");
        assert_eq!(reply.outcome.expect("a result").get(), "0");
    }

    #[test]
    fn an_error_answer_is_the_calls_with_its_id_or_without_one() {
        for (id, goes_on) in [("", false), (r#","id":null"#, false), (r#","id":7"#, true)] {
            let answer = format!(r#"{{"out":"error","result":{{"code":-32003,"message":"too large"}}{id}}}"#);
            let reply = reply(answer.as_bytes(), 7).expect("an answer");
            let error = reply.outcome.expect_err("an error answer");
            assert_eq!((error.code, error.message.as_str()), (-32003, "too large"));
            assert_eq!(reply.goes_on, goes_on, "{answer}");
        }
    }

    #[test]
    fn what_is_not_this_calls_answer_is_refused_with_what_was_found() {
        for (answer, found) in [
            (r#"{"out":"pong","result":1,"id":6}"#, "id 6"),
            (r#"{"out":"pong","result":1,"id":"7"}"#, "id \"7\""),
            (r#"{"out":"pong","result":1}"#, "id none"),
            (r#"{"out":"error","result":{"code":1,"message":"x"},"id":6}"#, "id 6"),
            (r#"{"out":"error","result":"broken","id":7}"#, "code and message"),
            (r#"{"out":"pong","id":7}"#, "missing field `result`"),
            ("[]", "invalid"),
            ("", "EOF"),
        ] {
            let Err(ClientError::Protocol(text)) = reply(answer.as_bytes(), 7) else { panic!("{answer}") };
            assert!(text.contains(found), "{answer}: {text}");
        }
    }
}
