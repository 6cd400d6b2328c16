//! Processes as the kernel shows them, and a service's workers by slot.
//!
//! For scenarios about ends and restarts of processes. Log lines of different processes come in no fixed order,
//! so waits here look from a mark on, also through what was read while waiting for something else.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use rustix::process::{PidfdFlags, pidfd_open, pidfd_send_signal};
use serde_json::{Value, json};

use super::{PATIENCE, Service, Wire, await_gone, children_of, message};

/// A process of a service, held by descriptor: its number can't come to mean another one. Killed when dropped.
pub struct Process {
    pub pid: i32,
    pidfd: OwnedFd,
}

impl Process {
    pub fn of(pid: i32) -> Self {
        let raw = rustix::process::Pid::from_raw(pid).expect("a pid");
        Self { pid, pidfd: pidfd_open(raw, PidfdFlags::empty()).expect("the process is there") }
    }

    pub fn kill(&self) {
        let _ = pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
    }

    pub fn await_end(&self) {
        let mut wanted = [PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).expect("a short time");
        let ended = poll(&mut wanted, timeout).is_ok_and(|ready| ready > 0);
        assert!(ended, "process {} has not ended", self.pid);
    }
}

/// Kills a process, and waits until it has ended.
pub fn kill(pid: i32) {
    let process = Process::of(pid);
    process.kill();
    process.await_end();
}

/// Kills a worker once it has looked at all that was sent to it.
pub fn kill_at_rest(pid: i32) {
    super::await_asleep(pid);
    kill(pid);
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// A field of `/proc/PID/status`, such as `PPid`; None when the process is gone.
pub fn status(pid: i32, field: &str) -> Option<String> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))?;
    Some(line.trim().to_owned())
}

pub fn parent_of(pid: i32) -> Option<i32> {
    status(pid, "PPid")?.parse().ok()
}

pub fn open_descriptors(pid: i32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).expect("the process lives").count()
}

pub fn zombies_of(pid: i32) -> Vec<i32> {
    let is_zombie = |pid: &i32| status(*pid, "State").is_some_and(|state| state.starts_with('Z'));
    children_of(pid).into_iter().filter(is_zombie).collect()
}

/// `program`, started by a shell that runs `setup` first (`ulimit -c 0`) and then becomes it.
pub fn after_setup(setup: &str, program: &Command) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", &format!("{setup}; exec \"$@\""), "sh"]).arg(program.get_program());
    shell.args(program.get_args());
    for (name, value) in program.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    shell
}

/// A duration from the log, such as `1ms 200us`: in the form of the configuration's, whole numbers with units.
pub fn is_a_duration(text: &str) -> bool {
    text.split(' ').all(|part| {
        let number = part.trim_end_matches(|letter: char| letter.is_ascii_lowercase());
        number.len() < part.len() && number.parse::<u64>().is_ok()
    })
}

impl Service {
    /// How much of the log has been read: where `await_since` may begin.
    pub fn mark(&self) -> usize {
        self.seen.borrow().len()
    }

    /// Waits for the first line from `mark` on that `wanted` accepts, read already or not.
    pub fn await_since(&self, mark: usize, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let found = self.seen.borrow().iter().skip(mark).find(|line| wanted(line)).cloned();
        found.unwrap_or_else(|| self.await_log_where(what, wanted))
    }

    /// As `await_since`, for a message that contains `text`.
    pub fn await_text(&self, mark: usize, text: &str) -> Value {
        self.await_since(mark, text, |line| message(line).contains(text))
    }

    /// Waits until `slot` has a worker that became ready after `mark`; its pid.
    pub fn await_refill(&self, mark: usize, slot: u64) -> i32 {
        let line = self.await_since(mark, "worker ready in the slot", |line| {
            message(line) == "worker ready" && line["slot"] == slot
        });
        pid_in(&line)
    }

    /// The pid that last became ready in each slot, as far as the log has been read.
    pub fn workers(&self) -> BTreeMap<u64, i32> {
        let seen = self.seen.borrow();
        let ready = seen.iter().filter(|line| message(line) == "worker ready");
        ready.map(|line| (line["slot"].as_u64().expect("a slot"), pid_in(line))).collect()
    }

