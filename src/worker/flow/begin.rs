//! From bytes to calls: messages are taken off a connection's input and put in the queue, or answered where they
//! stand.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;

use super::Hand;
use crate::rpc::native::{self, Rejected, Request};
use crate::rpc::{Error, MethodIndex, RawJson, Span};
use crate::sys::clock;
use crate::wire::Step;
use crate::wire::detect::{self, Recognised};
use crate::wire::length::LengthFraming;
use crate::worker::Shared;
use crate::worker::buffers::LITTLE;
use crate::worker::chunk::Chunk;
use crate::worker::connection::{CallId, Connection, InFlight, Input, Locked, Pause, Phase, SPARE};
use crate::worker::dispatch::Refused;
use crate::worker::duty::Task;
use crate::worker::pace::Speed;
use crate::worker::quarantine::Pass;

/// A message longer than this is parsed by a pool thread: it would keep the poller for longer than a quick call may.
const LARGE: usize = 16 * 1024;

/// How long one connection's calls are run inline before others get their turn.
pub(super) const TURN: Duration = Duration::from_micros(200);

/// A call on its way to a pool thread.
#[derive(Debug)]
pub(in crate::worker) struct Job {
    pub(super) connection: Arc<Connection>,
    /// Which of the connection's calls it is.
    pub(super) number: u64,
    pub(super) message: Chunk,
    /// Its time counts from here.
    pub(super) arrived: Instant,
    /// None where the message is left to the pool thread to parse.
    pub(super) call: Option<Parsed>,
}

/// What a message asks for. Params and id are places in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parsed {
    pub(super) method: MethodIndex,
    pub(super) deadline: Instant,
    pub(super) allowed: Duration,
    pub(super) params: Option<Span>,
    pub(super) id: Option<Span>,
}

/// Why input stopped being taken as messages. `consumed` bytes of it were.
enum Begun {
    /// The rest is incomplete.
    Incomplete { consumed: usize },
    /// Calls must finish before more may begin.
    Blocked { consumed: usize },
    /// The poller goes on with it when it comes round.
    Turn { consumed: usize },
    /// This thread was relieved as poller, and the rest is with the connection.
    Relieved,
}

/// What comes after a message.
pub(super) enum Next {
    Message,
    /// This very message is for the poller.
    LeaveToPoller,
    /// This thread is not the poller any more; the connection has been moved on.
    Relieved,
}

impl Hand {
    /// Begins what it can of newly arrived bytes and keeps the rest.
    pub(super) fn arrived(&mut self, state: &mut Locked<'_>, chunk: Chunk) {
        if !state.input.is_empty() {
            state.input.append(&chunk);
            return self.begin_waiting(state);
        }
        self.begin(state, chunk);
    }

    /// Moves a connection on after something about it changed.
    pub(super) fn go_on(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Open && !state.input.is_empty() {
            self.begin_waiting(state);
        }
        self.settle(state);
    }

    /// Begins what it can of the input that waits.
    pub(super) fn begin_waiting(&mut self, state: &mut Locked<'_>) {
        if state.paused != Some(Pause::Turn) {
            let chunk = state.input.take();
            self.begin(state, chunk);
        }
    }

    fn begin(&mut self, state: &mut Locked<'_>, chunk: Chunk) {
        let begun = self.begin_messages(state, &chunk);
        if matches!(begun, Begun::Relieved) {
            return;
        }
        state.in_hand = None;
        if state.phase == Phase::Open {
            state.input = Input::from(chunk.skip(begun.consumed()));
            begun.note(state, self.now);
            if matches!(begun, Begun::Turn { .. }) {
                self.leave_to_poller(state);
            }
        }
    }

    /// Nothing more is read or begun until the poller comes round.
    pub(super) fn leave_to_poller(&mut self, state: &mut Locked<'_>) {
        if state.paused != Some(Pause::Turn) {
            state.paused = Some(Pause::Turn);
            self.shared.turn_for(state.connection.key);
        }
    }

