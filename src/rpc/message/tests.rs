use super::super::context::States;
use super::super::context::tests::with_call;
use super::super::envelope::{answer, answer_error};
use super::super::registry::{Handler, RegistryBuilder};
use super::*;

fn builder() -> RegistryBuilder {
    let mut builder = RegistryBuilder::default();
    let mut add = |name: &str, handler| builder.add(name.to_owned(), name.to_owned(), handler);
    add("add", Handler::typed(|_, (a, b): (i64, i64)| Ok(a + b)));
    add(
        "fail",
        Handler::typed(|_, (): ()| Err::<(), _>(Error::new(17, "out of \"pens\"").with_data([1, 2]))),
    );
    add("half", Handler::typed(|_, (): ()| Ok((1, std::collections::HashMap::from([((1, 2), 3)])))));
    builder.add("\"odd\"".to_owned(), "\"odd\"".to_owned(), Handler::typed(|_, (): ()| Ok(())));
    builder
}

fn native(message: &[u8]) -> Result<Request<'_>, Rejected<'_>> {
    parse(message, Form::Native).and_then(Message::single)
}

/// What a message is answered with, as the worker does it.
fn served(message: &[u8]) -> String {
    let registry = builder().build().unwrap();
    let mut out = b"an earlier answer|".to_vec();
    match native(message) {
        Err(rejected) => answer_error(&mut out, rejected.form, &rejected.error, rejected.id),
        Ok(request) => match registry.resolve(&request.method) {
            Err(error) => answer_error(&mut out, request.form, &error, request.id()),
            Ok((_, method)) => {
                // The values are found in the message's bytes as well, which is what a pool thread does.
                let _ = with_call(method.name(), request.id(), &States::default(), |call| {
                    answer(
                        &mut out,
                        request.form,
                        method,
                        call,
                        request.params.and_then(|span| span.in_message(message)),
                    )
                });
            }
        },
    }
    let text = String::from_utf8(out).unwrap();
    text.strip_prefix("an earlier answer|").expect("earlier output is left alone").to_owned()
}

fn rejected(message: &[u8]) -> (i32, String, Option<&str>) {
    let rejected = native(message).expect_err(&String::from_utf8_lossy(message));
    (rejected.error.code(), rejected.error.message().to_owned(), rejected.id.map(RawJson::get))
}

