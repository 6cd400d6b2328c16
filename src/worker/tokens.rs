//! What epoll tells the poller about: one word for each thing that it watches.

use crate::arena::Key;

/// Tokens whose index is not a connection's: connections are numbered from 0 and never get this far.
pub(in crate::worker) const CHANNEL: u64 = u32::MAX as u64;
pub(in crate::worker) const WAKE: u64 = CHANNEL - 1;
pub(in crate::worker) const TERM: u64 = CHANNEL - 2;
pub(in crate::worker) const BELL: u64 = CHANNEL - 3;
/// Listener `n` has the token `FIRST_LISTENER - n`.
pub(in crate::worker) const FIRST_LISTENER: u64 = CHANNEL - 16;

pub(in crate::worker) fn token_of(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

pub(in crate::worker) fn key_of(token: u64) -> Key {
    Key {
        index: u32::try_from(token & u64::from(u32::MAX)).unwrap_or_default(),
        generation: (token >> 32) as u32,
    }
}
