//! The places of calls on their way to a thread: in the queue, in their method's list, in a thread that does not come back.
//!
//! Each is taken and given back once, whoever gives a call up or ends it; what decides is the call's ticket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::begin::{Job, Parsed};
use crate::arena::Key;
use crate::rpc::MethodIndex;
use crate::sys::clock;
use crate::worker::concurrency::Entry;
use crate::worker::connection::InFlight;
use crate::worker::dispatch::Refused;
use crate::worker::duty::Task;
use crate::worker::overdue::Run;
use crate::worker::ticket::{Place, Ticket};
use crate::worker::{Due, Shared};

impl Shared {
    /// Decides about a call with `allowed` until its deadline: the place that it gets.
    pub(super) fn admit(&self, method: Option<MethodIndex>, allowed: Duration) -> Result<Place, Refused> {
        let entry = match method {
            Some(method) => self.concurrency.enter(method, allowed)?,
            // Who parses it asks.
            None => Entry::Go,
        };
        match entry {
            Entry::Wait => Ok(Place::Listed),
            Entry::Go => match (self.gate.admit(allowed), method) {
                (Ok(()), _) => Ok(Place::Queued),
                (Err(refused), Some(method)) => {
                    self.release(method, clock::monotonic_ns());
                    Err(refused)
                }
                (Err(refused), None) => Err(refused),
            },
        }
    }

    /// A call that was admitted is not run after all.
    pub(super) fn not_admitted(&self, place: Place, method: Option<MethodIndex>) {
        match (place, method) {
            (Place::Listed, Some(method)) => self.concurrency.gave_up(method),
            (_, method) => self.leave_queue(method),
        }
    }

    /// What a caller is told for whose call there was no room.
    pub(super) fn full(&self) -> Refused {
        Refused { retry_after: self.gate.retry_after() }
    }

    /// Puts a job where its call was admitted to. False where the queue has no room: its place is given back.
    pub(super) fn dispatch(&self, place: Place, job: Job) -> bool {
        let (Place::Listed, Some(method)) = (place, job.ticket.method()) else {
            return self.enqueue(job);
        };
        match self.concurrency.wait(method, Arc::clone(&job.ticket), job, |job| self.forget(&job)) {
            None => true,
            Some(job) => {
                job.ticket.leave_list();
                self.gate.began_unasked();
                self.enqueue(job)
            }
        }
    }

    /// Asks whether a call may run that nobody has asked about, because a thread had to parse it first. One that has to wait
    /// is in its method's list then, and no longer the thread's.
    pub(super) fn enter(&self, job: &Job, call: Parsed) -> Result<Entry, Refused> {
        if self.concurrency.enter(call.method, call.allowed)? == Entry::Go {
            return Ok(Entry::Go);
        }
        let waits = Job { call: Some(call), ..job.clone() };
        let goes =
            self.concurrency.wait(call.method, Arc::clone(&job.ticket), waits, |job| self.forget(&job));
        Ok(if goes.is_some() { Entry::Go } else { Entry::Wait })
    }

    /// A call of the method has run for so long, and has ended at `now_ns`.
    pub(super) fn leave(&self, method: MethodIndex, took: Duration, now_ns: u64) {
        if self.concurrency.limits(method) {
            self.concurrency.ran(method, took);
            self.release(method, now_ns);
        }
    }

    /// A call of the method runs no longer, or will not: the next one goes.
    pub(super) fn release(&self, method: MethodIndex, now_ns: u64) {
        if let Some(job) = self.concurrency.leave(method, now_ns, |job| self.forget(&job)) {
            self.gate.began_unasked();
            if let Some(task) = self.put(Task::Run(job)) {
                self.drop_task(task);
            }
        }
    }

    /// A call has left its connection without the answer of a thread; what it had is given back.
    pub(in crate::worker) fn gave_up(&self, key: Key, call: &InFlight) {
        let Some(batch) = call.apart() else {
            // The thread that has it, or will take it out of the queue, says when its message is gone.
            self.buffers.hold_on(call.message.len());
            return self.gave_up_ticket((key, call.number), &call.ticket, call.deadline);
        };
        for member in &batch.begun {
            self.gave_up_ticket((key, member.number), &member.ticket, member.deadline);
        }
    }

