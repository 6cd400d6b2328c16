//! What the arena is told of a connection, and when: another worker could go on with it from there at any moment.
//!
//! The bytes lie in blocks; the [record](crate::arena::Record) says where, and what has been done with them. Each change
//! is prepared in memory that the record doesn't name, then one commit makes it true, then what the record doesn't name any
//! more is given back. What a reader finds when this worker dies within:
//!
//! - **receiving**: the record said before where the bytes would go, and the kernel says how many it gave out. For a Unix
//!   socket it doesn't, so a flag stands for as long as that is uncertain, and such a connection is lost.
//! - **beginning**: the message is still input, or it is a call; whoever reads the one doesn't find the other.
//! - **answering**: no answer and a call, or an answer and no call: the same commit adds the one and ends the other.
//!   Where the poller goes on with the next call right away, that commit also begins that one.
//!   A call that stays linked for a moment longer has the number that the record says was answered.
//! - **sending**: the kernel says how much it took of what was published.

use std::sync::Arc;
use std::time::Instant;

use super::calls::{InFlight, InHand};
use super::input::room_for;
use super::{Chunk, Flags, Phase, Place, State};
use crate::arena::{call_runs, call_waits, unlink_next, write_call};
use crate::sys::blocks::Block;
use crate::worker::call::caller::Whom;
use crate::worker::call::ticket::Ticket;
use crate::worker::connection::chunk::Scratch;

/// What an answer is for.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) enum Answered<'a> {
    /// A message that has not become a call.
    Message,
    /// The call of this number, which the poller ran.
    Inline(u64),
    /// A call that was among those in flight.
    Call(&'a InFlight),
}

/// How far the input had begun, to go back to where a message turns out to be for somebody else.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct Mark {
    begun: u64,
    input: Place,
}

impl State {
    /// Brings the record in line with everything; nothing where the connection has left it.
    pub(in crate::worker) fn commit(&mut self) {
        let Some(record) = &mut self.record else {
            return;
        };
        let core = &mut self.core;
        core.out_from = self.output.sent_so_far();
        core.output = self.output.place();
        core.sent = core.out_from;
        core.flags.set(Flags::FINISHING, self.phase == Phase::Finishing);
        core.flags.set(Flags::LINGERING, matches!(self.phase, Phase::Lingering { .. }));
        record.commit(core);
        self.is_committed = true;
    }

    /// Commits what was put off.
    pub(super) fn commit_what_was_put_off(&mut self) {
        if !self.is_committed {
            self.commit();
        }
    }

    /// Nobody is to go on with it any more. What it holds may be given back after that.
    pub(in crate::worker) fn leave_record(&mut self) {
        if let Some(mut record) = self.record.take() {
            record.close();
        }
    }

    /// What comes next is received there.
    pub(super) fn expect_input_at(&mut self, place: Place) {
        if self.core.input != place {
            self.core.input = place;
            self.commit();
        }
    }

    /// The messages of a chunk have begun up to `end`, where they had up to `start`; to be said right before what commits
    /// what became of them.
    pub(in crate::worker) fn begun_to(&mut self, chunk: &Chunk, start: usize, end: usize) -> Mark {
        let before = Mark { begun: self.core.begun, input: self.core.input };
        self.core.begun += (end - start) as u64;
        self.core.input = chunk.place_behind(end);
        // They are of a message that was not whole, and that has begun.
        self.core.message_ns = 0;
        self.core.flags.set(Flags::INVITED, false);
        before
    }

    /// The last of them has not begun after all.
    pub(in crate::worker) fn back_to(&mut self, mark: Mark) {
        (self.core.begun, self.core.input) = (mark.begun, mark.input);
    }

    /// The client is told to send the rest of its message; to be said right before what publishes that. False where it was told
    /// already, by this worker or another.
    pub(in crate::worker) fn may_invite(&mut self) -> bool {
        let was_invited = self.core.flags.contains(Flags::INVITED);
        self.core.flags.set(Flags::INVITED, true);
        !was_invited
    }

    /// Keeps what was not begun of a chunk; `needs` is how many bytes the message has that it begins with, as far as is
    /// known. False where there is no memory for it.
    #[must_use]
    pub(in crate::worker) fn keep(&mut self, rest: Chunk, needs: usize, scratch: &Scratch) -> bool {
        let rest = if rest.is_empty() || !scratch.is_where(&rest) {
            rest
        } else {
            let Some(own) = Chunk::copy_of(&rest, room_for(rest.len(), needs), self.pool) else {
                return false;
            };
            self.expect_input_at(own.place_behind(0));
            own
        };
        self.input.put(rest, needs);
        true
    }

