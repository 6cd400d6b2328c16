//! What stands in a call's way in this worker: the [`Checks`] that [`decide`] asks, and what a refused caller is told.

use std::time::Duration;

use super::caller::Whom;
use super::concurrency::{Entry, Who};
use super::decide::{Checks, RejectReason, decide};
use super::dispatch::Refused;
use super::job::Job;
use super::message::Parsed;
use super::ticket::Place;
use crate::rpc::{Error, MethodIndex, Span};
use crate::worker::connection::{Answered, Connection, Locked};
use crate::worker::guard::buffers::{Certainty, Expected, LITTLE};
use crate::worker::guard::quarantine::{Pass, Shut};
use crate::worker::shared::Shared;
use crate::worker::threads::worker_thread::WorkerThread;

/// A call that is to be queued.
pub(in crate::worker) struct BeforeQueue<'a> {
    pub(in crate::worker) shared: &'a Shared,
    pub(in crate::worker) who: Who,
    /// None where a thread of the pool has to parse the message first.
    pub(in crate::worker) method: Option<MethodIndex>,
    pub(in crate::worker) allowed: Duration,
    /// What goes to a thread alone is looked at when that comes to it: there may be room again.
    pub(in crate::worker) has_memory: bool,
}

impl Checks for BeforeQueue<'_> {
    type Place = Place;

    fn has_memory(&mut self) -> bool {
        self.has_memory
    }

    fn quarantine(&mut self) -> Result<(), (MethodIndex, Shut)> {
        match self.method {
            Some(method) => self.shared.quarantine.admits(method).map_err(|shut| (method, shut)),
            None => Ok(()),
        }
    }

    fn place(&mut self) -> Result<Place, Refused> {
        self.shared.admit(self.who, self.method, self.allowed)
    }
}

/// A call that has waited in the queue before anybody knew its method: only the method's own list may keep it now.
pub(in crate::worker) struct AfterParsing<'a> {
    pub(in crate::worker) shared: &'a Shared,
    pub(in crate::worker) job: &'a Job,
    pub(in crate::worker) call: Parsed,
}

impl Checks for AfterParsing<'_> {
    type Place = Entry;

    fn has_memory(&mut self) -> bool {
        true
    }

    fn quarantine(&mut self) -> Result<(), (MethodIndex, Shut)> {
        let method = self.call.method;
        self.shared.quarantine.admits(method).map_err(|shut| (method, shut))
    }

    fn place(&mut self) -> Result<Entry, Refused> {
        self.shared.enter(self.job, self.call)
    }
}

/// A call that this thread is about to run.
struct BeforeRun<'a, 'b> {
    thread: &'a mut WorkerThread,
    state: &'a Locked<'b>,
    call: &'a Parsed,
}

impl Checks for BeforeRun<'_, '_> {
    type Place = ();

    fn has_memory(&mut self) -> bool {
        let (thread, call) = (&mut *self.thread, self.call);
        thread.expects = 0;
        if call.caller.reply.is_silent() {
            return true;
        }
        let unsent = self.state.output.len() + self.state.gathered();
        let expected = thread.shared.expected_of(self.state.connection, call);
        thread.expects = expected.more;
        thread.shared.buffers.have_room_for(expected, unsent)
    }

    /// Uses the trial up, where there is one.
    fn quarantine(&mut self) -> Result<(), (MethodIndex, Shut)> {
        let method = self.call.method;
        match self.thread.shared.quarantine.enter(method) {
            Ok(Pass::Free) => {}
            Ok(Pass::Trial) => self.thread.trial = Some(method),
            Err(shut) => return Err((method, shut)),
        }
        Ok(())
    }

    /// It has this thread.
    fn place(&mut self) -> Result<(), Refused> {
        Ok(())
    }
}

/// What a refused caller is told depends on.
#[derive(Debug, Clone, Copy)]
pub(in crate::worker) struct RefusedCall {
    pub(in crate::worker) who: Who,
    /// None where the message was not parsed.
    pub(in crate::worker) method: Option<MethodIndex>,
    /// What the call was allowed from its arrival on.
    pub(in crate::worker) allowed: Duration,
}

impl Shared {
    /// Why a call is given up that waited: its time is up, or its turn did not come within `queue_wait`.
    pub(in crate::worker) fn late_or_crowded(&self, is_late: bool, about: RefusedCall) -> RejectReason {
        if is_late {
            RejectReason::Late
        } else {
            RejectReason::Crowded(self.refused(about.who, about.method))
        }
    }

    /// What the answer of a call is expected to add: where it is there, the call's own params are not held any more.
    fn expected_of(&self, connection: &Connection, call: &Parsed) -> Expected {
        let params = call.params.map_or(0, Span::len);
        let more = self.answer_sizes.expected(call.method).saturating_sub(params);
        match connection.answer_size.expected() {
            _ if more < LITTLE => Expected { more, certainty: Certainty::Method },
            Some(own) => Expected { more: own.saturating_sub(params), certainty: Certainty::Connection },
            None => Expected { more: 0, certainty: Certainty::Unknown },
        }
    }
}

impl WorkerThread {
    /// Decides about a call right before this thread runs it.
    pub(in crate::worker) fn may_run(
        &mut self,
        state: &Locked<'_>,
        call: &Parsed,
    ) -> Result<(), RejectReason> {
        let now = self.now;
        decide(call.deadline, &mut BeforeRun { thread: self, state, call }, now)
    }

    /// Answers a call that is refused, or each call of a batch that nobody has taken apart.
    pub(in crate::worker) fn refuse(
        &mut self,
        state: &mut Locked<'_>,
        refusal: RejectReason,
        (whom, message): (Whom, &[u8]),
        about: RefusedCall,
        answered: Answered<'_>,
    ) {
        let error = self.error_of(refusal, about);
        self.answer_unrun(state, (whom, message), answered, &error);
    }

    /// Counts a refusal, and says what its caller is told.
    pub(in crate::worker) fn error_of(
        &mut self,
        refusal: RejectReason,
        RefusedCall { who, method, allowed }: RefusedCall,
    ) -> Error {
        match refusal {
            RejectReason::Late => {
                self.row.deadline_exceeded();
                Error::deadline(allowed)
            }
            RejectReason::NoMemory => {
                self.row.refused();
                Error::overloaded(self.shared.refused_memory(who, method).retry_after)
            }
            RejectReason::Crowded(refused) => {
                self.row.refused();
                Error::overloaded(refused.retry_after)
            }
            RejectReason::Quarantined(method, shut) => self.shared.quarantined(method, shut),
        }
    }
}
