//! Deadlines: the caller is answered when the time is up, whatever its handler does, and its connection goes on.

use crate::support::peer::{Peer, Way};
use crate::support::{Service, Wire, await_asleep, code};
use serde_json::{Value, json};

fn exceeded(answer: &Value, ms: u64) {
    assert_eq!(code(answer), -32001, "{answer}");
    let text = answer["result"]["message"].as_str().expect("a message");
    assert!(text.contains(&format!("within {ms}ms")), "{answer}");
}

fn goes_on(wire: &mut Wire) {
    assert_eq!(wire.call("ping", json!("goes on"))["result"], "goes on");
}

// `hang` never returns: an answer at all shows that nobody waited for the handler.

#[test]
fn a_caller_may_say_how_long_it_waits() {
    let service = Service::start("processes = 1\nthreads = 3");
    let mut wire = service.connect();
    wire.send(r#"{"in":"hang","timeout_ms":30}"#);
    exceeded(&wire.receive(), 30);
    goes_on(&mut wire);
    wire.send(r#"{"in":"hang","timeout_ms":1,"id":"late"}"#);
    let answer = wire.receive();
    exceeded(&answer, 1);
    assert_eq!(answer["id"], "late");
    goes_on(&mut wire);
}

#[test]
fn a_method_may_have_a_time_limit_of_its_own() {
    let service = Service::start("processes = 1\nthreads = 2\n[methods.hang]\ntimeout = \"40ms\"");
    let mut wire = service.connect();
    wire.request("hang", &Value::Null);
    exceeded(&wire.receive(), 40);
    // Others keep timeouts.request.
    assert_eq!(wire.call("sleep", json!({ "ms": 80 }))["out"], "sleep");
}

#[test]
fn a_methods_own_limit_may_be_longer_than_that_of_the_others() {
    let service = Service::start(
        "processes = 1\nthreads = 2\n[timeouts]\nrequest = \"200ms\"\n[methods.sleep]\ntimeout = \"1h\"",
    );
    let mut wire = service.connect();
    assert_eq!(wire.call("sleep", json!({ "ms": 400 }))["out"], "sleep");
    wire.request("hang", &Value::Null);
    exceeded(&wire.receive(), 200);
    goes_on(&mut wire);
}

#[test]
fn the_smaller_of_the_callers_and_the_configured_limit_holds() {
    let service = Service::start("processes = 1\nthreads = 4\n[timeouts]\nrequest = \"200ms\"");
    let mut wire = service.connect();
    for (asked, holds) in [("3600000", 200), ("99999999999999999999999", 200), ("20", 20)] {
        wire.send(&format!(r#"{{"in":"hang","timeout_ms":{asked}}}"#));
        exceeded(&wire.receive(), holds);
    }
    goes_on(&mut wire);
}

#[test]
fn a_call_that_is_out_of_time_does_not_hold_up_those_behind_it() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut wire = service.connect();
    wire.send(r#"{"in":"hang","timeout_ms":30}"#);
    wire.send(r#"{"in":"echo","params":1}"#);
    wire.send(r#"{"in":"echo","params":2}"#);
    exceeded(&wire.receive(), 30);
    assert_eq!(wire.receive()["result"], 1);
    assert_eq!(wire.receive()["result"], 2);
    wire.half_close();
    assert!(wire.is_closed());
}

#[test]
fn a_half_closed_caller_is_told_that_the_time_is_up() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    wire.send(r#"{"in":"hang","timeout_ms":30}"#);
    wire.half_close();
    exceeded(&wire.receive(), 30);
    assert!(wire.is_closed());
}

#[test]
fn a_queued_call_whose_time_is_up_is_answered_and_never_run() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    // The only thread sleeps while the time of the second call passes.
    wire.send(r#"{"in":"sleep","params":{"ms":400},"id":1}"#);
    wire.send(r#"{"in":"flaky","params":{"every":2,"ms":0},"timeout_ms":50,"id":2}"#);
    let answer = wire.receive();
    exceeded(&answer, 50);
    assert_eq!(answer["id"], 2);
    assert_eq!(wire.receive()["id"], 1);
    // Every second run answers true, so this is the first.
    assert_eq!(wire.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], false);
    assert_eq!(wire.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], true);
}

#[test]
fn the_answer_of_a_handler_that_is_late_is_thrown_away() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    wire.send(r#"{"in":"sleep","params":{"ms":150},"timeout_ms":30,"id":1}"#);
    exceeded(&wire.receive(), 30);
    // The one thread takes this when the sleeper is done, whose answer would come first.
    for number in 0..3 {
        assert_eq!(wire.call("echo", json!(number)), json!({ "out": "echo", "result": number }));
    }
}

/// Nobody knows its limit before a thread has parsed it, which is no reason to give it another one.
#[test]
fn the_time_of_a_large_call_counts_from_its_arrival_though_it_is_parsed_late() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"20s\"");
    let mut wire = service.connect();
    wire.send(r#"{"in":"sleep","params":{"ms":300},"id":1}"#);
    let large = json!({ "in": "echo", "params": "x".repeat(20_000), "timeout_ms": 100, "id": 2 });
    wire.send(&large.to_string());
    assert_eq!(wire.receive()["id"], 1);
    let answer = wire.receive();
    exceeded(&answer, 100);
    assert_eq!(answer["id"], 2);
}

#[test]
fn a_call_out_of_time_leaves_other_calls_of_its_connection_alone() {
    let service = Service::start("processes = 1\nthreads = 3");
    let mut wire = service.connect();
    wire.send(r#"{"in":"sleep","params":{"ms":200},"id":1}"#);
    wire.send(r#"{"in":"hang","timeout_ms":30,"id":2}"#);
    wire.send(r#"{"in":"sleep","params":{"ms":200},"id":3}"#);
    let answer = wire.receive();
    exceeded(&answer, 30);
    assert_eq!(answer["id"], 2);
    let mut others = [wire.receive(), wire.receive()];
    others.sort_by_key(|answer| answer["id"].as_u64());
    assert_eq!(others[0], json!({ "out": "sleep", "result": null, "id": 1 }));
    assert_eq!(others[1], json!({ "out": "sleep", "result": null, "id": 3 }));
}

// The deadline of a request in pieces, or of a long one, was not looked at before a thread had read it: where none was free, at
// the end of `queue_wait`.
#[test]
fn what_a_head_says_holds_before_its_body_has_been_read() {
    let service = Service::start(
        "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"1h\"\n[timeouts]\nrequest = \"1h\"",
    );
    let mut wire = service.connect();
    let pid = wire.call("tine.worker", Value::Null)["result"]["pid"].as_i64().expect("a pid");
    wire.send(r#"{"in":"hang"}"#);
    await_asleep(i32::try_from(pid).expect("a pid"));
    let mut peer = Peer::of(&service, Way::Http);
    let long = format!("\"{}\"", "x".repeat(17_000));
    let head =
        |how: &str| format!("POST /sleep HTTP/1.1\r\nHost: a\r\nRequest-Timeout-Ms: 30\r\n{how}\r\n\r\n");
    let chunked =
        |body: &str| head("Transfer-Encoding: chunked") + &format!("{:x}\r\n{body}\r\n0\r\n\r\n", body.len());
    let whole = head(&format!("Content-Length: {}", long.len())) + &long;
    for request in [chunked("[1]"), chunked(&long), whole] {
        peer.send_bytes(request);
        let reply = peer.reply();
        assert_eq!((reply.status, reply.code()), (504, -32001), "{reply:?}");
    }
}
