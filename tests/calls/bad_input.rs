//! Bad input: each gets a clear answer, and nothing else is harmed.

use std::io::{ErrorKind, Read, Write};
use std::time::Duration;

use crate::support;
use crate::support::programs::Bystander;
use crate::support::{Service, Wire, code, framed};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

const ONE_WORKER: &str = "processes = 1\nthreads = 2";

fn text_of(answer: &Value) -> &str {
    support::error_of(answer)["message"].as_str().expect("an error has a message")
}

/// Sends `body` and expects this error, words in its message, and a connection that goes on.
fn refused(wire: &mut Wire, body: &[u8], expected: i64, words: &str) {
    let length = u32::try_from(body.len()).expect("a short body").to_le_bytes();
    wire.send_bytes(&[&length, body].concat());
    let answer = wire.receive();
    let shown = String::from_utf8_lossy(&body[..body.len().min(80)]).into_owned();
    assert_eq!(code(&answer), expected, "{shown}: {answer}");
    assert!(text_of(&answer).contains(words), "{shown}: expected {words:?} in {answer}");
    assert!(answer.to_string().len() < 1000, "{shown}: a long answer");
    assert_eq!(wire.call("ping", json!("goes on")), json!({ "out": "pong", "result": "goes on" }), "{shown}");
}

/// Waits until the service has sent something, without reading it.
fn await_readable(wire: &Wire) {
    use std::os::fd::AsFd;
    let mut wanted = [PollFd::new(wire.stream.as_fd(), PollFlags::POLLIN)];
    let timeout = PollTimeout::try_from(support::PATIENCE).expect("a short time");
    assert_eq!(poll(&mut wanted, timeout).expect("a descriptor"), 1, "the service sends nothing");
}

