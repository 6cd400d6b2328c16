//! From bytes to calls: messages are taken off a connection's input and put in the queue, or answered where they
//! stand.

use std::io;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::Hand;
use crate::log::More;
use crate::rpc::web::{self, Wanted};
use crate::rpc::{Error, MethodIndex, Request, Span};
use crate::sys::clock::{self, Moment};
use crate::wire::Step;
use crate::wire::detect::{self, Recognised};
use crate::wire::http::{self, Opened};
use crate::worker::Shared;
use crate::worker::buffers::LITTLE;
use crate::worker::caller::{Asked, Caller, Known, Route, Tongue, Whom};
use crate::worker::chunk::Chunk;
use crate::worker::connection::{Answered, Connection, InFlight, Locked, Member, Pause, Phase, SPARE};
use crate::worker::counted::{PAGES, STRANGERS};
use crate::worker::dispatch::Refused;
use crate::worker::pace::Speed;
use crate::worker::quarantine::Pass;
use crate::worker::ticket::Ticket;

/// A message longer than this is parsed by a pool thread: it would keep the poller for longer than a quick call may.
const LARGE: usize = 16 * 1024;

/// How long one connection's calls are run inline before others get their turn.
pub(super) const TURN: Duration = Duration::from_micros(200);

/// After how many messages the clock is looked at, where none of them is run: it takes time to answer them too.
const LOOK_EVERY: u32 = 32;

/// A call on its way to a pool thread.
#[derive(Debug, Clone)]
pub(in crate::worker) struct Job {
    pub(super) connection: Arc<Connection>,
    /// Which of the connection's calls it is.
    pub(super) number: u64,
    pub(super) message: Chunk,
    /// Its time counts from here.
    pub(super) arrived: Instant,
    /// None where the message is left to the pool thread to parse. Where it is known in the queue, the call counts among
    /// those of its method that run.
    pub(super) call: Option<Parsed>,
    /// Of a batch, which has the whole message.
    pub(super) member: Option<Member>,
    pub(super) ticket: Arc<Ticket>,
}

/// What a message asks for. Params and id are places in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parsed {
    pub(super) method: MethodIndex,
    pub(super) deadline: Instant,
    pub(super) allowed: Duration,
    pub(super) params: Option<Span>,
    pub(super) caller: Known,
}

/// Why input stopped being taken as messages. `consumed` bytes of it were.
enum Begun {
    /// The rest is incomplete: its message needs so many bytes, as far as is known.
    Incomplete { consumed: usize, needs: usize },
    /// Calls must finish before more may begin.
    Blocked { consumed: usize },
    /// The poller goes on with it when it comes round.
    Turn { consumed: usize },
    /// It goes on when the supervisor has been sent what it must have before a handler runs.
    Unkept { consumed: usize },
    /// This thread was relieved as poller, and the rest is with the connection.
    Relieved,
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
pub(super) enum Next {
    Message,
    /// This very message is for the poller.
    LeaveToPoller,
    /// This very message waits until the supervisor has been sent the connection.
    Unkept,
    /// This thread is not the poller any more; the connection has been moved on.
    Relieved,
}

impl Hand {
    /// Moves a connection on after something about it changed.
    pub(in crate::worker) fn go_on(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Open && !state.input.is_empty() {
            self.begin_waiting(state);
        }
        self.settle(state);
    }

    /// Begins what it can of the input that waits.
    pub(super) fn begin_waiting(&mut self, state: &mut Locked<'_>) {
        if !matches!(state.paused, Some(Pause::Turn | Pause::Unkept))
            && let Some(chunk) = state.input.take()
        {
            self.begin(state, chunk);
        }
    }

