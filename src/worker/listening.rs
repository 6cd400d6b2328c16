//! Accepting: when this worker takes connections from the shared listeners, and when it leaves them to others.

use std::io;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use crate::config;
use crate::sys::socket::{AcceptFailure, Listener, PeerAddress, Socket, sort_accept_error};
use crate::wire::length::LengthFraming;

/// Connections accepted in one go before other events get their turn.
const BATCH: usize = 64;

/// How long a worker without a free thread leaves a new connection to others, before it takes it after all.
pub(super) const LEAVE_TO_OTHERS: Duration = Duration::from_millis(5);
/// How long a worker that is full, or that the kernel refuses descriptors, waits before it looks again.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// A listener as this worker uses it.
#[derive(Debug)]
pub(super) struct Door {
    listener: Listener,
    token: u64,
    framing: LengthFraming,
    allow_uids: Option<Vec<u32>>,
    /// It has left the epoll set for a while.
    paused: bool,
    /// The next connection is taken even without a free thread: the others had their chance.
    take_next: bool,
    complained: bool,
}

/// What a visit to the door ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Visit {
    /// All that waited is in, or the rest is reported again.
    Done,
    /// Look again at this moment.
    Paused { until: Instant },
}

impl Door {
    pub(super) fn new(listener: Listener, config: &config::Listener, token: u64, max_message: usize) -> Self {
        Self {
            listener,
            token,
            framing: LengthFraming { order: config.prefix, max_message },
            allow_uids: config.allow_uids.clone(),
            paused: true,
            take_next: false,
            complained: false,
        }
    }

    /// Begins to be told of connections. `EPOLLEXCLUSIVE` wakes one worker for each, not all of them.
    pub(super) fn open(&mut self, epoll: &Epoll) -> io::Result<()> {
        if self.paused {
            let flags = EpollFlags::EPOLLIN | EpollFlags::EPOLLEXCLUSIVE;
            epoll.add(&self.listener, EpollEvent::new(flags, self.token))?;
            self.paused = false;
        }
        Ok(())
    }

    /// Stops being told of connections. The kernel allows no change of an exclusive entry, so it is taken out.
    ///
    /// Who does this must come back or accept until nothing waits: the wake-up for a connection may have been
    /// spent on this worker alone.
    fn pause(&mut self, epoll: &Epoll, wait: Duration) -> Visit {
        if !self.paused {
            let _ = epoll.delete(&self.listener);
            self.paused = true;
        }
        Visit::Paused { until: Instant::now() + wait }
    }

    /// The pause is over: the next connection that still waits is taken.
    pub(super) fn resume(&mut self, epoll: &Epoll) -> io::Result<()> {
        self.take_next = true;
        self.open(epoll)
    }

    /// Takes what waits, or leaves it to others. `room`: connections this worker may still hold.
    pub(super) fn visit(
        &mut self,
        epoll: &Epoll,
        leave_to_others: bool,
        mut room: impl FnMut() -> usize,
        mut accepted: impl FnMut(Socket, PeerAddress, LengthFraming),
    ) -> Visit {
        if leave_to_others && !std::mem::take(&mut self.take_next) {
            return self.pause(epoll, LEAVE_TO_OTHERS);
        }
        for _ in 0..BATCH {
            if room() == 0 {
                return self.pause(epoll, LOOK_AGAIN);
            }
            match self.accept() {
                Ok(Some((socket, peer))) => accepted(socket, peer, self.framing),
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => match sort_accept_error(&error) {
                    AcceptFailure::NextConnection => {}
                    AcceptFailure::Pause => {
                        self.complain(&error);
                        return self.pause(epoll, LOOK_AGAIN);
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
