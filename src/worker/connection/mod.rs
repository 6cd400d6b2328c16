//! One connection: what has arrived and not begun, which calls run, what waits to be sent.
//!
//! Whichever thread holds the connection's lock moves it on; `call` decides where to. Nothing here knows of the
//! poller, the pool or other connections. `recorded` has what the arena is told, so that another worker could go on.

pub(super) mod answer_sizes;
mod batch;
mod calls;
pub(super) mod chunk;
mod input;
mod output;
mod recorded;
mod stream;
pub(super) mod table;

use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::EpollFlags;
use parking_lot::{Mutex, MutexGuard};

use crate::arena::{Core, Flags, Key, Place, Record};
use crate::rpc::Peer;
use crate::sys::blocks::Pool;
use crate::sys::clock::Moment;
use crate::sys::socket::Socket;
use crate::wire::detect;
use crate::wire::{Accepts, ByteOrder, Framing, Kind, Kinds, Progress};
use crate::worker::call::caller::{Caller, Protocol, ReplyFormat};
use crate::worker::call::concurrency::Who;
use crate::worker::connection::answer_sizes::AnswerSize;
use crate::worker::connection::chunk::Chunk;
use crate::worker::context::WorkerContext;
use crate::worker::handover::leave::Going;

pub(super) use batch::{Ahead, Batch, BegunMember, MOST_GATHERED, Member};
pub(super) use calls::{InFlight, InHand, InlineCall};
pub(super) use input::Input;
pub(super) use output::{Output, SPARE};
pub(super) use recorded::Answered;

/// How long the first bytes of a connection, too few to show its framing, wait for more before they are taken for all of a
/// message: a length prefix comes with what is behind it.
const REST: Duration = Duration::from_millis(100);

/// What one connection may have, from the configuration.
#[derive(Debug, Clone, Copy)]
pub(super) struct Bounds {
    pub(super) in_flight: usize,
    /// Calls of one batch on their way at once: more than there are threads would wait for each other.
    pub(super) in_batch: usize,
    /// Bytes of answers that may wait to be sent before no further call is begun.
    pub(super) output: usize,
    pub(super) message: Duration,
    pub(super) idle: Duration,
    /// The same of one that has never sent a byte.
    pub(super) first_byte: Duration,
    pub(super) queue_wait: Duration,
}

/// A connection. The socket stays open for as long as a thread may write to it.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) key: Key,
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    /// Who it is among the callers that take turns.
    pub(super) who: Who,
    /// What its listener takes.
    pub(super) accepts: Accepts,
    /// How long the answers to its calls have been lately.
    pub(super) answer_size: AnswerSize,
    /// The caller is gone; handlers see it without a lock.
    pub(super) gone: AtomicBool,
    /// The supervisor has a duplicate of the socket, or was sent one. Set under the lock.
    pub(super) kept: AtomicBool,
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
    /// A handler would run next, and the supervisor must first be sent this connection, or others that wait for that; or this one
    /// has no place yet.
    Unkept,
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
    pub(super) going: Going,
    /// It was offered in vain, and is never kept again.
    pub(super) stays: bool,
    /// None until the first bytes have shown it.
    pub(super) framing: Option<Framing>,
    pub(super) input: Input,
    /// What is known of the incomplete message at its start.
    pub(super) progress: Progress,
    /// What has arrived may be all of a message that is too short to show its framing, if nothing comes behind it.
    pub(super) may_be_whole: bool,
    /// Nothing did.
    pub(super) is_at_rest: bool,
    /// While the poller runs a call inline.
    pub(super) in_hand: Option<InHand>,
    /// The peer has sent FIN, or we no longer read: what is in `input` is all that will be.
    pub(super) input_ended: bool,
    /// When the first byte of the incomplete message at the end of `input` came.
    pub(super) message_since: Option<Instant>,
    /// Why it is not read from at present, if so.
    pub(super) paused: Option<Pause>,
    /// Since when the supervisor can't be sent it, or it has no place, and calls wait for that.
    pub(super) unkept_since: Option<Instant>,
    /// They have waited for long enough: what has arrived is refused.
    pub(super) refuses_unkept: bool,
    pub(super) calls: Vec<InFlight>,
    pub(super) output: Output,
    pub(super) armed: Interest,
    /// The time of this connection's entry among the worker's deadlines; other entries of it are stale.
    pub(super) timer: Option<Instant>,
    /// Bytes last accounted for in the worker's `buffers`.
    pub(super) accounted: usize,
    last_progress: Instant,
    next_number: u64,
    pool: &'static Pool,
    /// None once nobody is to go on with it.
    record: Option<Record>,
    /// What the record says, or will with the next commit.
    core: Core,
    /// Nothing of the core was put off that others need to find in the record once the lock is released.
    is_committed: bool,
}

