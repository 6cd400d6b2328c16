//! From a call in the queue to its answer: what a pool thread does.

use std::error::Error as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Instant;

use super::Hand;
use super::begin::{Job, write_error};
use crate::arena::Outcome;
use crate::rpc::{Call, CallParts, Error, native};
use crate::sys::clock;
use crate::wire::length::LengthFraming;
use crate::worker::connection::Phase;

impl Hand {
    /// Runs a call that waited in the queue, on a pool thread.
    pub(in crate::worker) fn run(&mut self, job: &Job) {
        let shared = Arc::clone(&self.shared);
        if !self.start(job) {
            shared.call_ended();
            return;
        }
        let begun = Instant::now();
        self.row.begin(job.method.0, clock::monotonic_ns());
        let outcome = self.invoke(job);
        let took = begun.elapsed();
        shared.gate.ran(took);
        // Before its answer is sent: whoever reads that finds the thread free.
        shared.call_ended();
        if !shared.slow.is_zero() && took >= shared.slow {
            let (slot, method, peer) =
                (shared.info.slot(), shared.method_name(job.method), &job.connection.peer);
            tracing::warn!(slot, method, ?took, %peer, "slow call");
        }
        let mut state = job.connection.lock();
        // Where the call is no longer on the list its caller was told that the time was up, or is gone.
        let wanted = state.phase != Phase::Closed && state.take_call(job.number).is_some();
        // A handler that sees its deadline pass may return at once, before the poller has told its caller; and what it
        // returns then is whatever it likes.
        let in_time = Instant::now() < job.deadline;
        let outcome = if wanted && in_time { outcome } else { Outcome::Late };
        self.row.finish(job.method.0, outcome, clock::whole_ns(took));
        if wanted {
            if in_time {
                state.output.append(&self.answer);
            } else {
                self.row.deadline_exceeded();
                self.answer_error(&mut state, &Error::deadline(job.allowed), job.id());
            }
            self.go_on(&mut state);
        }
        drop(state);
        if !wanted {
            self.let_go(job);
        }
        self.keep_answer_small();
    }

    /// A call that was given up while it waited or ran is over, and its message with it.
    fn let_go(&self, job: &Job) {
        if self.shared.buffers.let_go(job.message.len()) {
            self.shared.wake_poller();
        }
    }

    /// True when the call is still wanted and now belongs to this thread.
    fn start(&mut self, job: &Job) -> bool {
        let mut state = job.connection.lock();
        let Some(call) = state.calls.iter_mut().find(|call| call.number == job.number) else {
            drop(state);
            self.let_go(job);
            return false;
        };
        if Instant::now() < job.deadline {
            call.queued_since = None;
            return true;
        }
        state.take_call(job.number);
        self.row.deadline_exceeded();
        self.answer_error(&mut state, &Error::deadline(job.allowed), job.id());
        self.go_on(&mut state);
        false
    }

    /// Runs the handler and leaves its framed answer in `self.answer`.
    fn invoke(&mut self, job: &Job) -> Outcome {
        let shared = &self.shared;
        let framing = job.connection.framing;
        self.answer.clear();
        let Some(method) = shared.service.registry().get(job.method) else {
            // The number came from this very registry.
            write_error(&mut self.answer, framing, &Error::method_not_found("?"), job.id());
            return Outcome::Error;
        };
        let call = Call::new(CallParts {
            method: method.name(),
            id: job.id(),
            peer: &job.connection.peer,
            worker: &shared.info,
            states: &shared.states,
            gone: &job.connection.gone,
            deadline: job.deadline,
            thread: self.thread,
        });
        let mark = LengthFraming::begin_message(&mut self.answer);
        let answer = &mut self.answer;
        // A handler that panics may leave its own state half-changed; that is its state's to survive, as with any
        // lock that std poisons. What it was writing is thrown away here.
        let run = catch_unwind(AssertUnwindSafe(|| native::answer(answer, method, &call, job.params())));
        let (outcome, instead) = match run {
            Ok(Ok(())) => match framing.end_message(&mut self.answer, mark) {
                Ok(()) => return Outcome::Ok,
                Err(too_long) => (Outcome::Error, Error::answer_too_long(&too_long)),
            },
            Ok(Err(error)) => {
                if let Some(cause) = error.source() {
                    // The caller is only told that there was one.
                    tracing::error!(slot = shared.info.slot(), method = method.name(), %cause, "internal error");
                }
                // The answer is written already.
                match framing.end_message(&mut self.answer, mark) {
                    Ok(()) => return Outcome::Error,
                    Err(too_long) => (Outcome::Error, Error::answer_too_long(&too_long)),
                }
            }
            Err(_) => (Outcome::Panicked, Error::panicked(method.name())),
        };
        self.answer.clear();
        write_error(&mut self.answer, framing, &instead, job.id());
        outcome
    }

    /// One large answer must not keep its memory for ever on each thread.
    pub(super) fn keep_answer_small(&mut self) {
        const KEPT: usize = 64 * 1024;
        if self.answer.capacity() > KEPT {
            self.answer = Vec::new();
        }
    }
}
