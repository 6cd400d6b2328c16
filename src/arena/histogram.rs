//! A latency histogram of fixed size, and the formula that says where a duration falls.
//!
//! Buckets are log-linear: every octave (factor of two) from 1.024 µs to about 55 minutes is cut into four buckets
//! of equal width. Bucket 0 holds everything shorter, the last one everything longer. For a duration
//! of `n` ns with 2^e ≤ n < 2^(e+1):
//!
//! ```text
//! bucket = 1 + 4 · (e − 10) + ⌊(n − 2^e) · 4 / 2^e⌋        for n ≥ 2^10, at most 127
//! ```
//!
//! A bucket is at most a quarter as wide as its lower bound, and an estimate is its bucket's middle, so between
//! the ends it is off by at most one part in eight (12.5 %).

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// How many buckets a histogram has.
pub(crate) const BUCKETS: usize = 128;

/// log2 of the least number of nanoseconds that doesn't fall into bucket 0.
const FLOOR_LOG2: u32 = 10;
/// log2 of the number of buckets an octave has.
const PARTS_LOG2: u32 = 2;
const LAST: usize = BUCKETS - 1;

/// The bucket into which a duration of `ns` nanoseconds falls.
pub(crate) fn bucket_of(ns: u64) -> usize {
    let Some(octave) = ns.checked_ilog2().and_then(|e| e.checked_sub(FLOOR_LOG2)) else { return 0 };
    // The leading bit and the two after it: 4 to 7, of which the leading bit's 4 goes away.
    let part = (ns >> (octave + FLOOR_LOG2 - PARTS_LOG2)) & 0b11;
    let part = usize::try_from(part).unwrap_or(0);
    (1 + (octave << PARTS_LOG2) as usize + part).min(LAST)
}

/// The bounds of a bucket in nanoseconds: from the first, to below the second.
///
/// The last bucket has no end; `u64::MAX` stands for it (and is in it). Past the last bucket: its bounds.
pub(crate) fn bounds_of(bucket: usize) -> (u64, u64) {
    let lower = |bucket: usize| {
        let Some(above) = bucket.checked_sub(1) else { return 0 };
        let (octave, part) = (above >> PARTS_LOG2, above & 0b11);
        (4 + part as u64) << (octave + (FLOOR_LOG2 - PARTS_LOG2) as usize)
    };
    let bucket = bucket.min(LAST);
    let end = if bucket == LAST { u64::MAX } else { lower(bucket + 1) };
    (lower(bucket), end)
}

/// How many durations fell into each bucket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "Vec<u64>", into = "Vec<u64>")]
pub(crate) struct Histogram {
    /// The count of each bucket; [`bounds_of`] says what it holds.
    pub(crate) buckets: [u64; BUCKETS],
}

impl From<Histogram> for Vec<u64> {
    fn from(histogram: Histogram) -> Self {
        histogram.buckets.to_vec()
    }
}

impl From<Vec<u64>> for Histogram {
    /// Buckets that are missing are empty.
    fn from(counts: Vec<u64>) -> Self {
        let mut histogram = Self::default();
        for (bucket, count) in histogram.buckets.iter_mut().zip(counts) {
            *bucket = count;
        }
        histogram
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self { buckets: [0; BUCKETS] }
    }
}

impl Histogram {
    /// How many durations it holds.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().fold(0, |sum, count| sum.saturating_add(*count))
    }

    /// The duration that `part` out of `whole` of all durations do not exceed: `percentile(99, 100)`,
    /// `percentile(999, 1000)`. None if it holds nothing, or if `part` isn't 0 to `whole`.
    ///
    /// Off by at most 12.5 % from 1 µs to 55 minutes; longer ones are given as 55 minutes, shorter ones as 0.5 µs.
    pub(crate) fn percentile(&self, part: u32, whole: u32) -> Option<Duration> {
        let count: u128 = self.buckets.iter().map(|count| u128::from(*count)).sum();
        if count == 0 || whole == 0 || part > whole {
            return None;
        }
        let rank = (count * u128::from(part)).div_ceil(u128::from(whole)).max(1);
        let mut seen = 0_u128;
        let bucket = self.buckets.iter().position(|count| {
            seen += u128::from(*count);
            seen >= rank
        })?;
        Some(Duration::from_nanos(estimate(bucket)))
    }

    /// Adds what another histogram holds.
    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = count.saturating_add(*more);
        }
    }

    /// Lets no bucket hold less than in `other`.
    pub(super) fn raise_to(&mut self, other: &Self) {
        for (count, least) in self.buckets.iter_mut().zip(&other.buckets) {
            *count = (*count).max(*least);
        }
    }
}

