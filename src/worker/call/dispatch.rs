//! Whether a call may wait for a pool thread, or is refused at once.
//!
//! The queue is bounded in length and in time: a call that would wait longer than `queue_wait`, or than its own
//! deadline allows, is better told now. The estimate is that of its own turn: the calls that go before it × mean run
//! time ÷ threads.
//!
//! Calls are counted from their admission to their end, not by where they are: a call that lies in the queue
//! while an idle thread wakes up for it does not wait.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::time::Duration;

use crate::worker::call::turns::Turn;
use crate::worker::threads::runs::next_mean;

/// Within these bounds a caller is told when to try again. Sooner it would only add to the load, and nobody knows what will be
/// later.
const RETRY_AFTER: RangeInclusive<Duration> = Duration::from_millis(10)..=Duration::from_secs(60);

/// When to try again where memory lacks, at the earliest. Nothing is measured that tells when clients read.
const MEMORY: Duration = Duration::from_millis(100);

/// The gate before the queue.
#[derive(Debug)]
pub(in crate::worker) struct Gate {
    threads: usize,
    /// Calls that may wait.
    queue: usize,
    queue_wait: Duration,
    mean_ns: AtomicU64,
    /// Calls that were admitted and have not ended. For a moment it can be one too few: a poller that is relieved may be
    /// back, and its call have ended, before it was said that this [began](Self::began_unasked).
    unfinished: AtomicIsize,
    /// When the last call ended, on the monotonic clock.
    last_end_ns: AtomicU64,
}

/// A call is refused; the caller may try again after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Refused {
    pub(in crate::worker) retry_after: Duration,
}

/// Why a call may not wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Crowded {
    /// As many wait as may, and it may only take another's place.
    Full,
    /// Its turn would come too late.
    TooLong,
}

impl Refused {
    /// Of a call that would run `wait` later, as far as is known.
    pub(in crate::worker) fn with(wait: Duration) -> Self {
        Self { retry_after: wait.clamp(*RETRY_AFTER.start(), *RETRY_AFTER.end()) }
    }

    /// The same where memory lacks as well, which comes free when a client reads its answers.
    pub(in crate::worker) fn for_memory(wait: Duration) -> Self {
        Self::with(wait.max(MEMORY))
    }
}

impl Gate {
    pub(in crate::worker) fn new(threads: usize, queue: usize, queue_wait: Duration) -> Self {
        Self {
            threads: threads.max(1),
            queue,
            queue_wait,
            mean_ns: AtomicU64::new(0),
            unfinished: AtomicIsize::new(0),
            last_end_ns: AtomicU64::new(0),
        }
    }

    /// Decides about a call with `allowed` until its deadline, whose `turn` is asked for where it may have to wait. One that
    /// is admitted must be ended by [`ended`](Self::ended) or [`left`](Self::left).
    pub(in crate::worker) fn admit(
        &self,
        allowed: Duration,
        turn: impl FnOnce() -> Turn,
    ) -> Result<(), Crowded> {
        let before = self.unfinished.fetch_add(1, Ordering::SeqCst);
        if count(before) < self.threads {
            // A thread is free for it.
            return Ok(());
        }
        let decision = self.may_wait(turn(), allowed);
        if decision.is_err() {
            self.unfinished.fetch_sub(1, Ordering::SeqCst);
        }
        decision
    }

    /// A call is admitted without being asked about: to be ended like one that was.
    pub(in crate::worker) fn began_unasked(&self) {
        self.unfinished.fetch_add(1, Ordering::SeqCst);
    }

    /// Its turn comes when one more than the calls before it have ended; of the first that waits nothing is known but that.
    fn may_wait(&self, turn: Turn, allowed: Duration) -> Result<(), Crowded> {
        let calls = if turn.before == 0 { 0 } else { turn.before + 1 };
        let wait = self.time_of(calls, turn.width);
        // It is a mean. Without a margin every second call at the edge would be refused after all, when it has waited in vain.
        let wait = wait + wait / 8;
        if wait > self.queue_wait.min(allowed) {
            Err(Crowded::TooLong)
        } else if turn.waiting >= self.queue {
            Err(Crowded::Full)
        } else {
            Ok(())
        }
    }

