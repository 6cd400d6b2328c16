//! One connection: what has arrived and not begun, which calls run, what waits to be sent.
//!
//! Whichever thread holds the connection's lock moves it on; `flow` decides where to. Nothing here knows of the
//! poller, the pool or other connections.

use std::io;
use std::ops::{Deref, DerefMut, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use parking_lot::{Mutex, MutexGuard};

use super::chunk::Chunk;
use super::ticket::{Place, Ticket};
use crate::rpc::{MethodIndex, Peer, RawJson, Span, native};
use crate::sys::socket::Socket;
use crate::wire::length::LengthFraming;

/// How long input is still read and thrown away after our FIN, so that the last answer is not lost to a reset.
const LINGER: Duration = Duration::from_secs(2);

/// Memory that a thread keeps for the next answers, at most: one large answer must not keep its memory for ever.
pub(super) const SPARE: usize = 16 * 1024;

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
    /// It waits until the poller comes round to it.
    Turn,
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
    /// While the poller runs a call inline.
    pub(super) in_hand: Option<InHand>,
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
    /// None once a thread runs it.
    pub(super) queued_since: Option<Instant>,
    /// Nothing may begin beside it: it has no id, so that answers keep their order, or nobody knows yet whether it has.
    pub(super) ordered: bool,
    pub(super) message: Chunk,
    pub(super) id: CallId,
    /// Where it is.
    pub(super) ticket: Arc<Ticket>,
}

/// Where a call's id is.
#[derive(Debug, Clone, Copy)]
pub(super) enum CallId {
    Known(Option<Span>),
    /// Its message has not been parsed.
    NotParsed,
}

impl CallId {
    /// The id that the answer carries. To find it in a message that nobody has parsed takes as long as to parse that.
    pub(super) fn in_message(self, message: &[u8]) -> Option<RawJson<'_>> {
        match self {
            Self::Known(span) => span.map(|span| span.in_message(message)),
            Self::NotParsed => native::id_of(message),
        }
    }
}

/// What the poller has taken from a connection while it runs one call of it with the lock released. Its input is empty
/// meanwhile. Whoever relieves the poller [takes it over](State::take_over).
#[derive(Debug)]
pub(super) struct InHand {
    pub(super) chunk: Chunk,
    /// Where in the chunk begins what has not begun.
    pub(super) rest: usize,
    /// None while the lock is held.
    pub(super) call: Option<InlineCall>,
}

/// A call that the poller runs itself.
#[derive(Debug)]
pub(super) struct InlineCall {
    pub(super) number: u64,
    pub(super) method: MethodIndex,
    pub(super) allowed: Duration,
    pub(super) deadline: Instant,
    /// Where in the chunk its message is.
    pub(super) message: Range<usize>,
    pub(super) id: Option<Span>,
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
    /// Lets others have the connection while `work` is done.
    pub(super) fn unlocked<T>(&mut self, work: impl FnOnce() -> T) -> T {
        MutexGuard::unlocked(&mut self.state, work)
    }

    /// Sends what waits, as far as the socket takes it.
    ///
    /// # Errors
    ///
    /// The connection is broken.
    pub(super) fn flush(&mut self, now: Instant, spare: &mut Vec<u8>) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.connection.socket.send(self.state.output.waiting()) {
                Ok(sent) => {
                    self.state.output.sent(sent);
                    self.state.last_progress = now;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        self.output.give_back(spare);
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
            in_hand: None,
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
            && !self.runs_inline()
            && self.calls.len() < bounds.in_flight
            && self.output.len() < bounds.output
            && !self.calls.iter().any(|call| call.ordered)
    }

    /// True when all that was asked is answered and sent.
    pub(super) fn is_quiet(&self) -> bool {
        self.calls.is_empty() && self.output.is_empty() && !self.runs_inline()
    }

    fn runs_inline(&self) -> bool {
        self.inline_call().is_some()
    }

    /// The call that the poller runs, if it is at one of this connection.
    pub(super) fn inline_call(&self) -> Option<&InlineCall> {
        self.in_hand.as_ref()?.call.as_ref()
    }

    /// The poller runs this call, and holds what is behind it in the chunk, until it [has run](Self::has_run_inline) it or
    /// is relieved.
    pub(super) fn take_in_hand(&mut self, chunk: &Chunk, call: InlineCall) {
        let rest = call.message.end;
        match &mut self.in_hand {
            Some(in_hand) => (in_hand.rest, in_hand.call) = (rest, Some(call)),
            none => *none = Some(InHand { chunk: chunk.clone(), rest, call: Some(call) }),
        }
    }

    /// The poller is back in time. It may have another call of the chunk.
    pub(super) fn has_run_inline(&mut self) {
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.call = None;
        }
    }

