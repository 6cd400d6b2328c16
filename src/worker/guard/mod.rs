//! What protects the worker from its handlers and its clients: quarantine, recycling, stuck threads, memory for messages.

pub(in crate::worker) mod buffers;
pub(in crate::worker) mod overdue;
pub(in crate::worker) mod panics;
pub(in crate::worker) mod quarantine;
pub(in crate::worker) mod recycle;
pub(in crate::worker) mod vitals;
