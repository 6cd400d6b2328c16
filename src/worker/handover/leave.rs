//! Letting connections go: a worker that ends while the service goes on, and one of which another takes a part.
//!
//! No message is begun on a connection that is to go. As soon as no thread is in a call of it, it leaves epoll and the deadlines
//! with all that it has, read, waiting for a thread or not sent, and is *offered*: another worker goes on from its record, and runs
//! what waited. Its place here is used again when the supervisor says that the other has it. Nobody touches its socket in between.
//!
//! Calls that wait on a connection of which another call runs are run here where a thread is free for them first; when the time to
//! drain is up, the one that runs is answered and they go. Where that call lasts, messages are begun here again meanwhile: their
//! callers need not wait for it. Shortly before the time is up no more are, so that little runs then.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollEvent;

use crate::arena::{Key, State};
use crate::rpc::Error;
use crate::sys::descriptors;
use crate::worker::connection::{Connection, Locked, Phase};
use crate::worker::due::Due;
use crate::worker::guard::buffers::LITTLE;
use crate::worker::shared::Shared;
use crate::worker::threads::poller_state::{PollerState, Todo};
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::token_of;

/// How long a connection waits for its last call before it is served on here: for good where it was only to go for balance, and
/// in a worker that leaves until so long before the time to drain is up.
pub(crate) const GIVE_UP_LETTING_GO: Duration = Duration::from_secs(1);

/// How far a connection is on its way out of this worker.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::worker) enum Going {
    #[default]
    Not,
    /// It reads and begins no further message.
    Asked,
    /// It could not go yet, as a call of it lasts: it is served on, and goes as soon as no thread is in a call of it.
    Late,
    /// It is no longer this worker's to touch; its record stays until another has it, or nobody will: then it goes on here, in
    /// the phase it had.
    Offered { was: Phase },
}

impl Going {
    /// Further messages are read and begun.
    pub(in crate::worker) fn is_served(self) -> bool {
        matches!(self, Self::Not | Self::Late)
    }

    /// It goes as soon as it can.
    fn is_to_go(self) -> bool {
        matches!(self, Self::Asked | Self::Late)
    }
}

impl PollerState {
    /// The service goes on without this worker.
    pub(in crate::worker) fn begin_leaving(&mut self, thread: &mut WorkerThread, gone: &[usize]) {
        let shared = thread.shared;
        if shared.context.is_closing() || shared.leaving.swap(true, Ordering::SeqCst) {
            return;
        }
        self.arena.set_state(State::Draining);
        self.close_doors(thread, |number| gone.contains(&number));
        let connections = shared.all_connections();
        // Only what is kept can be let go. Those that the supervisor once had no room for ask again, or nobody would ever
        // say what becomes of them.
        let not_kept = connections.iter().filter(|connection| !connection.kept.load(Ordering::Relaxed));
        let not_kept: Vec<Key> = not_kept.map(|connection| connection.key).collect();
        shared.note(|notes| notes.keep_at_once(&not_kept, thread.now()));
        let now = Instant::now();
        let end = now.checked_add(self.drain);
        if let Some(end) = end {
            shared.remind(end, Due::LeaveEnd);
        }
        if self.drain > 2 * GIVE_UP_LETTING_GO {
            shared.remind(now + GIVE_UP_LETTING_GO, Due::LeaveLate);
            if let Some(last) = end.and_then(|end| end.checked_sub(GIVE_UP_LETTING_GO)) {
                shared.remind(last, Due::LeaveLast);
            }
        }
        self.todo.extend(connections.into_iter().map(Todo::LetGo));
    }

