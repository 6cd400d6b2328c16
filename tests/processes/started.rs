//! What handlers start: programs and processes, what they inherit, and what becomes of them.

use std::fs;

use crate::support;
use crate::support::proc::{Process, kill};
use crate::support::{PATIENCE, Service, await_gone};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// One worker of one thread.
const ONE: &str = "processes = 1\nthreads = 1";

fn shell(service: &Service, line: &str) -> Value {
    service.call("shell", json!({ "line": line }))["result"].clone()
}

#[test]
fn a_pipeline_ends_with_its_reader() {
    let service = Service::start(ONE);
    // It wrote on for ever, since the shell had inherited that SIGPIPE is ignored.
    let line = "while :; do echo x 2>/dev/null; done | head -n 1 >/dev/null";
    assert_eq!(shell(&service, line), json!(0));
}

#[test]
fn a_program_inherits_no_ignored_and_no_blocked_signal() {
    let service = Service::start(ONE);
    let file = service.folder().join("status");
    assert_eq!(shell(&service, &format!("grep Sig /proc/self/status >{}", file.display())), json!(0));
    let status = fs::read_to_string(file).expect("the shell has written it");
    for kind in ["SigBlk", "SigIgn"] {
        let bits = status.lines().find_map(|line| line.strip_prefix(kind)).expect("such a line");
        let bits = u64::from_str_radix(bits.trim_start_matches([':', '\t']), 16).expect("hexadecimal");
        // Signals 32 and 33 are the C library's own; whoever started this test may ignore them.
        assert_eq!(bits & !(0b11 << 31), 0, "{kind}");
    }
}

#[test]
fn no_variable_of_the_service_reaches_handlers_or_what_they_start() {
    let service = Service::start(ONE);
    let file = service.folder().join("environment");
    assert_eq!(shell(&service, &format!("env >{}", file.display())), json!(0));
    let environment = fs::read_to_string(file).expect("the shell has written it");
    assert!(environment.contains("PATH=") && !environment.contains("TINE_"), "{environment}");
    for pid in service.worker_pids() {
        let began_with = fs::read(format!("/proc/{pid}/environ")).expect("it lives");
        let began_with = String::from_utf8_lossy(&began_with);
        assert!(began_with.contains("PATH=") && !began_with.contains("TINE_"), "{began_with}");
    }
}

/// Starts a program in the background of a shell, in the worker of slot 0; the process, which lives.
fn start(service: &Service, program: &str) -> Process {
    let file = service.folder().join("started");
    let line = format!("{program} >/dev/null 2>&1 & echo $! >{}", file.display());
    let answer = service.connect_to(0).call("shell", json!({ "line": line }));
    assert_eq!(answer["result"], 0, "{answer}");
    Process::of(fs::read_to_string(file).expect("the shell has written it").trim().parse().expect("a pid"))
}

/// Living processes whose folder this is: all that a service has started.
fn at_home_in(folder: &std::path::Path) -> Vec<i32> {
    let processes = fs::read_dir("/proc").expect("it is mounted").flatten();
    let is_there =
        |entry: &fs::DirEntry| fs::read_link(entry.path().join("cwd")).is_ok_and(|cwd| cwd == folder);
    processes.filter(is_there).filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

fn lives(process: &Process) -> bool {
    !await_gone(process.pid, std::time::Duration::ZERO)
}

/// In the worker's group; in one of its own; deaf to SIGTERM, with another below it; and a daemon.
const KINDS: [&str; 4] = [
    "sleep 600",
    "sh -mc 'sleep 600 & wait'",
    "sh -c \"trap '' TERM; sleep 600; sleep 600\"",
    "setsid sleep 600",
];

#[test]
fn what_a_handler_has_started_ends_with_its_worker_however_that_ends() {
    for end in ["kill", "TERM", "stop", "quit"] {
        let mut service = Service::start(ONE);
        let started = KINDS.map(|program| start(&service, program));
        service.call("ping", json!(1));
        assert!(started.iter().all(lives), "its worker lives");
        let worker = service.workers()[&0];
        match end {
            "kill" => kill(worker),
            "TERM" => support::send_signal(worker, Signal::SIGTERM),
            "stop" => service.signal(Signal::SIGTERM),
            _ => service.signal(Signal::SIGQUIT),
        }
        for (process, kind) in started.iter().zip(KINDS) {
            // With another worker beside it a daemon may be that one's.
            if (end, kind) != ("TERM", KINDS[3]) {
                process.await_end();
            }
        }
        // It waits for what is left of what was left, too.
        let code = if matches!(end, "stop" | "quit") { service.await_end().code() } else { service.stop() };
        assert_eq!(code, Some(0), "{end}");
        assert_eq!(at_home_in(service.folder()), Vec::<i32>::new(), "{end}");
    }
}

#[test]
fn what_another_worker_has_started_is_left_alone() {
    let service = Service::start("processes = 2\nthreads = 1");
    let first = start(&service, "sleep 600");
    let file = service.folder().join("second");
    let line = format!("sleep 600 >/dev/null 2>&1 & echo $! >{}", file.display());
    assert_eq!(service.connect_to(1).call("shell", json!({ "line": line }))["result"], 0);
    let second = fs::read_to_string(file).expect("written").trim().parse().expect("a pid");
    let second = Process::of(second);
    let mark = service.mark();
    kill(service.workers()[&0]);
    service.await_refill(mark, 0);
    first.await_end();
    assert!(lives(&second));
}

#[test]
fn what_a_handler_has_started_outlives_its_worker_where_the_operator_says_so() {
    let mut service = Service::start(&format!("{ONE}\n[run]\ngroups_outlive = true"));
    // Those that have nothing below them, which the test would leave behind.
    let started = [KINDS[0], KINDS[3]].map(|program| start(&service, program));
    let mark = service.mark();
    kill(service.workers()[&0]);
    service.await_refill(mark, 0);
    assert_eq!(service.stop(), Some(0));
    assert!(started.iter().all(lives));
}

#[test]
fn where_the_supervisor_is_killed_its_workers_end_what_they_have_started() {
    let mut service = Service::start(ONE);
    let started = start(&service, KINDS[0]);
    let worker = service.workers()[&0];
    kill(service.pid());
    service.await_end();
    assert!(await_gone(worker, PATIENCE));
    started.await_end();
}
