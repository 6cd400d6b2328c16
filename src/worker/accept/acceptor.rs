//! Accepting: when this worker takes connections from the shared listeners, and when it leaves them to others.

#[cfg(test)]
mod tests;

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::config;
use crate::log::More;
use crate::sys::descriptors::{self, Identity};
use crate::sys::last_moment;
use crate::sys::peer::PeerAddress;
use crate::sys::socket::{AcceptFailure, Listener, Socket, sort_accept_error};
use crate::wire::Accepts;
use crate::worker::counted::TURNED_AWAY;

/// Connections accepted in one go before other events get their turn.
const BATCH: usize = 64;
/// As many where other workers accept too: a burst is for all of them.
const BATCH_BESIDE_OTHERS: usize = 1;

/// How long a worker without a free thread leaves a new connection to others, before it takes it after all: at least
/// so long that another one wakes up, and up to so long where no thread has become free for a while and may never be.
const LEAVE_TO_OTHERS: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(300);
/// How long one without a free place leaves it to others where nobody gives way: longer, because a call that comes in beyond the
/// places may be refused.
const FOR_A_PLACE: Duration = Duration::from_millis(100);
/// How often it looks meanwhile whether others take what waits.
const LOOK_AT_OTHERS: Duration = Duration::from_millis(20);
/// How long a worker that the kernel refuses descriptors waits before it looks again.
pub(in crate::worker) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// After so many visits in a row that met nobody it is looked whether the listener is still there.
const MOST_IN_VAIN: u32 = 16;

/// A listener as this worker uses it.
#[derive(Debug)]
pub(in crate::worker) struct Acceptor {
    listener: Listener,
    token: u64,
    accepts: Accepts,
    allow_uids: Option<Vec<u32>>,
    /// While it is shut it is not in the epoll set.
    shut: Option<Shut>,
    /// When it was shut last.
    shut_since: Instant,
    /// When it is looked at next, or was last, because it was shut for want of room.
    look_at: Option<Instant>,
    complained: bool,
    /// When somebody was taken last.
    took: Instant,
    /// None where the kernel could not tell.
    identity: Option<Identity>,
    /// Visits in a row that met nobody.
    in_vain: u32,
}

/// Why an acceptor is shut for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Shut {
    /// The worker has not been told to open it.
    NotYet,
    /// Every thread runs a call, or nobody can be kept just now; with other workers that may be otherwise.
    NoThread,
    /// The worker holds as many connections as it may.
    NoRoom,
    /// The kernel refused, as descriptors or memory are short; or this process is about to die.
    Refused,
}

/// How the worker stands when somebody is at the listener.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct AcceptPolicy {
    /// How long connections are left to other workers, where one may have a free thread or keep them, and this one can't.
    pub(in crate::worker) leave_to_others: Option<Duration>,
    /// Connections that the worker may still hold.
    pub(in crate::worker) room: usize,
    /// Other workers accept from the same listeners.
    pub(in crate::worker) has_siblings: bool,
}

impl AcceptPolicy {
    /// How long a worker leaves connections to others that has had no free thread `for_so_long`.
    pub(in crate::worker) fn leave_after(for_so_long: Duration) -> Duration {
        for_so_long.clamp(*LEAVE_TO_OTHERS.start(), *LEAVE_TO_OTHERS.end())
    }

    /// Whether a worker without a free place takes somebody who has `waited` after all: no other one has.
    pub(in crate::worker) fn takes_beyond(
        waited: Duration,
        may_have_place: bool,
        has_siblings: bool,
    ) -> bool {
        let patience = if may_have_place { *LEAVE_TO_OTHERS.start() } else { FOR_A_PLACE };
        !has_siblings || waited >= patience
    }
}

/// What a visit to the acceptor ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Visit {
    /// All that waited is in, or the rest is reported again.
    Done,
    /// Some are in, and the next ones are for other workers: [`Acceptor::give_way`] comes next.
    GivesWay,
    /// The acceptor is shut. Where nothing was taken the kernel woke this worker for nothing, and the others must hear
    /// that somebody waits.
    Shut { why: Shut, took_any: bool },
}

impl Shut {
    /// How long until it is time to look again although nothing was heard.
    pub(in crate::worker) fn look_again(self) -> Option<Duration> {
        match self {
            Self::NoThread | Self::NoRoom => Some(LOOK_AT_OTHERS),
            Self::NotYet => None,
            Self::Refused => Some(LOOK_AGAIN),
        }
    }
}

