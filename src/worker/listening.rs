//! Accepting: when this worker takes connections from the shared listeners, and when it leaves them to others.

use std::io;
use std::ops::RangeInclusive;
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::config;
use crate::sys::socket::{AcceptFailure, Listener, PeerAddress, Socket, sort_accept_error};
use crate::wire::length::LengthFraming;

/// Connections accepted in one go before other events get their turn.
const BATCH: usize = 64;

/// How long a worker without a free thread leaves a new connection to others, before it takes it after all: at least
/// so long that another one wakes up, and up to so long where no thread has become free for a while and may never be.
const LEAVE_TO_OTHERS: RangeInclusive<Duration> = Duration::from_millis(20)..=Duration::from_millis(300);
/// How often it looks meanwhile whether others take what waits.
const LOOK_AT_OTHERS: Duration = Duration::from_millis(20);
/// How long a worker that the kernel refuses descriptors waits before it looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A listener as this worker uses it.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
    token: u64,
    framing: LengthFraming,
    allow_uids: Option<Vec<u32>>,
    /// While it is shut it is not in the epoll set.
    shut: Option<Shut>,
    /// When it was shut last.
    shut_since: Instant,
    complained: bool,
}

/// Why a door is shut for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shut {
    /// Every thread runs a call; other workers may have a free one.
    NoThread,
    /// The worker holds as many connections as it may.
    NoRoom,
    /// The kernel refused: descriptors or memory are short.
    Refused,
}

/// How the worker stands when somebody is at the door.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Standing {
    /// How long connections are left to other workers, where one may have a free thread and this one has none.
    pub(super) leave_to_others: Option<Duration>,
    /// Connections that the worker may still hold.
    pub(super) room: usize,
}

impl Standing {
    /// How long a worker leaves connections to others that has had no free thread `for_so_long`.
    pub(super) fn leave_after(for_so_long: Duration) -> Duration {
        for_so_long.clamp(*LEAVE_TO_OTHERS.start(), *LEAVE_TO_OTHERS.end())
    }

    /// True when a connection would be taken.
    pub(super) fn is_welcoming(self) -> bool {
        self.leave_to_others.is_none() && self.room > 0
    }
}

/// What a visit to the door ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// All that waited is in, or the rest is reported again.
    Done,
    /// The door is shut. Where nothing was taken the kernel woke this worker for nothing, and the others must hear
    /// that somebody waits.
    Shut { why: Shut, took_any: bool },
}

impl Shut {
    /// How long until it is time to look again although nothing was heard.
    pub(super) fn look_again(self) -> Option<Duration> {
        match self {
            Self::NoThread => Some(LOOK_AT_OTHERS),
            Self::NoRoom => None,
            Self::Refused => Some(LOOK_AGAIN),
        }
    }
}

impl Door {
    pub(super) fn new(listener: Listener, config: &config::Listener, token: u64, max_message: usize) -> Self {
        Self {
            listener,
            token,
            framing: LengthFraming { order: config.prefix, max_message },
            allow_uids: config.allow_uids.clone(),
            shut: Some(Shut::Refused),
            shut_since: Instant::now(),
            complained: false,
        }
    }

    /// Begins to be told of connections. `EPOLLEXCLUSIVE` wakes one worker for each, not all of them.
    pub(super) fn open(&mut self, epoll: &Epoll) -> io::Result<()> {
        if self.shut.is_some() {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            let added = epoll.add(&self.listener, EpollEvent::new(flags, self.token));
            self.shut = added.is_err().then_some(Shut::Refused);
            added?;
        }
        Ok(())
    }

    /// For how long it has been shut, if somebody waits before it. Who waits need not have waited for as long.
    pub(super) fn has_let_wait(&self) -> Option<Duration> {
        let mut listener = [PollFd::new(self.listener.as_fd(), PollFlags::POLLIN)];
        let somebody_waits = poll(&mut listener, PollTimeout::ZERO).is_ok_and(|ready| ready > 0);
        somebody_waits.then(|| self.shut_since.elapsed())
    }

    /// Why it is shut; None while it is open.
    pub(super) fn shut(&self) -> Option<Shut> {
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
    pub(super) fn visit(
        &mut self,
        epoll: &Epoll,
        standing: Standing,
        mut accepted: impl FnMut(Socket, PeerAddress, LengthFraming),
    ) -> Visit {
        if self.shut.is_some() {
            return Visit::Done;
        }
        if standing.leave_to_others.is_some() {
            return self.shut_for(Shut::NoThread, epoll, false);
        }
        let mut room = standing.room;
        let mut took_any = false;
        for _ in 0..BATCH {
            if room == 0 {
                return self.shut_for(Shut::NoRoom, epoll, took_any);
            }
            match self.accept() {
                Ok(Some((socket, peer))) => {
                    accepted(socket, peer, self.framing);
                    room -= 1;
                    took_any = true;
                }
                Ok(None) => took_any = true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => match sort_accept_error(&error) {
                    AcceptFailure::NextConnection => {}
                    AcceptFailure::Pause => {
                        self.complain(&error);
                        return self.shut_for(Shut::Refused, epoll, took_any);
                    }
                    AcceptFailure::GiveUp => {
                        tracing::error!(%error, "a listener is unusable; this worker accepts no more from it");
                        let _ = epoll.delete(&self.listener);
                        break;
                    }
                },
            }
        }
        Visit::Done
    }

    /// Closes it for good, after taking what still waits.
    pub(super) fn close(self, epoll: &Epoll, mut accepted: impl FnMut(Socket, PeerAddress, LengthFraming)) {
        let _ = epoll.delete(&self.listener);
        loop {
            match self.accept() {
                Ok(Some((socket, peer))) => accepted(socket, peer, self.framing),
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
            tracing::warn!(uid, pid, "a user that is not among allow_uids was turned away");
            return Ok(None);
        }
        Ok(Some((socket, peer)))
    }

    fn complain(&mut self, error: &io::Error) {
        if !std::mem::replace(&mut self.complained, true) {
            tracing::warn!(%error, "connections can't be accepted for now (said once); is the descriptor limit too low?");
        }
    }
}
