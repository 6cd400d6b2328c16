//! A batch among a connection's calls: which of its own calls have begun, and the answers that are there.
//!
//! Its message is one call of the connection, in the arena too; `call` takes it apart and runs what is in it.

use std::collections::HashSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Bounds, InFlight, Locked};
use crate::arena::{Gathered, NotGathered};
use crate::sys::blocks::{HEAD_WORDS, Pool};
use crate::sys::sync::AtomicU64;
use crate::worker::call::caller::{Known, ReplyFormat};
use crate::worker::call::ticket::Ticket;
use crate::worker::connection::chunk::Chunk;

/// Bytes of answers that batches of a connection may have gathered before no further call of them is run: as much as one
/// answer behind a length can have.
pub(in crate::worker) const MOST_GATHERED: usize = 16 << 20;

/// Where in a batch's text a call is that has not begun, with its number in the batch.
pub(in crate::worker) type Ahead = (u32, Range<usize>);

/// Which call of which batch.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Member {
    /// The batch's number on its connection.
    pub(in crate::worker) batch: u64,
    /// Counted from 0 in the batch.
    pub(in crate::worker) index: u32,
}

/// A batch that was taken apart.
#[derive(Debug)]
pub(in crate::worker) struct Batch {
    pub(in crate::worker) reply: ReplyFormat,
    /// Where in the message its text begins.
    pub(in crate::worker) text_at: usize,
    /// What each of its calls may take at most, where the caller said so for all.
    pub(in crate::worker) timeout: Option<Duration>,
    pub(in crate::worker) arrived: Instant,
    /// What begins of it now has waited for others' calls since then, at most.
    pub(in crate::worker) waits_since: Instant,
    /// Where in the text those of its calls are that have not begun, the last of them first.
    pub(in crate::worker) ahead: Vec<Ahead>,
    /// Those that have begun and are not answered.
    pub(in crate::worker) begun: Vec<BegunMember>,
    gathered: Gathered,
    /// Notifications that have been run. They have no answer, so nothing in the arena says so before the connection is let go.
    silent: Vec<u32>,
    /// An answer could not be kept: who went on with the batch would run its call again.
    has_lost: bool,
}

/// A call of a batch that waits or runs.
#[derive(Debug)]
pub(in crate::worker) struct BegunMember {
    pub(in crate::worker) index: u32,
    /// Its number on the connection.
    pub(in crate::worker) number: u64,
    pub(in crate::worker) allowed: Duration,
    pub(in crate::worker) deadline: Instant,
    /// None once a thread runs it.
    pub(in crate::worker) queued_since: Option<Instant>,
    pub(in crate::worker) caller: Known,
    pub(in crate::worker) ticket: Arc<Ticket>,
}

impl Batch {
    pub(in crate::worker) fn new(
        reply: ReplyFormat,
        text_at: usize,
        timeout: Option<Duration>,
        arrived: Instant,
        mut ahead: Vec<Ahead>,
    ) -> Self {
        ahead.reverse();
        let (begun, gathered, silent) = (Vec::new(), Gathered::default(), Vec::new());
        let (waits_since, has_lost) = (arrived, false);
        Self { reply, text_at, timeout, arrived, waits_since, ahead, begun, gathered, silent, has_lost }
    }

    /// With the answers that are there already, of a batch that is taken apart once more.
    pub(in crate::worker) fn with_answers_of(mut self, before: Option<Box<Self>>) -> Self {
        if let Some(before) = before {
            (self.gathered, self.silent, self.has_lost) = (before.gathered, before.silent, before.has_lost);
        }
        self
    }

    /// True when there is an answer for each of its calls that wants one.
    pub(in crate::worker) fn is_complete(&self) -> bool {
        self.ahead.is_empty() && self.begun.is_empty()
    }

    /// Keeps an answer. `head` is that of the block with the batch's message.
    pub(in crate::worker) fn gather(
        &mut self,
        head: &[AtomicU64; HEAD_WORDS],
        index: u32,
        answer: &[u8],
        pool: &'static Pool,
    ) -> Result<(), NotGathered> {
        if answer.is_empty() {
            self.silent.push(index);
            return Ok(());
        }
        let gathered = self.gathered.add(head, index, answer, pool);
        self.has_lost |= gathered.is_err();
        gathered
    }

    /// Has the arena say which of its calls have been run, those without an answer too. False where there is no room for that.
    fn tell_what_has_run(&mut self, head: &[AtomicU64; HEAD_WORDS], pool: &'static Pool) -> bool {
        while let Some(index) = self.silent.last() {
            if self.gathered.add(head, *index, b"", pool).is_err() {
                return false;
            }
            self.silent.pop();
        }
        true
    }

    /// The numbers of its calls that have been run.
    pub(in crate::worker) fn have_run(&self) -> HashSet<u32> {
        self.silent.iter().copied().chain(self.answers().map(|(index, _)| index)).collect()
    }

    /// Its calls that a thread is in, taken out.
    pub(in crate::worker) fn take_running(&mut self) -> Vec<BegunMember> {
        let begun = std::mem::take(&mut self.begun);
        let (running, waiting) = begun.into_iter().partition(|member| member.queued_since.is_none());
        self.begun = waiting;
        running
    }

    /// True where it can't go to another worker as it is: a thread is in a call of it, or an answer of it is lost.
    pub(super) fn is_bound(&self) -> bool {
        self.has_lost || self.runs_some()
    }

    pub(in crate::worker) fn answers(&self) -> impl Iterator<Item = (u32, &[u8])> {
        self.gathered.answers()
    }

