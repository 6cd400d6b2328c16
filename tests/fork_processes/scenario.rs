//! The programs that the tests in `main.rs` look at, each a use of `fork_processes` that goes well or badly.
//!
//! Every process says what it does in whole lines on standard output. A parent that gets an error says it,
//! says whether it still has children, and exits 1. Nothing outlives a minute, whatever fails.

use std::fs;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{PipeReader, Read as _, Write as _, pipe};
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::parent_id;
use std::process::{self, Command, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use nix::errno::Errno;
use nix::libc;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal, kill, raise};
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::{Pid, Uid, alarm, geteuid, pause, setresuid};
use tine::{ForkError, ForkProcesses, fork_processes, task_id};

/// Plays the scenario named first, with the arguments that follow.
pub(crate) fn play(args: &[String]) {
    alarm::set(60);
    setrlimit(Resource::RLIMIT_CORE, 0, 0).expect("no core files");
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["report", n] => report(number(n)),
        ["report-on-one-cpu", n] => report_on_one_cpu(number(n)),
        ["unfinished-line"] => unfinished_line(),
        ["crash-twice", how, max_restarts] => crash_twice(how, number(max_restarts)),
        ["crash-always", max_restarts] => crash_always(number(max_restarts)),
        ["crash-once-each", max_restarts] => crash_once_each(number(max_restarts)),
        ["leave-children", "that obey"] => leave_children_that_obey(),
        ["leave-children", "that ignore"] => leave_children_that_ignore(),
        ["second-thread"] => second_thread(),
        ["joined-threads"] => joined_threads(),
        ["nested"] => nested(),
        ["too-few-processes"] => too_few_processes(),
        ["interrupt"] => interrupt(),
        ["stranger"] => stranger(),
        ["exit", code] => process::exit(number(code)),
        ["hooks"] => hooks(),
        ["random-states"] => random_states(),
        ["rand", reseed] => rand_thread_generator(reseed == "reseed"),
        _ => panic!("no scenario {args:?}"),
    }
}

fn report(n: i32) {
    println!("before: {:?}", task_id());
    let id = fork(ForkProcesses::new(n));
    println!("child {id} knows {:?}", task_id());
}

fn report_on_one_cpu(n: i32) {
    let this_process = Pid::from_raw(0);
    let allowed = sched_getaffinity(this_process).expect("own CPUs");
    let first = (0..CpuSet::count()).find(|&cpu| allowed.is_set(cpu) == Ok(true)).expect("a CPU");
    let mut only_first = CpuSet::new();
    only_first.set(first).expect("a CPU number");
    sched_setaffinity(this_process, &only_first).expect("give up the other CPUs");
    report(n);
}

fn unfinished_line() {
    print!("unfinished");
    fork(ForkProcesses::new(2));
}

fn crash_twice(how: &str, max_restarts: u32) {
    if has_signal(process::id(), "SigIgn", Signal::SIGCHLD) {
        println!("SIGCHLD is ignored");
    }
    let mut crashes = Crashes::left(2);
    let id = fork(ForkProcesses::new(2).max_restarts(max_restarts));
    println!("child {id} started");
    if id == 1 && crashes.take() {
        match how {
            "exit" => process::exit(3),
            "abort" => process::abort(),
            "kill" => raise(Signal::SIGKILL).expect("kill itself"),
            // No safe call sends these. The shell's parent is this process.
            "real-time" => {
                let kill = format!("kill -{} $PPID", libc::SIGRTMIN() + 3);
                Command::new("sh").args(["-c", &kill]).status().expect("run a shell");
            }
            _ => panic!("no such crash: {how}"),
        }
        panic!("lived on after {how}");
    }
}

fn crash_always(max_restarts: u32) {
    let id = fork(ForkProcesses::new(1).max_restarts(max_restarts));
    println!("child {id} started");
    process::exit(1);
}

fn crash_once_each(max_restarts: u32) {
    let mut crashes = [Crashes::left(1), Crashes::left(1)];
    let id = fork(ForkProcesses::new(2).max_restarts(max_restarts));
    process::exit(i32::from(crashes[id].take()));
}

fn leave_children_that_obey() {
    // Blocked before the fork, so that it cannot come before a child waits for it.
    let term = only(Signal::SIGTERM);
    term.thread_block().expect("block SIGTERM");
    // Whoever waits for the grace to pass, though all children obey, is still waiting when the alarm comes.
    let id = fork(ForkProcesses::new(3).max_restarts(0).grace(Duration::from_secs(3600)));
    if id == 2 {
        process::exit(1);
    }
    println!("child {id} got {}", term.wait().expect("wait for SIGTERM"));
}

fn leave_children_that_ignore() {
    only(Signal::SIGTERM).thread_block().expect("block SIGTERM");
    let id = fork(ForkProcesses::new(3).max_restarts(0).grace(Duration::from_millis(50)));
    if id == 2 {
        process::exit(1);
    }
    loop {
        pause();
    }
}

fn second_thread() {
    let (_keep, ended) = mpsc::channel::<()>();
    thread::spawn(move || ended.recv());
    let id = fork(ForkProcesses::new(2));
    println!("child {id} started");
}

fn joined_threads() {
    // So many because the kernel is late only now and then: once in about 500 rounds like these.
    for _ in 0..1500 {
        let threads: Vec<_> = (0..8).map(|_| thread::spawn(|| ())).collect();
        for thread in threads {
            thread.join().expect("an empty thread");
        }
        match fork_processes(1, 0) {
            Ok(_) => process::exit(1),
            Err(ForkError::TooManyRestarts) => {}
            Err(error) => panic!("{error}"),
        }
    }
}

