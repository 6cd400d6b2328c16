//! Clients that leave in the middle, never read or never stop: nobody else is harmed, and nobody spins.

use crate::support::measure::{assert_rests, descriptors};
use crate::support::{Service, Wire, await_so, code, cpu_ticks, framed};
use nix::sys::socket::{setsockopt, sockopt};
use serde_json::{Value, json};

const KIB: usize = 1024;

/// Two threads: one for what is abused, one for the call that measures the time meanwhile.
fn two_threads() -> (Service, Wire, i32) {
    let service = Service::start("processes = 1\nthreads = 2\n[limits]\noutput = \"64KiB\"");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let mut probe = service.connect();
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    (service, probe, pid)
}

/// A connection with a call that runs for longer than anybody here looks.
fn busy(service: &Service, id: &str) -> Wire {
    let mut wire = service.connect();
    wire.send(&format!(r#"{{"in":"sleep","params":{{"ms":800}}{id}}}"#));
    wire
}

/// Fails unless the worker rests for the 300 ms that a call of somebody else takes.
fn assert_nobody_spins(pid: i32, probe: &mut Wire) {
    // Its answer shows that the worker has seen what came before.
    assert_eq!(probe.call("ping", json!(1))["result"], 1);
    assert_rests(&[pid], || assert_eq!(probe.call("sleep", json!({ "ms": 300 }))["out"], "sleep"));
}

#[test]
fn a_reset_in_the_middle_of_a_call_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    busy(&service, "").reset();
    assert_nobody_spins(pid, &mut probe);
}

#[test]
fn a_reset_in_the_middle_of_a_call_with_an_id_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    busy(&service, r#","id":1"#).reset();
    assert_nobody_spins(pid, &mut probe);
}

#[test]
fn a_half_closed_client_that_waits_for_its_answer_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    let mut waiting = busy(&service, "");
    waiting.finish_sending();
    assert_nobody_spins(pid, &mut probe);
    assert_eq!(waiting.receive()["out"], "sleep");
    assert!(waiting.is_closed());
}

#[test]
fn a_half_closed_client_that_then_resets_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    let waiting = busy(&service, "");
    waiting.finish_sending();
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    waiting.reset();
    assert_nobody_spins(pid, &mut probe);
}

