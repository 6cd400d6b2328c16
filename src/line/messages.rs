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
    Fork {
        worker: u32,
        slot: usize,
        #[serde(default)]
        doors_shut: bool,
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
}
