//! From a call to its answer: what pool threads do with calls from the queue, and the poller with quick ones.

use std::error::Error as _;
use std::io;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Hand;
use super::begin::{Job, Next, Parsed};
use crate::arena::Outcome;
use crate::fail_points;
use crate::rpc::{Call, CallParts, Error, envelope};
use crate::sys::clock;
use crate::worker::caller::{self, Asked, Caller, Known, Whom};
use crate::worker::chunk::Chunk;
use crate::worker::concurrency::Entry;
use crate::worker::connection::{Answered, Connection, InlineCall, Locked, Phase};
use crate::worker::role::Term;
use crate::worker::token_of;

/// A handler's run, when it is over.
struct Ran {
    outcome: Outcome,
    took: Duration,
}

impl Hand {
    /// Runs a call that waited in the queue, on a pool thread.
    pub(in crate::worker) fn run(&mut self, job: &Job) {
        self.look_at_the_clock();
        if !job.ticket.take() {
            // Its places were given back when it was given up.
            return self.let_go(&job.message);
        }
        let Some(call) = self.start(job) else {
            self.shared.call_ended();
            return;
        };
        let ran = self.invoke(&job.connection, &job.message, &call);
        self.shared.gate.ran(ran.took);
        // Before its answer is sent: whoever reads that finds the thread free.
        self.shared.call_ended();
        let mut state = job.connection.lock();
        // Where the call is no longer on the list its caller was told that the time was up, or is gone.
        let in_flight = if state.phase == Phase::Closed { None } else { state.take_call(job.number) };
        let wanted = in_flight.as_ref().map(Answered::Call);
        self.conclude(&mut state, &job.message, &call, &ran, wanted);
        // Of the same connection, the next one's answer comes behind this one.
        self.shared.leave(call.method, ran.took, self.now_ns);
        if wanted.is_some() {
            self.go_on(&mut state);
        }
        drop(state);
        if wanted.is_none() {
            self.shared.came_back((job.connection.key, job.number));
            self.let_go(&job.message);
        }
    }

    /// Runs a call where it was found, as poller, and puts its answer out.
    ///
    /// The connection's lock is released meanwhile. If the handler blocks, the watch becomes the poller: it takes over
    /// the connection with what has not begun of it, and this thread is one of the pool from then on.
    pub(super) fn run_inline(
        &mut self,
        state: &mut Locked<'_>,
        chunk: &Chunk,
        message: Range<usize>,
        call: &Parsed,
        mut term: Term,
    ) -> Next {
        let shared = Arc::clone(&self.shared);
        let number = state.next_call_number();
        let inline = InlineCall {
            number,
            method: call.method,
            allowed: call.allowed,
            deadline: call.deadline,
            message: message.clone(),
            caller: call.caller,
        };
        state.take_in_hand(chunk, inline);
        let connection = state.connection;
        let message = chunk.get(message).unwrap_or_default();
        shared.inline_at.store(token_of(connection.key), Ordering::Relaxed);
        shared.role.enter(&mut term);
        fail_points::delay();
        let ran = state.unlocked(|| {
            let ran = self.invoke(connection, message, call);
            fail_points::delay();
            ran
        });
        fail_points::delay();
        let is_poller = shared.role.leave(&term);
        let is_open = state.phase != Phase::Closed;
        let in_flight;
        let wanted = if is_poller {
            self.term = Some(term);
            state.has_run_inline();
            is_open.then_some(Answered::Inline(number))
        } else {
            // As at the end of any call of the pool, which this is now; its connection may not have been taken over yet.
            shared.gate.ran(ran.took);
            shared.call_ended();
            if !state.take_over(number) {
                self.fail(state, &io::ErrorKind::OutOfMemory.into());
            }
            in_flight = if state.phase == Phase::Closed { None } else { state.take_call(number) };
            in_flight.as_ref().map(Answered::Call)
        };
        self.conclude(state, message, call, &ran, wanted);
        shared.leave(call.method, ran.took, self.now_ns);
        if wanted.is_none() {
            shared.came_back((connection.key, number));
            self.let_go(message);
        }
        if is_poller {
            return Next::Message;
        }
        if wanted.is_some() {
            self.go_on(state);
        }
        Next::Relieved
    }

    /// Counts a run, and puts its answer out where one is wanted.
    fn conclude(
        &mut self,
        state: &mut Locked<'_>,
        message: &[u8],
        call: &Parsed,
        ran: &Ran,
        wanted: Option<Answered<'_>>,
    ) {
        // A handler that sees its deadline pass may return at once, before the poller has told its caller; and what it
        // returns then is whatever it likes.
        let in_time = self.now < call.deadline;
        let outcome = if wanted.is_some() && in_time { ran.outcome } else { Outcome::Late };
        self.row.finish(call.method.0, outcome, clock::whole_ns(ran.took));
        if let Some(method) = self.trial.take() {
            self.shared.trial_survived(method);
        }
        match wanted {
            Some(answered) if in_time => self.put_out(state, call.caller.route, answered),
            Some(answered) => self.give_up(state, message, call, answered),
            None => {}
        }
        self.shared.paces.ran(call.method, ran.took);
    }

    /// Answers a call whose time is up.
    fn give_up(&mut self, state: &mut Locked<'_>, message: &[u8], call: &Parsed, answered: Answered<'_>) {
        self.row.deadline_exceeded();
        self.answer_error(state, &Error::deadline(call.allowed), call.caller.caller(message), answered);
    }

