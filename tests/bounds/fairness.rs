//! One caller beside others: it does not take every thread, it waits its turn, and it pushes nobody out of the queue.

use std::net::IpAddr;

use crate::support::{Service, Wire, await_asleep, code};
use serde_json::{Value, json};

const OVERLOADED: i64 = -32000;

/// Addresses of this machine, as of two clients.
const GREEDY: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 4));
const POLITE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(127, 0, 0, 3));

fn call(method: &str, params: &Value, id: u64) -> String {
    json!({ "in": method, "params": params, "id": id }).to_string()
}

/// Sends calls and returns once the worker has read them all: what is sent from now on comes after them.
fn put(wire: &mut Wire, calls: impl Iterator<Item = String>) {
    for call in calls {
        wire.send(&call);
    }
    wire.send(&call("unknown", &json!(0), 999));
    assert_eq!(wire.receive()["id"], 999, "answered by the thread that reads");
}

fn retry_after(answer: &Value) -> u64 {
    assert_eq!(code(answer), OVERLOADED, "{answer}");
    answer["result"]["data"]["retry_after_ms"].as_u64().expect("a time")
}

/// All others were refused, and told to try again after a millisecond.
#[test]
fn a_connection_whose_calls_never_end_leaves_a_thread_to_others() {
    let batch = |member: &str| format!("[{}]", [member; 16].join(","));
    let in_batches = batch(r#"{"jsonrpc":"2.0","method":"hang","id":1}"#);
    let cases = [
        ("calls", 16, call("hang", &json!(0), 1)),
        ("a batch", 1, in_batches),
        ("notifications in a batch", 1, batch(r#"{"jsonrpc":"2.0","method":"hang"}"#)),
    ];
    for (what, count, body) in cases {
        let service = Service::start("processes = 1\nthreads = 3");
        let mut polite = service.connect();
        let mut greedy = service.connect();
        put(&mut greedy, std::iter::repeat_n(body, count));
        for n in 0..40 {
            assert_eq!(polite.call("sleep", json!({ "ms": 0 }))["out"], "sleep", "{what}: call {n}");
        }
        assert_eq!(
            service.call("sleep", json!({ "ms": 0 }))["out"],
            "sleep",
            "{what}: on a fresh connection"
        );
    }
}

#[test]
fn many_connections_of_an_address_leave_a_thread_to_other_addresses() {
    let service = Service::start("processes = 1\nthreads = 3");
    let mut polite = Wire::connect_from(POLITE, service.socket_address());
    assert_eq!(polite.call("ping", json!(1))["result"], 1);
    let _greedy: Vec<Wire> = (0..5)
        .map(|_| {
            let mut wire = Wire::connect_from(GREEDY, service.socket_address());
            put(&mut wire, (0..8).map(|id| call("hang", &json!(0), id)));
            wire
        })
        .collect();
    for n in 0..40 {
        assert_eq!(polite.call("sleep", json!({ "ms": 0 }))["out"], "sleep", "call {n}");
    }
}

#[test]
fn a_connection_that_is_alone_has_every_thread_and_again_when_the_others_have_gone() {
    let service = Service::start("processes = 1\nthreads = 2\n[limits]\nqueue_wait = \"60s\"");
    let other = service.connect();
    let mut wire = service.connect();
    put(&mut wire, [call("hang", &json!(0), 1), call("sleep", &json!({ "ms": 0 }), 2)].into_iter());
    assert!(wire.has_nothing(), "the second thread is kept for the other one");
    drop(other);
    assert_eq!(wire.receive()["id"], 2);
}

#[test]
fn waiting_callers_take_turns_and_many_connections_gain_nothing() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"60s\"");
    let mut runs = Wire::connect_from(GREEDY, service.socket_address());
    put(&mut runs, std::iter::once(call("sleep", &json!({ "ms": 400 }), 1)));
    let count = |id| call("count", &json!({ "of": "turns", "add": 1 }), id);
    let mut greedy: Vec<Wire> = (0..3)
        .map(|_| {
            let mut wire = Wire::connect_from(GREEDY, service.socket_address());
            put(&mut wire, (0..4).map(count));
            wire
        })
        .collect();
    let mut polite = Wire::connect_from(POLITE, service.socket_address());
    put(&mut polite, (0..2).map(count));
    let turns = [polite.receive(), polite.receive()].map(|answer| answer["result"].as_u64().unwrap());
    assert!(turns[0] <= 2 && turns[1] <= 4, "of 14 calls its were the {turns:?}");
    // At the greedy address its connections take turns as well: each has its first call run before any has its third.
    let mut of = |wire: &mut Wire| -> Vec<u64> {
        (0..4).map(|_| wire.receive()["result"].as_u64().unwrap()).collect()
    };
    let turns: Vec<Vec<u64>> = greedy.iter_mut().map(&mut of).collect();
    let (firsts, thirds) = (turns.iter().map(|of| of[0]).max(), turns.iter().map(|of| of[2]).min());
    assert!(firsts < thirds, "{turns:?}");
}

/// It was the one that came who was refused, for as long as the other one liked.
#[test]
fn where_the_queue_is_full_the_newest_call_of_who_has_most_gives_way() {
    for more in ["", "\n[methods.sleep]\nconcurrency = 1"] {
        let config = "processes = 1\nthreads = 2\n[limits]\nqueue = 4\nqueue_wait = \"60s\"";
        let service = Service::start(&format!("{config}{more}"));
        let mut greedy = Wire::connect_from(GREEDY, service.socket_address());
        let mut other = Wire::connect_from(OTHER, service.socket_address());
        if more.is_empty() {
            put(&mut other, std::iter::once(call("hang", &json!(0), 1)));
        }
        let short = |id| call("sleep", &json!({ "ms": if id == 0 { 500 } else { 1 } }), id);
        put(&mut greedy, (0..5).map(short));
        greedy.send(&short(5));
        let refused = greedy.receive();
        assert_eq!(refused["id"], 5, "{more}: {refused}");
        assert!(retry_after(&refused) >= 10, "{refused}");

        let mut polite = Wire::connect_from(POLITE, service.socket_address());
        put(&mut polite, std::iter::once(short(1)));
        let refused = greedy.receive();
        assert_eq!((&refused["id"], code(&refused)), (&json!(4), OVERLOADED), "{more}: {refused}");
        assert_eq!(polite.receive()["out"], "sleep", "{more}");
        let mut ids: Vec<u64> = (0..4).map(|_| greedy.receive()["id"].as_u64().unwrap()).collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1, 2, 3], "{more}");
    }
}

