//! A connection's calls that have begun and have not been answered.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Bounds;
use crate::rpc::{self, Form, MethodIndex, RawJson, Span};
use crate::worker::chunk::Chunk;
use crate::worker::ticket::Ticket;

/// A call that has begun and has not been answered.
#[derive(Debug)]
pub(in crate::worker) struct InFlight {
    pub(in crate::worker) number: u64,
    pub(in crate::worker) allowed: Duration,
    pub(in crate::worker) deadline: Instant,
    /// None once a thread runs it.
    pub(in crate::worker) queued_since: Option<Instant>,
    /// Nothing may begin beside it: it has no id, so that answers keep their order, or nobody knows yet whether it has.
    pub(in crate::worker) ordered: bool,
    /// It stands at the start of its block, whose head links it to the others in the arena.
    pub(in crate::worker) message: Chunk,
    pub(in crate::worker) id: CallId,
    /// Where it is on its way to a thread.
    pub(in crate::worker) ticket: Arc<Ticket>,
    /// Where the head of the next one in that list is. Kept here and not read back.
    pub(super) next: u64,
}

/// Where a call's id is.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) enum CallId {
    Known(Option<Span>),
    /// Its message has not been parsed.
    NotParsed,
}

impl CallId {
    /// The id that the answer carries. To find it in a message that nobody has parsed takes as long as to parse that.
    pub(in crate::worker) fn in_message(self, message: &[u8]) -> Option<RawJson<'_>> {
        match self {
            Self::Known(span) => span.map(|span| span.in_message(message)),
            Self::NotParsed => rpc::address_of(message, Form::Native).1,
        }
    }
}

/// What the poller has taken from a connection while it runs one call of it with the lock released. Its input is empty
/// meanwhile. Whoever relieves the poller takes it over.
#[derive(Debug)]
pub(in crate::worker) struct InHand {
    pub(in crate::worker) chunk: Chunk,
    /// Where in the chunk begins what has not begun.
    pub(in crate::worker) rest: usize,
    /// None while the lock is held.
    pub(in crate::worker) call: Option<InlineCall>,
}

/// A call that the poller runs itself.
#[derive(Debug)]
pub(in crate::worker) struct InlineCall {
    pub(in crate::worker) number: u64,
    pub(in crate::worker) method: MethodIndex,
    pub(in crate::worker) allowed: Duration,
    pub(in crate::worker) deadline: Instant,
    /// Where in the chunk its message is.
    pub(in crate::worker) message: Range<usize>,
    pub(in crate::worker) id: Option<Span>,
}

impl InFlight {
    /// A call that waits for a thread since `now`. It is in no list yet.
    pub(in crate::worker) fn queued(
        number: u64,
        message: Chunk,
        id: CallId,
        allowed: Duration,
        now: Instant,
    ) -> Self {
        Self {
            number,
            allowed,
            deadline: now + allowed,
            queued_since: Some(now),
            ordered: matches!(id, CallId::NotParsed | CallId::Known(None)),
            message,
            id,
            ticket: Arc::default(),
            next: 0,
        }
    }

    /// The call of this ticket.
    pub(in crate::worker) fn with(mut self, ticket: &Arc<Ticket>) -> Self {
        self.ticket = Arc::clone(ticket);
        self
    }

    /// Where its head is in the arena.
    pub(super) fn place(&self) -> u64 {
        self.message.block().head()
    }

    pub(in crate::worker) fn id(&self) -> Option<RawJson<'_>> {
        self.id.in_message(&self.message)
    }

    pub(super) fn due(&self, bounds: &Bounds) -> Instant {
        self.queued_since.map_or(self.deadline, |since| self.deadline.min(since + bounds.queue_wait))
    }
}
