//! The messages, one enum for each direction of each kind of channel.
//!
//! A reload starts a newer program under a supervisor that runs already. So a message keeps the name that it has on the wire,
//! whatever its variant is called: `#[serde(rename)]` says where the two differ.

use serde::{Deserialize, Serialize};

use crate::arena::Key;

/// The version of this set of messages. Each end of a channel sends its version first.
pub(crate) const VERSION: u32 = 1;

/// From the supervisor to a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum ToTemplate {
    /// The first message. Its one descriptor holds the text of the configuration, which errors call `source`.
    /// `descriptors` is the soft limit that the service was started with.
    Begin {
        version: u32,
        generation: u32,
        source: String,
        #[serde(default)]
        descriptors: Option<u64>,
    },
    /// Fork the worker process number `worker` for `slot`. Its descriptors are the worker's channel, its arena, the bell and
    /// then every listener in the order of the configuration. `doors_shut`: the worker accepts nothing before [`ToWorker::Open`].
    /// `quarantine` lists the methods that the worker refuses from its birth on.
    /// `may_keep`: the worker may send so many connections to escrow and be sure that they are kept. Each [`ToWorker::MayKeep`] adds to
    /// that. If it is missing, the worker learns only afterwards. How many connections it may hold, and so that it may accept any, the
    /// worker hears when it is ready, by [`ToWorker::MayHold`].
    /// `region`: the worker counts its clients' addresses in this region. The memory of all regions comes before the listeners.
    Fork {
        worker: u32,
        slot: usize,
        #[serde(default)]
        may_keep: Option<usize>,
        #[serde(default)]
        doors_shut: bool,
        #[serde(default)]
        quarantine: Vec<Quarantined>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        region: Option<usize>,
    },
}

/// From a template to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum FromTemplate {
    /// Preload is done; workers of these methods can be forked. `config` is the checked configuration, which the supervisor has not
    /// parsed.
    /// `handoff` is the version of the exec hand-off that this program understands.
    Ready {
        version: u32,
        methods: Vec<String>,
        config: serde_json::Value,
        #[serde(default, rename = "legacy")]
        handoff: u32,
        /// Contradictions in the configuration, one line each.
        #[serde(default)]
        warnings: Vec<String>,
    },
    /// The template can't serve and ends itself.
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
    /// The service is to end soon: `/readyz` answers that the worker is not ready, and the worker goes on.
    #[serde(rename = "turn_red")]
    MarkNotReady,
    /// The service goes on without this worker: release every connection, finish the calls that run, end. `gone` are the numbers of its
    /// listeners that no other worker has: the worker shuts them down when nobody waits there any more.
    Leave {
        #[serde(default)]
        gone: Vec<usize>,
    },
    /// Listener `number` was lost, and its one descriptor takes its place.
    ListenAnew { number: usize },
    /// Release so many connections, so that others serve them: `busy` ones, or idle ones.
    #[serde(rename = "let_go")]
    ReleaseSome { count: usize, busy: bool },
    /// Adopt connections that were worker process `from`'s. The descriptors are that worker's arena and then a socket for each connection.
    /// `cause` is what that worker died of, if it has died.
    Adopt { from: u32, cause: Option<String>, connections: Vec<Key> },
    /// Accept until the worker holds so many connections. `service_has_room`: the service may hold more than it does, so no connection gives
    /// way to a new one in this worker.
    MayHold {
        connections: usize,
        #[serde(default)]
        service_has_room: bool,
    },
    /// Credit: the worker may send so many more connections to escrow, and be sure that they are kept.
    MayKeep { more: usize },
    /// Other workers have adopted what this worker offered: forget these connections, without a word to the peer.
    Released { connections: Vec<Key> },
    /// The supervisor could not keep these connections, because not all descriptors arrived or the worker's credit was used up; or the worker
    /// offered connections that are not in escrow. They end with the worker.
    NotKept { connections: Vec<Key> },
    /// The poller answers [`FromWorker::HereIAm`].
    AreYouThere,
    /// Accept from now on: the worker was forked with its doors shut.
    Open,
    /// Refuse calls of the method until [`Release`](Self::Release). For `for_ms` no trial is granted. The worker gives an unused trial back by
    /// [`FromWorker::TrialEnded`].
    Quarantine { method: String, for_ms: u64 },
    /// One call of a method in quarantine may run.
    Trial { method: String },
    /// The method is released from quarantine.
    Release { method: String },
}

