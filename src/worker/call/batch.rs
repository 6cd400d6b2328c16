//! Batches: each call of one is admitted and run as any other, several at once; the answers are gathered in the arena, and
//! sent when the last is there.
//!
//! A batch is one call of its connection. No more of its calls are on their way at once than there are threads, nor more of
//! all of a connection's than it may have in flight; the others of a batch wait for these, and none of them is refused for
//! that wait. For what others keep it waiting it is refused like any call.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use super::admission::{BeforeQueue, RefusedCall};
use super::decide::{RejectReason, decide};
use super::job::Job;
use super::message::Parsed;
use crate::log::More;
use crate::rpc::{self, Error};
use crate::worker::call::caller::{Asked, Caller, Protocol, ReplyFormat, Whom};
use crate::worker::call::ticket::{Place, Ticket};
use crate::worker::connection::chunk::Chunk;
use crate::worker::connection::{
    Ahead, Answered, Batch, BegunMember, InFlight, Locked, MOST_GATHERED, Member, Phase,
};
use crate::worker::counted::NO_MEMORY;
use crate::worker::guard::buffers::LITTLE;
use crate::worker::threads::worker_thread::WorkerThread;

/// Bytes that the error may need which takes the place of an answer, beside the call's id.
const ROOM_FOR_ERROR: usize = 256;

/// Why a call of a batch is answered without being run.
enum Instead {
    Error(Error),
    Refused(RejectReason, Box<RefusedCall>),
}

impl WorkerThread {
    /// Takes a batch apart and begins its first calls. Its own call is among those in flight, with this number.
    pub(in crate::worker) fn begin_batch(
        &mut self,
        state: &mut Locked<'_>,
        job: &Job,
        batch: &rpc::Batch<'_>,
        (reply, text_at, timeout_ms): (ReplyFormat, usize, Option<u64>),
    ) {
        let have_run = state.have_run(job.number);
        let ahead = (0..).zip(batch.places()).filter(|(index, _)| !have_run.contains(index)).collect();
        let timeout = timeout_ms.map(Duration::from_millis);
        let batch = Batch::new(reply, text_at, timeout, job.arrived, ahead);
        if let Some(call) = state.runs(job.number) {
            call.ordered = reply.is_ordered(true);
            call.batch = Some(Box::new(batch.with_answers_of(call.batch.take())));
            self.feed_batch(state, job.number);
        }
        self.go_on(state);
    }

    /// Begins what may begin of a batch, and ends it where nothing is left.
    fn feed_batch(&mut self, state: &mut Locked<'_>, number: u64) {
        let bounds = self.shared.bounds;
        while let Some((mut batch, message)) = state.take_batch(number) {
            // It counts as one while it is in hand.
            let all = state.on_their_way() - 1 + batch.begun.len();
            let has_room = batch.begun.len() < bounds.in_batch
                && all < bounds.in_flight
                && !self.shared.buffers.are_full();
            let next = if has_room || batch.begun.is_empty() { batch.ahead.pop() } else { None };
            let Some(next) = next else {
                let is_complete = batch.is_complete();
                state.put_batch(number, batch);
                if is_complete {
                    self.end_batch(state, number);
                }
                return;
            };
            let is_full = self.is_full(state, &batch);
            let begun = self.begin_member(state, &mut batch, &message, (number, &next), is_full);
            let (caller, error) = match begun {
                Ok(()) => {
                    state.put_batch(number, batch);
                    continue;
                }
                // There will be room when one of its own ends.
                Err((_, Instead::Refused(RejectReason::Crowded(_) | RejectReason::NoMemory, _)))
                    if !is_full && !batch.begun.is_empty() && self.is_alone(&batch) =>
                {
                    batch.ahead.push(next);
                    state.put_batch(number, batch);
                    return;
                }
                Err((caller, Instead::Refused(refusal, about))) => (caller, self.error_of(refusal, *about)),
                Err((caller, Instead::Error(error))) => (caller, error),
            };
            self.answer.clear();
            caller.write_error(&mut self.answer, &error);
            state.put_batch(number, batch);
            self.gather(state, Member { batch: number, index: next.0 });
        }
    }

    /// Nobody else's calls wait for a thread. The thread that takes the batch apart counts as one of its own.
    fn is_alone(&self, batch: &Batch) -> bool {
        !self.shared.is_busy_with_others(batch.begun.len() + 1)
    }

    /// So many answers are there already that no further ones should be made that have to wait with them.
    fn is_full(&self, state: &Locked<'_>, batch: &Batch) -> bool {
        let gathered = state.gathered() + batch.gathered();
        gathered >= MOST_GATHERED || (gathered >= LITTLE && self.shared.buffers.are_full())
    }

