//! Reload: a changed configuration or program takes over without a refused connection, and whatever goes wrong on the
//! way leaves the service as it was.

use std::cell::RefCell;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use crate::support;
use crate::support::proc::{copy_for_everyone, open_descriptors, worker_pid};
use crate::support::{
    Folder, Over, Service, Wire, await_gone, await_so, children_of, example, rig, send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const LISTEN: &str = "listen = [\"127.0.0.1:0\"]";
const LOG: &str = "\n[log]\nlevel = \"debug\"\nformat = \"json\"\n";

/// `rig`, whose preload and whose workers' start do what the files `preload` and `start` in its folder say.
fn rig_by_files() -> Command {
    let mut program = rig();
    program.env("RIG_PRELOAD", "@preload").env("RIG_WORKER_START", "@start");
    program
}

impl Service {
    /// Writes the configuration anew.
    fn configure(&self, listen: &str, rest: &str) {
        self.write("config.toml", &format!("{listen}\n{rest}{LOG}"));
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.folder().join(file), text).expect("the service's folder");
    }

    /// Asks for a reload and waits until it has been done and the workers before it, who are idle, have ended; what the
    /// log says of it.
    fn reload(&self) -> Value {
        let (mark, before) = (self.mark(), self.worker_pids());
        self.signal(Signal::SIGHUP);
        let told = self.await_text(mark, "reloaded");
        for pid in before {
            assert!(await_gone(pid, support::PATIENCE), "worker {pid} stays");
        }
        told
    }

    /// Asks for a reload and waits until it has failed; why.
    fn reload_fails(&self) -> String {
        let mark = self.mark();
        self.signal(Signal::SIGHUP);
        let line = self.await_text(mark, "reload failed: ");
        assert_eq!(line["level"], "ERROR", "{line}");
        let message = line["message"].as_str().expect("a message");
        assert!(!message.contains('\n'), "{message}");
        message.strip_prefix("reload failed: ").expect("the phrase it begins with").to_owned()
    }

    /// Waits until the supervisor has no other children than these.
    fn await_children(&self, mut expected: Vec<i32>) {
        expected.sort_unstable();
        loop {
            let mut children = children_of(self.pid());
            children.sort_unstable();
            let Some(other) = children.iter().find(|pid| !expected.contains(pid)) else {
                return assert_eq!(children, expected);
            };
            assert!(await_gone(*other, support::PATIENCE), "{other} stays");
            // Gone, and perhaps not reaped yet: the supervisor says when it is.
            await_so("it is reaped", || support::parent_of(*other).is_none());
        }
    }

    fn family(&self) -> Vec<i32> {
        let mut family: Vec<i32> = self.adopted_workers().into_values().collect();
        family.push(self.template());
        family
    }
}

fn worker(service: &Service) -> Value {
    service.call("tine.worker", json!(null))["result"].clone()
}

#[test]
fn a_changed_configuration_takes_over() {
    let mut service = Service::start("processes = 1\nthreads = 1\n[limits]\nmax_message = \"1KiB\"");
    let long = json!("x".repeat(2_000));
    assert_eq!(support::code(&service.call("echo", long.clone())), -32003);
    let (pid, before) = (service.pid(), worker(&service));
    service.configure(LISTEN, "processes = 2\nthreads = 1\n[limits]\nmax_message = \"1MiB\"");
    let told = service.reload();
    assert_eq!((told["generation"].as_u64(), told["processes"].as_u64()), (Some(2), Some(2)), "{told}");
    assert!(told["took"].is_string(), "{told}");
    assert_eq!(told["config"], "config.toml", "{told}");
    assert_eq!(service.call("echo", long.clone())["result"], long);
    let after = worker(&service);
    assert_eq!((before["generation"].as_u64(), after["generation"].as_u64()), (Some(1), Some(2)));
    service.await_children(service.family());
    assert_eq!((service.pid(), service.worker_pids().len()), (pid, 2));
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn running_calls_are_finished_by_the_generation_that_began_them() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    let first = worker_pid(&mut wire);
    // Longer than the probation.
    wire.request("sleep", &json!({ "ms": 1_500 }));
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
    assert_eq!(wire.receive()["out"], "sleep");
    let next = service.workers()[&0];
    assert_ne!(next, first);
    assert!(await_gone(first, support::PATIENCE));
    assert_eq!(worker(&service)["pid"], next);
}

