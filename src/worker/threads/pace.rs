//! Which methods are quick: measured, not declared.
//!
//! A method starts slow. After a streak of runs under [`QUICK`] the poller runs it itself; one run over that ends the
//! streak. The built-in methods can't block and are quick whatever the clock says: a run of theirs that took long was
//! kept waiting by something else.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::rpc::{MethodIndex, Registry};

/// A run up to this long costs less than to hand it to another thread and wait for that, and delays nobody much.
const QUICK: Duration = Duration::from_micros(50);
/// Runs in a row that make a method quick.
const STREAK: u32 = 16;

/// How the methods have been running lately.
#[derive(Debug)]
pub(in crate::worker) struct Paces {
    /// By a method's number.
    paces: Vec<Pace>,
}

#[derive(Debug)]
struct Pace {
    never_blocks: bool,
    /// Quick runs in a row, up to [`STREAK`]. Threads that meet here may lose one: it is an estimate.
    streak: AtomicU32,
}

/// How a call of a method is to be run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Speed {
    /// It may block: a pool thread runs it.
    Slow,
    /// The poller runs it, if somebody is there to relieve it.
    Quick,
    /// The poller runs it.
    NeverBlocks,
}

impl Paces {
    pub(in crate::worker) fn new(registry: &Registry) -> Self {
        Self { paces: registry.are_built_in().map(Pace::new).collect() }
    }

    pub(in crate::worker) fn speed(&self, method: MethodIndex) -> Speed {
        match self.paces.get(method.0) {
            Some(pace) if pace.never_blocks => Speed::NeverBlocks,
            Some(pace) if pace.streak.load(Ordering::Relaxed) >= STREAK => Speed::Quick,
            _ => Speed::Slow,
        }
    }

    /// A run has taken too long, and has not ended.
    pub(in crate::worker) fn has_blocked(&self, method: MethodIndex) {
        if let Some(pace) = self.paces.get(method.0) {
            pace.streak.store(0, Ordering::Relaxed);
        }
    }

    /// A run took this long.
    pub(in crate::worker) fn ran(&self, method: MethodIndex, took: Duration) {
        let Some(pace) = self.paces.get(method.0) else { return };
        let streak = pace.streak.load(Ordering::Relaxed);
        let next = if took <= QUICK { STREAK.min(streak + 1) } else { 0 };
        // Written only where it changes: every thread reads it for every call.
        if next != streak {
            pace.streak.store(next, Ordering::Relaxed);
        }
    }
}

impl Pace {
    fn new(never_blocks: bool) -> Self {
        Self { never_blocks, streak: AtomicU32::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUILT_IN: MethodIndex = MethodIndex(0);
    const METHOD: MethodIndex = MethodIndex(1);

    fn paces() -> Paces {
        Paces { paces: [true, false].map(Pace::new).into() }
    }

    #[test]
    fn a_method_is_slow_until_a_streak_of_quick_runs_and_after_one_that_was_not() {
        let paces = paces();
        for _ in 0..2 {
            for run in 0..STREAK {
                assert_eq!(paces.speed(METHOD), Speed::Slow, "after {run} quick runs");
                paces.ran(METHOD, QUICK);
            }
            assert_eq!(paces.speed(METHOD), Speed::Quick);
            paces.ran(METHOD, Duration::ZERO);
            assert_eq!(paces.speed(METHOD), Speed::Quick);
            paces.ran(METHOD, QUICK + Duration::from_nanos(1));
        }
    }

    #[test]
    fn a_method_that_blocks_is_slow_before_that_run_has_ended() {
        let paces = paces();
        for _ in 0..STREAK {
            paces.ran(METHOD, QUICK);
        }
        paces.has_blocked(METHOD);
        assert_eq!(paces.speed(METHOD), Speed::Slow);
        paces.has_blocked(BUILT_IN);
        assert_eq!(paces.speed(BUILT_IN), Speed::NeverBlocks);
    }

    #[test]
    fn a_built_in_method_is_quick_whatever_the_clock_says() {
        let paces = paces();
        paces.ran(BUILT_IN, Duration::from_secs(1));
        assert_eq!(paces.speed(BUILT_IN), Speed::NeverBlocks);
    }

    #[test]
    fn a_method_that_never_was_is_slow() {
        let paces = paces();
        paces.ran(MethodIndex(2), QUICK);
        assert_eq!(paces.speed(MethodIndex(2)), Speed::Slow);
    }
}
