//! Balance: which workers have too many connections, and how many each is to release so that others serve them.
//!
//! The balance is looked at a little after a change, because much changes at once. The escrow policy decides who gets what is released.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::Policy;
use super::state::WorkerId;

/// How soon after a change the workers' shares are looked at: what changes together is balanced together.
const SETTLE: Duration = Duration::from_millis(250);

/// For how long a worker that said that calls wait is taken to have them.
const CROWDED_FOR: Duration = Duration::from_millis(500);

/// More waiting calls than that are as bad as that many.
const MOST_WAITING: usize = 1 << 20;

/// When the balance is looked at, and which workers have said that calls wait.
#[derive(Debug, Default)]
pub(crate) struct Balance {
    /// Only after something has changed.
    at: Option<Instant>,
    /// Calls that wait, and since when that is known.
    crowded: BTreeMap<WorkerId, (Instant, usize)>,
}

/// How connections are spread by now.
#[derive(Debug)]
pub(crate) struct Spread<'a> {
    /// Some connections are nobody's yet: a balance struck now would count them wrong.
    pub(crate) is_moving: bool,
    /// The workers that take connections. None once the service ends.
    pub(crate) loads: &'a [WorkerLoad],
}

/// What a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerLoad {
    pub(crate) worker: WorkerId,
    /// Connections that could move.
    pub(crate) connections: usize,
    /// Calls that run or wait.
    pub(crate) load: usize,
}

/// How many connections a worker is to release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) worker: WorkerId,
    pub(crate) count: usize,
    /// Those whose calls wait, instead of those on which nothing happens.
    pub(crate) busy: bool,
}

impl Balance {
    /// Something has changed that may leave a worker with too much.
    pub(crate) fn soon(&mut self, now: Instant) {
        self.at.get_or_insert(now + SETTLE);
    }

    /// The numbers change at this moment, though nothing will be said then.
    pub(crate) fn at_the_latest(&mut self, at: Instant) {
        self.at = Some(self.at.map_or(at, |planned| planned.min(at)));
    }

    /// A worker says that so many calls wait there. Its word is a stranger's: sums of it must stay numbers.
    pub(crate) fn is_crowded(&mut self, worker: WorkerId, waiting: usize, now: Instant) {
        self.crowded.insert(worker, (now, waiting.min(MOST_WAITING)));
        self.soon(now);
    }

    pub(crate) fn ended(&mut self, worker: WorkerId) {
        self.crowded.remove(&worker);
    }

    /// Calls that run or wait at a worker, of which so many run. Where no call waits anywhere it does not matter who runs how many.
    pub(crate) fn load(&self, worker: WorkerId, running: impl FnOnce() -> usize) -> usize {
        if self.crowded.is_empty() {
            return 0;
        }
        running() + self.crowded.get(&worker).map_or(0, |(_, waiting)| *waiting)
    }
}

impl Policy for Balance {
    type Seen<'a> = Spread<'a>;
    type Decision = Vec<Release>;

    fn next_due(&self) -> Option<Instant> {
        self.at
    }

    fn due(&mut self, now: Instant, seen: Spread<'_>) -> Vec<Release> {
        if self.at.take_if(|at| *at <= now).is_none() {
            return Vec::new();
        }
        self.crowded.retain(|_, (since, _)| now.saturating_duration_since(*since) < CROWDED_FOR);
        if seen.loads.is_empty() {
            return Vec::new();
        }
        let plan = if seen.is_moving { Vec::new() } else { plan(seen.loads) };
        if seen.is_moving || !plan.is_empty() {
            self.soon(now);
        }
        plan
    }
}

/// What brings the busiest down to 1.3 times the mean, or the mean and one: of connections, and of calls where
/// connections are even.
fn plan(workers: &[WorkerLoad]) -> Vec<Release> {
    let by_number = too_much(workers, |has| has.connections);
    if !by_number.is_empty() {
        let release =
            |(has, excess): (&WorkerLoad, usize)| Release { worker: has.worker, count: excess, busy: false };
        return by_number.into_iter().map(release).collect();
    }
    too_much(workers, |has| has.load)
        .into_iter()
        // A single connection is as heavy wherever it is.
        .filter(|(has, _)| has.connections > 1)
        .map(|(has, excess)| {
            let each = has.load.div_ceil(has.connections).max(1);
            let count = (excess / each).clamp(1, has.connections / 2);
            Release { worker: has.worker, count, busy: true }
        })
        .collect()
}

