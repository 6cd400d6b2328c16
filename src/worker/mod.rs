//! A worker: one forked process that answers calls.
//!
//! ```text
//! listener → accept → connection → wire → rpc ─ quick ─→ handler → connection
//!                                          └─ slow ─→ dispatch → threads → handler → connection
//! ```

mod accept;
mod boot;
mod call;
mod connection;
mod context;
mod counted;
mod due;
mod guard;
mod handover;
mod shared;
mod threads;
mod tokens;

pub(crate) use accept::capacity::{connections, kept, room, share, threads_beside_main};
pub(crate) use boot::{Birth, run};
#[cfg(fuzzing)]
pub(crate) use call::hostile::hold;
pub(crate) use handover::leave::GIVE_UP_LETTING_GO;
pub(crate) use threads::life::LOOKS;
