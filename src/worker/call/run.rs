//! From a call to its answer: what pool threads do with calls from the queue, and the poller with quick ones.

use std::io;
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::admission::AfterParsing;
use super::decide::{RejectReason, decide};
use super::job::Job;
use super::message::{Next, Parsed};
use crate::arena::Outcome;
use crate::config::span;
use crate::fail_points;
use crate::log::{self, More};
use crate::rpc::guard::guarded;
use crate::rpc::{Call, CallParts, Error, RawJson, envelope};
use crate::sys::clock;
use crate::worker::call::caller::{Asked, Caller, Protocol, Whom};
use crate::worker::call::concurrency::Entry;
use crate::worker::connection::chunk::Chunk;
use crate::worker::connection::{Answered, Connection, InlineCall, Locked, Phase};
use crate::worker::counted::{FAILED, SLOW};
use crate::worker::guard::buffers::LITTLE;
use crate::worker::guard::panics;
use crate::worker::threads::role::Term;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::token_of;

/// A handler's run, when it is over.
pub(in crate::worker) struct Ran {
    outcome: Outcome,
    took: Duration,
}

impl Ran {
    pub(in crate::worker) fn took(&self) -> Duration {
        self.took
    }
}

impl WorkerThread {
    /// Runs a call that this thread of the pool has [taken](Job::is_taken) from the queue.
    pub(in crate::worker) fn run(&mut self, job: &Job) {
        self.look_at_the_clock();
        if let (Some(member), Some(call)) = (job.member, &job.call) {
            return self.run_member(job, member, call);
        }
        let Some(call) = self.start(job) else {
            self.shared.call_ended(&job.connection, self.now_ns);
            return;
        };
        let ran = self.invoke_in_pool(&job.connection, &job.message, &call);
        // Before its answer is sent: whoever reads that finds the thread free.
        self.shared.call_ended(&job.connection, self.now_ns);
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
            self.shared.forget(job);
        }
    }

    /// Runs a call where it was found, as poller, and puts its answer out.
    ///
    /// The connection's lock is released meanwhile. If the handler blocks, the watch becomes the poller: it takes over
    /// the connection with what has not begun of it, and this thread is one of the pool from then on.
    pub(in crate::worker) fn run_inline(
        &mut self,
        state: &mut Locked<'_>,
        chunk: &Chunk,
        (message, next): (Range<usize>, usize),
        call: &Parsed,
        mut term: Term,
    ) -> Next {
        let shared = self.shared;
        let number = state.next_call_number();
        let inline = InlineCall {
            number,
            method: call.method,
            allowed: call.allowed,
            deadline: call.deadline,
            message: message.clone(),
            caller: call.caller,
        };
        let connection = state.connection;
        let message = chunk.get(message).unwrap_or_default();
        self.is_in(connection, message, call);
        state.take_in_hand(chunk, next, inline);
        shared.inline_at.store(token_of(connection.key), Ordering::Relaxed);
        shared.inline_lane.store(connection.who.lane.to_word(), Ordering::Relaxed);
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
            shared.call_ended(connection, self.now_ns);
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
            shared.let_go(message.len());
        }
        if is_poller {
            return Next::Message;
        }
        if wanted.is_some() {
            self.go_on(state);
        }
        Next::Relieved
    }

    /// Puts the answer of a run out where one is wanted, and counts the run: until its answer is in the connection's record its
    /// caller would be told that it was lost, so until then it is among what runs.
    fn conclude(
        &mut self,
        state: &mut Locked<'_>,
        message: &[u8],
        call: &Parsed,
        ran: &Ran,
        wanted: Option<Answered<'_>>,
    ) {
        match wanted {
            Some(answered) if self.is_in_time(call) => self.put_out(state, call.caller.reply, answered),
            Some(answered) => self.give_up(state, message, call, answered),
            None => {}
        }
        self.count(call, ran, wanted.is_some());
        self.shared.paces.ran(call.method, ran.took);
    }

    /// False where the deadline of a call that was run has passed. A handler that sees it pass may return at once, before the
    /// poller has told its caller; and what it returns then is whatever it likes.
    pub(in crate::worker) fn is_in_time(&self, call: &Parsed) -> bool {
        self.now < call.deadline
    }

    /// Counts a run, which is over.
    pub(in crate::worker) fn count(&mut self, call: &Parsed, ran: &Ran, is_wanted: bool) {
        self.give_room_back();
        let outcome = if is_wanted && self.is_in_time(call) { ran.outcome } else { Outcome::Late };
        self.row.finish(call.method.0, outcome, clock::whole_ns(ran.took));
        if let Some(method) = self.trial.take() {
            self.shared.trial_survived(method);
        }
    }

    /// Answers a call whose time is up.
    fn give_up(&mut self, state: &mut Locked<'_>, message: &[u8], call: &Parsed, answered: Answered<'_>) {
        self.row.deadline_exceeded();
        self.answer_error(state, &Error::deadline(call.allowed), call.caller.caller(message), answered);
    }

    /// The call, if it is still wanted; it belongs to this thread then.
    fn start(&mut self, job: &Job) -> Option<Parsed> {
        let Some(call) = job.call else {
            return self.start_unread(job);
        };
        let mut state = self.still_wanted(job)?;
        // Once more: it may have waited since before the quarantine, or until the buffers were full.
        let Err(refusal) = self.may_run(&state, &call) else {
            self.is_in(&job.connection, &job.message, &call);
            state.runs(job.number)?;
            return Some(call);
        };
        self.refuse_job(&mut state, job, &call, refusal);
        self.leave_unrun(job);
        self.go_on(&mut state);
        None
    }

    /// Answers a call from the queue that is refused.
    fn refuse_job(&mut self, state: &mut Locked<'_>, job: &Job, call: &Parsed, refusal: RejectReason) {
        if let Some(in_flight) = state.take_call(job.number) {
            let (asked, about) = ((in_flight.caller, &*in_flight.message), call.about(&job.connection));
            self.refuse(state, refusal, asked, about, Answered::Call(&in_flight));
        }
    }

    /// The same of a call whose message the poller has left to this thread. A batch is taken apart, which ends this
    /// thread's part in it.
    fn start_unread(&mut self, job: &Job) -> Option<Parsed> {
        let framing = job.connection.lock().framing?;
        let asked = Protocol::new(framing, self.shared.context).read(&job.message);
        self.look_at_the_clock();
        let mut state = self.still_wanted(job)?;
        let (caller, error) = match asked {
            Asked::Call { request, reply, text_at } => {
                match self.shared.understand(&request, reply, text_at, job.arrived) {
                    Ok(call) => return self.start_read(&mut state, job, call),
                    Err(error) => (Caller { reply, id: request.id() }, error),
                }
            }
            Asked::Batch { batch, reply, text_at, timeout_ms } => {
                self.begin_batch(&mut state, job, &batch, (reply, text_at, timeout_ms));
                return None;
            }
            Asked::Nothing { caller, error } => (caller, error),
            Asked::Page { page, reply } => {
                if let Some(in_flight) = state.take_call(job.number) {
                    self.answer_page(&mut state, &page, reply, Answered::Call(&in_flight));
                }
                self.go_on(&mut state);
                return None;
            }
        };
        if let Some(in_flight) = state.take_call(job.number) {
            self.answer_error(&mut state, &error, caller, Answered::Call(&in_flight));
        }
        self.go_on(&mut state);
        None
    }

    /// A call that this thread has read: it runs now, or waits for others of its method, or is refused.
    fn start_read(&mut self, state: &mut Locked<'_>, job: &Job, call: Parsed) -> Option<Parsed> {
        let in_flight = state.calls.iter_mut().find(|call| call.number == job.number)?;
        (in_flight.deadline, in_flight.allowed) = (call.deadline, call.allowed);
        in_flight.ordered = call.caller.is_ordered();
        in_flight.caller = Whom::Known(call.caller);
        in_flight.ticket.is_for(call.method);
        let entered = decide(call.deadline, &mut AfterParsing { shared: self.shared, job, call }, self.now);
        match entered {
            Ok(Entry::Go) => match self.may_run(state, &call) {
                Ok(()) => {
                    self.is_in(&job.connection, &job.message, &call);
                    state.runs(job.number)?;
                    self.go_on(state);
                    return Some(call);
                }
                Err(refusal) => {
                    self.refuse_job(state, job, &call, refusal);
                    self.shared.release(call.method, self.now_ns);
                }
            },
            Ok(Entry::Wait) => {}
            Err(refusal) => self.refuse_job(state, job, &call, refusal),
        }
        self.go_on(state);
        None
    }

    /// Sets room aside for the answer of a call that is to be run now. Its run gives it back.
    fn set_room_aside(&mut self) {
        if self.expects >= LITTLE {
            self.set_aside = self.expects;
            self.shared.buffers.hold_on(self.set_aside);
        }
    }

    /// The answer is accounted for where it lies.
    fn give_room_back(&mut self) {
        let set_aside = std::mem::take(&mut self.set_aside);
        if set_aside > 0 && self.shared.buffers.let_go(set_aside) {
            self.shared.wake_poller();
        }
    }

    /// The connection of a job whose call somebody still waits for.
    fn still_wanted<'a>(&mut self, job: &'a Job) -> Option<Locked<'a>> {
        let state = job.connection.lock();
        // One that was let go with its connection may be on the list still, or again.
        if !job.ticket.is_given_up() && state.calls.iter().any(|call| call.number == job.number) {
            return Some(state);
        }
        drop(state);
        self.shared.came_back((job.connection.key, job.number));
        self.leave_unrun(job);
        self.shared.forget(job);
        None
    }

    /// A call that was let in among those of its method is not run after all.
    fn leave_unrun(&self, job: &Job) {
        if let Some(call) = job.call {
            self.shared.release(call.method, self.now_ns);
        }
    }

    /// Says that this thread is in a call from now on. To be said before the connection's record does, so that a call whose caller
    /// would be told that it was lost is named.
    pub(in crate::worker) fn is_in(&mut self, connection: &Connection, message: &[u8], call: &Parsed) {
        self.row.called_by(connection.peer.address(), call.caller.id_text(message));
        self.row.begin(call.method.0, self.now_ns);
    }

    /// As [`invoke`](Self::invoke), on a thread for which others wait.
    pub(in crate::worker) fn invoke_in_pool(
        &mut self,
        connection: &Connection,
        message: &[u8],
        call: &Parsed,
    ) -> Ran {
        self.shared.runs.begin(self.thread, call.method, self.now_ns);
        let ran = self.invoke(connection, message, call);
        self.shared.runs.end(self.thread, call.method, ran.took);
        self.shared.gate.ran(ran.took);
        ran
    }

    /// Runs the handler and leaves its framed answer in `self.answer`.
    pub(in crate::worker) fn invoke(
        &mut self,
        connection: &Connection,
        message: &[u8],
        call: &Parsed,
    ) -> Ran {
        let begun_ns = self.now_ns;
        self.set_room_aside();
        let outcome = self.answer(connection, message, call);
        self.shared.answer_sizes.answered(call.method, self.answer.len());
        connection.answer_size.answered(self.answer.len());
        self.look_at_the_clock();
        let took = Duration::from_nanos(self.now_ns - begun_ns);
        let shared = &self.shared;
        if !shared.slow.is_zero()
            && took >= shared.slow
            && let Some(More { count, from }) = SLOW.admit(connection.peer.address().key())
        {
            let (slot, method, peer) =
                (shared.info.slot(), shared.method_name(call.method), &connection.peer);
            let id = call.caller.caller(message).id.map(RawJson::get).map(log::cut);
            tracing::warn!(slot, method, took = span::show_measured(took), id = id.as_deref(), %peer, more = count, from, "slow call");
        }
        Ran { outcome, took }
    }

    fn answer(&mut self, connection: &Connection, message: &[u8], parsed: &Parsed) -> Outcome {
        let shared = &self.shared;
        let reply = parsed.caller.reply;
        let caller = parsed.caller.caller(message);
        let params = parsed.caller.value(parsed.params, message);
        self.answer.clear();
        let Some(method) = shared.context.service.registry().get(parsed.method) else {
            // The number came from this very registry.
            caller.write_error(&mut self.answer, &Error::method_not_found("?"));
            return Outcome::Error;
        };
        let call = Call::new(CallParts {
            method: method.name(),
            id: caller.id,
            peer: &connection.peer,
            worker: &shared.info,
            states: shared.states,
            gone: &connection.gone,
            deadline: parsed.deadline,
            thread: self.thread,
        });
        let begun = reply.begin(&mut self.answer);
        let answer = &mut self.answer;
        // Of a handler that panics nothing is kept that it was writing.
        let run = guarded(|| envelope::answer(answer, reply.form(), method, &call, params));
        let (outcome, instead) = match run {
            Ok(answered) => {
                let mut error = answered.err();
                if let Some(error) = &mut error
                    && let Some(why) =
                        error.take_cause().or_else(|| error.is_internal().then(|| error.to_string()))
                {
                    self.tell_failed(&call, &why);
                }
                // An error's answer is written already.
                match reply.end(&mut self.answer, begun, error.as_ref()) {
                    Ok(()) if error.is_none() => return Outcome::Ok,
                    Ok(()) => return Outcome::Error,
                    Err(too_long) => {
                        self.tell_failed(&call, &too_long.to_string());
                        (Outcome::Error, Error::answer_too_long(&too_long))
                    }
                }
            }
            Err(panicked) => {
                panics::was_caught(shared.context, shared.info.slot(), &panicked);
                (Outcome::Panicked, Error::panicked(method.name()))
            }
        };
        self.answer.clear();
        caller.write_error(&mut self.answer, &instead);
        outcome
    }

    /// Tells why a call is answered that there was an internal error, which its caller is not.
    #[cold]
    fn tell_failed(&self, call: &Call<'_>, cause: &str) {
        let Some(More { count, from }) = FAILED.admit(call.peer().address().key()) else { return };
        let (slot, method, peer) = (call.slot(), call.method(), call.peer());
        let id = call.id().map(RawJson::get).map(log::cut);
        let took = Duration::from_nanos(clock::monotonic_ns().saturating_sub(self.now_ns));
        tracing::error!(
            slot, method, id = id.as_deref(), %peer, took = span::show_measured(took), more = count, from, cause = %log::cut(cause),
            "internal error"
        );
    }
}