    /// How long a call waits with this turn, where the first of those that run ends after `first_end`; None where none runs.
    pub(in crate::worker) fn wait(&self, turn: Turn, first_end: Option<Duration>) -> Duration {
        // A thread that is free is none for a caller that is held back.
        let is_free =
            count(self.unfinished.load(Ordering::Relaxed)) < self.threads && turn.width >= self.threads;
        let first_end = first_end.filter(|_| !is_free || turn.before > 0).unwrap_or_default();
        first_end.saturating_add(self.time_of(turn.before, turn.width))
    }

    /// What so many calls take on so many threads.
    fn time_of(&self, calls: usize, width: usize) -> Duration {
        let mean = u128::from(self.mean_ns.load(Ordering::Relaxed));
        let time = mean * calls as u128 / width.clamp(1, self.threads) as u128;
        Duration::from_nanos(u64::try_from(time).unwrap_or(u64::MAX))
    }

    /// A run took this long.
    pub(in crate::worker) fn ran(&self, took: Duration) {
        self.mean_ns.store(next_mean(self.mean_ns.load(Ordering::Relaxed), took), Ordering::Relaxed);
    }

    /// A call that was admitted occupies neither queue nor thread any more, since `now_ns`.
    pub(in crate::worker) fn ended(&self, now_ns: u64) {
        self.last_end_ns.store(now_ns, Ordering::Relaxed);
        self.unfinished.fetch_sub(1, Ordering::SeqCst);
    }

    /// Calls that wait for a thread.
    pub(in crate::worker) fn waiting(&self) -> usize {
        count(self.unfinished.load(Ordering::Relaxed)).saturating_sub(self.threads)
    }

    /// There is more than the threads can do, also without `own` of the calls that run or wait, and without those that are
    /// held back.
    pub(in crate::worker) fn is_busy_with_others(&self, own: usize, held_back: usize) -> bool {
        let unfinished = count(self.unfinished.load(Ordering::Relaxed)).saturating_sub(held_back);
        unfinished >= self.threads.saturating_add(own)
    }

    /// No call runs or waits.
    pub(in crate::worker) fn is_idle(&self) -> bool {
        count(self.unfinished.load(Ordering::SeqCst)) == 0
    }

    /// A call that was admitted was given up before a thread had it.
    pub(in crate::worker) fn left(&self) {
        self.unfinished.fetch_sub(1, Ordering::SeqCst);
    }

    /// For how long nothing has ended, when a call of a new connection would have to wait; None when it would not. Calls that
    /// are held back leave it a thread.
    pub(in crate::worker) fn busy_for(&self, now_ns: u64, held_back: usize) -> Option<Duration> {
        let unfinished = count(self.unfinished.load(Ordering::SeqCst)).saturating_sub(held_back);
        let all_busy = unfinished >= self.threads;
        let last_end_ns = self.last_end_ns.load(Ordering::Relaxed);
        all_busy.then(|| Duration::from_nanos(now_ns.saturating_sub(last_end_ns)))
    }
}

