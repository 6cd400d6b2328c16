//! A service answers calls: what a plain client sees when nothing goes wrong.

use crate::support::{Service, framed};
use serde_json::json;

#[test]
fn a_plain_client_gets_the_answer_byte_for_byte() {
    let service = Service::start("processes = 2\nthreads = 2");
    let mut wire = service.connect();
    for _ in 0..3 {
        wire.send(r#"{"in":"ping","params":"ireader 0"}"#);
        assert_eq!(wire.receive_text().as_deref(), Some(r#"{"out":"pong","result":"ireader 0"}"#));
    }
}

#[test]
fn a_message_may_arrive_in_any_pieces() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    let message = framed(r#"{"in":"ping","params":[1]}"#);
    for split in 1..message.len() {
        wire.send_bytes(&message[..split]);
        wire.send_bytes(&message[split..]);
        assert_eq!(wire.receive(), json!({ "out": "pong", "result": [1] }), "split at {split}");
    }
}

#[test]
fn calls_with_ids_overtake_each_other_and_calls_without_do_not() {
    let service = Service::start("processes = 1\nthreads = 4");
    let mut wire = service.connect();
    wire.send(r#"{"in":"sleep","params":{"ms":300},"id":1}"#);
    wire.send(r#"{"in":"ping","params":"quick","id":2}"#);
    assert_eq!(wire.receive()["id"], 2);
    assert_eq!(wire.receive()["id"], 1);
    wire.send(r#"{"in":"sleep","params":{"ms":50}}"#);
    wire.send(r#"{"in":"ping","params":"later"}"#);
    assert_eq!(wire.receive()["out"], "sleep");
    assert_eq!(wire.receive()["out"], "pong");
}

#[test]
fn term_drains_and_exits_0() {
    let mut service = Service::start("processes = 2\nthreads = 2");
    let mut wire = service.connect();
    wire.request("sleep", &json!({ "ms": 200 }));
    // Another call's answer shows that the worker has begun: its thread runs the sleeper.
    assert_eq!(service.call("ping", json!(1))["result"], 1);
    assert_eq!(service.stop(), Some(0));
    assert_eq!(wire.receive()["out"], "sleep");
    assert!(wire.is_closed());
}
