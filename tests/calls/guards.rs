//! Whatever the program's own values do when they are read, written or dropped, one call fails and its worker goes on.

use std::process::Command;

use crate::support::peer::{ALL, Peer, Way};
use crate::support::{Folder, Service, code, rig};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Every place where a value of the handler's can panic, and what the log says of it.
const TRAPS: [(&str, &str); 9] = [
    ("params", "a handler panicked: while params are read"),
    ("params_drop", "a handler panicked: while params are dropped"),
    ("payload", "a handler panicked: a value that is not text"),
    ("result", "a handler panicked: half-way through a result"),
    ("result_drop", "a handler panicked: while a value is dropped"),
    ("result_both", "a handler panicked: half-way through a result"),
    ("error", "a handler panicked: half-way through an error's text"),
    ("error_drop", "a handler panicked: while a value is dropped"),
    ("error_both", "a handler panicked: half-way through an error's text"),
];

fn call(trap: &str, id: u32) -> String {
    json!({ "jsonrpc": "2.0", "method": "trap", "params": [trap], "id": id }).to_string()
}

#[test]
fn each_of_them_is_one_call_that_fails_in_every_framing() {
    let service = Service::start("processes = 1\nthreads = 2");
    let pids = service.worker_pids();
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for (id, (trap, _)) in (1..).zip(TRAPS) {
            peer.send(&call(trap, id));
            let answer = peer.receive();
            assert_eq!(
                (answer["error"]["code"].as_i64(), &answer["id"]),
                (Some(-32603), &json!(id)),
                "{way:?}: {answer}"
            );
            assert!(
                !answer.to_string().contains("half"),
                "{way:?}, {trap}: nothing of it reaches the caller: {answer}"
            );
        }
        assert_eq!(peer.call("echo", json!(["well"]))["result"], json!(["well"]), "{way:?}");
    }
    assert_eq!(service.worker_pids(), pids, "no worker ended");
}