/// Those that have more than they should if anybody has far too much, and by how much more than the mean.
fn too_much(workers: &[WorkerLoad], of: impl Fn(&WorkerLoad) -> usize) -> Vec<(&WorkerLoad, usize)> {
    let count = workers.len();
    let sum: usize = workers.iter().map(&of).sum();
    // max > 1.3 × mean and max > mean + 1, in whole numbers.
    let is_far_too_much = |amount: usize| amount * count * 10 > sum * 13 && amount * count > sum + count;
    if !workers.iter().any(|has| is_far_too_much(of(has))) {
        return Vec::new();
    }
    let mean = sum.div_ceil(count.max(1));
    let excess = |has| of(has).saturating_sub(mean);
    workers.iter().map(|has| (has, excess(has))).filter(|(_, excess)| *excess > 0).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn workers(numbers: &[(usize, usize)]) -> Vec<WorkerLoad> {
        let numbered = (0..).zip(numbers);
        numbered
            .map(|(worker, (connections, load))| WorkerLoad {
                worker,
                connections: *connections,
                load: *load,
            })
            .collect()
    }

    /// What it is, connections and load of each, and what follows: the worker, how many, whether busy ones.
    type BalanceCase = (&'static str, &'static [(usize, usize)], &'static [(WorkerId, usize, bool)]);

    #[test]
    fn what_each_releases() {
        let cases: [BalanceCase; 12] = [
            ("nobody", &[], &[]),
            ("alone", &[(100, 100)], &[]),
            ("even", &[(10, 0), (10, 0)], &[]),
            ("within 1.3 of the mean", &[(13, 0), (7, 0)], &[]),
            ("beyond", &[(14, 0), (6, 0)], &[(0, 4, false)]),
            ("one more is no reason", &[(2, 0), (0, 0)], &[]),
            ("two more are", &[(3, 0), (0, 0)], &[(0, 1, false)]),
            ("a new worker", &[(30, 0), (30, 0), (0, 0)], &[(0, 10, false), (1, 10, false)]),
            ("numbers before load", &[(14, 90), (6, 0)], &[(0, 4, false)]),
            ("load", &[(10, 8), (10, 0)], &[(0, 4, true)]),
            ("a pipeline moves as one", &[(10, 100), (10, 0)], &[(0, 5, true)]),
            ("a single connection stays", &[(1, 100), (1, 0)], &[]),
        ];
        for (what, numbers, expected) in cases {
            let expected: Vec<Release> =
                expected.iter().map(|&(worker, count, busy)| Release { worker, count, busy }).collect();
            assert_eq!(plan(&workers(numbers)), expected, "{what}");
        }
    }

    /// When it is, whether connections move, what workers have; who releases how many, and when the balance is looked at next.
    type Look<'a> = (u64, bool, &'a [WorkerLoad], &'a [Release], Option<u64>);

    #[test]
    fn the_balance_is_looked_at_a_quarter_of_a_second_after_the_first_change_and_again_after_each_release() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let (uneven, even) = (workers(&[(14, 0), (6, 0)]), workers(&[(10, 0), (10, 0)]));
        let mut balance = Balance::default();
        assert_eq!(balance.next_due(), None, "nothing has changed");
        balance.soon(at(0));
        balance.soon(at(100));
        let some = [Release { worker: 0, count: 4, busy: false }];
        let cases: [Look<'_>; 6] = [
            (249, false, &uneven, &[], Some(250)),
            (250, true, &uneven, &[], Some(500)),
            (500, false, &uneven, &some, Some(750)),
            (750, false, &even, &[], None),
            (900, false, &uneven, &[], None),
            (999, false, &[], &[], None),
        ];
        for (ms, is_moving, loads, releases, next) in cases {
            assert_eq!(balance.due(at(ms), Spread { is_moving, loads }), releases, "{ms} ms");
            assert_eq!(balance.next_due(), next.map(at), "{ms} ms");
        }
        balance.soon(at(1_000));
        balance.at_the_latest(at(1_100));
        balance.at_the_latest(at(1_200));
        assert_eq!(balance.next_due(), Some(at(1_100)));
        assert_eq!(balance.due(at(1_100), Spread { is_moving: true, loads: &[] }), [], "the service ends");
        assert_eq!(balance.next_due(), None);
    }

    #[test]
    fn calls_that_wait_count_for_half_a_second_beside_those_that_run() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut balance = Balance::default();
        assert_eq!(balance.load(1, || 3), 0, "no call waits anywhere");
        balance.is_crowded(1, usize::MAX, at(0));
        assert_eq!((balance.load(1, || 3), balance.load(2, || 3)), (3 + MOST_WAITING, 3));
        let none = || Spread { is_moving: false, loads: &[] };
        balance.due(at(499), none());
        assert_eq!(balance.load(2, || 3), 3);
        balance.soon(at(499));
        balance.due(at(749), none());
        assert_eq!(balance.load(2, || 3), 0, "that was long ago");
        balance.is_crowded(1, 7, at(800));
        balance.ended(1);
        assert_eq!(balance.load(2, || 3), 0, "it has ended");
    }

    proptest! {
        #[test]
        fn what_is_released_is_enough_and_then_all_is_quiet(
            numbers in prop::collection::vec(0_usize..2_000, 1..20),
        ) {
            let mut has: Vec<WorkerLoad> = workers(&numbers.iter().map(|count| (*count, 0)).collect::<Vec<_>>());
            let mut moving = 0;
            for release in plan(&has) {
                has[release.worker as usize].connections -= release.count;
                moving += release.count;
            }
            // As `escrow` hands over: each to whoever has the fewest.
            for _ in 0..moving {
                has.iter_mut().min_by_key(|has| has.connections).unwrap().connections += 1;
            }
            prop_assert_eq!(plan(&has), []);
        }
    }
}
