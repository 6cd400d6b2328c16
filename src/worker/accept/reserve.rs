//! Where a worker holds as many connections as it may: who gives way to a new one, and the reserved places beyond.
//!
//! A new connection comes in by a reserved place. It has a place like any other at once where another [gives way](crate::worker::accept::eviction),
//! or as soon as one leaves. Until then only built-in methods and pages are answered on it, so that health checks are whatever
//! happens; a call waits for `queue_wait`, as for a thread, and is refused then. Where the reserved places are taken too and
//! somebody still waits at the listener, those who wait for a place are refused at once, and those who say nothing are closed; after a
//! second so are those who do not read, or have only said what needs no place.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::arena::Key;
use crate::log::More;
use crate::worker::accept::capacity;
use crate::worker::accept::eviction::{Choice, Eviction, Holder, TIME_TO_SPEAK};
use crate::worker::connection::{Connection, Locked, Pause, Phase};
use crate::worker::counted::NO_PLACE;
use crate::worker::due::Due;
use crate::worker::shared::Shared;
use crate::worker::threads::poller_state::{PollerState, Todo};
use crate::worker::threads::worker_thread::WorkerThread;

/// What has come in by a reserved place, and says nothing, has so long before it gives that to another.
const TIME_IN_RESERVE: Duration = Duration::from_millis(100);
/// The same for one that has begun a message, that does not read its answers, or that goes on saying what needs no place.
const TIME_TO_END: Duration = Duration::from_secs(1);
/// A call waits so long for a place in another worker, where the service has room.
const OTHERS_TAKE_IT: Duration = Duration::from_secs(1);
/// And for so long after one has waited in vain none does.
const OTHERS_TAKE_NOBODY: Duration = Duration::from_secs(10);
/// For so long after somebody could not go to another worker nobody is left to others.
const OTHERS_ARE_FULL: Duration = Duration::from_millis(100);
/// How soon it is looked again whether somebody gives way to a call that waits for a place.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Connections that have no place, and what is known of those that have one.
#[derive(Debug, Default)]
pub(in crate::worker) struct Reserve {
    /// With the moments at which they came, the first first.
    taken: Vec<(Key, Instant)>,
    eviction: Eviction,
    others_are_full_until: Option<Instant>,
    /// Until when the room of others is of no use.
    others_take_nobody_until: Option<Instant>,
    /// When it is looked next whether somebody gives way.
    timer: Option<Instant>,
}

impl Reserve {
    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.taken.is_empty()
    }

    /// Connections that may still come in by it.
    fn room(&self) -> usize {
        capacity::RESERVED.saturating_sub(self.taken.len())
    }

    /// How many of them are kept.
    pub(in crate::worker) fn are_kept(&self, shared: &Shared) -> usize {
        let is_kept = |connection: &Arc<Connection>| connection.kept.load(Ordering::Relaxed);
        self.connections(shared).filter(is_kept).count()
    }

    /// Those of them on which calls wait, and that are not kept.
    pub(in crate::worker) fn ask(&self, shared: &Shared) -> Vec<Key> {
        self.connections(shared)
            .filter(|connection| !connection.kept.load(Ordering::Relaxed))
            .filter(|connection| connection.lock().paused == Some(Pause::Unkept))
            .map(|connection| connection.key)
            .collect()
    }

    fn connections(&self, shared: &Shared) -> impl Iterator<Item = Arc<Connection>> {
        self.taken.iter().filter_map(|(key, _)| shared.find(*key))
    }

    /// Somebody waited at the listener for whom no other worker had room.
    pub(in crate::worker) fn others_are_full(&mut self, now: Instant) {
        self.others_are_full_until = Some(now + OTHERS_ARE_FULL);
    }
}

impl PollerState {
    /// Connections that may still come in: to a place, and beyond that.
    pub(in crate::worker) fn room(&mut self, shared: &Shared, now: Instant) -> (usize, usize) {
        let table = shared.table.lock();
        if !self.reserve.is_empty() {
            self.reserve.taken.retain(|(key, _)| table.get(*key).is_some());
        }
        let with_place = table.len().saturating_sub(self.reserve.taken.len());
        let places = self.most_connections.saturating_sub(with_place);
        let are_full =
            !self.has_siblings || self.reserve.others_are_full_until.is_some_and(|until| now < until);
        (places, if are_full { self.reserve.room() } else { 0 })
    }

