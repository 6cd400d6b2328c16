//! What happens when a worker or the template does not get ready: back-off, giving up, and when not to.

use std::os::unix::process::CommandExt;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use crate::support::proc::{Process, copy_for_everyone, worker_pid};
use crate::support::{Folder, Service, Wire, rig, send_signal};
use nix::sys::signal::Signal;
use nix::unistd::geteuid;
use serde_json::json;

fn rig_with(variable: &str, how: &str) -> Command {
    let mut program = rig();
    program.env(variable, how);
    program
}

/// What was said last.
fn last_word(log: &str) -> &str {
    log.lines().last().unwrap_or_default()
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
    let why =
        "giving up: more than restart.max_restarts = 3 boot failures, and no worker was ready between them";
    assert!(log.contains(why), "{log}");
    assert!(!log.contains("worker ready"), "{log}");
    let why = "the service can't start: a worker ended before it was ready (on_worker_start: RIG_WORKER_START asked for it)";
    assert!(last_word(&log).contains(why), "{log}");
}

#[test]
fn a_worker_that_exits_before_it_is_ready_is_a_boot_failure() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"10ms\"";
    let (code, log) = end_of(Service::launch(rig_with("RIG_WORKER_START", "exit"), config));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(log.matches(r#""cause":"exit 7""#).count(), 2, "{log}");
    let why = "the service can't start: a worker ended before it was ready (exit 7)";
    assert!(last_word(&log).contains(why), "{log}");
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
    let why = "the service can't start: a worker was not ready within timeouts.boot (1s)";
    assert!(last_word(&log).contains(why), "{log}");
}

#[test]
fn a_worker_whose_state_or_hook_panics_says_so_and_is_accused_of_nothing_else() {
    let words = [("RIG_STATE", "state `"), ("RIG_WORKER_START", "on_worker_start panicked")];
    for (variable, why) in words {
        let config = "processes = 2\nthreads = 1\n[restart]\nmax_restarts = 30\nbackoff = \"1ms\"\nbackoff_max = \"1ms\"";
        let (code, log) = end_of(Service::launch(rig_with(variable, "panic"), config));
        assert_eq!(code, Some(1), "{log}");
        assert!(last_word(&log).contains(why), "{log}");
        assert!(last_word(&log).contains(&format!("panicked: {variable} asked for it")), "{log}");
        assert!(!log.contains("channel to the supervisor was closed"), "{log}");
        assert!(
            !log.contains(r#""cause":"SIGKILL","generation":1,"level":"ERROR""#),
            "it ends itself: {log}"
        );
    }
}

#[test]
fn a_worker_that_was_ready_is_replaced_however_often_it_is_killed_before_its_first_call() {
    let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 2\nbackoff = \"10ms\"";
    let mut service = Service::start(config);
    for _ in 0..8 {
        let mark = service.mark();
        send_signal(service.adopted_workers()[&0], Signal::SIGKILL);
        service.await_refill(mark, 0);
    }
    assert_eq!(service.count_since(0, "boot failure"), 0);
    assert_eq!(service.call("ping", json!(1))["result"], 1);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn boot_failures_are_counted_from_the_last_worker_that_was_ready() {
    let folder = Folder::new();
    let how = folder.path().join("how");
    let config =
        "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 2\nbackoff = \"1ms\"\nbackoff_max = \"1ms\"";
    let service = Service::start_with(rig_with("RIG_WORKER_START", &format!("@{}", how.display())), config);
    let fails_and_boots = |boots: bool| {
        let mark = service.mark();
        let worker = service.adopted_workers()[&0];
        std::fs::write(&how, "exit").expect("our own file");
        send_signal(worker, Signal::SIGKILL);
        service.await_text(mark, "boot failure 1 of restart.max_restarts = 2");
        if boots {
            std::fs::remove_file(&how).expect("our own file");
            service.await_refill(mark, 0);
        }
    };
    for _ in 0..5 {
        fails_and_boots(true);
    }
    fails_and_boots(false);
    let (code, log) = end_of(service);
    assert_eq!(code, Some(1), "{log}");
    let why = "the service has given up: a worker ended before it was ready (exit 7)";
    assert!(last_word(&log).contains(why), "{log}");
}

#[test]
fn a_service_that_never_starts_gives_up_after_30s_and_lets_those_go_who_wait() {
    let config = "processes = 2\n[timeouts]\nboot = \"25s\"";
    let never = format!("{config}\n[restart]\nmax_restarts = 0");
    let mut never = Service::launch(rig_with("RIG_WORKER_START", "fail"), &never);
    never.await_listening();
    let mut turned_away = [never.connect(), never.connect()];
    let ways = [
        (
            "RIG_WORKER_START",
            "fail",
            "a worker ended before it was ready (on_worker_start: RIG_WORKER_START asked for it)",
        ),
        ("RIG_PRELOAD", "segv", "the template ended before it was ready (SIGSEGV"),
    ];
    let begun = Instant::now();
    // Both at the same time.
    let services = ways.map(|(variable, how, why)| {
        let mut service = Service::launch(rig_with(variable, how), config);
        service.await_listening();
        let waiting = service.connect();
        (service, waiting, why)
    });
    for (service, mut waiting, why) in services {
        let (code, log) = end_of(service);
        assert_eq!(code, Some(1), "{log}");
        assert!(log.contains("giving up: no worker was ready within 30s"), "{log}");
        assert!(last_word(&log).contains(&format!("the service can't start: {why}")), "{log}");
        assert!(waiting.is_cut_off());
    }
    assert!(begun.elapsed() >= Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(turned_away.iter_mut().all(Wire::is_cut_off));
    assert!(never.connect().is_cut_off(), "and who comes later");
    never.await_text(0, "who connects is turned away until one is");
    assert_eq!(never.count_since(0, "turned away"), 1);
    assert_eq!(never.stop(), Some(0));
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
    let why = "the service can't start: the template can't start: preload: RIG_PRELOAD asked for it";
    assert!(last_word(&log).contains(why), "{log}");
}

#[test]
fn a_preload_that_panics_ends_the_service_at_once_and_says_why() {
    let (code, log) = end_of(Service::launch(rig_with("RIG_PRELOAD", "panic"), "processes = 1"));
    assert_eq!(code, Some(1), "{log}");
    assert_eq!(log.matches("template started").count(), 1, "{log}");
    assert!(last_word(&log).contains("preload panicked: RIG_PRELOAD asked for it"), "{log}");
}

#[test]
fn a_preload_that_fails_when_the_template_is_started_again_ends_the_service_too() {
    for (how, why) in [
        ("fail", "the template can't start: preload: RIG_PRELOAD asked for it"),
        ("panic", "the template can't start: preload panicked: RIG_PRELOAD asked for it"),
        ("segv", "the template ended before it was ready (SIGSEGV"),
    ] {
        let folder = Folder::new();
        let file = folder.path().join("how");
        let config = "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 2\nbackoff = \"10ms\"";
        let program = rig_with("RIG_PRELOAD", &format!("@{}", file.display()));
        let service = Service::start_with(program, config);
        std::fs::write(&file, how).expect("our own file");
        Process::of(service.template()).kill();
        let (code, log) = end_of(service);
        assert_eq!(code, Some(1), "{log}");
        assert!(last_word(&log).contains(&format!("the service has given up: {why}")), "{log}");
    }
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
    let why = "the service can't start: the template was not ready within timeouts.boot (1s)";
    assert!(last_word(&log).contains(why), "{log}");
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
