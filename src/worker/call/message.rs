//! What a message asks for, and what becomes of it: a call that the poller runs at once, one for a thread of the pool, or an
//! answer.

use std::ops::Range;
use std::time::{Duration, Instant};

use crate::rpc::web;
use crate::rpc::{Error, MethodIndex, Request, Span};
use crate::wire::http::{self, Opened};
use crate::worker::call::admission::RefusedCall;
use crate::worker::call::caller::{Asked, Caller, Known, Protocol, ReplyFormat, Whom};
use crate::worker::connection::chunk::Chunk;
use crate::worker::connection::{Answered, Connection, Locked};
use crate::worker::shared::Shared;
use crate::worker::threads::pace::Speed;
use crate::worker::threads::worker_thread::WorkerThread;

/// A message longer than this is parsed by a pool thread: it would keep the poller for longer than a quick call may.
const LARGE: usize = 16 * 1024;

/// What a message asks for. Params and id are places in it.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Parsed {
    pub(in crate::worker) method: MethodIndex,
    pub(in crate::worker) deadline: Instant,
    pub(in crate::worker) allowed: Duration,
    pub(in crate::worker) params: Option<Span>,
    pub(in crate::worker) caller: Known,
}

impl Parsed {
    /// What its caller is told about where it is refused.
    pub(in crate::worker) fn about(&self, connection: &Connection) -> RefusedCall {
        RefusedCall { who: connection.who, method: Some(self.method), allowed: self.allowed }
    }
}

/// What a message is.
enum Read {
    Call(Parsed),
    /// A thread of the pool parses what is large and takes batches apart. This long it may take.
    Unread(Duration),
    /// No call. It has been answered.
    Answered,
}

/// What comes after a message.
pub(in crate::worker) enum Next {
    Message,
    /// This very message is for the poller.
    LeaveToPoller,
    /// This very message waits until the supervisor has been sent the connection.
    Unkept,
    /// This thread is not the poller any more; the connection has been moved on.
    Relieved,
}

impl WorkerThread {
    /// Begins the message at `place`, behind which the next one may come at `next`. `opened` is what was read of it when it
    /// was found.
    pub(in crate::worker) fn begin_message<'a>(
        &mut self,
        state: &mut Locked<'_>,
        protocol: Protocol,
        chunk: &'a Chunk,
        (place, next): (Range<usize>, usize),
        opened: Option<&Opened<'a>>,
    ) -> Next {
        let message = chunk.get(place.clone()).unwrap_or_default();
        let call = match self.read_call(state, protocol, message, opened) {
            Read::Call(call) => call,
            Read::Unread(allowed) => return self.begin_unread(state, protocol, message, allowed),
            Read::Answered => return Next::Message,
        };
        let speed = self.shared.paces.speed(call.method);
        if speed != Speed::NeverBlocks
            && let Some(instead) = self.instead_of_unkept(state, Whom::Known(call.caller), message)
        {
            return instead;
        }
        // What goes to a thread is looked at when that comes to it: there may be room again.
        let is_for_poller = match speed {
            Speed::Slow => false,
            Speed::Quick => self.shared.role.is_watched(),
            Speed::NeverBlocks => true,
        };
        // The order counts: a place among those that run is given back by the run.
        if !is_for_poller || (self.term.is_some() && !self.shared.concurrency.enter_at_once(call.method)) {
            self.enqueue(state, message, Whom::Known(call.caller), (Some(call), call.allowed));
            return Next::Message;
        }
        let Some(term) = self.term.take() else {
            return Next::LeaveToPoller;
        };
        if let Err(refusal) = self.may_run(state, &call) {
            self.shared.release(call.method, self.now_ns);
            self.term = Some(term);
            let (asked, about) = ((Whom::Known(call.caller), message), call.about(state.connection));
            self.refuse(state, refusal, asked, about, Answered::Message);
            return Next::Message;
        }
        self.run_inline(state, chunk, (place, next), &call, term)
    }

    /// Begins a message whose bytes came in pieces. They are in no chunk of the connection's input, so a thread of the pool runs it,
    /// however quick it may be.
    pub(in crate::worker) fn begin_assembled(
        &mut self,
        state: &mut Locked<'_>,
        protocol: Protocol,
        message: &[u8],
    ) -> Next {
        let opened = http::open(message).ok();
        match self.read_call(state, protocol, message, opened.as_ref()) {
            Read::Call(call) => {
                if let Some(instead) = self.instead_of_unkept(state, Whom::Known(call.caller), message) {
                    return instead;
                }
                self.enqueue(state, message, Whom::Known(call.caller), (Some(call), call.allowed));
                Next::Message
            }
            Read::Unread(allowed) => self.begin_unread(state, protocol, message, allowed),
            Read::Answered => Next::Message,
        }
    }

    fn begin_unread(
        &mut self,
        state: &mut Locked<'_>,
        protocol: Protocol,
        message: &[u8],
        allowed: Duration,
    ) -> Next {
        let whom = Whom::NotParsed(protocol);
        if let Some(instead) = self.instead_of_unkept(state, whom, message) {
            return instead;
        }
        self.enqueue(state, message, whom, (None, allowed));
        Next::Message
    }

    /// What a message is, which has been answered where it makes no call.
    fn read_call<'a>(
        &mut self,
        state: &mut Locked<'_>,
        protocol: Protocol,
        message: &'a [u8],
        opened: Option<&Opened<'a>>,
    ) -> Read {
        if message.len() > LARGE {
            let timeout_ms = web::timeout_ms(opened.and_then(|opened| opened.head.timeout_ms));
            return Read::Unread(self.shared.allowed_unread(timeout_ms));
        }
        let (caller, error) = match protocol.read_opened(message, opened) {
            Asked::Call { request, reply, text_at } => {
                match self.shared.understand(&request, reply, text_at, self.now) {
                    Ok(call) => return Read::Call(call),
                    Err(error) => (Caller { reply, id: request.id() }, error),
                }
            }
            Asked::Batch { timeout_ms, .. } => {
                return Read::Unread(self.shared.allowed_unread(timeout_ms));
            }
            Asked::Nothing { caller, error } => (caller, error),
            Asked::Page { page, reply } => {
                self.answer_page(state, &page, reply, Answered::Message);
                return Read::Answered;
            }
        };
        self.answer_error(state, &error, caller, Answered::Message);
        Read::Answered
    }
}

impl Shared {
    /// How long a message may take that is parsed later: what any call may, or less where its request's head says so.
    pub(in crate::worker) fn allowed_unread(&self, timeout_ms: Option<u64>) -> Duration {
        timeout_ms.map_or(self.request_timeout, |ms| self.request_timeout.min(Duration::from_millis(ms)))
    }

    /// What a request asks for that arrived at `since`, or the answer that there is no such method.
    #[inline]
    pub(in crate::worker) fn understand(
        &self,
        request: &Request<'_>,
        reply: ReplyFormat,
        text_at: usize,
        since: Instant,
    ) -> Result<Parsed, Error> {
        let (method, _) = self.context.service.registry().resolve(&request.method)?;
        let configured = self.timeouts.get(method.0).copied().unwrap_or(self.request_timeout);
        let allowed = request.timeout_ms.map_or(configured, |ms| configured.min(Duration::from_millis(ms)));
        let caller = Known { reply, text_at, id: request.id };
        Ok(Parsed { method, deadline: since + allowed, allowed, params: request.params, caller })
    }
}
