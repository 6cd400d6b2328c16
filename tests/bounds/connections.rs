//! A connection belongs to the service: what plain clients, which never reconnect, see of a worker's end.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::Instant;

use crate::support;
use crate::support::kept::Kept;
use crate::support::proc::{Process, kill, pid_in, worker_pid};
use crate::support::{Over, PATIENCE, Service, Wire, await_so, code, framed, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Two workers whose connections are kept from the start.
const TWO: &str =
    "processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\n[limits]\nqueue_wait = \"60s\"";
const ONE: &str =
    "processes = 1\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\n[limits]\nqueue_wait = \"60s\"";

/// Waits until calls that were sent before on `wire`, served by `pid`, are run: a later one on another connection of that
/// worker is through.
fn await_running(kept: &Kept, pid: i32) {
    let mut others = Vec::new();
    await_so("another connection of that worker", || {
        let mut other = kept.service.connect();
        let is_there = worker_pid(&mut other) == pid;
        if is_there {
            assert_eq!(other.call("sleep", json!({ "ms": 30 }))["out"], "sleep");
        }
        others.push(other);
        is_there
    });
}

fn crashed(answer: &Value, method: &str, cause: &str) {
    assert_eq!(answer["out"], "error", "{answer}");
    assert_eq!(answer["result"]["code"], -32002, "{answer}");
    assert_eq!(answer["result"]["data"], json!({ "method": method, "cause": cause }), "{answer}");
}

#[test]
fn connections_of_a_killed_worker_go_on_and_only_running_calls_fail() {
    let kept = Kept::start(TWO);
    let mut wires = kept.connect(16);
    let pid = worker_pid(&mut wires[0]);
    let mut lost = Vec::new();
    for (index, wire) in wires.iter_mut().enumerate() {
        if worker_pid(wire) == pid && lost.is_empty() {
            wire.send(&json!({ "in": "hang", "params": null, "id": index }).to_string());
            lost.push(index);
        }
    }
    await_running(&kept, pid);
    kill(pid);
    for (index, wire) in wires.iter_mut().enumerate() {
        if lost.contains(&index) {
            let answer = wire.receive();
            crashed(&answer, "hang", "SIGKILL");
            assert_eq!(answer["id"], index);
        }
        assert_eq!(wire.call("echo", json!(index))["result"], index);
        assert_ne!(worker_pid(wire), pid);
    }
}

#[test]
fn what_was_pipelined_behind_a_running_call_is_run_by_the_next_worker() {
    let kept = Kept::start(TWO);
    let mut wire = kept.connect(1).remove(0);
    let pid = worker_pid(&mut wire);
    // Without ids: one after the other, and the answers in the order of the questions.
    wire.request("hang", &json!(null));
    for number in 0..50 {
        wire.request("echo", &json!(number));
    }
    await_running(&kept, pid);
    kill(pid);
    crashed(&wire.receive(), "hang", "SIGKILL");
    for number in 0..50 {
        assert_eq!(wire.receive()["result"], number);
    }
    // With ids: those that waited for a thread are run, whatever ran is answered as lost.
    let pid = worker_pid(&mut wire);
    for id in 0..20 {
        wire.send(&json!({ "in": "sleep", "params": { "ms": 30 }, "id": id }).to_string());
    }
    assert_eq!(wire.receive()["out"], "sleep");
    kill(pid);
    let mut ids = BTreeSet::new();
    let mut failed = 0;
    for _ in 1..20 {
        let answer = wire.receive();
        ids.insert(answer["id"].as_u64().expect("an id"));
        if answer["out"] == "error" {
            crashed(&answer, "sleep", "SIGKILL");
            failed += 1;
        }
    }
    assert_eq!(ids.len(), 19, "every call has one answer");
    assert!(failed <= 4, "{failed} calls failed, and two threads ran calls");
}

#[test]
fn a_half_read_answer_goes_on_where_the_dead_worker_stopped() {
    let kept = Kept::start(TWO);
    let mut wire = kept.connect(1).remove(0);
    let pid = worker_pid(&mut wire);
    // Far more than the socket's queues take, so that the rest is in the worker.
    const BYTES: usize = 1 << 20;
    for id in 0..12 {
        wire.send(&json!({ "in": "blob", "params": { "bytes": BYTES }, "id": id }).to_string());
    }
    let mut begun = vec![0; 100_000];
    wire.stream.read_exact(&mut begun).expect("the first of it");
    kill(pid);
    // Answers are whole and each comes once; those that had not begun are run by the other worker.
    let mut rest = Reading { first: begun, at: 0, stream: &mut wire.stream };
    let mut ids = BTreeSet::new();
    for _ in 0..12 {
        let answer = rest.receive();
        if answer["out"] == "blob" {
            assert_eq!(answer["result"].as_str().map(str::len), Some(BYTES));
        } else {
            crashed(&answer, "blob", "SIGKILL");
        }
        ids.insert(answer["id"].as_u64().expect("an id"));
    }
    assert_eq!(ids.len(), 12);
    assert_eq!(wire.call("echo", json!(1))["result"], 1);
}

/// A stream whose beginning was read already.
struct Reading<'a> {
    first: Vec<u8>,
    at: usize,
    stream: &'a mut std::net::TcpStream,
}

