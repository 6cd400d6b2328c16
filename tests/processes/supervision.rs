//! The supervisor keeps its slots filled: who is whose child, what a crash costs, who is reaped.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::process::Command;

use crate::support::kept::Kept;
use crate::support::proc::{
    Process, after_setup, is_a_duration, kill_at_rest, parent_of, pid_in, status, worker_pid, zombies_of,
};
use crate::support::{Over, Service, Wire, await_so, children_named, children_of, code, rig, send_signal};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde_json::{Value, json};

#[test]
fn each_slot_has_a_worker_that_is_the_supervisors_own_child() {
    let service = Service::start("processes = 3\nthreads = 2");
    let workers = service.adopted_workers();
    assert_eq!(workers.keys().copied().collect::<Vec<_>>(), [0, 1, 2]);
    for pid in workers.values() {
        assert_eq!(parent_of(*pid), Some(service.pid()), "worker {pid}");
    }
    assert_eq!(children_named(service.pid(), "tine-worker").len(), 3);
    assert_eq!(children_named(service.pid(), "tine-template"), [service.template()]);
}

#[test]
fn the_supervisor_has_one_thread_and_sleeps_while_others_work() {
    let service = Service::start("processes = 1\nthreads = 2");
    assert_eq!(status(service.pid(), "Threads").as_deref(), Some("1"));
    let mut wire = service.connect();
    let switches =
        || ["voluntary_ctxt_switches", "nonvoluntary_ctxt_switches"].map(|it| status(service.pid(), it));
    // The first round or two may see it finish the start.
    let a_quiet_round = (0..5).any(|_| {
        let before = switches();
        for number in 0..200 {
            assert_eq!(wire.call("ping", json!(number))["result"], number);
        }
        wire.call("sleep", json!({ "ms": 300 }));
        before == switches()
    });
    assert!(a_quiet_round, "the supervisor woke up in every round: {:?}", switches());
}

#[test]
fn processes_0_is_one_worker_for_each_cpu_that_may_be_used() {
    // A child takes over the affinity of the thread that starts it; this thread is for that alone.
    let service = std::thread::spawn(|| {
        let allowed = sched_getaffinity(Pid::from_raw(0)).expect("own affinity");
        let first = (0..CpuSet::count()).find(|cpu| allowed.is_set(*cpu) == Ok(true)).expect("a CPU");
        let mut one = CpuSet::new();
        one.set(first).expect("a CPU's number");
        sched_setaffinity(Pid::from_raw(0), &one).expect("fewer CPUs are always allowed");
        Service::start("processes = 0\nthreads = 1")
    });
    let service = service.join().expect("it starts");
    assert_eq!(service.adopted_workers().len(), 1);
    assert_eq!(service.worker_pids().len(), 1);
}

/// What the log says of a worker that died while it ran `crash`.
fn assert_told_of_crash(line: &Value, slot: u64, pid: i32, cause: &str, peer: SocketAddr) {
    assert_eq!(line["level"], "ERROR", "{line}");
    assert_eq!((line["slot"].as_u64(), pid_in(line)), (Some(slot), pid), "{line}");
    assert!(is_a_duration(line["uptime"].as_str().expect("an uptime")), "{line}");
    let found = line["cause"].as_str().expect("a cause");
    assert!(found == cause || found == format!("{cause} (core dumped)"), "expected {cause}, found {line}");
    // What kills from outside tells nobody whose fault it was.
    let culprit = if cause == "SIGKILL" { Value::Null } else { json!("crash") };
    assert_eq!(line["culprit"], culprit, "{line}");
    let running = line["running"].as_str().expect("what it ran");
    let (since, caller) = running
        .strip_prefix("crash for ")
        .and_then(|rest| rest.strip_suffix(')')?.split_once(" ("))
        .unwrap_or_else(|| panic!("{line}"));
    assert!(is_a_duration(since), "{line}");
    assert_eq!(caller, format!("no id, {peer}"), "{line}");
}

