//! A call, from the message that asks for it to its response.

pub(in crate::worker) mod caller;
pub(in crate::worker) mod concurrency;
pub(in crate::worker) mod dispatch;
pub(in crate::worker) mod flow;
pub(in crate::worker) mod queue;
pub(in crate::worker) mod ticket;
pub(in crate::worker) mod turns;
