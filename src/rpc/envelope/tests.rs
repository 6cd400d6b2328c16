//! What messages are answered with, from the bytes of the request to those of the answer: every example of the JSON-RPC 2.0
//! specification, its corners, version 1.0, and what is no JSON at all.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::{Value, json};

use super::super::context::States;
use super::super::context::tests::with_call;
use super::super::message::{Message, Rejected, Request, parse};
use super::super::registry::{Handler, Registry, RegistryBuilder};
use super::*;

#[derive(Deserialize)]
struct Subtract {
    minuend: i64,
    subtrahend: i64,
}

/// The methods that the specification's examples call, some with handlers for params that the examples don't send.
fn registry() -> Registry {
    let mut builder = RegistryBuilder::default();
    let mut add = |name: &str, handler| builder.add(name.to_owned(), name.to_owned(), handler);
    add("subtract", Handler::typed(|_, p: Subtract| Ok(p.minuend - p.subtrahend)));
    add("sum", Handler::typed(|_, numbers: Vec<i64>| Ok(numbers.iter().sum::<i64>())));
    add("update", Handler::typed(|_, _: Vec<i64>| Ok(())));
    add("notify_hello", Handler::typed(|_, _: i64| Ok(())));
    add("notify_sum", Handler::typed(|_, numbers: Vec<i64>| Ok(numbers.iter().sum::<i64>())));
    add("get_data", Handler::typed(|_, (): ()| Ok(("hello", 5))));
    add("negate", Handler::typed(|_, number: i64| Ok(-number)));
    add("greet", Handler::typed(|_, names: HashMap<String, String>| Ok(names)));
    add(
        "fail",
        Handler::typed(|_, (): ()| {
            Err::<(), _>(Error::new(17, "out of \"pens\"").with_data(json!({ "a": 1 })))
        }),
    );
    builder.build().unwrap()
}

/// The answer to one request, as a worker gives it; nothing for a notification.
fn run(registry: &Registry, message: &[u8], request: &Request<'_>) -> Option<String> {
    let mut out = Vec::new();
    match registry.resolve(&request.method) {
        Err(error) => answer_error(&mut out, request.form, &error, request.id()),
        Ok((_, method)) => {
            let params = request.params.and_then(|span| span.in_message(message));
            let _ = with_call(method.name(), request.id(), &States::default(), |call| {
                answer(&mut out, request.form, method, call, params)
            });
        }
    }
    (!request.is_notification()).then(|| String::from_utf8(out).unwrap())
}

fn rejection(rejected: &Rejected<'_>) -> String {
    let mut out = Vec::new();
    answer_error(&mut out, rejected.form, &rejected.error, rejected.id);
    String::from_utf8(out).unwrap()
}

/// What a message is answered with; an empty text for nothing.
fn served_as(message: &[u8], fallback: Form) -> String {
    let registry = registry();
    match parse(message, fallback) {
        Err(rejected) => rejection(&rejected),
        Ok(Message::Single(request)) => run(&registry, message, &request).unwrap_or_default(),
        Ok(Message::Batch(batch)) => {
            let members: Vec<_> = batch.members().collect();
            assert_eq!(members.len(), batch.len());
            let answers: Vec<String> = members
                .iter()
                .filter_map(|member| match &member.request {
                    Ok(request) => run(&registry, message, request),
                    Err(rejected) => Some(rejection(rejected)),
                })
                .collect();
            if answers.is_empty() { String::new() } else { format!("[{}]", answers.join(",")) }
        }
    }
}

fn served(message: &str) -> String {
    served_as(message.as_bytes(), Form::Native)
}

/// Messages of errors are our own, so where an example has one its code is compared.
fn with_codes_alone(answer: &str) -> Value {
    fn strip(value: &mut Value) {
        match value {
            Value::Array(members) => members.iter_mut().for_each(strip),
            Value::Object(members) => {
                if let Some(error) = members.get_mut("error").and_then(Value::as_object_mut) {
                    error.retain(|name, _| name == "code");
                }
            }
            _ => {}
        }
    }
    let mut value = serde_json::from_str(answer).unwrap_or_else(|error| panic!("{answer}: {error}"));
    strip(&mut value);
    value
}

