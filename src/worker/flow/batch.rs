//! Batches: each call of one is admitted and run as any other, several at once; the answers are gathered in the arena, and
//! sent when the last is there.
//!
//! A batch is one call of its connection. No more of its calls are on their way at once than a connection may have in flight, so a
//! long one takes its turns with others.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::Hand;
use super::begin::{Job, Parsed};
use crate::rpc::{self, Error};
use crate::worker::caller::{Asked, Caller, Route, Tongue, Whom};
use crate::worker::chunk::Chunk;
use crate::worker::connection::{Answered, Batch, BegunMember, InFlight, Locked, Member, Phase};
use crate::worker::dispatch::Refused;
use crate::worker::ticket::{Place, Ticket};

/// Why a call of a batch is answered without being run.
enum Instead {
    Error(Error),
    Full(Refused),
}

impl Hand {
    /// Takes a batch apart and begins its first calls. Its own call is among those in flight, with this number.
    pub(super) fn begin_batch(
        &mut self,
        state: &mut Locked<'_>,
        job: &Job,
        batch: &rpc::Batch<'_>,
        (route, text_at, timeout_ms): (Route, usize, Option<u64>),
    ) {
        let ahead = (0..).zip(batch.places()).collect();
        let timeout = timeout_ms.map(Duration::from_millis);
        let batch = Batch::new(route, text_at, timeout, job.arrived, ahead);
        if let Some(call) = state.runs(job.number) {
            call.ordered = route.is_ordered(true);
            call.batch = Some(Box::new(batch));
            self.feed_batch(state, job.number);
        }
        self.go_on(state);
    }

    /// Begins what may begin of a batch, and ends it where nothing is left.
    fn feed_batch(&mut self, state: &mut Locked<'_>, number: u64) {
        let in_flight = self.shared.bounds.in_flight;
        while let Some((mut batch, message)) = state.take_batch(number) {
            let next = if batch.begun.len() < in_flight { batch.ahead.pop() } else { None };
            let Some((index, place)) = next else {
                let is_complete = batch.is_complete();
                state.put_batch(number, batch);
                if is_complete {
                    self.end_batch(state, number);
                }
                return;
            };
            let begun =
                self.begin_member(state, &mut batch, &message, Member { batch: number, index }, place);
            state.put_batch(number, batch);
            if let Err(answer) = begun {
                self.answer = answer;
                self.gather(state, Member { batch: number, index });
            }
        }
    }

