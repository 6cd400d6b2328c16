//! What happens when a worker or the template does not get ready: back-off, giving up, and when not to.

mod support;

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::json;
use support::proc::{Process, copy_for_everyone, worker_pid};
use support::{Folder, Service, rig, send_signal};

fn rig_with(variable: &str, how: &str) -> Command {
    let mut program = rig();
    program.env(variable, how);
    program
}

/// Waits for the end; the exit code and the whole log.
fn end_of(mut service: Service) -> (Option<i32>, String) {
    let code = service.await_end().code();
    service.whole_log();
    (code, service.log_so_far())
}

#[test]
fn a_worker_that_can_not_start_backs_off_and_then_ends_the_service_with_1() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 3\nbackoff = \"10ms\"";
    let (code, log) = end_of(Service::launch(rig_with("RIG_WORKER_START", "fail"), config));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(
        log.matches("a worker can't start: on_worker_start: RIG_WORKER_START asked for it").count(),
        4,
        "{log}"
    );
    for (wait, number) in [("10ms", 1), ("20ms", 2), ("40ms", 3)] {
        let told =
            format!("slot 0 is filled again in {wait} (boot failure {number} of restart.max_restarts = 3)");
        assert!(log.contains(&told), "expected {told:?} in:\n{log}");
    }
    let why = "giving up: more than restart.max_restarts = 3 boot failures within restart.window (60s)";
    assert!(log.contains(why), "{log}");
    assert!(!log.contains("worker ready"), "{log}");
}

#[test]
fn a_worker_that_exits_before_it_is_ready_is_a_boot_failure() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let (code, log) = end_of(Service::launch(rig_with("RIG_WORKER_START", "exit"), config));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(log.matches(r#""cause":"exit 7""#).count(), 2, "{log}");
}

#[test]
fn a_worker_that_is_not_ready_in_time_is_killed_and_counted() {
    let config = "processes = 1\nthreads = 1\n[timeouts]\nboot = \"1s\"\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let (code, log) = end_of(Service::launch(rig_with("RIG_WORKER_START", "hang"), config));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(
        log.matches("a worker was not ready within timeouts.boot (1s) and is killed").count(),
        2,
        "{log}"
    );
    assert!(log.contains("giving up"), "{log}");
}

#[test]
fn a_worker_killed_before_its_first_answer_is_a_boot_failure() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 2\nbackoff = \"10ms\"";
    let service = Service::start(config);
    for _ in 0..2 {
        let mark = service.mark();
        send_signal(service.workers()[&0], Signal::SIGKILL);
        service.await_refill(mark, 0);
    }
    send_signal(service.workers()[&0], Signal::SIGKILL);
    let (code, log) = end_of(service);
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("giving up"), "{log}");
}

#[test]
fn an_answered_call_makes_a_worker_one_that_has_booted() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let mut service = Service::start(config);
    for _ in 0..5 {
        let mark = service.mark();
        service.call("ping", json!(1));
        send_signal(service.workers()[&0], Signal::SIGKILL);
        service.await_refill(mark, 0);
    }
    assert_eq!(service.count_since(0, "boot failure"), 0);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn max_restarts_0_never_gives_up() {
    let config =
        "processes = 2\nthreads = 1\n[restart]\nmax_restarts = 0\nbackoff = \"1ms\"\nbackoff_max = \"2ms\"";
    let mut service = Service::launch(rig_with("RIG_WORKER_START", "exit"), config);
    for _ in 0..40 {
        service.await_log("worker died");
    }
    assert_eq!(service.stop(), Some(0));
    service.whole_log();
    assert_eq!(service.count_since(0, "giving up"), 0);
}

#[test]
fn a_preload_that_fails_ends_the_service_at_once_and_says_why() {
    let (code, log) = end_of(Service::launch(rig_with("RIG_PRELOAD", "fail"), "processes = 1"));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("the template can't start: preload: RIG_PRELOAD asked for it"), "{log}");
    assert_eq!(log.matches("template started").count(), 1, "{log}");
}

#[test]
fn a_preload_that_leaves_a_thread_behind_is_told_so_by_the_threads_name() {
    let (code, log) = end_of(Service::launch(rig_with("RIG_PRELOAD", "thread"), "processes = 1"));
    assert_eq!(code, Some(1), "{log}");
    assert!(log.contains("preload must leave one thread, found 2"), "{log}");
    assert!(log.contains("left behind"), "{log}");
}