    /// Begins what it can of a chunk that begins where the input has not begun, and keeps the rest.
    pub(super) fn begin(&mut self, state: &mut Locked<'_>, chunk: Chunk) {
        let begun = self.begin_messages(state, &chunk);
        if matches!(begun, Begun::Relieved) {
            return;
        }
        state.in_hand = None;
        if !matches!(begun, Begun::Unkept { .. }) {
            (state.unkept_since, state.refuses_unkept) = (None, false);
        }
        if state.phase == Phase::Open {
            let rest = chunk.skip(begun.consumed());
            // First: where the rest moves to a block of its own both are one commit.
            begun.note(state, &rest, self.moment());
            if !state.keep(rest, begun.needs(), &self.scratch) {
                return self.fail(state, &io::ErrorKind::OutOfMemory.into());
            }
            if matches!(begun, Begun::Turn { .. }) {
                self.leave_to_poller(state);
            } else if matches!(begun, Begun::Unkept { .. }) {
                self.wait_to_be_kept(state);
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
        let turn_ends_ns = self.now_ns + clock::whole_ns(TURN);
        let (mut consumed, mut steps) = (0, 0_u32);
        loop {
            steps += 1;
            if steps.is_multiple_of(LOOK_EVERY) {
                self.look_at_the_clock();
            }
            let rest = chunk.get(consumed..).unwrap_or_default();
            if rest.is_empty() {
                return Begun::Incomplete { consumed, needs: 0 };
            }
            // A connection whose own answers fill the buffers is given no further ones to wait for.
            let adds_to_full = state.output.len() >= LITTLE && self.shared.buffers.lack_room();
            if adds_to_full || !state.may_begin(&self.shared.bounds) {
                return Begun::Blocked { consumed };
            }
            if self.now_ns > turn_ends_ns {
                return Begun::Turn { consumed };
            }
            let Some(framing) = state.framing else {
                match self.recognise(state, rest) {
                    ControlFlow::Continue(()) => continue,
                    ControlFlow::Break(needs) => return Begun::Incomplete { consumed, needs },
                }
            };
            let tongue = Tongue::new(framing, self.shared.site);
            let mut opened = None;
            match framing.decode_and_open(rest, &mut state.progress, &mut opened) {
                Step::NeedMore { at_least } => {
                    return Begun::Incomplete { consumed, needs: at_least };
                }
                Step::Invite { at_least } => {
                    self.invite(state);
                    return Begun::Incomplete { consumed, needs: at_least };
                }
                Step::Skip { consumed: length } => {
                    state.begun_to(chunk, consumed, consumed + length);
                    consumed += length;
                    state.commit();
                }
                Step::Message { body, consumed: length } => {
                    let message = consumed + body.start..consumed + body.end;
                    let mark = state.begun_to(chunk, consumed, consumed + length);
                    match self.begin_message(
                        state,
                        tongue,
                        chunk,
                        (message, consumed + length),
                        opened.as_ref(),
                    ) {
                        Next::Message => consumed += length,
                        Next::LeaveToPoller => {
                            state.back_to(mark);
                            return Begun::Turn { consumed };
                        }
                        Next::Unkept => {
                            state.back_to(mark);
                            return Begun::Unkept { consumed };
                        }
                        Next::Relieved => return Begun::Relieved,
                    }
                }
                Step::Assembled { message, consumed: length } => {
                    let mark = state.begun_to(chunk, consumed, consumed + length);
                    if let Next::Unkept = self.begin_assembled(state, tongue, &message) {
                        state.back_to(mark);
                        return Begun::Unkept { consumed };
                    }
                    consumed += length;
                }
                Step::Wrong(error) => {
                    // Before the answer is published: who goes on with the connection must not answer it again.
                    if let Some(length) = error.consumed() {
                        state.begun_to(chunk, consumed, consumed + length);
                        consumed += length;
                    }
                    let route = Route::of_error(tongue, error, rest);
                    self.answer_error(state, &error.into(), Caller { route, id: None }, Answered::Message);
                }
            }
        }
    }

    /// Finds out which framing a new connection speaks. Breaks with how many bytes that takes, as far as is known, or
    /// with 0 where it speaks none.
    #[cold]
    fn recognise(&mut self, state: &mut Locked<'_>, first: &[u8]) -> ControlFlow<usize> {
        let accepts = state.connection.accepts;
        match detect::recognise(first, accepts.order, accepts.kinds) {
            Recognised::Framing(kind) => {
                state.is_recognised(kind);
                ControlFlow::Continue(())
            }
            Recognised::NeedMore { at_least, maybe_whole } => {
                if (state.is_at_rest || state.input_ended)
                    && let Some(kind) = detect::recognise_at_rest(first, accepts.kinds)
                {
                    state.is_recognised(kind);
                    return ControlFlow::Continue(());
                }
                state.may_be_whole = maybe_whole;
                ControlFlow::Break(at_least)
            }
            Recognised::Unknown { looks_like } => {
                let peer = &state.connection.peer;
                if let Some(More { count, from }) = STRANGERS.admit(peer.address().key()) {
                    tracing::error!(
                        %peer, more = count, from,
                        "expected a framing that this listener takes, found {looks_like}; closed"
                    );
                }
                state.linger(self.moment());
                ControlFlow::Break(0)
            }
        }
    }

    /// Begins the message at `place`, behind which the next one may come at `next`. `opened` is what was read of it when it
    /// was found.
    fn begin_message<'a>(
        &mut self,
        state: &mut Locked<'_>,
        tongue: Tongue,
        chunk: &'a Chunk,
        (place, next): (Range<usize>, usize),
        opened: Option<&Opened<'a>>,
    ) -> Next {
        let message = chunk.get(place.clone()).unwrap_or_default();
        let call = match self.read_call(state, tongue, message, opened) {
            Read::Call(call) => call,
            Read::Unread(allowed) => return self.begin_unread(state, tongue, message, allowed),
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
            self.enqueue_call(state, message, call);
            return Next::Message;
        }
        let Some(term) = self.term.take() else {
            return Next::LeaveToPoller;
        };
        if self.fills_buffers(state, &call) {
            self.shared.release(call.method, self.now_ns);
            self.term = Some(term);
            let asked = (Whom::Known(call.caller), message);
            let refused = self.shared.refused_memory(state.connection.who, Some(call.method));
            self.refuse(state, refused, asked, Answered::Message);
            return Next::Message;
        }
        if let Err(error) = self.enter(call.method) {
            self.shared.release(call.method, self.now_ns);
            self.term = Some(term);
            self.answer_error(state, &error, call.caller.caller(message), Answered::Message);
            return Next::Message;
        }
        self.run_inline(state, chunk, (place, next), &call, term)
    }

    /// Begins a message whose bytes came in pieces. They are in no chunk of the connection's input, so a thread of the pool runs it,
    /// however quick it may be.
    fn begin_assembled(&mut self, state: &mut Locked<'_>, tongue: Tongue, message: &[u8]) -> Next {
        let opened = http::open(message).ok();
        match self.read_call(state, tongue, message, opened.as_ref()) {
            Read::Call(call) => {
                if let Some(instead) = self.instead_of_unkept(state, Whom::Known(call.caller), message) {
                    return instead;
                }
                self.enqueue_call(state, message, call);
                Next::Message
            }
            Read::Unread(allowed) => self.begin_unread(state, tongue, message, allowed),
            Read::Answered => Next::Message,
        }
    }

    fn begin_unread(
        &mut self,
        state: &mut Locked<'_>,
        tongue: Tongue,
        message: &[u8],
        allowed: Duration,
    ) -> Next {
        let whom = Whom::NotParsed(tongue);
        if let Some(instead) = self.instead_of_unkept(state, whom, message) {
            return instead;
        }
        self.enqueue(state, message, whom, (None, allowed));
        Next::Message
    }

    /// No handler begins while this worker has connections that would end with it: whatever that handler does, its caller
    /// is to be answered, and who calls beside it. None where the supervisor has been sent them all, and the call may begin.
    fn instead_of_unkept(&mut self, state: &mut Locked<'_>, whom: Whom, message: &[u8]) -> Option<Next> {
        let is_kept = state.connection.kept.load(Ordering::Relaxed);
        if is_kept && !self.shared.has_new.load(Ordering::Relaxed) {
            return None;
        }
        if is_kept || !state.refuses_unkept {
            return Some(Next::Unkept);
        }
        let refused = self.shared.refused(state.connection.who, None);
        self.refuse(state, refused, (whom, message), Answered::Message);
        Some(Next::Message)
    }

    /// Nothing more is read or begun until the supervisor was sent what it must have first.
    fn wait_to_be_kept(&mut self, state: &mut Locked<'_>) {
        state.paused = Some(Pause::Unkept);
        self.shared.ask_to_keep(state.connection.key, self.now);
        if self.term.is_none() {
            self.shared.wake_poller();
        }
    }

    /// What a message is, which has been answered where it makes no call.
    fn read_call<'a>(
        &mut self,
        state: &mut Locked<'_>,
        tongue: Tongue,
        message: &'a [u8],
        opened: Option<&Opened<'a>>,
    ) -> Read {
        if message.len() > LARGE {
            let timeout_ms = web::timeout_ms(opened.and_then(|opened| opened.head.timeout_ms));
            return Read::Unread(self.shared.allowed_unread(timeout_ms));
        }
        let (caller, error) = match tongue.read_opened(message, opened) {
            Asked::Call { request, route, text_at } => {
                match self.shared.understand(&request, route, text_at, self.now) {
                    Ok(call) => return Read::Call(call),
                    Err(error) => (Caller { route, id: request.id() }, error),
                }
            }
            Asked::Batch { timeout_ms, .. } => {
                return Read::Unread(self.shared.allowed_unread(timeout_ms));
            }
            Asked::Nothing { caller, error } => (caller, error),
            Asked::Page { page, route } => {
                self.answer_page(state, &page, route, Answered::Message);
                return Read::Answered;
            }
        };
        self.answer_error(state, &error, caller, Answered::Message);
        Read::Answered
    }