impl Reading<'_> {
    fn fill(&mut self, bytes: &mut [u8]) {
        let from_first = bytes.len().min(self.first.len() - self.at);
        bytes[..from_first].copy_from_slice(&self.first[self.at..self.at + from_first]);
        self.at += from_first;
        self.stream.read_exact(&mut bytes[from_first..]).expect("the rest of it");
    }

    fn receive(&mut self) -> Value {
        let mut prefix = [0; 4];
        self.fill(&mut prefix);
        let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
        self.fill(&mut body);
        serde_json::from_slice(&body).expect("JSON, from its first byte to its last")
    }
}

#[test]
fn a_half_sent_message_outlives_the_worker_that_reads_it() {
    let kept = Kept::start(TWO);
    let mut wire = kept.connect(1).remove(0);
    let mut other = kept.service.connect();
    kept.await_kept(2);
    let body = json!({ "in": "echo", "params": "x".repeat(600_000) }).to_string();
    let bytes = framed(&body);
    let third = bytes.len() / 3;
    let parts: Vec<&[u8]> = bytes.chunks(third + 1).collect();
    let (last, begun) = parts.split_last().expect("three parts");
    for part in begun {
        wire.send_bytes(part);
        kill(worker_pid(&mut other));
        kept.await_kept(2);
    }
    wire.send_bytes(last);
    let answer = wire.receive();
    assert_eq!(answer["result"].as_str().map(str::len), Some(600_000));
    assert_eq!(wire.call("echo", json!(2))["result"], 2);
}

#[test]
fn half_closed_clients_get_their_answers_from_the_next_worker() {
    let kept = Kept::start(TWO);
    let mut wire = kept.connect(1).remove(0);
    let pid = worker_pid(&mut wire);
    wire.request("hang", &json!(null));
    wire.request("echo", &json!("after"));
    wire.stream.shutdown(Shutdown::Write).expect("a FIN");
    await_running(&kept, pid);
    kill(pid);
    crashed(&wire.receive(), "hang", "SIGKILL");
    assert_eq!(wire.receive()["result"], "after");
    assert!(wire.is_closed());
    kept.await_kept(0);
}

#[test]
fn urgent_data_is_counted_as_what_it_is() {
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::AsRawFd;
    let kept = Kept::start(TWO);
    let mut wire = kept.connect(1).remove(0);
    let bytes = framed(&json!({ "in": "echo", "params": "urgent" }).to_string());
    let urgent = |wire: &Wire, byte: u8| send(wire.stream.as_raw_fd(), &[byte], MsgFlags::MSG_OOB);
    for _ in 0..3 {
        let pid = worker_pid(&mut wire);
        wire.send_bytes(&bytes[..10]);
        assert_eq!(urgent(&wire, bytes[10]), Ok(1));
        wire.send_bytes(&bytes[11..20]);
        kill(pid);
        wire.send_bytes(&bytes[20..]);
        assert_eq!(wire.receive()["result"], "urgent");
    }
}

