//! The bytes that a worker's connections hold, against the `buffers` limit.
//!
//! Three rules for reading. Below the limit everybody is read from. At the limit a connection that holds little still is:
//! a flood of large messages must not shut out small ones. And one of those that hold much is, whichever asks
//! first: if all had to wait, no message would ever become whole and nothing would be freed.
//!
//! And one for answers, whose size is known only when they are there: a call is run where what its method has been answering
//! lately still fits, or is little. What a call is expected to answer counts while it runs, so that many threads at once fit together.

use std::collections::BTreeSet;

use crate::arena::Key;
use crate::sys::sync::{AtomicBool, AtomicUsize, Mutex, Ordering};

/// What any connection may hold, however full the buffers are.
pub(crate) const LITTLE: usize = 4 * 1024;

/// The account, and the connections that wait for it to fall below the limit.
#[derive(Debug)]
pub(crate) struct Buffers {
    limit: usize,
    held: AtomicUsize,
    /// Bytes of the last answer that did not fit, until one of them would.
    wanted: AtomicUsize,
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

/// What is expected of the answer to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Expected {
    /// Bytes that it will add.
    pub(crate) more: usize,
    pub(crate) certainty: Certainty,
}

/// How sure it is that an answer is little.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Certainty {
    /// All answers of its method are.
    Method,
    /// Those of its method have been longer, but not on this connection.
    Connection,
    /// Those of its method have been longer, and there was none on this connection yet.
    Unknown,
}

impl Certainty {
    /// How full the buffers may be for a little answer. One that is sure to be little always fits: each connection has room for one.
    /// The less sure it is the sooner it is refused, so that callers who are known are served while strangers fill the buffers.
    fn most(self, limit: usize) -> usize {
        match self {
            Self::Method => usize::MAX,
            Self::Connection => limit.saturating_add(limit / 4),
            Self::Unknown => limit.saturating_add(limit / 8),
        }
    }
}

/// How much may be read from a connection now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ration {
    All,
    /// No more than [`LITTLE`].
    Little,
    /// It was noted, and is among those that [`Buffers::feed`] returns once there is room.
    Nothing,
}

