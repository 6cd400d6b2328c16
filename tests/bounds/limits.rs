//! What one connection, and all of them together, may have of a worker.

use std::collections::BTreeSet;

use crate::support::kept::Kept;
use crate::support::measure::{private_memory, shared_memory};
use crate::support::proc::{pid_in, worker_pid};
use crate::support::{Service, Wire, await_asleep, await_so, code, framed};
use nix::sys::signal::Signal;
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn only_worker(service: &Service) -> i32 {
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    pid
}

#[test]
fn calls_beyond_the_in_flight_bound_wait_their_turn_and_none_is_lost() {
    let service = Service::start("processes = 1\nthreads = 8\n[limits]\nin_flight_per_connection = 2");
    let mut wire = service.connect();
    let calls: Vec<u8> = (0..100)
        .flat_map(|n| {
            // The first two are slow and fill the bound; six threads stay free.
            let ms = if n < 2 { 200 } else { 0 };
            framed(&format!(r#"{{"in":"sleep","params":{{"ms":{ms}}},"id":{n}}}"#))
        })
        .collect();
    wire.send_bytes(&calls);
    let mut ids: Vec<u64> = (0..100).map(|_| wire.receive()["id"].as_u64().expect("an id")).collect();
    assert!(ids[0] < 2, "nothing beyond the bound overtook the first two: {ids:?}");
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    assert_eq!(wire.call("ping", json!(1))["result"], 1);
}

/// What waited behind an answer longer than the whole bound was forgotten when the socket took that in one go.
#[test]
fn answers_longer_than_the_output_bound_do_not_end_a_pipeline() {
    let service = Service::start("processes = 1\nthreads = 2\n[limits]\noutput = \"4KiB\"");
    let mut wire = service.connect();
    let calls: Vec<u8> = (0..50)
        .flat_map(|n| framed(&format!(r#"{{"in":"blob","params":{{"bytes":{}}}}}"#, 16 * KIB + n)))
        .collect();
    wire.send_bytes(&calls);
    for n in 0..50 {
        assert_eq!(wire.receive()["result"].as_str().map(str::len), Some(16 * KIB + n));
    }
    // The same for answers that the reading thread gives itself.
    wire.send_bytes(&framed(r#"{"in":"unknown"}"#).repeat(500));
    for _ in 0..500 {
        assert_eq!(code(&wire.receive()), -32601);
    }
}

#[test]
fn a_client_that_never_reads_costs_a_bounded_amount_and_loses_nothing() {
    const CALLS: usize = 150;
    const BYTES: usize = 256 * KIB;
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\noutput = \"512KiB\"");
    let pid = only_worker(&service);
    let mut other = service.connect();
    assert_eq!(other.call("ping", json!(0))["result"], 0);
    let before = private_memory(pid);

    let mut silent = service.connect();
    setsockopt(&silent.stream, sockopt::RcvBuf, &(64 * KIB)).expect("a socket option");
    let calls: Vec<u8> = (0..CALLS)
        .flat_map(|n| framed(&format!(r#"{{"in":"blob","params":{{"bytes":{}}}}}"#, BYTES + n)))
        .collect();
    silent.send_bytes(&calls);
    // With one thread a ping is answered between two of the blobs, so this many outlast all of them.
    let mut most = 0;
    for n in 0..2 * CALLS {
        assert_eq!(other.call("ping", json!(n))["result"], n);
        most = most.max(private_memory(pid));
    }
    let grown = most.saturating_sub(before);
    assert!(grown < 4 * MIB, "the worker has grown by {grown} bytes of {}", CALLS * BYTES);

    for n in 0..CALLS {
        assert_eq!(silent.receive()["result"].as_str().map(str::len), Some(BYTES + n), "in order");
    }
    assert_eq!(silent.call("ping", json!("done"))["result"], "done");
}

/// Half of a message of 1 MiB.
fn half_a_message() -> Vec<u8> {
    let mut bytes = framed(&json!({ "in": "echo", "params": "x".repeat(MIB - 100) }).to_string());
    bytes.truncate(MIB / 2);
    bytes
}

const SMALL_BUFFERS: &str = "processes = 1\nthreads = 2\n[limits]\noutput = \"1MiB\"\nbuffers = \"4MiB\"";

/// Calls that had been queued were run whatever their answers came to: a thousand clients that never read had a worker hold far
/// more than its buffers.
#[test]
fn calls_that_wait_while_the_answers_before_them_fill_the_buffers_are_refused() {
    const CALLS: usize = 60;
    let service = Service::start(&format!("{SMALL_BUFFERS}\nqueue_wait = \"60s\""));
    let mut wire = service.connect();
    // More than the kernel takes for a client that does not read, and the buffers beside that.
    let calls = (0..CALLS).map(|id| format!(r#"{{"in":"blob","params":{{"bytes":400000}},"id":{id}}}"#));
    wire.send_bytes(&calls.flat_map(|call| framed(&call)).collect::<Vec<u8>>());
    // Nobody waits for an answer to this one, so there is none to keep.
    wire.send(r#"{"jsonrpc":"2.0","method":"count","params":{"of":"silent","add":1}}"#);
    // The worker has begun with them, and has done what it can without a client that reads.
    assert_eq!(service.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
    await_asleep(only_worker(&service));
    let answers: Vec<Value> = (0..CALLS).map(|_| wire.receive()).collect();
    let (run, refused): (Vec<&Value>, Vec<&Value>) =
        answers.iter().partition(|answer| answer["out"] == "blob");
    assert!(!run.is_empty(), "none was run");
    assert!(!refused.is_empty(), "all were run");
    assert!(refused.iter().all(|answer| code(answer) == -32000), "{refused:?}");
    let ids: BTreeSet<u64> = answers.iter().filter_map(|answer| answer["id"].as_u64()).collect();
    assert_eq!(ids.len(), CALLS, "each was answered once");
    let counted = wire.call("count", json!({ "of": "silent", "add": 0 }));
    assert_eq!(counted["result"], 1, "a notification is run");
    assert_eq!(wire.call("ping", json!("after"))["result"], "after");
}

/// Each client that had no answer waiting was given one, however full the buffers were: with so many that never read a worker held
/// several times its limit.
#[test]
fn clients_that_never_read_fill_the_buffers_and_no_more_while_small_answers_are_made() {
    const LIMIT: usize = 16 * MIB;
    let config = "processes = 1\nthreads = 4\n[limits]\nbuffers = \"16MiB\"\nqueue = 100000\nqueue_wait = \"10m\"\n[timeouts]\nrequest = \"10m\"";
    let service = Service::start(config);
    let pid = only_worker(&service);
    let blob = |bytes: usize, id: usize| {
        framed(&format!(r#"{{"in":"blob","params":{{"bytes":{bytes}}},"id":{id}}}"#))
    };
    // What its answers are like is known from one that was read.
    let mut reader = service.connect();
    reader.send_bytes(&blob(MIB - 100, 0));
    assert_eq!(reader.receive()["result"].as_str().map(str::len), Some(MIB - 100));
    let before = shared_memory(pid);
    let silent: Vec<Wire> = (0..60)
        .map(|client| {
            let mut wire = service.connect();
            setsockopt(&wire.stream, sockopt::RcvBuf, &(64 * KIB)).expect("a socket option");
            wire.send_bytes(&(0..5).flat_map(|id| blob(MIB - 100, 10 * client + id)).collect::<Vec<u8>>());
            wire
        })
        .collect();
    let (mut most, mut calls) = (0, 0);
    await_so("the buffers are filled", || {
        let answer = reader.call("sleep", json!({ "ms": 0 }));
        assert_eq!(answer["out"], "sleep", "a small answer was refused: {answer}");
        let held = shared_memory(pid).saturating_sub(before);
        calls = if held > most { 0 } else { calls + 1 };
        most = most.max(held);
        // It has not grown for a while, and threads are free again.
        calls > 200 && most > LIMIT / 2
    });
    assert!(most < LIMIT + LIMIT / 4, "the worker has grown by {most} bytes, with buffers for {LIMIT}");
    drop(silent);
    // Nobody else holds anything then.
    await_so("there is room for a large answer", || {
        reader.send_bytes(&blob(MIB - 100, 1));
        let answer = reader.receive();
        assert!(answer["out"] == "blob" || code(&answer) == -32000, "{answer}");
        answer["out"] == "blob"
    });
}

/// Who did not take its answers was moved to where there was room, and the worker that it left made more of them: both held more
/// than their buffers.
#[test]
fn who_does_not_take_its_answers_stays_where_it_is_when_a_worker_is_added() {
    let kept = Kept::start("processes = 1\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"");
    let first = only_worker(&kept.service);
    let mut silent = kept.connect(6);
    for wire in &mut silent {
        setsockopt(&wire.stream, sockopt::RcvBuf, &(64 * KIB)).expect("a socket option");
        // More than the kernel takes for it.
        wire.send_bytes(&framed(r#"{"in":"blob","params":{"bytes":1000000}}"#).repeat(8));
    }
    let mut others: Vec<Wire> = (0..4).map(|_| kept.service.connect()).collect();
    await_asleep(first);
    kept.service.signal(Signal::SIGTTIN);
    // Half of all would be five.
    for other in &mut others {
        await_so("it goes to the worker that was added", || worker_pid(other) != first);
    }
    for wire in &mut silent {
        wire.request("tine.worker", &json!(null));
        for _ in 0..8 {
            assert_eq!(wire.receive()["out"], "blob");
        }
        assert_eq!(pid_in(&wire.receive()["result"]), first);
    }
}

/// Uploads that had begun were moved together, and the worker they came to held far more than its buffers: small calls were refused.
#[test]
fn who_is_sending_much_stays_where_it_is_when_a_worker_is_added_and_much_is_held() {
    let kept = Kept::start(
        "processes = 1\nthreads = 2\n[limits]\nbuffers = \"4MiB\"\nmax_message = \"1MiB\"\n[timeouts]\nkeep_after = \"0s\"",
    );
    let first = only_worker(&kept.service);
    let call = format!(r#"{{"in":"tine.worker","params":null{}}}"#, " ".repeat(600 * KIB));
    let mut senders = kept.connect(6);
    for wire in &mut senders {
        wire.send_bytes(&framed(&call)[..400 * KIB]);
    }
    let mut others: Vec<Wire> = (0..2).map(|_| kept.service.connect()).collect();
    await_asleep(first);
    kept.service.signal(Signal::SIGTTIN);
    // Half of all would be four.
    for other in &mut others {
        await_so("it goes to the worker that was added", || worker_pid(other) != first);
    }
    for wire in &mut senders {
        wire.send_bytes(&framed(&call)[400 * KIB..]);
        assert_eq!(pid_in(&wire.receive()["result"]), first);
    }
}

/// Connections that have sent half a message each, more than all the buffers hold, for as long as the worker takes it.
fn fill_buffers(service: &Service, probe: &mut Wire) -> Vec<Wire> {
    let pid = only_worker(service);
    let before = private_memory(pid);
    let half = half_a_message();
    let mut wires: Vec<(Wire, usize)> = (0..32).map(|_| (service.connect(), 0)).collect();
    let mut rounds_without_progress = 0;
    while rounds_without_progress < 20 {
        let mut pushed = 0;
        for (wire, sent) in &mut wires {
            let count = wire.push(&half[*sent..]);
            *sent += count;
            pushed += count;
        }
        // Its answer shows that the worker has had its turn.
        assert_eq!(probe.call("ping", json!(pushed))["result"], pushed);
        rounds_without_progress = if pushed == 0 { rounds_without_progress + 1 } else { 0 };
        let grown = private_memory(pid).saturating_sub(before);
        assert!(grown < 8 * MIB, "the worker has grown by {grown} bytes, with buffers for {}", 4 * MIB);
    }
    wires.into_iter().map(|(wire, _)| wire).collect()
}

#[test]
fn half_sent_messages_fill_the_buffers_and_small_messages_pass() {
    let service = Service::start(SMALL_BUFFERS);
    let mut probe = service.connect();
    let wires = fill_buffers(&service, &mut probe);
    for n in 0..20 {
        assert_eq!(service.call("ping", json!(n))["result"], n, "a new connection");
        assert_eq!(probe.call("ping", json!(n))["result"], n, "an old connection");
    }
    // When those that fill them leave, large messages pass again.
    wires.into_iter().for_each(Wire::reset);
    let large = "x".repeat(MIB - 100);
    assert_eq!(service.call("echo", json!(large))["result"], large);
}

#[test]
fn the_message_timeout_frees_the_buffers_of_those_who_never_finish() {
    let service = Service::start(&format!("{SMALL_BUFFERS}\n[timeouts]\nmessage = \"700ms\""));
    let mut probe = service.connect();
    let mut wires = fill_buffers(&service, &mut probe);
    for wire in &mut wires {
        let end = wire.read_to_end();
        assert!(end.is_empty() || String::from_utf8_lossy(&end).contains("timeouts.message"));
    }
    let large = "x".repeat(MIB - 100);
    assert_eq!(service.call("echo", json!(large))["result"], large);
}

/// They all waited for room that none of them could make.
#[test]
fn large_messages_that_do_not_fit_together_become_whole_one_after_another() {
    let service = Service::start(SMALL_BUFFERS);
    let (address, large) = (service.socket_address(), "x".repeat(MIB - 100));
    let upload = || assert_eq!(Wire::connect(address).call("echo", json!(large))["result"], large);
    std::thread::scope(|scope| {
        for _ in 0..16 {
            scope.spawn(upload);
        }
    });
}

/// A worker that was full was woken for the connection, and the other one, which had room, was not.
#[test]
fn a_connection_that_one_worker_has_no_room_for_is_taken_by_another() {
    let service = Service::start("processes = 2\nthreads = 1\n[limits]\nmax_connections = 2");
    let (mut one, mut two) = (service.connect(), service.connect());
    for round in 0..4 {
        for wire in [&mut one, &mut two] {
            // Long enough for a full worker to have looked at the listener again, whenever it does that.
            assert_eq!(wire.call("sleep", json!({ "ms": 70 }))["out"], "sleep");
        }
        let leaves = if round % 2 == 0 { &mut one } else { &mut two };
        leaves.finish_sending();
        assert!(leaves.is_closed());
        *leaves = service.connect();
        assert_eq!(leaves.call("ping", json!(round))["result"], round);
    }
}

#[test]
fn clients_that_come_and_go_at_full_workers_are_all_served() {
    let service =
        Service::start("processes = 3\nthreads = 1\n[limits]\nmax_connections = 6\nqueue_wait = \"30s\"");
    let address = service.socket_address();
    let come_and_go = |client: usize| {
        for n in 0..40 {
            let mut wire = Wire::connect(address);
            match (client + n) % 4 {
                0 => assert_eq!(wire.call("sleep", json!({ "ms": 1 }))["result"], Value::Null),
                1 => wire.reset(),
                2 => wire.request("ping", &json!(n)),
                _ => assert_eq!(wire.call("ping", json!(n))["result"], n),
            }
        }
    };
    std::thread::scope(|scope| {
        for client in 0..24 {
            scope.spawn(move || come_and_go(client));
        }
    });
    assert_eq!(service.worker_pids().len(), 3);
}

/// It held a place for as long as one that is used, ten minutes by default.
#[test]
fn a_connection_that_says_nothing_is_closed_and_one_that_has_spoken_is_not() {
    let service =
        Service::start("processes = 1\nthreads = 1\n[timeouts]\nfirst_byte = \"200ms\"\nkeep_after = \"0s\"");
    let mut spoken = service.connect();
    assert_eq!(spoken.call("ping", json!(1))["result"], 1);
    let mut begun = service.connect();
    begun.send_bytes(&framed(r#"{"in":"ping","params":2}"#)[..7]);
    let mut silent = service.connect();
    assert!(silent.is_closed());
    // The second of them began later than both.
    assert!(service.connect().is_closed());
    assert_eq!(spoken.call("ping", json!(3))["result"], 3);
    begun.send_bytes(&framed(r#"{"in":"ping","params":2}"#)[7..]);
    assert_eq!(begun.receive()["result"], 2);
}
