//! The worker's doors: when each is open, and what follows from a visit to it.
//!
//! The part of the worker that `listening` must not know: threads, connections, other workers. A worker that has
//! no room, or no free thread while others may have one, shuts its doors; the poller opens them again when that
//! has changed.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::Instant;

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::config::Config;
use crate::sys::socket::Listener;
use crate::sys::{clock, descriptors};
use crate::worker::accept::listening::{Door, LOOK_AGAIN, Shut, Standing, Visit};
use crate::worker::call::flow::Hand;
use crate::worker::due::Due;
use crate::worker::shared::Shared;
use crate::worker::threads::desk::{Desk, Todo};
use crate::worker::tokens::{BELL, FIRST_DOOR, token_of};

/// A door at each listener, shut.
pub(in crate::worker) fn make(listeners: Vec<Listener>, config: &Config) -> Vec<Option<Door>> {
    listeners
        .into_iter()
        .zip(&config.listeners)
        .enumerate()
        .map(|(number, (listener, configured))| {
            let token = FIRST_DOOR - number as u64;
            Some(Door::new(listener, configured, token, config.limits.max_message))
        })
        .collect()
}

/// True of the tokens of listeners.
pub(in crate::worker) fn is_door(token: u64) -> bool {
    let index = token & u64::from(u32::MAX);
    (FIRST_DOOR - 65_536 + 1..=FIRST_DOOR).contains(&index)
}

impl Desk {
    /// Opens the doors that have never been open.
    pub(in crate::worker) fn open_first(&mut self, shared: &Shared) {
        for (number, door) in self.doors.iter_mut().enumerate() {
            if let Some(door) = door.as_mut().filter(|door| door.shut() == Some(Shut::NotYet)) {
                shared.watch_door(number, door.open(&shared.epoll));
            }
        }
    }