    /// Puts a call of a batch on its way, or says what it is answered instead.
    fn begin_member(
        &mut self,
        state: &mut Locked<'_>,
        batch: &mut Batch,
        message: &Chunk,
        member: Member,
        place: std::ops::Range<usize>,
    ) -> Result<(), Vec<u8>> {
        let text_at = batch.text_at + place.start;
        let text = message.get(text_at..batch.text_at + place.end).unwrap_or_default();
        let (caller, begun) = match batch.route.read_member(text) {
            Asked::Call { mut request, route, .. } => {
                request.timeout_ms = match (request.timeout_ms, batch.timeout) {
                    (Some(ms), Some(timeout)) => {
                        Some(ms.min(u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX)))
                    }
                    (None, Some(timeout)) => u64::try_from(timeout.as_millis()).ok(),
                    (own, None) => own,
                };
                let caller = Caller { route, id: request.id() };
                let understood = self.shared.understand(&request, route, text_at, batch.arrived);
                let admitted = understood.map_err(Instead::Error).and_then(|call| self.admit_member(call));
                (caller, admitted)
            }
            Asked::Nothing { caller, error } => (caller, Err(Instead::Error(error))),
            Asked::Batch { route, .. } | Asked::Page { route, .. } => {
                let error = Error::invalid_request(&"expected a request in the batch");
                (Caller { route, id: None }, Err(Instead::Error(error)))
            }
        };
        let refused = match begun {
            Ok((call, place)) => {
                if self.dispatch_member(state, batch, message, member, call, place) {
                    return Ok(());
                }
                Instead::Full(self.shared.full())
            }
            Err(instead) => instead,
        };
        let error = match refused {
            Instead::Error(error) => error,
            Instead::Full(refused) => {
                self.row.refused();
                Error::overloaded(refused.retry_after)
            }
        };
        let mut answer = Vec::new();
        caller.write_error(&mut answer, &error);
        Err(answer)
    }

    fn admit_member(&self, call: Parsed) -> Result<(Parsed, Place), Instead> {
        let shared = &self.shared;
        if self.now >= call.deadline {
            return Err(Instead::Error(Error::deadline(call.allowed)));
        }
        if let Err(shut) = shared.quarantine.admits(call.method) {
            return Err(Instead::Error(shared.quarantined(call.method, shut)));
        }
        let place = shared.admit(Some(call.method), call.allowed).map_err(Instead::Full)?;
        Ok((call, place))
    }

    /// False where the queue has no room.
    fn dispatch_member(
        &mut self,
        state: &mut Locked<'_>,
        batch: &mut Batch,
        message: &Chunk,
        member: Member,
        call: Parsed,
        place: Place,
    ) -> bool {
        let number = state.next_call_number();
        let ticket = Arc::new(Ticket::new(place, Some(call.method)));
        batch.begun.push(BegunMember {
            index: member.index,
            number,
            allowed: call.allowed,
            deadline: call.deadline,
            queued_since: Some(self.now),
            caller: call.caller,
            ticket: Arc::clone(&ticket),
        });
        let connection = Arc::clone(state.connection);
        let (message, arrived) = (message.clone(), batch.arrived);
        let job =
            Job { connection, number, message, arrived, call: Some(call), member: Some(member), ticket };
        self.shared.dispatch(place, job) || batch.take(member.index).is_none()
    }

    /// Runs a call of a batch, on a pool thread.
    pub(super) fn run_member(&mut self, job: &Job, member: Member, call: &Parsed) {
        let mut state = job.connection.lock();
        if !state.batch_of(member).is_some_and(|batch| batch.runs(member.index)) {
            drop(state);
            self.member_came_back(job, call, None);
            return self.shared.call_ended();
        }
        let refused = if self.now < call.deadline {
            self.enter(call.method).err()
        } else {
            self.row.deadline_exceeded();
            Some(Error::deadline(call.allowed))
        };
        if let Some(error) = refused {
            self.answer.clear();
            call.caller.caller(&job.message).write_error(&mut self.answer, &error);
            self.shared.release(call.method, self.now_ns);
            self.shared.call_ended();
            return self.member_is_answered(&mut state, member);
        }
        drop(state);
        let ran = self.invoke(&job.connection, &job.message, call);
        self.shared.gate.ran(ran.took());
        self.shared.call_ended();
        let mut state = job.connection.lock();
        let is_wanted = state.phase != Phase::Closed
            && state
                .batch_of(member)
                .is_some_and(|batch| batch.begun.iter().any(|begun| begun.index == member.index));
        if !self.count(call, &ran, is_wanted) && is_wanted {
            self.row.deadline_exceeded();
            self.answer.clear();
            let error = Error::deadline(call.allowed);
            call.caller.caller(&job.message).write_error(&mut self.answer, &error);
        }
        self.shared.leave(call.method, ran.took(), self.now_ns);
        if is_wanted {
            self.member_is_answered(&mut state, member);
        } else {
            drop(state);
            self.shared.came_back((job.connection.key, job.number));
        }
    }

    /// `self.answer` is that of a call of a batch which has begun.
    fn member_is_answered(&mut self, state: &mut Locked<'_>, member: Member) {
        if state.batch_of(member).and_then(|batch| batch.take(member.index)).is_some() {
            self.gather(state, member);
            self.feed_batch(state, member.batch);
        }
        self.go_on(state);
    }

    fn member_came_back(&self, job: &Job, call: &Parsed, _: Option<()>) {
        self.shared.came_back((job.connection.key, job.number));
        self.shared.release(call.method, self.now_ns);
    }

    /// Keeps `self.answer` for a call of a batch.
    fn gather(&mut self, state: &mut Locked<'_>, member: Member) {
        if !state.gather(member, &self.answer) {
            self.fail(state, &io::ErrorKind::OutOfMemory.into());
        }
    }

    /// Answers the calls of a batch whose time is up.
    pub(super) fn end_due_members(&mut self, state: &mut Locked<'_>, number: u64) {
        let (now, bounds, key) = (self.now, self.shared.bounds, state.connection.key);
        loop {
            let due = state.batch_at(number).and_then(|batch| {
                let index = batch.begun.iter().find(|member| member.due(&bounds) <= now)?.index;
                batch.take(index)
            });
            let Some(member) = due else { break };
            let error = if member.deadline <= now {
                self.row.deadline_exceeded();
                Error::deadline(member.allowed)
            } else {
                self.row.refused();
                Error::overloaded(self.shared.gate.retry_after())
            };
            self.shared.gave_up_ticket((key, member.number), &member.ticket, member.deadline);
            self.answer.clear();
            if let Some(message) = state.message_of(number) {
                member.caller.caller(&message).write_error(&mut self.answer, &error);
            }
            self.gather(state, Member { batch: number, index: member.index });
        }
        self.feed_batch(state, number);
    }

    fn end_batch(&mut self, state: &mut Locked<'_>, number: u64) {
        if let Some(call) = state.take_call(number) {
            // Whatever has no answer wants none.
            self.answer_unfinished(state, &call, Error::panicked);
        }
    }

    /// Answers a call or a batch of which nothing more will come: with what is there of a batch, and an error for the
    /// rest. It is no longer among those in flight.
    pub(in crate::worker) fn answer_unfinished(
        &mut self,
        state: &mut Locked<'_>,
        call: &InFlight,
        error_of: impl Fn(&str) -> Error,
    ) {
        let Some(framing) = state.framing else { return };
        let tongue = Tongue::new(framing, self.shared.site);
        self.answer.clear();
        let gathered = call.batch.iter().flat_map(|batch| batch.answers());
        let route = write_unfinished(&mut self.answer, tongue, &call.message, gathered, error_of);
        self.put_out(state, route, Answered::Call(call));
    }

    /// Answers a message of which nothing is run. A batch that nobody has taken apart yet is read for that: who waits for
    /// its calls knows them by their ids alone.
    pub(super) fn answer_unrun(
        &mut self,
        state: &mut Locked<'_>,
        (whom, message): (Whom, &[u8]),
        answered: Answered<'_>,
        error: impl Fn() -> Error,
    ) {
        match whom {
            Whom::Known(known) => self.answer_error(state, &error(), known.caller(message), answered),
            Whom::NotParsed(tongue) => {
                self.answer.clear();
                let nothing = std::iter::empty();
                let route = write_unfinished(&mut self.answer, tongue, message, nothing, |_| error());
                self.put_out(state, route, answered);
            }
        }
    }
}

