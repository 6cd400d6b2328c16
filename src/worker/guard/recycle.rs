//! When a worker has served enough: `[recycle]`.
//!
//! Its own limits lie up to `jitter` below the configured ones, by a number that is the worker's own, so that workers that
//! were started together don't come due together. Pure: the poller brings the time and what it has measured, and it does
//! so only when something has happened, or a moment later: a worker without traffic is not looked at.

use std::time::{Duration, Instant};

use crate::config::{Recycle, counted};

/// How often calls are counted, at most.
const COUNT: Duration = Duration::from_millis(10);
/// How often memory is measured, at most.
const MEASURE: Duration = Duration::from_millis(250);
/// What an exact measurement may cost, as one part in so many of the time until the next.
const COST: u32 = 100;

/// A worker's limits, and whether it has said that one is reached.
#[derive(Debug)]
pub(in crate::worker) struct Limits {
    /// Calls; none where any number is fine.
    requests: Option<u64>,
    /// Bytes; none where any number is fine.
    memory: Option<u64>,
    /// None when nothing is to be looked at any more.
    next: Option<Instant>,
    /// The look for which a moment is set.
    reminded: Option<Instant>,
    next_measurement: Instant,
}

impl Limits {
    /// `seed` is any number that other workers don't have.
    pub(in crate::worker) fn new(config: &Recycle, seed: u64, now: Instant) -> Self {
        let share = config.jitter * fraction(seed);
        let requests = (config.max_requests > 0).then(|| lowered(config.max_requests, share));
        let memory = (config.max_memory > 0).then(|| lowered(config.max_memory as u64, share));
        let next = (requests.is_some() || memory.is_some()).then_some(now);
        Self { requests, memory, next, reminded: None, next_measurement: now }
    }

    /// True when it is time to look. To be asked after everything that happens.
    pub(in crate::worker) fn is_time(&mut self, now: Instant) -> bool {
        let is_time = self.next.is_some_and(|next| next <= now);
        if is_time {
            self.next = Some(now + COUNT);
        }
        is_time
    }

    /// When to look although nothing happens until then: what has happened `now` was not looked at. Said once for each moment.
    pub(in crate::worker) fn look_later(&mut self, now: Instant) -> Option<Instant> {
        let next = self.next.filter(|next| now < *next && self.reminded != Some(*next))?;
        self.reminded = Some(next);
        Some(next)
    }

    /// Says why the worker retires when it has begun so many calls; once.
    pub(in crate::worker) fn count(&mut self, begun: u64) -> Option<String> {
        let most = self.requests.filter(|most| begun >= *most)?;
        self.next = None;
        let begun = counted(begun, "call");
        Some(format!("it has begun {begun}; recycle.max_requests gives this worker {most}"))
    }

    /// True when memory is to be measured too.
    pub(in crate::worker) fn measures(&mut self, now: Instant) -> bool {
        let measures = self.memory.is_some() && self.next.is_some() && self.next_measurement <= now;
        if measures {
            self.next_measurement = now + MEASURE;
        }
        measures
    }

    /// True when so many bytes, some of which may be shared with other processes, are worth an exact measurement.
    pub(in crate::worker) fn is_suspicious(&self, at_most: u64) -> bool {
        self.memory.is_some_and(|most| at_most >= most)
    }

    /// Says why the worker retires when so many bytes are its own; once. It took `cost` to find out, until `now`.
    pub(in crate::worker) fn measured(&mut self, own: u64, cost: Duration, now: Instant) -> Option<String> {
        self.next_measurement = now + MEASURE.max(cost * COST);
        let most = self.memory.filter(|most| own >= *most)?;
        self.next = None;
        Some(format!(
            "{} MiB of memory are its own; recycle.max_memory gives this worker {} MiB",
            own >> 20,
            most >> 20
        ))
    }

    /// It can't be measured here.
    pub(in crate::worker) fn give_up_measuring(&mut self) {
        self.memory = None;
        self.next = self.next.filter(|_| self.requests.is_some());
    }
}

