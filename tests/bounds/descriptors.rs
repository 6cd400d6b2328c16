//! Descriptors: tine's own lie out of the way, and a handler that closes one of them costs its worker, and nobody a call.

use std::io::Read;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::support;
use crate::support::measure::raise_descriptor_limit;
use crate::support::proc::{Process, after_setup, copy_for_everyone, kill, open_descriptors, worker_pid};
use crate::support::{Folder, Service, Wire, await_asleep, code, rig, send_signal};

const ONE: &str = "processes = 1\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\n[quarantine]\ncrashes = 0";

/// How often the log says that a descriptor was lost.
fn told_of_loss(service: &Service) -> usize {
    service.count_since(0, "a descriptor of the worker's own was closed or replaced")
}

#[test]
fn a_worker_that_lost_what_it_stands_on_is_replaced_at_once_and_its_connections_go_on() {
    for with in ["line", "listener", "epoll", "event", "connection"] {
        for how in ["close", "replace"] {
            let service = Service::start(ONE);
            let mut wire = service.connect();
            assert_eq!(wire.call("echo", json!(1))["result"], 1);
            let pid = worker_pid(&mut wire);
            await_asleep(pid);
            let mark = service.mark();
            wire.request("meddle", &json!({ "with": with, "how": how }));
            let answer =
                wire.receive_text().unwrap_or_else(|| panic!("{with}, {how}: {}", service.log_so_far()));
            let answer: Value = serde_json::from_str(&answer).expect("JSON");
            let met_some = answer["result"].as_u64().is_some_and(|met| met > 0);
            assert!(met_some || code(&answer) == -32002, "{with}, {how}: {answer}");
            // Whoever comes next has the worker notice, if it has not.
            let _next = service.connect();
            if with == "event" {
                send_signal(pid, Signal::SIGTERM);
            }
            service.await_refill(mark, 0);
            assert_eq!(service.call("echo", json!(2))["result"], 2, "{with}, {how}");
            assert_eq!(wire.call("echo", json!(3))["result"], 3, "{with}, {how}");
            assert!(told_of_loss(&service) <= 1, "{with}, {how}: {}", service.log_so_far());
        }
    }
}