#[test]
fn a_batch_has_its_other_answers_and_a_notification_harms_nobody() {
    let service = Service::start("processes = 1\nthreads = 2");
    let pids = service.worker_pids();
    let mut peer = Peer::of(&service, Way::Length);
    let notification = |trap: &str| format!(r#"{{"jsonrpc":"2.0","method":"trap","params":["{trap}"]}}"#);
    let ping = r#"{"jsonrpc":"2.0","method":"ping","params":[1],"id":0}"#;
    for (trap, _) in TRAPS {
        peer.send(&notification(trap));
        peer.send(&format!("[{ping},{},{}]", call(trap, 1), notification(trap)));
        let answers = peer.receive();
        assert_eq!(answers.as_array().map(Vec::len), Some(2), "{trap}: {answers}");
        assert_eq!((&answers[0]["id"], &answers[0]["result"]), (&json!(0), &json!([1])), "{trap}: {answers}");
        assert_eq!(
            (&answers[1]["id"], &answers[1]["error"]["code"]),
            (&json!(1), &json!(-32603)),
            "{trap}: {answers}"
        );
    }
    assert_eq!(service.worker_pids(), pids, "no worker ended");
}

/// The poller itself runs what has long been quick.
#[test]
fn a_quick_method_is_guarded_where_the_poller_runs_it() {
    let service = Service::start("processes = 1\nthreads = 2");
    let pids = service.worker_pids();
    let mut wire = service.connect();
    for (trap, _) in TRAPS {
        for _ in 0..40 {
            assert!(wire.call("trap", json!("none"))["result"].is_array());
        }
        assert_eq!(code(&wire.call("trap", json!(trap))), -32603, "{trap}");
    }
    assert_eq!(service.worker_pids(), pids, "no worker ended");
}

#[test]
fn the_log_says_which_call_it_was() {
    for (trap, message) in TRAPS {
        let service = Service::start("processes = 1\nthreads = 1");
        let mut wire = service.connect();
        wire.send(&call(trap, 4711));
        assert_eq!(code(&wire.receive()), -32603);
        let line = service.await_log(message);
        let peer = wire.stream.local_addr().expect("an address").to_string();
        assert_eq!(
            (&line["method"], &line["id"], &line["peer"]),
            (&json!("trap"), &json!("4711"), &json!(peer)),
            "{line}"
        );
        assert!(
            line["took"].is_string()
                && line["place"].as_str().is_some_and(|place| place.contains("traps.rs")),
            "{line}"
        );
        if trap.starts_with("error") {
            let line = service.await_log("internal error");
            assert_eq!(
                (&line["method"], &line["id"], &line["peer"]),
                (&json!("trap"), &json!("4711"), &json!(peer)),
                "{line}"
            );
            let cause = line["cause"].as_str().expect("a cause");
            assert!(
                cause.starts_with(if trap == "error_drop" {
                    "the first half"
                } else {
                    "its text can't be made"
                }),
                "{line}"
            );
        }
    }
}

fn with_hook(when: &str, folder: &Folder) -> (Command, std::path::PathBuf) {
    let reports = folder.path().join("reports");
    let mut program = rig();
    program.env("RIG_HOOK", format!("{when}:{}", reports.display()));
    (program, reports)
}

#[test]
fn the_programs_own_panic_hook_is_called_wherever_it_was_set() {
    for when in ["main", "preload", "state", "alone"] {
        let folder = Folder::new();
        let (program, reports) = with_hook(when, &folder);
        let service = Service::start_with(program, "processes = 1\nthreads = 1");
        assert_eq!(code(&service.call("panic", json!({ "message": "once" }))), -32603);
        let line = service.await_log("a handler panicked: once");
        assert_eq!(line["method"], "panic", "{when}: {line}");
        assert_eq!(line["place"].is_null(), when == "alone", "{when}: {line}");
        let reports = std::fs::read_to_string(reports).unwrap_or_default();
        assert_eq!(reports.matches("reported: ").count(), 1, "{when}: {reports}");
        let times = service.log_so_far().matches("a handler panicked").count();
        assert_eq!(times, 1, "{when}: once in the log, and std's own hook is silent");
        assert!(!service.log_so_far().contains("note: run with"), "{when}");
    }
}

#[test]
fn a_backtrace_is_in_the_log_where_it_was_asked_for() {
    for (wanted, is_there) in [("0", false), ("1", true), ("full", true)] {
        let mut program = rig();
        program.env("RUST_BACKTRACE", wanted);
        let mut service = Service::start_with(program, "processes = 1\nthreads = 1");
        service.call("panic", json!({ "message": "where" }));
        service.await_log("a handler panicked: where");
        assert_eq!(service.stop(), Some(0));
        let log = service.whole_log();
        let backtraces: String = log.iter().filter_map(|line| line["backtrace"].as_str()).collect();
        assert_eq!(backtraces.contains("rig::panic"), is_there, "RUST_BACKTRACE={wanted}: {backtraces}");
        assert_eq!(
            backtraces.contains("panic_fmt"),
            wanted == "full",
            "RUST_BACKTRACE={wanted}: {backtraces}"
        );
        assert!(log.iter().all(|line| line["timestamp"].is_string()), "every line is a record: {log:?}");
    }
}

#[test]
fn a_hook_that_panics_is_the_reason_why_a_worker_can_not_start() {
    let reasons = [("RIG_PRELOAD", "preload panicked"), ("RIG_WORKER_START", "on_worker_start panicked")];
    for (variable, reason) in reasons {
        let mut program = rig();
        program.env(variable, "panic");
        let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1";
        let mut service = Service::launch(program, config);
        assert_eq!(service.await_end().code(), Some(1));
        let log = format!("{:?}", service.whole_log());
        assert!(log.contains(&format!("{reason}: {variable} asked for it")), "{log}");
    }
}

#[test]
fn a_stop_hook_that_panics_changes_nothing_about_the_end() {
    let mut program = rig();
    program.env("RIG_WORKER_STOP", "panic");
    let mut service = Service::start_with(program, "processes = 1\nthreads = 1");
    service.signal(Signal::SIGTERM);
    assert_eq!(service.await_end().code(), Some(0));
    let log = service.whole_log();
    let ended: Vec<&Value> = log.iter().filter(|line| line["message"] == "worker ended").collect();
    assert_eq!(ended[0]["cause"], "exit 0", "{log:?}");
    assert!(log.iter().any(|line| {
        line["message"].as_str().is_some_and(|text| text.contains("of a call: RIG_WORKER_STOP"))
    }));
}
