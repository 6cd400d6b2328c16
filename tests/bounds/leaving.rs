//! A worker leaves while calls wait in it that no thread has begun: they go with their connections, at once, to a worker that
//! runs them. Only what a thread is in when the time to drain is up is answered `drained`.

use std::os::fd::AsFd;

use crate::support;
use crate::support::peer::{ALL, Peer, Way};
use crate::support::proc::kill;
use crate::support::{PATIENCE, Service, Wire, at_once, await_asleep, await_so, send_signal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// One worker with one thread, in which calls wait for as long as it takes. The time to drain is longer than any test waits.
const ONE: &str =
    "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"10m\"\n[timeouts]\nkeep_after = \"0s\"\n";
const LONG_DRAIN: &str = "drain = \"10m\"\n";

fn json_rpc(method: &str, params: &Value, id: u64) -> String {
    json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id }).to_string()
}

/// Adds to a count that nobody else has; the second time would answer 2.
fn count(of: &str) -> Value {
    json!({ "of": of, "add": 1 })
}

fn is_drained(answer: &Value, method: &str) {
    let error = support::error_of(answer);
    assert_eq!(
        (&error["code"], &error["data"]),
        (&json!(-32002), &json!({ "method": method, "cause": "drained" }))
    );
}

/// A worker whose only thread is in a call, and callers whose calls wait for that thread.
struct Behind {
    service: Service,
    worker: i32,
    busy: Peer,
    /// Each with what it waits for.
    waiting: Vec<(String, Peer, Value)>,
}

impl Behind {
    /// Behind this call, in all framings: a call without an id, one with an id, a large one, and a batch.
    fn start(config: &str, call: &str) -> Self {
        let service = Service::start(&format!("{ONE}{config}"));
        let mut busy = Peer::of(&service, Way::Length);
        let worker = busy.worker();
        busy.send(call);
        await_asleep(worker);
        let mut waiting = Vec::new();
        for way in ALL {
            let large = "x".repeat(20_000);
            let calls = [
                (
                    json!({ "in": "count", "params": count(&format!("{way:?} ordered")) }),
                    json!({ "out": "count", "result": 1 }),
                ),
                (
                    json!({ "in": "count", "params": count(&format!("{way:?} id")), "id": 7 }),
                    json!({ "out": "count", "result": 1, "id": 7 }),
                ),
                (json!({ "in": "echo", "params": large }), json!({ "out": "echo", "result": large })),
            ];
            for (call, answer) in calls {
                let mut peer = Peer::of(&service, way);
                peer.send(&call.to_string());
                waiting.push((format!("{way:?} {:.60}", call.to_string()), peer, answer));
            }
            let mut peer = Peer::of(&service, way);
            let of = format!("{way:?} batch");
            peer.send(&format!(
                "[{},{}]",
                json_rpc("count", &count(&of), 1),
                json_rpc("count", &count(&of), 2)
            ));
            let answers = [1, 2].map(|id| json!({ "jsonrpc": "2.0", "result": id, "id": id }));
            waiting.push((of, peer, json!(answers)));
        }
        await_asleep(worker);
        Self { service, worker, busy, waiting }
    }

    /// Everything that waited is answered, by another worker.
    fn all_are_run(&mut self) {
        for (what, peer, answer) in &mut self.waiting {
            assert_eq!(peer.receive(), *answer, "{what}");
            assert_ne!(peer.worker(), self.worker, "{what}");
        }
    }
}

const HANG: &str = r#"{"in":"hang","id":1}"#;

#[test]
fn what_waits_in_a_worker_that_is_signalled_to_end_is_run_by_its_successor() {
    let mut behind = Behind::start(LONG_DRAIN, HANG);
    send_signal(behind.worker, Signal::SIGTERM);
    behind.all_are_run();
}

#[test]
fn what_waits_when_a_reload_begins_is_run_by_the_next_generation() {
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        let mut behind = Behind::start(LONG_DRAIN, HANG);
        behind.service.signal(signal);
        behind.all_are_run();
    }
}

