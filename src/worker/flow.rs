//! A call's way: from bytes that arrived on a connection, through a handler, to bytes that are sent.
//!
//! The poller brings arrivals and deadlines, pool threads bring finished calls; both move a connection on under
//! its lock with the same steps, so it does not matter which of them comes first.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;
use nix::sys::epoll::EpollEvent;

use super::buffers::{LITTLE, Ration};
use super::connection::{Connection, InFlight, Key, Locked, Phase};
use super::dispatch::Refused;
use super::pool::Job;
use super::{Due, Shared, token_of};
use crate::arena::{Outcome, Row};
use crate::rpc::native::{self, Rejected};
use crate::rpc::{Call, CallParts, Error, Peer, RawJson};
use crate::sys::clock;
use crate::sys::socket::{PeerAddress, Socket};
use crate::wire::detect::{self, Recognised};
use crate::wire::length::LengthFraming;
use crate::wire::{Step, WireError};

/// The most input taken from one connection when the worker drains: more than any receive queue holds.
const MOST_AT_DRAIN: usize = 16 << 20;

/// One thread's part in the work: what all share, and what is its own.
pub(super) struct Hand {
    pub(super) shared: Arc<Shared>,
    pub(super) row: Row,
    /// 0 is the poller, 1 and up are the pool's.
    pub(super) thread: usize,
    /// The answer being written; kept for its memory.
    answer: Vec<u8>,
}

/// Why input stopped being taken as messages.
enum Begun {
    /// This many bytes were; the rest is incomplete.
    Incomplete { consumed: usize },
    /// This many bytes were; calls must finish before more may begin.
    Blocked { consumed: usize },
}

impl Hand {
    pub(super) fn new(shared: Arc<Shared>, row: Row, thread: usize) -> Self {
        Self { shared, row, thread, answer: Vec::new() }
    }

    /// Takes in a connection that was just accepted.
    pub(super) fn accepted(&mut self, socket: Socket, peer: PeerAddress, framing: LengthFraming) {
        let peer = match peer {
            PeerAddress::Tcp(address) => Peer::Tcp(address),
            PeerAddress::Unix { uid, pid } => Peer::Unix { uid, pid },
        };
        let make = |key| Connection::new(key, socket, peer, framing, Instant::now());
        let connection = self.shared.table.lock().insert(make);
        self.row.connection_opened();
        let flags = connection.lock().armed.flags();
        let event = EpollEvent::new(flags, token_of(connection.key));
        let added = self.shared.epoll.add(&connection.socket, event);
        let mut state = connection.lock();
        if let Err(error) = added {
            tracing::warn!(peer = %connection.peer, %error, "a connection can't be watched and is closed");
            self.close(&mut state);
        } else {
            self.settle(&mut state);
        }
    }

    /// The socket has something to read, or its peer is gone.
    pub(super) fn readable(&mut self, connection: &Arc<Connection>, scratch: &mut [u8]) {
        let mut state = connection.lock();
        match state.phase {
            Phase::Closed | Phase::Finishing => {}
            Phase::Lingering { .. } => self.discard(&mut state, scratch),
            Phase::Open => self.read(&mut state, scratch),
        }
    }

    /// The socket takes output again.
    pub(super) fn writable(&mut self, connection: &Arc<Connection>) {
        let mut state = connection.lock();
        if state.phase == Phase::Closed {
            return;
        }
        if state.flush().is_err() {
            self.close(&mut state);
        } else {
            self.go_on(&mut state);
        }
    }

    /// Both directions are gone: nobody will read an answer.
    pub(super) fn hung_up(&mut self, connection: &Arc<Connection>) {
        connection.caller_is_gone();
        let mut state = connection.lock();
        // With calls running it is closed when they end; until then its place in the table keeps them known.
        if state.phase != Phase::Closed && state.calls.is_empty() && state.interest() == Default::default() {
            self.close(&mut state);
        }
    }

