//! The supervisor's records of its children: the templates and the worker processes.
//!
//! A record holds what the supervisor knows of a process (pid, channel, arena), and turns the end of the process into a log line. The
//! state policy decides what follows from the end.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid};

use crate::arena::{ArenaReader, Culprit, Scoreboard, Snapshot};
use crate::channel::Channel;
use crate::config::span;
use crate::supervisor::listeners::bound::Bound;
use crate::supervisor::policy::shares::{Credit, Share};
use crate::supervisor::policy::state::{GenerationId, WorkerId};
use crate::supervisor::reload::methods::Methods;
use crate::sys::clock;
use crate::sys::process::{self, Ended};

/// The template process of one generation.
#[derive(Debug)]
pub(crate) struct TemplateRecord {
    pub(crate) pid: Pid,
    pub(crate) channel: Channel,
    /// The epoll set still watches the channel.
    pub(crate) channel_open: bool,
    /// It told why it ends, or the supervisor killed it: the end is expected, and the log reports no error.
    pub(crate) end_expected: bool,
    pub(crate) started: Instant,
}

/// One worker process, from the request to fork it until its end is taken in.
#[derive(Debug)]
pub(crate) struct WorkerRecord {
    pub(crate) generation: GenerationId,
    pub(crate) slot: usize,
    /// Those of its generation.
    pub(crate) methods: Rc<Methods>,
    /// Its generation's `timeouts.stuck`.
    pub(crate) stuck: Duration,
    pub(crate) share: Share,
    pub(crate) credit: Credit,
    /// Of its connections that are kept so many wait for a place, by its last word.
    pub(crate) without_place: usize,
    /// Known from its first message on.
    pub(crate) pid: Option<Pid>,
    pub(crate) channel: Channel,
    pub(crate) channel_open: bool,
    pub(crate) arena: ArenaReader,
    pub(crate) started: Instant,
    /// It was told to end, or said that it will: the end is expected, and the log reports no error.
    pub(crate) end_expected: bool,
    /// It was killed because its channel was closed at its end while it lived.
    pub(crate) is_deaf: bool,
    /// It has ended: what is left is to be decided about, and its pid may soon be anybody's.
    pub(crate) has_ended: bool,
    /// Why it can't start, if it said so.
    pub(crate) boot_failure: Option<String>,
    /// It reads its channel. Before that a word on it would end it.
    pub(crate) is_ready: bool,
    /// The methods that were in quarantine when it was asked for, until it is ready.
    pub(crate) born_refusing: Vec<String>,
    /// The sockets that it listens on, in the order of its configuration.
    pub(crate) listeners: Vec<Rc<Bound>>,
    /// The session that it is in with what its handlers start; known with its pid.
    pub(crate) session: Option<i32>,
}

impl WorkerRecord {
    /// It can be told something. A word to one that boots would end it.
    pub(crate) fn hears(&self) -> bool {
        self.is_ready && self.channel_open && !self.has_ended
    }

    /// Ends it at once. One that has not told its pid can't be ended by a signal; its closed channel ends it.
    pub(crate) fn kill(&mut self) {
        self.end_expected = true;
        if let Some(pid) = self.pid
            && let Err(error) = process::kill(pid, Signal::SIGKILL)
        {
            tracing::warn!(%pid, %error, "a worker can't be killed");
        }
    }

    /// Logs its end with all that helps to find out why.
    pub(crate) fn log_end(&self, ended: Ended, snapshot: &Snapshot) {
        let pid = self.pid.map_or(0, Pid::as_raw);
        let uptime = span::show_measured(self.started.elapsed());
        let (generation, slot) = (self.generation, self.slot);
        let running = running_calls(snapshot, &self.methods.names);
        let culprit = self.culprit(snapshot);
        let overflow = matches!(self.arena.culprit(), Some(Culprit::Row { stack_overflow: true, .. }));
        let fault = overflow.then_some("stack overflow");
        if self.is_deaf && ended.is_by(Signal::SIGKILL) {
            tracing::error!(
                slot,
                pid,
                "a worker's channel to the supervisor was closed at its end, as by a handler that closes descriptors which are \
                 not its own: it was killed"
            );
        }
        if self.end_expected && running.is_empty() {
            tracing::info!(slot, pid, generation, uptime, cause = ended.to_string(), "worker ended");
        } else if self.end_expected {
            tracing::warn!(
                slot,
                pid,
                generation,
                uptime,
                cause = ended.to_string(),
                culprit,
                fault,
                running,
                "worker ended with calls running"
            );
        } else {
            let cause = ended.to_string();
            tracing::error!(slot, pid, generation, uptime, cause, culprit, fault, running, "worker died");
        }
    }