#[test]
fn what_waits_in_a_worker_that_is_recycled_is_run_by_its_successor() {
    // The one that hangs, and the one that asks who serves it.
    let config = format!("{LONG_DRAIN}[recycle]\nmax_requests = 10\njitter = 0.0\n");
    let mut behind = Behind::start(&config, HANG);
    let mut other = Peer::of(&behind.service, Way::Length);
    for number in 0..10 {
        assert_eq!(other.call("ping", json!(number))["result"], number);
    }
    behind.all_are_run();
}

#[test]
fn what_waits_behind_a_stuck_thread_is_run_as_soon_as_another_worker_is_ready() {
    let config = format!("{LONG_DRAIN}stuck = \"100ms\"\n");
    let mut behind = Behind::start(&config, r#"{"in":"hang","id":1,"timeout_ms":50}"#);
    assert_eq!(support::code(&behind.busy.receive()), -32001);
    behind.all_are_run();
    assert_ne!(behind.busy.worker(), behind.worker);
}

#[test]
fn what_waits_in_a_worker_whose_slot_is_taken_away_is_run_by_another() {
    let service = Service::start(&format!("{}{LONG_DRAIN}", ONE.replace("processes = 1", "processes = 2")));
    let (mut wires, mut others) = (Vec::new(), Vec::new());
    // As many at each, or some would be moved before it is time.
    for _ in 0..5 {
        wires.push(service.connect_to(1));
        others.push(service.connect_to(0));
    }
    await_so("they are where they are wanted", || {
        let mut all_there = true;
        for wire in &mut wires {
            if wire.call("tine.worker", json!(null))["result"]["slot"] != 1 {
                (*wire, all_there) = (service.connect_to(1), false);
            }
        }
        all_there
    });
    let mut busy = wires.remove(0);
    // The thread is free, and the next call gets it.
    assert_eq!(busy.call("sleep", json!({ "ms": 0 }))["out"], "sleep");
    busy.request("hang", &json!(null));
    await_asleep(service.workers()[&1]);
    for wire in &mut wires {
        wire.request("count", &count("taken away"));
    }
    await_asleep(service.workers()[&1]);
    service.signal(Signal::SIGTTOU);
    for wire in &mut wires {
        let answer = wire.receive();
        assert!(answer["result"].is_u64(), "{answer}\n{}", service.log_so_far());
        assert_eq!(wire.call("tine.worker", json!(null))["result"]["slot"], 0);
    }
}

/// It is as good for those that wait as a death of the worker is.
#[test]
fn a_time_to_drain_of_nothing_costs_no_call_that_waits() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let mut behind = Behind::start("drain = \"0s\"\n", HANG);
        if signal == Signal::SIGKILL {
            kill(behind.worker);
        } else {
            send_signal(behind.worker, signal);
        }
        behind.all_are_run();
        assert_eq!(support::code(&behind.busy.receive()), -32002);
    }
}