    /// Puts a call of a batch on its way, or says who is answered what instead.
    fn begin_member<'a>(
        &mut self,
        state: &mut Locked<'_>,
        batch: &mut Batch,
        message: &'a Chunk,
        (number, (index, place)): (u64, &Ahead),
        is_full: bool,
    ) -> Result<(), (Caller<'a>, Instead)> {
        let text_at = batch.text_at + place.start;
        let text = message.get(text_at..batch.text_at + place.end).unwrap_or_default();
        let (mut request, reply) = match batch.reply.read_member(text) {
            Ok(read) => read,
            Err((caller, error)) => return Err((caller, Instead::Error(error))),
        };
        if let Some(most) =
            batch.timeout.map(|timeout| u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX))
        {
            request.timeout_ms = Some(request.timeout_ms.map_or(most, |own| own.min(most)));
        }
        let caller = Caller { reply, id: request.id() };
        let understood = self.shared.understand(&request, reply, text_at, batch.arrived);
        let call = understood.map_err(|error| (caller, Instead::Error(error)))?;
        let about = call.about(state.connection);
        let refused = |refusal| (caller, Instead::Refused(refusal, Box::new(about)));
        let RefusedCall { who, method, allowed } = about;
        let mut checks = BeforeQueue { shared: self.shared, who, method, allowed, has_memory: !is_full };
        let queued = decide(call.deadline, &mut checks, self.now).map_err(refused)?;
        let member = Member { batch: number, index: *index };
        if self.dispatch_member(state, batch, message, member, call, queued) {
            Ok(())
        } else {
            Err(refused(RejectReason::Crowded(self.shared.refused(who, method))))
        }
    }

    /// False where the queue has no room.
    fn dispatch_member(
        &mut self,
        state: &mut Locked<'_>,
        batch: &mut Batch,
        message: &Chunk,
        member: Member,
        call: Parsed,
        queued: Place,
    ) -> bool {
        if self.is_alone(batch) {
            batch.waits_since = self.now;
        }
        let number = state.next_call_number();
        let ticket = Arc::new(Ticket::new(queued, Some(call.method)));
        batch.begun.push(BegunMember {
            index: member.index,
            number,
            allowed: call.allowed,
            deadline: call.deadline,
            queued_since: Some(batch.waits_since),
            caller: call.caller,
            ticket: Arc::clone(&ticket),
        });
        let connection = Arc::clone(state.connection);
        let (message, arrived) = (message.clone(), batch.arrived);
        let job =
            Job { connection, number, message, arrived, call: Some(call), member: Some(member), ticket };
        self.shared.dispatch(queued, Box::new(job)) || batch.take(member.index).is_none()
    }

    /// Runs a call of a batch, on a pool thread.
    pub(in crate::worker) fn run_member(&mut self, job: &Job, member: Member, call: &Parsed) {
        let mut state = job.connection.lock();
        let is_wanted = !job.ticket.is_given_up()
            && state.batch_at(member.batch).is_some_and(|batch| batch.runs(member.index));
        if !is_wanted {
            drop(state);
            self.shared.came_back((job.connection.key, job.number));
            self.shared.release(call.method, self.now_ns);
            return self.shared.call_ended(&job.connection, self.now_ns);
        }
        if let Err(refusal) = self.may_run(&state, call) {
            let error = self.error_of(refusal, call.about(&job.connection));
            self.answer.clear();
            call.caller.caller(&job.message).write_error(&mut self.answer, &error);
            self.shared.release(call.method, self.now_ns);
            self.shared.call_ended(&job.connection, self.now_ns);
            let is_there = self.keep_answer(&mut state, member, Duration::ZERO);
            return self.batch_goes_on(&mut state, member, is_there);
        }
        self.is_in(&job.connection, &job.message, call);
        drop(state);
        let ran = self.invoke_in_pool(&job.connection, &job.message, call);
        self.shared.call_ended(&job.connection, self.now_ns);
        let mut state = job.connection.lock();
        let is_wanted = state.phase != Phase::Closed
            && state
                .batch_at(member.batch)
                .is_some_and(|batch| batch.begun.iter().any(|begun| begun.index == member.index));
        if is_wanted && !self.is_in_time(call) {
            self.row.deadline_exceeded();
            self.answer.clear();
            let error = Error::deadline(call.allowed);
            call.caller.caller(&job.message).write_error(&mut self.answer, &error);
        }
        let is_there = is_wanted && self.keep_answer(&mut state, member, ran.took());
        // As any call: it is among what runs until its answer is in the arena.
        self.count(call, &ran, is_wanted);
        self.shared.leave(call.method, ran.took(), self.now_ns);
        if is_wanted {
            self.batch_goes_on(&mut state, member, is_there);
        } else {
            drop(state);
            self.shared.came_back((job.connection.key, job.number));
        }
    }

    /// Keeps `self.answer` for a call of a batch which has begun, and which a thread was in for so long. False where it was given
    /// up.
    fn keep_answer(&mut self, state: &mut Locked<'_>, member: Member, took: Duration) -> bool {
        let (now, shared) = (self.now, &self.shared);
        let taken = state.batch_at(member.batch).and_then(|batch| {
            let taken = batch.take(member.index)?;
            batch.has_worked(took, now, !shared.is_busy_with_others(batch.begun.len()));
            Some(taken)
        });
        if taken.is_some() {
            self.gather(state, member);
        }
        taken.is_some()
    }

    /// Begins what may begin once a call of a batch has its answer.
    fn batch_goes_on(&mut self, state: &mut Locked<'_>, member: Member, is_there: bool) {
        if is_there {
            self.feed_batch(state, member.batch);
        }
        self.go_on(state);
    }

    /// Keeps `self.answer` for a call of a batch. One for which there is no memory is missed at the end.
    fn gather(&mut self, state: &mut Locked<'_>, member: Member) {
        if !state.gather(member, &self.answer) {
            let (peer, bytes) = (&state.connection.peer, self.answer.len());
            if let Some(More { count, from }) = NO_MEMORY.admit(peer.address().key()) {
                tracing::error!(
                    %peer, bytes, more = count, from,
                    "no block of the arena is left for the answer of a batch's call; is limits.buffers low?"
                );
            }
        }
    }

    /// Answers the calls of a batch whose time is up.
    pub(in crate::worker) fn end_due_members(&mut self, state: &mut Locked<'_>, number: u64) {
        let (now, bounds, connection) = (self.now, self.shared.bounds, state.connection);
        loop {
            let is_busy = |own| self.shared.is_busy_with_others(own);
            let due = state.batch_at(number).and_then(|batch| batch.take_due(&bounds, now, is_busy));
            let Some(member) = due else { break };
            self.shared.gave_up_ticket(connection, member.number, &member.ticket, member.deadline);
            let about =
                RefusedCall { who: connection.who, method: member.ticket.method(), allowed: member.allowed };
            let error = self.error_of(self.shared.late_or_crowded(member.deadline <= now, about), about);
            self.answer.clear();
            if let Some(message) = state.message_of(number) {
                member.caller.caller(&message).write_error(&mut self.answer, &error);
            }
            self.gather(state, Member { batch: number, index: member.index });
        }
        self.feed_batch(state, number);
    }

    /// A call of a batch gave way in the queue.
    pub(in crate::worker) fn member_is_displaced(&mut self, job: &Job, member: Member) {
        let mut state = job.connection.lock();
        let is_closed = state.phase == Phase::Closed;
        let call = state.batch_at(member.batch).filter(|_| !is_closed).and_then(|batch| {
            let is_it = |begun: &BegunMember| Arc::ptr_eq(&begun.ticket, &job.ticket);
            batch.begun.iter().any(is_it).then(|| batch.take(member.index)).flatten()
        });
        // It may have been given up meanwhile, or let go with its connection and be back.
        let Some(call) = call else { return };
        let about =
            RefusedCall { who: job.connection.who, method: job.ticket.method(), allowed: call.allowed };
        let error = self.error_of(self.shared.late_or_crowded(false, about), about);
        self.answer.clear();
        call.caller.caller(&job.message).write_error(&mut self.answer, &error);
        self.gather(&mut state, member);
        self.feed_batch(&mut state, member.batch);
        self.go_on(&mut state);
    }

    fn end_batch(&mut self, state: &mut Locked<'_>, number: u64) {
        if let Some(call) = state.take_call(number) {
            // Whatever has none wants none, but for what could not be kept.
            let lost = |_: &str| Error::answer_too_long(&"there was no room to keep the answer");
            self.answer_unfinished(state, &call, lost);
        }
    }

    /// Answers a call or a batch of which nothing more will come: with what is there of a batch, and an error for the
    /// rest. It is no longer among those in flight.
    pub(in crate::worker) fn answer_unfinished<E: Borrow<Error>>(
        &mut self,
        state: &mut Locked<'_>,
        call: &InFlight,
        error_of: impl Fn(&str) -> E,
    ) {
        let Some(framing) = state.framing else { return };
        let protocol = Protocol::new(framing, self.shared.context);
        self.answer.clear();
        let gathered = call.batch.iter().flat_map(|batch| batch.answers());
        let reply = write_unfinished(&mut self.answer, protocol.read(&call.message), gathered, error_of);
        self.put_out(state, reply, Answered::Call(call));
    }

    /// Answers a call that waits for a thread and is not run, or the rest of a batch that does.
    pub(in crate::worker) fn answer_waiting(
        &mut self,
        state: &mut Locked<'_>,
        call: &InFlight,
        error: &Error,
    ) {
        if call.batch.is_some() {
            return self.answer_unfinished(state, call, |_| error);
        }
        self.answer_unrun(state, (call.caller, &call.message), Answered::Call(call), error);
    }

    /// Answers the calls of a batch that a thread is in, as ended with this worker; those that wait go on waiting.
    pub(in crate::worker) fn end_running_members(&mut self, state: &mut Locked<'_>, number: u64) {
        let running = state.batch_at(number).map(Batch::take_running).unwrap_or_default();
        let connection = state.connection;
        for member in running {
            self.shared.gave_up_ticket(connection, member.number, &member.ticket, member.deadline);
            let method = member.ticket.method().map_or("?", |method| self.shared.method_name(method));
            let error = Error::drained(method);
            self.answer.clear();
            if let Some(message) = state.message_of(number) {
                member.caller.caller(&message).write_error(&mut self.answer, &error);
            }
            self.gather(state, Member { batch: number, index: member.index });
        }
        if state.batch_at(number).is_some_and(|batch| batch.is_complete()) {
            self.end_batch(state, number);
        }
    }

    /// Answers a message of which nothing is run. A batch that nobody has taken apart yet is read for that: who waits for
    /// its calls knows them by their ids alone.
    pub(in crate::worker) fn answer_unrun(
        &mut self,
        state: &mut Locked<'_>,
        (whom, message): (Whom, &[u8]),
        answered: Answered<'_>,
        error: &Error,
    ) {
        match whom {
            Whom::Known(known) => self.answer_error(state, error, known.caller(message), answered),
            Whom::NotParsed(protocol) => {
                self.answer.clear();
                let nothing = std::iter::empty();
                let reply = write_unfinished(&mut self.answer, protocol.read(message), nothing, |_| error);
                self.put_out(state, reply, answered);
            }
        }
    }
}

