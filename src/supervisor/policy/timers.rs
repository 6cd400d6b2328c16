//! The timer queue: which alarm rings next, and when.
//!
//! The loop has one queue of [`Alarm`]s, one for each policy, and sleeps until the first. The state policy has a queue of its own
//! timers in the same form.

use std::collections::BTreeMap;
use std::time::Instant;

use super::Policy;

/// Which policy has something to decide. Alarms that are due at once ring in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Alarm {
    Quarantine,
    State,
    LostListeners,
    Leftovers,
    Balance,
    HandOver,
    Reaping,
    SignsOfLife,
}

/// Moments, one for each key at most.
#[derive(Debug)]
pub(crate) struct TimerQueue<K> {
    moments: BTreeMap<K, Instant>,
}

impl<K> Default for TimerQueue<K> {
    fn default() -> Self {
        Self { moments: BTreeMap::new() }
    }
}

impl<K: Copy + Ord> TimerQueue<K> {
    /// From now on `key` waits for this moment, or for none.
    pub(crate) fn set(&mut self, key: K, at: Option<Instant>) {
        match at {
            Some(at) => drop(self.moments.insert(key, at)),
            None => drop(self.moments.remove(&key)),
        }
    }

    /// Has `key` wait for the moment that a policy names.
    pub(crate) fn follow(&mut self, key: K, policy: &impl Policy) {
        self.set(key, policy.next_due());
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.moments.values().min().copied()
    }

    /// Takes the first key, in the order of keys, whose moment has come.
    pub(crate) fn take_due(&mut self, now: Instant) -> Option<K> {
        let due = self.moments.iter().find(|(_, at)| **at <= now).map(|(key, _)| *key)?;
        self.moments.remove(&due);
        Some(due)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_key_has_one_moment_and_rings_once_when_that_has_come() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut queue = TimerQueue::default();
        assert_eq!((queue.next(), queue.take_due(at(9))), (None, None));
        for (key, seconds) in [('a', 5), ('b', 3), ('c', 4), ('b', 2)] {
            queue.set(key, Some(at(seconds)));
        }
        queue.set('c', None);
        assert_eq!((queue.next(), queue.take_due(at(1))), (Some(at(2)), None));
        // Both are due: the order of keys counts, and not that of their moments.
        let rung: Vec<_> = std::iter::from_fn(|| queue.take_due(at(5))).collect();
        assert_eq!((rung, queue.next()), (vec!['a', 'b'], None));
    }
}