    /// What another worker had taken and not begun.
    #[must_use]
    pub(in crate::worker) fn adopt_input(&mut self, bytes: &[u8]) -> bool {
        if bytes.is_empty() {
            self.commit();
            return true;
        }
        let Some(chunk) = Chunk::copy_of(bytes, room_for(bytes.len(), 0), self.pool) else {
            return false;
        };
        self.core.input = chunk.place_behind(0);
        self.commit();
        self.input.put(chunk, 0);
        true
    }

    /// The record names the call that the poller is about to run in `chunk`.
    pub(super) fn record_inline(&mut self, message: Place) {
        self.core.inline = message;
        self.commit();
    }

    /// The poller has run it; that is true with the commit of its answer.
    pub(super) fn end_inline(&mut self) {
        self.core.inline = Place::default();
    }

    /// A call waits for a thread from now on.
    pub(in crate::worker) fn enqueue(&mut self, call: InFlight, arrived_ns: u64) {
        self.link(call, arrived_ns, false);
    }

    fn link(&mut self, mut call: InFlight, arrived_ns: u64, runs: bool) {
        call.next = self.core.calls;
        let head = call.message.block().words();
        write_call(head, call.number, call.next, arrived_ns, call.message.len());
        if runs {
            call_runs(head);
        }
        self.core.calls = call.place();
        self.commit();
        self.calls.push(call);
    }

    /// A thread is about to run this call.
    pub(in crate::worker) fn runs(&mut self, number: u64) -> Option<&mut InFlight> {
        let call = self.calls.iter_mut().find(|call| call.number == number)?;
        call.queued_since = None;
        call_runs(call.message.block().words());
        Some(call)
    }

    /// What has begun waits again, all of it, for whoever goes on with the connection: since `now`, where that is this worker.
    /// No thread may be in any of it. Dying before a call's word is stored leaves a batch as one that was taken apart, with
    /// errors for what is left of it; dying after it leaves one of which the rest is run.
    pub(in crate::worker) fn all_wait(&mut self, now: Instant) {
        for call in &mut self.calls {
            if let Some(batch) = &mut call.batch {
                batch.begun.clear();
            }
            if call.queued_since.replace(now).is_none() {
                call_waits(call.message.block().words());
            }
        }
    }

    /// Brings call `number`, which the poller ran when it was relieved, among those that any thread runs, and what
    /// the poller had not begun back to the input. Nothing, where that has been done. False where there is no memory for
    /// it.
    #[must_use]
    pub(in crate::worker) fn take_over(&mut self, number: u64) -> bool {
        if self.inline_call().is_none_or(|call| call.number != number) {
            return true;
        }
        let Some(InHand { chunk, rest, call: Some(call) }) = self.in_hand.take() else {
            return true;
        };
        let message = chunk.get(call.message.clone()).unwrap_or_default();
        let Some(message) = Chunk::copy_of(message, 0, self.pool) else {
            return false;
        };
        self.input.put(chunk.skip(rest), 0);
        // The call's own message has arrived whole. What is behind it, if anything, is looked at anew.
        self.message_arrives(None);
        self.end_inline();
        let call = InFlight {
            number,
            allowed: call.allowed,
            deadline: call.deadline,
            queued_since: None,
            ordered: call.caller.is_ordered(),
            message,
            caller: Whom::Known(call.caller),
            batch: None,
            ticket: Arc::new(Ticket::running(call.method)),
            next: 0,
        };
        // It runs, so no reader cares when it arrived.
        self.link(call, 0, true);
        true
    }

    /// Adds an answer to what is to be sent, and says what it is for. False where there is no memory for it.
    #[must_use]
    pub(in crate::worker) fn publish(
        &mut self,
        answer: &[u8],
        answered: Answered<'_>,
        spare: &mut Option<Block>,
    ) -> bool {
        let Ok(left) = self.output.append(answer, spare, self.pool) else {
            return false;
        };
        let mut linked = None;
        match answered {
            Answered::Message => {}
            Answered::Inline(number) => self.core.answered = number,
            Answered::Call(call) => {
                self.core.answered = call.number;
                if self.core.calls == call.place() {
                    self.core.calls = call.next;
                } else {
                    linked = Some(call);
                }
            }
        }
        if matches!(answered, Answered::Inline(_)) && left.is_none() {
            // The next call of the chunk begins right away more often than not, and both are one commit then. Whatever
            // others can see comes after it: the lock's release, a send.
            self.is_committed = false;
            return true;
        }
        self.commit();
        drop(left);
        if let Some(call) = linked {
            self.unlink(call);
        }
        true
    }

    /// Takes a call out of the middle of the list, once its answer is published.
    fn unlink(&mut self, call: &InFlight) {
        let before = self.calls.iter_mut().find(|other| other.next == call.place());
        if let Some(before) = before {
            before.next = call.next;
            unlink_next(before.message.block().words(), call.next);
        }
    }
}
