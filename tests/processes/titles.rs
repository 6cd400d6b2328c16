//! What `ps` shows of the processes.

use std::fs;

use crate::support::{Service, children_named, rig};
use nix::sys::signal::Signal;

fn title(pid: i32) -> String {
    let arguments = fs::read(format!("/proc/{pid}/cmdline")).expect("its arguments");
    String::from_utf8_lossy(&arguments).trim_end_matches('\0').replace('\0', " ")
}

#[test]
fn workers_and_templates_tell_service_slot_and_generation() {
    let service = Service::start("processes = 2\nthreads = 1");
    for generation in 1..=2 {
        let workers = service.worker_pids();
        let mut titles: Vec<String> = workers.iter().map(|pid| title(*pid)).collect();
        titles.sort();
        assert_eq!(titles, [0, 1].map(|slot| format!("tine: worker {slot} gen {generation} (rig)")));
        let templates = children_named(service.pid(), "tine-template");
        assert_eq!(templates.len(), 1);
        assert_eq!(title(templates[0]), format!("tine: template gen {generation} (rig)"));
        // The supervisor is what the operator has started, by the name and the arguments that he knows.
        assert!(title(service.pid()).ends_with("/rig serve"), "{}", title(service.pid()));
        if generation == 1 {
            service.signal(Signal::SIGHUP);
            service.await_log("reloaded");
            for _ in 0..workers.len() {
                service.await_log("worker ended");
            }
        }
    }
}

/// What was said of a process's arguments is for `ps` alone: the program still finds its own.
#[test]
fn a_handler_still_finds_the_arguments_and_the_environment_of_its_program() {
    let mut program = rig();
    program.env("RIG_MARK", "here");
    let service = Service::start_with(program, "processes = 1\nthreads = 1");
    let found = service.call("started_as", serde_json::Value::Null);
    assert_eq!(found["result"][0], serde_json::json!(["serve"]), "{found}");
    assert_eq!(found["result"][1], "here", "{found}");
}
