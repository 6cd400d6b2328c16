//! The most telling rows of the fault command in a short form: under load from clients that check every answer and never
//! connect again. `cargo run --release --example faults` has all of them, in full length.

mod support;

#[path = "../examples/support/load/mod.rs"]
#[allow(dead_code, unreachable_pub)] // the examples use the rest
mod load;

use std::time::{Duration, Instant};

use load::Load;
use load::content::{Failure, Work};
use load::group::{Group, Life, Reading, Sending};
use load::speech::Speech;
use load::tally::Tally;
use nix::sys::signal::Signal;
use serde_json::json;
use support::{PATIENCE, Service, send_signal};

/// Every kind of client, a few of each: what one of them meets in an hour of load, all meet in seconds.
const CLIENTS: [Group; 11] = [
    Group::new("single", 3),
    Group::new("pipelined", 3).pipelined(16),
    Group::new("out of order", 3).out_of_order(16),
    Group::new("large", 2).work(Work::Echo { bytes: 256 << 10 }).pace(Duration::from_millis(5)),
    Group::new("slow readers", 2)
        .work(Work::Blob { bytes: 1 << 20 })
        .reading(Reading::Paced { bytes: 64 << 10, every: Duration::from_millis(5) }),
    Group::new("half-closed", 2)
        .work(Work::Mixed { bytes: 40, every: 2, ms: 10 })
        .pipelined(64)
        .life(Life::HalfClosing { calls: 64 }),
    Group::new("urgent", 2).pipelined(4).sending(Sending::Urgent),
    Group::new("odd pieces", 2).pipelined(4).sending(Sending::Odd).work(Work::Echo { bytes: 900 }),
    Group::new("any framing", 10).in_any_framing(),
    Group::new("any framing, out of order", 10).out_of_order(8).in_any_framing(),
    Group::new("any framing, in odd pieces", 10)
        .pipelined(4)
        .sending(Sending::Odd)
        .work(Work::Echo { bytes: 900 })
        .in_any_framing(),
];

/// No method is to blame for deaths.
const CALM: &str = "[quarantine]\ncrashes = 0";

fn start_load(service: &Service, groups: &[Group]) -> Load {
    let load = Load::start(service.socket_address(), groups).expect("the load starts");
    assert!(load.await_begun(PATIENCE), "every client gets a first answer");
    load
}

/// Waits until many calls more have been answered: clients make them all the time, so nobody hangs.
fn await_progress(load: &Load, calls: u64) {
    let (wanted, until) = (load.right() + calls, Instant::now() + PATIENCE);
    while load.right() < wanted {
        assert!(Instant::now() < until, "no progress: {:?}", load.look(complaints));
        std::thread::park_timeout(Duration::from_millis(2));
    }
}

fn complaints(tallies: &[Tally]) -> Vec<String> {
    tallies.iter().flat_map(Tally::complaints).collect()
}

/// Nothing refused, wrong, missing or closed, and no error but those that are expected.
fn assert_unharmed(service: &Service, load: Load, is_expected: impl Fn(&Failure) -> bool) {
    let tallies = load.finish(PATIENCE).expect("the load ends");
    let mut harm = complaints(&tallies);
    harm.extend(tallies.iter().flat_map(Tally::silent));
    for tally in &tallies {
        let unexpected = tally.errors.iter().filter(|(failure, _)| !is_expected(failure));
        harm.extend(unexpected.map(|(failure, count)| format!("{}: {failure:?} ×{count}", tally.group)));
    }
    assert!(harm.is_empty(), "{harm:#?}\n{}", service.log_so_far());
}

fn was_killed(failure: &Failure) -> bool {
    failure.code == -32002 && failure.cause == "SIGKILL" && !failure.method.is_empty()
}

#[test]
fn workers_killed_again_and_again_close_no_connection() {
    let service = Service::start(&format!("processes = 3\nthreads = 4\n{CALM}"));
    let load = start_load(&service, &CLIENTS);
    // Longer than it takes until all connections are kept.
    await_progress(&load, 3_000);
    for round in 0..8 {
        let mark = service.mark();
        let pids = service.worker_pids();
        send_signal(pids[round % pids.len()], Signal::SIGKILL);
        service.await_text(mark, "worker died");
        // Or the next one to be killed may not have said its first word yet, and nobody would call it a worker.
        service.await_text(mark, "worker ready");
        await_progress(&load, 300);
    }
    assert_unharmed(&service, load, was_killed);
}