/// What a duration of this bucket is taken for: the middle, or the start of the bucket that has no end.
fn estimate(bucket: usize) -> u64 {
    let (from, to) = bounds_of(bucket);
    if bucket >= LAST { from } else { from + (to - from) / 2 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn of(durations: &[u64]) -> Histogram {
        let mut histogram = Histogram::default();
        for ns in durations {
            histogram.buckets[bucket_of(*ns)] += 1;
        }
        histogram
    }

    #[test]
    fn durations_fall_where_the_formula_says() {
        let table = [
            (0, 0),
            (1, 0),
            (1023, 0),
            (1024, 1),
            (1279, 1),
            (1280, 2),
            (1536, 3),
            (1792, 4),
            (2047, 4),
            (2048, 5),
            (1 << 20, 41),
            (1 << 40, 121),
            ((1 << 41) + (1 << 39), 126),
            ((1 << 41) + (1 << 40) - 1, 126),
            ((1 << 41) + (1 << 40), 127),
            (u64::MAX, 127),
        ];
        for (ns, bucket) in table {
            assert_eq!(bucket_of(ns), bucket, "{ns} ns");
        }
    }

    #[test]
    fn buckets_join_without_gap_or_overlap() {
        assert_eq!(bounds_of(0), (0, 1024));
        for bucket in 1..BUCKETS {
            assert_eq!(bounds_of(bucket - 1).1, bounds_of(bucket).0, "before bucket {bucket}");
        }
        assert_eq!(bounds_of(LAST), (3_298_534_883_328, u64::MAX));
        assert_eq!(bounds_of(usize::MAX), bounds_of(LAST));
    }

    #[test]
    fn percentiles_of_a_known_mix() {
        let mut durations = vec![2_000; 98];
        durations.push(1_000_000);
        durations.push(50_000_000);
        let histogram = of(&durations);
        assert_eq!(histogram.count(), 100);
        let near = |part, whole, ns: u64| {
            let found = histogram.percentile(part, whole).unwrap().as_nanos();
            assert!(found.abs_diff(u128::from(ns)) * 8 <= u128::from(ns), "{part}/{whole}: {found} for {ns}");
        };
        near(0, 100, 2_000);
        near(50, 100, 2_000);
        near(98, 100, 2_000);
        near(99, 100, 1_000_000);
        near(999, 1000, 50_000_000);
        near(100, 100, 50_000_000);
    }

    #[test]
    fn a_percentile_of_nothing_or_beyond_the_whole_is_none() {
        assert_eq!(Histogram::default().percentile(50, 100), None);
        assert_eq!(of(&[5]).percentile(101, 100), None);
        assert_eq!(of(&[5]).percentile(0, 0), None);
        assert_eq!(of(&[5]).percentile(100, 100), Some(Duration::from_nanos(512)));
    }

    #[test]
    fn full_counts_neither_overflow_nor_wrap() {
        let mut full = Histogram { buckets: [u64::MAX; BUCKETS] };
        full.add(&full.clone());
        assert_eq!(full.count(), u64::MAX);
        assert!(full.percentile(u32::MAX, u32::MAX).is_some());
    }

    proptest! {
        #[test]
        fn a_duration_lies_within_the_bounds_of_its_bucket(shift in 0_u32..64, bits: u64) {
            let ns = bits >> shift;
            let (from, to) = bounds_of(bucket_of(ns));
            prop_assert!(from <= ns && (ns < to || to == u64::MAX));
        }

        #[test]
        fn a_longer_duration_never_falls_into_a_lower_bucket(a: u64, b: u64, shift in 0_u32..64) {
            let (a, b) = (a >> shift, b >> shift);
            prop_assert!(bucket_of(a.min(b)) <= bucket_of(a.max(b)));
        }

        #[test]
        fn an_estimate_is_off_by_an_eighth_at_most(ns in 1024_u64..3_298_534_883_328) {
            let found = estimate(bucket_of(ns));
            prop_assert!(u128::from(found.abs_diff(ns)) * 8 <= u128::from(ns), "{} for {}", found, ns);
        }

        #[test]
        fn percentiles_grow_with_their_rank(durations in prop::collection::vec(any::<u64>(), 1..50)) {
            let histogram = of(&durations);
            let all: Vec<_> = (0..=100).map(|part| histogram.percentile(part, 100)).collect();
            prop_assert!(all.is_sorted());
        }
    }
}
