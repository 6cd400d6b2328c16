//! The listeners: whether this worker may accept now, who is accepted, and who gives way where there is no room.

pub(in crate::worker) mod accepting;
pub(in crate::worker) mod acceptor;
pub(in crate::worker) mod capacity;
pub(in crate::worker) mod eviction;
pub(in crate::worker) mod per_address;
pub(in crate::worker) mod reserve;
