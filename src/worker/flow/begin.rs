//! From bytes to calls: messages are taken off a connection's input and put in the queue, or answered where they
//! stand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::TrySendError;

use super::Hand;
use crate::rpc::native::{self, Rejected};
use crate::rpc::{Error, MethodIndex, RawJson, Span};
use crate::wire::Step;
use crate::wire::detect::{self, Recognised};
use crate::wire::length::LengthFraming;
use crate::worker::Shared;
use crate::worker::buffers::LITTLE;
use crate::worker::connection::{Connection, InFlight, Locked, Phase};
use crate::worker::dispatch::Refused;

/// A call on its way to a pool thread. It owns its message, in which params and id are places.
#[derive(Debug)]
pub(in crate::worker) struct Job {
    pub(super) connection: Arc<Connection>,
    /// Which of the connection's calls it is.
    pub(super) number: u64,
    pub(super) method: MethodIndex,
    pub(super) deadline: Instant,
    pub(super) allowed: Duration,
    params: Option<Span>,
    id: Option<Span>,
    pub(super) message: Box<[u8]>,
}

impl Job {
    pub(super) fn params(&self) -> Option<RawJson<'_>> {
        self.params.map(|span| span.in_message(&self.message))
    }

    pub(super) fn id(&self) -> Option<RawJson<'_>> {
        self.id.map(|span| span.in_message(&self.message))
    }
}

/// Why input stopped being taken as messages.
enum Begun {
    /// This many bytes were; the rest is incomplete.
    Incomplete { consumed: usize },
    /// This many bytes were; calls must finish before more may begin.
    Blocked { consumed: usize },
}

impl Hand {
    /// Begins what it can of newly arrived bytes and keeps the rest.
    pub(super) fn arrived(&mut self, state: &mut Locked<'_>, bytes: &[u8]) {
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

    /// Moves a connection on after something about it changed.
    pub(super) fn go_on(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Open && !state.input.is_empty() {
            self.begin_waiting(state);
        }
        self.settle(state);
    }

    /// Begins what it can of the input that waits.
    pub(super) fn begin_waiting(&mut self, state: &mut Locked<'_>) {
        let mut input = std::mem::take(&mut state.input);
        let begun = self.begin_messages(state, input.waiting());
        if state.phase == Phase::Open {
            input.consume(begun.consumed());
            state.input = input;
            begun.note(state);
        }
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
                self.shared.call_ended();
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
    pub(super) fn answer_error(&mut self, state: &mut Locked<'_>, error: &Error, id: Option<RawJson<'_>>) {
        self.answer.clear();
        write_error(&mut self.answer, state.connection.framing, error, id);
        state.output.append(&self.answer);
        self.keep_answer_small();
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
    /// What a call of `method` may take, with what its caller allows.
    fn allowed(&self, method: MethodIndex, timeout_ms: Option<u64>) -> Duration {
        let configured = self.timeouts.get(method.0).copied().unwrap_or(self.request_timeout);
        timeout_ms.map_or(configured, |ms| configured.min(Duration::from_millis(ms)))
    }
}
