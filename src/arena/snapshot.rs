//! What a reader found in an arena at one time: plain values, for whoever logs, decides or displays.

use std::time::Duration;

use super::State;
use super::called_by::CalledBy;
use super::totals::Totals;

/// Who works with an arena, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) pid: u32,
    pub(crate) generation: u64,
    pub(crate) slot: usize,
    pub(crate) state: State,
    /// Time since it introduced itself.
    pub(crate) uptime: Duration,
}

/// A call that runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Running {
    /// The thread's number, from 0.
    pub(crate) row: usize,
    /// Index of its method, less than the arena's number of methods.
    pub(crate) method: usize,
    /// Its number among the calls of this row, from 1; with the row, it tells two calls apart.
    pub(crate) number: u64,
    /// When it began, in nanoseconds of the monotonic clock.
    pub(crate) since_ns: u64,
    pub(crate) by: CalledBy,
}

impl Running {
    /// How long it has been running at `now_ns` of the monotonic clock.
    pub(crate) fn elapsed(&self, now_ns: u64) -> Duration {
        Duration::from_nanos(now_ns.saturating_sub(self.since_ns))
    }
}

/// Who took a worker down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Culprit {
    /// The thread with this row.
    Row { row: usize, stack_overflow: bool },
    /// A thread that runs no calls, such as one that a handler has started.
    Stranger,
}

/// What an arena said at one time.
///
/// Numbers that belong together agree, also while the worker writes and after it died at any point: a
/// running call's method, number and start are of the same call, and histogram ≤ method's counts,
/// their sum ≤ outcomes, outcomes + running ≤ begun, closed ≤ accepted. (Unless a handler has scribbled on it.)
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Snapshot {
    /// None if no worker has introduced itself.
    pub(crate) identity: Option<Identity>,
    /// What all its threads have counted.
    pub(crate) totals: Totals,
    /// What runs, by row.
    pub(crate) running: Vec<Running>,
}

impl Snapshot {
    /// Numbers the methods of its totals anew, so that those of workers with different methods can be added up:
    /// `numbers` has the new number of each.
    pub(crate) fn renumber(mut self, numbers: &[usize]) -> Self {
        self.totals.renumber(numbers);
        self
    }
}