/// Appends the answer to a call or batch of which nothing more will come. Returns how it goes back.
pub(super) fn write_unfinished<'a>(
    out: &mut Vec<u8>,
    tongue: Tongue,
    message: &[u8],
    gathered: impl Iterator<Item = (u32, &'a [u8])>,
    error_of: impl Fn(&str) -> Error,
) -> Route {
    match tongue.read(message) {
        Asked::Call { request, route, .. } => {
            Caller { route, id: request.id() }.write_error(out, &error_of(&request.method));
            route
        }
        Asked::Batch { batch, route, .. } => {
            write_batch(out, route, &batch, gathered, error_of);
            route
        }
        Asked::Nothing { caller, error } => {
            caller.write_error(out, &error);
            caller.route
        }
        Asked::Page { page, route } => {
            route.write_page(out, &page, false);
            route
        }
    }
}

/// The answers that there are, and an error for each call without one that wants one, in the order of the calls.
fn write_batch<'a>(
    out: &mut Vec<u8>,
    route: Route,
    batch: &rpc::Batch<'_>,
    gathered: impl Iterator<Item = (u32, &'a [u8])>,
    error_of: impl Fn(&str) -> Error,
) {
    let answers: HashMap<u32, &[u8]> = gathered.collect();
    let whole = out.len();
    let begun = route.begin(out);
    let first = out.len();
    for (index, member) in (0..).zip(batch.members()) {
        let before = out.len();
        out.push(if before == first { b'[' } else { b',' });
        let start = out.len();
        match (answers.get(&index), member.request) {
            (Some(answer), _) => out.extend_from_slice(answer),
            (None, Ok(request)) if request.is_notification() => {}
            (None, Ok(request)) => {
                let caller = Caller { route: route.of_member(), id: request.id() };
                caller.write_error(out, &error_of(&request.method));
            }
            (None, Err(rejected)) => {
                Caller { route: route.of_member(), id: rejected.id }.write_error(out, &rejected.error);
            }
        }
        if out.len() == start {
            out.truncate(before);
        }
    }
    if out.len() == first {
        out.truncate(whole);
        return route.write_nothing(out);
    }
    out.push(b']');
    if let Err(too_long) = route.end(out, begun, None) {
        Caller { route, id: None }.write_error(out, &Error::answer_too_long(&too_long));
    }
}
