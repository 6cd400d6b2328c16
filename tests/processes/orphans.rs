//! The supervisor is killed by SIGKILL: nothing it started stays behind, and nothing that was begun is lost.

use std::net::{SocketAddr, TcpListener};
use std::time::{Duration, Instant};

use crate::support::proc::{Process, timed};
use crate::support::{PATIENCE, Service, await_asleep, children_of, rig};
use nix::sys::signal::Signal;
use serde_json::json;

/// Far above what an end takes that waits for nothing, far below `timeouts.drain` as it is by default.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Kills the supervisor; its template and its workers that were ready.
fn kill_supervisor(service: &mut Service) -> Vec<Process> {
    service.adopted_workers();
    let family = children_of(service.pid()).into_iter().map(Process::of).collect();
    service.signal(Signal::SIGKILL);
    service.await_end();
    family
}

fn await_all(family: &[Process]) {
    for process in family {
        process.await_end();
    }
}

/// How long it takes from now until `address` can be bound.
fn time_until_bound(address: SocketAddr) -> Duration {
    let begun = Instant::now();
    while let Err(error) = TcpListener::bind(address) {
        assert!(begun.elapsed() < PATIENCE, "{address} can't be bound: {error}");
        std::thread::yield_now();
    }
    begun.elapsed()
}

#[test]
fn the_template_and_idle_workers_end_and_idle_connections_are_closed() {
    let mut service = Service::start("processes = 2\nthreads = 1");
    let (mut first, mut second) = (service.connect_to(0), service.connect_to(1));
    let (family, took) = timed(|| {
        let family = kill_supervisor(&mut service);
        await_all(&family);
        family
    });
    assert_eq!(family.len(), 3, "a template and two workers");
    assert!(took < AT_ONCE, "{took:?}");
    assert!(first.is_closed() && second.is_closed());
}

#[test]
fn a_worker_finishes_its_running_call_and_then_ends() {
    let mut service = Service::start("processes = 1\nthreads = 2");
    let (mut busy, mut idle) = (service.connect(), service.connect());
    idle.call("ping", json!(1));
    busy.request("sleep", &json!({ "ms": 300 }));
    let family = kill_supervisor(&mut service);
    assert!(idle.is_closed());
    assert_eq!(busy.receive()["out"], "sleep");
    assert!(busy.is_closed());
    let ((), took) = timed(|| await_all(&family));
    assert!(took < AT_ONCE, "it ended {took:?} after the last answer");
}

#[test]
fn calls_that_wait_for_a_thread_are_answered_too() {
    let mut service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    for id in 0..5 {
        wire.send(&json!({ "in": "sleep", "params": { "ms": 20 }, "id": id }).to_string());
    }
    let family = kill_supervisor(&mut service);
    for id in 0..5 {
        assert_eq!(wire.receive()["id"], id);
    }
    assert!(wire.is_closed());
    await_all(&family);
}

#[test]
fn a_call_that_does_not_end_is_cut_off_when_drain_is_up() {
    let mut service = Service::start("processes = 2\nthreads = 1\n[timeouts]\ndrain = \"300ms\"");
    let mut busy = service.connect_to(1);
    busy.request("hang", &json!(null));
    let (family, took) = timed(|| {
        let family = kill_supervisor(&mut service);
        await_all(&family);
        family
    });
    assert_eq!(family.len(), 3);
    assert!(took >= Duration::from_millis(300) && took < AT_ONCE, "{took:?}");
    assert_eq!(busy.receive()["result"]["data"]["cause"], "drained");
    assert!(busy.is_closed());
    let log = service.whole_log();
    assert!(
        log.iter().any(|line| line["message"] == "calls still run after timeouts.drain; ended"),
        "{log:?}"
    );
}

#[test]
fn the_address_is_free_at_once_even_while_a_call_still_runs() {
    let mut service = Service::start("processes = 4\nthreads = 1");
    let address = service.socket_address();
    let mut busy = service.connect();
    busy.call("ping", json!(1));
    busy.request("sleep", &json!({ "ms": 500 }));
    let (family, took) = timed(|| {
        let family = kill_supervisor(&mut service);
        time_until_bound(address);
        family
    });
    println!("the address was free {took:?} after the kill");
    assert!(took < AT_ONCE, "{took:?}");
    let successor = Service::start(&format!("listen = [\"{address}\"]\nprocesses = 1\nthreads = 1"));
    assert_eq!(successor.call("ping", json!(2))["result"], 2);
    assert_eq!(busy.receive()["out"], "sleep");
    await_all(&family);
}

#[test]
fn a_template_that_hangs_in_preload_ends() {
    let mut program = rig();
    program.env("RIG_PRELOAD", "hang");
    let mut service = Service::launch(program, "processes = 1");
    service.await_log("RIG_PRELOAD hangs");
    let family = kill_supervisor(&mut service);
    assert_eq!(family.len(), 1);
    await_all(&family);
}

#[test]
fn a_worker_that_hangs_before_it_is_ready_ends() {
    let mut program = rig();
    program.env("RIG_WORKER_START", "hang");
    let mut service = Service::launch(program, "processes = 1\n[timeouts]\ndrain = \"300ms\"");
    let told = service.await_log("RIG_WORKER_START hangs");
    let pid = told["message"].as_str().and_then(|told| told.rsplit(' ').next()?.parse().ok());
    let worker = Process::of(pid.expect("its pid"));
    kill_supervisor(&mut service);
    let ((), took) = timed(|| worker.await_end());
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn a_worker_that_hangs_in_its_stop_hook_ends() {
    let mut program = rig();
    program.env("RIG_WORKER_STOP", "hang");
    let mut service =
        Service::start_with(program, "processes = 1\nthreads = 1\n[timeouts]\ndrain = \"100ms\"");
    let family = kill_supervisor(&mut service);
    service.await_log("RIG_WORKER_STOP hangs");
    await_all(&family);
}

#[test]
fn a_worker_that_was_draining_already_ends_too() {
    let mut service = Service::start("processes = 2\nthreads = 1\n[timeouts]\ndrain = \"300ms\"");
    let mut busy = service.connect_to(1);
    busy.request("hang", &json!(null));
    // Before it runs it would go elsewhere.
    await_asleep(service.workers()[&1]);
    let mark = service.mark();
    service.signal(Signal::SIGTTOU);
    service.await_text(mark, "one worker fewer");
    let family = kill_supervisor(&mut service);
    await_all(&family);
    assert_eq!(busy.receive()["result"]["data"]["cause"], "drained");
    assert!(busy.is_closed());
}
