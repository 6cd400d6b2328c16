//! Children that are ended with their owner, and what the kernel says of a process and its threads.

use std::fs;
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use nix::time::clock_getcpuclockid;
use nix::unistd::Pid;
use tine::BoxError;

use super::cores::{Cores, Place};

/// What a child gets to end by itself.
const GRACE: Duration = Duration::from_secs(5);

/// A child process, ended when it is dropped.
#[derive(Debug)]
pub struct Owned {
    pub child: Child,
}

impl Owned {
    /// Starts a program at a place.
    pub fn start(cores: &Cores, place: Place, command: &mut Command) -> Result<Self, BoxError> {
        let child = cores.at(place, || command.stdin(Stdio::null()).spawn())?;
        let child = child.map_err(|error| format!("{}: {error}", command.get_program().display()))?;
        Ok(Self { child })
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// TERM, and the end. An error when it didn't end with 0.
    pub fn stop(mut self) -> Result<(), BoxError> {
        kill(Pid::from_raw(self.pid()), Signal::SIGTERM)?;
        let ended = self.child.wait()?;
        if ended.success() { Ok(()) } else { Err(format!("expected an end with 0, found {ended}").into()) }
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // It may have children of its own, which it ends with itself when it is asked to.
        let _ = kill(Pid::from_raw(self.pid()), Signal::SIGTERM);
        let until = Instant::now() + GRACE;
        while matches!(self.child.try_wait(), Ok(None)) && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads lines up to the first that contains `wanted`, and returns that one. What is read further is thrown away on a
/// thread, so that the program never waits for its output to be read.
pub fn await_line(
    output: impl std::io::Read + Send + 'static,
    wanted: &'static str,
) -> Result<String, BoxError> {
    let mut lines = BufReader::new(output).lines();
    let mut seen = String::new();
    for line in lines.by_ref() {
        let line = line?;
        if line.contains(wanted) {
            std::thread::spawn(move || lines.for_each(drop));
            return Ok(line);
        }
        seen.push_str(&line);
        seen.push('\n');
    }
    Err(format!("the program ended before it said {wanted:?}; it said:\n{seen}").into())
}

/// CPU time that a process has used, all threads together, in user and system mode.
pub fn cpu_time(pid: i32) -> Result<Duration, BoxError> {
    Ok(clock_getcpuclockid(Pid::from_raw(pid))?.now()?.into())
}

/// The processes that this one has forked, by its main thread.
pub fn children(pid: i32) -> Result<Vec<i32>, BoxError> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    text.split_whitespace().map(|child| Ok(child.parse()?)).collect()
}

/// Bytes of memory that the process shares with no other.
pub fn private_memory(pid: i32) -> Result<u64, BoxError> {
    let mut kilobytes = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?.lines() {
        if line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:") {
            kilobytes += line.split_whitespace().nth(1).ok_or("a number of kB")?.parse::<u64>()?;
        }
    }
    Ok(kilobytes * 1024)
}

/// Descriptors that the process has open.
pub fn descriptors(pid: i32) -> Result<usize, BoxError> {
    Ok(fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

/// Lets this process, and what it starts, open as many descriptors as it may; how many those are.
pub fn raise_descriptor_limit() -> Result<usize, BoxError> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(usize::try_from(hard).unwrap_or(usize::MAX))
}

/// One thread of another process.
#[derive(Debug)]
pub struct Thread {
    folder: String,
}

impl Thread {
    /// The thread of that name; None if there is none.
    pub fn named(pid: i32, name: &str) -> Result<Option<Self>, BoxError> {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let folder = task?.path().display().to_string();
            // A thread that has ended meanwhile isn't the one.
            if fs::read_to_string(format!("{folder}/comm")).is_ok_and(|comm| comm.trim_end() == name) {
                return Ok(Some(Self { folder }));
            }
        }
        Ok(None)
    }

    /// CPU time it has used: nanoseconds, the first number in `schedstat` (`sched-stats` in the kernel's documentation, Linux ≥ 2.6.23), which
    /// `stat` rounds to hundredths of a second.
    pub fn cpu_time(&self) -> Result<Duration, BoxError> {
        let text = fs::read_to_string(format!("{}/schedstat", self.folder))?;
        let on_cpu = text.split_whitespace().next().ok_or("schedstat has three numbers")?;
        Ok(Duration::from_nanos(on_cpu.parse()?))
    }

    /// How often it has given up its core by itself: how often it was woken.
    pub fn voluntary_switches(&self) -> Result<u64, BoxError> {
        let text = fs::read_to_string(format!("{}/status", self.folder))?;
        let line = text.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        Ok(line.ok_or("status tells voluntary_ctxt_switches")?.trim().parse()?)
    }
}