#[test]
fn listeners_are_kept_added_and_removed() {
    let service =
        Service::start("listen = [\"127.0.0.1:0\", \"unix:kept\", \"unix:removed\"]\nprocesses = 1");
    let in_folder = |name: &str| service.folder().join(name);
    let inode = |name: &str| std::fs::metadata(in_folder(name)).expect("a socket").ino();
    let kept = inode("kept");
    service.configure("listen = [\"unix:added\", \"unix:kept\", \"127.0.0.1:0\"]", "processes = 1");
    let told = service.reload();
    let tcp = service.address().to_owned();
    assert_eq!(told["listen"], format!("unix:added, unix:kept, {tcp}"), "{told}");
    assert_eq!(inode("kept"), kept);
    assert!(UnixStream::connect(in_folder("added")).is_ok());
    assert!(UnixStream::connect(in_folder("kept")).is_ok());
    assert!(!in_folder("removed").exists());
    assert_eq!(worker(&service)["generation"], 2);
}

#[test]
fn connections_go_on_where_their_listener_is_another_one_or_none() {
    let service = Service::start(
        "processes = 1\nthreads = 1\n[[listener]]\naddress = \"127.0.0.1:0\"\n\
         [[listener]]\naddress = \"unix:big\"\nprefix = \"big\"\n[timeouts]\nkeep_after = \"1ms\"",
    );
    let mut little = service.connect();
    let mut big = UnixStream::connect(service.folder().join("big")).expect("it listens");
    let mut both_go_on = || {
        let answer = little.call("tine.worker", json!(null));
        let body = json!({ "in": "tine.worker" }).to_string();
        let length = u32::try_from(body.len()).expect("a short body");
        big.write_all(&[&length.to_be_bytes()[..], body.as_bytes()].concat()).expect("the service reads");
        let mut prefix = [0; 4];
        big.read_exact(&mut prefix).expect("an answer");
        let mut text = vec![0; u32::from_be_bytes(prefix) as usize];
        big.read_exact(&mut text).expect("a whole answer");
        let other: Value = serde_json::from_slice(&text).expect("JSON");
        assert_eq!(answer["result"]["generation"], other["result"]["generation"]);
        answer["result"]["generation"].as_u64()
    };
    assert_eq!(both_go_on(), Some(1));
    service.configure(
        "",
        "processes = 1\n[[listener]]\naddress = \"unix:big\"\nprefix = \"big\"\n[[listener]]\naddress = \"127.0.0.1:0\"",
    );
    service.reload();
    assert_eq!(both_go_on(), Some(2));
    service.configure("", "processes = 1\nlisten = [\"unix:other\"]");
    service.reload();
    assert_eq!(both_go_on(), Some(3));
}

#[test]
fn no_connection_is_refused_or_closed_and_no_call_is_lost_while_generations_change() {
    let service = Service::start("processes = 2\nthreads = 2");
    let (address, over) = (service.socket_address(), Over::default());
    let repeat = |call: &dyn Fn(u64)| {
        let rounds = (0..).take_while(|_| !over.is_so());
        rounds.inspect(|number| call(*number)).count()
    };
    std::thread::scope(|scope| {
        let _told = over.at_the_end();
        let new_each_time = scope.spawn(|| {
            repeat(&|number| {
                assert_eq!(Wire::connect(address).call("echo", json!(number))["result"], number);
            })
        });
        let for_ever = scope.spawn(|| {
            let wires: Vec<RefCell<Wire>> = (0..8).map(|_| RefCell::new(Wire::connect(address))).collect();
            repeat(&|number| {
                for wire in &wires {
                    wire.borrow_mut().request("sleep", &json!({ "ms": number % 3 }));
                }
                for wire in &wires {
                    assert_eq!(wire.borrow_mut().receive()["out"], "sleep");
                }
            })
        });
        for _ in 0..3 {
            service.reload();
        }
        over.say();
        assert!(new_each_time.join().expect("each was answered") > 100);
        assert!(for_ever.join().expect("each was answered, on one connection") > 100);
    });
    assert_eq!(service.count_since(0, "died"), 0);
}

