//! Calls to bytes, in either envelope and length-prefix framing.
//!
//! `calls` asks for the bytes of a call, of several, or of a notification; `connection` sends them and knows by the places
//! that stand beside them which calls the server may have, and which it can't read. No sockets here.

use std::borrow::Cow;
use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use super::error::ClientError;
use super::input::HEAD;
use crate::rpc;

/// How calls are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum Envelope {
    #[default]
    Native,
    JsonRpc,
}

/// A call as it was asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub(super) method: &'a str,
    pub(super) params: Option<&'a RawValue>,
}

/// Calls as they go over the connection, with ids from `first` on.
#[derive(Debug)]
pub(super) struct Outgoing {
    pub(super) bytes: Vec<u8>,
    pub(super) first: u64,
    pub(super) places: Vec<Place>,
    /// All calls are members of one message, which is answered by one.
    pub(super) is_array: bool,
}

/// Where a call stands among the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Its message ends before this byte; who has not had the byte before can't have run it.
    pub(super) end: usize,
    /// The bytes of its message, without the prefix.
    pub(super) length: usize,
    /// The server will find the call's id in it. Not so where params are JSON to `serde_json` and to no server: too many levels of
    /// nesting.
    pub(super) is_readable: bool,
}

/// A call that is not answered, as it goes over the connection.
#[derive(Debug)]
pub(super) struct Notification {
    pub(super) bytes: Vec<u8>,
    pub(super) place: Place,
}

/// `left` is the callers' deadline. Several calls are an array in JSON-RPC, messages in a row in the native envelope.
pub(super) fn calls(
    envelope: Envelope,
    first: u64,
    calls: &[Asked<'_>],
    left: Option<Duration>,
) -> Result<Outgoing, ClientError> {
    let timeout_ms = left.map(whole_ms);
    let is_array = envelope == Envelope::JsonRpc && calls.len() > 1;
    let members = calls.iter().zip(first..).map(|(asked, id)| Member { envelope, asked, id, timeout_ms });
    let mut bytes = Vec::new();
    let mut places = Vec::new();
    if is_array {
        let array: Vec<JsonRpc<'_>> = members.map(|member| member.json_rpc()).collect();
        places = vec![message(&mut bytes, &array)?; calls.len()];
    } else {
        for member in members {
            places.push(member.write(&mut bytes)?);
        }
    }
    Ok(Outgoing { bytes, first, places, is_array })
}

/// A call that is not answered. The native envelope has none, so it is always written in JSON-RPC.
pub(super) fn notification(asked: &Asked<'_>, left: Option<Duration>) -> Result<Notification, ClientError> {
    let mut bytes = Vec::new();
    let place = message(&mut bytes, &JsonRpc::new(asked, None, left.map(whole_ms)))?;
    Ok(Notification { bytes, place })
}

/// The deadline as the server is told it. Less than a millisecond is still some time: 0 would say that it has passed.
pub(super) fn whole_ms(left: Duration) -> u64 {
    u64::try_from(left.as_millis()).unwrap_or(u64::MAX).max(1)
}

struct Member<'a> {
    envelope: Envelope,
    asked: &'a Asked<'a>,
    id: u64,
    timeout_ms: Option<u64>,
}

impl<'a> Member<'a> {
    fn write(&self, bytes: &mut Vec<u8>) -> Result<Place, ClientError> {
        let Asked { method, params } = *self.asked;
        match self.envelope {
            Envelope::Native => {
                message(bytes, &Native { method, params, id: self.id, timeout_ms: self.timeout_ms })
            }
            Envelope::JsonRpc => message(bytes, &self.json_rpc()),
        }
    }

    fn json_rpc(&self) -> JsonRpc<'a> {
        JsonRpc::new(self.asked, Some(self.id), self.timeout_ms)
    }
}

#[derive(Serialize)]
struct Native<'a> {
    #[serde(rename = "in")]
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<&'a RawValue>,
    id: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
}

#[derive(Serialize)]
struct JsonRpc<'a> {
    jsonrpc: &'static str,
    method: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    params: Option<Structured<'a>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    timeout_ms: Option<u64>,
}

impl<'a> JsonRpc<'a> {
    fn new(asked: &Asked<'a>, id: Option<u64>, timeout_ms: Option<u64>) -> Self {
        let params = asked.params.and_then(structured);
        Self { jsonrpc: "2.0", method: asked.method, params, id, timeout_ms }
    }
}

