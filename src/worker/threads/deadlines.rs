//! The moments at which time alone changes something, earliest first.
//!
//! Any thread adds; the poller sleeps until the earliest. A connection has one entry at most, however many calls it
//! has: it is looked at again when that entry is due, and says then when it wants to be looked at next.

use std::collections::BTreeSet;
use std::time::Instant;

use crate::sys::sync::Mutex;

/// Entries with their moments.
#[derive(Debug)]
pub(crate) struct Deadlines<T> {
    inner: Mutex<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    entries: BTreeSet<(Instant, T)>,
    sleep: Sleep,
}

#[derive(Debug, Clone, Copy)]
enum Sleep {
    Awake,
    Until(Option<Instant>),
}

impl<T: Ord + Copy> Deadlines<T> {
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::new(Inner { entries: BTreeSet::new(), sleep: Sleep::Awake }) }
    }

    /// Adds an entry, in place of the one for the same at `instead_of`. True when the poller sleeps for longer than
    /// that and must be woken.
    pub(crate) fn add(&self, at: Instant, entry: T, instead_of: Option<Instant>) -> bool {
        let mut inner = self.inner.lock();
        if let Some(before) = instead_of {
            inner.entries.remove(&(before, entry));
        }
        inner.entries.insert((at, entry));
        match inner.sleep {
            Sleep::Awake => false,
            Sleep::Until(None) => true,
            Sleep::Until(Some(until)) => at < until,
        }
    }

    /// Forgets an entry: of a connection that is closed nothing must stay, or a service with many short ones would
    /// remember all of them until they would have been idle.
    pub(crate) fn remove(&self, at: Instant, entry: T) {
        self.inner.lock().entries.remove(&(at, entry));
    }

    /// The poller goes to sleep until the returned moment (None: until something else happens).
    pub(crate) fn fall_asleep(&self) -> Option<Instant> {
        let mut inner = self.inner.lock();
        let until = inner.entries.first().map(|(at, _)| *at);
        inner.sleep = Sleep::Until(until);
        until
    }

    pub(crate) fn wake_up(&self) {
        self.inner.lock().sleep = Sleep::Awake;
    }

    /// Takes an entry whose moment has come.
    pub(crate) fn next_due(&self, now: Instant) -> Option<(Instant, T)> {
        let mut inner = self.inner.lock();
        if inner.entries.first().is_none_or(|(at, _)| *at > now) {
            return None;
        }
        inner.entries.pop_first()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn entries_come_out_in_order_and_not_early() {
        let (deadlines, now) = (Deadlines::new(), Instant::now());
        let later = now + Duration::from_secs(1);
        deadlines.add(later, "later", None);
        deadlines.add(now, "now", None);
        assert_eq!(deadlines.next_due(now), Some((now, "now")));
        assert_eq!(deadlines.next_due(now), None);
        assert_eq!(deadlines.next_due(later), Some((later, "later")));
    }

    #[test]
    fn a_moved_entry_comes_once_and_a_removed_one_never() {
        let (deadlines, now) = (Deadlines::new(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        deadlines.add(at(9), "moved", None);
        deadlines.add(at(1), "moved", Some(at(9)));
        deadlines.add(at(2), "removed", None);
        deadlines.remove(at(2), "removed");
        assert_eq!(deadlines.next_due(at(10)), Some((at(1), "moved")));
        assert_eq!(deadlines.next_due(at(10)), None);
    }

    #[test]
    fn a_sleeping_poller_is_woken_only_for_an_earlier_entry() {
        let (deadlines, now) = (Deadlines::new(), Instant::now());
        let at = |seconds| now + Duration::from_secs(seconds);
        assert!(!deadlines.add(at(5), 0, None), "an awake poller looks before it sleeps");
        assert_eq!(deadlines.fall_asleep(), Some(at(5)));
        assert!(!deadlines.add(at(6), 1, None));
        assert!(deadlines.add(at(4), 2, None));
        deadlines.wake_up();
        assert!(!deadlines.add(at(1), 3, None));
    }

    #[test]
    fn without_entries_anything_wakes_the_poller() {
        let deadlines = Deadlines::new();
        assert_eq!(deadlines.fall_asleep(), None);
        assert!(deadlines.add(Instant::now(), 0, None));
    }
}
