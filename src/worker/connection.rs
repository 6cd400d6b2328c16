//! One connection: what has arrived and not begun, which calls run, what waits to be sent.
//!
//! Whichever thread holds the connection's lock moves it on; `flow` decides where to. Nothing here knows of the
//! poller, the pool or other connections.

use std::io;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use parking_lot::{Mutex, MutexGuard};

use crate::rpc::Peer;
use crate::sys::socket::Socket;
use crate::wire::length::LengthFraming;

/// How long input is still read and thrown away after our FIN, so that the last answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);

/// Where a connection stands in its worker's table. Epoll reports this and never a descriptor, whose number may
/// belong to another connection by the time the report is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) index: u32,
    pub(super) generation: u32,
}

/// What one connection may have, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) in_flight: usize,
    /// Bytes of answers that may wait to be sent before no further call is begun.
    pub(super) output: usize,
    pub(super) message: Duration,
    pub(super) idle: Duration,
    pub(super) queue_wait: Duration,
}

/// A connection. The socket stays open for as long as a thread may write to it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    pub(super) framing: LengthFraming,
    /// The caller is gone; handlers see it without a lock.
    pub(super) gone: AtomicBool,
    state: Mutex<State>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Open,
    /// The answer that ends it is written or will be; nothing more is read or begun.
    Finishing,
    /// Our FIN is sent; input is thrown away.
    Lingering {
        until: Instant,
    },
    /// It has left the table.
    Closed,
}

/// Why an open connection is not read from. Epoll is silent about it meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pause {
    /// Input arrived while nothing might begin: it is parked until something may.
    Parked,
    /// The worker's buffers are full.
    Starved,
}

/// What epoll was last asked to report.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Interest {
    pub(super) input: bool,
    pub(super) output: bool,
}

/// All that changes about a connection.
#[derive(Debug)]
pub(super) struct State {
    pub(super) phase: Phase,
    /// The first bytes were those of our framing.
    pub(super) recognised: bool,
    pub(super) input: Input,
    /// The peer has sent FIN, or we no longer read: what is in `input` is all that will be.
    pub(super) input_ended: bool,
    /// When the first byte of the incomplete message at the end of `input` came.
    pub(super) message_since: Option<Instant>,
    /// Why it is not read from at present, if so.
    pub(super) paused: Option<Pause>,
    pub(super) calls: Vec<InFlight>,
    pub(super) output: Output,
    pub(super) armed: Interest,
    /// The time of this connection's entry among the worker's deadlines; other entries of it are stale.
    pub(super) timer: Option<Instant>,
    /// Bytes last accounted for in the worker's `buffers`.
    pub(super) accounted: usize,
    last_progress: Instant,
    next_number: u64,
}

/// A call that has begun and has not been answered.
#[derive(Debug)]
pub(super) struct InFlight {
    pub(super) number: u64,
    pub(super) allowed: Duration,
    pub(super) deadline: Instant,
    /// None once a pool thread runs it.
    pub(super) queued_since: Option<Instant>,
    /// It has no id: nothing may begin beside it, so that answers keep their order.
    pub(super) ordered: bool,
    pub(super) id: Option<Box<[u8]>>,
    pub(super) bytes: usize,
}

impl Connection {
    pub(super) fn new(key: Key, socket: Socket, peer: Peer, framing: LengthFraming, now: Instant) -> Self {
        Self { key, socket, peer, framing, gone: AtomicBool::new(false), state: Mutex::new(State::new(now)) }
    }

    pub(super) fn lock(self: &Arc<Self>) -> Locked<'_> {
        Locked { connection: self, state: self.state.lock() }
    }

    pub(super) fn caller_is_gone(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }
}

/// A connection under its lock.
pub(super) struct Locked<'a> {
    pub(super) connection: &'a Arc<Connection>,
    state: MutexGuard<'a, State>,
}

impl Deref for Locked<'_> {
    type Target = State;
    fn deref(&self) -> &State {
        &self.state
    }
}

impl DerefMut for Locked<'_> {
    fn deref_mut(&mut self) -> &mut State {
        &mut self.state
    }
}

