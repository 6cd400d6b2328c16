//! More calls than threads: who waits, who is refused, and who notices nothing.

use std::net::SocketAddr;

use crate::support;
use crate::support::measure::threads;
use crate::support::{Service, Wire, await_asleep, code};
use serde_json::{Value, json};

const OVERLOADED: i64 = -32000;

/// A call that was refused says when to try again.
fn assert_refused(answer: &Value) {
    assert_eq!(code(answer), OVERLOADED, "{answer}");
    let wait = answer["result"]["data"]["retry_after_ms"].as_u64();
    assert!(wait.is_some_and(|wait| wait > 0), "{answer}");
}

/// A connection whose call the worker has taken before this returns: what is sent from now on comes after it.
fn occupy(service: &Service, method: &str) -> Wire {
    let mut wire = service.connect();
    wire.send(&json!({ "in": method, "params": { "ms": 400 }, "id": 1 }).to_string());
    wire.send(r#"{"in":"unknown","id":2}"#);
    assert_eq!(wire.receive()["id"], 2, "answered by the thread that reads, once it has read both");
    wire
}

#[test]
fn a_slow_call_delays_no_other_connection_while_a_thread_is_free() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut early = service.connect();
    assert_eq!(early.call("ping", json!(0))["result"], 0);
    let slow = occupy(&service, "hang");
    for n in 1..=20 {
        assert_eq!(service.call("ping", json!(n))["result"], n, "a connection that came later");
        assert_eq!(early.call("ping", json!(n))["result"], n, "a connection that was there before");
    }
    assert!(slow.has_nothing());
}

#[test]
fn a_connection_costs_no_thread() {
    let service = Service::start("processes = 1\nthreads = 3");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let before = threads(pid);
    let mut wires: Vec<_> = (0..200).map(|_| service.connect()).collect();
    for (n, wire) in wires.iter_mut().enumerate() {
        assert_eq!(wire.call("ping", json!(n))["result"], n);
    }
    assert_eq!(threads(pid), before, "200 connections are open");
    assert_eq!(before, 1 + 1 + 3, "the poller, the watch and the pool");
}

#[test]
fn new_connections_go_to_a_worker_with_a_free_thread() {
    let service = Service::start("processes = 2\nthreads = 1");
    let stuck = occupy(&service, "hang");
    for n in 0..50 {
        // A slow call that is given to the stuck worker waits for `queue_wait` and is refused.
        assert_eq!(service.call("sleep", json!({ "ms": 1 }))["out"], "sleep", "call {n}");
    }
    assert!(stuck.has_nothing());
}

/// The kernel wakes the first of those that wait: one worker got nearly all.
#[test]
fn connections_that_come_one_by_one_go_to_all_workers() {
    let service = Service::start("processes = 2\nthreads = 1");
    let workers = service.worker_pids();
    let mut wires: Vec<Wire> = Vec::new();
    let mut taken = [0, 0];
    for _ in 0..40 {
        // One that still puts the last away does not wait for the next, and the other one gets that too.
        workers.iter().copied().for_each(await_asleep);
        let mut wire = service.connect();
        let slot = wire.call("tine.worker", Value::Null)["result"]["slot"].as_u64().expect("a slot");
        taken[usize::try_from(slot).unwrap()] += 1;
        wires.push(wire);
    }
    assert!(taken.iter().all(|taken| *taken >= 10), "{taken:?}");
}

#[test]
fn a_full_queue_refuses_at_once_and_the_same_connection_may_try_again() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue = 1\nqueue_wait = \"20s\"");
    let mut runs = occupy(&service, "sleep");
    let mut waits = occupy(&service, "sleep");
    let mut refused = service.connect();
    assert_refused(&refused.call("flaky", json!({ "every": 2, "ms": 0 })));
    assert!(runs.has_nothing(), "refused while the other call runs, not after it");
    assert_eq!(runs.receive()["out"], "sleep");
    assert_eq!(waits.receive()["out"], "sleep");
    // Every second call answers true: had the refused one been run, this would be the second.
    assert_eq!(refused.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], false);
    assert_eq!(refused.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], true);
}

#[test]
fn a_call_that_has_waited_for_queue_wait_is_told_then_and_never_run() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"50ms\"");
    let mut runs = occupy(&service, "sleep");
    let mut waits = service.connect();
    let answer = waits.call("flaky", json!({ "every": 2, "ms": 0 }));
    assert_refused(&answer);
    assert!(runs.has_nothing(), "told at queue_wait, not when a thread was free");
    assert_eq!(runs.receive()["out"], "sleep");
    assert_eq!(waits.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], false);
    assert_eq!(waits.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], true);
}

