//! How many calls of a method may run at once: `[methods.NAME] concurrency`.
//!
//! Calls beyond that wait in a list of their method, where their callers take turns as in the queue, and hold no thread and no
//! place in the queue meanwhile; a [`Gate`] of the method's own bounds their number and their wait as the worker's does those of
//! the queue.
//! Whoever ends a call of the method is given the next one and sends it on its way. A method without the setting costs one
//! look at an empty list.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::rpc::MethodIndex;
use crate::sys::peer::AddressKey;
use crate::worker::call::dispatch::{Crowded, Gate};
use crate::worker::call::ticket::Ticket;
use crate::worker::call::turns::{Lane, Turn, Turns};

/// The limits of all methods that have one. `J` is what waits.
#[derive(Debug)]
pub(in crate::worker) struct Concurrency<J> {
    /// By a method's number; empty where no method has a limit.
    limits: Vec<Option<Limit<J>>>,
}

#[derive(Debug)]
struct Limit<J> {
    most: usize,
    gate: Gate,
    line: Mutex<Line<J>>,
}

#[derive(Debug)]
struct Line<J> {
    /// Calls that are in the queue or run.
    running: usize,
    waiting: Turns<(Lane, Arc<Ticket>, J)>,
    /// Where in `waiting` connections are of which calls wait, by where these are in the queue.
    lanes: HashMap<Lane, Lane>,
}

/// Whose call it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Who {
    pub(in crate::worker) address: AddressKey,
    /// The connection's place in the queue.
    pub(in crate::worker) lane: Lane,
}

impl Who {
    pub(in crate::worker) fn new(address: AddressKey, open: impl FnOnce(AddressKey) -> Lane) -> Self {
        Self { address, lane: open(address) }
    }
}

/// What is decided about a call that comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Entry {
    /// It counts as running from now on.
    Go,
    /// It is to [wait](Concurrency::wait).
    Wait,
}

impl<J> Concurrency<J> {
    /// For methods of which each may have a limit; `queue` and `queue_wait` bound what waits for each.
    pub(in crate::worker) fn new(limits: Vec<Option<usize>>, queue: usize, queue_wait: Duration) -> Self {
        if limits.iter().all(Option::is_none) {
            return Self { limits: Vec::new() };
        }
        let limit = |most| Limit {
            most,
            gate: Gate::new(most, queue, queue_wait),
            line: Mutex::new(Line { running: 0, waiting: Turns::new(None), lanes: HashMap::new() }),
        };
        Self { limits: limits.into_iter().map(|most| most.map(limit)).collect() }
    }

    pub(in crate::worker) fn limits(&self, method: MethodIndex) -> bool {
        self.limit(method).is_some()
    }

    /// Decides about a call with `allowed` until its deadline. One that goes must [leave](Self::leave).
    pub(in crate::worker) fn enter(
        &self,
        who: Who,
        method: MethodIndex,
        allowed: Duration,
    ) -> Result<Entry, Crowded> {
        let Some(limit) = self.limit(method) else {
            return Ok(Entry::Go);
        };
        limit.gate.admit(allowed, || limit.line.lock().turn(who))?;
        Ok(limit.enter())
    }

    /// As [`enter`](Self::enter) for a call whose place another has [left](Self::displace) to it.
    pub(in crate::worker) fn enter_instead(&self, method: MethodIndex) -> Entry {
        let Some(limit) = self.limit(method) else {
            return Entry::Go;
        };
        limit.gate.began_unasked();
        limit.enter()
    }

    /// Takes out the call that is to give way to one of this connection, if there is one. It counts until it was
    /// [given up](Self::gave_up).
    pub(in crate::worker) fn displace(&self, who: Who, method: MethodIndex) -> Option<J> {
        let mut line = self.limit(method)?.line.lock();
        let lane = line.open(who);
        let displaced = line.waiting.displace(lane);
        line.close_if_empty(who.lane);
        let (victim, _, job) = displaced?;
        line.close_if_empty(victim);
        Some(job)
    }

    /// How long a call of the method would wait in its list, where the first of those that run ends after `first_end`. None
    /// where the method has no limit.
    pub(in crate::worker) fn wait_of(
        &self,
        who: Who,
        method: MethodIndex,
        first_end: Option<Duration>,
    ) -> Option<Duration> {
        let limit = self.limit(method)?;
        let turn = limit.line.lock().turn(who);
        Some(limit.gate.wait(turn, first_end))
    }