    fn enqueue_call(&mut self, state: &mut Locked<'_>, message: &[u8], call: Parsed) {
        match self.shared.quarantine.admits(call.method) {
            Ok(()) => self.enqueue(state, message, Whom::Known(call.caller), (Some(call), call.allowed)),
            Err(shut) => {
                let error = self.shared.quarantined(call.method, shut);
                self.answer_error(state, &error, call.caller.caller(message), Answered::Message);
            }
        }
    }

    fn enqueue(
        &mut self,
        state: &mut Locked<'_>,
        message: &[u8],
        whom: Whom,
        (call, allowed): (Option<Parsed>, Duration),
    ) {
        let (who, method) = (state.connection.who, call.map(|call| call.method));
        let place = match self.shared.admit(who, method, allowed) {
            Ok(place) => place,
            Err(refused) => return self.refuse(state, refused, (whom, message), Answered::Message),
        };
        let Some(copy) = Chunk::copy_of(message, 0, self.shared.pool) else {
            self.shared.not_admitted(who, place, method);
            let refused = self.shared.refused_memory(who, method);
            return self.refuse(state, refused, (whom, message), Answered::Message);
        };
        let number = state.next_call_number();
        let ticket = Arc::new(Ticket::new(place, method));
        let in_flight = InFlight::queued(number, copy.clone(), whom, allowed, self.now).with(&ticket);
        // It may be taken from the queue at once, but not looked at before the lock is released.
        state.enqueue(in_flight, self.now_ns);
        let connection = Arc::clone(state.connection);
        let job = Job { connection, number, message: copy, arrived: self.now, call, member: None, ticket };
        // The gate admits no more than fit.
        if !self.shared.dispatch(place, job)
            && let Some(call) = state.take_call(number)
        {
            let refused = self.shared.refused(who, method);
            self.refuse(state, refused, (call.caller, &call.message), Answered::Call(&call));
        }
    }

