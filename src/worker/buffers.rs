//! The bytes that a worker's connections hold, against the `buffers` limit.
//!
//! Three rules. Below the limit everybody is read from. At the limit a connection that holds little still is:
//! a flood of large messages must not shut out small ones. And one of those that hold much is, whichever asks
//! first: if all had to wait, no message would ever become whole and nothing would be freed.

use std::collections::BTreeSet;

use crate::arena::Key;
use crate::sys::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};

/// What any connection may hold, however full the buffers are.
pub(super) const LITTLE: usize = 4 * 1024;

/// The account, and the connections that wait for it to fall below the limit.
#[derive(Debug)]
pub(super) struct Buffers {
    limit: usize,
    held: AtomicUsize,
    waiting: Mutex<Waiting>,
    /// There is something in `waiting`: spares the usual case the lock.
    anyone_waits: AtomicBool,
}

#[derive(Debug, Default)]
struct Waiting {
    starved: BTreeSet<Key>,
    /// The one that is read from although it holds much and the buffers are full.
    favoured: Option<Key>,
}

/// How much may be read from a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ration {
    All,
    /// No more than [`LITTLE`].
    Little,
    /// It was noted, and is among those that [`Buffers::feed`] returns once there is room.
    Nothing,
}

impl Buffers {
    pub(super) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            waiting: Mutex::default(),
            anyone_waits: AtomicBool::new(false),
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    pub(super) fn are_full(&self) -> bool {
        self.held.load(Ordering::SeqCst) >= self.limit
    }

    /// For a connection that holds `held` bytes, `unsent` of them in answers. To read from one with many of those
    /// frees nothing, so it is not favoured.
    pub(super) fn ration(&self, key: Key, held: usize, unsent: usize) -> Ration {
        if !self.are_full() {
            return Ration::All;
        }
        if held < LITTLE {
            return Ration::Little;
        }
        let mut waiting = self.waiting.lock();
        self.anyone_waits.store(true, Ordering::SeqCst);
        // Room made since the first look found nobody waiting and told nobody.
        if !self.are_full() {
            return Ration::All;
        }
        if unsent < LITTLE && *waiting.favoured.get_or_insert(key) == key {
            return Ration::All;
        }
        waiting.starved.insert(key);
        Ration::Nothing
    }

    /// A connection that held `before` bytes holds `after` now. True when others can be fed.
    pub(super) fn account(&self, key: Key, before: usize, after: usize) -> bool {
        if before == after {
            return false;
        }
        // In one step: were all of it added before the old is taken away, they could seem full for a moment, and whoever
        // asks just then would wait for room that is there and that nobody makes.
        if after > before {
            self.held.fetch_add(after - before, Ordering::SeqCst);
            return false;
        }
        self.held.fetch_sub(before - after, Ordering::SeqCst);
        if !self.anyone_waits.load(Ordering::SeqCst) {
            return false;
        }
        let mut waiting = self.waiting.lock();
        if after < LITTLE && waiting.favoured == Some(key) {
            waiting.favoured = None;
            return true;
        }
        !self.are_full()
    }

    /// A call has left its connection, which no longer accounts for its message; a thread or the queue still holds it.
    pub(super) fn hold_on(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Such a message is gone. True when others can be fed.
    pub(super) fn let_go(&self, bytes: usize) -> bool {
        self.held.fetch_sub(bytes, Ordering::SeqCst);
        self.anyone_waits.load(Ordering::SeqCst) && !self.are_full()
    }

    /// The connections to read from again, if there is room or nobody is favoured.
    pub(super) fn feed(&self) -> Vec<Key> {
        if !self.anyone_waits.load(Ordering::SeqCst) {
            return Vec::new();
        }
        let mut waiting = self.waiting.lock();
        if self.are_full() && waiting.favoured.is_some() {
            return Vec::new();
        }
        if !self.are_full() {
            waiting.favoured = None;
            self.anyone_waits.store(false, Ordering::SeqCst);
        }
        std::mem::take(&mut waiting.starved).into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: Key = Key { index: 1, generation: 0 };
    const SECOND: Key = Key { index: 2, generation: 0 };
    const SMALL: Key = Key { index: 3, generation: 0 };
    const MUCH: usize = 60_000;

    /// Two connections that hold much have filled them.
    fn full() -> Buffers {
        let buffers = Buffers::new(2 * MUCH);
        for key in [FIRST, SECOND] {
            assert_eq!(buffers.ration(key, 0, 0), Ration::All);
            assert!(!buffers.account(key, 0, MUCH));
        }
        buffers
    }

    #[test]
    fn one_that_holds_much_goes_on_and_the_others_wait_for_it() {
        let buffers = full();
        assert_eq!(buffers.ration(FIRST, MUCH, 0), Ration::All);
        assert_eq!(buffers.ration(SECOND, MUCH, 0), Ration::Nothing);
        assert_eq!(buffers.ration(FIRST, MUCH, 0), Ration::All, "and goes on");
        assert!(buffers.feed().is_empty());
        assert!(buffers.account(FIRST, MUCH, 0), "whoever makes room says so");
        assert_eq!(buffers.feed(), [SECOND]);
        assert!(buffers.feed().is_empty());
    }

    #[test]
    fn when_the_favoured_one_is_done_another_is_although_there_is_no_room() {
        let buffers = full();
        buffers.account(SMALL, 0, 2 * MUCH);
        assert_eq!(buffers.ration(FIRST, MUCH, 0), Ration::All);
        assert_eq!(buffers.ration(SECOND, MUCH, 0), Ration::Nothing);
        assert!(buffers.account(FIRST, MUCH, 0));
        assert!(buffers.are_full());
        assert_eq!(buffers.feed(), [SECOND]);
        assert_eq!(buffers.ration(SECOND, MUCH, 0), Ration::All);
    }

    #[test]
    fn one_whose_answers_are_not_taken_is_not_favoured() {
        let buffers = full();
        assert_eq!(buffers.ration(FIRST, MUCH, MUCH), Ration::Nothing);
        assert_eq!(buffers.ration(SECOND, MUCH, 0), Ration::All);
    }

    #[test]
    fn the_message_of_a_call_that_was_given_up_counts_until_its_thread_lets_go_of_it() {
        let buffers = full();
        assert_eq!(buffers.ration(FIRST, MUCH, MUCH), Ration::Nothing);
        buffers.hold_on(MUCH);
        assert!(!buffers.account(SECOND, MUCH, 0));
        assert!(buffers.are_full());
        assert!(buffers.let_go(MUCH));
        assert_eq!(buffers.feed(), [FIRST]);
    }

    #[test]
    fn one_that_holds_little_is_read_from_however_full_they_are() {
        let buffers = full();
        assert_eq!(buffers.ration(SMALL, 0, 0), Ration::Little);
        assert_eq!(buffers.ration(SMALL, LITTLE - 1, 0), Ration::Little);
        assert_eq!(buffers.ration(FIRST, MUCH, 0), Ration::All);
        assert_eq!(buffers.ration(SMALL, LITTLE, 0), Ration::Nothing);
    }
}