#[test]
fn connections_of_a_unix_socket_go_on() {
    let config = format!("listen = [\"unix:rpc.sock\"]\n{TWO}");
    let kept = Kept::start(&config);
    let path = kept.service.folder().join("rpc.sock");
    let mut streams: Vec<_> = (0..4)
        .map(|_| std::os::unix::net::UnixStream::connect(&path).expect("the service accepts"))
        .collect();
    kept.await_kept(4);
    let ask = |stream: &mut std::os::unix::net::UnixStream, method: &str| {
        stream.write_all(&framed(&json!({ "in": method, "params": null }).to_string())).expect("it reads");
        let mut prefix = [0; 4];
        stream.read_exact(&mut prefix).expect("an answer");
        let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
        stream.read_exact(&mut body).expect("a whole answer");
        serde_json::from_slice::<Value>(&body).expect("JSON")
    };
    for _ in 0..3 {
        let pid = pid_in(&ask(&mut streams[0], "tine.worker")["result"]);
        // The answer may be here before the call that sent it has returned, and within that call it could not go on.
        support::await_asleep(pid);
        kill(pid);
        for stream in &mut streams {
            assert_ne!(pid_in(&ask(stream, "tine.worker")["result"]), pid);
        }
    }
}

#[test]
fn a_worker_that_is_the_only_one_leaves_its_connections_to_its_replacement() {
    let kept = Kept::start(ONE);
    let mut wires = kept.connect(8);
    wires[0].request("crash", &json!({ "how": "segv" }));
    crashed(&wires[0].receive(), "crash", "SIGSEGV");
    for wire in &mut wires {
        assert_eq!(wire.call("echo", json!("still here"))["result"], "still here");
    }
    wires[0].request("crash", &json!({ "how": "exit", "code": 3 }));
    crashed(&wires[0].receive(), "crash", "exit 3");
    kept.await_kept(8);
    drop(wires);
    kept.await_kept(0);
}

/// What a deadline gave the poller to do waited for the next event: the connection begins nothing meanwhile.
#[test]
fn a_young_connection_goes_as_soon_as_its_worker_is_to_leave() {
    let service = Service::start(
        "processes = 2\nthreads = 1\n[timeouts]\nkeep_after = \"1h\"\nstuck = \"1h\"\ndrain = \"1h\"",
    );
    let mut wire = service.connect();
    let pid = worker_pid(&mut wire);
    support::send_signal(pid, Signal::SIGTERM);
    await_so("another worker has it", || worker_pid(&mut wire) != pid);
}

#[test]
fn a_connection_that_is_too_young_ends_with_its_worker() {
    let service = Service::start("processes = 1\nthreads = 1\n[timeouts]\nkeep_after = \"1h\"");
    let mut wire = service.connect();
    let pid = worker_pid(&mut wire);
    Process::of(pid).kill();
    assert!(wire.is_cut_off());
}

#[test]
fn an_idle_worker_that_is_stopped_does_not_keep_what_it_is_handed() {
    let kept = Kept::start("processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\nstuck = \"400ms\"");
    let mut wire = kept.connect(1).remove(0);
    let pid = worker_pid(&mut wire);
    let idle = kept.service.worker_pids().into_iter().find(|other| *other != pid).expect("two workers");
    send_signal(idle, Signal::SIGSTOP);
    kill(pid);
    // The only one there is gets it, and is asked for a sign of life from then on.
    assert!(![pid, idle].contains(&worker_pid(&mut wire)));
    let silent = kept.service.await_log("no sign of life");
    assert_eq!(pid_in(&silent), idle);
}

