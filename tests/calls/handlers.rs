//! What a program built on the library relies on: its hooks, its states, and what its handlers are told.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::process::Command;
use std::sync::Once;

use crate::support;
use crate::support::proc::worker_pid;
use crate::support::{Folder, PATIENCE, Service, Wire, children_named, framed, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// The `context` example, with a folder for its notes.
fn context(folder: &std::path::Path) -> Command {
    static BUILT: Once = Once::new();
    let mut program = support::example("context", &BUILT);
    program.env("CONTEXT_FOLDER", folder);
    program
}

/// Two workers with room for one connection each, and a connection to either.
fn one_connection_to_each(folder: &Folder) -> (Service, [Wire; 2]) {
    let config = "processes = 2\nthreads = 2\n[limits]\nmax_connections = 2\nqueue_wait = \"20s\"";
    let service = Service::start_with(context(folder.path()), config);
    let mut wires = [service.connect(), service.connect()];
    wires.sort_by_key(|wire| {
        let mut wire = Wire { stream: wire.stream.try_clone().expect("a descriptor") };
        wire.call("tine.worker", Value::Null)["result"]["slot"].as_u64()
    });
    (service, wires)
}

#[test]
fn a_handler_is_told_all_about_its_call() {
    let folder = Folder::new();
    let (service, mut wires) = one_connection_to_each(&folder);
    let pids = service.worker_pids();
    for (slot, wire) in wires.iter_mut().enumerate() {
        let peer = wire.stream.local_addr().expect("an address").to_string();
        wire.send(r#"{"in":"who","id":{"a": 1.50}}"#);
        let answer = wire.receive();
        let who = &answer["result"];
        assert_eq!(who["method"], "who");
        assert_eq!(who["peer"], peer);
        assert_eq!(who["id"], r#"{"a": 1.50}"#, "as it was written");
        assert_eq!(who["slot"], slot);
        assert!(pids.contains(&i32::try_from(who["pid"].as_i64().expect("a pid")).expect("fits")));
        assert_eq!(who["thread"], who["thread_by_hook"], "the hook ran on this very thread");
        assert_eq!(who["is_cancelled"], false);
        assert_eq!(who["has_other_state"], false);
        assert_eq!(wire.call("who", Value::Null)["result"]["id"], Value::Null);
    }
}

#[test]
fn a_handler_knows_the_time_it_has_from_its_caller_or_its_configuration() {
    let folder = Folder::new();
    let config =
        "processes = 1\nthreads = 1\n[timeouts]\nrequest = \"60s\"\n[methods.wait]\ntimeout = \"100ms\"";
    let service = Service::start_with(context(folder.path()), config);
    let mut wire = service.connect();
    for (timeout, least, most) in [("", 30_000, 60_000), (r#","timeout_ms":20000"#, 1, 20_000)] {
        wire.send(&format!(r#"{{"in":"who"{timeout}}}"#));
        let who = &wire.receive()["result"];
        for key in ["remaining_ms", "deadline_in_ms"] {
            let ms = who[key].as_u64().expect("a number");
            assert!((least..=most).contains(&ms), "{key} is {ms}, expected {least} to {most}");
        }
    }
    // The caller is told that time is up, and the handler sees it too.
    assert_eq!(support::code(&wire.call("wait", Value::Null)), -32001);
    assert_eq!(service.await_log("nobody waits any more")["remaining_ms"], 0);
}

#[test]
fn a_handler_sees_that_its_caller_is_gone() {
    let folder = Folder::new();
    let service = Service::start_with(context(folder.path()), "processes = 1\nthreads = 2");
    for id in ["", r#","id":1"#] {
        let mut wire = service.connect();
        wire.send(&format!(r#"{{"in":"wait"{id}}}"#));
        service.await_log("begins to wait");
        wire.reset();
        let cancelled = service.await_log("nobody waits any more");
        assert!(cancelled["remaining_ms"].as_u64() > Some(0), "long before its deadline: {cancelled}");
    }
}

#[test]
fn a_caller_that_only_sends_no_more_still_waits() {
    let folder = Folder::new();
    let config = "processes = 1\nthreads = 1\n[methods.wait]\ntimeout = \"200ms\"";
    let service = Service::start_with(context(folder.path()), config);
    let mut wire = service.connect();
    wire.request("wait", &Value::Null);
    wire.finish_sending();
    assert_eq!(support::code(&wire.receive()), -32001);
    assert_eq!(service.await_log("nobody waits any more")["remaining_ms"], 0, "not before its deadline");
}

#[test]
fn a_handler_knows_the_user_of_a_unix_socket() {
    let folder = Folder::new();
    let config = "listen = [\"unix:tine.sock\"]\nprocesses = 1\nthreads = 1";
    let service = Service::start_with(context(folder.path()), config);
    let mut stream = UnixStream::connect(service.folder().join("tine.sock")).expect("it listens");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream.write_all(&framed(r#"{"in":"who"}"#)).expect("it reads");
    let mut length = [0; 4];
    stream.read_exact(&mut length).expect("an answer");
    let mut body = vec![0; u32::from_le_bytes(length) as usize];
    stream.read_exact(&mut body).expect("a whole answer");
    let answer: Value = serde_json::from_slice(&body).expect("JSON");
    let expected = format!("unix:uid={},pid={}", nix::unistd::getuid(), std::process::id());
    assert_eq!(answer["result"]["peer"], expected);
}

#[test]
fn what_preload_loads_is_made_once_in_the_template_and_is_in_every_worker() {
    let folder = Folder::new();
    let (service, mut wires) = one_connection_to_each(&folder);
    let [one, two] = wires.each_mut().map(|wire| wire.call("loaded", Value::Null)["result"].clone());
    assert_eq!(one, two, "one number for all, though it is a random one");
    let [template] = children_named(service.pid(), "tine-template")[..] else { panic!("one template") };
    assert_eq!(one["by_pid"], template);
    // A worker that is forked later has it as well.
    let [mut first, _second] = wires;
    let pid = worker_pid(&mut first);
    // It would be kept, and there is room for two.
    drop(first);
    send_signal(pid, Signal::SIGKILL);
    service.await_log("worker ready");
    let mut replaced = service.connect();
    assert_eq!(replaced.call("loaded", Value::Null)["result"], one);
    assert_ne!(worker_pid(&mut replaced), pid);
}

#[test]
fn each_worker_has_a_state_of_its_own_and_a_new_one_when_it_is_replaced() {
    let folder = Folder::new();
    let (service, [mut first, mut second]) = one_connection_to_each(&folder);
    for nth in 1..=3 {
        assert_eq!(first.call("who", Value::Null)["result"]["nth_here"], nth);
    }
    let second_who = second.call("who", Value::Null)["result"].clone();
    assert_eq!(second_who["nth_here"], 1);
    for (wire, name) in [(&mut first, "notes-0.txt"), (&mut second, "notes-1.txt")] {
        let path = wire.call("note", json!(name))["result"].clone();
        let path = path.as_str().expect("a path");
        assert!(path.ends_with(name), "{path}");
        assert_eq!(std::fs::read_to_string(path).expect("a file"), format!("{name}\n"));
    }
    let pid = i32::try_from(second_who["pid"].as_i64().expect("a pid")).expect("fits");
    // It would be kept, and there is room for two.
    drop(second);
    send_signal(pid, Signal::SIGKILL);
    service.await_log("worker ready");
    // It may have to wait for its part of the connections, which the other one has until then.
    let replaced = service.connect_to(1).call("who", Value::Null)["result"].clone();
    assert_eq!(replaced["slot"], 1, "the slot stays");
    assert_ne!(replaced["pid"], pid);
    assert_eq!(replaced["nth_here"], 1, "the state does not");
}

#[test]
fn hooks_run_in_the_worker_when_it_starts_and_when_it_stops() {
    let folder = Folder::new();
    let config = "processes = 2\nthreads = 3";
    let mut service = Service::start_with(context(folder.path()), config);
    let mut pids = service.worker_pids();
    pids.sort_unstable();
    assert_eq!(service.stop(), Some(0));
    let log = service.whole_log();
    let said = |text: &str| log.iter().filter(|line| line["message"] == text).collect::<Vec<_>>();
    for text in ["a worker starts", "a worker stops"] {
        let mut by: Vec<i64> = said(text).iter().filter_map(|line| line["pid"].as_i64()).collect();
        by.sort_unstable();
        assert_eq!(by, pids.iter().map(|pid| i64::from(*pid)).collect::<Vec<_>>(), "{text}");
    }
    for slot in 0..2 {
        let threads = said("a thread starts");
        let mut threads: Vec<u64> = threads
            .iter()
            .filter(|line| line["slot"] == slot)
            .filter_map(|line| line["thread"].as_u64())
            .collect();
        threads.sort_unstable();
        assert_eq!(threads, [0, 1, 2, 3, 4], "slot {slot}: the pool, the poller and the watch");
    }
}

#[test]
fn a_state_that_fails_fails_the_boot() {
    let folder = Folder::new();
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let mut service = Service::launch(context(&folder.path().join("not there")), config);
    assert_eq!(service.await_end().code(), Some(1));
    let log = service.log_so_far();
    assert!(log.contains("a worker can't start: state `context::Notes`: "), "{log}");
    assert!(log.contains("notes-0.txt: No such file or directory"), "{log}");
    assert!(!log.contains("worker ready"), "{log}");
}
