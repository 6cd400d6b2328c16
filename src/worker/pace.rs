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
pub(super) struct Paces {
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
pub(super) enum Speed {
    /// It may block: a pool thread runs it.
    Slow,
    /// The poller runs it, if somebody is there to relieve it.
    Quick,
    /// The poller runs it.
    NeverBlocks,
}

impl Paces {
    pub(super) fn new(registry: &Registry) -> Self {
        let pace = |never_blocks| Pace { never_blocks, streak: AtomicU32::new(0) };
        Self { paces: registry.are_built_in().map(pace).collect() }
    }

    pub(super) fn speed(&self, method: MethodIndex) -> Speed {
        match self.paces.get(method.0) {
            Some(pace) if pace.never_blocks => Speed::NeverBlocks,
            Some(pace) if pace.streak.load(Ordering::Relaxed) >= STREAK => Speed::Quick,
            _ => Speed::Slow,
        }
    }

    /// A run took this long.
    pub(super) fn ran(&self, method: MethodIndex, took: Duration) {
        let Some(pace) = self.paces.get(method.0) else { return };
        let streak = pace.streak.load(Ordering::Relaxed);
        let next = if took <= QUICK { STREAK.min(streak + 1) } else { 0 };
        // Written only where it changes: every thread reads it for every call.
        if next != streak {
            pace.streak.store(next, Ordering::Relaxed);
        }
    }
}