/// A number from 0 to 1 that looks nothing like that of the next seed (the finish of `SplitMix64`).
fn fraction(seed: u64) -> f64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^= bits >> 31;
    f64::from((bits >> 32) as u32) / f64::from(u32::MAX)
}

/// `limit` less this share of it, and at least 1.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of a limit: nobody counts its last digits, and it is between 0 and the limit"
)]
fn lowered(limit: u64, share: f64) -> u64 {
    limit.saturating_sub((limit as f64 * share) as u64).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn limits(max_requests: u64, max_memory: usize) -> (Limits, Instant) {
        let now = Instant::now();
        (Limits::new(&Recycle { max_requests, jitter: 0.0, max_memory }, 1, now), now)
    }

    #[test]
    fn without_limits_there_is_nothing_to_look_at() {
        let (mut limits, now) = limits(0, 0);
        assert!(!limits.is_time(now + Duration::from_secs(60)));
        assert_eq!(limits.count(u64::MAX), None);
        assert!(!limits.measures(now) && !limits.is_suspicious(u64::MAX));
    }

    #[test]
    fn a_worker_that_has_begun_enough_calls_says_so_once() {
        let (mut limits, now) = limits(100, 0);
        assert!(limits.is_time(now));
        assert_eq!(limits.count(99), None);
        assert!(!limits.is_time(now + COUNT / 2), "not after every call");
        assert_eq!(limits.look_later(now + COUNT / 2), Some(now + COUNT), "and yet if that was the last");
        assert_eq!(limits.look_later(now + COUNT / 2), None);
        assert!(limits.is_time(now + COUNT));
        let why = limits.count(103).unwrap();
        assert!(why.contains("103 calls") && why.contains("100"), "{why}");
        assert!(!limits.is_time(now + Duration::from_secs(60)));
        assert_eq!(limits.look_later(now + COUNT), None);
    }

    #[test]
    fn memory_is_measured_exactly_only_where_it_may_be_too_much_and_seldom_where_that_is_dear() {
        let (mut limits, now) = limits(0, 64 << 20);
        assert!(limits.is_time(now) && limits.measures(now));
        assert!(!limits.measures(now), "once");
        assert!(!limits.is_suspicious(63 * MIB) && limits.is_suspicious(64 * MIB));
        let dear = Duration::from_millis(20);
        assert_eq!(limits.measured(10 * MIB, dear, now), None, "the rest is shared with the template");
        assert!(!limits.measures(now + Duration::from_millis(1_999)));
        assert!(limits.measures(now + Duration::from_secs(2)));
        let why = limits.measured(70 * MIB, Duration::ZERO, now).unwrap();
        assert!(why.contains("70 MiB") && why.contains("64 MiB"), "{why}");
        assert!(!limits.is_time(now + Duration::from_secs(60)));
    }

    #[test]
    fn where_memory_can_not_be_measured_calls_are_still_counted() {
        let (mut limits, now) = limits(5, 64 << 20);
        limits.give_up_measuring();
        assert!(!limits.measures(now) && limits.is_time(now));
        assert!(limits.count(5).is_some());
        let (mut memory_alone, now) = self::limits(0, 64 << 20);
        memory_alone.give_up_measuring();
        assert!(!memory_alone.is_time(now));
    }

    #[test]
    fn workers_that_were_started_together_come_due_apart_and_never_late() {
        let config = Recycle { max_requests: 10_000, jitter: 0.1, max_memory: 0 };
        let mut own: Vec<u64> =
            (0..8).filter_map(|seed| Limits::new(&config, seed, Instant::now()).requests).collect();
        own.sort_unstable();
        assert!(own.iter().all(|most| (9_000..=10_000).contains(most)), "{own:?}");
        own.dedup_by(|a, b| *a - *b < 5);
        assert!(own.len() >= 7, "{own:?}");
    }

    #[test]
    fn no_share_makes_a_limit_of_nothing() {
        for (limit, share) in [(1, 1.0), (u64::MAX, 1.0), (5, 0.99)] {
            assert!(lowered(limit, share) >= 1, "{limit} less {share}");
        }
        assert_eq!(lowered(1_000, 0.25), 750);
    }
}