impl Buffers {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            limit,
            held: AtomicUsize::new(0),
            wanted: AtomicUsize::new(0),
            waiting: Mutex::default(),
            anyone_waits: AtomicBool::new(false),
        }
    }

    #[cfg(any(test, fuzzing))]
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::SeqCst)
    }

    pub(crate) fn are_full(&self) -> bool {
        self.held.load(Ordering::SeqCst) >= self.limit
    }

    /// So little is held that it would fit beside what any other worker holds.
    pub(crate) fn are_nearly_empty(&self) -> bool {
        self.held.load(Ordering::SeqCst) < self.limit / NEXT_TO_NOTHING
    }

    /// Whether a call may be run of whose answer so much is expected, on a connection with `unsent` bytes of answers that it has not
    /// taken.
    pub(crate) fn have_room_for(&self, Expected { more, certainty }: Expected, unsent: usize) -> bool {
        let held = self.held.load(Ordering::SeqCst);
        let fits = held.saturating_add(more) < self.limit;
        let wanted = self.wanted.load(Ordering::Relaxed);
        // Written only where it changes: every call comes by. Of two threads that meet here one may be forgotten: it is an estimate.
        if !fits && more > wanted {
            self.wanted.store(more, Ordering::Relaxed);
        } else if fits && wanted > 0 && held.saturating_add(wanted) < self.limit {
            self.wanted.store(0, Ordering::Relaxed);
        }
        fits || may_answer(held, self.limit, Expected { more, certainty }, unsent)
    }

    /// Answers are refused for want of room: nothing more is begun on a connection that does not take those it has.
    pub(crate) fn lack_room(&self) -> bool {
        let wanted = self.wanted.load(Ordering::Relaxed);
        self.held.load(Ordering::SeqCst).saturating_add(wanted) >= self.limit
    }

    /// For a connection that holds `held` bytes, `unsent` of them in answers. To read from one with many of those
    /// frees nothing, so it is not favoured.
    pub(crate) fn ration(&self, key: Key, held: usize, unsent: usize) -> Ration {
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
    pub(crate) fn account(&self, key: Key, before: usize, after: usize) -> bool {
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
    pub(crate) fn hold_on(&self, bytes: usize) {
        self.held.fetch_add(bytes, Ordering::SeqCst);
    }

    /// Such a message is gone. True when others can be fed.
    pub(crate) fn let_go(&self, bytes: usize) -> bool {
        self.held.fetch_sub(bytes, Ordering::SeqCst);
        self.anyone_waits.load(Ordering::SeqCst) && !self.are_full()
    }

    /// The connections to read from again, if there is room or nobody is favoured.
    pub(crate) fn feed(&self) -> Vec<Key> {
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

/// With less than this part of the limit the buffers hold next to nothing: an answer that is larger than all of them will never
/// fit better.
const NEXT_TO_NOTHING: usize = 8;

fn may_answer(held: usize, limit: usize, expected: Expected, unsent: usize) -> bool {
    let Expected { more, certainty } = expected;
    if held.saturating_add(more) < limit {
        return true;
    }
    match (unsent < LITTLE, more < LITTLE) {
        // It would wait behind answers that its caller does not take.
        (false, _) => false,
        (true, true) => held < certainty.most(limit),
        (true, false) => held < limit / NEXT_TO_NOTHING,
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
    fn an_answer_is_made_where_it_fits_and_a_little_one_where_its_caller_reads() {
        let (limit, large) = (800_000, 100_000);
        for (held, more, unsent, may, why) in [
            (0, 0, 0, true, "nothing is held"),
            (700_000 - 1, large, 0, true, "it fits"),
            (700_000 - 1, large, 700_000, true, "it fits, whatever else its caller has not read"),
            (700_000, large, 0, false, "it would fill them"),
            (700_000, LITTLE - 1, 0, true, "a little one fits"),
            (900_000, LITTLE - 1, LITTLE - 1, true, "they are full, and a little one always fits"),
            (800_000, 0, LITTLE, false, "a little one, but its caller does not read"),
            (800_000, LITTLE, 0, false, "no little one"),
            (0, 900_000, 0, true, "larger than all buffers, and nobody else holds anything"),
            (99_999, 900_000, 0, true, "or next to nothing"),
            (100_000, 900_000, 0, false, "it waits until others have read theirs"),
            (usize::MAX, usize::MAX, 0, false, "numbers that can't be added"),
        ] {
            let expected = Expected { more, certainty: Certainty::Method };
            assert_eq!(may_answer(held, limit, expected, unsent), may, "{held}, {more}, {unsent}: {why}");
        }
    }

    #[test]
    fn the_less_sure_it_is_that_an_answer_is_little_the_sooner_it_is_refused() {
        let fits = |held, certainty| may_answer(held, 800_000, Expected { more: LITTLE - 1, certainty }, 0);
        for (held, expected) in [
            (899_999, [true, true, true]),
            (900_000, [true, true, false]),
            (999_999, [true, true, false]),
            (1_000_000, [true, false, false]),
            (usize::MAX, [true, false, false]),
        ] {
            let all = [Certainty::Method, Certainty::Connection, Certainty::Unknown];
            assert_eq!(
                all.map(|certainty| fits(held.min(usize::MAX - 1), certainty)),
                expected,
                "{held} bytes are held"
            );
        }
    }

    #[test]
    fn an_answer_that_does_not_fit_makes_them_full_for_those_who_do_not_read_until_it_would() {
        let buffers = Buffers::new(800_000);
        buffers.account(FIRST, 0, 750_000);
        assert!(!buffers.lack_room());
        let of = |more| Expected { more, certainty: Certainty::Method };
        assert!(!buffers.have_room_for(of(100_000), 0));
        assert!(buffers.lack_room() && !buffers.are_full());
        assert!(buffers.have_room_for(of(10), 0), "a little one fits");
        assert!(buffers.lack_room(), "which says nothing of the other");
        buffers.account(FIRST, 750_000, 600_000);
        assert!(!buffers.lack_room());
        assert!(buffers.have_room_for(of(10), 0));
        buffers.account(FIRST, 600_000, 750_000);
        assert!(!buffers.lack_room(), "nobody has wanted much since");
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
