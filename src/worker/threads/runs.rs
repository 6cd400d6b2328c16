//! What the pool's threads run, since when, and how long runs of each method took: from that it is estimated when a thread
//! will be free.
//!
//! Each thread writes its own row, in a cache line of its own; readers are callers that are refused. Nothing outlives the
//! process, so a death at any point leaves nothing to be found.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::rpc::MethodIndex;

/// What a run is taken for while no run of its method has ended yet.
const UNKNOWN: Duration = Duration::from_millis(100);

#[derive(Debug)]
pub(in crate::worker) struct Runs {
    rows: Box<[Run]>,
    /// How long a run takes on average, by the method's number; 0 where none has ended.
    means_ns: Box<[AtomicU64]>,
}

#[derive(Debug, Default)]
#[repr(align(64))]
struct Run {
    /// On the monotonic clock; 0 where the thread runs nothing.
    since_ns: AtomicU64,
    method: AtomicUsize,
}

impl Runs {
    pub(in crate::worker) fn new(threads: usize, methods: usize) -> Self {
        let rows = std::iter::repeat_with(Run::default).take(threads).collect();
        Self { rows, means_ns: std::iter::repeat_with(AtomicU64::default).take(methods).collect() }
    }

    /// The thread begins a run.
    pub(in crate::worker) fn begin(&self, thread: usize, method: MethodIndex, now_ns: u64) {
        if let Some(row) = self.rows.get(thread) {
            row.method.store(method.0, Ordering::Relaxed);
            row.since_ns.store(now_ns.max(1), Ordering::Relaxed);
        }
    }

    /// It is over, after so long.
    pub(in crate::worker) fn end(&self, thread: usize, method: MethodIndex, took: Duration) {
        if let Some(row) = self.rows.get(thread) {
            row.since_ns.store(0, Ordering::Relaxed);
        }
        if let Some(mean) = self.means_ns.get(method.0) {
            mean.store(next_mean(mean.load(Ordering::Relaxed), took), Ordering::Relaxed);
        }
    }

    /// When the first run ends, be it of this method or of any. None where there is none.
    pub(in crate::worker) fn first_end(&self, method: Option<MethodIndex>, now_ns: u64) -> Option<Duration> {
        let runs = self.rows.iter().filter_map(|row| {
            let since_ns = row.since_ns.load(Ordering::Relaxed);
            let of = MethodIndex(row.method.load(Ordering::Relaxed));
            let counts = since_ns != 0 && method.is_none_or(|method| method == of);
            counts.then(|| (of, Duration::from_nanos(now_ns.saturating_sub(since_ns))))
        });
        runs.map(|(method, age)| rest(age, self.mean(method))).min()
    }

    fn mean(&self, method: MethodIndex) -> Duration {
        Duration::from_nanos(self.means_ns.get(method.0).map_or(0, |mean| mean.load(Ordering::Relaxed)))
    }
}

/// How much longer a run takes that has taken `age`, where others took `mean`. One that takes longer than others is expected to
/// take as long again.
fn rest(age: Duration, mean: Duration) -> Duration {
    let mean = if mean.is_zero() { UNKNOWN } else { mean };
    if age < mean { mean.saturating_sub(age) } else { age }
}

/// The mean after a run that took so long. It is exponential with a weight of 1/8 for the newest, as TCP's round-trip
/// estimate (RFC 6298). Two threads that meet here may lose one sample: it is an estimate.
pub(in crate::worker) fn next_mean(mean_ns: u64, took: Duration) -> u64 {
    let sample = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
    // 0 stands for "not known".
    if mean_ns == 0 { sample.max(1) } else { mean_ns - mean_ns / 8 + sample / 8 }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    #[test]
    fn the_rest_of_a_run_is_what_the_mean_leaves_or_as_long_again() {
        let cases = [
            // age, mean, rest
            (0, 400, 400),
            (300, 400, 100),
            (400, 400, 400),
            (2_000, 400, 2_000),
            (0, 0, 100),
            (99, 0, 1),
            (1_000, 0, 1_000),
        ];
        for (age, mean, expected) in cases {
            assert_eq!(rest(MS(age), MS(mean)), MS(expected), "{age} ms of {mean}");
        }
    }

    #[test]
    fn the_first_of_those_that_run_ends_first() {
        let runs = Runs::new(3, 2);
        let (quick, slow) = (MethodIndex(0), MethodIndex(1));
        assert_eq!(runs.first_end(None, 5), None);
        for (method, took) in [(quick, MS(10)), (slow, MS(8_000))] {
            runs.begin(0, method, 1);
            runs.end(0, method, took);
        }
        let now_ns = 1_000_000_000;
        runs.begin(1, slow, now_ns);
        assert_eq!(runs.first_end(None, now_ns), Some(MS(8_000)));
        assert_eq!(runs.first_end(Some(quick), now_ns), None);
        runs.begin(2, quick, now_ns);
        assert_eq!(runs.first_end(None, now_ns), Some(MS(10)));
        assert_eq!(runs.first_end(Some(slow), now_ns), Some(MS(8_000)));
    }

    #[test]
    fn the_mean_follows_what_runs() {
        let mean = (0..100).fold(next_mean(0, MS(800)), |mean, _| next_mean(mean, MS(8)));
        assert!(Duration::from_nanos(mean) < MS(9), "{mean}");
    }
}