    /// Listener `number` was lost. Where its door is closed for good the one that takes its place is not needed.
    pub(in crate::worker) fn listen_anew(
        &mut self,
        number: usize,
        descriptors: Vec<OwnedFd>,
        hand: &mut Hand,
    ) {
        let shared = hand.shared;
        let Some(door) = self.doors.get_mut(number).and_then(Option::as_mut) else {
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
        let changed = door.change(&shared.epoll, listener, |socket, peer, accepts| {
            hand.accepted(socket, peer, accepts);
        });
        shared.watch_door(number, changed);
    }

    /// Somebody may wait at listener `number`.
    pub(in crate::worker) fn visit(&mut self, number: usize, hand: &mut Hand) {
        let standing = self.standing(hand);
        self.visit_and_tell(number, standing, hand);
    }

    /// It is time to look again at listener `number`. A worker without a free thread has looked all the while whether
    /// others take what waits; where they have not, it does. So does one without a free place.
    pub(in crate::worker) fn look_again(&mut self, number: usize, hand: &mut Hand) {
        let shared = hand.shared;
        let standing = self.standing(hand);
        let Some(door) = self.doors.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        let waited = match door.shut() {
            Some(Shut::NoThread) => door.has_let_wait(),
            Some(Shut::NoRoom) => return self.look_for_room(number, standing, hand),
            Some(Shut::Refused) => None,
            Some(Shut::NotYet) | None => return,
        };
        match (standing.leave_to_others, waited) {
            (Some(patience), Some(waited)) if waited < patience => {
                self.tell_others();
                shared.look_again_at(number, Shut::NoThread);
            }
            (Some(_), Some(_)) => self.take_after_all(number, hand),
            (None, _) | (_, None) => shared.watch_door(number, door.open(&shared.epoll)),
        }
    }

    /// Whoever still waits at a door that was shut for want of room has not been taken by another worker.
    fn look_for_room(&mut self, number: usize, standing: Standing, hand: &mut Hand) {
        let shared = hand.shared;
        let Some(door) = self.doors.get_mut(number).and_then(Option::as_mut) else {
            return;
        };
        let Some(waited) = door.has_let_wait().filter(|_| standing.room == 0) else {
            // The next one is heard of, and the others hear of him if they may have room.
            return shared.watch_door(number, door.open(&shared.epoll));
        };
        let may_have_place = self.may_have_place(hand);
        if Standing::takes_beyond(waited, may_have_place, self.has_siblings) {
            self.take_after_all(self.has_its_turn(number), hand);
        }
        self.look_for_room_later(number, &shared);
    }

    /// Of the doors that lack room as this one does, and before which somebody waits, the one that took nobody for longest: a flood at
    /// one listener would take every place that becomes free.
    fn has_its_turn(&self, number: usize) -> usize {
        let doors = self.doors.iter().enumerate().filter_map(|(number, door)| Some((number, door.as_ref()?)));
        doors
            .filter(|(_, door)| door.shut() == Some(Shut::NoRoom) && door.has_let_wait().is_some())
            .min_by_key(|(_, door)| door.took())
            .map_or(number, |(number, _)| number)
    }

    /// Whoever still waits at listener `number` has been taken by no other worker, for want of a thread or of a place.
    fn take_after_all(&mut self, number: usize, hand: &mut Hand) {
        let shared = hand.shared;
        self.reserve.others_are_full(hand.now());
        if self.room(&shared, hand.now()) == (0, 0) {
            if self.may_be_taken_by_others(hand) {
                // One that lacks room is looked at again by whoever looks for that.
                if self.doors.get(number).and_then(Option::as_ref).and_then(Door::shut)
                    == Some(Shut::NoThread)
                {
                    shared.look_again_at(number, Shut::NoThread);
                }
                return;
            }
            self.clear_reserve(hand);
        }
        if let Some(door) = self.doors.get_mut(number).and_then(Option::as_mut) {
            shared.watch_door(number, door.open(&shared.epoll));
        }
        let standing = self.standing(hand);
        // Who comes in by a reserved place takes nothing that a burst should share out, and a health check may be behind him.
        let has_siblings = standing.has_siblings && self.room(&shared, hand.now()).0 > 0;
        self.visit_and_tell(number, Standing { leave_to_others: None, has_siblings, ..standing }, hand);
    }

    fn look_for_room_later(&mut self, number: usize, shared: &Shared) {
        let Some(door) = self.doors.get_mut(number).and_then(Option::as_mut) else { return };
        let now = Instant::now();
        if let (Some(Shut::NoRoom), Some(wait)) = (door.shut(), Shut::NoRoom.look_again())
            && door.is_to_be_looked_at(now + wait, now)
        {
            shared.remind(now + wait, Due::Door(number));
        }
    }

    /// Visits, and rings for the others where nothing could be taken.
    fn visit_and_tell(&mut self, number: usize, standing: Standing, hand: &mut Hand) {
        if let Some(Visit::Shut { took_any: false, .. }) = self.visit_as(number, standing, hand) {
            self.tell_others();
        }
    }

    fn visit_as(&mut self, number: usize, standing: Standing, hand: &mut Hand) -> Option<Visit> {
        let shared = hand.shared;
        let (places, _) = self.room(&shared, hand.now());
        let door = self.doors.get_mut(number).and_then(Option::as_mut)?;
        let was_empty = shared.table.lock().len() == 0;
        let mut accepted = Vec::new();
        let mut visit = door.visit(&shared.epoll, standing, |socket, peer, accepts| {
            accepted.extend(hand.accepted(socket, peer, accepts));
        });
        self.came(&accepted, places, hand);
        // Where they are kept at once, before anything else is done: until then they would end with this process.
        self.keep_who_ask(hand);
        if visit == Visit::GivesWay
            && let Some(door) = self.doors.get_mut(number).and_then(Option::as_mut)
        {
            visit = door.give_way(&shared.epoll);
        }
        self.lets_others_run |= self.has_siblings && !accepted.is_empty();
        // Most have sent their call by then: it begins in this very round.
        self.todo.extend(accepted.into_iter().map(|key| Todo::Event(token_of(key), EpollFlags::EPOLLIN)));
        if let Visit::Shut { why, .. } = visit {
            match why {
                Shut::NoRoom => self.look_for_room_later(number, &shared),
                Shut::NotYet | Shut::NoThread | Shut::Refused => shared.look_again_at(number, why),
            }
            self.open_doors(hand);
        }
        if was_empty && shared.table.lock().len() > 0 {
            self.is_wanted_again(hand.now());
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

    /// Another worker was woken for a connection that it can't take. One that can't either shuts its door for a while,
    /// and looks again: the one that rang may have no room for long, and the kernel says nothing twice. It does not
    /// ring in its turn, or every worker would wake every other one.
    pub(in crate::worker) fn rung(&mut self, hand: &mut Hand) {
        for number in 0..self.doors.len() {
            let standing = self.standing(hand);
            self.visit_as(number, standing, hand);
        }
    }

    fn standing(&mut self, hand: &Hand) -> Standing {
        let shared = &hand.shared;
        let (places, beyond) = self.room(shared, hand.now());
        let busy_for = shared
            .gate
            .busy_for(clock::monotonic_ns(), shared.queue.held_back())
            .filter(|_| self.has_siblings);
        // Whoever is accepted and not kept ends with this process; before the doors nobody does. Calls that need no keeping wait
        // there too, so not for as long as those that do may wait here.
        let patience = shared.bounds.queue_wait / 2;
        let keeps_none = self.keeps_none_since.is_some_and(|since| since.elapsed() < patience);
        Standing {
            leave_to_others: keeps_none.then_some(patience).or(busy_for.map(Standing::leave_after)),
            room: places + beyond,
            has_siblings: self.has_siblings,
        }
    }

    /// Opens what was shut for a reason that is gone, and sees to it that the poller hears when the others' is.
    pub(in crate::worker) fn open_doors(&mut self, hand: &Hand) {
        let shared = &hand.shared;
        // Asked for before looking: what changes after the look is then heard of.
        shared.wants_thread.store(true, Ordering::SeqCst);
        shared.wants_room.store(true, Ordering::SeqCst);
        let standing = self.standing(hand);
        let (mut wants_thread, mut wants_room) = (false, !self.reserve.is_empty());
        let numbered = self.doors.iter_mut().enumerate();
        let mut doors: Vec<(usize, &mut Door)> =
            numbered.filter_map(|(number, door)| Some((number, door.as_mut()?))).collect();
        // Epoll tells of them in this order, and there may be room for one.
        doors.sort_by_key(|(_, door)| door.took());
        for (number, door) in doors {
            match door.shut() {
                Some(Shut::NoThread) if standing.leave_to_others.is_some() => wants_thread = true,
                Some(Shut::NoRoom) if standing.room == 0 => wants_room = true,
                Some(Shut::NoThread | Shut::NoRoom) => shared.watch_door(number, door.open(&shared.epoll)),
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
            self.remind(Instant::now() + wait, Due::Door(number));
        }
    }

    /// Edge-triggered: each ring is heard once by every worker, and none has to read it.
    pub(in crate::worker) fn listen_for(&self, bell: &OwnedFd) -> io::Result<()> {
        let event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, BELL);
        Ok(self.epoll.add(bell, event)?)
    }

    /// Sees to a door that could not be opened.
    pub(in crate::worker) fn watch_door(&self, number: usize, opened: io::Result<()>) {
        if let Err(error) = opened {
            tracing::warn!(slot = self.info.slot(), %error, "a listener can't be watched again");
            self.remind(Instant::now() + LOOK_AGAIN, Due::Door(number));
        }
    }
}
