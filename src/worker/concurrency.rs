//! How many calls of a method may run at once: `[methods.NAME] concurrency`.
//!
//! Calls beyond that wait in a list of their method, in order of arrival, and hold no thread and no place in the queue
//! meanwhile; a [`Gate`] of the method's own bounds their number and their wait as the worker's does those of the queue.
//! Whoever ends a call of the method is given the next one and sends it on its way. A method without the setting costs one
//! look at an empty list.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::dispatch::{Gate, Refused};
use super::ticket::Ticket;
use crate::rpc::MethodIndex;

/// The limits of all methods that have one. `J` is what waits.
#[derive(Debug)]
pub(super) struct Concurrency<J> {
    /// By a method's number; empty where no method has a limit.
    limits: Vec<Option<Limit<J>>>,
}

#[derive(Debug)]
struct Limit<J> {
    most: usize,
    /// Calls that wait, of which some may have been given up: beyond so many it is looked which.
    longest: usize,
    gate: Gate,
    line: Mutex<Line<J>>,
}

#[derive(Debug)]
struct Line<J> {
    /// Calls that are in the queue or run.
    running: usize,
    waiting: VecDeque<(Arc<Ticket>, J)>,
}

/// What is decided about a call that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    /// It counts as running from now on.
    Go,
    /// It is to [wait](Concurrency::wait).
    Wait,
}

impl<J> Concurrency<J> {
    /// For methods of which each may have a limit; `queue` and `queue_wait` bound what waits for each.
    pub(super) fn new(limits: Vec<Option<usize>>, queue: usize, queue_wait: Duration) -> Self {
        if limits.iter().all(Option::is_none) {
            return Self { limits: Vec::new() };
        }
        let limit = |most| Limit {
            most,
            longest: queue.saturating_mul(2),
            gate: Gate::new(most, queue, queue_wait),
            line: Mutex::new(Line { running: 0, waiting: VecDeque::new() }),
        };
        Self { limits: limits.into_iter().map(|most| most.map(limit)).collect() }
    }

    pub(super) fn limits(&self, method: MethodIndex) -> bool {
        self.limit(method).is_some()
    }

    /// Decides about a call with `allowed` until its deadline. One that goes must [leave](Self::leave).
    pub(super) fn enter(&self, method: MethodIndex, allowed: Duration) -> Result<Entry, Refused> {
        let Some(limit) = self.limit(method) else {
            return Ok(Entry::Go);
        };
        limit.gate.admit(allowed)?;
        let goes = limit.line.lock().lets_in(limit.most);
        Ok(if goes { Entry::Go } else { Entry::Wait })
    }

    /// Lets a call in if it need not wait. One that is let in must [leave](Self::leave).
    pub(super) fn enter_at_once(&self, method: MethodIndex) -> bool {
        let Some(limit) = self.limit(method) else {
            return true;
        };
        let goes = limit.line.lock().lets_in(limit.most);
        if goes {
            limit.gate.began_unasked();
        }
        goes
    }

    /// Has a call wait that [`enter`](Self::enter) sent here. It is returned where it can go after all, because one has left
    /// in between. `over` is given jobs that were given up long ago.
    pub(super) fn wait(
        &self,
        method: MethodIndex,
        ticket: Arc<Ticket>,
        job: J,
        mut over: impl FnMut(J),
    ) -> Option<J> {
        let Some(limit) = self.limit(method) else {
            return Some(job);
        };
        let mut line = limit.line.lock();
        if line.lets_in(limit.most) {
            return Some(job);
        }
        if line.waiting.len() >= limit.longest {
            for (ticket, job) in std::mem::take(&mut line.waiting) {
                if ticket.is_given_up() {
                    over(job);
                } else {
                    line.waiting.push_back((ticket, job));
                }
            }
        }
        ticket.enter_list();
        line.waiting.push_back((ticket, job));
        None
    }

    /// A call that was let in has ended, at `now_ns`, or was given up in the queue. The next one, if any: it counts as
    /// running, and is on its way to the queue. `over` is given the jobs that were given up before it.
    pub(super) fn leave(&self, method: MethodIndex, now_ns: u64, mut over: impl FnMut(J)) -> Option<J> {
        let limit = self.limit(method)?;
        limit.gate.ended(now_ns);
        let mut line = limit.line.lock();
        line.running = line.running.saturating_sub(1);
        while line.running < limit.most {
            let (ticket, job) = line.waiting.pop_front()?;
            if ticket.leave_list() {
                line.running += 1;
                return Some(job);
            }
            over(job);
        }
        None
    }

    /// A call that waited was given up.
    pub(super) fn gave_up(&self, method: MethodIndex) {
        if let Some(limit) = self.limit(method) {
            limit.gate.left();
        }
    }

    /// A run of the method took this long.
    pub(super) fn ran(&self, method: MethodIndex, took: Duration) {
        if let Some(limit) = self.limit(method) {
            limit.gate.ran(took);
        }
    }

    fn limit(&self, method: MethodIndex) -> Option<&Limit<J>> {
        self.limits.get(method.0)?.as_ref()
    }
}