    /// Brings call `number`, which the poller ran when it was relieved, among those that any thread runs, and what
    /// the poller had not begun back to the input. Nothing, where that has been done.
    pub(super) fn take_over(&mut self, number: u64) {
        if self.inline_call().is_none_or(|call| call.number != number) {
            return;
        }
        let Some(InHand { chunk, rest, call: Some(call) }) = self.in_hand.take() else {
            return;
        };
        let message = Chunk::copy_of(chunk.get(call.message).unwrap_or_default());
        self.input = Input::from(chunk.skip(rest));
        // The call's own message has arrived whole. What is behind it, if anything, is looked at anew.
        self.message_since = None;
        self.calls.push(InFlight {
            number,
            allowed: call.allowed,
            deadline: call.deadline,
            queued_since: None,
            ordered: call.id.is_none(),
            message,
            id: CallId::Known(call.id),
            ticket: Arc::new(Ticket::new(Place::Taken, Some(call.method))),
        });
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

    /// True when the entry among the deadlines is early enough, seen without working out when it should be: so after most
    /// calls, which leave nothing behind and an idle time that ends later than before.
    pub(super) fn timer_holds(&self, bounds: &Bounds) -> bool {
        self.phase == Phase::Open
            && self.calls.is_empty()
            && self.message_since.is_none()
            && self.timer.is_some_and(|timer| timer <= self.last_progress + bounds.idle)
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
        self.input.bytes.capacity() + self.output.bytes.capacity() + self.held_by_calls()
    }

    /// Bytes that its calls hold.
    pub(super) fn held_by_calls(&self) -> usize {
        let inline = self.inline_call().map_or(0, |call| call.message.len());
        inline + self.calls.iter().map(|call| call.message.len()).sum::<usize>()
    }
}

impl InFlight {
    pub(super) fn id(&self) -> Option<RawJson<'_>> {
        self.id.in_message(&self.message)
    }

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

    /// All of it, to begin calls from; the input is empty then.
    pub(super) fn take(&mut self) -> Chunk {
        let Self { bytes, start } = std::mem::take(self);
        Chunk::new(bytes).skip(start)
    }
}

impl From<Chunk> for Input {
    /// What was not begun of a chunk. An empty input holds no memory: most connections are idle.
    fn from(rest: Chunk) -> Self {
        if rest.is_empty() {
            return Self::default();
        }
        let (bytes, start) = rest.into_bytes();
        Self { bytes, start }
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

    /// Adds an answer. One that finds nothing waiting borrows the memory of `spare`.
    pub(super) fn append(&mut self, bytes: &[u8], spare: &mut Vec<u8>) {
        if self.bytes.capacity() == 0 {
            std::mem::swap(&mut self.bytes, spare);
        }
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
            self.start = 0;
            self.bytes.clear();
        }
    }

    /// Gives the memory back once nothing waits. Where there is none, `spare` keeps what it has.
    fn give_back(&mut self, spare: &mut Vec<u8>) {
        if self.is_empty() && self.bytes.capacity() > 0 {
            let bytes = std::mem::take(self).bytes;
            if bytes.capacity() <= SPARE {
                *spare = bytes;
            }
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
