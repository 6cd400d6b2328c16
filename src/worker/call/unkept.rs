//! Calls that wait, or are refused, because no handler may run on their connection: the supervisor has not been sent it, or it has no
//! place.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::admission::RefusedCall;
use super::decide::RejectReason;
use super::message::Next;
use crate::log::More;
use crate::worker::call::caller::Whom;
use crate::worker::call::dispatch::Refused;
use crate::worker::connection::{Answered, Connection, Locked, Pause};
use crate::worker::counted::NO_PLACE;
use crate::worker::threads::worker_thread::WorkerThread;

impl WorkerThread {
    /// No handler begins while this worker has connections that would end with it: whatever that handler does, its caller
    /// is to be answered, and who calls beside it. Nor does one for a connection that has no place. None where the supervisor has
    /// been sent them all, and the call may begin.
    pub(in crate::worker) fn instead_of_unkept(
        &mut self,
        state: &mut Locked<'_>,
        whom: Whom,
        message: &[u8],
    ) -> Option<Next> {
        let is_kept = state.connection.kept.load(Ordering::Relaxed);
        if state.has_place() && is_kept && !self.shared.has_new.load(Ordering::Relaxed) {
            return None;
        }
        if (state.has_place() && is_kept) || !state.refuses_unkept {
            return Some(Next::Unkept);
        }
        let refused = if state.has_place() {
            self.shared.refused(state.connection.who, None)
        } else {
            complain_of_places(state);
            Refused::with(self.shared.bounds.queue_wait)
        };
        let (who, allowed) = (state.connection.who, self.shared.request_timeout);
        let about = RefusedCall { who, method: None, allowed };
        self.refuse(state, RejectReason::Crowded(refused), (whom, message), about, Answered::Message);
        Some(Next::Message)
    }

    /// Nothing more is read or begun until the supervisor was sent what it must have first, or until there is a place.
    pub(in crate::worker) fn wait_to_be_kept(&mut self, state: &mut Locked<'_>) {
        state.paused = Some(Pause::Unkept);
        if !state.has_place() {
            // The poller looks for one at the end of its round.
            let now = self.now;
            state.unkept_since.get_or_insert(now);
            if state.connection.kept.load(Ordering::Relaxed) {
                return;
            }
        }
        self.shared.ask_to_keep(state.connection.key, self.now);
        if self.term.is_none() {
            self.shared.wake_poller();
        }
    }

    /// The supervisor can't be sent this connection now. Its calls wait for that, though not for ever. True where there are any.
    pub(in crate::worker) fn can_not_be_kept_yet(&mut self, connection: &Arc<Connection>) -> bool {
        let mut state = connection.lock();
        let waits = state.paused == Some(Pause::Unkept);
        if waits {
            let now = self.now;
            state.unkept_since.get_or_insert(now);
            self.settle(&mut state);
        }
        waits
    }
}

fn complain_of_places(state: &Locked<'_>) {
    let peer = &state.connection.peer;
    if let Some(More { count, from }) = NO_PLACE.admit(peer.address().key()) {
        tracing::warn!(
            %peer, more = count, from,
            "limits.max_connections is reached and no connection idles: a call of a new one is refused"
        );
    }
}
