//! The worker's acceptors: when each is open, and what follows from a visit to it.
//!
//! The part of the worker that `acceptor` must not know: threads, connections, other workers. A worker that has
//! no room, or no free thread while others may have one, shuts its acceptors; the poller opens them again when that
//! has changed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::config::Config;
use crate::sys::socket::Listener;
use crate::sys::{clock, descriptors};
use crate::worker::accept::acceptor::{AcceptPolicy, Acceptor, LOOK_AGAIN, Shut, Visit};
use crate::worker::due::Due;
use crate::worker::shared::Shared;
use crate::worker::threads::poller_state::{PollerState, Todo};
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::{BELL, FIRST_LISTENER, token_of};

/// An acceptor at each listener, shut.
pub(in crate::worker) fn make(listeners: Vec<Listener>, config: &Config) -> Vec<Option<Acceptor>> {
    listeners
        .into_iter()
        .zip(&config.listeners)
        .enumerate()
        .map(|(number, (listener, configured))| {
            let token = FIRST_LISTENER - number as u64;
            Some(Acceptor::new(listener, configured, token, config.limits.max_message))
        })
        .collect()
}

/// True of the tokens of listeners.
pub(in crate::worker) fn is_listener(token: u64) -> bool {
    let index = token & u64::from(u32::MAX);
    (FIRST_LISTENER - 65_536 + 1..=FIRST_LISTENER).contains(&index)
}

impl PollerState {
    /// Opens the acceptors that have never been open.
    pub(in crate::worker) fn open_first(&mut self, shared: &Shared) {
        for (number, acceptor) in self.acceptors.iter_mut().enumerate() {
            if let Some(acceptor) = acceptor.as_mut().filter(|acceptor| acceptor.shut() == Some(Shut::NotYet))
            {
                shared.watch_acceptor(number, acceptor.open(&shared.epoll));
            }
        }
    }

    /// Listener `number` was lost. Where its acceptor is closed for good the one that takes its place is not needed.
    pub(in crate::worker) fn listen_anew(
        &mut self,
        number: usize,
        descriptors: Vec<OwnedFd>,
        thread: &mut WorkerThread,
    ) {
        let shared = thread.shared;
        let Some(acceptor) = self.acceptors.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        let listener = match descriptors.into_iter().next().map(descriptors::control).map(Listener::inherited)
        {
            Some(Ok(listener)) => listener,
            Some(Err(error)) => {
                tracing::error!(slot = shared.info.slot(), %error, "a listener that was bound anew is unusable");
                return;
            }
            None => {
                tracing::error!(
                    slot = shared.info.slot(),
                    "there is no descriptor left for a listener that was bound anew"
                );
                return;
            }
        };
        let changed = acceptor.change(&shared.epoll, listener, |socket, peer, accepts| {
            thread.accepted(socket, peer, accepts);
        });
        shared.watch_acceptor(number, changed);
    }

    /// Somebody may wait at listener `number`.
    pub(in crate::worker) fn visit(&mut self, number: usize, thread: &mut WorkerThread) {
        let standing = self.standing(thread);
        self.visit_and_tell(number, standing, thread);
    }

    /// It is time to look again at listener `number`. A worker without a free thread has looked all the while whether
    /// others take what waits; where they have not, it does. So does one without a free place.
    pub(in crate::worker) fn look_again(&mut self, number: usize, thread: &mut WorkerThread) {
        let shared = thread.shared;
        let standing = self.standing(thread);
        let Some(acceptor) = self.acceptors.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        let waited = match acceptor.shut() {
            Some(Shut::NoThread) => acceptor.has_let_wait(),
            Some(Shut::NoRoom) => return self.look_for_room(number, standing, thread),
            Some(Shut::Refused) => None,
            Some(Shut::NotYet) | None => return,
        };
        match (standing.leave_to_others, waited) {
            (Some(patience), Some(waited)) if waited < patience => {
                self.tell_others();
                shared.look_again_at(number, Shut::NoThread);
            }
            (Some(_), Some(_)) => self.take_after_all(number, thread),
            (None, _) | (_, None) => shared.watch_acceptor(number, acceptor.open(&shared.epoll)),
        }
    }