    fn begin_messages(&mut self, state: &mut Locked<'_>, chunk: &Chunk) -> Begun {
        let framing = state.connection.framing;
        let turn_ends_ns = self.now_ns + clock::whole_ns(TURN);
        let mut consumed = 0;
        loop {
            let rest = chunk.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                return Begun::Incomplete { consumed };
            }
            // A connection whose own answers fill the buffers is given no further ones to wait for.
            let adds_to_full = state.output.len() >= LITTLE && self.shared.buffers.are_full();
            if adds_to_full || !state.may_begin(&self.shared.bounds) {
                return Begun::Blocked { consumed };
            }
            if self.now_ns > turn_ends_ns {
                return Begun::Turn { consumed };
            }
            if !state.recognised {
                match detect::recognise(rest, framing.order) {
                    Recognised::NeedMore { .. } => return Begun::Incomplete { consumed },
                    Recognised::Length => state.recognised = true,
                    Recognised::Unknown { looks_like } => {
                        let peer = &state.connection.peer;
                        tracing::warn!(%peer, "expected a length-prefixed message, found {looks_like}; closed");
                        state.linger(self.now);
                        return Begun::Blocked { consumed };
                    }
                }
            }
            match framing.decode(rest) {
                Step::NeedMore { .. } => return Begun::Incomplete { consumed },
                Step::Message { body, consumed: length } => {
                    let message = consumed + body.start..consumed + body.end;
                    match self.begin_message(state, chunk, message) {
                        Next::Message => consumed += length,
                        Next::LeaveToPoller => return Begun::Turn { consumed },
                        Next::Relieved => return Begun::Relieved,
                    }
                }
                Step::Wrong(error) => {
                    let skipped = error.consumed();
                    self.answer_error(state, &error.into(), None);
                    match skipped {
                        Some(length) => consumed += length,
                        None => state.phase = Phase::Finishing,
                    }
                }
            }
        }
    }

    fn begin_message(&mut self, state: &mut Locked<'_>, chunk: &Chunk, place: Range<usize>) -> Next {
        let message = chunk.get(place.clone()).unwrap_or_default();
        if message.len() > LARGE {
            self.enqueue(state, message, None);
            return Next::Message;
        }
        let request = match native::parse(message) {
            Ok(request) => request,
            Err(Rejected { error, id }) => {
                self.answer_error(state, &error, id);
                return Next::Message;
            }
        };
        let call = match self.shared.understand(&request, self.now) {
            Ok(call) => call,
            Err(error) => {
                self.answer_error(state, &error, request.id());
                return Next::Message;
            }
        };
        let is_for_poller = match self.shared.paces.speed(call.method) {
            Speed::Slow => false,
            Speed::Quick => self.shared.role.is_watched(),
            Speed::NeverBlocks => true,
        };
        if !is_for_poller {
            match self.shared.quarantine.admits(call.method) {
                Ok(()) => self.enqueue(state, message, Some(call)),
                Err(shut) => {
                    let error = self.shared.quarantined(call.method, shut);
                    self.answer_error(state, &error, request.id());
                }
            }
            return Next::Message;
        }
        let Some(term) = self.term.take() else {
            return Next::LeaveToPoller;
        };
        if let Err(error) = self.enter(call.method) {
            self.term = Some(term);
            self.answer_error(state, &error, request.id());
            return Next::Message;
        }
        self.run_inline(state, chunk, place, &call, term)
    }

    fn enqueue(&mut self, state: &mut Locked<'_>, message: &[u8], call: Option<Parsed>) {
        // Until its message is parsed a call may take what any may.
        let allowed = call.map_or(self.shared.request_timeout, |call| call.allowed);
        let id = call.map_or(CallId::NotParsed, |call| CallId::Known(call.id));
        if let Err(refused) = self.shared.gate.admit(allowed) {
            return self.refuse(state, refused, message, id);
        }
        let copy = Chunk::copy_of(message);
        let in_flight = InFlight {
            number: state.next_call_number(),
            allowed,
            deadline: self.now + allowed,
            queued_since: Some(self.now),
            ordered: matches!(id, CallId::NotParsed | CallId::Known(None)),
            message: copy.clone(),
            id,
        };
        let connection = Arc::clone(state.connection);
        let job = Job { connection, number: in_flight.number, message: copy, arrived: self.now, call };
        match self.shared.queue.try_send(Task::Run(job)) {
            Ok(()) => state.calls.push(in_flight),
            // The gate admits no more than fit.
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.call_ended();
                let retry_after = self.shared.gate.retry_after();
                self.refuse(state, Refused { retry_after }, message, id);
            }
        }
    }

    fn refuse(&mut self, state: &mut Locked<'_>, refused: Refused, message: &[u8], id: CallId) {
        self.row.refused();
        let id = id.in_message(message);
        self.answer_error(state, &Error::overloaded(refused.retry_after), id);
    }

    /// Whether a call of this method may run now, on this thread; to be asked right before it does.
    pub(super) fn enter(&mut self, method: MethodIndex) -> Result<(), Error> {
        match self.shared.quarantine.enter(method) {
            Ok(Pass::Free) => {}
            Ok(Pass::Trial) => self.trial = Some(method),
            Err(shut) => return Err(self.shared.quarantined(method, shut)),
        }
        Ok(())
    }

    /// Writes an error answer for a message or call that no handler answers.
    pub(super) fn answer_error(&mut self, state: &mut Locked<'_>, error: &Error, id: Option<RawJson<'_>>) {
        self.answer.clear();
        write_error(&mut self.answer, state.connection.framing, error, id);
        self.put_out(state);
    }

    /// Adds `self.answer` to what is to be sent.
    pub(super) fn put_out(&mut self, state: &mut Locked<'_>) {
        state.output.append(&self.answer, &mut self.spare);
        if self.answer.capacity() > SPARE {
            self.answer = Vec::new();
        }
    }
}

impl Begun {
    fn consumed(&self) -> usize {
        match self {
            Self::Incomplete { consumed } | Self::Blocked { consumed } | Self::Turn { consumed } => *consumed,
            Self::Relieved => 0,
        }
    }

    /// Keeps the time since which an incomplete message has been arriving.
    fn note(&self, state: &mut Locked<'_>, now: Instant) {
        state.message_since = match self {
            Self::Incomplete { .. } if state.input.is_empty() => None,
            Self::Incomplete { consumed: 0 } => state.message_since.or(Some(now)),
            Self::Incomplete { .. } => Some(now),
            Self::Blocked { .. } | Self::Turn { .. } | Self::Relieved => None,
        };
    }
}

/// Appends a framed error answer.
pub(super) fn write_error(out: &mut Vec<u8>, framing: LengthFraming, error: &Error, id: Option<RawJson<'_>>) {
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
    /// What a request asks for that arrived at `since`, or the answer that there is no such method.
    pub(super) fn understand(&self, request: &Request<'_>, since: Instant) -> Result<Parsed, Error> {
        let (method, _) = self.service.registry().resolve(&request.method)?;
        let configured = self.timeouts.get(method.0).copied().unwrap_or(self.request_timeout);
        let allowed = request.timeout_ms.map_or(configured, |ms| configured.min(Duration::from_millis(ms)));
        Ok(Parsed { method, deadline: since + allowed, allowed, params: request.params, id: request.id })
    }
}
