//! Whether a call may wait for a pool thread, or is refused at once.
//!
//! The queue is bounded in length by its channel and in time by this: a call that would wait longer than
//! `queue_wait`, or than its own deadline allows, is better told now. The estimate is queued calls × mean run time
//! ÷ threads.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// The gate before the queue.
#[derive(Debug)]
pub(super) struct Gate {
    threads: usize,
    queue_wait: Duration,
    mean_ns: AtomicU64,
    busy: AtomicUsize,
}

/// A call is refused; the caller may try again after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    pub(super) retry_after: Duration,
}

impl Gate {
    pub(super) fn new(threads: usize, queue_wait: Duration) -> Self {
        Self { threads: threads.max(1), queue_wait, mean_ns: AtomicU64::new(0), busy: AtomicUsize::new(0) }
    }

    /// Decides about a call with `queued` others before it and `allowed` until its deadline.
    pub(super) fn admit(&self, queued: usize, allowed: Duration) -> Result<(), Refused> {
        let wait = self.expected_wait(queued);
        if queued > 0 && wait > self.queue_wait.min(allowed) {
            Err(Refused { retry_after: wait })
        } else {
            Ok(())
        }
    }

    /// What a caller who finds the queue full should wait.
    pub(super) fn full(&self, queued: usize) -> Refused {
        Refused { retry_after: self.expected_wait(queued).max(Duration::from_millis(1)) }
    }

    fn expected_wait(&self, queued: usize) -> Duration {
        let mean = u128::from(self.mean_ns.load(Ordering::Relaxed));
        let wait = mean * queued as u128 / self.threads as u128;
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }

    pub(super) fn begin_run(&self) {
        self.busy.fetch_add(1, Ordering::Relaxed);
    }

    /// A run has ended after `took`. The mean is exponential with a weight of 1/8 for the newest, as TCP's
    /// round-trip estimate (RFC 6298). Two threads that meet here may lose one sample: it is an estimate.
    pub(super) fn end_run(&self, took: Duration) {
        let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        let mean = self.mean_ns.load(Ordering::Relaxed);
        let next = if mean == 0 { sample } else { mean - mean / 8 + sample / 8 };
        self.mean_ns.store(next, Ordering::Relaxed);
        self.busy.fetch_sub(1, Ordering::Relaxed);
    }

    /// True when every pool thread runs a call.
    pub(super) fn all_busy(&self) -> bool {
        self.busy.load(Ordering::Relaxed) >= self.threads
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn gate(threads: usize, mean: Duration) -> Gate {
        let gate = Gate::new(threads, MS(1_000));
        gate.begin_run();
        gate.end_run(mean);
        gate
    }

    #[test]
    fn calls_are_admitted_while_the_wait_is_bearable() {
        let cases = [
            // threads, mean, queued, allowed, admitted
            (1, MS(100), 10, MS(30_000), true),
            (1, MS(100), 11, MS(30_000), false),
            (4, MS(100), 40, MS(30_000), true),
            (4, MS(100), 41, MS(30_000), false),
            (1, MS(100), 5, MS(400), false),
            (1, MS(100), 4, MS(400), true),
            (1, MS(60_000), 0, MS(1), true),
        ];
        for (threads, mean, queued, allowed, admitted) in cases {
            let decision = gate(threads, mean).admit(queued, allowed);
            assert_eq!(decision.is_ok(), admitted, "{threads} threads, {queued} queued, {allowed:?} allowed");
        }
    }

    #[test]
    fn a_refused_caller_learns_how_long_the_queue_is() {
        assert_eq!(gate(2, MS(100)).admit(30, MS(30_000)), Err(Refused { retry_after: MS(1_500) }));
        assert_eq!(Gate::new(1, MS(1)).full(5), Refused { retry_after: MS(1) });
    }

    #[test]
    fn the_mean_follows_what_runs() {
        let gate = gate(1, MS(800));
        for _ in 0..100 {
            gate.begin_run();
            gate.end_run(MS(8));
        }
        assert!(gate.expected_wait(1) < MS(9), "{:?}", gate.expected_wait(1));
        assert!(!gate.all_busy());
    }
}