fn nested() {
    fork(ForkProcesses::new(1));
    println!("{}", fork_processes(1, 0).expect_err("forked in a child"));
}

fn too_few_processes() {
    // No limit on processes holds for root.
    if geteuid().is_root() {
        let nobody = Uid::from_raw(65534);
        setresuid(nobody, nobody, nobody).expect("become nobody");
    }
    let limit = tasks_of(geteuid()) + 2;
    setrlimit(Resource::RLIMIT_NPROC, limit, limit).expect("limit processes");
    // More than other tests, of the same user at the same time, could make room for by ending.
    fork(ForkProcesses::new(100));
    pause();
}

/// The one handler that a program has without `unsafe` is std's own for SIGSEGV. It interrupts a wait (it is
/// installed without `SA_RESTART`) and, if no memory access was at fault, does nothing but uninstall itself.
fn interrupt() {
    fork(ForkProcesses::new(1).max_restarts(0));
    let parent = parent_id();
    let has_handler = || has_signal(parent, "SigCgt", Signal::SIGSEGV);
    if has_handler() {
        println!("the parent has a handler");
    }
    until(|| status_line(parent, "State").starts_with('S'));
    kill(pid(parent), Signal::SIGSEGV).expect("signal the parent");
    until(|| !has_handler());
    println!("the parent has run its handler");
}

fn stranger() {
    let own_path = std::env::current_exe().expect("own path");
    let mut stranger = Command::new(own_path);
    stranger.args([super::SCENARIO, "exit", "3"]).stdout(Stdio::null()).stderr(Stdio::null());
    let stranger = stranger.spawn().expect("start a stranger").id();
    fork(ForkProcesses::new(1).max_restarts(0));
    until(|| kill(pid(stranger), None) == Err(Errno::ESRCH));
    println!("the stranger has gone");
}

fn hooks() {
    let mut crashes = Crashes::left(1);
    let forks = ForkProcesses::new(2)
        .after_fork(|id| println!("first hook {id}"))
        .after_fork(|id| println!("second hook {id}"));
    let id = fork(forks);
    println!("child {id}");
    process::exit(i32::from(id == 0 && crashes.take()));
}

fn random_states() {
    let mut crashes = Crashes::left(1);
    // From here on this thread has keys, which every child inherits.
    let _parents = RandomState::new();
    let id = fork(ForkProcesses::new(4));
    for _ in 0..3 {
        println!("{}", RandomState::new().hash_one("the same in all"));
    }
    process::exit(i32::from(id == 0 && crashes.take()));
}

fn rand_thread_generator(reseed: bool) {
    let _parents: u64 = rand::random();
    let mut forks = ForkProcesses::new(4);
    if reseed {
        forks = forks.after_fork(|_| rand::rng().reseed().expect("random bytes"));
    }
    fork(forks);
    println!("{}", rand::random::<u64>());
}

/// Returns in children only.
fn fork(forks: ForkProcesses) -> usize {
    let parent = process::id();
    // An alarm is not inherited.
    let set_alarm = |_| {
        alarm::set(60);
    };
    let forked = forks.after_fork(set_alarm).run();
    if process::id() != parent {
        return forked.expect("a child gets its id");
    }
    match forked {
        Ok(id) => println!("the parent returned with {id}"),
        Err(error) => println!("error: {error}"),
    }
    match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
        Err(Errno::ECHILD) => println!("left: none"),
        other => println!("left: {other:?}"),
    }
    if SigSet::thread_get_mask().expect("own mask").contains(Signal::SIGCHLD) {
        println!("SIGCHLD was left blocked");
    }
    process::exit(1);
}

/// How many crashes are left for all processes that inherit this together: bytes in a pipe.
struct Crashes(PipeReader);

impl Crashes {
    fn left(count: usize) -> Crashes {
        let (reader, mut writer) = pipe().expect("a pipe");
        writer.write_all(&vec![0; count]).expect("fill the pipe");
        Crashes(reader)
    }

    fn take(&mut self) -> bool {
        self.0.read(&mut [0]).expect("read the pipe") == 1
    }
}

/// For what no event tells: the state of another process that is not a child.
fn until(condition: impl Fn() -> bool) {
    while !condition() {
        thread::yield_now();
    }
}

fn tasks_of(user: Uid) -> u64 {
    let processes = fs::read_dir("/proc").expect("list processes").flatten();
    let mut tasks = 0;
    for process in processes {
        let own = process.metadata().is_ok_and(|metadata| metadata.uid() == user.as_raw());
        if let (true, Ok(threads)) = (own, fs::read_dir(process.path().join("task"))) {
            tasks += threads.count() as u64;
        }
    }
    // Under another identity than it started with, a process's own files are root's.
    tasks.max(1)
}

fn has_signal(process: u32, set: &str, signal: Signal) -> bool {
    let bits = u64::from_str_radix(&status_line(process, set), 16).expect("hexadecimal");
    bits & (1 << (signal as i32 - 1)) != 0
}

fn status_line(process: u32, key: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("read a process's status");
    let line = status.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(":\t"));
    line.expect("a line of that name").to_owned()
}

fn only(signal: Signal) -> SigSet {
    let mut set = SigSet::empty();
    set.add(signal);
    set
}

fn pid(process: u32) -> Pid {
    Pid::from_raw(process.try_into().expect("a pid"))
}

fn number<N: std::str::FromStr>(text: &str) -> N {
    text.parse().unwrap_or_else(|_| panic!("{text} is no number"))
}