/// Params that JSON-RPC 2.0 allows: an object, an array, or by position the one value that is neither.
#[derive(Serialize)]
#[serde(untagged)]
enum Structured<'a> {
    AsIs(&'a RawValue),
    ByPosition([&'a RawValue; 1]),
}

/// `null` alone is what a caller without params has, and JSON-RPC says that by leaving them out.
fn structured(params: &RawValue) -> Option<Structured<'_>> {
    match params.get() {
        "null" => None,
        text if text.starts_with(['{', '[']) => Some(Structured::AsIs(params)),
        _ => Some(Structured::ByPosition([params])),
    }
}

/// Adds a message behind its length.
fn message(bytes: &mut Vec<u8>, content: &impl Serialize) -> Result<Place, ClientError> {
    let begin = bytes.len();
    bytes.extend_from_slice(&[0; HEAD]);
    serde_json::to_writer(&mut *bytes, content).map_err(ClientError::Params)?;
    let end = bytes.len();
    let length = end.saturating_sub(begin).saturating_sub(HEAD);
    let prefix = u32::try_from(length).map_err(|_| {
        let text: Cow<'_, str> = format!("{length} bytes, one message holds {}", u32::MAX).into();
        ClientError::Params(serde::ser::Error::custom(text))
    })?;
    if let Some(head) = bytes.get_mut(begin..begin.saturating_add(HEAD)) {
        head.copy_from_slice(&prefix.to_le_bytes());
    }
    let written = bytes.get(begin.saturating_add(HEAD)..).unwrap_or_default();
    let is_readable = rpc::parse(written, rpc::Form::Native)
        .map_or_else(|rejected| rejected.error.code() != rpc::Error::PARSE, |_| true);
    Ok(Place { end, length, is_readable })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(json: &str) -> Box<RawValue> {
        RawValue::from_string(json.to_owned()).expect("JSON")
    }

    /// The messages of a row of frames, and that the places say where they are.
    fn messages(outgoing: &Outgoing) -> Vec<String> {
        let mut rest = &outgoing.bytes[..];
        let mut messages = Vec::new();
        while let Some((head, after)) = rest.split_first_chunk::<HEAD>() {
            let (body, after) = after.split_at(u32::from_le_bytes(*head) as usize);
            messages.push(String::from_utf8(body.to_vec()).expect("JSON is text"));
            let end = outgoing.bytes.len() - after.len();
            let place = Place { end, length: body.len(), is_readable: true };
            assert!(outgoing.places.contains(&place), "{place:?}");
            rest = after;
        }
        messages
    }

    fn written(envelope: Envelope, asked: &[(&str, Option<&str>)], left: Option<Duration>) -> Vec<String> {
        let params: Vec<_> = asked.iter().map(|(_, params)| params.map(raw)).collect();
        let asked = asked.iter().zip(&params);
        let asked: Vec<_> =
            asked.map(|((method, _), params)| Asked { method, params: params.as_deref() }).collect();
        messages(&calls(envelope, 7, &asked, left).expect("calls that can be written"))
    }

    #[test]
    fn native_params_go_out_as_they_were_written_and_only_what_is_set_is_sent() {
        let left = Some(Duration::from_millis(250));
        assert_eq!(
            written(Envelope::Native, &[("add", Some(r#"[1.50, "\u0041"]"#))], left),
            [r#"{"in":"add","params":[1.50, "\u0041"],"id":7,"timeout_ms":250}"#]
        );
        assert_eq!(written(Envelope::Native, &[("pi\"ng", None)], None), [r#"{"in":"pi\"ng","id":7}"#]);
        assert_eq!(
            written(Envelope::Native, &[("ping", Some("null"))], None),
            [r#"{"in":"ping","params":null,"id":7}"#]
        );
    }

    #[test]
    fn json_rpc_has_structured_params_alone() {
        for (params, sent) in [
            (Some("[1, 2]"), r#""params":[1, 2],"#),
            (Some(r#"{"a": 1.50}"#), r#""params":{"a": 1.50},"#),
            (Some("1.50"), r#""params":[1.50],"#),
            (Some("\"x\""), r#""params":["x"],"#),
            (Some("null"), ""),
            (None, ""),
        ] {
            let left = Some(Duration::from_millis(250));
            assert_eq!(
                written(Envelope::JsonRpc, &[("add", params)], left),
                [format!(r#"{{"jsonrpc":"2.0","method":"add",{sent}"id":7,"timeout_ms":250}}"#)]
            );
        }
    }

    #[test]
    fn several_calls_are_an_array_or_messages_in_a_row() {
        let asked = [("a", Some("1")), ("b", None)];
        assert_eq!(
            written(Envelope::Native, &asked, None),
            [r#"{"in":"a","params":1,"id":7}"#, r#"{"in":"b","id":8}"#]
        );
        assert_eq!(
            written(Envelope::JsonRpc, &asked, None),
            [r#"[{"jsonrpc":"2.0","method":"a","params":[1],"id":7},{"jsonrpc":"2.0","method":"b","id":8}]"#]
        );
    }

    #[test]
    fn a_notification_has_no_id() {
        let params = raw("[1]");
        let asked = Asked { method: "log", params: Some(&params) };
        let Notification { bytes, place } = notification(&asked, None).expect("a notification");
        assert!(place.is_readable);
        assert_eq!(&bytes[HEAD..], br#"{"jsonrpc":"2.0","method":"log","params":[1]}"#);
        assert_eq!(bytes[..HEAD], u32::try_from(bytes.len() - HEAD).expect("short").to_le_bytes());
    }

    #[test]
    fn params_that_no_server_reads_are_known_before_they_are_sent() {
        let deep = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        for (params, expected) in
            [("\"\\ud83d\\ude00\"", true), ("\"\\ud83d\"", true), (&deep(127), true), (&deep(128), false)]
        {
            let params = raw(params);
            let asked = Asked { method: "echo", params: Some(&params) };
            let places = calls(Envelope::Native, 7, &[asked], None).expect("bytes").places;
            assert_eq!(places[0].is_readable, expected, "{params}");
            let told = notification(&asked, None).expect("bytes");
            assert_eq!(told.place.is_readable, expected, "{params}");
            let beside = Asked { method: "echo", params: None };
            let places = calls(Envelope::JsonRpc, 7, &[beside, asked], None).expect("bytes").places;
            assert!(expected || places.iter().all(|place| !place.is_readable), "{params}");
        }
    }

    #[test]
    fn a_deadline_under_a_millisecond_is_sent_as_one() {
        assert_eq!(whole_ms(Duration::from_micros(3)), 1);
        assert_eq!(whole_ms(Duration::MAX), u64::MAX);
    }
}