#[test]
fn workers_killed_one_after_the_other_hand_the_same_connections_on() {
    let kept = Kept::start(TWO);
    let mut wires = kept.connect(20);
    for round in 0..6 {
        let mark = kept.service.mark();
        let (pid, other) = (worker_pid(&mut wires[0]), worker_pid(&mut wires[1]));
        kill(pid);
        if round % 2 == 1 && other != pid {
            kill(other);
            kept.service.await_log("worker ready");
        }
        for (index, wire) in wires.iter_mut().enumerate() {
            assert_eq!(wire.call("echo", json!(index))["result"], index);
        }
        kept.service.await_since(mark, "the next one is ready", |line| line["message"] == "worker ready");
    }
    drop(wires);
    kept.await_kept(0);
}

#[test]
fn term_to_one_worker_moves_its_connections_and_loses_no_call() {
    let kept = Kept::start(TWO);
    let mut wires = kept.connect(10);
    let pid = worker_pid(&mut wires[0]);
    let process = Process::of(pid);
    for wire in &mut wires {
        wire.request("sleep", &json!({ "ms": 200 }));
        wire.request("echo", &json!("behind it"));
    }
    send_signal(pid, Signal::SIGTERM);
    for wire in &mut wires {
        assert_eq!(wire.receive()["out"], "sleep");
        assert_eq!(wire.receive()["result"], "behind it");
    }
    process.await_end();
    for wire in &mut wires {
        assert_ne!(worker_pid(wire), pid);
    }
    kept.await_kept(10);
}

#[test]
fn a_call_that_outlives_the_time_to_drain_is_answered_and_its_connection_moves() {
    let kept = Kept::start("processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\ndrain = \"300ms\"");
    let mut wire = kept.connect(1).remove(0);
    let pid = worker_pid(&mut wire);
    wire.request("hang", &json!(null));
    await_running(&kept, pid);
    send_signal(pid, Signal::SIGTERM);
    crashed(&wire.receive(), "hang", "drained");
    assert_ne!(worker_pid(&mut wire), pid);
}

#[test]
fn one_worker_fewer_and_one_more_lose_no_connection() {
    let kept = Kept::start(TWO);
    let mut wires = kept.connect(10);
    let both: BTreeSet<i32> = kept.service.worker_pids().into_iter().collect();
    let mark = kept.service.mark();
    kept.service.signal(Signal::SIGTTOU);
    kept.service.await_text(mark, "worker ended");
    let left: BTreeSet<i32> = wires.iter_mut().map(worker_pid).collect();
    assert!(left.len() == 1 && left.is_subset(&both), "{left:?} of {both:?}");
    let mark = kept.service.mark();
    kept.service.signal(Signal::SIGTTIN);
    kept.service.await_since(mark, "the new one is ready", |line| line["message"] == "worker ready");
    for wire in &mut wires {
        assert_eq!(wire.call("echo", json!(0))["result"], 0);
    }
}

#[test]
fn stop_still_closes_every_connection() {
    let mut kept = Kept::start(TWO);
    let mut wires = kept.connect(6);
    wires[0].request("sleep", &json!({ "ms": 100 }));
    kept.service.signal(Signal::SIGTERM);
    assert_eq!(wires[0].receive()["out"], "sleep");
    for wire in &mut wires {
        assert!(wire.is_closed());
    }
    assert_eq!(kept.service.await_end().code(), Some(0));
}

#[test]
fn a_worker_that_dies_while_the_service_stops_leaves_its_connections_to_the_others() {
    let mut kept = Kept::start(TWO);
    // Calls for each of them: a worker that has none ends at once, and could take nothing from the other.
    let mut wires: Vec<Wire> = (0..10).map(|n| kept.service.connect_to(n % 2)).collect();
    kept.await_kept(10);
    let mut pids: Vec<i32> = wires.iter_mut().map(worker_pid).collect();
    let first = pids[0];
    for wire in &mut wires {
        wire.send(&json!({ "in": "sleep", "params": { "ms": 700 }, "id": 1 }).to_string());
    }
    kept.service.signal(Signal::SIGTERM);
    kept.service.await_log("draining");
    kill(first);
    for (wire, pid) in wires.iter_mut().zip(pids.drain(..)) {
        let answer = wire.receive();
        assert!(pid == first || answer["out"] == "sleep", "{answer}");
        assert!(wire.is_closed());
    }
    assert_eq!(kept.service.await_end().code(), Some(0));
}

