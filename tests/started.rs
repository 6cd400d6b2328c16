//! What handlers start: programs and processes, what they inherit, and what becomes of them.

mod support;

use std::fs;

use serde_json::{Value, json};
use support::Service;

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