impl<J> Line<J> {
    /// Nobody overtakes those that wait.
    fn lets_in(&mut self, most: usize) -> bool {
        let goes = self.running < most && self.waiting.is_empty();
        self.running += usize::from(goes);
        goes
    }
}

#[cfg(test)]
mod tests {
    use super::super::ticket::Place;
    use super::*;

    const FREE: MethodIndex = MethodIndex(0);
    const LIMITED: MethodIndex = MethodIndex(1);
    const LONG: Duration = Duration::from_secs(30);

    fn limited(most: usize, queue: usize) -> Concurrency<u32> {
        Concurrency::new(vec![None, Some(most)], queue, Duration::from_secs(1))
    }

    fn ticket() -> Arc<Ticket> {
        Arc::new(Ticket::new(Place::Queued, Some(LIMITED)))
    }

    fn waits(limits: &Concurrency<u32>, job: u32) -> Arc<Ticket> {
        let ticket = ticket();
        assert_eq!(limits.enter(LIMITED, LONG), Ok(Entry::Wait), "job {job}");
        assert_eq!(limits.wait(LIMITED, Arc::clone(&ticket), job, drop), None, "job {job}");
        ticket
    }

    #[test]
    fn calls_beyond_the_limit_wait_and_go_in_the_order_in_which_they_came() {
        let limits = limited(2, 10);
        for _ in 0..2 {
            assert_eq!(limits.enter(LIMITED, LONG), Ok(Entry::Go));
        }
        let tickets = [1, 2, 3].map(|job| waits(&limits, job));
        assert!(!limits.enter_at_once(LIMITED), "the poller overtakes nobody either");
        for job in [1, 2, 3] {
            assert_eq!(limits.leave(LIMITED, 0, drop), Some(job));
        }
        assert!(tickets.iter().all(|ticket| ticket.take()), "all are in the queue now");
        for _ in 0..2 {
            assert_eq!(limits.leave(LIMITED, 0, drop), None);
        }
        assert!(limits.enter_at_once(LIMITED));
    }

    #[test]
    fn a_call_that_was_given_up_is_passed_over() {
        let limits = limited(1, 10);
        assert!(limits.enter_at_once(LIMITED));
        let [given_up, _next] = [1, 2].map(|job| waits(&limits, job));
        assert_eq!(given_up.give_up(), Place::Listed);
        limits.gave_up(LIMITED);
        let mut over = Vec::new();
        assert_eq!(limits.leave(LIMITED, 0, |job| over.push(job)), Some(2));
        assert_eq!(over, [1]);
    }

    #[test]
    fn one_that_is_sent_to_wait_goes_after_all_when_nobody_is_left_to_call_it() {
        let limits = limited(1, 10);
        assert_eq!(limits.enter(LIMITED, LONG), Ok(Entry::Go));
        assert_eq!(limits.enter(LIMITED, LONG), Ok(Entry::Wait));
        assert_eq!(limits.leave(LIMITED, 0, drop), None);
        assert_eq!(limits.wait(LIMITED, ticket(), 7, drop), Some(7));
        assert!(!limits.enter_at_once(LIMITED), "it counts as running");
    }

    #[test]
    fn so_many_wait_and_no_more_and_those_that_gave_up_make_room() {
        let limits = limited(1, 2);
        assert_eq!(limits.enter(LIMITED, LONG), Ok(Entry::Go));
        for round in 0..20 {
            let tickets = [1, 2].map(|job| waits(&limits, job));
            assert!(limits.enter(LIMITED, LONG).is_err(), "round {round}");
            for ticket in tickets {
                assert_eq!(ticket.give_up(), Place::Listed);
                limits.gave_up(LIMITED);
            }
        }
        let kept = limits.limits[1].as_ref().map(|limit| limit.line.lock().waiting.len());
        assert!(kept.is_some_and(|kept| kept <= 5), "{kept:?} entries of calls that gave up");
    }

    #[test]
    fn a_wait_that_would_be_too_long_is_refused() {
        let limits = limited(1, 100);
        assert_eq!(limits.enter(LIMITED, LONG), Ok(Entry::Go));
        limits.ran(LIMITED, Duration::from_millis(400));
        waits(&limits, 1);
        assert_eq!(limits.enter(LIMITED, Duration::from_millis(700)).ok(), None, "its own time is too short");
        waits(&limits, 2);
        let refused = limits.enter(LIMITED, LONG).err();
        assert_eq!(refused, Some(Refused { retry_after: Duration::from_millis(800) }));
    }

    #[test]
    fn methods_without_a_limit_are_let_in_and_never_counted() {
        for limits in [limited(1, 1), Concurrency::new(vec![None, None], 1, LONG)] {
            for _ in 0..100 {
                assert_eq!(limits.enter(FREE, LONG), Ok(Entry::Go));
                assert!(limits.enter_at_once(FREE));
            }
            assert_eq!(limits.leave(FREE, 0, drop), None);
            assert!(!limits.limits(FREE));
        }
    }
}