#[test]
fn calls_that_wait_for_others_of_their_method_go_too() {
    let config = "processes = 1\nthreads = 4\n[methods.sleep]\nconcurrency = 1\n[limits]\nqueue_wait = \"10m\"\n[timeouts]\nkeep_after = \"0s\"\n";
    let service = Service::start(&format!("{config}{LONG_DRAIN}"));
    let mut busy = Peer::of(&service, Way::Length);
    let worker = busy.worker();
    busy.send(r#"{"in":"sleep","params":[3600000]}"#);
    await_asleep(worker);
    let mut peers: Vec<Peer> = ALL.map(|way| Peer::of(&service, way)).into();
    for peer in &mut peers {
        peer.send(r#"{"in":"sleep","params":[1]}"#);
    }
    await_asleep(worker);
    send_signal(worker, Signal::SIGTERM);
    for peer in &mut peers {
        assert_eq!(peer.text(), r#"{"out":"sleep","result":null}"#);
        assert_ne!(peer.worker(), worker);
    }
}

/// Nobody is told to end; but another worker has nothing to do.
#[test]
fn what_waits_behind_a_call_that_lasts_is_run_by_a_worker_that_is_idle() {
    let service = Service::start(&format!("{}{LONG_DRAIN}", ONE.replace("processes = 1", "processes = 2")));
    // As many on either side, or some would move for that.
    let mut wires = Vec::new();
    let _others: Vec<Wire> = (0..4)
        .map(|_| {
            wires.push(service.connect_to(0));
            service.connect_to(1)
        })
        .collect();
    wires.remove(0).request("hang", &json!(null));
    await_asleep(service.workers()[&0]);
    for wire in &mut wires {
        wire.request("count", &count("balance"));
    }
    // The shares are even enough when one call waits that need not.
    for _ in 0..2 {
        let mut readable: Vec<PollFd<'_>> =
            wires.iter().map(|wire| PollFd::new(wire.stream.as_fd(), PollFlags::POLLIN)).collect();
        let found = poll(&mut readable, PollTimeout::try_from(PATIENCE).expect("a short time"));
        assert!(found.is_ok_and(|found| found > 0), "they wait for ever; log:\n{}", service.log_so_far());
        let any = readable.iter().position(|wire| wire.any() == Some(true)).expect("one of them");
        let mut wire = wires.remove(any);
        assert!(wire.receive()["result"].is_u64());
    }
}

/// They can't go without their connection, and that can't go while a thread is in a call of it.
#[test]
fn what_waits_beside_a_call_that_runs_goes_when_the_time_to_drain_is_up() {
    for way in [Way::Length, Way::Stream, Way::Header] {
        let service = Service::start(&format!("{ONE}drain = \"300ms\"\n"));
        let mut peer = Peer::of(&service, way);
        let worker = peer.worker();
        peer.send(&json_rpc("hang", &json!([]), 0));
        for id in 1..10 {
            peer.send(&json_rpc("count", &count("beside"), id));
        }
        await_asleep(worker);
        send_signal(worker, Signal::SIGTERM);
        let mut answers: Vec<Value> = (0..10).map(|_| peer.receive()).collect();
        answers.sort_by_key(|answer| answer["id"].as_u64());
        is_drained(&answers[0], "hang");
        for answer in &answers[1..] {
            assert!(answer["result"].is_u64(), "{way:?}: {answer}");
        }
        assert_ne!(peer.worker(), worker);
    }
}

/// And at once where that call ends before.
#[test]
fn what_waits_beside_a_call_that_ends_goes_with_its_end() {
    let service = Service::start(&format!("{ONE}{LONG_DRAIN}"));
    let mut peer = Peer::of(&service, Way::Length);
    let worker = peer.worker();
    peer.send(&json_rpc("sleep", &json!([300]), 0));
    for id in 1..5 {
        peer.send(&json_rpc("sleep", &json!([200]), id));
    }
    peer.send(&json_rpc("count", &count("last"), 5));
    await_asleep(worker);
    send_signal(worker, Signal::SIGTERM);
    let ids: Vec<Option<u64>> = (0..6).map(|_| peer.receive()["id"].as_u64()).collect();
    assert_eq!(ids, [0, 1, 2, 3, 4, 5].map(Some));
    assert_ne!(peer.worker(), worker);
}

/// Nobody else can answer them, and who made the call that lasts may be somebody else than who makes these.
#[test]
fn a_connection_whose_call_lasts_is_served_on_where_it_is_and_goes_when_that_ends() {
    at_once([Way::Length, Way::Stream, Way::Header], |way| {
        let service = Service::start(&format!("{}{LONG_DRAIN}", ONE.replace("threads = 1", "threads = 2")));
        let mut peer = Peer::of(&service, way);
        let worker = peer.worker();
        let mark = service.mark();
        peer.send(&json_rpc("sleep", &json!([3_000]), 0));
        await_asleep(worker);
        send_signal(worker, Signal::SIGTERM);
        service.await_refill(mark, 0);
        peer.send(&json_rpc("tine.worker", &json!([]), 1));
        let answer = peer.receive();
        assert_eq!(
            (&answer["id"], &answer["result"]["pid"]),
            (&json!(1), &json!(worker)),
            "{way:?}: {answer}"
        );
        assert_eq!(peer.receive()["id"], 0);
        assert_ne!(peer.worker(), worker, "{way:?}");
    });
}

#[test]
fn a_batch_goes_with_the_answers_it_has_and_the_rest_is_run_elsewhere() {
    for way in ALL {
        let service = Service::start(&format!("{ONE}drain = \"300ms\"\n"));
        let mut peer = Peer::of(&service, way);
        let worker = peer.worker();
        let notification =
            |of: &str| json!({ "jsonrpc": "2.0", "method": "count", "params": count(of) }).to_string();
        let members = [
            json_rpc("blob", &json!({ "bytes": 30_000 }), 0),
            notification("before"),
            json_rpc("nope", &json!([]), 1),
            json_rpc("tine.worker", &json!([]), 2),
            json_rpc("hang", &json!([]), 3),
            json_rpc("tine.worker", &json!([]), 4),
            notification("after"),
            json_rpc("count", &count("after"), 5),
            json_rpc("count", &count("before"), 6),
        ];
        peer.send(&format!("[{}]", members.join(",")));
        await_asleep(worker);
        send_signal(worker, Signal::SIGTERM);
        let answers = peer.receive();
        let ids: Vec<Option<u64>> =
            answers.as_array().expect("a batch").iter().map(|answer| answer["id"].as_u64()).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 6].map(Some), "{way:?}: {answers}");
        assert_eq!(answers[0]["result"].as_str().map(str::len), Some(30_000));
        assert_eq!(support::code(&answers[1]), -32601);
        assert_eq!(answers[2]["result"]["pid"], worker);
        is_drained(&answers[3], "hang");
        assert_ne!(answers[4]["result"]["pid"], worker, "{way:?}: {answers}");
        assert_eq!(answers[5]["result"], 2, "the notification before it was run there too");
        assert_eq!(answers[6]["result"], 1, "the first one was not run once more");
        assert_eq!(peer.call("count", count("before"))["result"], 2);
    }
}

/// What has moved once moves again like anything else, with all that was answered before.
#[test]
fn a_batch_survives_one_worker_after_another() {
    for signal in [Signal::SIGTERM, Signal::SIGKILL] {
        let service = Service::start(&format!("{ONE}drain = \"200ms\"\n[quarantine]\ncrashes = 0\n"));
        let mut peer = Peer::of(&service, Way::Stream);
        let first = peer.worker();
        let hang = |id| json_rpc("hang", &json!([]), id);
        let worker = |id| json_rpc("tine.worker", &json!([]), id);
        let silent = json!({ "jsonrpc": "2.0", "method": "count", "params": count("silent") }).to_string();
        let members = [silent, worker(0), hang(1), worker(2), hang(3), worker(4)];
        peer.send(&format!("[{}]", members.join(",")));
        await_asleep(first);
        let mark = service.mark();
        send_signal(first, Signal::SIGTERM);
        // The second hangs in the next call of it, once that has been begun.
        let second = service.await_refill(mark, 0);
        service.await_text(mark, "worker ended");
        let mut other = Peer::of(&service, Way::Length);
        assert_eq!(other.worker(), second);
        await_asleep(second);
        if signal == Signal::SIGKILL {
            kill(second);
        } else {
            send_signal(second, signal);
        }
        let answers = peer.receive();
        assert_eq!(answers[0]["result"]["pid"], first, "{answers}");
        is_drained(&answers[1], "hang");
        assert_eq!(answers[2]["result"]["pid"], second, "{answers}");
        assert_eq!(support::code(&answers[3]), -32002, "{answers}");
        if signal == Signal::SIGTERM {
            assert!(answers[4]["result"]["pid"].is_number(), "{answers}");
        }
        // Neither of them runs the notification once more.
        assert_eq!(peer.call("count", count("silent"))["result"], 1);
    }
}
