//! `[methods.NAME] concurrency`: who waits, in which order, and who doesn't notice.

use crate::support::{Service, Wire, code};
use serde_json::{Value, json};

const ONE_AT_A_TIME: &str = "processes = 1\nthreads = 4\n[methods.sleep]\nconcurrency = 1\n";

fn with(limits: &str) -> Service {
    Service::start(&format!("{ONE_AT_A_TIME}{limits}"))
}

/// Sends `sleep` calls with these ids, of so many milliseconds each, in one piece.
fn sleeps(wire: &mut Wire, calls: &[(u64, u64)]) {
    for (id, ms) in calls {
        wire.send(&format!(r#"{{"in":"sleep","params":{{"ms":{ms}}},"id":{id}}}"#));
    }
    // Answered by the thread that reads, once it has read all of them.
    wire.send(r#"{"in":"unknown","id":"read"}"#);
}

fn ids(wire: &mut Wire, count: usize) -> Vec<Value> {
    (0..count).map(|_| wire.receive()["id"].clone()).collect()
}

#[test]
fn calls_beyond_the_limit_wait_in_order_of_arrival() {
    let service = with("[limits]\nqueue_wait = \"20s\"");
    let mut wire = service.connect();
    // The later ones are shorter: side by side they would come first.
    sleeps(&mut wire, &[(1, 120), (2, 60), (3, 30), (4, 10), (5, 0)]);
    assert_eq!(ids(&mut wire, 6), [json!("read"), json!(1), json!(2), json!(3), json!(4), json!(5)]);
}

#[test]
fn calls_that_wait_hold_no_thread_and_no_place_of_other_methods() {
    let service = with("[limits]\nqueue = 3\nqueue_wait = \"20s\"");
    let mut wire = service.connect();
    sleeps(&mut wire, &[(1, 500), (2, 0), (3, 0), (4, 0)]);
    assert_eq!(wire.receive()["id"], "read");
    // Three threads of four are free for these, and the queue is empty.
    let mut others: Vec<Wire> = (0..3).map(|_| service.connect()).collect();
    for other in &mut others {
        other.send(r#"{"in":"mix","params":{"ms":20,"us":10}}"#);
    }
    for other in &mut others {
        assert_eq!(other.receive()["out"], "mix");
    }
    assert!(wire.has_nothing(), "the others did not wait for the one that runs");
    assert_eq!(ids(&mut wire, 4), [1, 2, 3, 4]);
}

#[test]
fn as_many_wait_as_the_queue_is_long_and_the_next_is_refused_at_once() {
    let service = with("[limits]\nqueue = 2\nqueue_wait = \"20s\"");
    let mut wire = service.connect();
    sleeps(&mut wire, &[(1, 400), (2, 0), (3, 0), (4, 0)]);
    let refused = wire.receive();
    assert_eq!((code(&refused), &refused["id"]), (-32000, &json!(4)));
    assert_eq!(ids(&mut wire, 4), [json!("read"), json!(1), json!(2), json!(3)]);
}

#[test]
fn queue_wait_holds_for_calls_that_wait_for_others_of_their_method() {
    let service = with("[limits]\nqueue_wait = \"50ms\"");
    let mut wire = service.connect();
    sleeps(&mut wire, &[(1, 400), (2, 0)]);
    assert_eq!(wire.receive()["id"], "read");
    let refused = wire.receive();
    assert_eq!((code(&refused), &refused["id"]), (-32000, &json!(2)));
    assert_eq!(wire.receive()["id"], 1);
}

/// Every second run of `flaky` answers true, so its answers tell how often it was run.
#[test]
fn a_call_whose_time_is_up_while_it_waits_for_its_method_is_never_run() {
    let config =
        "processes = 1\nthreads = 2\n[methods.flaky]\nconcurrency = 1\n[limits]\nqueue_wait = \"20s\"";
    let service = Service::start(config);
    let mut wire = service.connect();
    wire.send(r#"{"in":"flaky","params":{"every":1,"ms":300},"id":1}"#);
    wire.send(r#"{"in":"flaky","params":{"every":1,"ms":0},"timeout_ms":50,"id":2}"#);
    let large = "x".repeat(20_000);
    wire.send(&format!(
        r#"{{"in":"flaky","params":{{"every":1,"ms":0,"why":"{large}"}},"timeout_ms":50,"id":3}}"#
    ));
    let mut late: Vec<Value> = (0..2).map(|_| wire.receive()).collect();
    late.sort_by_key(|answer| answer["id"].as_u64());
    for (answer, id) in late.iter().zip([2, 3]) {
        assert_eq!((code(answer), &answer["id"]), (-32001, &json!(id)), "{answer}");
    }
    assert_eq!(wire.receive()["id"], 1);
    // It is the second run.
    assert_eq!(wire.call("flaky", json!({ "every": 2, "ms": 0 }))["result"], true);
}

#[test]
fn a_large_call_is_counted_too_and_keeps_its_turn() {
    let config = "processes = 1\nthreads = 3\n[methods.mix]\nconcurrency = 1\n[limits]\nqueue_wait = \"20s\"";
    let service = Service::start(config);
    let large = "x".repeat(20_000);
    let (mut first, mut second) = (service.connect(), service.connect());
    first.send(&format!(r#"{{"in":"mix","params":{{"ms":300,"us":0,"why":"{large}"}},"id":1}}"#));
    first.send(r#"{"in":"unknown"}"#);
    // Nothing follows a call whose id nobody has read yet: so it runs by now.
    assert_eq!(code(&first.receive()), -32601);
    second.send(&format!(r#"{{"in":"mix","params":{{"ms":0,"us":0,"why":"{large}"}},"id":2}}"#));
    second.send(r#"{"in":"unknown"}"#);
    assert_eq!(code(&second.receive()), -32601);
    assert_eq!(service.call("sleep", json!({ "ms": 1 }))["out"], "sleep", "it holds no thread");
    assert!(second.has_nothing(), "it waits for the other");
    assert_eq!(first.receive()["id"], 1);
    assert_eq!(second.receive()["id"], 2);
}

#[test]
fn quick_calls_that_the_poller_runs_count_as_well() {
    let config =
        "processes = 1\nthreads = 3\n[methods.flaky]\nconcurrency = 1\n[limits]\nqueue_wait = \"20s\"";
    let service = Service::start(config);
    let mut wire = service.connect();
    for round in 0..3 {
        for _ in 0..40 {
            assert_eq!(wire.call("flaky", json!({ "every": 1_000_000_000, "ms": 0 }))["result"], false);
        }
        // It is quick now. Whoever runs this, the poller or another thread, those behind it wait.
        let mut slow = service.connect();
        slow.send(r#"{"in":"flaky","params":{"every":1,"ms":150},"id":1}"#);
        slow.send(r#"{"in":"flaky","params":{"every":1,"ms":0},"id":2}"#);
        slow.send(r#"{"in":"flaky","params":{"every":1,"ms":0},"id":3}"#);
        assert_eq!(ids(&mut slow, 3), [1, 2, 3], "round {round}");
    }
}

#[test]
fn callers_that_leave_make_way_for_those_behind_them() {
    let service = with("[limits]\nqueue = 4\nqueue_wait = \"20s\"");
    let mut first = service.connect();
    sleeps(&mut first, &[(1, 400)]);
    assert_eq!(first.receive()["id"], "read");
    for _ in 0..5 {
        let mut leaves = service.connect();
        sleeps(&mut leaves, &[(1, 5_000), (2, 5_000), (3, 5_000)]);
        assert_eq!(leaves.receive()["id"], "read");
        leaves.reset();
        // Who comes in the same round of the poller may be looked at before who leaves.
        for _ in 0..2 {
            assert_eq!(service.call("ping", json!(1))["result"], 1);
        }
    }
    let mut stays = service.connect();
    stays.send(r#"{"in":"sleep","params":{"ms":0}}"#);
    assert_eq!(stays.receive()["out"], "sleep", "none of those who left is waited for");
    assert_eq!(first.receive()["id"], 1);
}

#[test]
fn many_clients_of_a_limited_method_are_all_answered() {
    let config = "processes = 1\nthreads = 4\n[methods.mix]\nconcurrency = 2\n[limits]\nqueue_wait = \"50s\"";
    let mut service = Service::start(config);
    let address = service.socket_address();
    let clients: Vec<_> = (0..8)
        .map(|client: u64| {
            std::thread::spawn(move || {
                let mut wire = Wire::connect(address);
                for round in 0..60 {
                    for id in 0..4 {
                        let us = if (client + id + round).is_multiple_of(7) { 300 } else { 0 };
                        wire.send(&format!(r#"{{"in":"mix","params":{{"ms":0,"us":{us}}},"id":{id}}}"#));
                    }
                    let mut answered: Vec<Value> = (0..4)
                        .map(|_| {
                            let answer = wire.receive();
                            assert_eq!(answer["out"], "mix", "{answer}");
                            answer["id"].clone()
                        })
                        .collect();
                    answered.sort_by_key(Value::as_u64);
                    assert_eq!(answered, [0, 1, 2, 3]);
                }
            })
        })
        .collect();
    for client in clients {
        client.join().expect("every call was answered");
    }
    assert_eq!(service.stop(), Some(0));
}