#[test]
fn a_preload_that_hangs_is_killed_and_counted() {
    let config = "processes = 1\n[timeouts]\nboot = \"1s\"\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let (code, log) = end_of(Service::launch(rig_with("RIG_PRELOAD", "hang"), config));
    assert_eq!(code, Some(1), "{log}");
    let told = "the template was not ready within timeouts.boot (1s) and is killed";
    assert_eq!(log.matches(told).count(), 2, "{log}");
    assert!(log.contains("giving up"), "{log}");
}

#[test]
fn a_preload_that_exits_is_a_boot_failure() {
    let config = "processes = 1\n[restart]\nmax_restarts = 2\nbackoff = \"10ms\"";
    let (code, log) = end_of(Service::launch(rig_with("RIG_PRELOAD", "exit"), config));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(log.matches("template died").count(), 3, "{log}");
    assert!(log.contains("giving up"), "{log}");
}

#[test]
fn a_stop_during_a_hanging_boot_ends_the_service_with_0() {
    for variable in ["RIG_PRELOAD", "RIG_WORKER_START"] {
        let mut service = Service::launch(rig_with(variable, "hang"), "processes = 1");
        service.await_log(&format!("{variable} hangs"));
        assert_eq!(service.stop(), Some(0), "{variable}");
    }
}

/// A service of a user whom the kernel's limit on processes binds: it does not bind root.
struct OrdinaryUsersService {
    service: Service,
    uid: u32,
    _program: Folder,
}

impl OrdinaryUsersService {
    fn start(config: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !geteuid().is_root() {
            eprintln!("NOT TESTED: only root can start a service for a user of its own");
            return None;
        }
        if Command::new("prlimit").arg("--version").output().is_err() {
            eprintln!("NOT TESTED: there is no prlimit, which util-linux has");
            return None;
        }
        let folder = Folder::new();
        let mut program = copy_for_everyone(&rig(), folder.path());
        // Nobody's uid: all its processes are this service's.
        let uid = 70_000 + std::process::id() % 1_000_000 * 10 + NEXT.fetch_add(1, Ordering::Relaxed);
        program.uid(uid);
        Some(Self { service: Service::start_with(program, config), uid, _program: folder })
    }

    /// Lets `pid` and its future children fork only while their user has fewer than `most` processes.
    fn limit_processes(&self, pid: i32, most: &str) {
        // As that user, because root in a container may lack the capability to do it to others.
        let mut prlimit = Command::new("prlimit");
        prlimit.args(["--pid", &pid.to_string(), &format!("--nproc={most}:")]).uid(self.uid);
        assert!(prlimit.status().expect("prlimit runs").success());
    }
}

fn most_processes_allowed() -> String {
    let hard = rustix::process::getrlimit(rustix::process::Resource::Nproc).maximum;
    hard.map_or_else(|| "unlimited".to_owned(), |most| most.to_string())
}

#[test]
fn a_fork_that_the_kernel_refuses_is_tried_again_until_it_succeeds() {
    let config = "processes = 2\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let Some(mut user) = OrdinaryUsersService::start(config) else { return };
    let service = &user.service;
    let mut unharmed = service.connect_to(1);
    let mut doomed = service.connect_to(0);
    user.limit_processes(service.template(), "1");
    let mark = service.mark();
    doomed.request("crash", &json!({ "how": "segv" }));
    for _ in 0..4 {
        let refused = service.await_log("a worker can't be forked");
        assert!(refused["reason"].as_str().is_some_and(|why| why.contains("os error 11")), "{refused}");
    }
    assert_eq!(worker_pid(&mut unharmed), service.workers()[&1], "the other worker serves");
    user.limit_processes(service.template(), &most_processes_allowed());
    let next = service.await_refill(mark, 0);
    assert_eq!(worker_pid(&mut service.connect_to(0)), next);
    assert_eq!(service.count_since(mark, "boot failure"), 0, "a refused fork is no boot failure");
    assert_eq!(user.service.stop(), Some(0));
}

#[test]
fn a_template_that_the_kernel_refuses_to_fork_is_tried_again_until_it_succeeds() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let Some(mut user) = OrdinaryUsersService::start(config) else { return };
    let service = &user.service;
    let mut wire = service.connect();
    let worker = worker_pid(&mut wire);
    user.limit_processes(service.pid(), "1");
    let mark = service.mark();
    let template = Process::of(service.template());
    template.kill();
    for _ in 0..4 {
        service.await_log("a template can't be started");
    }
    assert_eq!(worker_pid(&mut wire), worker, "the worker serves");
    user.limit_processes(service.pid(), &most_processes_allowed());
    service.await_text(mark, "template started");
    wire.request("crash", &json!({ "how": "segv" }));
    let next = service.await_refill(mark, 0);
    assert_eq!(worker_pid(&mut service.connect()), next);
    assert_eq!(user.service.stop(), Some(0));
}
