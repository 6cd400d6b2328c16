//! The places of calls on their way to a thread: in the queue, in their method's list, in a thread that does not come back.
//!
//! Each is taken and given back once, whoever gives a call up or ends it; what decides is the call's ticket.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::admission::RefusedCall;
use super::job::Job;
use super::message::Parsed;
use crate::rpc::MethodIndex;
use crate::sys::clock;
use crate::worker::call::concurrency::{Entry, Who};
use crate::worker::call::dispatch::{Crowded, Refused};
use crate::worker::call::ticket::{Place, Ticket};
use crate::worker::connection::{Answered, Connection, InFlight, Phase};
use crate::worker::due::Due;
use crate::worker::guard::overdue::Run;
use crate::worker::shared::Shared;
use crate::worker::threads::duty::Task;
use crate::worker::threads::poller_state::Todo;
use crate::worker::threads::worker_thread::WorkerThread;

impl Shared {
    /// Decides about a call with `allowed` until its deadline: the place that it gets. Where none is free another caller's may
    /// be, who has more.
    pub(in crate::worker) fn admit(
        &self,
        who: Who,
        method: Option<MethodIndex>,
        allowed: Duration,
    ) -> Result<Place, Refused> {
        let entry = match method {
            Some(method) => self.enter_list(who, method, allowed)?,
            // Who parses it asks.
            None => Entry::Go,
        };
        if entry == Entry::Wait {
            return Ok(Place::Listed);
        }
        match self.gate.admit(allowed, || self.queue.turn(who.lane)) {
            Ok(()) => Ok(Place::Queued),
            Err(Crowded::Full) if self.makes_room(who) => {
                self.gate.began_unasked();
                Ok(Place::Queued)
            }
            Err(Crowded::Full | Crowded::TooLong) => {
                let refused = self.refused(who, method);
                if let Some(method) = method {
                    self.release(method, clock::monotonic_ns());
                }
                Err(refused)
            }
        }
    }

    fn enter_list(&self, who: Who, method: MethodIndex, allowed: Duration) -> Result<Entry, Refused> {
        match self.concurrency.enter(who, method, allowed) {
            Ok(entry) => Ok(entry),
            Err(Crowded::Full) if self.makes_room_in_list(who, method) => {
                Ok(self.concurrency.enter_instead(method))
            }
            Err(Crowded::Full | Crowded::TooLong) => Err(self.refused(who, Some(method))),
        }
    }

    /// Has the newest call of whoever has most in the queue give way to one of this caller. False where that is the caller.
    fn makes_room(&self, who: Who) -> bool {
        while let Some(task) = self.queue.displace(who.lane) {
            let Task::Run(job) = task else { continue };
            if job.ticket.give_up() == Place::Queued {
                self.leave_queue(job.ticket.method());
                self.is_displaced(job);
                return true;
            }
            self.forget(&job);
        }
        false
    }

    /// The same in a method's list.
    fn makes_room_in_list(&self, who: Who, method: MethodIndex) -> bool {
        while let Some(job) = self.concurrency.displace(who, method) {
            if job.ticket.give_up() == Place::Listed {
                self.concurrency.gave_up(job.connection.who, method, &job.ticket);
                self.is_displaced(job);
                return true;
            }
            self.forget(&job);
        }
        false
    }

    /// Another connection's lock is held here, so the poller answers it.
    fn is_displaced(&self, job: Box<Job>) {
        self.for_poller.put(Todo::Displaced(job));
        self.wake_poller();
    }

    /// A call that was admitted is not run after all.
    pub(in crate::worker) fn not_admitted(&self, who: Who, place: Place, method: Option<MethodIndex>) {
        match (place, method) {
            (Place::Listed, Some(method)) => {
                // It is in no list yet.
                let _ = self.concurrency.gave_up(who, method, &Ticket::default());
            }
            (_, method) => self.leave_queue(method),
        }
    }

    /// What a caller is told for whose call there was no room: when its turn may come, as far as is known.
    pub(in crate::worker) fn refused(&self, who: Who, method: Option<MethodIndex>) -> Refused {
        Refused::with(self.wait_of(who, method))
    }

    /// What it is told where it is memory that lacks.
    pub(in crate::worker) fn refused_memory(&self, who: Who, method: Option<MethodIndex>) -> Refused {
        Refused::for_memory(self.wait_of(who, method))
    }