fn a_crash_costs_one_worker(params: &Value, cause: &str) {
    let service = Service::start("processes = 2\nthreads = 1");
    let (victim, other) = (service.workers()[&0], service.workers()[&1]);
    let mut doomed = service.connect_to(0);
    let peer = doomed.stream.local_addr().expect("an address");
    let mut unharmed = service.connect_to(1);
    let mark = service.mark();
    unharmed.request("sleep", &json!({ "ms": 100 }));
    let answer = doomed.call("crash", params.clone());
    assert_eq!(code(&answer), -32002, "{answer}");
    let died = service.await_text(mark, "worker died");
    assert_told_of_crash(&died, 0, victim, cause, peer);
    let next = service.await_refill(mark, 0);
    assert_ne!(next, victim);
    assert_eq!(unharmed.receive()["out"], "sleep");
    assert_eq!(worker_pid(&mut unharmed), other);
    assert_eq!(worker_pid(&mut service.connect_to(0)), next);
    assert_eq!(service.adopted_workers()[&0], next);
    assert_eq!(parent_of(next), Some(service.pid()), "the supervisor lives on");
}

/// Calls on a connection of its own each time, until told to stop; how many were answered, and how many connections ended
/// with their worker.
fn calls_of_a_visitor(service: std::net::SocketAddr, over: &Over) -> (usize, usize) {
    let (mut answered, mut cut_off) = (0, 0);
    while !over.is_so() {
        // One that waits to be accepted is nobody's yet; one that was accepted may end with its worker, being young.
        match Wire::connect(service).exchange(&json!({ "in": "ping", "params": answered }).to_string()) {
            // It was just being answered.
            Some(answer) if answer["out"] == "error" && answer["result"]["code"] == -32002 => {}
            Some(answer) => {
                assert_eq!(answer["result"], answered, "{answer}");
                answered += 1;
            }
            None => cut_off += 1,
        }
    }
    (answered, cut_off)
}

#[test]
fn a_hundred_deaths_before_and_in_first_calls_are_made_good_at_once_beside_a_visitor() {
    let mut service = Service::start("processes = 2\n[quarantine]\ncrashes = 0");
    let address = service.socket_address();
    let over = Over::default();
    std::thread::scope(|threads| {
        let _told = over.at_the_end();
        let visitor = threads.spawn(|| calls_of_a_visitor(address, &over));
        for turn in 0..100 {
            let mark = service.mark();
            let how = ["kill", "segv", "abort", "exit", "stack", "oom"][turn % 6];
            let mut wire = Wire::connect(address);
            if how == "kill" {
                send_signal(service.workers()[&(turn as u64 / 6 % 2)], Signal::SIGKILL);
            } else {
                wire.request("crash", &json!({ "how": how }));
            }
            let died = service.await_text(mark, "worker died");
            service.await_refill(mark, died["slot"].as_u64().expect("a slot"));
        }
        over.say();
        let (answered, cut_off) = visitor.join().expect("every answer is right");
        assert!(answered >= 100 && cut_off <= 100, "{answered} answered, {cut_off} cut off");
    });
    assert_eq!(service.count_since(0, "filled again in"), 0, "no slot waits");
    assert_eq!(service.count_since(0, "worker died"), 100);
    assert_eq!(service.stop(), Some(0));
}

/// One that was accepted at the very moment, and of which the supervisor had not heard yet, was lost with its worker.
#[test]
fn no_visitor_is_lost_to_a_handler_that_takes_its_worker_down() {
    let mut service = Service::start("processes = 2\nthreads = 4\n[quarantine]\ncrashes = 0");
    let (address, over) = (service.socket_address(), Over::default());
    std::thread::scope(|threads| {
        let _told = over.at_the_end();
        let visitors: Vec<_> = (0..6).map(|_| threads.spawn(|| calls_of_a_visitor(address, &over))).collect();
        for turn in 0..60 {
            let mark = service.mark();
            let mut wire = Wire::connect(address);
            let how = ["segv", "abort", "exit", "stack"][turn % 4];
            wire.request("crash", &json!({ "how": how }));
            let died = service.await_text(mark, "worker died");
            service.await_refill(mark, died["slot"].as_u64().expect("a slot"));
        }
        over.say();
        for visitor in visitors {
            let (answered, cut_off) = visitor.join().expect("every answer is right");
            assert!(answered >= 20 && cut_off == 0, "{answered} answered, {cut_off} cut off");
        }
    });
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_segmentation_fault_costs_one_worker() {
    a_crash_costs_one_worker(&json!({ "how": "segv" }), "SIGSEGV");
}

#[test]
fn an_abort_costs_one_worker() {
    a_crash_costs_one_worker(&json!({ "how": "abort" }), "SIGABRT");
}

#[test]
fn a_handler_that_calls_exit_costs_one_worker() {
    a_crash_costs_one_worker(&json!({ "how": "exit", "code": 3 }), "exit 3");
}

#[test]
fn a_handler_that_calls_exit_0_costs_one_worker_too() {
    a_crash_costs_one_worker(&json!({ "how": "exit" }), "exit 0");
}

#[test]
fn a_stack_overflow_costs_one_worker() {
    a_crash_costs_one_worker(&json!({ "how": "stack" }), "SIGSEGV");
}

#[test]
fn a_kill_for_want_of_memory_costs_one_worker() {
    a_crash_costs_one_worker(&json!({ "how": "oom" }), "SIGKILL");
}

#[test]
fn a_panic_costs_one_call_and_its_text_is_for_the_log_alone() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    let mark = service.mark();
    let answer = wire.call("panic", json!({ "message": "a secret of the house" }));
    assert_eq!(code(&answer), -32603);
    assert!(!answer.to_string().contains("secret"), "{answer}");
    let told = service.await_text(mark, "a secret of the house");
    assert_eq!((told["level"].as_str(), told["slot"].as_u64()), (Some("ERROR"), Some(0)), "{told}");
    assert!(told["place"].as_str().expect("a place").contains("rig.rs:"), "{told}");
    assert_eq!(worker_pid(&mut wire), service.workers()[&0]);
}

