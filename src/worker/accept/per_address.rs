//! `limits.per_address`: how many connections a client address may have in the whole service.
//!
//! The socket's own peer counts, since what a proxy forwards is known only when a connection has been read. Unix clients are exempt.

use crate::log::More;
use crate::rpc::Peer;
use crate::worker::counted::TOO_MANY;
use crate::worker::shared::Shared;

impl Shared {
    /// Counts a connection that was accepted. False where its address has as many as it may: then it is to be closed.
    pub(in crate::worker) fn admits(&self, peer: &Peer) -> bool {
        let (Some(addresses), Peer::Tcp(_)) = (&self.addresses, peer) else {
            return true;
        };
        let is_admitted = addresses.admit(peer.address().key(), self.per_address);
        if !is_admitted && let Some(More { count, from }) = TOO_MANY.admit(peer.address().key()) {
            tracing::warn!(
                %peer, more = count, from,
                "an address has limits.per_address connections ({}); another one was closed", self.per_address
            );
        }
        is_admitted
    }

    /// A connection is this worker's that was another's. It is not refused for the limit.
    pub(in crate::worker) fn address_came(&self, peer: &Peer) {
        if let (Some(addresses), Peer::Tcp(_)) = (&self.addresses, peer) {
            addresses.add(peer.address().key());
        }
    }

    /// A connection that counted is closed, or another worker's.
    pub(in crate::worker) fn address_left(&self, peer: &Peer) {
        if let (Some(addresses), Peer::Tcp(_)) = (&self.addresses, peer) {
            addresses.remove(peer.address().key());
        }
    }
}