    /// These have come, and there were places for so many of them.
    pub(in crate::worker) fn came(&mut self, keys: &[Key], places: usize, thread: &mut WorkerThread) {
        let now = thread.now();
        for key in keys.iter().skip(places) {
            let Some(connection) = thread.shared.find(*key) else { continue };
            connection.lock().set_place(false);
            self.reserve.taken.push((*key, now));
            if !self.has_place_for(&connection, thread) {
                continue;
            }
            self.gets_place(&connection, thread.shared, now);
        }
        if keys.len() > places {
            self.reserve.others_are_full(now);
        }
    }

    /// This one had no place where it comes from, and waits for one here.
    pub(in crate::worker) fn came_without_place(&mut self, key: Key, thread: &WorkerThread) {
        let now = thread.now();
        self.reserve.taken.push((key, now));
        if thread.shared.is_ending() {
            self.give_places_to_all(thread);
        }
    }

    /// Somebody may give way to a new connection, as far as that is known without a look at it.
    pub(in crate::worker) fn may_have_place(&mut self, thread: &WorkerThread) -> bool {
        if self.service_has_room(thread) {
            return false;
        }
        self.look(thread);
        self.reserve.eviction.has_candidates(thread.now())
    }

    /// Others may have a place where this worker has none, as far as the supervisor knows. It counts what is kept, so all that are
    /// here are from now on.
    fn service_has_room(&self, thread: &WorkerThread) -> bool {
        let is_of_no_use = self.reserve.others_take_nobody_until.is_some_and(|until| thread.now() < until);
        let has_room = self.service_has_room && !is_of_no_use;
        if has_room {
            thread.shared.note(|notes| notes.keep_young(thread.now()));
        }
        has_room
    }

    /// Whoever has room is stopped, say, or about to end: somebody gives way here.
    fn others_take_nobody(&mut self, now: Instant) {
        if self.service_has_room {
            self.reserve.others_take_nobody_until = Some(now + OTHERS_TAKE_NOBODY);
        }
    }

    /// Whoever waits at the listener while the reserved places are taken is left to others that have room, for a while.
    pub(in crate::worker) fn may_be_taken_by_others(&mut self, thread: &WorkerThread) -> bool {
        let since = self.reserve.taken.iter().map(|(_, came)| *came).min();
        if since.is_some_and(|since| since + OTHERS_TAKE_IT <= thread.now()) {
            self.others_take_nobody(thread.now());
        }
        self.service_has_room(thread)
    }

    fn look(&mut self, thread: &WorkerThread) {
        if !self.reserve.eviction.wants_look(thread.now()) {
            return;
        }
        let began = Instant::now();
        let holders: Vec<Holder> = thread.shared.all_connections().iter().filter_map(as_holder).collect();
        self.reserve.eviction.looked_at(&holders, began, Instant::now());
    }

    /// True where a place is free for this one, or another has just given it up.
    fn has_place_for(&mut self, connection: &Connection, thread: &mut WorkerThread) -> bool {
        if self.room(thread.shared, thread.now()).0 > 0 {
            return true;
        }
        if self.service_has_room(thread) {
            return false;
        }
        self.look(thread);
        let address = connection.who.address;
        loop {
            match self.reserve.eviction.choose(address, thread.now()) {
                Choice::Now(key, since) => {
                    let Some(before) = thread.shared.find(key) else { continue };
                    if !thread.gives_way(&before, since) {
                        continue;
                    }
                    self.reserve.eviction.changed_hands(before.who.address, address);
                    if let Some(More { count, from }) = NO_PLACE.admit(connection.peer.address().key()) {
                        tracing::warn!(
                            closed = %before.peer, peer = %connection.peer, more = count, from,
                            "limits.max_connections is reached: an idle connection is closed for a new one"
                        );
                    }
                    return true;
                }
                Choice::Later(key, since) => {
                    if !thread.shared.find(key).is_some_and(|silent| is_idle_since(&silent, since)) {
                        self.reserve.eviction.has_spoken();
                        continue;
                    }
                    self.look_again_at(since + TIME_TO_SPEAK, thread.shared);
                    return false;
                }
                Choice::Nobody => return false,
            }
        }
    }

    fn look_again_at(&mut self, at: Instant, shared: &Shared) {
        if self.reserve.timer.is_none_or(|timer| at < timer) {
            let before = self.reserve.timer.replace(at);
            shared.remind_instead(at, Due::Places, before);
        }
    }

    /// It is held like any other from now on.
    fn gets_place(&mut self, connection: &Arc<Connection>, shared: &Shared, now: Instant) {
        let key = connection.key;
        self.reserve.taken.retain(|(taken, _)| *taken != key);
        connection.lock().set_place(true);
        if !connection.kept.load(Ordering::Relaxed) {
            // Where so many without a place could not be, it can now.
            shared.began(key, now);
        }
        // What it has said waits for this.
        self.todo.push_back(Todo::Turn(key));
    }