    fn read(&mut self, state: &mut Locked<'_>, scratch: &mut [u8]) {
        if state.input_ended {
            return;
        }
        if !state.may_begin(&self.shared.bounds) {
            state.parked = true;
            return self.settle(state);
        }
        let (held, unsent) = (state.held(), state.output.len());
        let most = match self.shared.buffers.ration(state.connection.key, held, unsent) {
            Ration::All => scratch.len(),
            Ration::Little => LITTLE,
            Ration::Nothing => {
                state.starved = true;
                return self.settle(state);
            }
        };
        match state.connection.socket.receive(scratch.get_mut(..most).unwrap_or_default()) {
            Ok(0) => {
                state.input_ended = true;
                self.go_on(state);
            }
            Ok(count) => {
                state.progressed(Instant::now());
                self.arrived(state, scratch.get(..count).unwrap_or_default());
                self.go_on(state);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(state),
        }
    }

    fn discard(&mut self, state: &mut Locked<'_>, scratch: &mut [u8]) {
        match state.connection.socket.receive(scratch) {
            Ok(0) => self.close(state),
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => self.close(state),
        }
    }

    /// Begins what it can of newly arrived bytes and keeps the rest.
    fn arrived(&mut self, state: &mut Locked<'_>, bytes: &[u8]) {
        if !state.input.is_empty() {
            state.input.append(bytes);
            return self.begin_waiting(state);
        }
        let begun = self.begin_messages(state, bytes);
        let rest = bytes.get(begun.consumed()..).unwrap_or_default();
        if state.phase == Phase::Open {
            state.input.append(rest);
            begun.note(state);
        }
    }

    /// Begins what it can of the input that waits.
    fn begin_waiting(&mut self, state: &mut Locked<'_>) {
        let mut input = std::mem::take(&mut state.input);
        let begun = self.begin_messages(state, input.waiting());
        if state.phase == Phase::Open {
            input.consume(begun.consumed());
            state.input = input;
            begun.note(state);
        }
    }

    /// Moves a connection on after something about it changed.
    fn go_on(&mut self, state: &mut Locked<'_>) {
        while state.phase == Phase::Open && !state.input.is_empty() {
            // What the socket takes now no longer keeps calls from beginning.
            if state.flush().is_err() {
                return self.close(state);
            }
            let before = state.input.waiting().len();
            self.begin_waiting(state);
            if state.input.waiting().len() == before || state.output.is_empty() {
                break;
            }
        }
        self.settle(state);
    }

    fn begin_messages(&mut self, state: &mut Locked<'_>, bytes: &[u8]) -> Begun {
        let framing = state.connection.framing;
        let mut consumed = 0;
        loop {
            let rest = bytes.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                return Begun::Incomplete { consumed };
            }
            // A connection whose own answers fill the buffers is given no further ones to wait for.
            let adds_to_full = state.output.len() >= LITTLE && self.shared.buffers.are_full();
            if adds_to_full || !state.may_begin(&self.shared.bounds) {
                return Begun::Blocked { consumed };
            }
            if !state.recognised {
                match detect::recognise(rest, framing.order) {
                    Recognised::NeedMore { .. } => return Begun::Incomplete { consumed },
                    Recognised::Length => state.recognised = true,
                    Recognised::Unknown { looks_like } => {
                        let peer = &state.connection.peer;
                        tracing::warn!(%peer, "expected a length-prefixed message, found {looks_like}; closed");
                        state.linger(Instant::now());
                        return Begun::Blocked { consumed };
                    }
                }
            }
            match framing.decode(rest) {
                Step::NeedMore { .. } => return Begun::Incomplete { consumed },
                Step::Message { body, consumed: length } => {
                    consumed += length;
                    self.begin_message(state, rest.get(body).unwrap_or_default());
                }
                Step::Wrong(error) => {
                    self.answer_wrong(state, error);
                    match error.consumed() {
                        Some(length) => consumed += length,
                        None => state.phase = Phase::Finishing,
                    }
                }
            }
        }
    }

    fn answer_wrong(&mut self, state: &mut Locked<'_>, wrong: WireError) {
        let error = match wrong {
            WireError::Empty { .. } => Error::invalid_request(&wrong),
            WireError::TooLarge { length, limit } => Error::too_large(length, limit),
        };
        self.answer_error(state, &error, None);
    }