    /// Whoever still waits at an acceptor that was shut for want of room has not been taken by another worker.
    fn look_for_room(&mut self, number: usize, standing: AcceptPolicy, thread: &mut WorkerThread) {
        let shared = thread.shared;
        let Some(acceptor) = self.acceptors.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        let Some(waited) = acceptor.has_let_wait().filter(|_| standing.room == 0) else {
            // The next one is heard of, and the others hear of him if they may have room.
            return shared.watch_acceptor(number, acceptor.open(&shared.epoll));
        };
        let may_have_place = self.may_have_place(thread);
        if AcceptPolicy::takes_beyond(waited, may_have_place, self.has_siblings) {
            self.take_after_all(self.has_its_turn(number), thread);
        }
        self.look_for_room_later(number, shared);
    }

    /// Of the acceptors that lack room as this one does, and before which somebody waits, the one that took nobody for longest: a flood at
    /// one listener would take every place that becomes free.
    fn has_its_turn(&self, number: usize) -> usize {
        let acceptors = self
            .acceptors
            .iter()
            .enumerate()
            .filter_map(|(number, acceptor)| Some((number, acceptor.as_ref()?)));
        acceptors
            .filter(|(_, acceptor)| {
                acceptor.shut() == Some(Shut::NoRoom) && acceptor.has_let_wait().is_some()
            })
            .min_by_key(|(_, acceptor)| acceptor.took())
            .map_or(number, |(number, _)| number)
    }

    /// Whoever still waits at listener `number` has been taken by no other worker, for want of a thread or of a place.
    fn take_after_all(&mut self, number: usize, thread: &mut WorkerThread) {
        let shared = thread.shared;
        self.reserve.others_are_full(thread.now());
        if self.room(shared, thread.now()) == (0, 0) {
            if self.may_be_taken_by_others(thread) {
                // One that lacks room is looked at again by whoever looks for that.
                if self.acceptors.get(number).and_then(Option::as_ref).and_then(Acceptor::shut)
                    == Some(Shut::NoThread)
                {
                    shared.look_again_at(number, Shut::NoThread);
                }
                return;
            }
            self.clear_reserve(thread);
        }
        if let Some(acceptor) = self.acceptors.get_mut(number).and_then(Option::as_mut) {
            shared.watch_acceptor(number, acceptor.open(&shared.epoll));
        }
        let standing = self.standing(thread);
        // Who comes in by a reserved place takes nothing that a burst should share out, and a health check may be behind him.
        let has_siblings = standing.has_siblings && self.room(shared, thread.now()).0 > 0;
        self.visit_and_tell(number, AcceptPolicy { leave_to_others: None, has_siblings, ..standing }, thread);
    }

    fn look_for_room_later(&mut self, number: usize, shared: &Shared) {
        let Some(acceptor) = self.acceptors.get_mut(number).and_then(Option::as_mut) else { return };
        let now = Instant::now();
        if let (Some(Shut::NoRoom), Some(wait)) = (acceptor.shut(), Shut::NoRoom.look_again())
            && acceptor.is_to_be_looked_at(now + wait, now)
        {
            shared.remind(now + wait, Due::Listener(number));
        }
    }

    /// Visits, and rings for the others where nothing could be taken.
    fn visit_and_tell(&mut self, number: usize, standing: AcceptPolicy, thread: &mut WorkerThread) {
        if let Some(Visit::Shut { took_any: false, .. }) = self.visit_as(number, standing, thread) {
            self.tell_others();
        }
    }

    fn visit_as(
        &mut self,
        number: usize,
        standing: AcceptPolicy,
        thread: &mut WorkerThread,
    ) -> Option<Visit> {
        let shared = thread.shared;
        let (places, _) = self.room(shared, thread.now());
        let acceptor = self.acceptors.get_mut(number).and_then(Option::as_mut)?;
        let was_empty = shared.table.lock().len() == 0;
        let mut accepted = Vec::new();
        let mut visit = acceptor.visit(&shared.epoll, standing, |socket, peer, accepts| {
            accepted.extend(thread.accepted(socket, peer, accepts));
        });
        self.came(&accepted, places, thread);
        // Where they are kept at once, before anything else is done: until then they would end with this process.
        self.keep_who_ask(thread);
        if visit == Visit::GivesWay
            && let Some(acceptor) = self.acceptors.get_mut(number).and_then(Option::as_mut)
        {
            visit = acceptor.give_way(&shared.epoll);
        }
        self.lets_others_run |= self.has_siblings && !accepted.is_empty();
        // Most have sent their call by then: it begins in this very round.
        self.todo.extend(accepted.into_iter().map(|key| Todo::Event(token_of(key), EpollFlags::EPOLLIN)));
        if let Visit::Shut { why, .. } = visit {
            match why {
                Shut::NoRoom => self.look_for_room_later(number, shared),
                Shut::NotYet | Shut::NoThread | Shut::Refused => shared.look_again_at(number, why),
            }
            self.open_acceptors(thread);
        }
        if was_empty && shared.table.lock().len() > 0 {
            self.is_wanted_again(thread.now());
        }
        Some(visit)
    }

