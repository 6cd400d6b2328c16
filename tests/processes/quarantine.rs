//! A method that takes workers down is refused, it alone, until one call has shown that it is well again.
//!
//! A connection is kept before a handler first runs on it: each call that went with its worker is answered -32002, and
//! no client here has to connect anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use crate::support::proc::{copy_for_everyone, worker_pid};
use crate::support::{
    Folder, Over, PATIENCE, Service, Wire, await_asleep, await_gone, await_so, code, rig, send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const IN_QUARANTINE: i64 = -32004;
const CRASHED: i64 = -32002;

fn crash(how: &str) -> Value {
    json!({ "how": how })
}

/// Calls `crash` on a new connection, which goes on, and sees the worker go, and be replaced.
fn take_a_worker_down(service: &Service, how: &str) -> Value {
    let mark = service.mark();
    let mut wire = service.connect();
    let answer = wire.call("crash", crash(how));
    assert_eq!(code(&answer), CRASHED, "{how}: {answer}");
    let died = service.await_text(mark, "worker died");
    service.await_refill(mark, died["slot"].as_u64().expect("a slot"));
    assert_eq!(wire.call("ping", json!(how))["result"], how);
    died
}

fn is_in_quarantine(answer: &Value) -> bool {
    answer["out"] == "error" && code(answer) == IN_QUARANTINE
}

/// The answer to the first call that is not refused. Asked again at once: a trial goes to whoever asks.
fn first_that_runs(wire: &mut Wire, params: &Value) -> Value {
    let until = Instant::now() + PATIENCE;
    while Instant::now() < until {
        let answer = wire.call("crash", params.clone());
        if !is_in_quarantine(&answer) {
            return answer;
        }
        thread::yield_now();
    }
    panic!("`crash` stays in quarantine");
}

/// A client of a method that does no harm.
struct Innocent {
    method: &'static str,
    params: Value,
    /// Answers that were its method's own.
    answered: AtomicU64,
    refused: AtomicU64,
    /// Answers that it went with a worker.
    lost: AtomicU64,
}

impl Innocent {
    fn new(method: &'static str, params: Value) -> Self {
        Self {
            method,
            params,
            answered: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    fn work(&self, service: std::net::SocketAddr, over: &Over) {
        let mut wire = Wire::connect(service);
        while !over.is_so() {
            let answer = wire.call(self.method, self.params.clone());
            let counter = if is_in_quarantine(&answer) {
                &self.refused
            } else if answer["out"] == "error" && code(&answer) == CRASHED {
                // It ran beside the one that took its worker down.
                &self.lost
            } else {
                &self.answered
            };
            counter.fetch_add(1, Ordering::SeqCst);
        }
    }

    fn answered(&self) -> u64 {
        self.answered.load(Ordering::SeqCst)
    }
}

#[test]
fn a_method_that_crashes_every_time_is_alone_in_quarantine_beside_seven_busy_innocent_ones() {
    let service = Service::start("processes = 2\nthreads = 8");
    let address = service.socket_address();
    let innocents = [
        Innocent::new("sleep", json!({ "ms": 1 })),
        Innocent::new("spin", json!({ "us": 100 })),
        Innocent::new("mix", json!({ "ms": 1, "us": 50 })),
        Innocent::new("flaky", json!({ "every": 10, "ms": 3 })),
        Innocent::new("fail", json!({ "code": 7, "message": "as asked" })),
        Innocent::new("blob", json!({ "bytes": 10_000 })),
        Innocent::new("rand", json!(null)),
    ];
    let over = Over::default();
    thread::scope(|threads| {
        let _told = over.at_the_end();
        for innocent in &innocents {
            threads.spawn(|| innocent.work(address, &over));
        }
        // One whose connection was accepted the moment before may go with the worker, before that has said a word of it.
        await_so("each has been served", || innocents.iter().all(|innocent| innocent.answered() > 0));
        let mark = service.mark();
        for how in ["segv", "exit", "abort"] {
            let died = take_a_worker_down(&service, how);
            assert_eq!(died["culprit"], "crash", "{died}");
        }
        let told = service.await_text(mark, "in quarantine");
        assert_eq!(
            (told["level"].as_str(), told["method"].as_str()),
            (Some("WARN"), Some("crash")),
            "{told}"
        );

        let mut wire = service.connect();
        let large = json!({ "how": "segv", "padding": "x".repeat(40_000) });
        for params in [crash("segv"), crash("none"), large] {
            let answer = wire.call("crash", params);
            assert_eq!(code(&answer), IN_QUARANTINE, "{answer}");
            let wait = answer["result"]["data"]["retry_after_ms"].as_u64().expect("a time");
            assert!((1..=30_000).contains(&wait), "{answer}");
        }
        let before: Vec<u64> = innocents.iter().map(Innocent::answered).collect();
        await_so("all go on", || {
            assert_eq!(code(&wire.call("crash", crash("segv"))), IN_QUARANTINE);
            innocents.iter().zip(&before).all(|(innocent, before)| innocent.answered() >= before + 20)
        });
        over.say();
        assert_eq!(service.count_since(mark, "worker died"), 3);
        assert_eq!(service.count_since(mark, "in quarantine for"), 1);
    });
    for innocent in &innocents {
        assert_eq!(innocent.refused.load(Ordering::SeqCst), 0, "{}", innocent.method);
        let lost = innocent.lost.load(Ordering::SeqCst);
        assert!(lost <= 3, "{}: {lost} calls, more than workers died", innocent.method);
    }
}

#[test]
fn every_way_to_take_a_worker_down_counts_and_names_whom_it_can() {
    for (how, culprit) in [
        ("segv", json!("crash")),
        ("abort", json!("crash")),
        ("exit", json!("crash")),
        ("stack", json!("crash")),
        // From outside: what ran each time is all there is.
        ("oom", Value::Null),
    ] {
        let service = Service::start("processes = 1\nthreads = 2\n[quarantine]\ncrashes = 2");
        let mark = service.mark();
        for _ in 0..2 {
            let died = take_a_worker_down(&service, how);
            assert_eq!(died["culprit"], culprit, "{how}");
            let fault = if how == "stack" { json!("stack overflow") } else { Value::Null };
            assert_eq!(died["fault"], fault, "{how}");
        }
        assert_eq!(service.await_text(mark, "in quarantine")["method"], "crash", "{how}");
        // The replacement was not there when it began, and refuses its first call.
        assert_eq!(code(&service.call("crash", crash(how))), IN_QUARANTINE, "{how}");
    }
}

#[test]
fn of_several_threads_only_the_culprits_method_counts() {
    let service = Service::start("processes = 1\nthreads = 4\n[quarantine]\ncrashes = 3");
    for how in ["stack", "segv", "exit"] {
        let mark = service.mark();
        let mut beside = [service.connect(), service.connect()];
        for wire in &mut beside {
            wire.call("ping", json!(1));
            wire.request("sleep", &json!({ "ms": 60_000 }));
        }
        // Ordered behind a call that takes a thread, so that the others have theirs by now.
        let mut wire = service.connect();
        wire.call("sleep", json!({ "ms": 20 }));
        assert_eq!(code(&wire.call("crash", crash(how))), CRASHED);
        for wire in &mut beside {
            assert_eq!(code(&wire.receive()), CRASHED);
        }
        let died = service.await_text(mark, "worker died");
        assert_eq!(died["culprit"], "crash", "{died}");
        let running = died["running"].as_str().expect("what ran");
        assert_eq!(running.matches("sleep for").count(), 2, "{died}");
        assert_eq!(running.matches("crash for").count(), 1, "{died}");
        service.await_refill(mark, 0);
    }
    let mut wire = service.connect();
    assert_eq!(wire.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
    assert_eq!(code(&wire.call("crash", crash("none"))), IN_QUARANTINE);
}

#[test]
fn one_call_in_the_whole_service_tries_it_again_and_one_that_comes_back_releases_it() {
    let service =
        Service::start("processes = 4\nthreads = 1\n[quarantine]\ncrashes = 2\ncool_down = \"500ms\"");
    for _ in 0..2 {
        take_a_worker_down(&service, "segv");
    }
    let mut wires: Vec<Wire> = (0..4).map(|slot| service.connect_to(slot)).collect();
    let mark = service.mark();
    // Callers at every worker want it, and it would crash any of them.
    let over = Over::default();
    thread::scope(|threads| {
        let _told = over.at_the_end();
        let callers: Vec<_> = wires
            .iter_mut()
            .map(|wire| {
                let over = &over;
                threads.spawn(move || {
                    while !over.is_so() {
                        let answer = wire.call("crash", crash("segv"));
                        if code(&answer) == CRASHED {
                            return 1;
                        }
                        assert_eq!(code(&answer), IN_QUARANTINE, "{answer}");
                    }
                    0
                })
            })
            .collect();
        service.await_text(mark, "may be tried");
        service.await_text(mark, "in quarantine for");
        over.say();
        let crashed: u32 = callers.into_iter().map(|caller| caller.join().expect("as it should")).sum();
        assert_eq!(crashed, 1);
    });
    let died = service.await_text(mark, "worker died");
    assert_eq!((died["culprit"].as_str(), service.count_since(mark, "worker died")), (Some("crash"), 1));
    service.await_refill(mark, died["slot"].as_u64().expect("a slot"));

    let mut wires: Vec<Wire> = (0..4).map(|slot| service.connect_to(slot)).collect();
    let mark = service.mark();
    assert_eq!(first_that_runs(&mut wires[2], &crash("none"))["out"], "crash");
    service.await_text(mark, "released");
    for wire in &mut wires {
        assert_eq!(first_that_runs(wire, &crash("none"))["out"], "crash");
    }
    // How often the trial was granted depends on who had asked before; it moves on where nobody comes for it.
    assert_eq!(service.count_since(mark, "released"), 1);
    assert_eq!(service.count_since(mark, "worker died"), 0);
}

#[test]
fn a_trial_that_goes_with_its_worker_is_for_another() {
    let service =
        Service::start("processes = 2\nthreads = 1\n[quarantine]\ncrashes = 1\ncool_down = \"200ms\"");
    take_a_worker_down(&service, "abort");
    let mut wires = [service.connect_to(0), service.connect_to(1)];
    let mark = service.mark();
    // It asks, and never comes back for it.
    assert_eq!(code(&wires[0].call("crash", crash("none"))), IN_QUARANTINE);
    assert_eq!(service.await_text(mark, "may be tried")["slot"], 0);
    send_signal(worker_pid(&mut wires[0]), Signal::SIGKILL);
    assert_eq!(first_that_runs(&mut wires[1], &crash("none"))["out"], "crash");
    service.await_text(mark, "released");
}

#[test]
fn a_trial_that_no_caller_comes_for_moves_to_where_callers_are() {
    let service =
        Service::start("processes = 2\nthreads = 1\n[quarantine]\ncrashes = 1\ncool_down = \"200ms\"");
    take_a_worker_down(&service, "abort");
    let mut wires = [service.connect_to(0), service.connect_to(1)];
    let mark = service.mark();
    assert_eq!(code(&wires[0].call("crash", crash("none"))), IN_QUARANTINE);
    assert_eq!(service.await_text(mark, "may be tried")["slot"], 0);
    assert_eq!(first_that_runs(&mut wires[1], &crash("none"))["out"], "crash");
    let tried = service.await_since(mark, "a second grant", |line| {
        line["slot"] == 1 && line["message"].as_str().is_some_and(|text| text.contains("may be tried"))
    });
    assert_eq!(tried["method"], "crash");
}

#[test]
fn a_call_that_waited_since_before_the_quarantine_is_not_run() {
    let service = Service::start("processes = 2\nthreads = 1\n[quarantine]\ncrashes = 1");
    let mut first = service.connect_to(0);
    let mut waiting = service.connect_to(0);
    let mut other = service.connect_to(1);
    let mark = service.mark();
    first.request("sleep", &json!({ "ms": 500 }));
    // It has the only thread.
    await_asleep(service.workers()[&0]);
    waiting.request("crash", &crash("segv"));
    let called = code(&other.call("crash", crash("segv")));
    service.await_text(mark, "in quarantine");
    let waited = code(&waiting.receive());
    // Where a quarter of a second has passed between the two the one that waits has gone to the idle worker, and is the first.
    assert!(
        [(CRASHED, IN_QUARANTINE), (IN_QUARANTINE, CRASHED)].contains(&(called, waited)),
        "{called}, {waited}"
    );
    assert_eq!(first.receive()["out"], "sleep");
    assert_eq!(service.count_since(mark, "worker died"), 1);
}

#[test]
fn no_method_is_ever_refused_where_it_is_turned_off() {
    let service = Service::start("processes = 1\nthreads = 1\n[quarantine]\ncrashes = 0");
    for _ in 0..5 {
        take_a_worker_down(&service, "exit");
    }
    assert_eq!(service.call("crash", crash("none"))["out"], "crash");
}

#[test]
fn a_method_that_ran_in_workers_which_were_all_killed_at_once_is_not_refused() {
    let service = Service::start("processes = 4\nthreads = 1");
    let mut wires: Vec<Wire> = (0..4).map(|slot| service.connect_to(slot)).collect();
    let workers = service.workers();
    for wire in &mut wires {
        wire.request("sleep", &json!({ "ms": 60_000 }));
    }
    for pid in workers.values() {
        // Its handler has begun.
        await_asleep(*pid);
    }
    let mark = service.mark();
    for slot in 0..3 {
        send_signal(workers[&slot], Signal::SIGKILL);
    }
    for slot in 0..3 {
        let died = service
            .await_since(mark, "its death", |line| line["message"] == "worker died" && line["slot"] == slot);
        assert!(died["running"].as_str().is_some_and(|ran| ran.contains("sleep for")), "{died}");
        service.await_refill(mark, slot);
    }
    assert_eq!(service.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
    assert_eq!(service.count_since(mark, "in quarantine"), 0);
}

/// Asks for a reload, and waits until it is done and the workers before it have ended.
fn reload(service: &Service) -> usize {
    let (mark, before) = (service.mark(), service.worker_pids());
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
    for pid in before {
        assert!(await_gone(pid, PATIENCE), "worker {pid} stays");
    }
    mark
}

fn await_release(service: &Service, mark: usize, why: &str) {
    let told = service.await_text(mark, "method released from quarantine");
    assert_eq!(told["message"], format!("method released from quarantine: {why}"), "{told}");
    assert_eq!(told["method"], "crash", "{told}");
}

#[test]
fn a_reload_that_changes_the_methods_table_clears_it_and_one_that_changes_nothing_does_not() {
    let config = "listen = [\"127.0.0.1:0\"]\nprocesses = 2\nthreads = 1\n[quarantine]\ncrashes = 1\n\
                  [log]\nlevel = \"debug\"\nformat = \"json\"\n";
    let service = Service::start(config);
    take_a_worker_down(&service, "segv");
    assert_eq!(code(&service.call("crash", crash("none"))), IN_QUARANTINE);

    let mark = reload(&service);
    assert_eq!(code(&service.call("crash", crash("none"))), IN_QUARANTINE);
    assert_eq!(service.count_since(mark, "released"), 0);

    for (table, released) in
        [("[methods.sleep]\ntimeout = \"9s\"\n", 0), ("[methods.crash]\ntimeout = \"9s\"\n", 1)]
    {
        std::fs::write(service.folder().join("config.toml"), format!("{config}{table}")).expect("its folder");
        let mark = reload(&service);
        if released == 1 {
            await_release(&service, mark, "a reload changed its [methods] table");
        }
        assert_eq!(service.count_since(mark, "released"), released, "{table}");
    }
    for slot in 0..2 {
        assert_eq!(service.connect_to(slot).call("crash", crash("none"))["out"], "crash");
    }
}

#[test]
fn a_reload_that_brings_a_new_program_clears_what_the_old_one_did() {
    let folder = Folder::new();
    let program = copy_for_everyone(&rig(), folder.path());
    let service = Service::start_with(program, "processes = 1\nthreads = 1\n[quarantine]\ncrashes = 1");
    take_a_worker_down(&service, "segv");
    assert_eq!(code(&service.call("crash", crash("none"))), IN_QUARANTINE);
    let next = Folder::new();
    copy_for_everyone(&rig(), next.path());
    std::fs::rename(next.path().join("program"), folder.path().join("program")).expect("in its place");
    let mark = reload(&service);
    await_release(&service, mark, "a reload brought a new program");
    service.await_text(mark, "the supervisor runs the new program");
    assert_eq!(service.call("crash", crash("none"))["out"], "crash");
}
