//! Restart: when a worker or template that failed to boot is tried again, when the service gives up, and when a slot slows down
//! because its workers die at once.
//!
//! A boot failure is a worker that was never ready, or a template that has forked none. A worker that was ready is replaced at once, whatever it
//! died of; [`EarlyDeaths`] is the one exception.

use std::time::{Duration, Instant};

/// A worker that dies sooner than this after it was ready, without a call, has died early.
const EARLY: Duration = Duration::from_secs(1);

/// Early deaths in a row that a slot is refilled at once after. Workers may be killed from outside a few times.
const BORNE: u32 = 2;

/// The longest wait after an early death.
const LONGEST: Duration = Duration::from_secs(1);

/// How long a service may try to get its first worker ready, whatever `timeouts.boot` is.
const LEAST_PATIENCE: Duration = Duration::from_secs(30);

/// What it has beyond `timeouts.boot`, so that a worker which hangs is told as one that was not ready in time.
const BEYOND_BOOT: Duration = Duration::from_secs(5);

/// The numbers of the `[restart]` section.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RestartLimits {
    /// Boot failures that are borne without a worker ready between them; 0 bears any number.
    pub(crate) max_restarts: u32,
    /// A slot without a boot failure for this long begins anew with `backoff`.
    pub(crate) window: Duration,
    /// The wait after a first failure; it doubles with each one that follows.
    pub(crate) backoff: Duration,
    pub(crate) backoff_max: Duration,
}

impl RestartLimits {
    /// Whether the service ever gives up.
    pub(crate) fn gives_up(&self) -> bool {
        self.max_restarts > 0
    }
}

/// How long a service may take to have its first worker ready.
pub(crate) fn patience(boot: Duration) -> Duration {
    boot.saturating_add(BEYOND_BOOT).max(LEAST_PATIENCE)
}

/// What follows from a boot failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RestartVerdict {
    RetryAfter(Duration),
    GiveUp,
}

/// Boot failures of the whole service since a worker became ready.
///
/// They are counted and not timed: waits of up to `backoff_max` and boots of up to `timeouts.boot` lie between them, so
/// that a number within some time might never be reached.
#[derive(Debug)]
pub(crate) struct Restarts {
    limits: RestartLimits,
    in_a_row: u32,
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

/// Workers of one slot in a row that died early: ready, and dead within [`EARLY`] without having begun a call.
///
/// Nobody was served by them, so a slot of which nothing else is seen slows down. That not all slots wait at once is the
/// state policy's business.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct EarlyDeaths {
    in_a_row: u32,
}

impl EarlyDeaths {
    /// A worker that was ready has died, `lived` after that where it is known. How long its slot is to wait.
    pub(crate) fn died(&mut self, lived: Option<Duration>, called: bool, limits: &RestartLimits) -> Duration {
        if called || lived.is_none_or(|lived| lived >= EARLY) {
            *self = Self::default();
            return Duration::ZERO;
        }
        self.in_a_row = self.in_a_row.saturating_add(1);
        match self.in_a_row.checked_sub(BORNE + 1) {
            Some(doublings) => doubled(limits.backoff, doublings).min(limits.backoff_max).min(LONGEST),
            None => Duration::ZERO,
        }
    }
}

impl Restarts {
    pub(crate) fn new(limits: RestartLimits) -> Self {
        Self { limits, in_a_row: 0 }
    }

    /// Counts a boot failure of the owner of `streak`.
    pub(crate) fn boot_failed(&mut self, streak: &mut Streak, now: Instant) -> RestartVerdict {
        let wait = self.refused(streak, now);
        self.in_a_row = self.in_a_row.saturating_add(1);
        if self.limits.gives_up() && self.in_a_row > self.limits.max_restarts {
            return RestartVerdict::GiveUp;
        }
        RestartVerdict::RetryAfter(wait)
    }

    /// A worker is ready: the program can boot.
    pub(crate) fn booted(&mut self) {
        self.in_a_row = 0;
    }

    /// The wait after the kernel refused a fork: it backs off like a failure but never ends the service.
    pub(crate) fn refused(&self, streak: &mut Streak, now: Instant) -> Duration {
        let stale = streak.last.is_some_and(|last| now.saturating_duration_since(last) > self.limits.window);
        if stale {
            *streak = Streak::default();
        }
        let wait = doubled(self.limits.backoff, streak.failures).min(self.limits.backoff_max);
        streak.failures = streak.failures.saturating_add(1);
        // A wait may be longer than the window; it must not make the streak look stale.
        streak.last = now.checked_add(wait);
        wait
    }

    /// Boot failures that count at present.
    pub(crate) fn counted(&self) -> u32 {
        self.in_a_row
    }

    pub(crate) fn limits(&self) -> &RestartLimits {
        &self.limits
    }
}

