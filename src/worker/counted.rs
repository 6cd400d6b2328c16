//! The records of a worker that clients and callers can cause at will: so many a second are written, the others counted.

use nix::errno::Errno;

use crate::log::{Counted, More};
use crate::sys::descriptors;
use crate::worker::connection::Connection;

/// Who speaks nothing that is spoken here: scanners, and clients of other ports.
pub(super) static STRANGERS: Counted = Counted::new("expected a framing that this listener takes", 1);
pub(super) static TURNED_AWAY: Counted =
    Counted::new("a user that is not among allow_uids was turned away", 1);
/// Whoever may not connect again comes back at once.
pub(super) static TOO_MANY: Counted = Counted::new("an address has limits.per_address connections", 1);
/// Where `limits.max_connections` is reached whoever connects can cause these.
pub(super) static NO_PLACE: Counted = Counted::new("limits.max_connections is reached", 1);
pub(super) static NO_MEMORY: Counted = Counted::new("no record or block of the arena is left", 1);
/// Pages of origins that may not call: whoever set up the list may have forgotten one, and any web site can cause these.
pub(super) static PAGES: Counted = Counted::new("a page's call is refused", 1);
/// A panic is worth its record, and a caller who knows how may have one with each call.
pub(super) static PANICS: Counted = Counted::new("a handler panicked", 20);
pub(super) static FAILED: Counted = Counted::new("internal error", 10);
pub(super) static SLOW: Counted = Counted::new("slow call", 10);
static NOT_WATCHED: Counted = Counted::new("a connection can't be watched", 1);

impl Connection {
    /// Its epoll entry was refused: it ends, if it can.
    pub(super) fn can_not_be_watched(&self, error: Errno) {
        descriptors::lost_by("a connection", &error.into());
        if let Some(More { count, from }) = NOT_WATCHED.admit(self.peer.address().key()) {
            tracing::warn!(peer = %self.peer, %error, more = count, from, "a connection can't be watched and is closed");
        }
    }
}