#[test]
fn connections_that_come_and_go_leave_nothing_behind() {
    let kept = Kept::start(TWO);
    for _ in 0..5 {
        let wires = kept.connect(50);
        drop(wires);
        kept.await_kept(0);
    }
}

/// The supervisor may have no more than these open.
fn limit_descriptors(kept: &Kept, descriptors: usize) {
    let pid = kept.service.pid().to_string();
    let limit = format!("--nofile={descriptors}:1024");
    let done = std::process::Command::new("prlimit").args(["--pid", &pid, &limit]).status();
    assert!(done.expect("prlimit runs").success());
}

#[test]
fn a_supervisor_without_room_says_so_once_and_the_service_goes_on() {
    let kept = Kept::start(TWO);
    limit_descriptors(&kept, kept.without + 3);
    let mut wires: Vec<Wire> = (0..12).map(|_| kept.service.connect()).collect();
    for wire in &mut wires {
        assert_eq!(wire.call("echo", json!(0))["result"], 0, "served all the same");
    }
    kept.service.await_text(0, "can't be kept");
    let (mut cut_off, mut others) = (0, 0);
    let pids: Vec<i32> = wires.iter_mut().map(worker_pid).collect();
    // The one with more of them, so that not all of its own are kept.
    let of = |pid: i32| pids.iter().filter(|of| **of == pid).count();
    let pid = *pids.iter().max_by_key(|pid| of(**pid)).expect("twelve");
    kill(pid);
    for (wire, served_by) in wires.iter_mut().zip(&pids) {
        wire.request("echo", &json!(1));
        let lives = matches!(wire.stream.read(&mut [0; 1]), Ok(1));
        assert!(lives || *served_by == pid);
        if lives { others += 1 } else { cut_off += 1 }
    }
    assert!(others >= 3 && cut_off >= 1, "{others} go on, {cut_off} were cut off");
    let mark = kept.service.mark();
    limit_descriptors(&kept, 1024);
    kept.service.await_since(mark, "a worker is there again", |line| line["message"] == "worker ready");
    assert_eq!(kept.service.count_since(0, "can't be kept"), 1);
}

/// Only what is kept can go to another worker; the rest is finished, once all that was sent is answered.
#[test]
fn a_worker_that_leaves_finishes_what_can_not_be_kept_and_waits_for_nobody() {
    // Refused when they were young, or asked for only now.
    for keep_after in ["0s", "1h"] {
        let config = format!(
            "processes = 2\n[limits]\nqueue_wait = \"60s\"\n[timeouts]\nkeep_after = \"{keep_after}\"\ndrain = \"10m\""
        );
        let kept = Kept::start(&config);
        limit_descriptors(&kept, kept.without + 3);
        let mut wires: Vec<Wire> = (0..12).map(|_| kept.service.connect()).collect();
        for wire in &mut wires {
            assert_eq!(wire.call("echo", json!(0))["result"], 0);
        }
        if keep_after == "0s" {
            kept.service.await_text(0, "can't be kept");
        }
        let text = "x".repeat(500_000);
        for wire in &mut wires {
            wire.request("echo", &json!(1));
            wire.request("echo", &json!(text));
        }
        let mark = kept.service.mark();
        kept.service.signal(Signal::SIGTTOU);
        for wire in &mut wires {
            for expected in [json!(1), json!(text)] {
                let answer = wire.receive();
                // One that comes when it is known that its connection is kept nowhere is not run.
                assert!(answer["result"] == expected || code(&answer) == -32000, "{answer:.200}");
            }
        }
        kept.service.await_text(mark, "worker ended");
        assert_eq!(kept.service.worker_pids().len(), 1);
    }
}