    /// Lets some connections go that have lived a while: `busy` ones before others, or those of which nobody waits for
    /// anything; and before all those on which nothing runs, since the others read nothing until they can go. Those that
    /// were asked before and have not gone yet count. A connection whose caller does not take its answers stays: another worker
    /// would hold them beyond its own `buffers`, and calls of this one would fill the room that they leave. The same holds for
    /// one with much of a message, unless this worker holds next to nothing in all.
    pub(in crate::worker) fn let_some_go(&mut self, shared: &Shared, count: usize, busy: bool) {
        let mut are_going = 0;
        let may_hold_much = shared.buffers.are_nearly_empty();
        let mut candidates: Vec<((bool, bool), Arc<Connection>)> = shared
            .all_connections()
            .into_iter()
            .filter(|connection| connection.kept.load(Ordering::Relaxed))
            .filter_map(|connection| {
                let state = connection.lock();
                are_going += usize::from(state.going == Going::Asked);
                let may_go = state.phase == Phase::Open
                    && state.going == Going::Not
                    && state.has_place()
                    && state.output.len() < LITTLE
                    && (may_hold_much || state.held() < LITTLE);
                let is_busy = !state.is_quiet() || !state.input.is_empty();
                let runs = state.is_bound();
                drop(state);
                may_go.then_some(((is_busy != busy, runs), connection))
            })
            .collect();
        candidates.sort_by_key(|(order, _)| *order);
        let until = Instant::now() + GIVE_UP_LETTING_GO;
        for (_, connection) in candidates.into_iter().take(count.saturating_sub(are_going)) {
            shared.remind(until, Due::TakeBack(connection.key));
            self.todo.push_back(Todo::LetGo(connection));
        }
    }

    /// The supervisor could not keep these: they end with this worker.
    pub(in crate::worker) fn not_kept(&mut self, shared: &Shared, keys: &[Key]) {
        // At once, so that no thread offers one of them any more.
        shared.are_not_kept(keys);
        self.todo.extend(keys.iter().filter_map(|key| shared.find(*key)).map(Todo::Stay));
    }
}

impl WorkerThread {
    /// Nobody is left who could tell others to go on with what was offered.
    pub(in crate::worker) fn release_all(&mut self) {
        for connection in self.shared.all_connections() {
            self.release(connection.key);
        }
    }

    /// Reads nothing more from a connection, and offers it as soon as it can be.
    pub(in crate::worker) fn let_connection_go(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        if state.phase != Phase::Closed {
            state.going = Going::Asked;
            self.settle(&mut state);
        }
    }

    /// Serves a connection again that was to go to where there is less to do, and could not: a call of it lasts.
    pub(in crate::worker) fn take_back(&mut self, key: Key) {
        if let Some(connection) = self.shared.find(key)
            && !self.shared.is_ending()
        {
            let mut state = connection.lock();
            if state.going == Going::Asked {
                state.going = Going::Not;
                self.go_on(&mut state);
            }
        }
    }

    /// Goes on with a connection that can't go, or finishes it where this worker leaves. One that was offered is taken back.
    pub(in crate::worker) fn stay(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        match state.going {
            Going::Not => {}
            Going::Asked | Going::Late => state.going = Going::Not,
            Going::Offered { was } => {
                state.going = Going::Not;
                state.phase = was;
                // Where the supervisor has been told, it says once more that it does not have it. Should that word be late, it
                // must not be taken for one about another offer.
                state.stays = !self.shared.notes.lock().takes_back(connection.key);
                state.armed = state.interest();
                let event = EpollEvent::new(state.armed.flags(), token_of(connection.key));
                self.wait_here_again(&mut state);
                if let Err(error) = self.shared.epoll.add(&connection.socket, event) {
                    connection.can_not_be_watched(error);
                    return self.close(&mut state);
                }
            }
        }
        if self.shared.is_ending() {
            drop(state);
            self.finish(connection);
        } else {
            self.go_on(&mut state);
        }
    }

    /// A connection that can't go is finished here, as when the service ends.
    pub(in crate::worker) fn finish(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        if state.going.is_to_go() {
            state.going = Going::Not;
        }
        drop(state);
        self.drain(connection);
    }

    /// Offers a connection that is to go, once no thread is in a call of it. True when it has left.
    pub(in crate::worker) fn offer(&mut self, state: &mut Locked<'_>) -> bool {
        let connection = state.connection;
        let may_go = state.going.is_to_go()
            && matches!(state.phase, Phase::Open | Phase::Finishing)
            && !state.is_bound()
            && state.in_hand.is_none()
            && connection.kept.load(Ordering::Relaxed)
            && state.tell_what_has_run();
        if !may_go {
            return false;
        }
        for call in &state.calls {
            self.shared.withdraw(connection, call);
        }
        state.all_wait(self.now());
        // Explicitly, because the duplicates of the descriptor would keep the entry alive.
        if let Err(error) = self.shared.epoll.delete(&connection.socket) {
            descriptors::lost_by_connection(&error.into());
        }
        if let Some(timer) = state.timer.take() {
            self.shared.deadlines.remove(timer, Due::Connection(connection.key));
        }
        state.commit();
        // Whoever comes to it from now on finds nothing to do.
        let was = std::mem::replace(&mut state.phase, Phase::Closed);
        state.going = Going::Offered { was };
        self.shared.notes.lock().offered(connection.key);
        self.shared.wake_poller();
        true
    }