impl Acceptor {
    pub(in crate::worker) fn new(
        listener: Listener,
        config: &config::Listener,
        token: u64,
        max_message: usize,
    ) -> Self {
        let identity = Identity::of(&listener).ok();
        Self {
            listener,
            token,
            accepts: Accepts { kinds: config.framings, order: config.prefix, max_message },
            allow_uids: config.allow_uids.clone(),
            shut: Some(Shut::NotYet),
            shut_since: Instant::now(),
            look_at: None,
            complained: false,
            took: Instant::now(),
            identity,
            in_vain: 0,
        }
    }

    /// Begins to be told of connections. `EPOLLEXCLUSIVE` wakes one worker for each, not all of them.
    pub(in crate::worker) fn open(&mut self, epoll: &Epoll) -> io::Result<()> {
        if self.shut.is_some() {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            let added = epoll.add(&self.listener, EpollEvent::new(flags, self.token));
            self.shut = added.is_err().then_some(Shut::Refused);
            added.map_err(|errno| self.look_who_failed(errno.into()))?;
        }
        Ok(())
    }

    /// For how long it has been shut, if somebody waits before it. Who waits need not have waited for as long.
    pub(in crate::worker) fn has_let_wait(&self) -> Option<Duration> {
        let mut listener = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let somebody_waits = poll(&mut listener, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        somebody_waits.then(|| self.shut_since.elapsed())
    }

    /// It is to be looked at again at the moment `at`. False where it already is at one that has not come. A moment, which passes
    /// whatever has become of the acceptor by then.
    pub(in crate::worker) fn is_to_be_looked_at(&mut self, at: Instant, now: Instant) -> bool {
        let is_new = self.look_at.is_none_or(|look_at| look_at <= now);
        if is_new {
            self.look_at = Some(at);
        }
        is_new
    }

    /// When somebody was taken last: of several acceptors that lack room the one that took nobody for longest has its turn.
    pub(in crate::worker) fn took(&self) -> Instant {
        self.took
    }

    /// Why it is shut; None while it is open.
    pub(in crate::worker) fn shut(&self) -> Option<Shut> {
        self.shut
    }

    /// Stops being told of connections. The kernel allows no change of an exclusive entry, so it is taken out.
    ///
    /// Whoever can take nothing must do this before it waits again: the kernel would wake it, and it alone, for a
    /// connection that another worker could take.
    fn shut_for(&mut self, why: Shut, epoll: &Epoll, took_any: bool) -> Visit {
        let _ = epoll.delete(&self.listener);
        self.shut = Some(why);
        self.shut_since = Instant::now();
        Visit::Shut { why, took_any }
    }

    /// Takes what waits, or leaves it to others.
    pub(in crate::worker) fn visit(
        &mut self,
        epoll: &Epoll,
        standing: AcceptPolicy,
        mut accepted: impl FnMut(Socket, PeerAddress, Accepts),
    ) -> Visit {
        if self.shut.is_some() {
            return Visit::Done;
        }
        if standing.leave_to_others.is_some() {
            return self.shut_for(Shut::NoThread, epoll, false);
        }
        if !last_moment::take_in_hand() {
            // The kernel has woken this worker alone, so the others must hear of it; and it would wake it again and again.
            return self.shut_for(Shut::Refused, epoll, false);
        }
        let mut room = standing.room;
        let mut took_any = false;
        let batch = if standing.has_siblings { BATCH_BESIDE_OTHERS } else { BATCH };
        for _ in 0..batch {
            if room == 0 {
                return self.shut_for(Shut::NoRoom, epoll, took_any);
            }
            match self.accept() {
                Ok(Some((socket, peer))) => {
                    accepted(socket, peer, self.accepts);
                    room -= 1;
                    took_any = true;
                    self.took = Instant::now();
                }
                Ok(None) => took_any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.met_nobody(took_any, error);
                    break;
                }
                Err(error) => match sort_accept_error(&error) {
                    AcceptFailure::NextConnection => {}
                    AcceptFailure::Pause => {
                        self.complain(&error);
                        return self.shut_for(Shut::Refused, epoll, took_any);
                    }
                    // Not ours alone: the supervisor sees it too, and sends another.
                    AcceptFailure::GiveUp if self.listener.is_shut_down() => {
                        let _ = epoll.delete(&self.listener);
                        break;
                    }
                    AcceptFailure::GiveUp => {
                        let error = self.look_who_failed(error);
                        tracing::error!(%error, "a listener is unusable; this worker accepts no more from it");
                        let _ = epoll.delete(&self.listener);
                        break;
                    }
                },
            }
        }
        if took_any && standing.has_siblings { Visit::GivesWay } else { Visit::Done }
    }