/// Waits until the workers' shares of these connections are as even as is promised: the most at 1.3 times the mean, or the
/// mean and one.
fn await_balance(wires: &mut [Wire], workers: usize) -> Vec<usize> {
    let until = Instant::now() + PATIENCE;
    loop {
        let mut shares = std::collections::BTreeMap::<i32, usize>::new();
        for wire in wires.iter_mut() {
            *shares.entry(worker_pid(wire)).or_default() += 1;
        }
        let shares: Vec<usize> = shares.into_values().collect();
        let most = shares.iter().max().copied().unwrap_or_default();
        let sum: usize = shares.iter().sum();
        if shares.len() == workers && (most * workers * 10 <= sum * 13 || most * workers <= sum + workers) {
            return shares;
        }
        assert!(Instant::now() < until, "{shares:?}");
    }
}

#[test]
fn a_worker_that_is_added_gets_its_share_of_long_lived_connections() {
    let kept = Kept::start(ONE);
    let mut wires = kept.connect(30);
    for workers in [2, 3] {
        kept.service.signal(Signal::SIGTTIN);
        await_balance(&mut wires, workers);
    }
    kept.service.signal(Signal::SIGTTOU);
    kept.service.await_log("worker ended");
    await_balance(&mut wires, 2);
    kept.await_kept(30 + DESCRIPTORS_OF_A_WORKER);
}

/// Its line, its arena, and what its poller waits in.
const DESCRIPTORS_OF_A_WORKER: usize = 3;

#[test]
fn a_worker_that_dies_while_it_adopts_leaves_all_to_the_next() {
    let kept = Kept::start(ONE);
    let mut wires = kept.connect(5);
    // The first two replacements are killed as soon as they can be: before, while or after they adopt.
    for _ in 0..2 {
        let mark = kept.service.mark();
        let pid = worker_pid(&mut wires[0]);
        kill(pid);
        let next = kept.service.await_since(mark, "the next is ready", |line| {
            line["message"] == "worker ready" && pid_in(line) != pid
        });
        kill(pid_in(&next));
        for (index, wire) in wires.iter_mut().enumerate() {
            assert_eq!(wire.call("echo", json!(index))["result"], index);
        }
    }
}

/// Calls in pipelines of this depth, each with a text of its own, until told to stop; how many were answered rightly and
/// how many with the worker's end.
fn call_without_pause(wire: &mut Wire, client: usize, deep: usize, over: &Over) -> (usize, usize) {
    let (mut right, mut crashed) = (0, 0);
    for round in 0.. {
        if over.is_so() {
            break;
        }
        let text = |call: usize| format!("client {client}, round {round}, call {call}");
        let requests: Vec<u8> = (0..deep)
            .flat_map(|call| framed(&json!({ "in": "echo", "params": text(call) }).to_string()))
            .collect();
        wire.send_bytes(&requests);
        for call in 0..deep {
            let answer = wire.receive();
            if answer["result"] == text(call) {
                right += 1;
            } else {
                self::crashed(&answer, "echo", "SIGKILL");
                crashed += 1;
            }
        }
    }
    (right, crashed)
}

#[test]
fn every_call_gets_its_own_answer_while_workers_are_killed_all_the_time() {
    let kept = Kept::start("processes = 3\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"");
    let wires = kept.connect(24);
    let over = Over::default();
    let counts: Vec<(usize, usize)> = std::thread::scope(|scope| {
        let _told = over.at_the_end();
        let call = |(client, mut wire)| {
            let over = &over;
            scope.spawn(move || call_without_pause(&mut wire, client, [1, 16][client % 2], over))
        };
        let clients: Vec<_> = wires.into_iter().enumerate().map(call).collect();
        for round in 0..20 {
            let mark = kept.service.mark();
            let pids = kept.service.worker_pids();
            kill(pids[round % pids.len()]);
            let is_new = |line: &Value| line["message"] == "worker ready" && !pids.contains(&pid_in(line));
            kept.service.await_since(mark, "another is ready", is_new);
        }
        over.say();
        clients.into_iter().map(|client| client.join().expect("every answer was right")).collect()
    });
    let crashed: usize = counts.iter().map(|(_, crashed)| crashed).sum();
    // A worker runs at most one call on each of its threads.
    assert!(crashed <= 20 * 4, "{counts:?}");
    assert!(counts.iter().all(|(right, _)| *right > 0), "{counts:?}");
}
