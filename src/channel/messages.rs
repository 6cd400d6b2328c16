//! The messages, one enum for each direction of each kind of channel.
//!
//! A reload starts a newer program under a supervisor that runs already. So a message keeps the name that it has on the wire,
//! whatever its variant is called: `#[serde(rename)]` says where the two differ.

use serde::{Deserialize, Serialize};

use crate::arena::Key;

/// The version of this set of messages. Both ends of a channel say theirs first.
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
    /// then every listener in the order of the configuration. `doors_shut`: it accepts nothing before it is told to open.
    /// `quarantine` is what holds from its birth on.
    /// `may_keep`: it may ask to have so many connections kept and be sure of it, and so many more with each
    /// [`ToWorker::MayKeep`]; where nothing is said it learns only afterwards. How many it may hold, and so that it may accept any,
    /// it hears when it is ready, by [`ToWorker::MayHold`].
    /// `region`: it counts its clients' addresses there; the memory that this is in comes before the listeners.
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
    /// Preload is done; workers of these methods can be forked. `config` is what it made of the text it was given, which
    /// the supervisor has not read.
    /// `handoff` is the version of the exec hand-off that this program understands.
    Ready {
        version: u32,
        methods: Vec<String>,
        config: serde_json::Value,
        #[serde(default, rename = "legacy")]
        handoff: u32,
        /// What in the configuration contradicts itself, a line each.
        #[serde(default)]
        warnings: Vec<String>,
    },
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
    /// The service is to end soon: say so to those who ask whether it is ready, and go on.
    #[serde(rename = "turn_red")]
    MarkNotReady,
    /// The service goes on without this worker: let every connection go, finish the calls that run, end. `gone` are those of
    /// its listeners, by number, that nobody goes on with: when nobody waits there any more they are shut down.
    Leave {
        #[serde(default)]
        gone: Vec<usize>,
    },
    /// Listener `number` was lost, and its one descriptor takes its place.
    ListenAnew { number: usize },
    /// Let so many connections go, so that others serve them: `busy` ones, or those on which nothing happens.
    #[serde(rename = "let_go")]
    ReleaseSome { count: usize, busy: bool },
    /// Go on with connections that were worker process `from`'s. Its descriptors are that worker's arena and then a socket for
    /// each. `cause` is what that worker died of, if it has died.
    Adopt { from: u32, cause: Option<String>, connections: Vec<Key> },
    /// Accept until it holds so many connections. `service_has_room`: the service may hold more than it does, so no
    /// connection gives way to a new one here.
    MayHold {
        connections: usize,
        #[serde(default)]
        service_has_room: bool,
    },
    /// It may ask to have so many more connections kept, and be sure of it.
    MayKeep { more: usize },
    /// Others have what this worker offered: to be forgotten without a word to the peer.
    Released { connections: Vec<Key> },
    /// What this worker asked to have kept could not be, though it may have been sure of it: not all descriptors arrived. Or it
    /// offered what is not kept. They end with it.
    NotKept { connections: Vec<Key> },
    /// To be answered by the poller, [`FromWorker::HereIAm`].
    AreYouThere,
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
    /// Everything is set up; it serves calls. Its one descriptor, if there is one, is what its poller waits in.
    Ready,
    /// A hook or a state failed; it ends itself.
    BootFailed { reason: String },
    /// It was asked by a signal to end; it goes on until it is told to leave.
    Leaving,
    /// A thread has been in a call of this method since its deadline passed `timeouts.stuck` ago. Said once.
    Wedged { method: String },
    /// It has reached what `[recycle]` gives it, and goes on until it is told to leave. Said once.
    Retiring { why: String },
    /// It was told to leave, and nothing is left but threads that don't come back: it can be killed.
    #[serde(rename = "only_stuck_left")]
    OnlyStuckThreadsLeft,
    /// Connections that should outlive this worker, a descriptor for each. With them so many that are kept wait for a place.
    Keep {
        connections: Vec<Key>,
        #[serde(default)]
        without_place: usize,
    },
    /// Connections that were kept have ended. Of those that are left so many wait for a place.
    Closed {
        connections: Vec<Key>,
        #[serde(default)]
        without_place: usize,
    },
    /// Connections that this worker touches no more: their records are whole and no call of theirs runs. Of those that are left
    /// so many wait for a place.
    Offered {
        connections: Vec<Key>,
        #[serde(default)]
        without_place: usize,
    },
    /// What became of connections that were `from`'s, in the order in which this worker was asked to go on with them. What is
    /// missing at the end did not arrive. Of all that it has by then so many wait for a place.
    Adopted {
        from: u32,
        results: Vec<Taken>,
        #[serde(default)]
        without_place: usize,
    },
    /// It has heard that it may hold fewer connections than before. Those that it has it has asked to have kept.
    HoldsFewer,
    /// The answer to a question, or word that somebody has connected to a worker that had no connection.
    HereIAm,
    /// So many calls wait here for threads, and connections could go to where they would not have to.
    Crowded { waiting: usize },
    /// It has refused a call of a method in quarantine, and would try the next. Said once, until it hears of the method again.
    TrialWanted { method: String },
    /// The call that was tried has come back (`ok`), or none came and the trial is given back.
    TrialEnded { method: String, ok: bool },
}

impl FromWorker {
    /// How many of its connections that are kept wait for a place, if it says so.
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

/// What became of a connection that a worker was asked to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Taken {
    /// It goes on under this key.
    As(Key),
    /// Nothing can be made of its record, here or anywhere.
    Refused,
    /// This worker has no room or memory for it just now; its socket was not touched.
    NotNow,
}

/// A method that is in quarantine, and for how long before it may be tried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Quarantined {
    pub(crate) method: String,
    pub(crate) for_ms: u64,
}