    fn wait_of(&self, who: Who, method: Option<MethodIndex>) -> Duration {
        let now_ns = clock::monotonic_ns();
        let wait = self.gate.wait(self.queue.turn(who.lane), self.runs.first_end(None, now_ns));
        let in_list = method.filter(|method| self.concurrency.limits(*method)).and_then(|method| {
            self.concurrency.wait_of(who, method, self.runs.first_end(Some(method), now_ns))
        });
        wait.max(in_list.unwrap_or_default())
    }

    /// Puts a job where its call was admitted to. False where the queue has no room: its place is given back.
    pub(in crate::worker) fn dispatch(&self, place: Place, job: Box<Job>) -> bool {
        let (Place::Listed, Some(method)) = (place, job.ticket.method()) else {
            return self.enqueue(job);
        };
        match self.concurrency.wait(job.connection.who, method, Arc::clone(&job.ticket), job) {
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
    pub(in crate::worker) fn enter(&self, job: &Job, call: Parsed) -> Result<Entry, Refused> {
        let who = job.connection.who;
        if self.enter_list(who, call.method, call.allowed)? == Entry::Go {
            return Ok(Entry::Go);
        }
        let waits = Box::new(Job { call: Some(call), ..job.clone() });
        let goes = self.concurrency.wait(who, call.method, Arc::clone(&job.ticket), waits);
        Ok(if goes.is_some() { Entry::Go } else { Entry::Wait })
    }

    /// A call of the method has run for so long, and has ended at `now_ns`.
    pub(in crate::worker) fn leave(&self, method: MethodIndex, took: Duration, now_ns: u64) {
        if self.concurrency.limits(method) {
            self.concurrency.ran(method, took);
            self.release(method, now_ns);
        }
    }

    /// A call of the method runs no longer, or will not: the next one goes.
    pub(in crate::worker) fn release(&self, method: MethodIndex, now_ns: u64) {
        if let Some(job) = self.concurrency.leave(method, now_ns, |job| self.forget(&job)) {
            self.gate.began_unasked();
            if let Some(job) = self.put(job) {
                self.drop_job(&job);
            }
        }
    }

    /// A call has left its connection without the answer of a thread; what it had is given back.
    pub(in crate::worker) fn gave_up(&self, connection: &Connection, call: &InFlight) {
        let Some(batch) = call.apart() else {
            // The thread that has it says when its message is gone.
            self.buffers.hold_on(call.message.len());
            return self.gave_up_ticket(connection, call.number, &call.ticket, call.deadline);
        };
        for member in &batch.begun {
            self.gave_up_ticket(connection, member.number, &member.ticket, member.deadline);
        }
    }

    /// The same of whatever has this ticket, number and deadline.
    pub(in crate::worker) fn gave_up_ticket(
        &self,
        connection: &Connection,
        number: u64,
        ticket: &Ticket,
        deadline: Instant,
    ) {
        if self.takes_back(connection.who, ticket) == Place::Taken {
            self.is_overdue((connection.key, number), ticket.method(), deadline);
        }
    }

    /// A call that no thread has begun goes to another worker: the places that it has here are given back. Whoever comes to its
    /// job finds that.
    pub(in crate::worker) fn withdraw(&self, connection: &Connection, call: &InFlight) {
        let tickets: &mut dyn Iterator<Item = &Ticket> = match call.apart() {
            Some(batch) => &mut batch.begun.iter().map(|member| &*member.ticket),
            None => {
                self.buffers.hold_on(call.message.len());
                &mut std::iter::once(&*call.ticket)
            }
        };
        for ticket in tickets {
            // A thread that has it waits for the connection's lock, and gives the place back itself.
            self.takes_back(connection.who, ticket);
        }
    }

    /// Gives a call up, and takes it out of wherever it waits. Returns where it was.
    fn takes_back(&self, who: Who, ticket: &Ticket) -> Place {
        let (place, method) = (ticket.give_up(), ticket.method());
        match (place, method) {
            (Place::Listed, Some(method)) => {
                if let Some(job) = self.concurrency.gave_up(who, method, ticket) {
                    self.forget(&job);
                }
            }
            (Place::Queued, method) => {
                let is_it = |task: &Task| matches!(task, Task::Run(job) if std::ptr::eq(&raw const *job.ticket, ticket));
                if let Some(Task::Run(job)) = self.queue.remove(who.lane, is_it) {
                    self.forget(&job);
                }
                self.leave_queue(method);
            }
            (Place::Taken | Place::GivenUp | Place::Listed, _) => {}
        }
        place
    }

    /// Nobody waits for a call with this deadline, and a thread is in it.
    pub(in crate::worker) fn is_overdue(&self, run: Run, method: Option<MethodIndex>, deadline: Instant) {
        let Some(at) = deadline.checked_add(self.stuck) else { return };
        self.overdue.lock().left(run, method, at);
        self.remind(at, Due::Stuck(run.0, run.1));
    }

    /// The thread of a call that nobody waited for is back.
    pub(in crate::worker) fn came_back(&self, run: Run) {
        if let Some(at) = self.overdue.lock().came_back(run) {
            self.deadlines.remove(at, Due::Stuck(run.0, run.1));
            if self.is_ending() {
                self.wake_poller();
            }
        }
    }

    /// There is more than the threads can do, also without `own` of the calls that run or wait.
    pub(in crate::worker) fn is_busy_with_others(&self, own: usize) -> bool {
        self.gate.is_busy_with_others(own, self.queue.held_back())
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
    pub(in crate::worker) fn enqueue(&self, job: Box<Job>) -> bool {
        let Some(job) = self.put(job) else {
            return true;
        };
        job.ticket.give_up();
        self.leave_queue(job.ticket.method());
        false
    }

    /// The job, where the queue has no room.
    fn put(&self, job: Box<Job>) -> Option<Box<Job>> {
        let lane = job.connection.who.lane;
        match self.queue.put(lane, Task::Run(job)) {
            Err(Task::Run(job)) => Some(job),
            Err(Task::Watch) | Ok(()) => None,
        }
    }

    /// Waits for the next task of a thread of the pool.
    pub(in crate::worker) fn next_task(&self) -> Task {
        self.queue.take(Task::is_wanted, |task| self.drop_task(&task))
    }

    #[cfg(any(test, fuzzing))]
    pub(in crate::worker) fn next_task_now(&self) -> Option<Task> {
        self.queue.try_take(Task::is_wanted, |task| self.drop_task(&task))
    }

    fn drop_task(&self, task: &Task) {
        if let Task::Run(job) = task {
            self.drop_job(job);
        }
    }

    /// A job that no thread will see. Where its call still waits, its caller is told that when it has waited enough.
    fn drop_job(&self, job: &Job) {
        if job.ticket.give_up() == Place::Queued {
            self.leave_queue(job.ticket.method());
        }
        self.forget(job);
    }

    /// A call that was given up is over, and its message with it. Those of a batch share one, which nobody accounts for
    /// once the batch has left its connection.
    pub(in crate::worker) fn forget(&self, job: &Job) {
        if job.member.is_none() {
            self.let_go(job.message.len());
        }
    }

    /// A message of so many bytes is gone that was [held on](crate::worker::guard::buffers::Buffers::hold_on) to.
    pub(in crate::worker) fn let_go(&self, bytes: usize) {
        if self.buffers.let_go(bytes) {
            self.wake_poller();
        }
    }
}

impl WorkerThread {
    /// Answers a call that gave way in the queue to another caller's.
    pub(in crate::worker) fn displaced(&mut self, job: &Job) {
        if let Some(member) = job.member {
            return self.member_is_displaced(job, member);
        }
        let mut state = job.connection.lock();
        // It may have been given up meanwhile, or let go with its connection and be back.
        let at = state.calls.iter().position(|call| Arc::ptr_eq(&call.ticket, &job.ticket));
        let Some(at) = at.filter(|_| state.phase != Phase::Closed) else {
            drop(state);
            return self.shared.forget(job);
        };
        let call = state.calls.swap_remove(at);
        let about =
            RefusedCall { who: job.connection.who, method: job.ticket.method(), allowed: call.allowed };
        let refusal = self.shared.late_or_crowded(false, about);
        self.refuse(&mut state, refusal, (call.caller, &call.message), about, Answered::Call(&call));
        self.go_on(&mut state);
    }
}
