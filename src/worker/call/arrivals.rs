//! What the poller brings: connections that were accepted, sockets that are readable or writable, and moments that have come.
//!
//! The poller brings arrivals and moments, pool threads bring finished calls; both move a connection on under its
//! lock with the same steps, so it does not matter which of them comes first. `begin` takes messages off the input, `message`
//! says what becomes of each, `job` sends calls to the pool, `run` runs them, `answer` puts answers out, and `settle` draws the
//! consequences of every change.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use nix::sys::epoll::EpollEvent;

use crate::arena::{Core, Key};
use crate::config::span;
use crate::log::More;
use crate::rpc::{Error, Peer};
use crate::sys::peer::PeerAddress;
use crate::sys::socket::Socket;
use crate::wire::Accepts;
use crate::worker::call::admission::RefusedCall;
use crate::worker::call::concurrency::Who;
use crate::worker::connection::{self, Answered, Connection, Interest, Locked, Parts, Pause, Phase};
use crate::worker::counted::{NO_MEMORY, STRANGERS};
use crate::worker::guard::buffers::{LITTLE, Ration};
use crate::worker::handover::leave::Going;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::token_of;

/// The most input taken from one connection when the worker drains: more than any receive queue holds.
pub(in crate::worker) const MOST_AT_DRAIN: usize = 16 << 20;

impl WorkerThread {
    /// Takes in a connection that was just accepted. None where that can't be.
    pub(in crate::worker) fn accepted(
        &mut self,
        socket: Socket,
        peer: PeerAddress,
        accepts: Accepts,
    ) -> Option<Key> {
        let (now, shared, address, peer) = (self.now, &self.shared, peer.key(), Peer::from(peer));
        if !shared.admits(&peer) {
            return None;
        }
        let who = Who::new(address, |address| shared.queue.open(address));
        let (pool, core) = (
            shared.pool,
            Core { flags: connection::flags_of(accepts), moved_ns: self.now_ns, ..Core::default() },
        );
        let make = |key| {
            let record = shared.records.open(key, &core)?;
            let peer = peer.clone();
            Some(Connection::new(Parts { key, socket, peer, who, accepts, pool, record, core }, now))
        };
        let Some(connection) = shared.table.lock().insert(make) else {
            if let Some(More { count, from }) = NO_MEMORY.admit(address) {
                tracing::error!(
                    more = count,
                    from,
                    "the arena has no record left for a connection, which is closed"
                );
            }
            shared.queue.close(who.lane);
            shared.address_left(&peer);
            return None;
        };
        self.row.connection_opened();
        self.shared.began(connection.key, now);
        let flags = connection.lock().armed.flags();
        let event = EpollEvent::new(flags, token_of(connection.key));
        let added = self.shared.epoll.add(&connection.socket, event);
        let mut state = connection.lock();
        if let Err(error) = added {
            connection.can_not_be_watched(error);
            self.close(&mut state);
            return None;
        }
        if self.shared.lets_go() {
            state.going = Going::Asked;
        }
        self.settle(&mut state);
        Some(connection.key)
    }

    /// The socket has something to read, or its peer is gone.
    pub(in crate::worker) fn readable(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        match state.phase {
            Phase::Closed | Phase::Finishing => {}
            Phase::Lingering { .. } => self.discard(&mut state),
            Phase::Open => self.read(&mut state),
        }
    }

    /// The socket takes output again.
    pub(in crate::worker) fn writable(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        if state.phase == Phase::Closed {
            return;
        }
        if state.flush(self.moment(), &mut self.spare).is_err() {
            self.close(&mut state);
        } else {
            self.go_on(&mut state);
        }
    }

    /// Both directions are gone: nobody will read an answer.
    pub(in crate::worker) fn hung_up(&mut self, connection: &Arc<Connection>) {
        connection.caller_is_gone();
        let mut state = connection.lock();
        // With calls running it is closed when they end; until then its place in the table keeps them known.
        if state.phase != Phase::Closed && state.calls.is_empty() && state.interest() == Interest::default() {
            self.close(&mut state);
        }
    }