    /// The same of whatever has this ticket, number and deadline.
    pub(super) fn gave_up_ticket(&self, run: Run, ticket: &Ticket, deadline: Instant) {
        let method = ticket.method();
        match (ticket.give_up(), method) {
            (Place::Listed, Some(method)) => self.concurrency.gave_up(method),
            (Place::Queued, method) => self.leave_queue(method),
            (Place::Taken, method) => self.is_overdue(run, method, deadline),
            (Place::GivenUp | Place::Listed, _) => {}
        }
    }

    /// A call that no thread has begun goes to another worker: the places that it has here are given back. Whoever comes to its
    /// job finds that.
    pub(in crate::worker) fn withdraw(&self, call: &InFlight) {
        match call.apart() {
            Some(batch) => batch.begun.iter().for_each(|member| self.withdraw_ticket(&member.ticket)),
            None => {
                self.buffers.hold_on(call.message.len());
                self.withdraw_ticket(&call.ticket);
            }
        }
    }

    fn withdraw_ticket(&self, ticket: &Ticket) {
        let method = ticket.method();
        match (ticket.give_up(), method) {
            (Place::Listed, Some(method)) => self.concurrency.gave_up(method),
            (Place::Queued, method) => self.leave_queue(method),
            // A thread has it that waits for the connection's lock: it gives the place back itself.
            (Place::Taken | Place::GivenUp | Place::Listed, _) => {}
        }
    }

    /// Nobody waits for a call with this deadline, and a thread is in it.
    pub(super) fn is_overdue(&self, run: Run, method: Option<MethodIndex>, deadline: Instant) {
        let Some(at) = deadline.checked_add(self.stuck) else { return };
        self.overdue.lock().left(run, method, at);
        self.remind(at, Due::Stuck(run.0, run.1));
    }

    /// The thread of a call that nobody waited for is back.
    pub(super) fn came_back(&self, run: Run) {
        if let Some(at) = self.overdue.lock().came_back(run) {
            self.deadlines.remove(at, Due::Stuck(run.0, run.1));
            if self.is_ending() {
                self.wake_poller();
            }
        }
    }

    fn leave_queue(&self, method: Option<MethodIndex>) {
        self.gate.left();
        if let Some(method) = method {
            self.release(method, clock::monotonic_ns());
        }
        if self.wants_thread.load(Ordering::SeqCst) {
            self.wake_poller();
        }
    }

    /// Puts a job into the queue whose call has a place there. False where there is no room: its place is given back.
    pub(super) fn enqueue(&self, job: Job) -> bool {
        let Some(Task::Run(job)) = self.put(Task::Run(job)) else {
            return true;
        };
        job.ticket.give_up();
        self.leave_queue(job.ticket.method());
        false
    }

    /// Puts a task into the queue, or gives it back where that has no room.
    pub(in crate::worker) fn put(&self, task: Task) -> Option<Task> {
        let is_over = |task: &Task| matches!(task, Task::Run(job) if job.ticket.is_given_up());
        self.queue.put(task, is_over, |task| self.drop_task(task)).err()
    }

    /// A task that no thread will see. Where its call still waits, its caller is told that when it has waited enough.
    fn drop_task(&self, task: Task) {
        match task {
            Task::Run(job) => {
                if job.ticket.give_up() == Place::Queued {
                    self.leave_queue(job.ticket.method());
                }
                self.forget(&job);
            }
            Task::Watch => self.watch_was_asked_for(),
        }
    }

    /// A call that was given up is over, and its message with it. Those of a batch share one, which nobody accounts for
    /// once the batch has left its connection.
    pub(super) fn forget(&self, job: &Job) {
        if job.member.is_none() {
            self.let_go(job.message.len());
        }
    }

    /// A message of so many bytes is gone that was [held on](crate::worker::buffers::Buffers::hold_on) to.
    pub(super) fn let_go(&self, bytes: usize) {
        if self.buffers.let_go(bytes) {
            self.wake_poller();
        }
    }
}