#[test]
fn whatever_fails_leaves_the_service_as_it_was() {
    let config = "processes = 2\nthreads = 1\n[timeouts]\nboot = \"1s\"";
    let service = Service::start_with(rig_by_files(), config);
    let family = service.family();
    let mut wire = service.connect();
    let pid = worker_pid(&mut wire);
    let in_use = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let in_use = in_use.local_addr().expect("its address");
    let more = format!("listen = [\"127.0.0.1:0\", \"unix:new\", \"{in_use}\"]");
    let rows = [
        ("config", LISTEN, "bad = 1", "", "", "config.toml:2: bad: unknown key"),
        ("limits", LISTEN, "threads = 0\nprocesses = 5000", "", "", "; config.toml:"),
        ("address", &more, config, "", "", "is in use, by another program"),
        ("preload fails", LISTEN, config, "fail", "", "the template can't start: preload: RIG_PRELOAD asked"),
        ("preload exits", LISTEN, config, "exit", "", "the template ended before it was ready (exit 7)"),
        ("preload hangs", LISTEN, config, "hang", "", "the template was not ready within timeouts.boot (1s)"),
        ("start fails", LISTEN, config, "", "fail", "ended before it was ready (on_worker_start: RIG_WORKER"),
        ("start exits", LISTEN, config, "", "exit", "ended before it was ready (exit 7)"),
        ("start hangs", LISTEN, config, "", "hang", "a worker was not ready within timeouts.boot (1s)"),
        ("dies soon", LISTEN, config, "", "later", "ended within 1s (exit 7)"),
    ];
    for (name, listen, config, preload, start, why) in rows {
        service.configure(listen, config);
        service.write("preload", preload);
        service.write("start", start);
        let told = service.reload_fails();
        assert!(told.contains(why), "{name}: {told}");
        assert_eq!(worker_pid(&mut wire), pid, "{name}");
        service.await_children(family.clone());
        assert!(!service.folder().join("new").exists(), "{name}: what was bound is released");
    }
    std::fs::remove_file(service.folder().join("config.toml")).expect("the configuration");
    let told = service.reload_fails();
    assert!(told.contains("expected a config file that can be read"), "{told}");
    // And when all is well again it works.
    service.configure(LISTEN, config);
    service.write("start", "");
    service.reload();
    assert_eq!(worker(&service)["generation"].as_u64(), Some(13));
}

/// A service whose program is a copy in a folder of its own.
fn service_of_a_copy(folder: &Folder) -> Service {
    let copy = copy_for_everyone(&rig(), folder.path());
    Service::start_with(copy, "processes = 1\nthreads = 1")
}

/// Puts another file in the place of a program, as a deployment does.
fn replace(program: &Path, how: &str) {
    let next = program.with_extension("next");
    let done = Command::new("sh").args(["-c", how, "sh"]).args([program, &next]).status().expect("a shell");
    assert!(done.success(), "{how}");
    std::fs::rename(&next, program).expect("in its place");
}

#[test]
fn a_program_that_cannot_be_executed_leaves_the_service_as_it_was_and_its_template_can_still_be_replaced() {
    let folder = Folder::new();
    let service = service_of_a_copy(&folder);
    let program = folder.path().join("program");
    let family = service.family();
    for (how, why) in [
        ("echo no program > \"$2\"; chmod 755 \"$2\"", "the program can't be executed: "),
        ("cp \"$1\" \"$2\"; chmod 644 \"$2\"", "the program can't be executed: "),
        ("cp \"$(command -v env)\" \"$2\"", "the template ended before it was ready (exit 127)"),
        // It is started by its descriptor, which no interpreter can open; the kernel says of it what it says of a missing file.
        (
            "printf '#!/bin/sh -e\\nexec true\\n' > \"$2\"; chmod 755 \"$2\"",
            "/program: expected a program, found a script (#!/bin/sh -e). ",
        ),
        (
            "printf '#!/nowhere/at/all' > \"$2\"; chmod 755 \"$2\"",
            "/program: expected a program, found a script (#!/nowhere/at/all). ",
        ),
    ] {
        replace(&program, how);
        let told = service.reload_fails();
        assert!(told.contains(why), "{told}");
    }
    std::fs::remove_file(&program).expect("the program");
    let told = service.reload_fails();
    assert!(told.contains("program: No such file"), "{told}");
    service.await_children(family);

    let mark = service.mark();
    send_signal(support::children_named(service.pid(), "tine-template")[0], Signal::SIGKILL);
    service.await_text(mark, "template started");
    let mut wire = service.connect();
    wire.request("crash", &json!({ "how": "segv" }));
    service.await_refill(mark, 0);
    assert_eq!(worker(&service)["generation"], 1);
}

