//! The messages, one enum for each direction of each kind of line.

use serde::{Deserialize, Serialize};

/// The version of this set of messages. Both ends of a line say theirs first.
pub(crate) const VERSION: u32 = 1;

/// From the supervisor to a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum ToTemplate {
    /// The first message. Its one descriptor holds the text of the configuration, which errors call `source`.
    Begin { version: u32, generation: u32, source: String },
    /// Fork the worker process number `worker` for `slot`. Its descriptors are the worker's line, its arena, the bell and
    /// then every listener in the order of the configuration. `doors_shut`: it accepts nothing before it is told to open.
    /// `quarantine` is what holds from its birth on.
    Fork {
        worker: u32,
        slot: usize,
        #[serde(default)]
        doors_shut: bool,
        #[serde(default)]
        quarantine: Vec<Quarantined>,
    },
}

/// From a template to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum FromTemplate {
    /// Preload is done; workers of these methods can be forked. `config` is what it made of the text it was given, which
    /// the supervisor has not read.
    Ready { version: u32, methods: Vec<String>, config: serde_json::Value },
    /// It can't serve and ends itself.
    Failed { reason: String },
    /// The kernel refused to fork worker process `worker`.
    ForkFailed { worker: u32, reason: String },
}

/// From the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum ToWorker {
    /// The service ends: stop accepting, finish what has begun, end.
    Drain,
    /// This worker ends and the service goes on: let every connection go, finish running calls, end.
    Leave,
    /// Open the doors, with which it was forked shut.
    Open,
    /// Refuse calls of the method until [`Release`](Self::Release); for that long, none may be tried. A trial
    /// that was granted and not used is given back by [`FromWorker::TrialEnded`].
    Quarantine { method: String, for_ms: u64 },
    /// One call of a method in quarantine may run.
    Trial { method: String },
    /// The method is one like any other again.
    Release { method: String },
}

/// From a worker to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum FromWorker {
    /// The first message, before any user code has run.
    Born { version: u32, pid: i32 },
    /// Everything is set up; it serves calls.
    Ready,
    /// A hook or a state failed; it ends itself.
    BootFailed { reason: String },
    /// It was asked by a signal to end; it goes on until it is told to leave.
    Leaving,
    /// A thread is stuck in a call of `method` that nobody waits for any more.
    Wedged { method: String },
    /// It has grown or served as much as it may, and goes on until it is told to leave.
    Retiring { why: String },
    /// It has let everything go; only calls that are stuck still run.
    OnlyStuckLeft,
    /// It has refused a call of a method in quarantine, and would try the next. Said once, until it hears of the method again.
    TrialWanted { method: String },
    /// The call that was tried has come back (`ok`), or none came and the trial is given back.
    TrialEnded { method: String, ok: bool },
}

/// A method that is in quarantine, and for how long before it may be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quarantined {
    pub(crate) method: String,
    pub(crate) for_ms: u64,
}
