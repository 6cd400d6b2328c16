//! Who has too much: how many connections each worker should let go, so that others serve them.
//!
//! Pure: numbers in, numbers out. When it is asked is decided in `hand_over`; who gets what is let go, in `escrow`.

use crate::supervisor::policy::state::WorkerId;

/// What a worker has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct WorkerLoad {
    pub(crate) worker: WorkerId,
    /// Connections that could move.
    pub(crate) connections: usize,
    /// Calls that run or wait.
    pub(crate) load: usize,
}

/// How many connections a worker should let go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Release {
    pub(crate) worker: WorkerId,
    pub(crate) count: usize,
    /// Those whose calls wait, instead of those on which nothing happens.
    pub(crate) busy: bool,
}

/// What brings the busiest down to 1.3 times the mean, or the mean and one: of connections, and of calls where
/// connections are even.
pub(crate) fn plan(workers: &[WorkerLoad]) -> Vec<Release> {
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
    fn what_each_lets_go() {
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

    proptest! {
        #[test]
        fn what_is_let_go_is_enough_and_then_all_is_quiet(
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