fn code(answer: &str) -> i64 {
    with_codes_alone(answer)["error"]["code"].as_i64().unwrap_or_else(|| panic!("no error: {answer}"))
}

#[test]
fn every_example_of_the_specification_is_answered_as_it_says() {
    for (request, expected) in [
        // Positional params
        (
            r#"{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}"#,
            r#"{"jsonrpc":"2.0","result":19,"id":1}"#,
        ),
        (
            r#"{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}"#,
            r#"{"jsonrpc":"2.0","result":-19,"id":2}"#,
        ),
        // Named params
        (
            r#"{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}"#,
            r#"{"jsonrpc":"2.0","result":19,"id":3}"#,
        ),
        (
            r#"{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}"#,
            r#"{"jsonrpc":"2.0","result":19,"id":4}"#,
        ),
        // Notifications
        (r#"{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}"#, ""),
        (r#"{"jsonrpc": "2.0", "method": "foobar"}"#, ""),
    ] {
        assert_eq!(served(request), expected, "{request}");
    }
    for (request, expected) in [
        // A method that isn't there
        (
            r#"{"jsonrpc": "2.0", "method": "foobar", "id": "1"}"#,
            json!({ "jsonrpc": "2.0", "error": { "code": -32601 }, "id": "1" }),
        ),
        // No JSON
        (
            r#"{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]"#,
            json!({ "jsonrpc": "2.0", "error": { "code": -32700 }, "id": null }),
        ),
        // No request
        (
            r#"{"jsonrpc": "2.0", "method": 1, "params": "bar"}"#,
            json!({ "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null }),
        ),
        // A batch that is no JSON
        (
            r#"[{"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},{"jsonrpc": "2.0", "method""#,
            json!({ "jsonrpc": "2.0", "error": { "code": -32700 }, "id": null }),
        ),
        // An empty one
        ("[]", json!({ "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null })),
        // One of something else
        ("[1]", json!([{ "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null }])),
        (
            "[1,2,3]",
            json!([
                { "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null },
                { "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null },
                { "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null },
            ]),
        ),
        // One of everything
        (
            r#"[
                {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
                {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
                {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
                {"foo": "boo"},
                {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
                {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
            ]"#,
            json!([
                { "jsonrpc": "2.0", "result": 7, "id": "1" },
                { "jsonrpc": "2.0", "result": 19, "id": "2" },
                { "jsonrpc": "2.0", "error": { "code": -32600 }, "id": null },
                { "jsonrpc": "2.0", "error": { "code": -32601 }, "id": "5" },
                { "jsonrpc": "2.0", "result": ["hello", 5], "id": "9" },
            ]),
        ),
    ] {
        assert_eq!(with_codes_alone(&served(request)), expected, "{request}");
    }
    // A batch of notifications alone
    let notifications = r#"[
        {"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}
    ]"#;
    assert_eq!(served(notifications), "");
}

#[test]
fn an_error_of_version_two_has_code_message_and_data() {
    assert_eq!(
        served(r#"{"jsonrpc":"2.0","method":"fail","id":[ ]}"#).matches("-32600").count(),
        1,
        "an id is a text, a number or null"
    );
    assert_eq!(
        served(r#"{"jsonrpc":"2.0","method":"fail","id":7}"#),
        r#"{"jsonrpc":"2.0","error":{"code":17,"message":"out of \"pens\"","data":{"a":1}},"id":7}"#
    );
}

#[test]
fn ids_come_back_as_they_were_written() {
    for id in ["1.5", "1152921504606846976", r#""1e3""#, "1e3", "-0", r#""\u0061\/""#, r#""""#, "null", "0"] {
        assert_eq!(
            served(&format!(r#"{{"id": {id} ,"method":"negate","params":[1],"jsonrpc":"2.0"}}"#)),
            format!(r#"{{"jsonrpc":"2.0","result":-1,"id":{id}}}"#)
        );
    }
    for id in ["true", "false", "[1]", "{}", r#"{"a":1}"#] {
        let answer = served(&format!(r#"{{"jsonrpc":"2.0","method":"negate","params":[1],"id":{id}}}"#));
        assert!(answer.ends_with(r#","id":null}"#), "{answer}");
        assert_eq!(code(&answer), -32600);
    }
}

#[test]
fn what_no_request_of_version_two_has_is_an_invalid_request() {
    for (members, part) in [
        (r#""jsonrpc":"1.1","method":"negate""#, "must be the text \"2.0\"; found `\"1.1\"`"),
        (r#""jsonrpc":1.0,"method":"negate""#, "must be the text \"2.0\"; found `1.0`"),
        (r#""jsonrpc":2.0,"method":"negate""#, "found `2.0`"),
        (r#""jsonrpc":null,"method":"negate""#, "found `null`"),
        (r#""jsonrpc":"2","in":"ping""#, "found `\"2\"`"),
        (r#""jsonrpc":"2.0""#, "`method`, the method's name, is missing"),
        (r#""jsonrpc":"2.0","in":"ping""#, "`method`, the method's name, is missing"),
        (r#""jsonrpc":"2.0","method":null"#, "must be a text, the method's name; found `null`"),
        (r#""jsonrpc":"2.0","method":"negate","params":7"#, "must be an array or an object; found `7`"),
        (r#""jsonrpc":"2.0","method":"negate","params":"bar""#, "must be an array or an object"),
        (r#""jsonrpc":"2.0","method":"negate","params":true"#, "must be an array or an object"),
        (r#""jsonrpc":"2.0","method":"negate","timeout_ms":0"#, "must be a positive integer"),
        (r#""jsonrpc":"2.0","jsonrpc":"2.0","method":"negate""#, "`jsonrpc` stands there twice"),
        (r#""jsonrpc":"2.0","method":"negate","method":"sum""#, "`method` stands there twice"),
        (r#""jsonrpc":"2.0","method":"negate","m\u0065thod":"sum""#, "`method` stands there twice"),
        (r#""jsonrpc":"2.0","method":"negate","params":[1],"params":[2]"#, "`params` stands there twice"),
        (
            r#""jsonrpc":"2.0","method":"negate","timeout_ms":1,"timeout_ms":1"#,
            "`timeout_ms` stands there twice",
        ),
    ] {
        let answer = served(&format!(r#"{{{members},"id":7}}"#));
        assert_eq!(code(&answer), -32600, "{answer}");
        let decoded: Value = serde_json::from_str(&answer).unwrap();
        assert!(decoded["error"]["message"].as_str().unwrap().contains(part), "{members}: {answer}");
        assert!(answer.starts_with(r#"{"jsonrpc":"2.0","#) && answer.ends_with(r#","id":7}"#), "{answer}");
    }
    let answer = served(r#"{"jsonrpc":"2.0","method":"negate","id":1,"id":2}"#);
    // Which of them its caller waits for nobody knows.
    assert!(answer.contains("`id` stands there twice") && answer.ends_with(r#""id":null}"#), "{answer}");
    // What the form doesn't know may be there twice.
    assert!(
        served(r#"{"jsonrpc":"2.0","method":"get_data","in":1,"in":2,"x":1,"x":2,"id":1}"#)
            .contains("result")
    );
    assert!(served(r#"{"in":"get_data","method":1,"method":2}"#).contains("result"));
}

#[test]
fn a_version_may_be_escaped_and_stand_anywhere() {
    assert_eq!(
        served(r#"{"id":1,"params":[1],"method":"n\u0065gate","\u006asonrpc":"2\u002e0"}"#),
        r#"{"jsonrpc":"2.0","result":-1,"id":1}"#
    );
    // Some clients write this for a call without params.
    assert_eq!(
        served(r#"{"jsonrpc":"2.0","method":"get_data","params":null,"id":1}"#),
        r#"{"jsonrpc":"2.0","result":["hello",5],"id":1}"#
    );
}

#[test]
fn typed_handlers_take_params_by_position_and_by_name() {
    for (method, params, result) in [
        ("negate", "[5]", "-5"),
        ("greet", r#"{"a":"b"}"#, r#"{"a":"b"}"#),
        ("greet", r#"[{"a":"b"}]"#, r#"{"a":"b"}"#),
        ("subtract", "[5,3]", "2"),
        ("subtract", r#"{"minuend":5,"subtrahend":3}"#, "2"),
        ("subtract", r#"[{"minuend":5,"subtrahend":3}]"#, "2"),
        ("sum", "[5,3]", "8"),
        ("sum", "[[5,3]]", "8"),
        ("sum", "[]", "0"),
        ("get_data", "[]", r#"["hello",5]"#),
        ("get_data", "{}", r#"["hello",5]"#),
        // Go sends this for a struct without members.
        ("get_data", "[{}]", r#"["hello",5]"#),
    ] {
        assert_eq!(
            served(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params},"id":1}}"#)),
            format!(r#"{{"jsonrpc":"2.0","result":{result},"id":1}}"#)
        );
    }
}

/// Taken for notifications they were run, and a native client that had written `method` for `in` waited for ever.
#[test]
fn a_method_with_neither_version_nor_id_is_told_so() {
    for (fallback, answer) in [
        (
            Form::Native,
            r#"{"out":"error","result":{"code":-32600,"message":"invalid request: a `method` needs `jsonrpc` beside it, or `id` in version 1.0; a native call has `in`"}}"#,
        ),
        (
            Form::V2,
            r#"{"jsonrpc":"2.0","error":{"code":-32600,"message":"invalid request: member `jsonrpc` must be there and the text \"2.0\""},"id":null}"#,
        ),
    ] {
        assert_eq!(served_as(br#"{"method":"negate","params":[5]}"#, fallback), answer);
    }
}

#[test]
fn version_one_is_answered_with_result_and_error_both() {
    for (request, answer) in [
        (r#"{"method":"negate","params":[5],"id":0}"#, r#"{"result":-5,"error":null,"id":0}"#),
        (r#"{"method":"negate","params":[5],"id":"a"}"#, r#"{"result":-5,"error":null,"id":"a"}"#),
        (r#"{"method":"update","params":[5],"id":[1 ]}"#, r#"{"result":null,"error":null,"id":[1 ]}"#),
        (r#"{"method":"fail","id":1}"#, r#"{"result":null,"error":"out of \"pens\" (code 17)","id":1}"#),
        (
            r#"{"method":1,"id":1}"#,
            r#"{"result":null,"error":"invalid request: member `method` must be a text, the method's name; found `1` (code -32600)","id":1}"#,
        ),
        (r#"{"method":"negate","params":[5],"id":null}"#, ""),
    ] {
        assert_eq!(served(request), answer, "{request}");
        assert_eq!(served_as(request.as_bytes(), Form::V2), answer, "{request}");
    }
    let answer = served(r#"{"method":"frob","params":[],"id":1}"#);
    assert!(answer.starts_with(r#"{"result":null,"error":"method not found: `frob`"#), "{answer}");
}

#[test]
fn members_of_a_batch_are_version_two_and_nothing_else() {
    for member in [
        r#"{"in":"ping","id":1}"#,
        r#"{"method":"get_data","id":1}"#,
        r#"{"id":1}"#,
        r#"{"jsonrpc":"1.0","id":1}"#,
    ] {
        let answer = served(&format!("[{member}]"));
        let expected = json!([{ "jsonrpc": "2.0", "error": { "code": -32600 }, "id": 1 }]);
        assert_eq!(with_codes_alone(&answer), expected, "{answer}");
    }
    let answer =
        served(r#"[[], "a", null, {"jsonrpc":"2.0","method":"get_data","id":1}, [{"jsonrpc":"2.0"}]]"#);
    let codes: Vec<_> = with_codes_alone(&answer)
        .as_array()
        .unwrap()
        .iter()
        .map(|one| one["error"]["code"].as_i64())
        .collect();
    assert_eq!(codes, [Some(-32600), Some(-32600), Some(-32600), None, Some(-32600)], "{answer}");
}

#[test]
fn a_batchs_member_is_a_message_of_its_own() {
    let message =
        br#" [ {"jsonrpc":"2.0","method":"negate","params":[1],"id":1} , {"jsonrpc":"2.0","method":"a"} ] "#;
    let Ok(Message::Batch(batch)) = parse(message, Form::Native) else { panic!("a batch") };
    for member in batch.members() {
        let alone = member.place.bytes_in(message);
        let request = member.request.unwrap();
        let again = parse(alone, Form::Native).and_then(Message::single).unwrap();
        assert_eq!((request.method.clone(), request.id()), (again.method.clone(), again.id()));
        let params = |request: &Request<'_>, of: &[u8]| {
            request.params.map(|span| span.in_message(of).unwrap().get().to_owned())
        };
        assert_eq!(params(&request, message), params(&again, alone));
    }
}

#[test]
fn a_message_that_is_no_json_is_answered_in_the_form_it_shows() {
    let v2 = r#"{"jsonrpc":"2.0","error":{"code":-32700,"#;
    let native = r#"{"out":"error","result":{"code":-32700,"#;
    for (message, own, fallback_v2) in [
        (b"{\"jsonrpc\":\"2.0\",".as_slice(), v2, v2),
        (b"{\"jsonrpc\":\"2.0\",\"method\":\"\xff\"}", v2, v2),
        (b"{\"method\":\"a\",\"params\":[1,]}", v2, v2),
        (b"[{\"in\":", v2, v2),
        (b"[\xff", v2, v2),
        (b"[", v2, v2),
        (b"{\"in\":\"ping\",", native, native),
        (b"{\"in\":\"ping\",\"a\":\"\xff\"}", native, native),
        (b"{", native, v2),
        (b"", native, v2),
        (b"nope", native, v2),
        (b"\xff\xfe", native, v2),
        (b"\xef\xbb\xbf{\"jsonrpc\":\"2.0\"", v2, v2),
        (b"\xef\xbb\xbf\xef\xbb\xbf{\"jsonrpc\":\"2.0\"}", native, v2),
    ] {
        for (fallback, expected) in [(Form::Native, own), (Form::V2, fallback_v2)] {
            let answer = served_as(message, fallback);
            assert!(answer.starts_with(expected), "{}: {answer}", String::from_utf8_lossy(message));
            assert_eq!(answer.ends_with(r#","id":null}"#), expected == v2);
        }
    }
    for message in ["{}", "7", r#"{"id":1}"#] {
        assert!(
            served_as(message.as_bytes(), Form::V2)
                .starts_with(r#"{"jsonrpc":"2.0","error":{"code":-32600,"#)
        );
        assert!(
            served_as(message.as_bytes(), Form::Native)
                .starts_with(r#"{"out":"error","result":{"code":-32600,"#)
        );
    }
}

/// Each class of text that parsers of JSON differ in, inside of params that are sent back as they came.
#[test]
fn what_is_json_passes_and_what_is_not_does_not() {
    let around = |value: &[u8]| {
        [br#"{"jsonrpc":"2.0","method":"echo","id":1,"params":["#.as_slice(), value, b"]}"].concat()
    };
    let deep = |depth: usize| format!("{}{}", "[".repeat(depth), "]".repeat(depth));
    for value in [
        "1e400",
        "-1e-400",
        "123456789012345678901234567890",
        "0.1000000000000000055511151231257827",
        r#""\u0000\uD83D\uDE00\u00e9""#,
        "\"\u{7f}\u{2028}\u{feff}\u{10ffff}\"",
        r#"{"a":1,"a":2}"#,
        r#"{"":{}}"#,
        " \t\r\n1 ",
        &deep(126),
    ] {
        let answer = served_as(&around(value.as_bytes()), Form::Native);
        assert_eq!(answer, format!(r#"{{"jsonrpc":"2.0","result":[{value}],"id":1}}"#));
    }
    for value in [
        b"+1".as_slice(),
        b"01",
        b"1.",
        b".5",
        b"1e",
        b"0x1F",
        b"Infinity",
        b"-",
        b"- 1",
        b"'a'",
        b"\"a",
        b"\"\n\"",
        b"\"\0\"",
        b"\0",
        b"\"\\x41\"",
        b"\"\\u12\"",
        b"\"\\ud80\"",
        b"\"\xff\"",
        b"\"\xc0\xaf\"",
        b"\"\xed\xa0\x80\"",
        b"\"\xf4\x90\x80\x80\"",
        b"\"\xe2\x82\"",
        b"\xef\xbb\xbf1",
        b"1,",
        b",1",
        b"1 2",
        b"tRue",
        b"nul",
        b"{\"a\" 1}",
        b"{a:1}",
        b"{\"a\":1,}",
        b"[1}",
        b"/**/1",
        b"\xc2\xa01",
        b"\x0c1",
        deep(127).as_bytes(),
        "[".repeat(100_000).as_bytes(),
        "{\"a\":".repeat(100_000).as_bytes(),
    ] {
        let shown = String::from_utf8_lossy(value.get(..40).unwrap_or(value)).into_owned();
        let answer = served_as(&around(value), Form::Native);
        assert_eq!(
            with_codes_alone(&answer),
            json!({ "jsonrpc": "2.0", "error": { "code": -32700 }, "id": null }),
            "{shown}"
        );
        let batch = [b"[".as_slice(), &around(value), b"]"].concat();
        assert_eq!(code(&served_as(&batch, Form::Native)), -32700, "{shown}");
    }
    assert_eq!(code(&served(&"[".repeat(100_000))), -32700);
    assert_eq!(code(&served(r#"{"jsonrpc":"2.0","method":"negate","params":[1e400],"id":1}"#)), -32602);
}

#[test]
fn a_batch_cut_anywhere_is_one_parse_error() {
    let message = r#"[{"jsonrpc":"2.0","method":"negate","params":[1],"id":"é"},7]"#.as_bytes();
    assert!(served_as(message, Form::Native).starts_with('['));
    for cut in 1..message.len() {
        let answer = served_as(&message[..cut], Form::Native);
        assert_eq!(code(&answer), -32700, "{cut}: {answer}");
    }
}

proptest::proptest! {
    #[test]
    fn a_message_of_any_shape_gets_an_answer_that_is_json_or_none(
        members in proptest::collection::vec(
            (r#""(jsonrpc|method|in|params|id|timeout_ms|x)""#, r#""(2.0|ping|sum|\\n)"|-?[0-9]{1,3}|[\[\]{}]|\[2,40\]|null"#), 0..6),
        shape in 0..3,
    ) {
        let members: Vec<String> = members.iter().map(|(name, value)| format!("{name}:{value}")).collect();
        let object = format!("{{{}}}", members.join(","));
        let message = match shape {
            0 => object,
            1 => format!("[{object}]"),
            _ => format!("[{object},1,{object}]"),
        };
        for fallback in [Form::Native, Form::V2] {
            let answer = served_as(message.as_bytes(), fallback);
            if !answer.is_empty() {
                serde_json::from_str::<Value>(&answer).unwrap();
            }
        }
    }
}