#[test]
fn reloads_under_load_fail_no_call() {
    let service = Service::start("processes = 2\nthreads = 4");
    let visitors = Group::new("visitors", 2).pace(Duration::from_millis(10)).life(Life::Visit { calls: 1 });
    let load = start_load(&service, &[&CLIENTS[..], &[visitors]].concat());
    for _ in 0..2 {
        let mark = service.mark();
        service.signal(Signal::SIGHUP);
        service.await_text(mark, "reloaded");
        await_progress(&load, 300);
    }
    assert_unharmed(&service, load, |_| false);
}

#[test]
fn a_worker_that_is_told_to_end_under_load_fails_no_call() {
    let service = Service::start("processes = 2\nthreads = 4");
    let load = start_load(&service, &CLIENTS);
    for round in 0..2 {
        let mark = service.mark();
        let pids = service.worker_pids();
        send_signal(pids[round % pids.len()], Signal::SIGTERM);
        service.await_text(mark, "worker ended");
        await_progress(&load, 300);
    }
    assert_unharmed(&service, load, |_| false);
}

/// Calls that end no other way than by an error, one of each speech after the other.
fn doomed(name: &'static str, method: &'static str, params: &'static str) -> Group {
    Group::new(name, Speech::ALL.len())
        .in_any_framing()
        .work(Work::Fixed { method, params, result: None })
        .calling_over(Duration::from_secs(1))
        .pace(Duration::from_secs(60))
}

/// The errors of the last group, which must have brought nothing else; none but `is_expected` of the others.
fn assert_doomed(service: &Service, load: Load, code: i64, is_expected: impl Fn(&Failure) -> bool) {
    let tallies = load.finish(PATIENCE).expect("the load ends");
    let mut harm = complaints(&tallies);
    harm.extend(tallies.iter().flat_map(Tally::silent));
    let (doomed, others) = tallies.split_last().expect("groups");
    harm.extend(
        others.iter().filter(|tally| !tally.errors.keys().all(&is_expected)).map(Tally::errors_as_text),
    );
    assert!(harm.is_empty(), "{harm:#?}\n{}", service.log_so_far());
    let calls: u64 = Speech::ALL.iter().map(|speech| speech.calls()).sum();
    assert_eq!(doomed.errors_of(code), calls, "{}", doomed.errors_as_text());
    assert_eq!((doomed.all_errors(), doomed.right), (calls, 0));
}

#[test]
fn who_takes_a_worker_down_is_told_so_in_each_framing() {
    let service = Service::start(&format!("processes = 3\nthreads = 4\n{CALM}"));
    // By then its connection is one that is kept.
    let crash = doomed("crash", "crash", r#"{"how":"segv"}"#).after(Duration::from_millis(400));
    let load = start_load(&service, &[CLIENTS[8], CLIENTS[9], crash]);
    assert_doomed(&service, load, -32002, |failure| failure.code == -32002 && failure.cause == "SIGSEGV");
}

#[test]
fn whose_time_is_up_is_told_so_in_each_framing() {
    let config = "processes = 2\nthreads = 24\n[methods.hang]\ntimeout = \"50ms\"";
    let service = Service::start(config);
    let load = start_load(&service, &[CLIENTS[8], CLIENTS[9], doomed("hang", "hang", "[]")]);
    assert_doomed(&service, load, -32001, |_| false);
}

#[test]
fn garbage_over_a_whole_arena_harms_nobody_else() {
    let service = Service::start(&format!("processes = 2\nthreads = 2\n{CALM}"));
    let load = start_load(&service, &[Group::new("clients", 12).pipelined(4)]);
    for seed in 0..3 {
        let mark = service.mark();
        // Its caller is one of those who may be harmed.
        let mut caller = service.connect();
        caller.request("scribble", &json!({ "seed": seed }));
        service.await_text(mark, "worker died");
        service.await_text(mark, "worker ready");
        let answer = service.call("echo", json!(seed));
        assert_eq!(answer["result"], seed, "{answer}");
    }
    let tallies = load.finish(PATIENCE).expect("the load ends");
    assert_eq!((tallies[0].wrong, tallies[0].missing), (0, 0), "{:?}", complaints(&tallies));
    assert!(!service.log_so_far().contains("panicked"), "{}", service.log_so_far());
}
