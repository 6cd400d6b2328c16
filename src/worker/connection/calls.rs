//! A connection's calls that have begun and have not been answered.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Batch, Bounds};
use crate::rpc::MethodIndex;
use crate::worker::call::caller::{Known, Whom};
use crate::worker::call::ticket::Ticket;
use crate::worker::connection::chunk::Chunk;

/// A call that has begun and has not been answered.
#[derive(Debug)]
pub(in crate::worker) struct InFlight {
    pub(in crate::worker) number: u64,
    pub(in crate::worker) allowed: Duration,
    pub(in crate::worker) deadline: Instant,
    /// None once a thread runs it, or has taken the batch apart that it is.
    pub(in crate::worker) queued_since: Option<Instant>,
    /// Nothing may begin beside it: it has no id, so that answers keep their order, or nobody knows yet whether it has.
    pub(in crate::worker) ordered: bool,
    /// It stands at the start of its block, whose head links it to the others in the arena.
    pub(in crate::worker) message: Chunk,
    pub(in crate::worker) caller: Whom,
    /// Once it was taken apart, if it is one. One that waits to be taken apart once more has the answers that are there.
    pub(in crate::worker) batch: Option<Box<Batch>>,
    /// Where it is on its way to a thread.
    pub(in crate::worker) ticket: Arc<Ticket>,
    /// Where the head of the next one in that list is. Kept here and not read back.
    pub(super) next: u64,
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
    pub(in crate::worker) caller: Known,
}

impl InFlight {
    /// A call that waits for a thread since `now`. It is in no list yet.
    pub(in crate::worker) fn queued(
        number: u64,
        message: Chunk,
        caller: Whom,
        allowed: Duration,
        now: Instant,
    ) -> Self {
        Self {
            number,
            allowed,
            deadline: now + allowed,
            queued_since: Some(now),
            ordered: caller.is_ordered(),
            message,
            caller,
            batch: None,
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

    /// How many calls it is.
    pub(super) fn on_their_way(&self) -> usize {
        self.batch.as_ref().map_or(1, |batch| batch.begun.len().max(1))
    }

    /// The batch that it is, while that is taken apart.
    pub(in crate::worker) fn apart(&self) -> Option<&Batch> {
        self.batch.as_deref().filter(|_| self.queued_since.is_none())
    }

    /// True where it can't go to another worker as it is: a thread is in it.
    pub(in crate::worker) fn is_bound(&self) -> bool {
        self.apart().map_or(self.queued_since.is_none(), Batch::is_bound)
    }

    pub(super) fn due(&self, bounds: &Bounds) -> Instant {
        if let Some(batch) = self.apart() {
            return batch.due(bounds).unwrap_or(self.deadline);
        }
        self.queued_since.map_or(self.deadline, |since| self.deadline.min(since + bounds.queue_wait))
    }
}