#[test]
fn calls_queued_behind_a_thread_that_never_comes_back_are_all_told() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"50ms\"");
    let _stuck = occupy(&service, "hang");
    let mut wires: Vec<_> = (0..20).map(|_| service.connect()).collect();
    for wire in &mut wires {
        wire.request("sleep", &json!({ "ms": 0 }));
    }
    for wire in &mut wires {
        assert_refused(&wire.receive());
    }
}

#[test]
fn a_call_that_would_wait_too_long_is_refused_without_waiting() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"300ms\"");
    // From this the worker knows that a call takes about 400 ms.
    assert_eq!(service.call("sleep", json!({ "ms": 400 }))["out"], "sleep");
    let mut runs = service.connect();
    runs.send(r#"{"in":"sleep","params":{"ms":400},"id":1}"#);
    runs.send(r#"{"in":"sleep","params":{"ms":0},"id":2}"#);
    runs.send(r#"{"in":"sleep","params":{"ms":0},"id":3}"#);
    // One of the short ones may wait (nobody is before it); the other would wait for a whole run, and hears so first.
    let first = runs.receive();
    assert_eq!(first["id"], 3);
    assert_refused(&first);
    let second = runs.receive();
    assert_eq!(second["id"], 2);
    assert_refused(&second);
    assert_eq!(runs.receive()["id"], 1);
}

/// Whoever asks whether the service is there must not be told that it is busy.
#[test]
fn health_checks_answer_while_everything_else_is_refused() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue = 1\nqueue_wait = \"20s\"");
    let _runs = occupy(&service, "hang");
    let _waits = occupy(&service, "sleep");
    for n in 0..20 {
        assert_refused(&service.call("sleep", json!({ "ms": 0 })));
        assert_eq!(service.call("ping", json!(n))["result"], n);
        assert_eq!(service.call("tine.worker", Value::Null)["result"]["slot"], 0);
        assert_eq!(service.call("tine.methods", Value::Null)["out"], "tine.methods");
    }
}

/// A queued call was counted as waiting while threads were on their way to it.
#[test]
fn calls_that_arrive_together_are_not_refused_while_threads_are_free() {
    let service = Service::start("processes = 1\nthreads = 4\n[limits]\nqueue_wait = \"200ms\"");
    // From this the worker knows that a call takes about 1 s: behind one that waits, a quarter of that.
    assert_eq!(service.call("sleep", json!({ "ms": 1000 }))["out"], "sleep");
    let mut wire = service.connect();
    let calls: Vec<u8> = (0..4)
        .flat_map(|n| support::framed(&format!(r#"{{"in":"sleep","params":{{"ms":1}},"id":{n}}}"#)))
        .collect();
    wire.send_bytes(&calls);
    for _ in 0..4 {
        assert_eq!(wire.receive()["out"], "sleep");
    }
}

/// The full worker, woken at its other listener, passes this on to one that is busy, and neither was ever told again.
#[test]
fn a_connection_that_no_worker_can_take_at_once_is_taken_by_one_with_room() {
    let config = "listen = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\nprocesses = 2\nthreads = 1\n[limits]\nmax_connections = 4";
    let service = Service::start(config);
    let addresses: Vec<SocketAddr> =
        service.addresses().into_iter().map(|address| address.parse().expect("an address")).collect();
    let connect = || {
        let mut wire = Wire::connect(addresses[0]);
        let slot = wire.call("tine.worker", Value::Null)["result"]["slot"].as_u64();
        (slot.expect("a slot"), wire)
    };
    // Until one of the two is full and the other has room.
    let mut wires: Vec<(u64, Wire)> = vec![connect(), connect()];
    if wires[0].0 != wires[1].0 {
        wires.push(connect());
    }
    let full = wires.last().expect("some").0;
    if wires.iter().all(|(slot, _)| *slot == full) {
        wires.push(connect());
    }
    let (_, busy) = wires.iter_mut().find(|(slot, _)| *slot != full).expect("a wire to the other worker");
    busy.send(r#"{"in":"hang","id":1}"#);
    busy.send(r#"{"in":"unknown","id":2}"#);
    assert_eq!(busy.receive()["id"], 2);
    // One that idles gives way to it in the full worker, or the busy one takes it after all.
    let answer = Wire::connect(addresses[1]).call("sleep", json!({ "ms": 0 }));
    assert!(answer["out"] == "sleep" || code(&answer) == -32000, "{answer}");
}