    fn begin_message(&mut self, state: &mut Locked<'_>, message: &[u8]) {
        let request = match native::parse(message) {
            Ok(request) => request,
            Err(Rejected { error, id }) => return self.answer_error(state, &error, id),
        };
        let method = match self.shared.service.registry().resolve(&request.method) {
            Ok((method, _)) => method,
            Err(error) => return self.answer_error(state, &error, request.id()),
        };
        let now = Instant::now();
        let allowed = self.shared.allowed(method, request.timeout_ms);
        if let Err(refused) = self.shared.gate.admit(allowed) {
            return self.refuse(state, refused, request.id());
        }
        let call = InFlight {
            number: state.next_call_number(),
            method,
            allowed,
            deadline: now + allowed,
            queued_since: Some(now),
            ordered: request.id.is_none(),
            id: request.id().map(|id| id.get().as_bytes().into()),
            bytes: message.len(),
        };
        let job = Job {
            connection: Arc::clone(state.connection),
            number: call.number,
            method,
            deadline: call.deadline,
            allowed,
            params: request.params,
            id: request.id,
            message: message.into(),
        };
        match self.shared.queue.try_send(job) {
            Ok(()) => state.calls.push(call),
            // The gate admits no more than fit.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.gate.ended();
                let retry_after = self.shared.gate.retry_after();
                self.refuse(state, Refused { retry_after }, request.id());
            }
        }
    }

    fn refuse(&mut self, state: &mut Locked<'_>, refused: Refused, id: Option<RawJson<'_>>) {
        self.row.refused();
        self.answer_error(state, &Error::overloaded(refused.retry_after), id);
    }

    /// Writes an error answer for a message or call that no handler answers.
    fn answer_error(&mut self, state: &mut Locked<'_>, error: &Error, id: Option<RawJson<'_>>) {
        self.answer.clear();
        write_error(&mut self.answer, state.connection.framing, error, id);
        state.output.append(&self.answer);
        self.keep_answer_small();
    }

    /// Runs a call that waited in the queue, on a pool thread.
    pub(super) fn run(&mut self, job: &Job) {
        let shared = Arc::clone(&self.shared);
        if !self.start(job) {
            shared.call_ended();
            return;
        }
        let begun = Instant::now();
        self.row.begin(job.method.0, clock::monotonic_ns());
        let outcome = self.invoke(job);
        let took = begun.elapsed();
        self.row.finish(job.method.0, outcome, clock::whole_ns(took));
        shared.gate.ran(took);
        // Before its answer is sent: whoever reads that finds the thread free.
        shared.call_ended();
        if !shared.slow.is_zero() && took >= shared.slow {
            let peer = &job.connection.peer;
            tracing::warn!(slot = shared.info.slot(), method = shared.method_name(job.method), ?took, %peer, "slow call");
        }
        let mut state = job.connection.lock();
        if state.phase == Phase::Closed || state.take_call(job.number).is_none() {
            // Its caller has been told that the time was up, or is gone.
            return;
        }
        state.output.append(&self.answer);
        self.keep_answer_small();
        self.go_on(&mut state);
    }

    /// True when the call is still wanted and now belongs to this thread.
    fn start(&mut self, job: &Job) -> bool {
        let mut state = job.connection.lock();
        let Some(call) = state.calls.iter_mut().find(|call| call.number == job.number) else {
            return false;
        };
        if Instant::now() < job.deadline {
            call.queued_since = None;
            return true;
        }
        state.take_call(job.number);
        self.row.deadline_exceeded();
        self.answer_error(&mut state, &Error::deadline(job.allowed), job.id());
        self.go_on(&mut state);
        false
    }

    /// Runs the handler and leaves its framed answer in `self.answer`.
    fn invoke(&mut self, job: &Job) -> Outcome {
        let shared = &self.shared;
        let framing = job.connection.framing;
        self.answer.clear();
        let Some(method) = shared.service.registry().get(job.method) else {
            // The number came from this very registry.
            write_error(&mut self.answer, framing, &Error::method_not_found("?"), job.id());
            return Outcome::Error;
        };
        let call = Call::new(CallParts {
            method: method.name(),
            id: job.id(),
            peer: &job.connection.peer,
            worker: &shared.info,
            states: &shared.states,
            gone: &job.connection.gone,
            deadline: job.deadline,
            thread: self.thread,
        });
        let mark = LengthFraming::begin_message(&mut self.answer);
        let answer = &mut self.answer;
        // A handler that panics may leave its own state half-changed; that is its state's to survive, as with any
        // lock that std poisons. What it was writing is thrown away here.
        let run = catch_unwind(AssertUnwindSafe(|| native::answer(answer, method, &call, job.params())));
        let (outcome, instead) = match run {
            Ok(Ok(())) => match framing.end_message(&mut self.answer, mark) {
                Ok(()) => return Outcome::Ok,
                Err(too_long) => (Outcome::Error, Error::answer_too_long(&too_long)),
            },
            Ok(Err(error)) => (Outcome::Error, error),
            Err(_) => (Outcome::Panicked, Error::panicked(method.name())),
        };
        self.answer.clear();
        write_error(&mut self.answer, framing, &instead, job.id());
        outcome
    }

    /// A connection's moment has come: deadlines, slow messages, idleness, the end of lingering.
    pub(super) fn due(&mut self, key: Key, at: Instant) {
        let Some(connection) = self.shared.find(key) else {
            return;
        };
        let mut state = connection.lock();
        if state.timer != Some(at) {
            return;
        }
        state.timer = None;
        let now = Instant::now();
        if let Phase::Lingering { until } = state.phase {
            return if until <= now { self.close(&mut state) } else { self.settle(&mut state) };
        }
        self.end_due_calls(&mut state, now);
        let bounds = self.shared.bounds;
        if state.message_due(&bounds).is_some_and(|due| due <= now) {
            let why =
                format!("the message did not arrive whole within timeouts.message ({:?})", bounds.message);
            self.answer_error(&mut state, &Error::invalid_request(&why), None);
            state.phase = Phase::Finishing;
        } else if state.idle_due(&bounds).is_some_and(|due| due <= now) {
            tracing::debug!(peer = %connection.peer, "closed after timeouts.idle");
            return self.end(&mut state);
        }
        self.go_on(&mut state);
    }

    fn end_due_calls(&mut self, state: &mut Locked<'_>, now: Instant) {
        let queue_wait = self.shared.bounds.queue_wait;
        let mut index = 0;
        while let Some(call) = state.calls.get(index) {
            let error = if call.deadline <= now {
                self.row.deadline_exceeded();
                Error::deadline(call.allowed)
            } else if call.queued_since.is_some_and(|since| since + queue_wait <= now) {
                self.row.refused();
                Error::overloaded(self.shared.gate.retry_after())
            } else {
                index += 1;
                continue;
            };
            let call = state.calls.remove(index);
            let id = call.id.as_deref().and_then(|id| std::str::from_utf8(id).ok());
            self.answer_error(state, &error, id.and_then(|id| RawJson::parse(id).ok()));
        }
    }

    /// Reads from a connection again that had to wait for room in the buffers.
    pub(super) fn feed(&mut self, key: Key) {
        if let Some(connection) = self.shared.find(key) {
            let mut state = connection.lock();
            state.starved = false;
            self.settle(&mut state);
        }
    }

    /// The worker drains: takes what has arrived so far and no more.
    pub(super) fn drain(&mut self, connection: &Arc<Connection>, scratch: &mut [u8]) {
        let mut state = connection.lock();
        if state.phase == Phase::Open && !state.input_ended {
            let mut taken = 0;
            while taken < MOST_AT_DRAIN {
                match state.connection.socket.receive(scratch) {
                    Ok(count) if count > 0 => {
                        state.input.append(scratch.get(..count).unwrap_or_default());
                        taken += count;
                    }
                    Ok(_) | Err(_) => break,
                }
            }
            state.input_ended = true;
        }
        if state.phase != Phase::Closed {
            self.go_on(&mut state);
        }
    }

    /// Brings everything that follows from a connection's state in line with it: what can be sent is sent, what
    /// is over is ended, epoll and the deadlines know what to look for. Every change ends here.
    fn settle(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Closed {
            return;
        }
        if !matches!(state.phase, Phase::Lingering { .. }) {
            if state.flush().is_err() {
                return self.close(state);
            }
            if state.may_begin(&self.shared.bounds) {
                state.parked = false;
            }
            if state.held() < LITTLE {
                state.starved = false;
            }
            let over = state.input_ended && (state.input.is_empty() || state.message_since.is_some());
            if state.is_quiet() && (over || state.phase == Phase::Finishing) {
                return self.end(state);
            }
        }
        self.watch(state);
        self.account(state);
    }

    fn watch(&mut self, state: &mut Locked<'_>) {
        let shared = &self.shared;
        let interest = state.interest();
        if interest != state.armed {
            state.armed = interest;
            let mut event = EpollEvent::new(interest.flags(), token_of(state.connection.key));
            if let Err(error) = shared.epoll.modify(&state.connection.socket, &mut event) {
                tracing::warn!(peer = %state.connection.peer, %error, "a connection can't be watched");
            }
        }
        if let Some(due) = state.due(&shared.bounds) {
            if state.timer.is_none_or(|timer| due < timer) {
                shared.forget(state.timer.replace(due), Due::Connection(state.connection.key));
                shared.remind(due, Due::Connection(state.connection.key));
            }
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

    /// Ends a connection from our side: at once where nothing can be lost by it, otherwise lingering.
    fn end(&mut self, state: &mut Locked<'_>) {
        if state.is_quiet() && state.connection.socket.is_settled() {
            return self.close(state);
        }
        state.linger(Instant::now());
        self.watch(state);
        self.account(state);
    }

    /// Takes a connection out of everything. Its socket is closed with the last thread that holds it.
    fn close(&mut self, state: &mut Locked<'_>) {
        let connection = state.connection;
        if !self.shared.table.lock().remove(connection.key) {
            return;
        }
        // Explicitly, because a duplicate of the descriptor elsewhere would keep the entry alive.
        let _ = self.shared.epoll.delete(&connection.socket);
        self.shared.forget(state.timer.take(), Due::Connection(connection.key));
        connection.caller_is_gone();
        if !state.calls.is_empty() {
            connection.socket.shut_down();
        }
        state.phase = Phase::Closed;
        state.calls = Vec::new();
        state.input = Default::default();
        state.output = Default::default();
        self.account(state);
        self.row.connection_closed();
        let shared = &self.shared;
        if shared.wants_room.load(Ordering::SeqCst) || shared.draining.load(Ordering::SeqCst) {
            shared.wake_poller();
        }
    }

    /// One large answer must not keep its memory for ever on each thread.
    fn keep_answer_small(&mut self) {
        const KEPT: usize = 64 * 1024;
        if self.answer.capacity() > KEPT {
            self.answer = Vec::new();
        }
    }
}

impl Begun {
    fn consumed(&self) -> usize {
        match self {
            Self::Incomplete { consumed } | Self::Blocked { consumed } => *consumed,
        }
    }

    /// Keeps the time since which an incomplete message has been arriving.
    fn note(&self, state: &mut Locked<'_>) {
        state.message_since = match self {
            Self::Incomplete { .. } if state.input.is_empty() => None,
            Self::Incomplete { consumed: 0 } => state.message_since.or_else(|| Some(Instant::now())),
            Self::Incomplete { .. } => Some(Instant::now()),
            Self::Blocked { .. } => None,
        };
    }
}

fn write_error(out: &mut Vec<u8>, framing: LengthFraming, error: &Error, id: Option<RawJson<'_>>) {
    let mark = LengthFraming::begin_message(out);
    native::answer_error(out, error, id);
    if framing.end_message(out, mark).is_err() {
        // Only an id of nearly 16 MiB, or data of that size, makes an error too long to send.
        let mark = LengthFraming::begin_message(out);
        native::answer_error(out, &Error::answer_too_long(&"an error with its id and data"), None);
        let _ = framing.end_message(out, mark);
    }
}

impl Shared {
    /// What a call of `method` may take, with what its caller allows.
    fn allowed(&self, method: crate::rpc::MethodIndex, timeout_ms: Option<u64>) -> Duration {
        let configured = self.timeouts.get(method.0).copied().unwrap_or(self.request_timeout);
        timeout_ms.map_or(configured, |ms| configured.min(Duration::from_millis(ms)))
    }
}