/// Who waits in a batch gives way like any other call, and the rest of the batch is answered.
#[test]
fn a_call_of_a_batch_gives_way_too() {
    let service = Service::start("processes = 1\nthreads = 3\n[limits]\nqueue = 4\nqueue_wait = \"60s\"");
    let mut greedy = Wire::connect_from(GREEDY, service.socket_address());
    assert_eq!(greedy.call("ping", json!(1))["result"], 1);
    // It is not alone, so that it leaves a thread.
    let mut other = Wire::connect_from(OTHER, service.socket_address());
    put(&mut other, (0..4).map(|id| call("hang", &json!(0), id)));
    let member = |id, method, params: &Value| json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id });
    let members = [
        member(0, "panic", &json!({ "message": "the batch was taken apart" })),
        member(1, "sleep", &json!([1_000])),
        member(2, "sleep", &json!([0])),
        member(3, "sleep", &json!([0])),
    ];
    greedy.send(&json!(members).to_string());
    service.await_log("the batch was taken apart");
    await_asleep(service.worker_pids()[0]);
    // One of its calls runs, and two wait, as of the other one.
    let mut polite = Wire::connect_from(POLITE, service.socket_address());
    assert_eq!(polite.call("sleep", json!({ "ms": 0 }))["out"], "sleep");
    let answers = greedy.receive();
    let refused: Vec<&Value> =
        answers.as_array().unwrap().iter().filter(|answer| answer["error"]["code"] == OVERLOADED).collect();
    assert_eq!((answers.as_array().map(Vec::len), refused.len()), (Some(4), 1), "{answers}");
    assert_eq!(refused[0]["id"], 3, "{answers}");
}

/// Every thread is in a call of which it is known that it takes 8 s; callers were told "1 ms".
#[test]
fn who_is_refused_is_told_when_a_place_may_be_free() {
    let service = Service::start(
        "processes = 1\nthreads = 2\n[limits]\nqueue = 1\nqueue_wait = \"500ms\"\n[methods.mix]\nconcurrency = 1",
    );
    // Of these it learns how long calls take.
    let learning = ["sleep", "mix"].map(|method| {
        let mut wire = service.connect();
        wire.request(method, &json!({ "ms": 3_000, "us": 0 }));
        (wire, method)
    });
    for (mut wire, method) in learning {
        assert_eq!(wire.receive()["out"], method);
    }
    let mut greedy = service.connect();
    put(&mut greedy, std::iter::once(call("mix", &json!({ "ms": 60_000, "us": 0 }), 1)));
    // In its method's list, where one waits for its turn, and one has no room.
    let mut waits = service.connect();
    put(&mut waits, std::iter::once(call("mix", &json!({ "ms": 0, "us": 0 }), 1)));
    let told = retry_after(&service.call("mix", json!({ "ms": 0, "us": 0 })));
    assert!((100..=12_000).contains(&told), "{told} ms");
    let told = retry_after(&waits.receive());
    assert!((100..=12_000).contains(&told), "{told} ms");
    // In the queue.
    let mut others = [service.connect(), service.connect()];
    put(&mut others[0], std::iter::once(call("sleep", &json!({ "ms": 60_000 }), 1)));
    let told = retry_after(&others[1].call("sleep", json!({ "ms": 0 })));
    assert!((100..=12_000).contains(&told), "{told} ms");
}