#[test]
fn what_the_path_leads_to_now_is_what_serves_next() {
    static BUILT: Once = Once::new();
    let folder = Folder::new();
    let mut service = service_of_a_copy(&folder);
    assert_eq!(support::code(&service.call("ctx", json!(null))), -32601);
    service.call("rand", json!(null));
    let program = folder.path().join("program");
    let other = example("context", &BUILT);
    let other = other.get_program().to_str().expect("a path in UTF-8");
    replace(&program, &format!("cp '{other}' \"$2\"; chmod 755 \"$2\""));
    service.reload();
    let methods = service.call("tine.methods", json!(null))["result"].clone();
    assert!(!methods.as_array().expect("a list").contains(&json!("rand")), "{methods}");
    let inode = |path: &Path| std::fs::metadata(path).expect("a program").ino();
    assert_eq!(inode(Path::new(&format!("/proc/{}/exe", service.template()))), inode(&program));
    assert_eq!(service.stop(), Some(0));
    let log = service.whole_log();
    for method in ["rand", "tine.methods"] {
        let served = log.iter().find(|line| line["message"] == "served" && line["method"] == method);
        assert_eq!(served.expect("both generations count")["ok"], 1, "{method}");
    }
}

#[test]
fn reloads_during_a_reload_are_one_more() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "worker ready");
    for _ in 0..5 {
        let mark = service.mark();
        service.signal(Signal::SIGHUP);
        service.await_text(mark, "another follows it");
    }
    for generation in [2, 3] {
        service.await_since(mark, "reloaded", |line| {
            line["message"] == "reloaded" && line["generation"] == generation
        });
    }
    service.await_children(service.family());
    assert_eq!(service.count_since(mark, "reloaded"), 2);
    assert_eq!(service.count_since(mark, "reloading"), 2);
}

#[test]
fn the_configurations_processes_replace_what_signals_had_asked_for() {
    let service = Service::start("processes = 1\nthreads = 1");
    for _ in 0..2 {
        let mark = service.mark();
        service.signal(Signal::SIGTTIN);
        service.await_text(mark, "worker ready");
    }
    assert_eq!(service.reload()["processes"], 1);
    let mark = service.mark();
    service.signal(Signal::SIGTTOU);
    service.await_text(mark, "the last worker stays");
}

#[test]
fn many_reloads_leave_no_process_and_no_descriptor_behind() {
    let service = Service::start_with(rig_by_files(), "processes = 2\nthreads = 1");
    service.reload();
    service.await_children(service.family());
    let descriptors = open_descriptors(service.pid());
    for round in 0..3 {
        service.write("start", "exit");
        for _ in 0..5 {
            service.reload_fails();
        }
        service.write("start", "");
        service.reload();
        service.await_children(service.family());
        // The last of a child is forgotten a moment after it was reaped.
        let closed = format!("what round {round} had opened is closed");
        await_so(&closed, || open_descriptors(service.pid()) <= descriptors);
    }
}

#[test]
fn a_stop_gives_a_reload_up() {
    let mut service = Service::start("processes = 2\nthreads = 1");
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "worker ready");
    assert_eq!(service.stop(), Some(0));
    service.whole_log();
    assert_eq!(service.count_since(mark, "reload failed: the service is to stop"), 1);
    assert_eq!(service.count_since(mark, "died"), 0);
}

#[test]
fn a_worker_that_is_told_to_end_serves_until_another_one_does() {
    let service =
        Service::start_with(rig_by_files(), "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 0");
    let mut wire = service.connect();
    let pid = worker_pid(&mut wire);
    service.write("start", "fail");
    let mark = service.mark();
    send_signal(pid, Signal::SIGTERM);
    service.await_text(mark, "a worker can't start");
    assert_eq!(worker_pid(&mut wire), pid);
    assert_eq!(worker(&service)["pid"], pid, "also for new connections");
    service.write("start", "");
    let next = service.await_refill(mark, 0);
    service.await_text(mark, "worker ended");
    assert_eq!(worker(&service)["pid"], next);
}

#[test]
fn a_link_that_is_turned_to_another_program_is_followed() {
    let folder = Folder::new();
    let copy = copy_for_everyone(&rig(), folder.path());
    let (link, turned) = (folder.path().join("current"), folder.path().join("turned"));
    std::os::unix::fs::symlink(copy.get_program(), &link).expect("a link");
    let service = Service::start_with(Command::new(&link), "processes = 1\nthreads = 1");
    let next = folder.path().join("next");
    let copied = Command::new("cp").arg(copy.get_program()).arg(&next).status().expect("cp runs");
    assert!(copied.success());
    std::fs::set_permissions(&next, std::fs::Permissions::from_mode(0o755)).expect("our own file");
    std::os::unix::fs::symlink(&next, &turned).expect("a link");
    std::fs::rename(&turned, &link).expect("in its place");
    service.reload();
    let exe = std::fs::read_link(format!("/proc/{}/exe", service.template())).expect("a process");
    assert_eq!(exe, next);
}
