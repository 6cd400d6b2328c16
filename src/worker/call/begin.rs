//! From bytes to messages: these are taken off a connection's input one by one, until nothing more may begin.

use std::io;
use std::ops::ControlFlow;
use std::time::Duration;

use super::message::Next;
use crate::log::More;
use crate::sys::clock::{self, Moment};
use crate::wire::Step;
use crate::wire::detect::{self, Recognised};
use crate::worker::call::caller::{Caller, Protocol, ReplyFormat};
use crate::worker::connection::chunk::Chunk;
use crate::worker::connection::{Answered, Locked, Pause, Phase};
use crate::worker::counted::STRANGERS;
use crate::worker::guard::buffers::LITTLE;
use crate::worker::threads::worker_thread::WorkerThread;

/// How long one connection's calls are run inline before others get their turn.
pub(in crate::worker) const TURN: Duration = Duration::from_micros(200);

/// After how many messages the clock is looked at, where none of them is run: it takes time to answer them too.
const LOOK_EVERY: u32 = 32;

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

impl WorkerThread {
    /// Moves a connection on after something about it changed.
    pub(in crate::worker) fn go_on(&mut self, state: &mut Locked<'_>) {
        if state.phase == Phase::Open && !state.input.is_empty() {
            self.begin_waiting(state);
        }
        self.settle(state);
    }

    /// Begins what it can of the input that waits.
    pub(in crate::worker) fn begin_waiting(&mut self, state: &mut Locked<'_>) {
        if !matches!(state.paused, Some(Pause::Turn | Pause::Unkept))
            && let Some(chunk) = state.input.take()
        {
            self.begin(state, chunk);
        }
    }

    /// Begins what it can of a chunk that begins where the input has not begun, and keeps the rest.
    pub(in crate::worker) fn begin(&mut self, state: &mut Locked<'_>, chunk: Chunk) {
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
    pub(in crate::worker) fn leave_to_poller(&mut self, state: &mut Locked<'_>) {
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
            let protocol = Protocol::new(framing, self.shared.context);
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
                        protocol,
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
                    if let Next::Unkept = self.begin_assembled(state, protocol, &message) {
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
                    let reply = ReplyFormat::of_error(protocol, error, rest);
                    self.answer_error(state, &error.into(), Caller { reply, id: None }, Answered::Message);
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