    /// Lets a call in if it need not wait. One that is let in must [leave](Self::leave).
    pub(in crate::worker) fn enter_at_once(&self, method: MethodIndex) -> bool {
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
    /// in between.
    pub(in crate::worker) fn wait(
        &self,
        who: Who,
        method: MethodIndex,
        ticket: Arc<Ticket>,
        job: J,
    ) -> Option<J> {
        let Some(limit) = self.limit(method) else {
            return Some(job);
        };
        let mut line = limit.line.lock();
        if line.lets_in(limit.most) {
            return Some(job);
        }
        ticket.enter_list();
        let lane = line.open(who);
        line.waiting.push(lane, (who.lane, ticket, job)).err().map(|(_, _, job)| job)
    }

    /// A call that was let in has ended, at `now_ns`, or was given up in the queue. The next one, if any: it counts as
    /// running, and is on its way to the queue. `over` is given jobs that were given up on their way here.
    pub(in crate::worker) fn leave(
        &self,
        method: MethodIndex,
        now_ns: u64,
        mut over: impl FnMut(J),
    ) -> Option<J> {
        let limit = self.limit(method)?;
        limit.gate.ended(now_ns);
        let mut line = limit.line.lock();
        line.running = line.running.saturating_sub(1);
        while line.running < limit.most {
            let (lane, (owner, ticket, job)) = line.waiting.pop()?;
            // Its run is counted here.
            line.waiting.ended(lane);
            line.close_if_empty(owner);
            if ticket.leave_list() {
                line.running += 1;
                return Some(job);
            }
            over(job);
        }
        None
    }

    /// A call that waited was given up. Its job, unless it is on its way.
    pub(in crate::worker) fn gave_up(&self, who: Who, method: MethodIndex, ticket: &Ticket) -> Option<J> {
        let limit = self.limit(method)?;
        limit.gate.left();
        let mut line = limit.line.lock();
        let lane = *line.lanes.get(&who.lane)?;
        let (_, _, job) =
            line.waiting.remove(lane, |(_, other, _)| std::ptr::eq(&raw const **other, ticket))?;
        line.close_if_empty(who.lane);
        Some(job)
    }

    /// A run of the method took this long.
    pub(in crate::worker) fn ran(&self, method: MethodIndex, took: Duration) {
        if let Some(limit) = self.limit(method) {
            limit.gate.ran(took);
        }
    }

    fn limit(&self, method: MethodIndex) -> Option<&Limit<J>> {
        self.limits.get(method.0)?.as_ref()
    }
}

impl<J> Limit<J> {
    fn enter(&self) -> Entry {
        if self.line.lock().lets_in(self.most) { Entry::Go } else { Entry::Wait }
    }
}

impl<J> Line<J> {
    /// Nobody overtakes those that wait.
    fn lets_in(&mut self, most: usize) -> bool {
        let goes = self.running < most && self.waiting.len() == 0;
        self.running += usize::from(goes);
        goes
    }

    fn turn(&mut self, who: Who) -> Turn {
        let lane = self.open(who);
        let turn = self.waiting.turn(lane);
        self.close_if_empty(who.lane);
        turn
    }

    fn open(&mut self, who: Who) -> Lane {
        *self.lanes.entry(who.lane).or_insert_with(|| self.waiting.open(who.address))
    }

