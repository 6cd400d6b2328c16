//! The threads of a worker: which one is the poller, what the poller looks after, and what each thread does next.

pub(in crate::worker) mod deadlines;
pub(in crate::worker) mod duty;
pub(in crate::worker) mod health;
pub(in crate::worker) mod life;
pub(in crate::worker) mod mailbox;
pub(in crate::worker) mod pace;
pub(in crate::worker) mod poller;
pub(in crate::worker) mod poller_state;
pub(in crate::worker) mod pool;
pub(in crate::worker) mod role;
pub(in crate::worker) mod runs;
pub(in crate::worker) mod worker_thread;