#[test]
fn a_body_that_is_no_json_is_a_parse_error_that_says_where() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    for (body, words) in [
        ("x", "byte 0"),
        ("{", "the end of the message"),
        (r#"{"in":"ping""#, "the end of the message"),
        (r#"{"in":"ping",}"#, "byte 13"),
        (r#"{"in":"ping"} x"#, "byte 14"),
        (r#"{"in":"ping","params":01}"#, "byte 23"),
        (r#"{"in":"ping","params":NaN}"#, "byte 22"),
        (r#"{"in":"ping","params":"\x"}"#, "byte"),
        ("{\"in\":\"ping\",\"params\":\"\n\"}", "byte 23"),
        ("{'in':'ping'}", "byte 1"),
        ("   ", "the end of the message"),
        ("ping", "byte 0"),
    ] {
        refused(&mut wire, body.as_bytes(), -32700, words);
    }
    // Half a surrogate pair is JSON, and no text that a method could be given.
    refused(&mut wire, br#"{"in":"ping","params":"\ud800"}"#, -32602, "byte 23");
    bystander.sees_no_harm(&service, "bodies that are no JSON");
}

#[test]
fn a_body_that_is_not_utf_8_is_a_parse_error() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    refused(&mut wire, b"\xff", -32700, "byte 0: expected UTF-8");
    refused(&mut wire, b"{\"in\":\"ping\",\"params\":\"\xc3\x28\"}", -32700, "byte 23: expected UTF-8");
    refused(&mut wire, b"{\"in\":\"ping\",\"params\":\"\xed\xa0\x80\"}", -32700, "expected UTF-8");
    bystander.sees_no_harm(&service, "bytes that are not UTF-8");
}

#[test]
fn json_that_is_no_request_is_an_invalid_request() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    for (body, words) in [
        ("[]", "at least one request"),
        ("null", "an object"),
        ("17", "an object"),
        (r#""ping""#, "an object"),
        ("{}", "`in`"),
        (r#"{"params":1}"#, "`in`"),
        (r#"{"in":null}"#, "`null`"),
        (r#"{"in":5}"#, "`5`"),
        (r#"{"in":["ping"]}"#, "`in` must be a text"),
        (r#"{"in":{"a":1}}"#, "`in` must be a text"),
        (r#"{"in":"ping","in":"ping"}"#, "`in` stands there twice"),
        (r#"{"in":"ping","params":1,"params":1}"#, "`params` stands there twice"),
        (r#"{"in":"ping","id":1,"id":2}"#, "`id` stands there twice"),
        (r#"{"in":"ping","timeout_ms":5,"timeout_ms":5}"#, "`timeout_ms` stands there twice"),
    ] {
        refused(&mut wire, body.as_bytes(), -32600, words);
    }
    bystander.sees_no_harm(&service, "JSON that is no request");
}

#[test]
fn a_timeout_that_is_no_positive_integer_is_an_invalid_request_and_a_huge_one_is_no_limit() {
    let service = Service::start(ONE_WORKER);
    let mut wire = service.connect();
    for timeout in ["0", "-1", "\"5\"", "1.5", "1e3", "null", "[1]", "-99999999999999999999999999"] {
        let body = format!(r#"{{"in":"ping","timeout_ms":{timeout}}}"#);
        refused(&mut wire, body.as_bytes(), -32600, "`timeout_ms` must be a positive integer");
    }
    for timeout in ["1000000", "18446744073709551615", "99999999999999999999999999999999999999"] {
        wire.send(&format!(r#"{{"in":"ping","params":7,"timeout_ms":{timeout}}}"#));
        assert_eq!(wire.receive()["result"], 7, "{timeout}");
    }
}

#[test]
fn an_unknown_method_is_named_however_long_its_name_is() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    refused(&mut wire, br#"{"in":"frobnicate"}"#, -32601, "`frobnicate`");
    refused(&mut wire, br#"{"in":""}"#, -32601, "method not found");
    refused(&mut wire, br#"{"in":"Ping"}"#, -32601, "`Ping`");
    refused(&mut wire, br#"{"in":"\u0000\ud83d\ude00"}"#, -32601, "method not found");
    let long = json!({ "in": "é".repeat(200_000) }).to_string();
    refused(&mut wire, long.as_bytes(), -32601, "éé");
    bystander.sees_no_harm(&service, "unknown methods");
}

#[test]
fn wrong_params_are_answered_with_the_field_and_what_was_expected() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    for (method, params, words) in [
        (
            "sleep",
            json!({ "ms": "soon" }),
            "`ms`: invalid type: string \"soon\", expected a whole number from 0 to 18446744073709551615",
        ),
        (
            "sleep",
            json!({ "ms": -1 }),
            "`ms`: invalid value: integer `-1`, expected a whole number from 0 to 18446744073709551615",
        ),
        ("sleep", json!({}), "missing field `ms`"),
        ("sleep", json!(5), "expected an object"),
        ("sleep", Value::Null, "expected an object"),
        ("crash", json!({ "how": "gently" }), "`how`: unknown variant `gently`"),
        ("flaky", json!({ "every": 0, "ms": 0 }), "`every` must be at least 1"),
    ] {
        refused(&mut wire, json!({ "in": method, "params": params }).to_string().as_bytes(), -32602, words);
    }
    bystander.sees_no_harm(&service, "wrong params");
}

#[test]
fn a_hundred_thousand_brackets_are_a_parse_error() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    let half = 50_000;
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let params = format!("{}1{}", open.repeat(half), close.repeat(half));
        let body = format!(r#"{{"in":"echo","params":{params}}}"#);
        refused(&mut wire, body.as_bytes(), -32700, "byte");
    }
    refused(&mut wire, "[".repeat(100_000).as_bytes(), -32700, "byte");
    bystander.sees_no_harm(&service, "100,000 brackets");
}

#[test]
fn a_length_of_0_is_an_invalid_request_and_the_connection_goes_on() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    for _ in 0..3 {
        refused(&mut wire, b"", -32600, "0");
    }
    wire.send_bytes(&[&[0; 12][..], &framed(r#"{"in":"ping","params":1}"#)].concat());
    for _ in 0..3 {
        assert_eq!(code(&wire.receive()), -32600);
    }
    assert_eq!(wire.receive()["result"], 1);
    bystander.sees_no_harm(&service, "messages without a byte");
}

#[test]
fn a_length_over_max_message_is_answered_and_closed() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    for length in [(1_u32 << 20) + 1, (16 << 20) - 1] {
        let mut wire = service.connect();
        wire.send_bytes(&length.to_le_bytes());
        let answer = wire.receive();
        assert_eq!(code(&answer), -32003);
        assert_eq!(answer["result"]["data"], json!({ "limit": 1 << 20 }));
        assert!(text_of(&answer).contains(&length.to_string()), "{answer}");
        assert!(wire.is_closed());
    }
    // Behind other calls, whose answers still come first; 4 GiB is a length like any other there.
    let mut wire = service.connect();
    let mut bytes = framed(r#"{"in":"sleep","params":{"ms":20},"id":1}"#);
    bytes.extend(framed(r#"{"in":"ping","params":2}"#));
    bytes.extend(u32::MAX.to_le_bytes());
    wire.send_bytes(&bytes);
    let mut answers = [wire.receive(), wire.receive(), wire.receive()];
    answers.sort_by_key(|answer| answer["out"].as_str().map(str::to_owned));
    assert_eq!(code(&answers[0]), -32003);
    assert_eq!((&answers[1]["out"], &answers[2]["out"]), (&json!("pong"), &json!("sleep")));
    assert!(wire.is_closed());
    bystander.sees_no_harm(&service, "lengths over max_message");
}

/// What went wrong once: the connection was closed as soon as the answer was out, so what the client still sent made
/// its kernel throw the answer away and report a reset.
#[test]
fn a_client_that_goes_on_sending_a_message_that_is_too_large_still_gets_the_answer() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    wire.send_bytes(&((8_u32 << 20).to_le_bytes()));
    // The answer is there, and only then come the 8 MiB.
    await_readable(&wire);
    wire.send_bytes(&vec![b'x'; 8 << 20]);
    assert_eq!(code(&wire.receive()), -32003);
    assert!(wire.is_closed());

    // All at once.
    let mut wire = service.connect();
    wire.send_bytes(&[&(4_u32 << 20).to_le_bytes()[..], &vec![b'x'; 4 << 20]].concat());
    assert_eq!(code(&wire.receive()), -32003);
    assert!(wire.is_closed());
    bystander.sees_no_harm(&service, "8 MiB too many");
}

#[test]
fn a_stranger_is_closed_unanswered_and_costs_one_line_that_names_it() {
    let hello = [&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01, 0, 0, 0xec, 3, 3][..], &[7; 229]].concat();
    let noise = vec![0xa5; 300_000];
    let strangers: [(&str, &[u8]); 4] = [
        ("a TLS hello", &hello),
        ("noise", &noise),
        ("text", b"hello?\n"),
        ("a length of 16 MiB", &(16_u32 << 20).to_le_bytes()),
    ];
    for (what, bytes) in strangers {
        // Each has a service of its own: of several within a second the others are counted.
        let mut service = Service::start(ONE_WORKER);
        let mut bystander = Bystander::of(&service);
        let mut wire = service.connect();
        let me = wire.stream.local_addr().expect("connected").to_string();
        wire.send_bytes(bytes);
        assert!(wire.is_closed(), "{what} is answered");
        service.await_log_where(what, |line| line["peer"] == me.as_str() && line["level"] == "ERROR");
        bystander.sees_no_harm(&service, what);
        drop(bystander);
        assert_eq!(service.stop(), Some(0));
        let log = service.whole_log();
        let mentions = log.iter().filter(|line| line.to_string().contains(&me)).count();
        assert_eq!(mentions, 1, "{what}: {log:?}");
        assert!(
            !log.iter().any(|line| line["message"].as_str().unwrap_or_default().contains("more record")),
            "{log:?}"
        );
    }
}

#[test]
fn a_message_that_does_not_arrive_whole_in_time_is_answered_and_closed() {
    let service = Service::start(&format!("{ONE_WORKER}\n[timeouts]\nmessage = \"100ms\""));
    let mut bystander = Bystander::of(&service);
    for part in [&b"\x07"[..], b"\x07\0\0", b"\x07\0\0\0", b"\x07\0\0\0{\"in\""] {
        let mut wire = service.connect();
        wire.send_bytes(part);
        let answer = wire.receive();
        assert_eq!(code(&answer), -32600);
        assert!(text_of(&answer).contains("timeouts.message"), "{answer}");
        assert!(wire.is_closed());
    }
    // Behind a whole message, whose answer comes.
    let mut wire = service.connect();
    wire.send_bytes(&[framed(r#"{"in":"ping","params":1}"#), vec![7, 0]].concat());
    assert_eq!(wire.receive()["result"], 1);
    assert_eq!(code(&wire.receive()), -32600);
    assert!(wire.is_closed());
    bystander.sees_no_harm(&service, "half messages");
}

#[test]
fn a_client_that_drips_bytes_gains_no_time_by_it() {
    let service = Service::start(&format!("{ONE_WORKER}\n[timeouts]\nmessage = \"150ms\""));
    let mut wire = service.connect();
    wire.send_bytes(&(1_u32 << 20).to_le_bytes());
    // Each wait for the answer is the pause before the next byte.
    wire.stream.set_read_timeout(Some(Duration::from_millis(5))).expect("a timeout can be set");
    let mut first = [0; 1];
    let mut dripped = 0;
    let answered = loop {
        match wire.stream.read(&mut first) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {
                assert!(dripped < 10_000, "still open after {dripped} bytes");
                wire.stream.write_all(b"x").expect("the service reads, or has answered and throws away");
                dripped += 1;
            }
            other => break other.expect("an answer, not a reset"),
        }
    };
    assert_eq!(answered, 1);
    wire.stream.set_read_timeout(Some(support::PATIENCE)).expect("a timeout can be set");
    let mut rest = Vec::new();
    wire.stream.read_to_end(&mut rest).expect("the end, not a reset");
    assert!(String::from_utf8_lossy(&rest).contains("timeouts.message"), "{rest:?}");
}

#[test]
fn a_message_that_waits_for_calls_before_it_is_not_late() {
    let service = Service::start(&format!("{ONE_WORKER}\n[timeouts]\nmessage = \"300ms\"\nidle = \"300ms\""));
    let mut wire = service.connect();
    let late = framed(r#"{"in":"ping","params":1}"#);
    wire.send_bytes(&[framed(r#"{"in":"sleep","params":{"ms":700}}"#), late[..9].to_vec()].concat());
    assert_eq!(wire.receive()["out"], "sleep");
    wire.send_bytes(&late[9..]);
    assert_eq!(wire.receive()["result"], 1);
}

#[test]
fn an_idle_connection_is_closed_and_one_with_a_call_is_not() {
    let service = Service::start(&format!("{ONE_WORKER}\n[timeouts]\nidle = \"300ms\""));
    let mut silent = service.connect();
    let mut busy = service.connect();
    busy.request("sleep", &json!({ "ms": 800 }));
    assert!(silent.is_closed());
    assert_eq!(busy.receive()["out"], "sleep");
    assert!(busy.is_closed());
    assert_eq!(service.call("ping", json!(1))["result"], 1);
}

#[test]
fn a_handlers_panic_is_told_in_the_log_and_not_to_the_caller() {
    let service = Service::start(ONE_WORKER);
    let mut bystander = Bystander::of(&service);
    let mut wire = service.connect();
    for round in 0..20 {
        let secret = format!("the password is {round}");
        let answer = wire.call("panic", json!({ "message": secret }));
        assert_eq!(code(&answer), -32603);
        assert!(!answer.to_string().contains("password"), "{answer}");
        service.await_log(&secret);
    }
    assert_eq!(wire.call("ping", json!(1))["result"], 1);
    bystander.sees_no_harm(&service, "20 panics");
}

#[test]
fn a_handlers_own_error_arrives_as_it_was_made() {
    let service = Service::start(ONE_WORKER);
    let mut wire = service.connect();
    wire.send(r#"{"in":"fail","params":{"code":17,"message":"no \"pens\"\n","data":{"left":[1,2]}},"id":1}"#);
    assert_eq!(
        wire.receive_text().as_deref(),
        Some(
            r#"{"out":"error","result":{"code":17,"message":"no \"pens\"\n","data":{"left":[1,2]}},"id":1}"#
        )
    );
    wire.send(r#"{"in":"fail","params":{"code":32767,"message":""}}"#);
    assert_eq!(
        wire.receive_text().as_deref(),
        Some(r#"{"out":"error","result":{"code":32767,"message":""}}"#)
    );
    // The codes of the protocol are not a handler's to give.
    assert_eq!(code(&wire.call("fail", json!({ "code": -32000, "message": "x" }))), -32603);
}

/// What went wrong once: the text went nowhere.
#[test]
fn the_cause_of_an_internal_error_is_told_in_the_log_and_not_to_the_caller() {
    let service = Service::start(ONE_WORKER);
    let answer = service.call("fail", json!({ "message": "no route to db-3" }));
    assert_eq!(answer["result"], json!({ "code": -32603, "message": "internal error" }));
    let line = service.await_log_where("the cause", |line| line.to_string().contains("no route to db-3"));
    assert_eq!((&line["level"], &line["method"]), (&json!("ERROR"), &json!("fail")), "{line}");
}