impl Locked<'_> {
    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.connection.socket.send(self.state.output.waiting()) {
                Ok(sent) => {
                    self.state.output.sent(sent);
                    self.state.last_progress = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Sends our FIN and from then on only throws input away.
    pub(super) fn linger(&mut self, now: Instant) {
        self.connection.socket.shut_down_sending();
        self.phase = Phase::Lingering { until: now + LINGER };
        self.input = Input::default();
    }
}

impl State {
    fn new(now: Instant) -> Self {
        Self {
            phase: Phase::Open,
            recognised: false,
            input: Input::default(),
            input_ended: false,
            message_since: None,
            paused: None,
            calls: Vec::new(),
            output: Output::default(),
            armed: Interest { input: true, output: false },
            timer: None,
            accounted: 0,
            last_progress: now,
            next_number: 0,
        }
    }

    /// True when another message may be looked at.
    pub(super) fn may_begin(&self, bounds: &Bounds) -> bool {
        self.phase == Phase::Open
            && self.calls.len() < bounds.in_flight
            && self.output.len() < bounds.output
            && !self.calls.iter().any(|call| call.ordered)
    }

    /// True when all that was asked is answered and sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.calls.is_empty() && self.output.is_empty()
    }

    pub(super) fn next_call_number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Takes a call off the list; None when it has been answered already.
    pub(super) fn take_call(&mut self, number: u64) -> Option<InFlight> {
        let index = self.calls.iter().position(|call| call.number == number)?;
        Some(self.calls.swap_remove(index))
    }

    pub(super) fn progressed(&mut self, now: Instant) {
        self.last_progress = now;
    }

    /// What epoll should report now.
    pub(super) fn interest(&self) -> Interest {
        match self.phase {
            Phase::Closed => Interest::default(),
            Phase::Lingering { .. } => Interest { input: true, output: false },
            Phase::Finishing => Interest { input: false, output: !self.output.is_empty() },
            Phase::Open => Interest {
                input: !self.input_ended && self.paused.is_none(),
                output: !self.output.is_empty(),
            },
        }
    }

    /// The next moment at which time alone changes something; None when there is none.
    pub(super) fn due(&self, bounds: &Bounds) -> Option<Instant> {
        match self.phase {
            Phase::Closed => return None,
            Phase::Lingering { until } => return Some(until),
            Phase::Finishing | Phase::Open => {}
        }
        let deadlines = self.calls.iter().map(|call| call.due(bounds));
        let message = self.message_due(bounds);
        let idle = self.idle_due(bounds);
        deadlines.chain(message).chain(idle).min()
    }

    /// When the message that is arriving has taken too long. A message that has to wait for calls before it
    /// does not arrive slowly.
    pub(super) fn message_due(&self, bounds: &Bounds) -> Option<Instant> {
        let reading = self.phase == Phase::Open && !self.input_ended && self.may_begin(bounds);
        self.message_since.filter(|_| reading).map(|since| since + bounds.message)
    }

    /// When a connection on which nothing runs and nothing moves is closed.
    pub(super) fn idle_due(&self, bounds: &Bounds) -> Option<Instant> {
        self.calls.is_empty().then(|| self.last_progress + bounds.idle)
    }

    /// Bytes it holds.
    pub(super) fn held(&self) -> usize {
        let calls: usize = self.calls.iter().map(|call| call.bytes).sum();
        self.input.bytes.capacity() + self.output.bytes.capacity() + calls
    }
}

impl InFlight {
    fn due(&self, bounds: &Bounds) -> Instant {
        self.queued_since.map_or(self.deadline, |since| self.deadline.min(since + bounds.queue_wait))
    }
}

/// Bytes that have arrived and have not been begun.
#[derive(Debug, Default)]
pub(super) struct Input {
    bytes: Vec<u8>,
    start: usize,
}

impl Input {
    pub(super) fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting().is_empty()
    }

    pub(super) fn append(&mut self, arrived: &[u8]) {
        if self.start > 0 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(arrived);
    }

    /// Forgets the first `count` bytes. An empty input holds no memory: most connections are idle.
    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

/// Bytes that the socket has not taken yet.
#[derive(Debug, Default)]
pub(super) struct Output {
    bytes: Vec<u8>,
    start: usize,
}

impl Output {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.start
    }

    pub(super) fn append(&mut self, bytes: &[u8]) {
        if self.start > self.bytes.len() / 2 {
            self.bytes.drain(..self.start);
            self.start = 0;
        }
        self.bytes.extend_from_slice(bytes);
    }

    fn waiting(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }

    fn sent(&mut self, count: usize) {
        self.start += count;
        if self.start >= self.bytes.len() {
            *self = Self::default();
        }
    }
}

impl Interest {
    /// The flags that stand for it. With nothing wanted it is `EPOLLONESHOT` alone: a hang-up is always
    /// reported, and without it would be reported again and again to nobody who acts on it.
    pub(super) fn flags(self) -> EpollFlags {
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP, self.input);
        flags.set(EpollFlags::EPOLLOUT, self.output);
        flags.set(EpollFlags::EPOLLONESHOT, self == Self::default());
        flags
    }
}

#[cfg(test)]
mod tests;