#[test]
fn a_plain_clients_ping_is_answered_to_the_byte() {
    assert_eq!(served(br#"{"in":"ping","params":"ireader 0"}"#), r#"{"out":"pong","result":"ireader 0"}"#);
    assert_eq!(served(br#"{"in":"ping"}"#), r#"{"out":"pong","result":null}"#);
}

#[test]
fn digits_and_escapes_come_back_as_they_were_written() {
    for params in [
        "1e400",
        "1152921504606846976",
        "1.0",
        "-0",
        "1.10",
        r#""\u00e9\/\ud83d\ude00""#,
        "[1, 2 ,{ }]",
        "\"é\"",
        r#"{"a":1,"a":2}"#,
    ] {
        assert_eq!(
            served(format!(r#"{{"in":"ping","params":{params}}}"#).as_bytes()),
            format!(r#"{{"out":"pong","result":{params}}}"#)
        );
        assert_eq!(
            served(format!(r#" {{ "params" : {params} , "in" : "echo" }} "#).as_bytes()),
            format!(r#"{{"out":"echo","result":{params}}}"#)
        );
    }
}

#[test]
fn the_id_follows_the_result_as_it_was_written() {
    for id in ["0", "1.50", "1152921504606846976", r#""1e3""#, "null", r#"{"a":[1 ]}"#, r#""\u0061""#] {
        assert_eq!(
            served(format!(r#"{{"id":{id},"in":"ping","params":1}}"#).as_bytes()),
            format!(r#"{{"out":"pong","result":1,"id":{id}}}"#)
        );
        assert_eq!(
            served(format!(r#"{{"in":"fail","id":{id}}}"#).as_bytes()),
            format!(
                r#"{{"out":"error","result":{{"code":17,"message":"out of \"pens\"","data":[1,2]}},"id":{id}}}"#
            )
        );
    }
}

#[test]
fn typed_handlers_are_answered_with_their_result_or_with_what_is_wrong() {
    assert_eq!(served(br#"{"in":"add","params":[2,40]}"#), r#"{"out":"add","result":42}"#);
    assert_eq!(
        served(br#"{"in":"add","params":[2,"40"]}"#),
        r#"{"out":"error","result":{"code":-32602,"message":"invalid params: `[1]`: invalid type: string \"40\", expected a whole number from -9223372036854775808 to 9223372036854775807"}}"#
    );
    assert_eq!(served(br#"{"in":"\"odd\""}"#), r#"{"out":"\"odd\"","result":null}"#);
}

#[test]
fn a_result_that_fails_half_way_is_replaced_by_an_error() {
    assert_eq!(
        served(br#"{"in":"half","id":1}"#),
        r#"{"out":"error","result":{"code":-32603,"message":"internal error"},"id":1}"#
    );
}

#[test]
fn an_unknown_method_is_named() {
    assert_eq!(
        served(br#"{"in":"frob","id":1}"#),
        r#"{"out":"error","result":{"code":-32601,"message":"method not found: `frob` (`tine.methods` lists all)"},"id":1}"#
    );
}

#[test]
fn the_built_in_lists_are_there() {
    assert_eq!(
        served(br#"{"in":"tine.methods"}"#),
        r#"{"out":"tine.methods","result":["\"odd\"","add","echo","fail","half","ping","rpc.discover","tine.methods","tine.worker"]}"#
    );
    let worker = served(br#"{"in":"tine.worker","params":{}}"#);
    assert!(
        worker.starts_with(
            r#"{"out":"tine.worker","result":{"slot":2,"pid":4711,"generation":5,"thread":3,"uptime_ms":"#
        ),
        "{worker}"
    );
}

#[test]
fn a_message_that_is_not_json_is_placed_by_byte() {
    for (message, at) in [
        (b"".as_slice(), 0),
        (b"  ", 2),
        (b"{", 1),
        (b"hello", 0),
        (br#"{"in":"ping"]"#, 12),
        (br#"{"in":"ping"}}"#, 13),
        (b"{\"in\":\"\xff\"}", 7),
        (b"\xef\xbb\xbf\xef\xbb\xbf{}", 3),
        (b"\xef\xbb\xbf{\"in\"}", 8),
        (br#"{"id":1,"in":nope}"#, 13),
        (b"{\"in\":\"a\0\"}", 8),
        (b"\xff", 0),
        (b"[1,2", 4),
        (br#"{"in":"ping","params":1e}"#, 24),
    ] {
        let (code, text, id) = rejected(message);
        assert_eq!((code, id), (Error::PARSE, None), "{text}");
        assert!(text.starts_with(&format!("parse error at byte {at}: expected ")), "{at}: {text}");
    }
    assert_eq!(
        served(br#"{"in" "ping"}"#),
        r#"{"out":"error","result":{"code":-32700,"message":"parse error at byte 6: expected `:`, found `\"`","data":{"byte":6}}}"#
    );
}

#[test]
fn json_that_is_no_request_is_an_invalid_request_with_its_id() {
    for (message, part, id) in [
        ("[]", "expected at least one request in the array", None),
        ("17", "expected an object", None),
        ("{}", "`in`, the method's name, is missing", None),
        (r#"{"params":1,"id":7}"#, "is missing", Some("7")),
        (r#"{"in":5,"id":7}"#, "must be a text, the method's name; found `5`", Some("7")),
        (r#"{"in":null}"#, "found `null`", None),
        (r#"{"in":"ping","timeout_ms":0,"id":7}"#, "must be a positive integer; found `0`", Some("7")),
        (r#"{"in":"ping","timeout_ms":-1}"#, "found `-1`", None),
        (r#"{"in":"ping","timeout_ms":1.5}"#, "found `1.5`", None),
        (r#"{"in":"ping","timeout_ms":"5"}"#, "found `\"5\"`", None),
        (r#"{"in":"ping","timeout_ms":null}"#, "found `null`", None),
        (r#"{"in":"ping","in":"ping","id":[7]}"#, "`in` stands there twice", Some("[7]")),
        (r#"{"in":"ping","\u0069n":"ping"}"#, "`in` stands there twice", None),
        (r#"{"in":"ping","params":1,"params":1}"#, "`params` stands there twice", None),
        (r#"{"in":"ping","timeout_ms":1,"timeout_ms":1}"#, "`timeout_ms` stands there twice", None),
        (r#"{"in":"ping","id":1,"id":2}"#, "`id` stands there twice", Some("1")),
    ] {
        let (code, text, found) = rejected(message.as_bytes());
        assert_eq!((code, found), (Error::INVALID_REQUEST, id), "{message}");
        assert!(text.starts_with("invalid request: ") && text.contains(part), "{message}: {text}");
    }
}

// Python and JavaScript write this for a text that was cut inside an emoji. It took its whole message: the id of its call, the batch
// around it, and a stream's connection.
#[test]
fn half_a_surrogate_pair_fails_its_call_alone_and_by_its_id() {
    let v2 = r#""jsonrpc":"2.0""#;
    for (members, code, id) in [
        (r#""in":"ping","params":"\ud83d","id":7"#.to_owned(), -32602, Some("7")),
        (r#""id":7,"in":"ping","params":{"a":["\ud83dx"]}"#.to_owned(), -32602, Some("7")),
        (r#""in":"ping","params":{"\udc00":1},"id":7"#.to_owned(), -32602, Some("7")),
        (r#""in":"\ud83d\ud83d","id":7"#.to_owned(), -32600, Some("7")),
        (r#""in":"ping","id":"\ud83d""#.to_owned(), -32600, Some(r#""\ud83d""#)),
        (r#""in":"ping","id":["\ud83d"]"#.to_owned(), -32600, Some(r#"["\ud83d"]"#)),
        (format!(r#"{v2},"method":"ping","params":["\ud83d\n"],"id":7"#), -32602, Some("7")),
        (format!(r#"{v2},"method":"ping","id":"a\udfff""#), -32600, Some(r#""a\udfff""#)),
        (r#""method":"ping","params":["\ud83d\u0041"],"id":7"#.to_owned(), -32602, Some("7")),
    ] {
        let message = format!("{{{members}}}");
        let (found, text, echoed) = rejected(message.as_bytes());
        assert_eq!((found, echoed), (code, id), "{message}: {text}");
        let at = message.find(r"\u").expect("an escape");
        let what = format!("byte {at}: expected both halves of a surrogate pair, found one alone");
        assert!(text.ends_with(&what), "{message}: {text}");
    }
    // What is wrong beside it is told as ever.
    assert_eq!(rejected(br#"{"in":"ping","in":"ping","params":"\ud83d"}"#).0, Error::INVALID_REQUEST);
    // What means nothing may hold it.
    for message in
        [r#"{"in":"ping","x":"\ud83d","id":7}"#, r#"{"\ud83d":{"\udc00":"\ud83d"},"in":"ping","id":7}"#]
    {
        assert_eq!(served(message.as_bytes()), r#"{"out":"pong","result":null,"id":7}"#, "{message}");
    }
    // And whole pairs are characters.
    assert_eq!(
        served(br#"{"in":"ping","params":"\ud83d\ude00"}"#),
        r#"{"out":"pong","result":"\ud83d\ude00"}"#
    );
}

#[test]
fn nobody_is_told_of_half_a_pair_in_a_notification() {
    for (message, is_silent) in [
        (r#"{"jsonrpc":"2.0","method":"ping","params":["\ud83d"]}"#, true),
        (r#"{"method":"ping","params":["\ud83d"],"id":null}"#, true),
        (r#"{"jsonrpc":"2.0","method":"ping","params":["\ud83d"],"id":1}"#, false),
        (r#"{"in":"ping","params":["\ud83d"]}"#, false),
        (r#"{"jsonrpc":"2.0","method":7,"params":["\ud83d"]}"#, false),
    ] {
        assert_eq!(native(message.as_bytes()).expect_err(message).is_silent, is_silent, "{message}");
    }
}

#[test]
fn a_byte_order_mark_before_a_message_is_skipped_and_anywhere_else_is_named() {
    assert_eq!(
        served("\u{feff}{\"in\":\"ping\",\"params\":[1],\"id\":7}".as_bytes()),
        r#"{"out":"pong","result":[1],"id":7}"#
    );
    let Ok(Message::Batch(batch)) =
        parse("\u{feff} [{\"jsonrpc\":\"2.0\",\"method\":\"ping\",\"id\":7}]".as_bytes(), Form::V2)
    else {
        panic!("no batch")
    };
    assert_eq!(batch.places().count(), 1);
    assert!(batch.members().all(|member| member.request.is_ok()));
    let bare = Request::bare("ping".into(), "\u{feff}[1]".as_bytes()).expect("params");
    assert_eq!(bare.params.map(|span| span.of("\u{feff}[1]")), Some("[1]"));
    assert_eq!(Request::bare("ping".into(), "\u{feff}".as_bytes()).expect("no params").params, None);
    for (message, found) in [
        ("{\"in\":\u{feff}\"ping\"}".as_bytes(), "found a byte order mark"),
        (b"\xff\xfe{\0}\0", "found UTF-16 with its byte order mark"),
        (b"\xfe\xff\0{\0}", "found UTF-16 with its byte order mark"),
    ] {
        let (code, text, _) = rejected(message);
        assert!(code == Error::PARSE && text.contains(found), "{text}");
    }
}

// Clients of version 1.0 that say so (bitcoin-cli's readers, jsonrpclib) were told that it must be 2.0.
#[test]
fn a_request_that_says_version_one_is_of_version_one() {
    for (message, answer) in [
        (
            r#"{"jsonrpc":"1.0","method":"add","params":[1,2],"id":"a"}"#,
            r#"{"result":3,"error":null,"id":"a"}"#,
        ),
        (
            r#"{"id":1,"params":[],"method":"ping","json\u0072pc":"1.\u0030"}"#,
            r#"{"result":[],"error":null,"id":1}"#,
        ),
        (
            r#"{"jsonrpc":"1.0","method":"nope","id":1}"#,
            r#"{"result":null,"error":"method not found: `nope` (`tine.methods` lists all) (code -32601)","id":1}"#,
        ),
        (
            r#"{"jsonrpc":"1.0","method":"ping"}"#,
            r#"{"result":null,"error":"invalid request: member `id` is missing; in version 1.0 it is null where no answer is wanted (code -32600)","id":null}"#,
        ),
    ] {
        assert_eq!(served(message.as_bytes()), answer);
    }
    let notification = native(br#"{"jsonrpc":"1.0","method":"ping","id":null}"#).expect("a request");
    assert!(notification.is_notification());
}

#[test]
fn members_it_does_not_know_are_ignored_whatever_they_hold() {
    assert_eq!(served(br#"{"v":[{}],"in":"ping","x":1,"x":2,"":null}"#), r#"{"out":"pong","result":null}"#);
}

#[test]
fn escapes_in_names_are_understood() {
    assert_eq!(served(br#"{"\u0069n":"p\u0069ng","p\u0061rams":7}"#), r#"{"out":"pong","result":7}"#);
}

#[test]
fn a_callers_timeout_is_read() {
    for (written, timeout) in [("1", 1), ("30000", 30_000), ("99999999999999999999999", u64::MAX)] {
        let message = format!(r#"{{"in":"ping","timeout_ms":{written}}}"#);
        assert_eq!(native(message.as_bytes()).unwrap().timeout_ms, Some(timeout));
    }
    assert_eq!(native(br#"{"in":"ping"}"#).unwrap().timeout_ms, None);
}

#[test]
fn a_hundred_thousand_brackets_are_an_error_and_no_stack_overflow() {
    let open = "[".repeat(100_000);
    let close = "]".repeat(100_000);
    for message in [
        open.clone(),
        format!("{open}{close}"),
        format!(r#"{{"in":"echo","params":{open}{close}}}"#),
        format!(r#"{{"in":"echo","other":{open}{close}}}"#),
        r#"{"in":"#.repeat(100_000),
    ] {
        assert_eq!(rejected(message.as_bytes()).0, Error::PARSE);
    }
}

#[test]
fn a_message_cut_anywhere_is_a_parse_error() {
    let message = r#"{"in":"ping","params":[1.5e3,{"a":"\u00e9é"},true],"id":"x","timeout_ms":5}"#.as_bytes();
    assert!(native(message).is_ok());
    for cut in 0..message.len() {
        assert_eq!(rejected(&message[..cut]).0, Error::PARSE, "{cut}");
    }
}

proptest::proptest! {
    #[test]
    fn any_bytes_get_an_answer_that_is_json(message in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..64)) {
        serde_json::from_str::<serde_json::Value>(&served(&message)).unwrap();
    }

    #[test]
    fn a_request_of_any_shape_gets_an_answer_that_is_json(
        members in proptest::collection::vec(
            (r#""(in|params|id|timeout_ms|x)""#, r#""(ping|add|\\n)"|-?[0-9]{1,3}|[\[\]{}]|\[2,40\]|null"#), 0..5),
    ) {
        let members: Vec<String> = members.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        let answer = served(format!("{{{}}}", members.join(",")).as_bytes());
        serde_json::from_str::<serde_json::Value>(&answer).unwrap();
    }
}