    fn tell_others(&self) {
        if self.has_siblings {
            // Beside that it fails only when the counter is full, in hundreds of years.
            if let Err(errno) = nix::unistd::write(&self.bell, &1_u64.to_ne_bytes()) {
                descriptors::lost_by("the bell", &errno.into());
            }
        }
    }

    /// Another worker was woken for a connection that it can't take. One that can't either shuts its acceptor for a while,
    /// and looks again: the one that rang may have no room for long, and the kernel says nothing twice. It does not
    /// ring in its turn, or every worker would wake every other one.
    pub(in crate::worker) fn rung(&mut self, thread: &mut WorkerThread) {
        for number in 0..self.acceptors.len() {
            let standing = self.standing(thread);
            self.visit_as(number, standing, thread);
        }
    }

    fn standing(&mut self, thread: &WorkerThread) -> AcceptPolicy {
        let shared = &thread.shared;
        let (places, beyond) = self.room(shared, thread.now());
        let busy_for = shared
            .gate
            .busy_for(clock::monotonic_ns(), shared.queue.held_back())
            .filter(|_| self.has_siblings);
        // Whoever is accepted and not kept ends with this process; in the backlog nobody does. Calls that need no keeping wait
        // there too, so not for as long as those that do may wait here.
        let patience = shared.bounds.queue_wait / 2;
        let keeps_none = self.keeps_none_since.is_some_and(|since| since.elapsed() < patience);
        AcceptPolicy {
            leave_to_others: keeps_none.then_some(patience).or(busy_for.map(AcceptPolicy::leave_after)),
            room: places + beyond,
            has_siblings: self.has_siblings,
        }
    }

    /// Opens what was shut for a reason that is gone, and sees to it that the poller hears when the others' is.
    pub(in crate::worker) fn open_acceptors(&mut self, thread: &WorkerThread) {
        let shared = &thread.shared;
        // Asked for before looking: what changes after the look is then heard of.
        shared.wants_thread.store(true, Ordering::SeqCst);
        shared.wants_room.store(true, Ordering::SeqCst);
        let standing = self.standing(thread);
        let (mut wants_thread, mut wants_room) = (false, !self.reserve.is_empty());
        let numbered = self.acceptors.iter_mut().enumerate();
        let mut acceptors: Vec<(usize, &mut Acceptor)> =
            numbered.filter_map(|(number, acceptor)| Some((number, acceptor.as_mut()?))).collect();
        // Epoll tells of them in this order, and there may be room for one.
        acceptors.sort_by_key(|(_, acceptor)| acceptor.took());
        for (number, acceptor) in acceptors {
            match acceptor.shut() {
                Some(Shut::NoThread) if standing.leave_to_others.is_some() => wants_thread = true,
                Some(Shut::NoRoom) if standing.room == 0 => wants_room = true,
                Some(Shut::NoThread | Shut::NoRoom) => {
                    shared.watch_acceptor(number, acceptor.open(&shared.epoll));
                }
                Some(Shut::NotYet | Shut::Refused) | None => {}
            }
        }
        shared.wants_thread.store(wants_thread, Ordering::SeqCst);
        shared.wants_room.store(wants_room, Ordering::SeqCst);
    }
}

impl Shared {
    fn look_again_at(&self, number: usize, why: Shut) {
        if let Some(wait) = why.look_again() {
            self.remind(Instant::now() + wait, Due::Listener(number));
        }
    }

    /// Edge-triggered: each ring is heard once by every worker, and none has to read it.
    pub(in crate::worker) fn listen_for(&self, bell: &OwnedFd) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, BELL);
        Ok(self.epoll.add(bell, event)?)
    }

    /// Sees to an acceptor that could not be opened.
    pub(in crate::worker) fn watch_acceptor(&self, number: usize, opened: io::Result<()>) {
        if let Err(error) = opened {
            tracing::warn!(slot = self.info.slot(), %error, "a listener can't be watched again");
            self.remind(Instant::now() + LOOK_AGAIN, Due::Listener(number));
        }
    }
}