    /// Goes to the end of the line of workers: the kernel wakes the first that waits, which would be the same one for every
    /// connection that comes while nobody is busy. This comes before anybody is answered, since whoever is may connect again at
    /// once. A connection that comes in between is reported by the entry that is added.
    pub(in crate::worker) fn give_way(&mut self, epoll: &Epoll) -> Visit {
        let _ = epoll.delete(&self.listener);
        self.shut = Some(Shut::Refused);
        match self.open(epoll) {
            Ok(()) => Visit::Done,
            Err(error) => {
                self.complain(&error);
                Visit::Shut { why: Shut::Refused, took_any: true }
            }
        }
    }

    /// Closes it for good, after taking what still waits. One that `is_gone` is closed for everybody.
    pub(in crate::worker) fn close(
        self,
        epoll: &Epoll,
        is_gone: bool,
        accepted: impl FnMut(Socket, PeerAddress, Accepts),
    ) {
        let _ = epoll.delete(&self.listener);
        self.take_all(accepted);
        if is_gone {
            self.listener.shut_down();
        }
    }

    /// Goes on with another listener, after taking what waits at the one before: its socket file may be gone, and who has
    /// connected by then not know.
    pub(in crate::worker) fn change(
        &mut self,
        epoll: &Epoll,
        listener: Listener,
        accepted: impl FnMut(Socket, PeerAddress, Accepts),
    ) -> io::Result<()> {
        let _ = epoll.delete(&self.listener);
        self.take_all(accepted);
        (self.identity, self.in_vain) = (Identity::of(&listener).ok(), 0);
        self.listener = listener;
        if self.shut.is_none() {
            self.shut = Some(Shut::Refused);
            self.open(epoll)?;
        }
        Ok(())
    }

    fn take_all(&self, mut accepted: impl FnMut(Socket, PeerAddress, Accepts)) {
        while last_moment::take_in_hand() {
            match self.accept() {
                Ok(Some((socket, peer))) => accepted(socket, peer, self.accepts),
                Ok(None) => {}
                Err(error)
                    if sort_accept_error(&error) == AcceptFailure::NextConnection
                        && error.kind() != io::ErrorKind::WouldBlock => {}
                Err(_) => break,
            }
        }
    }

    /// The next connection whose peer may connect; None for one that may not.
    fn accept(&self) -> io::Result<Option<(Socket, PeerAddress)>> {
        let (socket, peer) = self.listener.accept()?;
        if let (PeerAddress::Unix { uid, pid }, Some(allowed)) = (peer, &self.allow_uids)
            && !allowed.contains(&uid)
        {
            if let Some(More { count, from }) = TURNED_AWAY.admit(peer.key()) {
                tracing::warn!(
                    uid,
                    pid,
                    more = count,
                    from,
                    "a user that is not among allow_uids was turned away"
                );
            }
            return Ok(None);
        }
        Ok(Some((socket, peer)))
    }

    /// An operation on the listener has failed: because its number refers to something else by now? Then this worker ends.
    fn look_who_failed(&self, error: io::Error) -> io::Error {
        if self.identity.is_some_and(|identity| !identity.is_still(&self.listener)) {
            descriptors::lost("a listener", &error);
        }
        error
    }

    /// It was called to the acceptor and nobody was there. Mostly another worker was faster. Where that goes on, epoll may
    /// report a listener that this number no longer refers to.
    fn met_nobody(&mut self, took_any: bool, error: io::Error) {
        self.in_vain = if took_any { 0 } else { self.in_vain + 1 };
        if self.in_vain == MOST_IN_VAIN {
            self.in_vain = 0;
            self.look_who_failed(error);
        }
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "connections can't be accepted for now (said once); is the descriptor limit too low?");
        }
    }
}