    /// As `workers`, each of them the supervisor's own child by now. A worker can be ready a moment before the
    /// process between it and the template has ended.
    pub fn adopted_workers(&self) -> BTreeMap<u64, i32> {
        let workers = self.workers();
        for pid in workers.values() {
            while let Some(parent) = parent_of(*pid).filter(|parent| *parent != self.pid()) {
                assert!(await_gone(parent, PATIENCE), "worker {pid} stays a child of {parent}");
            }
        }
        workers
    }

    /// The template that was started last, as far as the log has been read.
    pub fn template(&self) -> i32 {
        let seen = self.seen.borrow();
        let started = seen.iter().rfind(|line| message(line) == "template started");
        pid_in(started.expect("a template was started"))
    }

    /// Lines from `mark` on whose message contains `text`, among those read so far.
    pub fn count_since(&self, mark: usize, text: &str) -> usize {
        self.log_so_far();
        self.seen.borrow().iter().skip(mark).filter(|line| message(line).contains(text)).count()
    }

    /// Where in the log, among the lines read so far, the first from `mark` on is that `wanted` accepts.
    pub fn position(&self, mark: usize, wanted: impl Fn(&Value) -> bool) -> Option<usize> {
        self.log_so_far();
        self.seen.borrow().iter().skip(mark).position(wanted)
    }

    /// A connection that the worker of `slot` serves. Workers in its way are kept busy for a moment, since a
    /// worker without a free thread leaves connections to others; so this is for `threads = 1`.
    pub fn connect_to(&self, slot: u64) -> Wire {
        let mut in_the_way = Vec::new();
        for _ in 0..200 {
            let mut wire = self.connect();
            if wire.call("tine.worker", json!(null))["result"]["slot"] == slot {
                for mut busy in in_the_way {
                    let _: Value = Wire::receive(&mut busy);
                }
                return wire;
            }
            wire.request("sleep", &json!({ "ms": 50 }));
            in_the_way.push(wire);
        }
        panic!("no connection reaches slot {slot}");
    }

    /// Sends a signal to the process group that the service leads.
    pub fn signal_group(&self, signal: Signal) {
        nix::sys::signal::killpg(nix::unistd::Pid::from_raw(self.pid()), signal).expect("the group is there");
    }
}

impl Wire {
    /// Sends `request` and gets its answer; None where the connection ended with its worker.
    pub fn exchange(&mut self, request: &str) -> Option<Value> {
        self.stream.write_all(&super::framed(request)).ok()?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).ok()?;
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut body).ok()?;
        serde_json::from_slice(&body).ok()
    }

    /// True when the connection was ended by the end of its worker. A reset, where it had input left unread.
    pub fn is_cut_off(&mut self) -> bool {
        match self.stream.read(&mut [0; 1]) {
            Ok(count) => count == 0,
            Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
        }
    }
}

/// The member `pid` of a log line, which is a number or a number as text.
pub fn pid_in(line: &Value) -> i32 {
    let number = line["pid"].as_i64().or_else(|| line["pid"].as_str()?.parse().ok());
    number.and_then(|pid| i32::try_from(pid).ok()).unwrap_or_else(|| panic!("no pid in {line}"))
}

/// Who serves this connection.
pub fn worker_pid(wire: &mut Wire) -> i32 {
    pid_in(&wire.call("tine.worker", json!(null))["result"])
}

/// How long something took, for bounds that are only there to tell "at once" from "when the time was up".
pub fn timed<T>(action: impl FnOnce() -> T) -> (T, Duration) {
    let begun = Instant::now();
    (action(), begun.elapsed())
}

/// Copies a program to where every user can run it.
pub fn copy_for_everyone(program: &Command, folder: &Path) -> Command {
    use std::os::unix::fs::PermissionsExt;
    let everyone = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(folder, everyone.clone()).expect("our own folder");
    let copy = folder.join("program");
    // By another process: one that this process holds open for writing can't be executed, and would be held by
    // whatever another test forks just now.
    let copied = Command::new("cp").arg(program.get_program()).arg(&copy).status().expect("cp runs");
    assert!(copied.success(), "cp failed");
    std::fs::set_permissions(&copy, everyone).expect("our own file");
    Command::new(copy)
}