    /// Bytes of the answers that are there.
    pub(in crate::worker) fn gathered(&self) -> usize {
        self.gathered.filled()
    }

    /// Bytes that they take up.
    pub(in crate::worker) fn held(&self) -> usize {
        self.gathered.held()
    }

    /// A call that has begun and is not answered, to be answered now. None when it was given up.
    pub(in crate::worker) fn take(&mut self, index: u32) -> Option<BegunMember> {
        let at = self.begun.iter().position(|member| member.index == index)?;
        Some(self.begun.swap_remove(at))
    }

    /// A thread is about to run this call. False when it was given up.
    pub(in crate::worker) fn runs(&mut self, index: u32) -> bool {
        let member = self.begun.iter_mut().find(|member| member.index == index);
        member.map(|member| member.queued_since = None).is_some()
    }

    /// A thread was in one of its calls for so long, and the others waited for that at most. With several at once more is taken
    /// off than has passed. Where it is alone they have waited for nothing else.
    pub(in crate::worker) fn has_worked(&mut self, took: Duration, now: Instant, is_alone: bool) {
        self.waits_since = (self.waits_since + took).min(now);
        if is_alone {
            let waiting = self.begun.iter_mut().filter(|member| member.queued_since.is_some());
            waiting.for_each(|member| member.queued_since = Some(now));
        }
    }

    /// A call whose time is up, taken out. One that has waited too long in the queue, but for another of the batch that runs,
    /// goes on waiting: `is_busy` is told how many calls are the batch's own, and says whether there is more than the
    /// threads can do without those.
    pub(in crate::worker) fn take_due(
        &mut self,
        bounds: &Bounds,
        now: Instant,
        is_busy: impl Fn(usize) -> bool,
    ) -> Option<BegunMember> {
        let waits_for_its_own = self.runs_some() && !is_busy(self.begun.len());
        loop {
            let at = self.begun.iter().position(|member| member.due(bounds) <= now)?;
            let member = self.begun.get_mut(at)?;
            if member.deadline <= now {
                if member.queued_since.is_none() {
                    self.waits_since = now;
                }
                return Some(self.begun.swap_remove(at));
            }
            if !waits_for_its_own {
                return Some(self.begun.swap_remove(at));
            }
            member.queued_since = Some(now);
        }
    }

    /// A thread is in one of its calls.
    fn runs_some(&self) -> bool {
        self.begun.iter().any(|member| member.queued_since.is_none())
    }

    /// The call whose time is up first, and when.
    pub(in crate::worker) fn due(&self, bounds: &Bounds) -> Option<Instant> {
        self.begun.iter().map(|member| member.due(bounds)).min()
    }
}

impl BegunMember {
    pub(in crate::worker) fn due(&self, bounds: &Bounds) -> Instant {
        self.queued_since.map_or(self.deadline, |since| self.deadline.min(since + bounds.queue_wait))
    }
}

impl Locked<'_> {
    /// The batch of this number, as it is among the calls.
    pub(in crate::worker) fn batch_at(&mut self, number: u64) -> Option<&mut Batch> {
        let call = self.calls.iter_mut().find(|call| call.number == number)?;
        call.batch.as_deref_mut()
    }

    /// A batch of which a call's time is up.
    pub(in crate::worker) fn due_batch(&self, bounds: &Bounds, now: Instant) -> Option<u64> {
        let is_due = |call: &&InFlight| {
            call.batch.as_ref().and_then(|batch| batch.due(bounds)).is_some_and(|due| due <= now)
        };
        self.calls.iter().find(is_due).map(|call| call.number)
    }

    /// The calls of a batch that have been run in another worker, or before its connection was let go in vain.
    pub(in crate::worker) fn have_run(&self, number: u64) -> HashSet<u32> {
        let call = self.calls.iter().find(|call| call.number == number);
        call.and_then(|call| call.batch.as_ref()).map(|batch| batch.have_run()).unwrap_or_default()
    }

    /// Has the arena say of every batch which of its calls have been run. False where there is no room for that.
    pub(in crate::worker) fn tell_what_has_run(&mut self) -> bool {
        let pool = self.pool;
        self.calls.iter_mut().all(|call| {
            let head = call.message.block().words();
            call.batch.as_mut().is_none_or(|batch| batch.tell_what_has_run(head, pool))
        })
    }

    /// The message of a call.
    pub(in crate::worker) fn message_of(&self, number: u64) -> Option<Chunk> {
        let call = self.calls.iter().find(|call| call.number == number)?;
        Some(call.message.clone())
    }

    /// Takes a batch in hand with its message, to be put back.
    pub(in crate::worker) fn take_batch(&mut self, number: u64) -> Option<(Box<Batch>, Chunk)> {
        let call = self.calls.iter_mut().find(|call| call.number == number)?;
        Some((call.batch.take()?, call.message.clone()))
    }

    pub(in crate::worker) fn put_batch(&mut self, number: u64, batch: Box<Batch>) {
        if let Some(call) = self.calls.iter_mut().find(|call| call.number == number) {
            call.batch = Some(batch);
        }
    }

    /// Keeps the answer of a call of a batch. False where there is no memory for it.
    #[must_use]
    pub(in crate::worker) fn gather(&mut self, member: Member, answer: &[u8]) -> bool {
        let pool = self.pool;
        let call = self.calls.iter_mut().find(|call| call.number == member.batch);
        let Some(InFlight { batch: Some(batch), message, .. }) = call else { return true };
        batch.gather(message.block().words(), member.index, answer, pool).is_ok()
    }
}