    pub(super) fn refuse(
        &mut self,
        state: &mut Locked<'_>,
        refused: Refused,
        asked: (Whom, &[u8]),
        answered: Answered<'_>,
    ) {
        self.row.refused();
        self.answer_unrun(state, asked, answered, || Error::overloaded(refused.retry_after));
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
    pub(in crate::worker) fn answer_error(
        &mut self,
        state: &mut Locked<'_>,
        error: &Error,
        caller: Caller<'_>,
        answered: Answered<'_>,
    ) {
        self.answer.clear();
        caller.write_error(&mut self.answer, error);
        self.put_out(state, caller.route, answered);
    }

    /// Answers what needs no method.
    pub(super) fn answer_page(
        &mut self,
        state: &mut Locked<'_>,
        page: &Wanted<'_>,
        route: Route,
        answered: Answered<'_>,
    ) {
        if let Wanted::Refused(refusal) = page
            && refusal.is_page
        {
            let peer = &state.connection.peer;
            if let Some(More { count, from }) = PAGES.admit(peer.address().key()) {
                tracing::warn!(%peer, more = count, from, "a page's call is refused: {}", refusal.error.message());
            }
        }
        self.answer.clear();
        // That others take this worker's place is no reason to send no calls.
        let is_ready = !self.shared.site.is_red() && !self.shared.site.is_closing();
        route.write_page(&mut self.answer, page, is_ready);
        self.put_out(state, route, answered);
    }

    /// Tells a client to send the rest of its request, once, whichever workers the connection has until that is there.
    fn invite(&mut self, state: &mut Locked<'_>) {
        if !state.may_invite() {
            return;
        }
        self.answer.clear();
        self.answer.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
        if !state.publish(&self.answer, Answered::Message, &mut self.spare) {
            self.fail(state, &io::ErrorKind::OutOfMemory.into());
        }
    }

    /// Adds `self.answer` to what is to be sent.
    pub(super) fn put_out(&mut self, state: &mut Locked<'_>, route: Route, answered: Answered<'_>) {
        // With the answer, or a worker that goes on with the connection would begin what is behind it.
        let is_last = self.shared.site.is_closing()
            && state.input_ended
            && !matches!(answered, Answered::Message)
            && (state.phase == Phase::Finishing || !state.has_more_input());
        let ends = route.ends_connection() || (is_last && route.say_goodbye(&mut self.answer));
        if ends && state.phase == Phase::Open {
            state.phase = Phase::Finishing;
        }
        state.progressed(self.moment());
        if !state.publish(&self.answer, answered, &mut self.spare) {
            self.fail(state, &io::ErrorKind::OutOfMemory.into());
        }
        if self.answer.capacity() > SPARE {
            self.answer = Vec::new();
        }
    }
}

impl Begun {
    fn consumed(&self) -> usize {
        match self {
            Self::Incomplete { consumed, .. }
            | Self::Blocked { consumed }
            | Self::Turn { consumed }
            | Self::Unkept { consumed } => *consumed,
            Self::Relieved => 0,
        }
    }