    fn read(&mut self, state: &mut Locked<'_>) {
        // Epoll may have seen it before it was told not to look.
        let waits = matches!(state.paused, Some(Pause::Turn | Pause::Unkept));
        if state.input_ended || waits || !state.going.is_served() {
            return;
        }
        if !state.may_begin(&self.shared.bounds) {
            state.paused = Some(Pause::Parked);
            return self.settle(state);
        }
        let (held, unsent) = (state.held(), state.output.len());
        let most = match self.shared.buffers.ration(state.connection.key, held, unsent) {
            Ration::All => usize::MAX,
            Ration::Little => LITTLE,
            Ration::Nothing => {
                state.paused = Some(Pause::Starved);
                return self.settle(state);
            }
        };
        match state.receive(&mut self.scratch, most) {
            Ok(None) => {
                state.input_ended = true;
                self.go_on(state);
            }
            Ok(Some(chunk)) => {
                state.progressed(self.moment());
                self.begin(state, chunk);
                state.ask_for_the_rest();
                self.settle(state);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => self.fail(state, &error),
        }
    }

    /// Ends a connection that can't go on, for a reason that may be ours.
    pub(in crate::worker) fn fail(&mut self, state: &mut Locked<'_>, error: &io::Error) {
        if error.kind() == io::ErrorKind::OutOfMemory {
            let peer = &state.connection.peer;
            if let Some(More { count, from }) = NO_MEMORY.admit(peer.address().key()) {
                tracing::error!(
                    %peer, more = count, from,
                    "no block of the arena is left for a connection, which is closed; is limits.buffers low?"
                );
            }
        }
        self.close(state);
    }

    fn discard(&mut self, state: &mut Locked<'_>) {
        let room = self.scratch.block().map_or(&mut [][..], |block| &mut block[..]);
        match state.connection.socket.receive(room) {
            Ok(0) => self.close(state),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(state),
        }
    }

    /// A connection's moment has come: deadlines, slow messages, idleness, the end of lingering.
    pub(in crate::worker) fn due(&mut self, key: Key, at: Instant) {
        let Some(connection) = self.shared.find(key) else {
            return;
        };
        let mut state = connection.lock();
        if state.timer != Some(at) {
            return;
        }
        state.timer = None;
        let now = self.now;
        if let Phase::Lingering { until } = state.phase {
            // A worker that ends does not wait for clients that have everything and keep their side open.
            let all_arrived = self.shared.is_ending() && connection.socket.is_settled();
            return if until <= now || all_arrived {
                self.close(&mut state);
            } else {
                self.settle(&mut state);
            };
        }
        self.end_due_calls(&mut state, now);
        let bounds = self.shared.bounds;
        if state.unkept_due(&bounds).is_some_and(|due| due <= now) {
            (state.paused, state.refuses_unkept) = (None, true);
        }
        if state.message_due(&bounds).is_some_and(|due| due <= now) {
            let why = format!(
                "the message did not arrive whole within timeouts.message ({})",
                span::show(bounds.message)
            );
            let Some(caller) = state.late(self.shared.context) else {
                let peer = &connection.peer;
                if let Some(More { count, from }) = STRANGERS.admit(peer.address().key()) {
                    tracing::error!(
                        %peer, more = count, from,
                        "expected a framing that this listener takes, found the beginning of none; {why}"
                    );
                }
                return self.end(&mut state);
            };
            self.answer_error(&mut state, &Error::invalid_request(&why), caller, Answered::Message);
        } else if state.rest_due().is_some_and(|due| due <= now) {
            // Nothing came behind it, so it is looked at as all that will.
            state.may_be_whole = false;
            state.is_at_rest = true;
        } else if state.idle_due(&bounds).is_some_and(|due| due <= now) {
            let which = if state.is_silent() { "timeouts.first_byte" } else { "timeouts.idle" };
            tracing::debug!(peer = %connection.peer, "closed after {which}");
            return self.end(&mut state);
        }
        self.go_on(&mut state);
    }

    fn end_due_calls(&mut self, state: &mut Locked<'_>, now: Instant) {
        let queue_wait = self.shared.bounds.queue_wait;
        let mut index = 0;
        while let Some(call) = state.calls.get(index) {
            if call.apart().is_some() {
                index += 1;
                continue;
            }
            let is_late = call.deadline <= now;
            let has_waited = call.queued_since.is_some_and(|since| since + queue_wait <= now);
            if !is_late && !has_waited {
                index += 1;
                continue;
            }
            let call = state.calls.remove(index);
            self.shared.gave_up(state.connection, &call);
            let about = RefusedCall {
                who: state.connection.who,
                method: call.ticket.method(),
                allowed: call.allowed,
            };
            let error = self.error_of(self.shared.late_or_crowded(is_late, about), about);
            self.answer_waiting(state, &call, &error);
        }
        let bounds = self.shared.bounds;
        while let Some(number) = state.due_batch(&bounds, now) {
            self.end_due_members(state, number);
        }
    }

    /// Reads from a connection again that had to wait for room in the buffers.
    pub(in crate::worker) fn feed(&mut self, key: Key) {
        if let Some(connection) = self.shared.find(key) {
            let mut state = connection.lock();
            if state.paused == Some(Pause::Starved) {
                state.paused = None;
            }
            self.settle(&mut state);
        }
    }

    /// Goes on with a connection whose turn has come.
    pub(in crate::worker) fn take_turn(&mut self, key: Key) {
        if let Some(connection) = self.shared.find(key) {
            let mut state = connection.lock();
            if matches!(state.paused, Some(Pause::Turn | Pause::Unkept)) {
                state.paused = None;
            }
            self.go_on(&mut state);
        }
    }

    /// Goes on with the connection at whose call the poller before this one has blocked.
    pub(in crate::worker) fn take_over(&mut self, key: Key) {
        if let Some(connection) = self.shared.find(key) {
            let mut state = connection.lock();
            if let Some(call) = state.inline_call() {
                let (number, method) = (call.number, call.method);
                // Before what is behind it begins: more calls of it would block one poller after the other.
                self.shared.paces.has_blocked(method);
                if !state.take_over(number) {
                    return self.fail(&mut state, &io::ErrorKind::OutOfMemory.into());
                }
            }
            self.go_on(&mut state);
        }
    }

    /// The worker drains: takes what has arrived so far and no more.
    pub(in crate::worker) fn drain(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        if state.phase == Phase::Open && !state.input_ended && state.going == Going::Not {
            let before = state.taken();
            while state.taken() - before < MOST_AT_DRAIN as u64 {
                match state.receive(&mut self.scratch, usize::MAX) {
                    Ok(Some(chunk)) => {
                        if !state.keep(chunk, 0, &self.scratch) {
                            return self.fail(&mut state, &io::ErrorKind::OutOfMemory.into());
                        }
                    }
                    Ok(None) | Err(_) => break,
                }
            }
            state.input_ended = true;
        }
        if state.phase != Phase::Closed {
            self.go_on(&mut state);
        }
    }
}

impl From<PeerAddress> for Peer {
    fn from(peer: PeerAddress) -> Self {
        match peer {
            PeerAddress::Tcp(address) => Self::Tcp(address),
            PeerAddress::Unix { uid, pid } => Self::Unix { uid, pid },
        }
    }
}
