//! What the poller has been reminded of when its moment comes.

use crate::arena::Key;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::worker) enum Due {
    Connection(Key),
    Listener(usize),
    /// There is something to tell the supervisor about connections.
    Notes,
    /// The supervisor is to be told what was adopted.
    Adoptions,
    /// The worker may have reached a limit of `[recycle]`.
    Limits,
    /// Memory that nobody has wanted for a while goes back.
    Tidying,
    /// Somebody may give way to a connection that has no place.
    Places,
    /// A connection that was to go to a worker with less to do could not go, and is served again.
    TakeBack(Key),
    /// A worker that leaves serves those connections on that could not go yet.
    LeaveLate,
    /// The time to drain is nearly up for a worker that leaves.
    LeaveLast,
    /// The time to drain is up for a worker that leaves.
    LeaveEnd,
    /// A thread has been in this call of a connection for too long.
    Stuck(Key, u64),
    /// The time to drain is nearly up for a worker of a service that ends.
    LastWords,
    /// The supervisor is gone and the time to drain is up.
    DrainEnd,
}