    fn needs(&self) -> usize {
        match self {
            Self::Incomplete { needs, .. } => *needs,
            Self::Blocked { .. } | Self::Turn { .. } | Self::Unkept { .. } | Self::Relieved => 0,
        }
    }

    /// Keeps the time since which an incomplete message has been arriving.
    fn note(&self, state: &mut Locked<'_>, rest: &[u8], now: Moment) {
        let since = match self {
            Self::Incomplete { .. } if rest.is_empty() => None,
            // It has been known for a while.
            Self::Incomplete { consumed: 0, .. } if state.message_since.is_some() => return,
            Self::Incomplete { .. } => Some(now),
            Self::Blocked { .. } | Self::Turn { .. } | Self::Unkept { .. } | Self::Relieved => None,
        };
        state.message_arrives(since);
    }
}

impl Shared {
    /// How long a message may take that is parsed later: what any call may, or less where its request's head says so.
    pub(super) fn allowed_unread(&self, timeout_ms: Option<u64>) -> Duration {
        timeout_ms.map_or(self.request_timeout, |ms| self.request_timeout.min(Duration::from_millis(ms)))
    }

    /// What a request asks for that arrived at `since`, or the answer that there is no such method.
    #[inline]
    pub(super) fn understand(
        &self,
        request: &Request<'_>,
        route: Route,
        text_at: usize,
        since: Instant,
    ) -> Result<Parsed, Error> {
        let (method, _) = self.site.service.registry().resolve(&request.method)?;
        let configured = self.timeouts.get(method.0).copied().unwrap_or(self.request_timeout);
        let allowed = request.timeout_ms.map_or(configured, |ms| configured.min(Duration::from_millis(ms)));
        let caller = Known { route, text_at, id: request.id };
        Ok(Parsed { method, deadline: since + allowed, allowed, params: request.params, caller })
    }
}
