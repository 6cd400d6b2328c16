//! What a load measured: counts, and the latencies of the calls that were answered right.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;

use crate::sys::clock::whole_ns;

/// Longer latencies are counted as this one.
const LONGEST: Duration = Duration::from_secs(3600);

/// Three significant digits: a latency is told to within 0.1 %.
const DIGITS: u8 = 3;

/// What came of a load. Counts are of calls that started in the measured time (in an open loop: were due in it).
///
/// Every such call is in exactly one of `calls`, `errors`, `wrong` and `unanswered`, unless the load was stopped early:
/// then the calls still on their way are in none.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct Report {
    /// Calls that were answered right.
    pub calls: u64,
    /// Calls that were answered with an error.
    pub errors: u64,
    /// Calls whose answer was not what was expected. Each costs its connection, which is made anew.
    pub wrong: u64,
    /// Calls without an answer: their connection ended, or none came within five seconds after the end.
    /// Calls of the warm-up that are never answered count too.
    pub unanswered: u64,
    /// Connections that the server closed during the measured time.
    pub closed: u64,
    /// Right answers that arrived in the measured time, whenever their call had started: what the rate is made of.
    pub arrived: u64,
    /// The measured time, without warm-up.
    pub elapsed: Duration,
    /// CPU time that the load itself used in the measured time.
    pub load_cpu: Duration,
    /// The beginning of the first error answer.
    pub first_error: Option<String>,
    /// What was expected and found in the first wrong answer.
    pub first_wrong: Option<String>,
    latency: Latencies,
}

/// A histogram whose thousands of buckets stay out of debug output.
#[derive(Clone)]
struct Latencies(Histogram<u64>);

impl fmt::Debug for Latencies {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ns = |percent| Duration::from_nanos(self.0.value_at_percentile(percent));
        write!(f, "{:?} to {:?}, median {:?}", Duration::from_nanos(self.0.min()), ns(100.0), ns(50.0))
    }
}

impl Report {
    pub(super) fn new() -> Self {
        Self {
            calls: 0,
            errors: 0,
            wrong: 0,
            unanswered: 0,
            closed: 0,
            elapsed: Duration::ZERO,
            load_cpu: Duration::ZERO,
            first_error: None,
            first_wrong: None,
            arrived: 0,
            latency: Latencies(histogram()),
        }
    }

    /// Counts `calls` that were answered right after `latency_ns`.
    pub(super) fn record(&mut self, latency_ns: u64, calls: u64) {
        self.calls += calls;
        self.latency.0.saturating_record_n(latency_ns, calls);
    }

    /// Right answers a second over the measured time, 0 when there was none. An answer counts when it arrived in that
    /// time, also if its call had started before; those that arrived later do not raise the rate.
    pub fn rate(&self) -> f64 {
        if self.elapsed.is_zero() {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss)] // far more calls than a run can have are exact
        let arrived = self.arrived as f64;
        arrived / self.elapsed.as_secs_f64()
    }

    /// The latency that `percent` (0 to 100) of the calls answered right did not exceed, to within 0.1 %; zero when there
    /// were none.
    pub fn percentile(&self, percent: f64) -> Duration {
        if self.latency.0.is_empty() {
            return Duration::ZERO;
        }
        Duration::from_nanos(self.latency.0.value_at_percentile(percent).min(self.latency.0.max()))
    }

    /// The longest latency, to within 0.1 %.
    pub fn max(&self) -> Duration {
        Duration::from_nanos(self.latency.0.max())
    }

    /// The shortest latency, to within 0.1 %; zero when there was none.
    pub fn min(&self) -> Duration {
        Duration::from_nanos(if self.latency.0.is_empty() { 0 } else { self.latency.0.min() })
    }

    /// The mean latency.
    pub fn mean(&self) -> Duration {
        Duration::from_secs_f64(self.latency.0.mean() / 1e9)
    }

    /// Calls answered right whose latency was from `low` on and below `high`, at the histogram's precision.
    pub fn calls_between(&self, low: Duration, high: Duration) -> u64 {
        let low = self.latency.0.lowest_equivalent(whole_ns(low));
        let high = self.latency.0.lowest_equivalent(whole_ns(high));
        if low >= high { 0 } else { self.latency.0.count_between(low, high - 1) }
    }

    /// The share of one core that the load used, 0 to 1: near 1 it may have been the load that was measured.
    pub fn load_share(&self) -> f64 {
        if self.elapsed.is_zero() { 0.0 } else { self.load_cpu.as_secs_f64() / self.elapsed.as_secs_f64() }
    }

    /// True if every call was answered right and no connection was closed.
    pub fn is_clean(&self) -> bool {
        self.errors == 0 && self.wrong == 0 && self.unanswered == 0 && self.closed == 0
    }

    /// Adds what another load measured at the same time: counts add up, the longer time holds.
    pub fn merge(&mut self, other: &Self) {
        self.calls += other.calls;
        self.errors += other.errors;
        self.wrong += other.wrong;
        self.unanswered += other.unanswered;
        self.closed += other.closed;
        self.arrived += other.arrived;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.load_cpu += other.load_cpu;
        if self.first_error.is_none() {
            self.first_error.clone_from(&other.first_error);
        }
        if self.first_wrong.is_none() {
            self.first_wrong.clone_from(&other.first_wrong);
        }
        // All histograms have one shape, so each value of the other has its place in this one.
        let added = self.latency.0.add(&other.latency.0);
        debug_assert!(added.is_ok(), "{added:?}");
    }
}

fn histogram() -> Histogram<u64> {
    let made = Histogram::new_with_bounds(1, whole_ns(LONGEST), DIGITS);
    made.expect("the bounds are constants, and in order")
}

/// How a load is getting on, for a progress bar.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub struct Progress {
    /// What the load is about.
    pub phase: Phase,
    /// Time since the first call, warm-up included.
    pub elapsed: Duration,
    /// As in the report so far.
    pub calls: u64,
    /// Errors, wrong answers and calls without an answer so far.
    pub failed: u64,
    /// Connections that are open now.
    pub open: usize,
}

/// What a load is about. Each change is told at once, so that a caller can measure something else over the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is counted yet.
    WarmUp,
    /// The measured time.
    Measuring,
    /// The measured time is over; answers to the last calls are waited for.
    Finishing,
}