/// What a connection is made of.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) key: Key,
    pub(super) socket: Socket,
    pub(super) peer: Peer,
    pub(super) who: Who,
    pub(super) accepts: Accepts,
    pub(super) pool: &'static Pool,
    pub(super) record: Record,
    /// What the record says. The streams go on from there: with nothing in its input, its output and its calls.
    pub(super) core: Core,
}

impl Connection {
    pub(super) fn new(parts: Parts, now: Instant) -> Self {
        let Parts { key, socket, peer, who, accepts, pool, record, core } = parts;
        let state = Mutex::new(State::new(pool, record, core, framing_of(core.flags, accepts), now));
        let (gone, kept) = (AtomicBool::new(false), AtomicBool::new(false));
        Self { key, socket, peer, who, accepts, answer_size: AnswerSize::default(), gone, kept, state }
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

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.state.commit_what_was_put_off();
    }
}

impl Locked<'_> {
    /// Its first bytes have shown what it speaks.
    pub(super) fn is_recognised(&mut self, kind: Kind) {
        let accepts = self.connection.accepts;
        self.state.recognised(kind, accepts);
    }

    /// Who is told that the message did not arrive in time. None where nothing shows how to tell it.
    pub(super) fn late(&self, context: &'static WorkerContext) -> Option<Caller<'static>> {
        // What has shown no framing is answered in the one that has no other sign of life.
        let accepts = self.connection.accepts;
        let may_be_length = accepts.kinds.contains(Kind::Length)
            && detect::may_be_length(self.input.waiting(), accepts.order);
        let by_length = may_be_length.then(|| Framing::new(Kind::Length, accepts));
        let framing = self.framing.or(by_length)?;
        let reply = ReplyFormat::of_late(Protocol::new(framing, context), self.input.waiting());
        Some(Caller { reply, id: None })
    }

    /// Lets others have the connection while `work` is done.
    pub(super) fn unlocked<T>(&mut self, work: impl FnOnce() -> T) -> T {
        self.state.commit_what_was_put_off();
        MutexGuard::unlocked(&mut self.state, work)
    }
}

impl State {
    fn new(pool: &'static Pool, record: Record, core: Core, framing: Option<Framing>, now: Instant) -> Self {
        Self {
            phase: Phase::Open,
            going: Going::Not,
            stays: false,
            framing,
            input: Input::default(),
            progress: Progress::default(),
            may_be_whole: false,
            is_at_rest: false,
            in_hand: None,
            input_ended: false,
            message_since: None,
            paused: None,
            unkept_since: None,
            refuses_unkept: false,
            calls: Vec::new(),
            output: Output::after(core.sent),
            armed: Interest { input: true, output: false },
            timer: None,
            accounted: 0,
            last_progress: now,
            next_number: 0,
            pool,
            record: Some(record),
            core,
            is_committed: true,
        }
    }

    /// It is one of those that the worker may hold. On another only what needs no handler is answered.
    pub(super) fn has_place(&self) -> bool {
        !self.core.flags.contains(Flags::WITHOUT_PLACE)
    }

    /// Whether it has a place from now on, here and wherever it goes.
    pub(super) fn set_place(&mut self, has_place: bool) {
        self.core.flags.set(Flags::WITHOUT_PLACE, !has_place);
        self.commit();
    }

    /// True when another message may be looked at.
    pub(super) fn may_begin(&self, bounds: &Bounds) -> bool {
        self.phase == Phase::Open
            && self.going.is_served()
            && !self.runs_inline()
            && self.on_their_way() < bounds.in_flight
            && self.output.len() < bounds.output
            && !self.calls.iter().any(|call| call.ordered)
    }

    /// Calls that have begun and are not answered; those of batches too.
    pub(super) fn on_their_way(&self) -> usize {
        self.calls.iter().map(InFlight::on_their_way).sum()
    }