    /// A call that was given up while it waited or ran is over, and its message with it.
    fn let_go(&self, message: &[u8]) {
        if self.shared.buffers.let_go(message.len()) {
            self.shared.wake_poller();
        }
    }

    /// The call, if it is still wanted; it belongs to this thread then.
    fn start(&mut self, job: &Job) -> Option<Parsed> {
        let call = match job.call {
            Some(call) => Ok(call),
            None => self.parse(job),
        };
        let was_known = job.call.is_some();
        let mut state = job.connection.lock();
        if !state.calls.iter().any(|call| call.number == job.number) {
            drop(state);
            self.shared.came_back((job.connection.key, job.number));
            self.leave_unrun(job);
            self.let_go(&job.message);
            return None;
        }
        match call {
            Ok(call) if self.now < call.deadline => {
                if !was_known {
                    self.is_known(&mut state, job, &call)?;
                }
                // Here and not when it was begun alone: it may have waited since before the quarantine.
                let Err(error) = self.enter(call.method) else {
                    state.runs(job.number)?;
                    if !was_known {
                        self.go_on(&mut state);
                    }
                    return Some(call);
                };
                if let Some(in_flight) = state.take_call(job.number) {
                    self.answer_error(&mut state, &error, in_flight.caller(), Answered::Call(&in_flight));
                }
                if !was_known {
                    self.shared.release(call.method, self.now_ns);
                }
            }
            Ok(call) => {
                if let Some(in_flight) = state.take_call(job.number) {
                    self.give_up(&mut state, &job.message, &call, Answered::Call(&in_flight));
                }
            }
            Err(Rejected { error, id, .. }) => {
                if let Some(in_flight) = state.take_call(job.number) {
                    self.answer_error(&mut state, &error, id, Answered::Call(&in_flight));
                }
            }
        }
        self.leave_unrun(job);
        self.go_on(&mut state);
        None
    }

    /// A call whose message a thread had to parse is told apart from others: it may go, or waits for others of its method, or
    /// is refused.
    fn is_known(&mut self, state: &mut Locked<'_>, job: &Job, call: &Parsed) -> Option<()> {
        let in_flight = state.calls.iter_mut().find(|call| call.number == job.number)?;
        (in_flight.deadline, in_flight.allowed) = (call.deadline, call.allowed);
        in_flight.ordered = call.caller.is_ordered();
        in_flight.caller = Whom::Known(call.caller);
        in_flight.ticket.is_for(call.method);
        match self.shared.enter(job, *call) {
            Ok(Entry::Go) => return Some(()),
            Ok(Entry::Wait) => {}
            Err(refused) => {
                if let Some(in_flight) = state.take_call(job.number) {
                    self.refuse(state, refused, in_flight.caller(), Answered::Call(&in_flight));
                }
            }
        }
        self.go_on(state);
        None
    }

    /// A call that was let in among those of its method is not run after all.
    fn leave_unrun(&self, job: &Job) {
        if let Some(call) = job.call {
            self.shared.release(call.method, self.now_ns);
        }
    }

    /// Parses a message that the poller has left to this thread.
    fn parse<'a>(&mut self, job: &'a Job) -> Result<Parsed, Rejected<'a>> {
        let request = rpc::parse(&job.message, Form::Native).and_then(Message::single)?;
        let parsed = self.shared.understand(&request, job.arrived);
        self.look_at_the_clock();
        parsed.map_err(|error| Rejected { form: request.form, error, id: request.id() })
    }

    /// Runs the handler and leaves its framed answer in `self.answer`.
    fn invoke(&mut self, connection: &Connection, message: &[u8], call: &Parsed) -> Ran {
        let begun_ns = self.now_ns;
        self.row.begin(call.method.0, begun_ns);
        let outcome = self.answer(connection, message, call);
        self.look_at_the_clock();
        let took = Duration::from_nanos(self.now_ns - begun_ns);
        let shared = &self.shared;
        if !shared.slow.is_zero() && took >= shared.slow {
            let (slot, method, peer) =
                (shared.info.slot(), shared.method_name(call.method), &connection.peer);
            tracing::warn!(slot, method, ?took, %peer, "slow call");
        }
        Ran { outcome, took }
    }

    fn answer(&mut self, connection: &Connection, message: &[u8], parsed: &Parsed) -> Outcome {
        let shared = &self.shared;
        let framing = connection.framing;
        let (id, params) = (
            parsed.id.map(|span| span.in_message(message)),
            parsed.params.map(|span| span.in_message(message)),
        );
        self.answer.clear();
        let Some(method) = shared.service.registry().get(parsed.method) else {
            // The number came from this very registry.
            write_error(&mut self.answer, framing, &Error::method_not_found("?"), id);
            return Outcome::Error;
        };
        let call = Call::new(CallParts {
            method: method.name(),
            id,
            peer: &connection.peer,
            worker: &shared.info,
            states: &shared.states,
            gone: &connection.gone,
            deadline: parsed.deadline,
            thread: self.thread,
        });
        let mark = LengthFraming::begin_message(&mut self.answer);
        let answer = &mut self.answer;
        // A handler that panics may leave its own state half-changed; that is its state's to survive, as with any
        // lock that std poisons. What it was writing is thrown away here.
        let run =
            catch_unwind(AssertUnwindSafe(|| envelope::answer(answer, parsed.form, method, &call, params)));
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
        write_error(&mut self.answer, framing, &instead, id);
        outcome
    }
}