/// Appends the answer to a call or batch of which nothing more will come. Returns how it goes back.
pub(in crate::worker) fn write_unfinished<'a, E: Borrow<Error>>(
    out: &mut Vec<u8>,
    asked: Asked<'_>,
    gathered: impl Iterator<Item = (u32, &'a [u8])>,
    error_of: impl Fn(&str) -> E,
) -> ReplyFormat {
    match asked {
        Asked::Call { request, reply, .. } => {
            Caller { reply, id: request.id() }.write_error(out, error_of(&request.method).borrow());
            reply
        }
        Asked::Batch { batch, reply, .. } => {
            write_batch(out, reply, &batch, gathered, error_of);
            reply
        }
        Asked::Nothing { caller, error } => {
            caller.write_error(out, &error);
            caller.reply
        }
        Asked::Page { page, reply } => {
            reply.write_page(out, &page, false);
            reply
        }
    }
}

/// The answers that there are, and an error for each call without one that wants one, in the order of the calls.
fn write_batch<'a, E: Borrow<Error>>(
    out: &mut Vec<u8>,
    reply: ReplyFormat,
    batch: &rpc::Batch<'_>,
    gathered: impl Iterator<Item = (u32, &'a [u8])>,
    error_of: impl Fn(&str) -> E,
) {
    let answers: HashMap<u32, &[u8]> = gathered.collect();
    let whole = out.len();
    let begun = reply.begin(out);
    let first = out.len();
    // What doesn't fit is left out, so that the rest can be answered; for errors in its place there must be room.
    let most = reply.most().saturating_sub(batch.text_len() + batch.len() * ROOM_FOR_ERROR);
    for (index, member) in (0..).zip(batch.members()) {
        let before = out.len();
        out.push(if before == first { b'[' } else { b',' });
        let start = out.len();
        let reply = reply.of_member();
        match (answers.get(&index), member.request) {
            (Some([]), _) => {}
            (Some(answer), request) if start - first + answer.len() > most => {
                let length = answer.len();
                let why = format!("its answer of {length} bytes does not fit into that of the batch");
                let id = request.ok().and_then(|request| request.id());
                Caller { reply, id }.write_error(out, &Error::answer_too_long(&why));
            }
            (Some(answer), _) => out.extend_from_slice(answer),
            (None, Ok(request)) if request.is_notification() => {}
            (None, Ok(request)) => {
                let caller = Caller { reply, id: request.id() };
                caller.write_error(out, error_of(&request.method).borrow());
            }
            (None, Err(rejected)) if rejected.is_silent => {}
            (None, Err(rejected)) => Caller { reply, id: rejected.id }.write_error(out, &rejected.error),
        }
        if out.len() == start {
            out.truncate(before);
        }
    }
    if out.len() == first {
        out.truncate(whole);
        return reply.write_nothing(out);
    }
    out.push(b']');
    if let Err(too_long) = reply.end(out, begun, None) {
        Caller { reply, id: None }.write_error(out, &Error::answer_too_long(&too_long));
    }
}