#[test]
fn a_core_dump_is_told() {
    let pattern = std::fs::read_to_string("/proc/sys/kernel/core_pattern").unwrap_or_default();
    if pattern.is_empty() || pattern.starts_with(['|', '/']) {
        return eprintln!("NOT TESTED: cores go to {pattern:?} here, not into the working directory");
    }
    let service =
        Service::start_with(after_setup("ulimit -c unlimited", &rig()), "processes = 1\nthreads = 1");
    let mark = service.mark();
    let mut wire = service.connect();
    wire.call("ping", json!(1));
    wire.request("crash", &json!({ "how": "segv" }));
    let died = service.await_text(mark, "worker died");
    let dumped = std::fs::read_dir(service.folder())
        .expect("its folder")
        .any(|entry| entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with("core")));
    let cause = if dumped { "SIGSEGV (core dumped)" } else { "SIGSEGV" };
    assert_eq!(died["cause"], cause);
    service.await_refill(mark, 0);
}

#[test]
fn fifty_crashes_in_a_row_restart_at_once_and_leave_no_zombie_and_no_descriptor() {
    let kept = Kept::start(
        "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"30s\"\n[quarantine]\ncrashes = 0",
    );
    let service = &kept.service;
    let mut pids = BTreeSet::from([service.workers()[&0]]);
    for _ in 0..50 {
        let mark = service.mark();
        let mut wire = service.connect();
        assert_eq!(code(&wire.call("crash", json!({ "how": "oom" }))), -32002);
        let next = service.await_refill(mark, 0);
        assert_eq!(worker_pid(&mut wire), next, "the connection goes on");
        assert!(pids.insert(next));
    }
    await_so("who died is reaped", || zombies_of(service.pid()).is_empty());
    kept.await_kept(0);
    let last = service.adopted_workers()[&0];
    assert_eq!(service.worker_pids(), [last]);
}

#[test]
fn a_template_that_dies_is_replaced_and_its_workers_live_on() {
    let service = Service::start("processes = 1\nthreads = 1");
    let (first, worker) = (service.template(), service.workers()[&0]);
    let mut wire = service.connect();
    assert_eq!(worker_pid(&mut wire), worker);
    let mark = service.mark();
    send_signal(first, Signal::SIGKILL);
    let died = service.await_text(mark, "template died");
    assert_eq!((pid_in(&died), died["cause"].as_str()), (first, Some("SIGKILL")));
    let second = pid_in(&service.await_text(mark, "template started"));
    assert_ne!(second, first);
    assert_eq!(worker_pid(&mut wire), worker, "the connection goes on");
    wire.request("crash", &json!({ "how": "segv" }));
    let next = service.await_refill(mark, 0);
    assert_eq!(worker_pid(&mut service.connect()), next);
    assert_eq!(children_named(service.pid(), "tine-template"), [second]);
    await_so("who died is reaped", || zombies_of(service.pid()).is_empty());
}

#[test]
fn a_template_that_does_not_fork_in_time_is_replaced() {
    let service = Service::start("processes = 1\nthreads = 1\n[timeouts]\nboot = \"1s\"");
    let stuck = Process::of(service.template());
    let mut wire = service.connect();
    wire.call("ping", json!(1));
    let mark = service.mark();
    send_signal(stuck.pid, Signal::SIGSTOP);
    wire.request("crash", &json!({ "how": "exit", "code": 1 }));
    service.await_text(mark, "the template does not fork and is killed");
    stuck.await_end();
    let next = service.await_refill(mark, 0);
    assert_eq!(worker_pid(&mut service.connect()), next);
    assert_ne!(service.template(), stuck.pid);
}