fn count(unfinished: isize) -> usize {
    usize::try_from(unfinished).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    /// All of its threads run a call.
    fn gate(threads: usize, mean: Duration) -> Gate {
        let gate = Gate::new(threads, 100, MS(1_000));
        gate.ran(mean);
        gate.unfinished.store(threads.cast_signed(), Ordering::Relaxed);
        gate
    }

    fn turn(before: usize, width: usize, waiting: usize) -> impl FnOnce() -> Turn {
        move || Turn { before, width, waiting }
    }

    #[test]
    fn calls_are_admitted_while_the_wait_for_their_turn_is_bearable() {
        let cases = [
            // threads, mean, before it, on so many threads, all that wait, allowed, admitted
            (1, MS(100), 7, 1, 7, MS(30_000), Ok(())),
            (1, MS(100), 8, 1, 8, MS(30_000), Err(Crowded::TooLong)),
            (4, MS(100), 34, 4, 34, MS(30_000), Ok(())),
            (4, MS(100), 35, 4, 35, MS(30_000), Err(Crowded::TooLong)),
            (4, MS(100), 34, 3, 34, MS(30_000), Err(Crowded::TooLong)),
            (4, MS(100), 2, 4, 99, MS(30_000), Ok(())),
            (1, MS(100), 3, 1, 3, MS(400), Err(Crowded::TooLong)),
            (1, MS(100), 2, 1, 2, MS(400), Ok(())),
            (1, MS(60_000), 0, 1, 0, MS(1), Ok(())),
            (1, MS(1), 99, 1, 99, MS(30_000), Ok(())),
            (1, MS(1), 2, 1, 100, MS(30_000), Err(Crowded::Full)),
            (1, MS(1), 2, usize::MAX, 2, MS(30_000), Ok(())),
        ];
        for (threads, mean, before, width, waiting, allowed, expected) in cases {
            let decision = gate(threads, mean).admit(allowed, turn(before, width, waiting));
            assert_eq!(
                decision, expected,
                "{threads} threads, {before} before it on {width}, {waiting} waiting, {allowed:?} allowed"
            );
        }
    }

    #[test]
    fn a_call_for_which_a_thread_is_free_does_not_wait_whatever_calls_take() {
        let gate = Gate::new(3, 1, MS(0));
        gate.ran(MS(60_000));
        for _ in 0..3 {
            assert_eq!(gate.busy_for(5, 0), None);
            assert_eq!(gate.admit(MS(1), || panic!("nobody asks for its turn")), Ok(()));
        }
        assert_eq!(gate.busy_for(5, 0), Some(Duration::from_nanos(5)));
        assert_eq!(gate.busy_for(5, 1), None, "who is held back leaves a thread free");
        assert_eq!(gate.admit(MS(1), turn(0, 3, 0)), Ok(()), "it is the first to wait");
        assert!(gate.admit(MS(1), turn(1, 3, 1)).is_err());
        assert_eq!(gate.unfinished.load(Ordering::Relaxed), 4, "a refused call is not counted");
    }

    #[test]
    fn a_call_that_ends_before_it_was_counted_does_not_make_the_queue_full() {
        let gate = gate(1, MS(10));
        gate.ended(1);
        gate.ended(2);
        assert_eq!(gate.busy_for(3, 0), None);
        assert_eq!(gate.admit(MS(1), turn(9, 1, 9)), Ok(()));
        gate.began_unasked();
        assert_eq!(gate.unfinished.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn a_refused_caller_learns_when_its_turn_may_come() {
        let wait = |before, width, first_end: Option<u64>| {
            let turn = Turn { before, width, waiting: 99 };
            Refused::with(gate(2, MS(100)).wait(turn, first_end.map(MS))).retry_after
        };
        let cases = [
            // before it, on so many threads, the first that runs ends after, told
            (30, 2, Some(40), 1_540),
            (30, 1, Some(40), 3_040),
            (0, 2, Some(8_000), 8_000),
            (0, 2, Some(2), 10),
            (0, 2, None, 10),
            (0, 2, Some(3_600_000), 60_000),
        ];
        for (before, width, first_end, told) in cases {
            assert_eq!(wait(before, width, first_end), MS(told), "{before} on {width}, {first_end:?}");
        }
        let idle = Gate::new(2, 100, MS(1_000));
        assert_eq!(idle.wait(Turn { before: 0, width: 2, waiting: 0 }, Some(MS(8_000))), MS(0));
    }
}
