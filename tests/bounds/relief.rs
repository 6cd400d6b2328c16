//! A poller that blocks after all: a method was quick, so the poller ran it, and now it is not. Another thread becomes
//! poller; nobody but the caller notices.

use std::collections::BTreeSet;
use std::thread;

use crate::support::measure::{threads, threads_named};
use crate::support::proc::open_descriptors;
use crate::support::{Service, Wire, await_so, code, framed, rig};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// How often a poller is made to block before the test gives up: a busy machine can make a quick method look slow.
const ATTEMPTS: usize = 30;

/// `flaky` that does not wait, and that does.
const QUICK: &str = r#""in":"flaky","params":{"every":1000000000,"ms":0}"#;
fn slow(ms: u64) -> String {
    format!(r#""in":"flaky","params":{{"every":1,"ms":{ms}}}"#)
}

/// Blocks the poller in a call that waits so long, on a connection of its own.
fn block_poller(service: &Service, ms: u64) -> Wire {
    block_poller_with(service, &slow_calls(ms, 1), 0)
}

/// Calls that wait so long. All have the same id.
fn slow_calls(ms: u64, count: usize) -> Vec<u8> {
    framed(&format!(r#"{{{},"id":"blocks"}}"#, slow(ms))).repeat(count)
}

/// Blocks the poller with these calls, of which so many bytes are with it before the others are sent.
fn block_poller_with(service: &Service, calls: &[u8], ahead: usize) -> Wire {
    block_poller_after(service, calls, ahead, || {})
}

/// The same, right after `prepare`.
fn block_poller_after(service: &Service, calls: &[u8], ahead: usize, mut prepare: impl FnMut()) -> Wire {
    let (ahead, rest) = calls.split_at(ahead);
    let mut other = service.connect();
    for _ in 0..ATTEMPTS {
        for _ in 0..40 {
            other.send(&format!("{{{QUICK}}}"));
            other.receive();
        }
        prepare();
        let mut wire = service.connect();
        wire.send_bytes(ahead);
        // In one round it is let in, in the next it is read from.
        let [_, poller] = [(); 2].map(|()| poller(&mut other));
        wire.send_bytes(&[rest, &framed(r#"{"in":"tine.worker","id":"behind"}"#)].concat());
        // Whoever runs the one, the other is answered beside it, and by the poller.
        let first = wire.receive();
        if first["id"] == "behind" && first["result"]["thread"] != poller {
            return wire;
        }
        // A pool thread ran it, or this machine was so slow that it is over.
        wire.finish_sending();
        while wire.receive_text().is_some() {}
    }
    panic!("the poller never ran `flaky` in {ATTEMPTS} attempts");
}

/// The number of the thread that is the poller now.
fn poller(wire: &mut Wire) -> Value {
    wire.call("tine.worker", Value::Null)["result"]["thread"].clone()
}

#[test]
fn others_go_on_while_the_poller_is_blocked() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut early = service.connect();
    assert_eq!(early.call("ping", json!("early"))["result"], "early");
    let mut blocked = block_poller(&service, 400);
    for n in 0..20 {
        assert_eq!(early.call("ping", json!(n))["result"], n, "a connection that was there before");
        assert_eq!(service.call("ping", json!(n))["result"], n, "a connection that came later");
        assert_eq!(early.call("blob", json!({ "bytes": 1 }))["result"], "x", "a call for the pool");
    }
    blocked.send(r#"{"in":"ping","params":"same","id":3}"#);
    assert_eq!(blocked.receive()["result"], "same", "the connection whose call blocks");
    assert_eq!(blocked.receive()["out"], "flaky");
    assert_eq!(blocked.call("ping", json!("after"))["result"], "after");
}

#[test]
fn the_caller_is_told_when_its_time_is_up_although_the_poller_ran_the_call() {
    let service = Service::start("processes = 1\nthreads = 2\n[methods.flaky]\ntimeout = \"150ms\"");
    let mut blocked = block_poller(&service, 600);
    let answer = blocked.receive();
    assert_eq!(code(&answer), -32001, "{answer}");
    assert_eq!(answer["id"], "blocks");
    assert_eq!(blocked.call("ping", json!("goes on"))["result"], "goes on");
}

#[test]
fn answers_without_ids_keep_their_order_around_a_call_that_blocks_the_poller() {
    let service = Service::start("processes = 1\nthreads = 2");
    let mut wire = service.connect();
    for round in 0..10 {
        let mut calls = Vec::new();
        for n in 0..60 {
            let call = if n == 50 { slow(5) } else { QUICK.to_owned() };
            calls.extend(framed(&format!("{{{call}}}")));
            calls.extend(framed(&format!(r#"{{"in":"ping","params":{n}}}"#)));
        }
        wire.send_bytes(&calls);
        for n in 0..60 {
            assert_eq!(wire.receive()["result"], n == 50, "round {round}, {n}");
            assert_eq!(wire.receive()["result"], n, "round {round}");
        }
    }
}

#[test]
fn a_connection_whose_call_came_in_pieces_and_was_taken_over_is_not_one_that_sends_slowly() {
    let service = Service::start("processes = 1\nthreads = 2\n[timeouts]\nmessage = \"200ms\"");
    let mut blocked = block_poller_with(&service, &slow_calls(50, 1), 9);
    assert_eq!(blocked.receive()["id"], "blocks");
    assert_eq!(service.call("sleep", json!({ "ms": 400 }))["out"], "sleep");
    assert_eq!(blocked.call("ping", json!("still there"))["result"], "still there");
}

/// As when a server behind the handlers hangs. Who is poller then must not be relieved as often as there are threads.
#[test]
fn a_method_that_has_blocked_blocks_no_second_poller() {
    let service = Service::start("processes = 1\nthreads = 6");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let mut wire = block_poller_with(&service, &slow_calls(400, 6), 0);
    let pollers = threads_named(pid, "poller");
    assert!(pollers <= 2, "the one that has blocked and the one that is, not {pollers}");
    for _ in 0..6 {
        assert_eq!(wire.receive()["id"], "blocks");
    }
}

/// More often than there are threads: each that blocked as poller is one of the pool when it comes back.
#[test]
fn no_thread_is_lost_by_being_relieved() {
    let service = Service::start("processes = 1\nthreads = 3");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let before = threads(pid);
    for _ in 0..7 {
        assert_eq!(block_poller(&service, 100).receive()["id"], "blocks");
    }
    assert_eq!(threads(pid), before);
    // One thread of the pool is left beside these two, and has to be there.
    let mut hanging = [service.connect(), service.connect()];
    for wire in &mut hanging {
        wire.request("hang", &Value::Null);
    }
    assert_eq!(service.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
}

/// Once in a while a socket stayed open in a worker for as long as it lived: a thread became the watch with the call in its
/// hands that it had just answered.
#[test]
fn a_thread_that_becomes_the_watch_holds_nothing_of_the_call_that_it_ran_before() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"20s\"");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let before = open_descriptors(pid);
    let mut last = service.connect();
    let mut blocked = block_poller_after(&service, &slow_calls(600, 1), 0, || {
        last = service.connect();
        last.request("sleep", &json!({ "ms": 300 }));
    });
    // The watch is the poller now. The one thread of the pool is asleep, and will watch next.
    assert_eq!(last.receive()["out"], "sleep");
    drop(last);
    await_so("the closed connection's socket is closed", || open_descriptors(pid) <= before + 1);
    assert_eq!(blocked.receive()["id"], "blocks");
}

#[test]
fn pollers_that_stay_away_for_long_cost_their_own_callers_only() {
    // Attempts that a pool thread ran keep that from others for as long.
    let config =
        "processes = 1\nthreads = 8\n[limits]\nqueue_wait = \"20s\"\n[methods.flaky]\ntimeout = \"300ms\"";
    let service = Service::start(config);
    let mut stuck: Vec<Wire> = (0..3).map(|_| block_poller(&service, 1_500)).collect();
    for wire in &mut stuck {
        assert_eq!(code(&wire.receive()), -32001);
        assert_eq!(wire.call("ping", json!(1))["result"], 1);
    }
    assert_eq!(service.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
}

#[test]
fn a_worker_whose_poller_is_blocked_drains_like_any_other() {
    let mut service = Service::start("processes = 1\nthreads = 2");
    let mut idle = service.connect();
    assert_eq!(idle.call("ping", json!(1))["result"], 1);
    let mut blocked = block_poller(&service, 300);
    service.signal(Signal::SIGTERM);
    assert_eq!(blocked.receive()["result"], true);
    assert!(blocked.is_closed());
    assert!(idle.is_closed());
    assert_eq!(service.await_end().code(), Some(0));
}

/// Every thread is late at random where the roles change hands, and calls take about as long as the watch waits. Debug
/// builds check before each step of the poller that there is only one.
#[test]
fn under_races_every_call_is_answered_once_and_no_connection_is_left_behind() {
    const CLIENTS: usize = 8;
    const ROUNDS: usize = 60;
    const DEPTH: usize = 8;
    let mut program = rig();
    program.env("TINE_FAIL_POINTS", "delay");
    let mut service = Service::start_with(program, "processes = 1\nthreads = 3");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let address = service.socket_address();
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| thread::spawn(move || be_client(address, client))).collect();
    let pollers: BTreeSet<u64> =
        clients.into_iter().flat_map(|client| client.join().expect("a client saw every answer")).collect();
    assert!(pollers.len() >= 3, "the test is about reliefs, and these threads were poller: {pollers:?}");
    assert_eq!(service.worker_pids(), [pid], "the worker lived through it");
    service.signal(Signal::SIGTERM);
    assert_eq!(service.await_end().code(), Some(0));

    /// Half of the clients give their calls ids, the others count on the order. The threads they found to be poller.
    fn be_client(address: std::net::SocketAddr, client: usize) -> BTreeSet<u64> {
        let mut pollers = BTreeSet::new();
        let (mut wire, has_ids) = (Wire::connect(address), client.is_multiple_of(2));
        for round in 0..ROUNDS {
            let mut calls = Vec::new();
            for n in 0..DEPTH {
                let text = format!("{client} {round} {n}");
                let call = match (n, client) {
                    // About as long as it takes the watch to lose patience.
                    (5, 0 | 1) if round.is_multiple_of(6) => slow(1),
                    (2, _) => r#""in":"tine.worker""#.to_owned(),
                    (3, _) => QUICK.to_owned(),
                    // Too long to be parsed by the poller.
                    (7, 2 | 3) => format!(r#""in":"echo","params":"{text}{}""#, "x".repeat(20_000)),
                    _ => format!(r#""in":"echo","params":"{text}""#),
                };
                let id = if has_ids { format!(r#","id":{n}"#) } else { String::new() };
                calls.extend(framed(&format!("{{{call}{id}}}")));
            }
            wire.send_bytes(&calls);
            let mut missing: BTreeSet<usize> = (0..DEPTH).collect();
            while let Some(&next) = missing.first() {
                let answer = wire.receive();
                let n = if has_ids {
                    usize::try_from(answer["id"].as_u64().expect("an id")).unwrap()
                } else {
                    next
                };
                assert!(missing.remove(&n), "answered twice: {answer}");
                if answer["out"] == "echo" {
                    let text = answer["result"].as_str().expect("a text").trim_end_matches('x');
                    assert_eq!(text, format!("{client} {round} {n}"));
                } else if answer["out"] == "tine.worker" {
                    pollers.extend(answer["result"]["thread"].as_u64());
                } else {
                    assert_eq!(answer["out"], "flaky", "{answer}");
                }
            }
        }
        pollers
    }
}