fn doubled(wait: Duration, times: u32) -> Duration {
    wait.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn limits(max_restarts: u32) -> RestartLimits {
        RestartLimits { max_restarts, window: MS(60_000), backoff: MS(100), backoff_max: MS(1_000) }
    }

    #[test]
    fn the_wait_doubles_up_to_its_bound() {
        let mut restarts = Restarts::new(limits(0));
        let (mut streak, now) = (Streak::default(), Instant::now());
        let waits: Vec<_> = (0..40).map(|_| restarts.boot_failed(&mut streak, now)).collect();
        let expected = [100, 200, 400, 800, 1_000, 1_000].map(|wait| RestartVerdict::RetryAfter(MS(wait)));
        assert_eq!(waits[..6], expected);
        assert_eq!(waits[39], RestartVerdict::RetryAfter(MS(1_000)));
    }

    #[test]
    fn one_more_than_max_restarts_without_a_worker_ready_gives_up_whatever_the_time_between_them() {
        for apart in [0, 1, 30_000, 61_000, 3_600_000].map(MS) {
            let (mut restarts, mut now) = (Restarts::new(limits(3)), Instant::now());
            let mut streaks = [Streak::default(); 4];
            let mut fails = |streak| {
                now += apart;
                restarts.boot_failed(streak, now)
            };
            let verdicts = streaks.each_mut().map(&mut fails);
            let retry = RestartVerdict::RetryAfter(MS(100));
            assert_eq!(
                verdicts,
                [retry, retry, retry, RestartVerdict::GiveUp],
                "slots back off each by itself, {apart:?}"
            );
        }
    }

    #[test]
    fn a_worker_that_is_ready_begins_the_count_anew() {
        let (mut restarts, now) = (Restarts::new(limits(3)), Instant::now());
        for _ in 0..100 {
            for failure in 1..=3 {
                let verdict = restarts.boot_failed(&mut Streak::default(), now);
                assert_eq!((verdict, restarts.counted()), (RestartVerdict::RetryAfter(MS(100)), failure));
            }
            restarts.booted();
        }
    }

    #[test]
    fn patience_is_30s_or_the_time_to_boot_and_5s() {
        let rows =
            [(1_000, 30_000), (25_000, 30_000), (25_001, 30_001), (30_000, 35_000), (600_000, 605_000)];
        for (boot, expected) in rows {
            assert_eq!(patience(MS(boot)), MS(expected), "boot {boot} ms");
        }
        assert_eq!(patience(Duration::MAX), Duration::MAX);
    }

    #[test]
    fn only_workers_that_die_within_a_second_without_a_call_slow_their_slot_down() {
        // How long each lived once it was ready, whether a call had begun, and what its slot waits then.
        let early = |wait| (Some(999), false, wait);
        type Lifetime = (Option<u64>, bool, u64);
        let rows: [(&str, Vec<Lifetime>); 6] = [
            ("again and again", [0, 0, 100, 200, 400, 800, 1_000, 1_000].map(early).to_vec()),
            ("with a call", vec![(Some(0), true, 0); 100]),
            ("after a second", vec![(Some(1_000), false, 0); 100]),
            ("nobody knows how long", vec![(None, false, 0); 100]),
            (
                "one that served in between",
                vec![early(0), early(0), early(100), (Some(5), true, 0), early(0), early(0), early(100)],
            ),
            (
                "one that lived in between",
                vec![early(0), early(0), early(100), (Some(5_000), false, 0), early(0), early(0), early(100)],
            ),
        ];
        let limits = RestartLimits { backoff_max: MS(30_000), ..limits(0) };
        for (name, course) in rows {
            let mut deaths = EarlyDeaths::default();
            for (number, (lived, called, wait)) in course.into_iter().enumerate() {
                assert_eq!(deaths.died(lived.map(MS), called, &limits), MS(wait), "{name}: death {number}");
            }
        }
    }

    #[test]
    fn an_early_death_waits_no_longer_than_backoff_max() {
        let mut deaths = EarlyDeaths::default();
        let limits = RestartLimits { backoff: MS(5), backoff_max: MS(20), ..limits(0) };
        let waits = [0; 6].map(|_| deaths.died(Some(MS(1)), false, &limits));
        assert_eq!(waits, [0, 0, 5, 10, 20, 20].map(MS));
    }

    #[test]
    fn a_streak_ends_when_nothing_failed_for_a_window() {
        let (mut restarts, start) = (Restarts::new(limits(0)), Instant::now());
        let mut streak = Streak::default();
        restarts.boot_failed(&mut streak, start);
        assert_eq!(restarts.boot_failed(&mut streak, start + MS(1_000)), RestartVerdict::RetryAfter(MS(200)));
        assert_eq!(
            restarts.boot_failed(&mut streak, start + MS(70_000)),
            RestartVerdict::RetryAfter(MS(100))
        );
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
