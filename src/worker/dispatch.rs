//! Whether a call may wait for a pool thread, or is refused at once.
//!
//! The queue is bounded in length and in time: a call that would wait longer than `queue_wait`, or than its own
//! deadline allows, is better told now. The estimate is waiting calls × mean run time ÷ threads.
//!
//! Calls are counted from their admission to their end, not by where they are: a call that lies in the channel
//! while an idle thread wakes up for it does not wait.

use std::sync::atomic::{AtomicIsize, AtomicU64, Ordering};
use std::time::Duration;

/// The gate before the queue.
#[derive(Debug)]
pub(super) struct Gate {
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
pub(super) struct Refused {
    pub(super) retry_after: Duration,
}

impl Gate {
    pub(super) fn new(threads: usize, queue: usize, queue_wait: Duration) -> Self {
        Self {
            threads: threads.max(1),
            queue,
            queue_wait,
            mean_ns: AtomicU64::new(0),
            unfinished: AtomicIsize::new(0),
            last_end_ns: AtomicU64::new(0),
        }
    }

    /// Decides about a call with `allowed` until its deadline. One that is admitted must be ended by [`ended`](Self::ended)
    /// or [`left`](Self::left).
    pub(super) fn admit(&self, allowed: Duration) -> Result<(), Refused> {
        let before = self.unfinished.fetch_add(1, Ordering::SeqCst);
        let decision = match count(before).checked_sub(self.threads) {
            // A thread is free for it.
            None => Ok(()),
            Some(waiting) => self.may_wait(waiting, allowed),
        };
        if decision.is_err() {
            self.unfinished.fetch_sub(1, Ordering::SeqCst);
        }
        decision
    }

    /// A thread runs a call that nobody has asked about: to be ended like one that was admitted.
    pub(super) fn began_unasked(&self) {
        self.unfinished.fetch_add(1, Ordering::SeqCst);
    }

    /// About a call with `waiting` others before it. Its turn comes when one more than these have ended; of the first that
    /// waits nothing is known but that.
    fn may_wait(&self, waiting: usize, allowed: Duration) -> Result<(), Refused> {
        let wait = if waiting == 0 { Duration::ZERO } else { self.expected_wait(waiting + 1) };
        // It is a mean. Without a margin every second call at the edge would be refused after all, when it has waited in vain.
        let wait = wait + wait / 8;
        if waiting >= self.queue || wait > self.queue_wait.min(allowed) {
            Err(Refused { retry_after: self.expected_wait(waiting) })
        } else {
            Ok(())
        }
    }

    /// What a caller should wait whose call is not run.
    pub(super) fn retry_after(&self) -> Duration {
        self.expected_wait(count(self.unfinished.load(Ordering::Relaxed)).saturating_sub(self.threads))
    }

