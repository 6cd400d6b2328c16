//! Calls that a thread is still in although nobody waits for them: their deadline has passed, or their caller is gone.
//!
//! One that is still here `stuck` after its deadline makes the worker wedged. The poller writes here, and the threads that
//! come back, under the lock of the call's connection. Pure: the poller's deadlines bring the time.

use std::collections::BTreeMap;
use std::time::Instant;

use crate::arena::Key;
use crate::rpc::MethodIndex;

/// A call: its connection and its number there.
pub(in crate::worker) type Run = (Key, u64);

/// The calls, and whether the worker is wedged by one.
#[derive(Debug, Default)]
pub(in crate::worker) struct Overdue {
    calls: BTreeMap<Run, Late>,
    is_wedged: bool,
}

#[derive(Debug)]
struct Late {
    method: Option<MethodIndex>,
    /// When it is stuck.
    at: Instant,
    is_stuck: bool,
}

/// What follows from the moment of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Due {
    /// The thread is back, or the worker was wedged before.
    Nothing,
    /// The worker is wedged, once in its life, by a call of this method, if that is known.
    Wedged(Option<MethodIndex>),
}

impl Overdue {
    /// Nobody waits for this call any more, and a thread is in it. It is stuck from `at` on.
    pub(in crate::worker) fn left(&mut self, run: Run, method: Option<MethodIndex>, at: Instant) {
        self.calls.insert(run, Late { method, at, is_stuck: false });
    }

    /// The thread is back; the moment at which it would have been stuck, which is to be forgotten.
    pub(in crate::worker) fn came_back(&mut self, run: Run) -> Option<Instant> {
        self.calls.remove(&run).map(|late| late.at)
    }

    /// The moment of this call has come.
    pub(in crate::worker) fn is_due(&mut self, run: Run) -> Due {
        let Some(late) = self.calls.get_mut(&run) else {
            return Due::Nothing;
        };
        late.is_stuck = true;
        if std::mem::replace(&mut self.is_wedged, true) { Due::Nothing } else { Due::Wedged(late.method) }
    }

    /// True while a thread is stuck.
    pub(in crate::worker) fn has_stuck(&self) -> bool {
        self.calls.values().any(|late| late.is_stuck)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(number: u64) -> Run {
        (Key { index: 1, generation: 2 }, number)
    }

    #[test]
    fn a_worker_is_wedged_once_by_the_first_call_that_stays_away() {
        let (mut overdue, at) = (Overdue::default(), Instant::now());
        for number in 1..=3 {
            overdue.left(run(number), Some(MethodIndex(7)), at);
        }
        assert!(!overdue.has_stuck());
        assert_eq!(overdue.is_due(run(2)), Due::Wedged(Some(MethodIndex(7))));
        assert!(overdue.has_stuck());
        assert_eq!(overdue.is_due(run(1)), Due::Nothing, "it was said");
    }

    #[test]
    fn a_call_that_came_back_in_time_is_not_stuck() {
        let (mut overdue, at) = (Overdue::default(), Instant::now());
        overdue.left(run(1), None, at);
        assert_eq!(overdue.came_back(run(1)), Some(at));
        assert_eq!(overdue.came_back(run(1)), None);
        assert_eq!(overdue.is_due(run(1)), Due::Nothing);
        assert!(!overdue.has_stuck());
    }

    #[test]
    fn one_that_comes_back_late_is_stuck_no_longer() {
        let mut overdue = Overdue::default();
        overdue.left(run(1), None, Instant::now());
        assert_eq!(overdue.is_due(run(1)), Due::Wedged(None));
        overdue.came_back(run(1));
        assert!(!overdue.has_stuck());
    }
}