    /// Some may have a place by now: because others have left, or as others give way to those that have said something.
    pub(in crate::worker) fn give_places(&mut self, thread: &mut WorkerThread) {
        for (key, _) in self.reserve.taken.clone() {
            let Some(connection) = thread.shared.find(key) else { continue };
            let state = connection.lock();
            let (waits, waits_since) = (state.paused == Some(Pause::Unkept), state.unkept_since);
            drop(state);
            let in_vain = waits_since.is_some_and(|since| since + OTHERS_TAKE_IT <= thread.now());
            if waits && in_vain {
                self.others_take_nobody(thread.now());
            }
            let is_free = self.room(thread.shared, thread.now()).0 > 0;
            if is_free || (waits && self.has_place_for(&connection, thread)) {
                self.gets_place(&connection, thread.shared, thread.now());
            } else if waits {
                self.look_again_at(thread.now() + LOOK_AGAIN, thread.shared);
            }
        }
    }

    /// The moment to look again has come.
    pub(in crate::worker) fn look_for_places(&mut self, thread: &mut WorkerThread) {
        self.reserve.timer = None;
        self.give_places(thread);
    }

    /// All have a place: this worker accepts no more.
    pub(in crate::worker) fn give_places_to_all(&mut self, thread: &WorkerThread) {
        for (key, _) in std::mem::take(&mut self.reserve.taken) {
            if let Some(connection) = thread.shared.find(key) {
                self.gets_place(&connection, thread.shared, thread.now());
            }
        }
    }

    /// Somebody waits at the listener, and the reserved places are taken.
    pub(in crate::worker) fn clear_reserve(&mut self, thread: &mut WorkerThread) {
        self.give_places(thread);
        for (key, came) in self.reserve.taken.clone() {
            if let Some(connection) = thread.shared.find(key) {
                thread.leaves_reserve(&connection, came);
            }
        }
    }
}

/// None for what has no place, or will have none soon.
fn as_holder(connection: &Arc<Connection>) -> Option<Holder> {
    let state = connection.lock();
    if !state.has_place() || state.phase == Phase::Closed {
        return None;
    }
    let (key, address, is_silent) = (connection.key, connection.who.address, state.is_silent());
    let idle_since = state.may_give_way().then(|| state.last_moved().instant);
    Some(Holder { key, address, idle_since, is_silent })
}

fn is_idle_since(connection: &Arc<Connection>, since: Instant) -> bool {
    is_idle(&connection.lock(), since)
}

/// What has just arrived for it is a part of a message, and what its peer has not got yet is an answer.
fn is_idle(state: &Locked<'_>, since: Instant) -> bool {
    state.may_give_way() && state.last_moved().instant == since && state.connection.socket.is_settled()
}

impl WorkerThread {
    /// Closes one that has been idle since then, as `timeouts.idle` would. False where it is not any more.
    fn gives_way(&mut self, connection: &Arc<Connection>, since: Instant) -> bool {
        let mut state = connection.lock();
        if !is_idle(&state, since) {
            return false;
        }
        self.end(&mut state);
        state.phase == Phase::Closed
    }

    /// Another needs its reserved place: a call that waits is refused, and who says nothing is closed.
    fn leaves_reserve(&mut self, connection: &Arc<Connection>, came: Instant) {
        let mut state = connection.lock();
        let now = self.now();
        let has_had = |time: Duration, since: Instant| since + time <= now;
        match state.phase {
            Phase::Open if state.paused == Some(Pause::Unkept) => {
                (state.paused, state.refuses_unkept) = (None, true);
                self.go_on(&mut state);
            }
            Phase::Open if state.message_since.is_some_and(|since| has_had(TIME_TO_END, since)) => {
                self.end(&mut state);
            }
            Phase::Open if state.is_quiet() && state.input.is_empty() => {
                let says_nothing = has_had(TIME_IN_RESERVE, came.max(state.last_moved().instant));
                if says_nothing || has_had(TIME_TO_END, came) {
                    self.end(&mut state);
                }
            }
            Phase::Open | Phase::Finishing if !state.output.is_empty() && has_had(TIME_TO_END, came) => {
                self.close(&mut state);
            }
            Phase::Lingering { .. } if has_had(TIME_IN_RESERVE, state.last_moved().instant) => {
                self.close(&mut state);
            }
            Phase::Open | Phase::Lingering { .. } | Phase::Finishing | Phase::Closed => {}
        }
    }
}