/// From a worker to the supervisor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "message", rename_all = "snake_case")]
pub(crate) enum FromWorker {
    /// The first message, before any user code has run.
    Born { version: u32, pid: i32 },
    /// The worker is ready and serves calls. Its one descriptor, if there is one, is its poller's epoll set.
    Ready,
    /// A hook or a state failed; the worker ends itself.
    BootFailed { reason: String },
    /// A signal asked the worker to end. It goes on until [`ToWorker::Leave`].
    Leaving,
    /// A thread is still in a call of this method `timeouts.stuck` after the call's deadline. Sent once.
    Wedged { method: String },
    /// The worker has reached a limit of `[recycle]`, and goes on until [`ToWorker::Leave`]. Sent once.
    Retiring { why: String },
    /// The worker was told to leave, and only stuck threads are left: it can be killed.
    #[serde(rename = "only_stuck_left")]
    OnlyStuckThreadsLeft,
    /// Connections for escrow, a descriptor for each. Of the worker's connections in escrow, `without_place` wait for a place.
    Keep {
        connections: Vec<Key>,
        #[serde(default)]
        without_place: usize,
    },
    /// Connections in escrow have ended. Of those that are left, `without_place` wait for a place.
    Closed {
        connections: Vec<Key>,
        #[serde(default)]
        without_place: usize,
    },
    /// Connections that this worker has released: their records are whole and none of their calls runs. Of those that are left,
    /// `without_place` wait for a place.
    Offered {
        connections: Vec<Key>,
        #[serde(default)]
        without_place: usize,
    },
    /// What became of connections that were `from`'s, in the order in which this worker was asked to adopt them. What is missing at the end
    /// did not arrive. Of all that the worker has by then, `without_place` wait for a place.
    Adopted {
        from: u32,
        results: Vec<Taken>,
        #[serde(default)]
        without_place: usize,
    },
    /// The worker has read that it may hold fewer connections than before, and has sent all its connections to escrow.
    HoldsFewer,
    /// The answer to [`ToWorker::AreYouThere`], or the notice that somebody has connected to a worker that had no connection.
    HereIAm,
    /// So many calls wait here for threads. Other workers could run them if their connections moved.
    Crowded { waiting: usize },
    /// The worker has refused a call of a method in quarantine, and would try the next one. Sent once, until it hears of the method again.
    TrialWanted { method: String },
    /// The trial call has come back (`ok`), or no call came and the worker gives the trial back.
    TrialEnded { method: String, ok: bool },
}

impl FromWorker {
    /// How many of the worker's connections in escrow wait for a place, if the message says so.
    pub(crate) fn without_place(&self) -> Option<usize> {
        match self {
            Self::Keep { without_place, .. }
            | Self::Closed { without_place, .. }
            | Self::Offered { without_place, .. }
            | Self::Adopted { without_place, .. } => Some(*without_place),
            _ => None,
        }
    }
}

/// What became of a connection that a worker was asked to adopt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Taken {
    /// The worker has adopted it under this key.
    As(Key),
    /// Its record is unusable, for every worker.
    Refused,
    /// This worker has no room or memory for it just now. It has not touched the socket.
    NotNow,
}

/// A method that is in quarantine, and for how long before it may be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quarantined {
    pub(crate) method: String,
    pub(crate) for_ms: u64,
}