    fn expected_wait(&self, waiting: usize) -> Duration {
        let mean = u128::from(self.mean_ns.load(Ordering::Relaxed));
        let wait = mean * waiting as u128 / self.threads as u128;
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    /// A run took this long. The mean is exponential with a weight of 1/8 for the newest, as TCP's round-trip
    /// estimate (RFC 6298). Two threads that meet here may lose one sample: it is an estimate.
    pub(super) fn ran(&self, took: Duration) {
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        let next = if mean == 0 { sample } else { mean - mean / 8 + sample / 8 };
        self.mean_ns.store(next, Ordering::Relaxed);
    }

    /// A call that was admitted occupies neither queue nor thread any more, since `now_ns`.
    pub(super) fn ended(&self, now_ns: u64) {
        self.last_end_ns.store(now_ns, Ordering::Relaxed);
        self.unfinished.fetch_sub(1, Ordering::SeqCst);
    }

    /// Calls that wait for a thread.
    pub(super) fn waiting(&self) -> usize {
        count(self.unfinished.load(Ordering::Relaxed)).saturating_sub(self.threads)
    }

    /// There is more than the threads can do, also without `own` of the calls that run or wait.
    pub(super) fn is_busy_with_others(&self, own: usize) -> bool {
        count(self.unfinished.load(Ordering::Relaxed)) >= self.threads.saturating_add(own)
    }

    /// No call runs or waits.
    pub(super) fn is_idle(&self) -> bool {
        count(self.unfinished.load(Ordering::SeqCst)) == 0
    }

    /// A call that was admitted was given up before a thread had it.
    pub(super) fn left(&self) {
        self.unfinished.fetch_sub(1, Ordering::SeqCst);
    }

    /// For how long nothing has ended, when a call that came now would have to wait; None when it would not.
    pub(super) fn busy_for(&self, now_ns: u64) -> Option<Duration> {
        let all_busy = count(self.unfinished.load(Ordering::SeqCst)) >= self.threads;
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

    /// All of its threads run a call and `waiting` calls wait.
    fn gate(threads: usize, mean: Duration, waiting: usize) -> Gate {
        let gate = Gate::new(threads, 100, MS(1_000));
        gate.ran(mean);
        gate.unfinished.store((threads + waiting).cast_signed(), Ordering::Relaxed);
        gate
    }

    #[test]
    fn calls_are_admitted_while_the_wait_is_bearable() {
        let cases = [
            // threads, mean, waiting, allowed, admitted
            (1, MS(100), 7, MS(30_000), true),
            (1, MS(100), 8, MS(30_000), false),
            (4, MS(100), 34, MS(30_000), true),
            (4, MS(100), 35, MS(30_000), false),
            (1, MS(100), 3, MS(400), false),
            (1, MS(100), 2, MS(400), true),
            (1, MS(60_000), 0, MS(1), true),
            (1, MS(1), 99, MS(30_000), true),
            (1, MS(1), 100, MS(30_000), false),
        ];
        for (threads, mean, waiting, allowed, admitted) in cases {
            let decision = gate(threads, mean, waiting).admit(allowed);
            assert_eq!(
                decision.is_ok(),
                admitted,
                "{threads} threads, {waiting} waiting, {allowed:?} allowed"
            );
        }
    }

    #[test]
    fn a_call_for_which_a_thread_is_free_does_not_wait_whatever_calls_take() {
        let gate = Gate::new(3, 1, MS(0));
        gate.ran(MS(60_000));
        for _ in 0..3 {
            assert_eq!(gate.busy_for(5), None);
            assert_eq!(gate.admit(MS(1)), Ok(()));
        }
        assert_eq!(gate.busy_for(5), Some(Duration::from_nanos(5)));
        assert_eq!(gate.admit(MS(1)), Ok(()), "it is the first to wait");
        assert!(gate.admit(MS(1)).is_err());
        assert_eq!(gate.unfinished.load(Ordering::Relaxed), 4, "a refused call is not counted");
    }

    #[test]
    fn a_call_that_ends_before_it_was_counted_does_not_make_the_queue_full() {
        let gate = gate(1, MS(10), 0);
        gate.ended(1);
        gate.ended(2);
        assert_eq!(gate.retry_after(), MS(0));
        assert_eq!(gate.busy_for(3), None);
        assert_eq!(gate.admit(MS(1)), Ok(()));
        gate.began_unasked();
        assert_eq!(gate.unfinished.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn calls_that_are_given_up_make_room_for_others() {
        let gate = gate(1, MS(1), 100);
        assert!(gate.admit(MS(30_000)).is_err());
        gate.left();
        assert_eq!(gate.admit(MS(30_000)), Ok(()));
        assert!(gate.admit(MS(30_000)).is_err());
    }

    #[test]
    fn a_refused_caller_learns_how_long_the_queue_is() {
        assert_eq!(gate(2, MS(100), 30).admit(MS(30_000)), Err(Refused { retry_after: MS(1_500) }));
        assert_eq!(gate(2, MS(100), 30).retry_after(), MS(1_500));
    }

    #[test]
    fn the_mean_follows_what_runs() {
        let gate = gate(1, MS(800), 0);
        for _ in 0..100 {
            gate.ran(MS(8));
        }
        assert!(gate.expected_wait(1) < MS(9), "{:?}", gate.expected_wait(1));
    }
}