    /// The method that took it down: what the thread ran that crashed or called `exit`. None if nobody knows.
    pub(crate) fn culprit(&self, last: &Snapshot) -> Option<&str> {
        let Some(Culprit::Row { row, .. }) = self.arena.culprit() else { return None };
        let call = last.running.iter().find(|call| call.row == row)?;
        self.methods.names.get(call.method).map(String::as_str)
    }
}

/// What a worker was running when it died: `crash for 1ms 200us (id 7, 127.0.0.1:40512), sleep for 3s (no id, [::1]:40513)`.
fn running_calls(snapshot: &Snapshot, methods: &[String]) -> String {
    let now = clock::monotonic_ns();
    let calls: Vec<String> = snapshot
        .running
        .iter()
        .map(|call| {
            let method = methods.get(call.method).map_or("?", String::as_str);
            format!("{method} for {} ({})", span::show_measured(call.elapsed(now)), call.by)
        })
        .collect();
    calls.join(", ")
}

/// Every worker process whose end has not been taken in.
#[derive(Debug, Default)]
pub(crate) struct WorkerRecords {
    by_id: HashMap<WorkerId, WorkerRecord>,
}

impl WorkerRecords {
    pub(crate) fn insert(&mut self, id: WorkerId, worker: WorkerRecord) {
        self.by_id.insert(id, worker);
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.by_id.values()
    }

    pub(crate) fn get(&self, id: WorkerId) -> Option<&WorkerRecord> {
        self.by_id.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: WorkerId) -> Option<&mut WorkerRecord> {
        self.by_id.get_mut(&id)
    }

    pub(crate) fn remove(&mut self, id: WorkerId) -> Option<WorkerRecord> {
        self.by_id.remove(&id)
    }

    pub(crate) fn with_pid(&self, pid: Pid) -> Option<WorkerId> {
        self.by_id.iter().find(|(_, worker)| worker.pid == Some(pid)).map(|(id, _)| *id)
    }

    /// Has the scoreboard read every arena.
    pub(crate) fn observe(&self, scoreboard: &mut Scoreboard<WorkerId>) {
        let now = clock::monotonic_ns();
        for (id, worker) in &self.by_id {
            scoreboard.observe(*id, &worker.arena.snapshot(now).renumber(&worker.methods.numbers));
        }
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (WorkerId, &mut WorkerRecord)> {
        self.by_id.iter_mut().map(|(id, worker)| (*id, worker))
    }

    pub(crate) fn ids(&self) -> Vec<WorkerId> {
        self.by_id.keys().copied().collect()
    }

    pub(crate) fn is_unborn(&self, id: WorkerId) -> bool {
        self.by_id.get(&id).is_some_and(|worker| worker.pid.is_none())
    }

    /// Those that have not said that they are ready.
    pub(crate) fn not_ready(&self) -> Vec<WorkerId> {
        self.by_id.iter().filter(|(_, worker)| !worker.is_ready).map(|(id, _)| *id).collect()
    }

    /// Those whose first message has not been read yet.
    pub(crate) fn unborn(&self) -> Vec<WorkerId> {
        self.by_id.iter().filter(|(_, worker)| worker.pid.is_none()).map(|(id, _)| *id).collect()
    }
}

/// The session of a process that was not reaped yet.
pub(in crate::supervisor) fn session_of(pid: Pid) -> Option<i32> {
    getsid(Some(pid)).ok().map(Pid::as_raw)
}

/// A memfd that holds `text`, for a template to read its configuration from.
pub(crate) fn text_in_memory(text: &str) -> io::Result<OwnedFd> {
    let fd = nix::sys::memfd::memfd_create(c"tine config", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)?;
    let mut rest = text.as_bytes();
    while !rest.is_empty() {
        let written = nix::unistd::write(fd.as_fd(), rest)?;
        rest = rest.get(written..).unwrap_or_default();
    }
    Ok(fd)
}
