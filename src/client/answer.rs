//! An answer's bytes to what they say, in either envelope.
//!
//! `connection` reads with this what has arrived; whose answer it is, `waiting` knows. A connection may bring answers of both
//! envelopes, since the handles that share it may differ.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::RemoteError;

/// One message of the server: an answer, or an array of them.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) is_array: bool,
    pub(super) answers: Vec<Answer>,
}

#[derive(Debug)]
pub(super) struct Answer {
    /// `None` only for an error: the server did not read the call as far as its id, and may hang up.
    pub(super) id: Option<u64>,
    pub(super) outcome: Result<Box<RawValue>, RemoteError>,
}

/// What a message says, or in words what is wrong with it.
pub(super) fn read(message: &[u8]) -> Result<Arrived, String> {
    let is_array = message.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'[');
    let answers: Vec<Members<'_>> = if is_array {
        serde_json::from_slice(message).map_err(expected)?
    } else {
        vec![serde_json::from_slice(message).map_err(expected)?]
    };
    let answers = answers.into_iter().map(Members::judged).collect::<Result<_, _>>()?;
    Ok(Arrived { is_array, answers })
}

/// Both envelopes, and what this client doesn't know.
#[derive(Deserialize)]
struct Members<'a> {
    #[serde(borrow, default)]
    jsonrpc: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    out: Option<Cow<'a, str>>,
    // An `Option` would take a `null` for nothing.
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
}

fn present<'de: 'a, 'a, D: serde::Deserializer<'de>>(from: D) -> Result<Option<&'a RawValue>, D::Error> {
    <&RawValue>::deserialize(from).map(Some)
}

impl Members<'_> {
    fn judged(self) -> Result<Answer, String> {
        let id = self.id.map(RawValue::get).filter(|id| *id != "null");
        let whose = id.unwrap_or("none");
        let (result, error) = match (self.out.as_deref(), self.jsonrpc.as_deref()) {
            (Some("error"), _) => (None, self.result),
            (Some(_), _) => (self.result, None),
            (None, Some("2.0")) => (self.result, self.error),
            (None, _) => return Err(expected(format!("neither, with id {whose}"))),
        };
        let outcome = match (result, error) {
            (Some(result), None) => Ok(result.to_owned()),
            (None, Some(error)) => Err(serde_json::from_str(error.get()).map_err(|why| {
                format!("expected an error with code and message in the answer with id {whose}, found {why}")
            })?),
            _ => {
                return Err(format!(
                    "expected an answer with either a result or an error, found id {whose} with neither or both"
                ));
            }
        };
        let id = match id {
            None if outcome.is_err() => None,
            None => return Err("expected an answer with an id, found one without".to_owned()),
            Some(id) => {
                let number = id.parse().map_err(|_| {
                    format!("expected the answer to one of this client's calls, found one with id {id}")
                })?;
                Some(number)
            }
        };
        Ok(Answer { id, outcome })
    }
}

fn expected(found: impl std::fmt::Display) -> String {
    format!(
        "expected an answer such as {{\"out\":NAME,\"result\":ANY,\"id\":1}} or \
         {{\"jsonrpc\":\"2.0\",\"result\":ANY,\"id\":1}}, found {found}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(message: &str) -> Answer {
        let arrived = read(message.as_bytes()).unwrap_or_else(|why| panic!("{message}: {why}"));
        assert!(!arrived.is_array);
        arrived.answers.into_iter().next().expect("one answer")
    }

    #[test]
    fn a_result_comes_back_as_it_was_written() {
        for result in ["1.50", r#""\u0041""#, "null", "{\"a\": [ ] }"] {
            for start in [r#"{"out":"pong""#, r#"{"jsonrpc":"2.0""#] {
                let answer = one(&format!(r#"{start},"result":{result},"id":7}}"#));
                assert_eq!((answer.id, answer.outcome.expect("a result").get()), (Some(7), result));
            }
        }
    }

    #[test]
    fn an_answer_may_bring_members_that_this_client_does_not_know() {
        let answer = one(r#" {"took_ms":1,"out":"p\u006fng","id": 7 ,"result":0}"#);
        assert_eq!((answer.id, answer.outcome.expect("a result").get()), (Some(7), "0"));
        let answer = one(r#"{"result":0,"error":null,"id":7,"jsonrpc":"2.0"}"#);
        assert_eq!(answer.outcome.expect("a result").get(), "0");
    }

    #[test]
    fn an_error_answer_has_an_id_or_none() {
        for (tail, id) in [("", None), (r#","id":null"#, None), (r#","id":7"#, Some(7))] {
            for start in [r#"{"out":"error","result""#, r#"{"jsonrpc":"2.0","error""#] {
                let answer = one(&format!(r#"{start}:{{"code":-32003,"message":"too large"}}{tail}}}"#));
                let error = answer.outcome.expect_err("an error answer");
                assert_eq!((error.code, error.message.as_str(), answer.id), (-32003, "too large", id));
            }
        }
    }

    #[test]
    fn an_array_has_several() {
        let both = br#"[{"jsonrpc":"2.0","result":1,"id":2},{"jsonrpc":"2.0","result":2,"id":1}]"#;
        let arrived = read(both).expect("answers");
        let ids: Vec<_> = arrived.answers.iter().map(|answer| answer.id).collect();
        assert_eq!((arrived.is_array, ids), (true, vec![Some(2), Some(1)]));
    }

    #[test]
    fn what_is_no_answer_is_refused_with_what_was_found() {
        for (message, found) in [
            (r#"{"out":"pong","result":1,"id":"7"}"#, "id \"7\""),
            (r#"{"out":"pong","result":1,"id":-7}"#, "id -7"),
            (r#"{"out":"pong","result":1}"#, "one without"),
            (r#"{"out":"error","result":"broken","id":7}"#, "code and message"),
            (r#"{"out":"pong","id":7}"#, "id 7 with neither"),
            (r#"{"jsonrpc":"2.0","id":7}"#, "id 7 with neither"),
            (r#"{"jsonrpc":"2.0","result":1,"error":{"code":1,"message":"x"},"id":7}"#, "or both"),
            (r#"{"result":1,"id":7}"#, "neither, with id 7"),
            (r#"[{"out":"pong","result":1,"id":7},1]"#, "invalid type"),
            ("7", "invalid type"),
            ("", "EOF"),
            ("\u{0}", "expected value"),
        ] {
            let why = read(message.as_bytes()).expect_err(message);
            assert!(why.contains(found), "{message}: {why}");
        }
    }
}
