//! The sums over all workers of the service, living and ended, which never go back.
//!
//! The supervisor and the admin process keep one each. Pure: snapshots in, sums out; who reads the arenas, and
//! when, is not known here.

use std::collections::BTreeMap;

use super::snapshot::Snapshot;
use super::totals::Totals;

/// Adds up workers. `K` names a worker and must not be used again for another one.
#[derive(Debug, Clone)]
pub(crate) struct Scoreboard<K> {
    ended: Totals,
    /// The most that each living worker has ever said, number by number: a scribbled arena may say less later.
    living: BTreeMap<K, Totals>,
}

impl<K: Ord> Scoreboard<K> {
    /// A scoreboard that starts from what workers had counted that have ended already.
    pub(crate) fn new(ended: Totals) -> Self {
        Self { ended, living: BTreeMap::new() }
    }

    /// Takes in what a living worker's arena says now.
    pub(crate) fn observe(&mut self, worker: K, now: &Snapshot) {
        self.living.entry(worker).or_default().raise_to(&now.totals);
    }

    /// Moves a worker that has ended over to the ended ones, with what its arena said last, if that could be read.
    pub(crate) fn end(&mut self, worker: &K, last: Option<&Snapshot>) {
        let mut totals = self.living.remove(worker).unwrap_or_default();
        if let Some(last) = last {
            totals.raise_to(&last.totals);
        }
        self.ended.fold_ended(&totals);
    }

    /// What the workers that have ended had counted.
    pub(crate) fn ended(&self) -> &Totals {
        &self.ended
    }

    /// The sums of all workers, living and ended.
    pub(crate) fn sum(&self) -> Totals {
        let mut sum = self.ended.clone();
        for totals in self.living.values() {
            sum.add(totals);
        }
        sum
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::histogram::{BUCKETS, Histogram};
    use crate::arena::totals::MethodTotals;
    use crate::arena::{Counter, Outcome, writer_and_reader};
    use proptest::prelude::*;

    fn said(begun: u64, ok: u64) -> Snapshot {
        let histogram = Histogram { buckets: [ok; BUCKETS] };
        let mut totals = Totals::of_methods(vec![MethodTotals { ok, errors: begun, run_ns: ok, histogram }]);
        totals.begun = begun;
        totals.count(Counter::Ok, ok);
        Snapshot { identity: None, totals, running: vec![] }
    }

    fn is_at_least(now: &Totals, before: &Totals) -> bool {
        let mut raised = now.clone();
        raised.raise_to(before);
        raised == *now
    }

    #[test]
    fn a_worker_that_ends_leaves_its_totals_behind() {
        let (mut arena, reader) = writer_and_reader(1, 1);
        let mut row = arena.row(0).unwrap();
        row.connection_opened();
        let mut board = Scoreboard::new(Totals::default());
        for _ in 0..2 {
            row.begin(0, 1);
            row.finish(0, Outcome::Ok, 2_000);
            board.observe("first", &reader.snapshot(0));
        }
        assert_eq!((board.sum().answered(), board.sum().connections_open()), (2, 1));
        row.begin(0, 1);
        board.end(&"first", Some(&reader.snapshot(0)));
        assert_eq!((board.sum().begun, board.sum().answered(), board.sum().connections_open()), (3, 2, 0));
        board.observe("second", &said(5, 5));
        assert_eq!((board.sum().answered(), board.ended().answered()), (7, 2));
        assert_eq!(board.sum().methods[0].histogram.count(), 2 + 5 * BUCKETS as u64);
    }

    #[test]
    fn a_worker_that_says_less_than_before_counts_as_before() {
        let mut board = Scoreboard::new(Totals::default());
        board.observe(1, &said(10, 10));
        board.observe(1, &said(0, 3));
        assert_eq!((board.sum().begun, board.sum().answered()), (10, 10));
        board.end(&1, Some(&said(0, 0)));
        assert_eq!((board.sum().begun, board.sum().answered()), (10, 10));
    }

    #[test]
    fn a_worker_whose_arena_cannot_be_read_any_more_counts_as_last_seen() {
        let mut board = Scoreboard::new(Totals::default());
        board.observe(1, &said(4, 3));
        board.end(&1, None);
        board.end(&2, None);
        assert_eq!((board.sum().begun, board.sum().answered()), (4, 3));
    }

    #[test]
    fn a_scoreboard_may_start_from_earlier_totals() {
        let mut ended = Totals::default();
        ended.fold_ended(&said(4, 3).totals);
        ended.fold_ended(&said(1, 1).totals);
        let mut board = Scoreboard::new(ended);
        board.observe(1, &said(1, 0));
        assert_eq!((board.sum().begun, board.sum().answered()), (6, 4));
    }

    proptest! {
        #[test]
        fn sums_never_go_back_whatever_the_arenas_say(
            steps in prop::collection::vec((0_u8..4, 0_u8..3, any::<u64>(), 0_u32..64), 0..40),
        ) {
            let mut board = Scoreboard::new(Totals::default());
            let mut before = board.sum();
            for (step, (worker, kind, bits, shift)) in steps.into_iter().enumerate() {
                let snapshot = said(bits >> shift, bits.rotate_left(32) >> shift);
                // An ended worker's name is not used again.
                let name = (worker, if kind == 0 { step } else { 0 });
                match kind {
                    0 => board.end(&name, Some(&snapshot)),
                    1 if step % 2 == 0 => board.end(&name, None),
                    _ => board.observe(name, &snapshot),
                }
                let now = board.sum();
                prop_assert!(is_at_least(&now, &before), "{now:?} after {before:?}");
                before = now;
            }
        }
    }
}
