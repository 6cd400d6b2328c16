//! The native envelope behind length prefixes, byte for byte: ids, order, pieces, sizes, half-closed callers.

use std::io::Read;

use crate::support::{Service, Wire, code, framed};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

fn echo_without_id(number: usize) -> String {
    format!(r#"{{"in":"echo","params":{number}}}"#)
}

fn echoed(number: usize) -> String {
    format!(r#"{{"out":"echo","result":{number}}}"#)
}

fn all_framed(bodies: impl IntoIterator<Item = String>) -> Vec<u8> {
    bodies.into_iter().flat_map(|body| framed(&body)).collect()
}

/// A `blob` request for an answer whose body has `length` bytes.
fn blob_of(length: usize) -> String {
    let around = r#"{"out":"blob","result":""}"#.len();
    json!({ "in": "blob", "params": { "bytes": length - around } }).to_string()
}

#[test]
fn an_id_of_any_kind_comes_back_as_it_was_written_after_the_result() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    for id in [
        "null",
        "0",
        "-1",
        "1.0",
        "1e3",
        "123456789012345678901234567890",
        r#""a""#,
        r#""""#,
        r#""\u0041\/\ud83d\ude00""#,
        "true",
        "[1, 2]",
        r#"{"a" : [ ]}"#,
    ] {
        wire.send(&format!(r#"{{"id":{id},"in":"ping","params":7}}"#));
        let answer = wire.receive_text();
        assert_eq!(answer, Some(format!(r#"{{"out":"pong","result":7,"id":{id}}}"#)));
    }
}

#[test]
fn an_error_answer_carries_the_id() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    for (members, expected) in [
        (r#""in":"no such method""#, -32601),
        (r#""in":"sleep","params":{"ms":"soon"}"#, -32602),
        (r#""in":"panic","params":{"message":"asked to"}"#, -32603),
        (r#""in":"fail","params":{"code":17,"message":"no pens"}"#, 17),
        (r#""params":1"#, -32600),
        (r#""in":5"#, -32600),
        (r#""in":"ping","timeout_ms":0"#, -32600),
        (r#""in":"hang","timeout_ms":20"#, -32001),
    ] {
        wire.send(&format!(r#"{{{members},"id":[1 , "\u0041"]}}"#));
        let answer = wire.receive_text().expect("an answer");
        assert!(answer.ends_with(r#"},"id":[1 , "\u0041"]}"#), "{answer}");
        assert_eq!(code(&serde_json::from_str(&answer).expect("JSON")), expected, "{answer}");
    }
}

#[test]
fn calls_without_ids_are_answered_in_order_whatever_they_take() {
    let service = Service::start("processes = 1\nthreads = 4");
    let mut wire = service.connect();
    let requests = [40, 0, 20, 0, 5].into_iter().enumerate().flat_map(|(number, ms)| {
        let sleep = json!({ "in": "sleep", "params": { "ms": ms } }).to_string();
        [sleep, echo_without_id(number)]
    });
    wire.send_bytes(&all_framed(requests));
    for number in 0..5 {
        assert_eq!(wire.receive()["out"], "sleep");
        assert_eq!(wire.receive_text(), Some(echoed(number)));
    }
}

#[test]
fn calls_with_ids_run_side_by_side_up_to_the_bound_of_the_connection() {
    let service = Service::start(
        "processes = 1\nthreads = 4\n[limits]\nin_flight_per_connection = 3\n[methods.hang]\ntimeout = \"300ms\"",
    );
    let mut wire = service.connect();
    // Two hang for good, and the third call still runs: three at once.
    wire.send(r#"{"in":"hang","id":1}"#);
    wire.send(r#"{"in":"hang","id":2}"#);
    wire.send(r#"{"in":"ping","params":"beside","id":3}"#);
    assert_eq!(wire.receive(), json!({ "out": "pong", "result": "beside", "id": 3 }));
    // A third that hangs uses the bound up, though one thread is free: the next call waits for an answer.
    wire.send(r#"{"in":"hang","id":4}"#);
    wire.send(r#"{"in":"ping","params":"after","id":5}"#);
    let first = wire.receive();
    assert_eq!(code(&first), -32001, "{first}");
    let mut others: Vec<Value> = (0..3).map(|_| wire.receive()["id"].clone()).collect();
    others.push(first["id"].clone());
    others.sort_by_key(Value::as_u64);
    assert_eq!(others, [1, 2, 4, 5]);
}

#[test]
fn hundreds_of_calls_in_one_write_are_all_answered_in_order() {
    let service = Service::start("processes = 1\nthreads = 4");
    let mut wire = service.connect();
    wire.send_bytes(&all_framed((0..500).map(echo_without_id)));
    for number in 0..500 {
        assert_eq!(wire.receive_text(), Some(echoed(number)));
    }
}

#[test]
fn hundreds_of_calls_with_ids_in_one_write_are_each_answered_once() {
    let service = Service::start("processes = 1\nthreads = 4");
    let mut wire = service.connect();
    wire.send_bytes(&all_framed(
        (0..500).map(|id| format!(r#"{{"in":"echo","params":{},"id":{id}}}"#, id * 2)),
    ));
    let mut ids: Vec<u64> = (0..500)
        .map(|_| {
            let answer = wire.receive();
            let id = answer["id"].as_u64().expect("an id");
            assert_eq!(answer["result"], id * 2);
            id
        })
        .collect();
    ids.sort_unstable();
    assert!(ids.into_iter().eq(0..500));
}

#[test]
fn several_messages_may_arrive_byte_by_byte() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    let bytes = all_framed((0..3).map(echo_without_id));
    for byte in bytes {
        wire.send_bytes(&[byte]);
    }
    for number in 0..3 {
        assert_eq!(wire.receive_text(), Some(echoed(number)));
    }
    // The end of one message and the beginning of the next in one piece.
    let bytes = all_framed((0..30).map(echo_without_id));
    for piece in bytes.chunks(7) {
        wire.send_bytes(piece);
    }
    for number in 0..30 {
        assert_eq!(wire.receive_text(), Some(echoed(number)));
    }
}

#[test]
fn a_message_of_exactly_max_message_is_answered() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    let around = r#"{"in":"echo","params":""}"#.len();
    for length in [(1 << 20) - 1, 1 << 20] {
        let text = "ü".repeat((length - around) / 2) + &"x".repeat((length - around) % 2);
        let body = format!(r#"{{"in":"echo","params":"{text}"}}"#);
        assert_eq!(body.len(), length);
        wire.send(&body);
        assert_eq!(wire.receive()["result"], text);
    }
}

/// A caller whose socket takes little at a time, so that the service has to write in many parts.
fn slow_reader(service: &Service) -> Wire {
    let wire = service.connect();
    setsockopt(&wire.stream, sockopt::RcvBuf, &(16 << 10)).expect("the option exists");
    wire
}

#[test]
fn answers_of_8_mib_arrive_whole_however_slowly_they_are_read() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut wire = slow_reader(&service);
    // More than limits.output in all: the third call begins when the first answers have been read.
    wire.send_bytes(&all_framed([
        blob_of(8 << 20),
        blob_of(8 << 20),
        echo_without_id(1),
        blob_of(8 << 20),
        echo_without_id(2),
    ]));
    let blob = |wire: &mut Wire| {
        let answer = wire.receive_text().expect("an answer");
        assert_eq!(answer.len(), 8 << 20);
        assert!(answer.starts_with(r#"{"out":"blob","result":"xxx"#) && answer.ends_with(r#"xxx"}"#));
    };
    blob(&mut wire);
    blob(&mut wire);
    assert_eq!(wire.receive_text(), Some(echoed(1)));
    blob(&mut wire);
    assert_eq!(wire.receive_text(), Some(echoed(2)));
}

#[test]
fn an_answer_of_16_mib_is_an_internal_error_and_the_connection_goes_on() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    wire.send(&blob_of((16 << 20) - 1));
    assert_eq!(wire.receive_text().expect("the longest answer there can be").len(), (16 << 20) - 1);
    wire.send(&blob_of(16 << 20));
    let answer = wire.receive();
    assert_eq!(code(&answer), -32603);
    assert!(answer.to_string().len() < 300, "{answer}");
    assert_eq!(wire.call("ping", json!("goes on"))["result"], "goes on");
}

/// What went wrong once: when an answer beyond `output` was sent in one go, nobody looked at the rest of the input.
#[test]
fn calls_behind_an_answer_beyond_the_output_limit_are_begun_once_it_is_sent() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\noutput = \"4KiB\"");
    let mut wire = service.connect();
    for _ in 0..20 {
        wire.send_bytes(&all_framed([
            blob_of(20_000),
            echo_without_id(1),
            blob_of(5_000),
            echo_without_id(2),
        ]));
        assert_eq!(wire.receive_text().expect("an answer").len(), 20_000);
        assert_eq!(wire.receive_text(), Some(echoed(1)));
        assert_eq!(wire.receive_text().expect("an answer").len(), 5_000);
        assert_eq!(wire.receive_text(), Some(echoed(2)));
    }
    // Error answers are written without any call; they fill the output as well.
    wire.send_bytes(&all_framed((0..500).map(|_| "[]".to_owned()).chain([echo_without_id(3)])));
    wire.half_close();
    for _ in 0..500 {
        assert_eq!(code(&wire.receive()), -32600);
    }
    assert_eq!(wire.receive_text(), Some(echoed(3)));
    assert!(wire.is_closed());
}

#[test]
fn ping_and_echo_return_digits_escapes_and_spaces_byte_for_byte() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    for params in [
        "1.0",
        "-0",
        "1e400",
        "1E+2",
        "0.10000000000000000000000000000000000000001",
        "123456789012345678901234567890",
        r#""\u0041\ud83d\ude00\/\b\"\\""#,
        r#""ü€😀""#,
        r#""""#,
        "[1 ,\t2\n]",
        r#"{"a":1,"a":2, "b" : {}}"#,
        "null",
        "false",
        "[[[[]]]]",
    ] {
        for (method, reply) in [("ping", "pong"), ("echo", "echo")] {
            wire.send(&format!(r#"{{"in":"{method}","params":{params}}}"#));
            assert_eq!(wire.receive_text(), Some(format!(r#"{{"out":"{reply}","result":{params}}}"#)));
        }
    }
}

#[test]
fn members_may_stand_in_any_order_with_others_and_with_spaces_around_them() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    for body in [
        r#"{"params":7,"in":"ping"}"#,
        " {\r\n\t\"params\" : 7 ,\n\"in\" : \"ping\" } \n",
        r#"{"x":[{}],"in":"ping","y":null,"params":7,"out":"?"}"#,
        r#"{"\u0069n":"\u0070ing","params":7}"#,
    ] {
        wire.send(body);
        assert_eq!(wire.receive_text().as_deref(), Some(r#"{"out":"pong","result":7}"#), "{body}");
    }
}

#[test]
fn params_that_are_missing_are_null_or_a_field_that_is_missed() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    wire.send(r#"{"in":"ping"}"#);
    assert_eq!(wire.receive_text().as_deref(), Some(r#"{"out":"pong","result":null}"#));
    wire.send(r#"{"in":"rand"}"#);
    assert!(wire.receive()["result"].is_u64());
    wire.send(r#"{"in":"sleep"}"#);
    let answer = wire.receive();
    assert_eq!(code(&answer), -32602);
    assert!(answer["result"]["message"].as_str().is_some_and(|text| text.contains("`ms`")), "{answer}");
}

#[test]
fn the_built_in_methods_tell_what_there_is_and_who_answers() {
    let service = Service::start("processes = 1\nthreads = 3");
    let mut wire = service.connect();
    let methods = wire.call("tine.methods", json!({}));
    assert_eq!(methods["out"], "tine.methods");
    let methods: Vec<&str> =
        methods["result"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert!(methods.is_sorted());
    for method in ["echo", "ping", "sleep", "tine.methods", "tine.worker"] {
        assert!(methods.contains(&method), "{methods:?}");
    }
    let worker = wire.call("tine.worker", json!([]))["result"].clone();
    assert_eq!(worker["slot"], 0);
    assert_eq!(worker["generation"], 1);
    let pids: Vec<i64> = service.worker_pids().into_iter().map(i64::from).collect();
    assert!(worker["pid"].as_i64().is_some_and(|pid| pids == [pid]), "{worker}, children {pids:?}");
    assert!(worker["thread"].as_u64().is_some_and(|thread| thread <= 3), "{worker}");
    assert!(worker["uptime_ms"].is_u64(), "{worker}");
}

#[test]
fn a_half_closed_caller_gets_every_answer_and_then_the_end() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut wire = service.connect();
    let sleep = json!({ "in": "sleep", "params": { "ms": 30 } }).to_string();
    let rest = (0..200).map(echo_without_id);
    wire.send_bytes(&all_framed([sleep.clone()].into_iter().chain(rest)));
    wire.half_close();
    assert_eq!(wire.receive()["out"], "sleep");
    for number in 0..200 {
        assert_eq!(wire.receive_text(), Some(echoed(number)));
    }
    assert!(wire.is_closed());

    let mut wire = service.connect();
    let with_ids = (0..200).map(|id| format!(r#"{{"in":"sleep","params":{{"ms":1}},"id":{id}}}"#));
    wire.send_bytes(&all_framed(with_ids));
    wire.half_close();
    assert_eq!(wire.receive_to_the_end().len(), 200);
}

#[test]
fn a_half_closed_caller_gets_large_answers_too() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut wire = slow_reader(&service);
    wire.send_bytes(&all_framed([blob_of(8 << 20), blob_of(6 << 20), echo_without_id(1)]));
    wire.half_close();
    let lengths: Vec<usize> = wire.receive_to_the_end().iter().map(String::len).collect();
    assert_eq!(lengths, [8 << 20, 6 << 20, echoed(1).len()]);
}

#[test]
fn what_a_half_closed_caller_left_unfinished_is_dropped() {
    let service = Service::start("processes = 1\nthreads = 1");
    for left in [&[0_u8][..], &[9, 0, 0], &[9, 0, 0, 0], b"\x09\0\0\0{\"in\":"] {
        let mut wire = service.connect();
        wire.send_bytes(&all_framed([echo_without_id(1)]));
        wire.send_bytes(left);
        wire.half_close();
        assert_eq!(wire.receive_to_the_end(), [echoed(1)]);
    }
    // The same with nothing before it.
    let wire = service.connect();
    wire.half_close();
    assert_eq!((&wire.stream).read(&mut [0; 1]).expect("an end, not a reset"), 0);
}