    /// Another has this connection, or nobody will: it is forgotten without a word to its peer.
    pub(in crate::worker) fn release(&mut self, key: Key) {
        let Some(connection) = self.shared.find(key) else {
            return;
        };
        let mut state = connection.lock();
        if matches!(state.going, Going::Offered { .. }) {
            // First: its place is another connection's as soon as this one has left the table.
            state.leave_record();
            self.shared.table.lock().remove(key);
            state.going = Going::Not;
            // They are no longer this worker's to answer. Their places were given back when they were let go.
            state.calls.clear();
            self.forget(&mut state);
        }
    }

    /// Serves on those that could not go yet. They go as soon as no thread is in a call of them.
    pub(in crate::worker) fn serve_late_ones(&mut self) {
        self.change_going(Going::Asked, Going::Late);
    }

    /// The time that running calls have is nearly up: no more are begun of those that could not go yet.
    pub(in crate::worker) fn begin_no_more(&mut self) {
        self.change_going(Going::Late, Going::Asked);
    }

    fn change_going(&mut self, from: Going, to: Going) {
        if !self.shared.lets_go() {
            return;
        }
        for connection in self.shared.all_connections() {
            let mut state = connection.lock();
            if state.going == from {
                state.going = to;
                self.go_on(&mut state);
            }
        }
    }

    /// The time that running calls had is up: their callers are told, and their connections go with what waits.
    pub(in crate::worker) fn end_leaving(&mut self) {
        if !self.shared.lets_go() {
            return;
        }
        for connection in self.shared.all_connections() {
            let mut state = connection.lock();
            if state.phase == Phase::Closed {
                continue;
            }
            // The time may be up before the poller has come to it.
            state.going = Going::Asked;
            self.end_running_calls(&mut state);
            self.go_on(&mut state);
            let stays = state.going == Going::Asked;
            if stays {
                // It is not kept, so it can't go on anywhere.
                self.end_calls(&mut state);
                drop(state);
                self.finish(&connection);
            }
        }
    }

    /// The service ends, and the time that its calls had is nearly up: their callers are told before the supervisor kills this
    /// worker. Nothing more begins.
    pub(in crate::worker) fn end_all_calls(&mut self) {
        for connection in self.shared.all_connections() {
            let mut state = connection.lock();
            // What waits on one that was let go is no longer this worker's to answer.
            if state.phase == Phase::Closed {
                continue;
            }
            if state.phase == Phase::Open {
                state.phase = Phase::Finishing;
            }
            self.end_calls(&mut state);
        }
    }

    /// Tells the callers of calls that a thread is in that they will not be answered.
    fn end_running_calls(&mut self, state: &mut Locked<'_>) {
        let connection = state.connection;
        if state.is_bound() {
            // Nobody waits for what they still do.
            connection.caller_is_gone();
        }
        let bound = state.calls.iter().filter(|call| call.is_bound());
        let numbers: Vec<(u64, bool)> = bound.map(|call| (call.number, call.apart().is_some())).collect();
        for (number, is_batch) in numbers {
            if is_batch {
                self.end_running_members(state, number);
            } else if let Some(call) = state.take_call(number) {
                self.answer_unfinished(state, &call, Error::drained);
                self.shared.gave_up(connection, &call);
            }
        }
    }

    /// Tells the callers of all calls that they will not be answered.
    fn end_calls(&mut self, state: &mut Locked<'_>) {
        let connection = state.connection;
        if !state.calls.is_empty() {
            // Nobody waits for what they still do.
            connection.caller_is_gone();
        }
        while let Some(call) = state.calls.pop() {
            self.answer_unfinished(state, &call, Error::drained);
            self.shared.gave_up(connection, &call);
        }
        self.go_on(state);
    }
}