    /// A connection of which nothing waits has no place here.
    fn close_if_empty(&mut self, owner: Lane) {
        if let Some(lane) = self.lanes.get(&owner).copied().filter(|lane| self.waiting.is_empty(*lane)) {
            self.lanes.remove(&owner);
            self.waiting.close(lane);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::worker::call::ticket::Place;

    const FREE: MethodIndex = MethodIndex(0);
    const LIMITED: MethodIndex = MethodIndex(1);
    const LONG: Duration = Duration::from_secs(30);

    fn limited(most: usize, queue: usize) -> Concurrency<u32> {
        Concurrency::new(vec![None, Some(most)], queue, Duration::from_secs(1))
    }

    /// The same caller each time.
    fn who() -> Who {
        let mut turns = Turns::<()>::new(None);
        Who { address: AddressKey::Unix(0), lane: turns.open(AddressKey::Unix(0)) }
    }

    fn ticket() -> Arc<Ticket> {
        Arc::new(Ticket::new(Place::Queued, Some(LIMITED)))
    }

    fn waits(limits: &Concurrency<u32>, job: u32) -> Arc<Ticket> {
        let ticket = ticket();
        assert_eq!(limits.enter(who(), LIMITED, LONG), Ok(Entry::Wait), "job {job}");
        assert_eq!(limits.wait(who(), LIMITED, Arc::clone(&ticket), job), None, "job {job}");
        ticket
    }

    #[test]
    fn calls_beyond_the_limit_wait_and_go_in_the_order_in_which_they_came() {
        let limits = limited(2, 10);
        for _ in 0..2 {
            assert_eq!(limits.enter(who(), LIMITED, LONG), Ok(Entry::Go));
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
        assert_eq!(limits.gave_up(who(), LIMITED, &given_up), Some(1));
        assert_eq!(limits.leave(LIMITED, 0, |_| panic!("it is out already")), Some(2));
    }

    #[test]
    fn one_that_is_sent_to_wait_goes_after_all_when_nobody_is_left_to_call_it() {
        let limits = limited(1, 10);
        assert_eq!(limits.enter(who(), LIMITED, LONG), Ok(Entry::Go));
        assert_eq!(limits.enter(who(), LIMITED, LONG), Ok(Entry::Wait));
        assert_eq!(limits.leave(LIMITED, 0, drop), None);
        assert_eq!(limits.wait(who(), LIMITED, ticket(), 7), Some(7));
        assert!(!limits.enter_at_once(LIMITED), "it counts as running");
    }

    #[test]
    fn so_many_wait_and_no_more_and_those_that_gave_up_make_room() {
        let limits = limited(1, 2);
        assert_eq!(limits.enter(who(), LIMITED, LONG), Ok(Entry::Go));
        for round in 0..20 {
            let tickets = [1, 2].map(|job| waits(&limits, job));
            assert!(limits.enter(who(), LIMITED, LONG).is_err(), "round {round}");
            for ticket in tickets {
                assert_eq!(ticket.give_up(), Place::Listed);
                assert!(limits.gave_up(who(), LIMITED, &ticket).is_some());
            }
        }
        let line = limits.limits[1].as_ref().unwrap().line.lock();
        assert_eq!((line.waiting.len(), line.lanes.len()), (0, 0), "nothing is left of those that gave up");
    }

    #[test]
    fn a_wait_that_would_be_too_long_is_refused() {
        let limits = limited(1, 100);
        assert_eq!(limits.enter(who(), LIMITED, LONG), Ok(Entry::Go));
        limits.ran(LIMITED, Duration::from_millis(400));
        waits(&limits, 1);
        assert_eq!(
            limits.enter(who(), LIMITED, Duration::from_millis(700)).ok(),
            None,
            "its own time is too short"
        );
        waits(&limits, 2);
        assert_eq!(limits.enter(who(), LIMITED, LONG), Err(Crowded::TooLong));
        let wait = limits.wait_of(who(), LIMITED, Some(Duration::from_millis(50)));
        assert_eq!(wait, Some(Duration::from_millis(850)), "the one that runs, and two that wait");
    }

    #[test]
    fn methods_without_a_limit_are_let_in_and_never_counted() {
        for limits in [limited(1, 1), Concurrency::new(vec![None, None], 1, LONG)] {
            for _ in 0..100 {
                assert_eq!(limits.enter(who(), FREE, LONG), Ok(Entry::Go));
                assert!(limits.enter_at_once(FREE));
            }
            assert_eq!(limits.leave(FREE, 0, drop), None);
            assert!(!limits.limits(FREE));
        }
    }

    #[test]
    fn callers_take_turns_and_who_has_most_waiting_gives_way() {
        let limits = limited(1, 4);
        let mut places = Turns::<()>::new(None);
        let [greedy, polite] = [1, 2].map(|uid| {
            let address = AddressKey::Unix(uid);
            Who { address, lane: places.open(address) }
        });
        let wait = |who, job| limits.wait(who, LIMITED, ticket(), job);
        assert_eq!(limits.enter(greedy, LIMITED, LONG), Ok(Entry::Go));
        for job in [11, 12, 13, 14] {
            assert_eq!((limits.enter(greedy, LIMITED, LONG), wait(greedy, job)), (Ok(Entry::Wait), None));
        }
        assert_eq!(limits.enter(greedy, LIMITED, LONG), Err(Crowded::Full));
        assert_eq!(limits.displace(greedy, LIMITED), None);
        assert_eq!(limits.enter(polite, LIMITED, LONG), Err(Crowded::Full));
        assert_eq!(limits.displace(polite, LIMITED), Some(14));
        assert_eq!(limits.gave_up(greedy, LIMITED, &ticket()), None, "it is out already");
        assert_eq!((limits.enter_instead(LIMITED), wait(polite, 21)), (Entry::Wait, None));
        let order = std::iter::from_fn(|| limits.leave(LIMITED, 0, drop));
        assert_eq!(order.collect::<Vec<_>>(), [11, 21, 12, 13]);
    }
}
