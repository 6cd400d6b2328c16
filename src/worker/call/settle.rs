//! What follows from a change of a connection: sending, watching, accounting, ending.

use std::io;
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::epoll::EpollEvent;

use super::begin::TURN;
use crate::sys::descriptors;
use crate::worker::connection::{Input, Locked, Output, Pause, Phase};
use crate::worker::due::Due;
use crate::worker::guard::buffers::LITTLE;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::token_of;

/// How soon a lingering connection is looked at again when the worker drains.
const LOOK_AT_DRAIN: Duration = Duration::from_millis(10);

/// How often what came last is read in one go at most: a client that floods must not keep the poller.
const LAST_LOOKS: usize = 64;

impl WorkerThread {
    /// Brings everything that follows from a connection's state in line with it: what can be sent is sent, what
    /// is over is ended, epoll and the deadlines know what to look for. Every change ends here.
    pub(in crate::worker) fn settle(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Closed {
            return;
        }
        if !matches!(state.phase, Phase::Lingering { .. }) {
            if self.send(state).is_err() {
                return self.close(state);
            }
            if state.paused == Some(Pause::Parked) && state.may_begin(&self.shared.bounds) {
                state.paused = None;
            }
            if state.paused == Some(Pause::Starved) && state.held() < LITTLE {
                state.paused = None;
            }
            self.take_last_input(state);
            if state.phase == Phase::Closed {
                return;
            }
            if is_over(state) || (state.is_quiet() && state.phase == Phase::Finishing) {
                return self.end(state);
            }
            if self.offer(state) {
                return self.account(state);
            }
        }
        self.watch(state);
        self.account(state);
    }

    /// In a worker that drains, what has come since it began to: a client whose kernel held back what it had written
    /// until the answer before it was on its way (Nagle's algorithm) wrote it before anybody stopped. A client that
    /// waits for each answer has nothing there yet and is ended.
    fn take_last_input(&mut self, state: &mut Locked<'_>) {
        for _ in 0..LAST_LOOKS {
            if !self.shared.context.is_closing() || !is_over(state) {
                return;
            }
            match state.receive(&mut self.scratch, usize::MAX) {
                Ok(Some(chunk)) => {
                    self.begin(state, chunk);
                    if self.send(state).is_err() {
                        return self.close(state);
                    }
                }
                Ok(None) | Err(_) => return,
            }
        }
    }

    /// Sends what the socket takes. Input that waited for room in the output is begun here, as nothing else would
    /// come back to it when all is sent in one go: epoll has reported it already.
    fn send(&mut self, state: &mut Locked<'_>) -> io::Result<()> {
        let began = self.now;
        loop {
            let before = state.output.len();
            state.flush(self.moment(), &mut self.spare)?;
            let has_sent = state.output.len() < before;
            // What is known to be incomplete has been looked at.
            let waits = !state.input.is_empty() && state.message_since.is_none();
            if !has_sent || !waits || !state.may_begin(&self.shared.bounds) {
                return Ok(());
            }
            // To send took time too, which is not the next call's; and a client that takes large answers as fast as they
            // are made must not keep the poller.
            if self.look_at_the_clock() - began > TURN {
                self.leave_to_poller(state);
                return Ok(());
            }
            self.begin_waiting(state);
        }
    }

    fn watch(&mut self, state: &mut Locked<'_>) {
        let shared = &self.shared;
        let interest = state.interest();
        if interest != state.armed {
            state.armed = interest;
            let mut event = EpollEvent::new(interest.flags(), token_of(state.connection.key));
            if let Err(error) = shared.epoll.modify(&state.connection.socket, &mut event) {
                state.connection.can_not_be_watched(error);
            }
        }
        if state.timer_holds(&shared.bounds) {
            return;
        }
        let Some(mut due) = state.due(&shared.bounds) else {
            return;
        };
        if matches!(state.phase, Phase::Lingering { .. }) && shared.is_ending() {
            due = due.min(self.now + LOOK_AT_DRAIN);
        }
        if state.timer.is_none_or(|timer| due < timer) {
            let before = state.timer.replace(due);
            shared.remind_instead(due, Due::Connection(state.connection.key), before);
        }
    }

    fn account(&mut self, state: &mut Locked<'_>) {
        let held = state.held();
        let others_can_be_fed = self.shared.buffers.account(state.connection.key, state.accounted, held);
        state.accounted = held;
        if others_can_be_fed {
            self.shared.wake_poller();
        }
    }

    /// Ends a connection from our side: at once where nothing can be lost by it, otherwise lingering. An answer that
    /// refuses what is still being sent is followed by input even if none is there yet.
    pub(in crate::worker) fn end(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Closed {
            return;
        }
        if state.phase == Phase::Open && state.is_quiet() && state.connection.socket.is_settled() {
            return self.close(state);
        }
        state.linger(self.moment());
        self.watch(state);
        self.account(state);
    }

    /// Takes a connection out of everything. Its socket is closed with the last thread that holds it.
    pub(in crate::worker) fn close(&mut self, state: &mut Locked<'_>) {
        let connection = state.connection;
        if state.phase == Phase::Closed {
            return;
        }
        // First: its place is another connection's as soon as this one has left the table.
        state.leave_record();
        if !self.shared.table.lock().remove(connection.key) {
            return;
        }
        // Explicitly, because a duplicate of the descriptor elsewhere would keep the entry alive.
        if let Err(error) = self.shared.epoll.delete(&connection.socket) {
            descriptors::lost_by_connection(&error.into());
        }
        if let Some(timer) = state.timer.take() {
            self.shared.deadlines.remove(timer, Due::Connection(connection.key));
        }
        connection.caller_is_gone();
        // A handler that outlives its call's deadline still holds the socket; its peer must not wait for that.
        connection.socket.shut_down();
        if connection.kept.swap(false, Ordering::Relaxed) {
            self.shared.note(|notes| notes.closed(connection.key, self.now));
        }
        self.forget(state);
    }

    /// Gives back all that a connection has which is no longer in the table.
    pub(in crate::worker) fn forget(&mut self, state: &mut Locked<'_>) {
        let (connection, key) = (state.connection, state.connection.key);
        state.phase = Phase::Closed;
        for call in std::mem::take(&mut state.calls) {
            self.shared.gave_up(connection, &call);
        }
        if let Some(call) = state.inline_call() {
            self.shared.buffers.hold_on(call.message.len());
            self.shared.is_overdue((key, call.number), Some(call.method), call.deadline);
        }
        state.in_hand = None;
        state.input = Input::default();
        state.output = Output::default();
        self.account(state);
        self.row.connection_closed();
        self.shared.queue.close(connection.who.lane);
        self.shared.address_left(&connection.peer);
        let shared = &self.shared;
        if shared.wants_room.load(Ordering::SeqCst) || shared.is_ending() {
            shared.wake_poller();
        }
    }
}

/// True when all that was asked is answered and sent, and nothing more can be begun from what has arrived.
fn is_over(state: &Locked<'_>) -> bool {
    let nothing_left = state.input.is_empty() || state.message_since.is_some();
    state.phase == Phase::Open && state.input_ended && nothing_left && state.is_quiet()
}