#[test]
fn a_client_that_pipelines_behind_a_running_call_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    let mut waiting = busy(&service, "");
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    waiting.send_bytes(&framed(r#"{"in":"ping","params":7}"#).repeat(1000));
    assert_nobody_spins(pid, &mut probe);
    waiting.send(r#"{"in":"ping","params":8}"#);
    assert_eq!(waiting.receive()["out"], "sleep");
    for _ in 0..1000 {
        assert_eq!(waiting.receive()["result"], 7);
    }
    assert_eq!(waiting.receive()["result"], 8);
}

#[test]
fn a_client_that_pipelines_and_resets_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    let mut waiting = busy(&service, "");
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    waiting.send_bytes(&framed(r#"{"in":"ping","params":7}"#).repeat(1000));
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    waiting.reset();
    assert_nobody_spins(pid, &mut probe);
}

/// A client that has asked for more than it and the kernel take, and reads nothing of it.
fn full_output(service: &Service, pid: i32, probe: &mut Wire) -> Wire {
    let mut silent = service.connect();
    setsockopt(&silent.stream, sockopt::RcvBuf, &(16 * KIB)).expect("a socket option");
    silent.send_bytes(&framed(&format!(r#"{{"in":"blob","params":{{"bytes":{}}}}}"#, 256 * KIB)).repeat(40));
    let mut quiet_calls = 0;
    for _ in 0..1000 {
        let before = cpu_ticks(pid);
        assert_eq!(probe.call("sleep", json!({ "ms": 20 }))["out"], "sleep");
        quiet_calls = if cpu_ticks(pid) == before { quiet_calls + 1 } else { 0 };
        if quiet_calls == 5 {
            return silent;
        }
    }
    panic!("the worker never rests");
}

#[test]
fn a_connection_whose_output_is_full_is_no_busy_loop() {
    let (service, mut probe, pid) = two_threads();
    let mut silent = full_output(&service, pid, &mut probe);
    silent.send(r#"{"in":"ping","params":9}"#);
    assert_nobody_spins(pid, &mut probe);
    for _ in 0..40 {
        assert_eq!(silent.receive()["result"].as_str().map(str::len), Some(256 * KIB));
    }
    assert_eq!(silent.receive()["result"], 9);
}

#[test]
fn a_connection_that_resets_with_its_output_full_is_gone_at_once() {
    let (service, mut probe, pid) = two_threads();
    let before = descriptors(pid);
    let silent = full_output(&service, pid, &mut probe);
    assert_eq!(descriptors(pid), before + 1);
    silent.reset();
    assert_nobody_spins(pid, &mut probe);
    assert_eq!(descriptors(pid), before);
}

#[test]
fn a_thousand_clients_that_vanish_while_their_calls_run_leave_nothing_behind() {
    let service = Service::start("processes = 1\nthreads = 4\n[limits]\nqueue = 2000\nqueue_wait = \"30s\"");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let mut probe = service.connect();
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    let before = descriptors(pid);
    for round in 0..10 {
        let mut wires: Vec<Wire> = (0..100).map(|_| service.connect()).collect();
        for (n, wire) in wires.iter_mut().enumerate() {
            let id = if n % 2 == 0 { String::new() } else { format!(r#","id":{n}"#) };
            wire.send(&format!(r#"{{"in":"sleep","params":{{"ms":5}}{id}}}"#));
        }
        // The worker has read all of them when it answers what came last.
        probe.send(r#"{"in":"unknown"}"#);
        assert_eq!(code(&probe.receive()), -32601, "{round}");
        wires.into_iter().for_each(Wire::reset);
    }
    await_so("what they had open is closed", || {
        assert_eq!(probe.call("ping", json!(1))["result"], 1);
        descriptors(pid) <= before
    });
    assert_eq!(service.worker_pids(), [pid], "the worker lives");
    assert_eq!(service.call("ping", json!("others"))["result"], "others");
}

#[test]
fn clients_that_connect_and_leave_in_a_loop_leave_no_descriptor_behind() {
    let service = Service::start("processes = 2\nthreads = 2");
    let pids = service.worker_pids();
    let open = || pids.iter().map(|pid| descriptors(*pid)).sum::<usize>();
    let before = open();
    let address = service.socket_address();
    let come_and_go = |client: usize| {
        for n in 0..10 {
            let mut wire = Wire::connect(address);
            match (client + n) % 5 {
                0 => assert_eq!(wire.call("ping", json!(n))["result"], n),
                1 => wire.reset(),
                2 => wire.finish_sending(),
                3 => wire.send_bytes(&[9, 0, 0]),
                _ => drop(wire),
            }
        }
    };
    for _ in 0..10 {
        std::thread::scope(|scope| {
            for client in 0..20 {
                scope.spawn(move || come_and_go(client));
            }
        });
    }
    await_so("what they had open is closed", || {
        assert_eq!(service.call("ping", json!(0))["result"], 0);
        open() <= before
    });
    assert_eq!(service.worker_pids(), pids);
}

#[test]
fn a_client_that_goes_on_sending_after_its_last_answer_gets_that_answer() {
    let (service, mut probe, pid) = two_threads();
    let before = descriptors(pid);
    let mut wire = service.connect();
    // Longer than max_message allows, and most of it is sent after the worker has given up on it.
    wire.send_bytes(&(8_u32 << 20).to_le_bytes());
    wire.send_bytes(b"{\"in\":\"ping\",\"params\":\"");
    let answer = wire.receive();
    assert_eq!(code(&answer), -32003, "{answer}");
    wire.send_bytes(&vec![b'x'; 4 << 20]);
    assert_nobody_spins(pid, &mut probe);
    assert!(wire.is_closed(), "an end, not a reset");
    drop(wire);
    await_so("what it had open is closed", || {
        assert_eq!(probe.call("ping", Value::Null)["out"], "pong");
        descriptors(pid) <= before
    });
}
