//! When a worker or template that failed to boot is tried again, and when the service gives up.
//!
//! Pure: the caller brings the time. A boot failure is a death before ready, or before the first answered call.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The numbers of the `[restart]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Boot failures within `window` that are still borne; 0 bears any number.
    pub(crate) max_restarts: u32,
    pub(crate) window: Duration,
    /// The wait after a first failure; it doubles with each one that follows.
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
}

/// What follows from a boot failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    RetryAfter(Duration),
    GiveUp,
}

/// Boot failures of the whole service.
#[derive(Debug)]
pub(crate) struct Restarts {
    limits: Limits,
    recent: VecDeque<Instant>,
}

/// What the kernel refuses again and again is said once, and then that it is over.
#[derive(Debug, Default)]
pub(crate) struct Refusals {
    count: u64,
}

impl Refusals {
    /// It was refused. True when that is to be said.
    pub(crate) fn refused(&mut self) -> bool {
        self.count += 1;
        self.count == 1
    }

    /// It was not. How often it was before, where that is to be said.
    pub(crate) fn granted(&mut self) -> Option<u64> {
        Some(std::mem::take(&mut self.count)).filter(|count| *count > 0)
    }
}

/// Failures in a row of one slot, or of the template.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Streak {
    failures: u32,
    last: Option<Instant>,
}

impl Restarts {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, recent: VecDeque::new() }
    }

    /// Counts a boot failure of the owner of `streak`.
    pub(crate) fn boot_failed(&mut self, streak: &mut Streak, now: Instant) -> Verdict {
        let wait = self.refused(streak, now);
        if self.limits.max_restarts > 0 {
            self.forget_before(now);
            self.recent.push_back(now);
            if self.recent.len() > self.limits.max_restarts as usize {
                return Verdict::GiveUp;
            }
        }
        Verdict::RetryAfter(wait)
    }

    /// The wait after the kernel refused a fork: it backs off like a failure but never ends the service.
    pub(crate) fn refused(&self, streak: &mut Streak, now: Instant) -> Duration {
        let stale = streak.last.is_some_and(|last| now.saturating_duration_since(last) > self.limits.window);
        if stale {
            *streak = Streak::default();
        }
        let doubled = 1_u32.checked_shl(streak.failures).unwrap_or(u32::MAX);
        streak.failures = streak.failures.saturating_add(1);
        let wait = self.limits.backoff.saturating_mul(doubled).min(self.limits.backoff_max);
        // A wait may be longer than the window; it must not make the streak look stale.
        streak.last = now.checked_add(wait);
        wait
    }

    /// Boot failures that count at present.
    pub(crate) fn counted(&self) -> usize {
        self.recent.len()
    }

    pub(crate) fn limits(&self) -> &Limits {
        &self.limits
    }

    fn forget_before(&mut self, now: Instant) {
        while self.recent.front().is_some_and(|at| now.saturating_duration_since(*at) > self.limits.window) {
            self.recent.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn limits(max_restarts: u32) -> Limits {
        Limits { max_restarts, window: MS(60_000), backoff: MS(100), backoff_max: MS(1_000) }
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let mut restarts = Restarts::new(limits(0));
        let (mut streak, now) = (Streak::default(), Instant::now());
        let waits: Vec<_> = (0..40).map(|_| restarts.boot_failed(&mut streak, now)).collect();
        let expected = [100, 200, 400, 800, 1_000, 1_000].map(|wait| Verdict::RetryAfter(MS(wait)));
        assert_eq!(waits[..6], expected);
        assert_eq!(waits[39], Verdict::RetryAfter(MS(1_000)));
    }

    #[test]
    fn one_more_than_max_restarts_within_the_window_gives_up() {
        let (mut restarts, now) = (Restarts::new(limits(3)), Instant::now());
        let mut streaks = [Streak::default(); 4];
        let verdicts = streaks.each_mut().map(|streak| restarts.boot_failed(streak, now));
        assert_eq!(verdicts[2], Verdict::RetryAfter(MS(100)), "each slot backs off by itself");
        assert_eq!(verdicts[3], Verdict::GiveUp);
    }

    #[test]
    fn failures_older_than_the_window_are_forgotten() {
        let (mut restarts, start) = (Restarts::new(limits(3)), Instant::now());
        for minute in 0..100 {
            let mut streak = Streak::default();
            let verdict = restarts.boot_failed(&mut streak, start + MS(21_000) * minute);
            assert_eq!(verdict, Verdict::RetryAfter(MS(100)), "failure {minute}");
        }
    }

    #[test]
    fn a_streak_ends_when_nothing_failed_for_a_window() {
        let (mut restarts, start) = (Restarts::new(limits(0)), Instant::now());
        let mut streak = Streak::default();
        restarts.boot_failed(&mut streak, start);
        assert_eq!(restarts.boot_failed(&mut streak, start + MS(1_000)), Verdict::RetryAfter(MS(200)));
        assert_eq!(restarts.boot_failed(&mut streak, start + MS(70_000)), Verdict::RetryAfter(MS(100)));
    }

    #[test]
    fn that_forks_are_refused_is_said_once_and_again_when_they_are_not() {
        let mut refusals = Refusals::default();
        assert_eq!(refusals.granted(), None);
        assert_eq!([(); 3].map(|()| refusals.refused()), [true, false, false]);
        assert_eq!((refusals.granted(), refusals.granted()), (Some(3), None));
        assert!(refusals.refused());
    }

    #[test]
    fn a_refused_fork_backs_off_but_is_never_counted() {
        let (restarts, now) = (Restarts::new(limits(1)), Instant::now());
        let mut streak = Streak::default();
        let waits = [0; 6].map(|_| restarts.refused(&mut streak, now));
        assert_eq!(waits, [100, 200, 400, 800, 1_000, 1_000].map(MS));
        assert_eq!(restarts.counted(), 0);
    }
}