    /// A thread is in a call of it, so that it can't go to another worker.
    pub(super) fn is_bound(&self) -> bool {
        self.runs_inline() || self.calls.iter().any(InFlight::is_bound)
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

    /// The poller runs this call, and holds what comes from `rest` on in the chunk, until it
    /// [has run](Self::has_run_inline) it or is relieved. Between the call's message and `rest` there may be what belongs to no
    /// message and has begun with this one.
    pub(super) fn take_in_hand(&mut self, chunk: &Chunk, rest: usize, call: InlineCall) {
        let message = chunk.place_of(call.message.clone());
        match &mut self.in_hand {
            Some(in_hand) => (in_hand.rest, in_hand.call) = (rest, Some(call)),
            none => *none = Some(InHand { chunk: chunk.clone(), rest, call: Some(call) }),
        }
        self.record_inline(message);
    }

    /// The poller is back in time. It may have another call of the chunk.
    pub(super) fn has_run_inline(&mut self) {
        if let Some(in_hand) = &mut self.in_hand {
            in_hand.call = None;
        }
        self.end_inline();
    }

    /// True where something has arrived behind the calls that have begun.
    pub(super) fn has_more_input(&self) -> bool {
        let in_hand = self.in_hand.as_ref().is_some_and(|in_hand| in_hand.rest < in_hand.chunk.len());
        in_hand || !self.input.is_empty()
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

    /// Bytes of input taken out of the receive queue since the connection began.
    pub(super) fn taken(&self) -> u64 {
        self.core.taken
    }

    /// Something moves on it.
    pub(super) fn progressed(&mut self, now: Moment) {
        self.last_progress = now.instant;
        self.core.moved_ns = now.ns;
    }

    /// When something moved on it last, here or elsewhere.
    pub(super) fn last_moved(&self) -> Moment {
        Moment { instant: self.last_progress, ns: self.core.moved_ns }
    }

    /// The message at the end of the input is not whole, and has been arriving since then. None where there is none.
    pub(super) fn message_arrives(&mut self, since: Option<Moment>) {
        self.message_since = since.map(|since| since.instant);
        let since_ns = since.map_or(0, |since| since.ns);
        self.is_committed &= self.core.message_ns == since_ns;
        self.core.message_ns = since_ns;
    }

    /// What epoll should report now.
    pub(super) fn interest(&self) -> Interest {
        match self.phase {
            Phase::Closed => Interest::default(),
            Phase::Lingering { .. } => Interest { input: true, output: false },
            Phase::Finishing => Interest { input: false, output: !self.output.is_empty() },
            Phase::Open => Interest {
                input: !self.input_ended && self.is_read() && self.going.is_served(),
                output: !self.output.is_empty(),
            },
        }
    }

    /// What holds it up only until the end of the poller's round is not worth two calls to epoll.
    fn is_read(&self) -> bool {
        self.paused.is_none() || (self.paused == Some(Pause::Unkept) && self.unkept_since.is_none())
    }

    /// True when the entry among the deadlines is early enough, seen without working out when it should be: so after most
    /// calls, which leave nothing behind and an idle time that ends later than before.
    pub(super) fn timer_holds(&self, bounds: &Bounds) -> bool {
        self.phase == Phase::Open
            && self.calls.is_empty()
            && self.message_since.is_none()
            && self.unkept_since.is_none()
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
        let message = self.message_due(bounds).into_iter().chain(self.rest_due());
        let idle = self.idle_due(bounds);
        deadlines.chain(message).chain(idle).chain(self.unkept_due(bounds)).min()
    }

    /// When the calls have waited too long that can't begin before the supervisor was sent the connection.
    pub(super) fn unkept_due(&self, bounds: &Bounds) -> Option<Instant> {
        let waits = self.paused == Some(Pause::Unkept) && self.phase == Phase::Open;
        self.unkept_since.filter(|_| waits)?.checked_add(bounds.queue_wait)
    }

    /// When the message that is arriving has taken too long. A message that has to wait for calls before it
    /// does not arrive slowly.
    pub(super) fn message_due(&self, bounds: &Bounds) -> Option<Instant> {
        let reading = self.phase == Phase::Open && !self.input_ended && self.may_begin(bounds);
        self.message_since.filter(|_| reading).map(|since| since + bounds.message)
    }

    /// When what has arrived is taken for all of a short message.
    pub(super) fn rest_due(&self) -> Option<Instant> {
        let rests = self.may_be_whole && self.phase == Phase::Open && self.going.is_served();
        self.message_since.filter(|_| rests).map(|since| since + REST)
    }

    /// The first bytes have shown what the connection speaks.
    fn recognised(&mut self, kind: Kind, accepts: Accepts) {
        self.framing = Some(Framing::new(kind, accepts));
        self.may_be_whole = false;
        self.core.flags.set(Flags::RECOGNISED, true);
        self.core.flags.set_framing(in_a_byte(Some(kind), accepts.kinds));
    }

    /// When a connection on which nothing runs and nothing moves is closed.
    pub(super) fn idle_due(&self, bounds: &Bounds) -> Option<Instant> {
        let idle = if self.is_silent() { bounds.idle.min(bounds.first_byte) } else { bounds.idle };
        self.calls.is_empty().then(|| self.last_progress + idle)
    }

    /// It only idles: nothing of a message is here, nothing runs, nothing waits to be sent, and it is not on its way elsewhere.
    pub(super) fn may_give_way(&self) -> bool {
        self.phase == Phase::Open
            && self.going == Going::Not
            && self.is_quiet()
            && !self.has_more_input()
            && self.paused.is_none()
            && !self.input_ended
    }

    /// Nothing has ever arrived on it.
    pub(super) fn is_silent(&self) -> bool {
        self.core.taken == 0
    }

    /// Bytes it holds.
    pub(in crate::worker) fn held(&self) -> usize {
        self.input.held() + self.output.held() + self.held_by_calls()
    }

    /// Bytes that its calls hold.
    pub(super) fn held_by_calls(&self) -> usize {
        let inline = self.inline_call().map_or(0, |call| call.message.len());
        let answers = self.calls.iter().filter_map(|call| call.batch.as_ref()).map(|batch| batch.held());
        inline + self.calls.iter().map(|call| call.message.len()).sum::<usize>() + answers.sum::<usize>()
    }

    /// Bytes of answers that wait for the rest of their batches.
    pub(super) fn gathered(&self) -> usize {
        self.calls.iter().filter_map(|call| call.batch.as_ref()).map(|batch| batch.gathered()).sum()
    }
}

/// Flags of a connection from a listener that takes this.
pub(super) fn flags_of(accepts: Accepts) -> Flags {
    let mut flags = Flags::default();
    flags.set(Flags::BIG_ENDIAN, accepts.order == ByteOrder::Big);
    flags.set_framing(in_a_byte(None, accepts.kinds));
    flags
}

/// Whether they say what the connection speaks where that has been recognised.
pub(super) fn are_sensible(flags: Flags) -> bool {
    !flags.contains(Flags::RECOGNISED) || Kind::from_number(flags.framing() >> 4).is_some()
}

/// What the listener took from which a connection with these flags came.
pub(super) fn accepts_of(flags: Flags, max_message: usize) -> Accepts {
    let order = if flags.contains(Flags::BIG_ENDIAN) { ByteOrder::Big } else { ByteOrder::Little };
    Accepts { kinds: Kinds::from_bits(flags.framing()), order, max_message }
}

fn framing_of(flags: Flags, accepts: Accepts) -> Option<Framing> {
    let is_recognised = flags.contains(Flags::RECOGNISED);
    Kind::from_number(flags.framing() >> 4).filter(|_| is_recognised).map(|kind| Framing::new(kind, accepts))
}

fn in_a_byte(kind: Option<Kind>, kinds: Kinds) -> u8 {
    kinds.bits() | kind.map_or(0, Kind::number) << 4
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

/// A connection with an arena of its own.
#[cfg(test)]
pub(super) fn of(socket: Socket, key: Key) -> Connection {
    let (_, records, pool) = crate::arena::of_connections(key.index as usize + 1);
    let core = Core::default();
    let record = records.open(key, &core).unwrap();
    let accepts = Accepts { kinds: Kinds::default(), order: ByteOrder::Little, max_message: 64 };
    let peer = Peer::Unix { uid: 0, pid: 0 };
    let who = Who::new(peer.address().key(), |address| {
        crate::worker::call::turns::Turns::<()>::new(None).open(address)
    });
    Connection::new(Parts { key, socket, peer, who, accepts, pool, record, core }, Instant::now())
}

#[cfg(test)]
mod tests;
