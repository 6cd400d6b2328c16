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
    /// then every listener in the order of the configuration.
    Fork { worker: u32, slot: usize },
}

/// From a template to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum FromTemplate {
    /// Preload is done; workers of these methods can be forked.
    Ready { version: u32, methods: Vec<String> },
    /// It can't serve and ends itself.
    Failed { reason: String },
    /// The kernel refused to fork worker process `worker`.
    ForkFailed { worker: u32, reason: String },
}

/// From the supervisor to a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum ToWorker {
    /// Stop accepting, finish what has begun, end.
    Drain,
    /// This worker ends and the service goes on: stop accepting, finish what has begun, end.
    Leave,
    /// To be answered by the poller, [`FromWorker::HereIAm`].
    AreYouThere,
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
    /// It was asked by a signal to drain and will end by itself.
    Leaving,
    /// A thread has been in a call of this method since its deadline passed `timeouts.stuck` ago. Said once.
    Wedged { method: String },
    /// It has reached what `[recycle]` gives it, and goes on until it is told to leave. Said once.
    Retiring { why: String },
    /// It was told to leave, and nothing is left but threads that don't come back: it can be killed.
    OnlyStuckLeft,
    /// The answer to a question, or word that somebody has connected to a worker that had no connection.
    HereIAm,
}
