//! The bytes that a worker's connections hold, against the `buffers` limit.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::connection::Key;

/// The account, and the connections that wait for it to fall below the limit.
#[derive(Debug)]
pub(super) struct Buffers {
    limit: usize,
    held: AtomicUsize,
    starved: Mutex<Vec<Key>>,
    anyone_starves: AtomicBool,
}

impl Buffers {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            starved: Mutex::default(),
            anyone_starves: AtomicBool::new(false),
        }
    }

    pub(super) fn are_full(&self) -> bool {
        self.held.load(Ordering::Relaxed) >= self.limit
    }

    /// A connection that held `before` bytes holds `after` now. True when others can be fed.
    pub(super) fn account(&self, before: usize, after: usize) -> bool {
        if before == after {
            return false;
        }
        self.held.fetch_add(after, Ordering::Relaxed);
        self.held.fetch_sub(before, Ordering::Relaxed);
        after < before && self.anyone_starves.load(Ordering::SeqCst) && !self.are_full()
    }

    /// Notes a connection that is not read from until there is room.
    pub(super) fn starve(&self, key: Key) {
        self.starved.lock().push(key);
        self.anyone_starves.store(true, Ordering::SeqCst);
    }

    /// The connections to read from again, if there is room.
    pub(super) fn feed(&self) -> Vec<Key> {
        if !self.anyone_starves.load(Ordering::SeqCst) || self.are_full() {
            return Vec::new();
        }
        let mut starved = self.starved.lock();
        self.anyone_starves.store(false, Ordering::SeqCst);
        std::mem::take(&mut starved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_starved_are_fed_once_there_is_room() {
        let buffers = Buffers::new(100);
        let key = Key { index: 1, generation: 0 };
        assert!(!buffers.account(0, 120));
        assert!(buffers.are_full());
        buffers.starve(key);
        assert!(buffers.feed().is_empty());
        assert!(buffers.account(120, 20), "whoever makes room says so");
        assert_eq!(buffers.feed(), [key]);
        assert!(buffers.feed().is_empty());
    }
}