#[test]
fn a_child_that_the_supervisor_does_not_know_is_reaped() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mark = service.mark();
    let mut wire = service.connect();
    let answer = wire.call("orphan", json!({ "ms": 50 }));
    let orphan = answer["result"].as_i64().and_then(|pid| i32::try_from(pid).ok()).expect("a pid");
    service.await_since(mark, "the orphan's end", |line| {
        line["message"] == "reaped a child of nobody" && pid_in(line) == orphan
    });
    assert_eq!(status(orphan, "State"), None, "no zombie stays");
    assert_eq!(worker_pid(&mut wire), service.workers()[&0]);
}

#[test]
fn a_parent_that_ignores_the_ends_of_children_changes_nothing() {
    let mut program = Command::new("env");
    program.arg("--ignore-signal=CHLD").arg(rig().get_program());
    let mut service = Service::start_with(program, "processes = 1\nthreads = 1");
    let mark = service.mark();
    assert_eq!(service.call("ping", json!(1))["result"], 1);
    send_signal(service.worker_pids()[0], Signal::SIGKILL);
    let died = service.await_text(mark, "worker died");
    assert_eq!(died["cause"], "SIGKILL", "{died}");
    service.await_text(mark, "worker ready");
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn as_pid_1_of_a_container_it_reaps_what_is_left_to_it_and_obeys_term() {
    let unshare = ["unshare", "--pid", "--fork", "--kill-child"];
    if !Command::new(unshare[0]).args(&unshare[1..]).arg("true").status().is_ok_and(|status| status.success())
    {
        return eprintln!(
            "NOT TESTED: this user can't make a PID namespace, or there is no unshare (util-linux)"
        );
    }
    let mut program = Command::new(unshare[0]);
    program.args(&unshare[1..]).arg(rig().get_program());
    let mut service = Service::start_with(program, "processes = 2\nthreads = 1");
    let mut wire = service.connect();
    let mark = service.mark();
    let orphan = wire.call("orphan", json!({ "ms": 20 }))["result"].as_i64();
    service.await_since(mark, "the orphan's end", |line| {
        line["message"] == "reaped a child of nobody" && Some(i64::from(pid_in(line))) == orphan
    });
    let slot = wire.call("tine.worker", json!(null))["result"]["slot"].as_u64().expect("a slot");
    wire.request("crash", &json!({ "how": "segv" }));
    service.await_refill(mark, slot);
    let supervisor = children_of(service.pid())[0];
    assert_eq!(
        status(supervisor, "NSpid")
            .and_then(|pids| pids.split_whitespace().last().map(str::to_owned))
            .as_deref(),
        Some("1")
    );
    send_signal(supervisor, Signal::SIGTERM);
    assert_eq!(service.await_end().code(), Some(0));
}

/// Params and results are of the program's own types, and reading and writing these is its code as much as the handler is.
#[test]
fn a_call_is_named_while_its_params_are_read_and_its_result_is_written() {
    let service = Service::start(
        "processes = 1\nthreads = 1\n[timeouts]\nkeep_after = \"0s\"\n[quarantine]\ncrashes = 0",
    );
    // A large message is read by a thread of the pool, a small one by the poller.
    for padding in [0, 20_000] {
        for at in ["crash in params", "crash in result", "hang in params", "hang in result"] {
            let mut wire = service.connect();
            let worker = worker_pid(&mut wire);
            let mark = service.mark();
            wire.request("trip", &json!({ "at": at, "padding": " ".repeat(padding) }));
            if at.starts_with("hang") {
                kill_at_rest(worker);
            }
            let answer = wire.receive();
            assert_eq!(code(&answer), -32002, "{answer}");
            assert_eq!(answer["result"]["data"]["method"], "trip", "{at}");
            let died = service.await_text(mark, "worker died");
            assert!(
                died["running"].as_str().is_some_and(|running| running.starts_with("trip for ")),
                "{at}: {died}"
            );
            let culprit = if at.starts_with("crash") { json!("trip") } else { Value::Null };
            assert_eq!(died["culprit"], culprit, "{at}: {died}");
            service.await_refill(mark, 0);
        }
    }
}