#[test]
fn nothing_of_tines_own_is_at_a_number_that_select_can_wait_for() {
    let service = Service::start("processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"");
    let mut wires: Vec<Wire> = (0..40).map(|_| service.connect()).collect();
    let pids: Vec<i32> = wires.iter_mut().map(worker_pid).collect();
    assert_low_numbers_are_free(&mut wires[0]);
    // The other one gets half of them from the supervisor.
    await_asleep(service.pid());
    let mark = service.mark();
    kill(pids[0]);
    service.await_text(mark, "worker ready");
    for wire in &mut wires {
        assert_low_numbers_are_free(wire);
    }
}

fn assert_low_numbers_are_free(wire: &mut Wire) {
    let answer = wire.call("selectable", json!(null));
    let low = answer["result"].as_array().expect("a list");
    // What the test was started with, the service has inherited.
    let inherited = |open: &&Value| !open.as_str().is_some_and(is_open_here);
    let own: Vec<&Value> = low.iter().filter(inherited).collect();
    assert!(own.is_empty(), "low numbers are for handlers: {own:?}");
}

fn is_open_here(what: &str) -> bool {
    let target = what.split_once(": ").expect("a number and what it is").1;
    let open = std::fs::read_dir("/proc/self/fd").expect("our own");
    open.flatten().any(|fd| std::fs::read_link(fd.path()).is_ok_and(|link| link.to_str() == Some(target)))
}

/// The number of the line is free then, and so is none below it.
#[test]
fn no_message_between_tines_processes_reaches_a_client_who_has_the_lines_number() {
    let service = Service::start(ONE);
    let mut wire = service.connect();
    let highest = wire.call("open", json!({ "count": 1_100 }))["result"].as_u64().expect("a number");
    assert!(highest > 1_024, "{highest}");
    let worker = Process::of(worker_pid(&mut wire));
    // Otherwise it would end the worker before anybody comes.
    send_signal(service.pid(), Signal::SIGSTOP);
    assert_eq!(wire.call("deafen", json!(null))["result"], json!(null));
    let mut clients: Vec<Wire> = (0..8).map(|_| service.connect()).collect();
    for client in &mut clients {
        client.request("echo", &json!("mine"));
    }
    worker.await_end();
    send_signal(service.pid(), Signal::SIGCONT);
    for client in &mut clients {
        // Those that the worker had accepted and not kept yet are closed with it.
        client.stream.set_read_timeout(Some(Duration::from_secs(60))).expect("the option exists");
        let mut got = Vec::new();
        let mut byte = [0; 1];
        while let Ok(1) = client.stream.read(&mut byte) {
            got.push(byte[0]);
            if got.ends_with(b"\"mine\"}") {
                break;
            }
        }
        let text = String::from_utf8_lossy(&got).into_owned();
        assert!(got.is_empty() || text.contains("\"mine\"") && !text.contains("message"), "{text}");
    }
}

#[test]
fn descriptors_that_a_worker_sends_with_any_message_are_closed_by_the_supervisor() {
    let service = Service::start(ONE);
    let before = open_descriptors(service.pid());
    let mut wire = service.connect();
    for text in ["no message", "", "{\"message\":\"here_i_am\"}", "{\"message\":\"dance\"}"] {
        if text.is_empty() {
            continue;
        }
        let sent = wire.call("tell", json!({ "text": text, "descriptors": 253, "times": 20 }));
        assert_eq!(sent["result"], 20, "{sent}");
    }
    wire.call("echo", Value::Null);
    await_asleep(service.pid());
    assert!(open_descriptors(service.pid()) <= before + 1, "the one of the connection that is kept");
}

/// `limits` of `rig`: in the worker, in a child by `fork`, in what such a child executes, in what `posix_spawn` starts.
fn soft_limits(service: &Service) -> Vec<u64> {
    let answer = service.call("limits", json!(null));
    serde_json::from_value(answer["result"].clone()).unwrap_or_else(|_| panic!("four limits, found {answer}"))
}

#[test]
fn children_that_handlers_fork_have_the_soft_limit_that_the_service_was_started_with() {
    let folder = Folder::new();
    let program = copy_for_everyone(&rig(), folder.path());
    let service = Service::start_with(after_setup("ulimit -Sn 200", &program), "processes = 1\nthreads = 1");
    let before = soft_limits(&service);
    let (raised, forked) = (before[0], &before[1..3]);
    assert!(raised > 200, "tine needs more for itself");
    assert_eq!(forked, [200, 200]);
    assert_eq!(before[3], raised, "as README says");

    // The supervisor becomes a new program, whose template and workers know it too.
    let path = folder.path().join("program");
    let next = path.with_extension("next");
    let made = Command::new("sh")
        .args(["-c", "cp \"$1\" \"$2\" && echo >> \"$2\"", "sh"])
        .args([&path, &next])
        .status();
    assert!(made.expect("a shell").success());
    std::fs::rename(&next, &path).expect("in its place");
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "the supervisor runs the new program");
    assert_eq!(soft_limits(&service), before);
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
    assert_eq!(soft_limits(&service), before, "a template that the new supervisor started");
}

/// What a dead worker had goes to others, and its replacement has room of its own: without a bound for all of them there would
/// be more with each death, until nothing could be forked.
#[test]
fn at_the_descriptor_limit_workers_may_die_again_and_again() {
    /// What fits in a service with a limit of 1,024 and two processes, and what the supervisor may keep then.
    const FIT: usize = 513;
    const KEPT: usize = 683;
    raise_descriptor_limit();
    let config = "processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"";
    let service = Service::start_with(after_setup("ulimit -n 1024", &rig()), config);
    let at_rest = open_descriptors(service.pid());
    let clients: Vec<Wire> = (0..FIT + 500).map(|_| service.connect()).collect();
    for slot in [0, 1, 0, 1, 0, 1] {
        await_descriptors(&service, |open| open >= at_rest + FIT);
        let mark = service.mark();
        kill(service.workers()[&slot]);
        service.await_refill(mark, slot);
        let open = open_descriptors(service.pid());
        assert!(open <= at_rest + KEPT, "{open} in the supervisor");
    }
    assert_eq!(service.count_since(0, "can't be kept"), 0, "{}", service.log_so_far());
    drop(clients);
    await_descriptors(&service, |open| open < at_rest + 10);
    assert_eq!(service.call("echo", json!(1))["result"], 1);
}

/// Waits until so many descriptors are open in the supervisor.
fn await_descriptors(service: &Service, enough: impl Fn(usize) -> bool) {
    let until = std::time::Instant::now() + support::PATIENCE;
    while !enough(open_descriptors(service.pid())) {
        assert!(std::time::Instant::now() < until, "{} are open", open_descriptors(service.pid()));
        std::thread::yield_now();
    }
}
