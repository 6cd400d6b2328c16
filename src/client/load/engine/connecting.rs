//! The part of the engine that makes connections, at the beginning and again when they have ended.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};

use super::super::connection::{End, State, passes_by_itself};
use super::super::socket::Socket;
use super::super::tally::later;
use super::super::{Exchange, LoadError};
use super::{BATCH, CONNECTED_WITHIN, Engine, TICK};
use crate::sys::clock::monotonic_ns;
use crate::sys::limits;

/// Before a connection that has ended is made again, and before one that could not be made is tried again.
const PAUSE_AFTER_END: Duration = Duration::from_millis(10);
const PAUSE_AFTER_FAILURE: Duration = Duration::from_millis(50);

/// A server that just starts may refuse for that long.
const REFUSED_FOR: Duration = Duration::from_millis(400);

impl<E: Exchange> Engine<'_, E> {
    /// Opens all connections before the first call, so that the load is the one asked for from its beginning.
    pub(super) fn connect_all(&mut self, stop: &AtomicBool) -> Result<(), LoadError> {
        let mut events = [EpollEvent::empty(); BATCH];
        let begin = monotonic_ns();
        while self.open < self.connections.len() && !stop.load(Ordering::Relaxed) {
            let now = monotonic_ns();
            self.reopen(now);
            let is_over = now >= later(begin, CONNECTED_WITHIN);
            let is_refused = self.open == 0 && now >= later(begin, REFUSED_FOR) && self.failure.is_some();
            let is_hopeless = self.failure.as_ref().is_some_and(|failure| !passes_by_itself(failure));
            if is_over || is_refused || is_hopeless {
                return Err(self.not_connected());
            }
            self.turn(&mut events, EpollTimeout::try_from(TICK).unwrap_or(EpollTimeout::ZERO))?;
        }
        Ok(())
    }

    fn not_connected(&mut self) -> LoadError {
        let source = self.failure.take().unwrap_or_else(|| io::ErrorKind::TimedOut.into());
        let connections = self.connections.len();
        match (self.open, source) {
            (_, source) if is_out_of_descriptors(&source) => {
                LoadError::Descriptors { connections, most: limits::descriptors() }
            }
            (0, source) => LoadError::NoServer { to: self.targets.endpoint().to_string(), source },
            (made, source) => LoadError::Connections { made, wanted: connections, source },
        }
    }

    /// Opens the connections whose pause is over, and gives up those whose address does not answer.
    pub(super) fn reopen(&mut self, now: u64) {
        if self.open == self.connections.len() {
            return;
        }
        self.targets.refresh(now);
        for index in 0..self.connections.len() {
            match self.connections.get(index).map(|connection| connection.state) {
                Some(State::Away { until }) if until <= now => self.open(index, now),
                Some(State::Connecting { until }) if until <= now => {
                    self.not_made(index, now, io::ErrorKind::TimedOut.into());
                }
                Some(_) => {}
                None => break,
            }
        }
    }

    /// Begins to connect, to the next address that can be begun with.
    fn open(&mut self, index: usize, now: u64) {
        let share = CONNECTED_WITHIN / u32::try_from(self.targets.count()).unwrap_or(u32::MAX).max(1);
        let Some(connection) = self.connections.get_mut(index) else { return };
        loop {
            let Some(address) = self.targets.address(connection.tried) else {
                connection.tried = 0;
                self.failure = connection.failed.take().or(self.failure.take());
                connection.state = State::Away { until: later(now, PAUSE_AFTER_FAILURE) };
                return;
            };
            let opened = Socket::open(address).and_then(|socket| {
                // By edges, and writable from the beginning: no call to change it is ever needed.
                let flags =
                    EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
                self.epoll.add(&socket, EpollEvent::new(flags, index as u64))?;
                Ok(socket)
            });
            match opened {
                Ok(socket) => {
                    connection.renew(self.exchange);
                    connection.socket = Some(socket);
                    connection.state = State::Connecting { until: later(now, share) };
                    self.away -= 1;
                    return;
                }
                Err(error) => {
                    connection.not_taken(error);
                }
            }
        }
    }

    /// The socket has something to say about connecting.
    pub(super) fn connected(&mut self, index: usize) {
        let now = monotonic_ns();
        let Some(connection) = self.connections.get_mut(index) else { return };
        match connection.socket.as_ref().map_or(Ok(()), Socket::connected) {
            Ok(()) => {
                connection.state = State::Open;
                self.targets.worked(connection.tried);
                (connection.tried, connection.failed) = (0, None);
                self.open += 1;
                self.welcome(index, now);
            }
            Err(error) => self.not_made(index, now, error),
        }
    }

    /// An address does not take this connection. The next one is tried at once.
    fn not_made(&mut self, index: usize, now: u64, error: io::Error) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        connection.not_taken(error);
        self.away += 1;
        self.open(index, now);
    }

    /// A connection ends, and with it the calls it had in flight.
    pub(super) fn part(&mut self, index: usize, now: u64, end: &End) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.state != State::Open {
            return;
        }
        if matches!(end, End::Closed) {
            self.tally.closed(now);
        }
        self.in_flight -= connection.flight.len();
        self.tally.unanswered(connection.flight.abandon(self.tally.from()));
        // Closing takes it out of epoll: nobody else holds the descriptor.
        connection.socket = None;
        connection.state = State::Away { until: later(now, PAUSE_AFTER_END) };
        self.open -= 1;
        self.away += 1;
    }
}

fn is_out_of_descriptors(error: &io::Error) -> bool {
    matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EMFILE | Errno::ENFILE))
}
