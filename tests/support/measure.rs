//! What the kernel tells of a process: memory, descriptors, threads; and what a test asks of its own.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::stalls::Stalls;
use super::{PATIENCE, cpu_ticks};

/// Clock ticks that nobody calls a busy loop: those of the calls a test makes meanwhile.
const NEXT_TO_NOTHING: u64 = 4;

/// Bytes of memory that the process shares with no other.
pub fn private_memory(pid: i32) -> usize {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("the process lives");
    let kilobytes: usize = rollup
        .lines()
        .filter(|line| line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<usize>().ok())
        .sum();
    kilobytes * 1024
}

/// The memory of a process that it shares with others by way of a memfd, as a worker's arena is, in bytes.
pub fn shared_memory(pid: i32) -> usize {
    let kib = super::proc::status(pid, "RssShmem").expect("the process lives");
    kib.trim_end_matches(" kB").trim().parse::<usize>().expect("a number") * 1024
}

/// Descriptors that the process has open.
pub fn descriptors(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives").count()
}

/// Threads of the process.
pub fn threads(pid: i32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives").count()
}

/// Threads of the process that are called this.
pub fn threads_named(pid: i32, name: &str) -> usize {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let names = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|found| found.trim_end() == name).count()
}

/// The soft and the hard limit on open descriptors of a process.
pub fn descriptor_limits(pid: i32) -> (u64, u64) {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).expect("the process lives");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("it is listed");
    let number = |index: usize| line.split_whitespace().nth(index).and_then(|text| text.parse().ok());
    (number(3).expect("a soft limit"), number(4).expect("a hard limit"))
}

/// Lets this process open as many descriptors as it may; how many those are.
pub fn raise_descriptor_limit() -> u64 {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("the limit can be read");
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).expect("a process may raise its soft limit");
    hard
}

/// Measures again while the machine stood still for so long meanwhile, as a thread of the test has seen.
pub fn without_stalls<T>(limit: Duration, mut measure: impl FnMut() -> T) -> T {
    let until = Instant::now() + PATIENCE;
    loop {
        let stalls = Stalls::watch();
        let measured = measure();
        let stalled = stalls.longest();
        if stalled < limit {
            return measured;
        }
        assert!(
            Instant::now() < until,
            "the machine stands still all the while, the last time for {stalled:?}"
        );
    }
}

/// Runs `meanwhile` (which should last a few hundred milliseconds) and fails if one of the processes did more
/// than next to nothing in that time. A machine that stands still counts that for whoever it has interrupted.
pub fn assert_rests(pids: &[i32], mut meanwhile: impl FnMut()) {
    let used = without_stalls(Duration::from_millis(20), || {
        let before: Vec<u64> = pids.iter().map(|pid| cpu_ticks(*pid)).collect();
        meanwhile();
        let used = pids.iter().zip(before).map(|(pid, before)| cpu_ticks(*pid) - before);
        used.collect::<Vec<_>>()
    });
    for (pid, used) in pids.iter().zip(used) {
        assert!(
            used <= NEXT_TO_NOTHING,
            "process {pid} used {used} ticks of CPU time while it had nothing to do"
        );
    }
}

/// How often the threads of the process have gone to sleep: one that rests never does.
pub fn wakeups(pid: i32) -> u64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let statuses = tasks.filter_map(|task| fs::read_to_string(task.ok()?.path().join("status")).ok());
    statuses
        .filter_map(|status| {
            let line = status.lines().find(|line| line.starts_with("voluntary_ctxt_switches"))?;
            line.split_whitespace().nth(1)?.parse::<u64>().ok()
        })
        .sum()
}
