//! Durations by when they were measured, in little memory: what a percentile of a window is taken from.
//!
//! Each tenth of a second has a histogram of its own, whose classes are 6 % apart.

use std::time::Duration;

/// One histogram spans this.
const SLOT: Duration = Duration::from_millis(100);

/// Classes for each doubling of a duration.
const STEPS: u32 = 16;

/// Up to 2^36 ns, more than a minute; what is longer counts as that.
const DOUBLINGS: u32 = 36;

const CLASSES: usize = (DOUBLINGS * STEPS) as usize;

/// Durations by when they were measured.
#[derive(Debug, Clone, Default)]
pub struct Times {
    slots: Vec<Slot>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    /// Empty until something is counted; then `CLASSES` long.
    counts: Vec<u32>,
    longest_ns: u64,
}

impl Times {
    /// Counts a duration that was measured `at` after the beginning.
    pub fn add(&mut self, at: Duration, duration_ns: u64) {
        let slot = slot_of(at);
        if self.slots.len() <= slot {
            self.slots.resize_with(slot + 1, Slot::default);
        }
        let slot = &mut self.slots[slot];
        if slot.counts.is_empty() {
            slot.counts = vec![0; CLASSES];
        }
        slot.counts[class_of(duration_ns)] += 1;
        slot.longest_ns = slot.longest_ns.max(duration_ns);
    }

    /// How many were measured between the two.
    pub fn count(&self, from: Duration, to: Duration) -> u64 {
        self.between(from, to).flat_map(|slot| &slot.counts).map(|count| u64::from(*count)).sum()
    }

    /// The longest between the two.
    pub fn longest(&self, from: Duration, to: Duration) -> Duration {
        Duration::from_nanos(self.between(from, to).map(|slot| slot.longest_ns).max().unwrap_or(0))
    }

    /// The duration that `percent` of those measured within any of the windows did not exceed.
    pub fn percentile(&self, percent: f64, windows: &[(Duration, Duration)]) -> Duration {
        let mut is_in = vec![false; self.slots.len()];
        for (from, to) in windows {
            is_in[slot_of(*from).min(self.slots.len())..slot_of(*to).min(self.slots.len())].fill(true);
        }
        let mut counts = vec![0_u64; CLASSES];
        let mut longest = 0;
        for (slot, _) in self.slots.iter().zip(is_in).filter(|(_, is_in)| *is_in) {
            longest = longest.max(slot.longest_ns);
            for (sum, count) in counts.iter_mut().zip(&slot.counts) {
                *sum += u64::from(*count);
            }
        }
        let all: u64 = counts.iter().sum();
        #[expect(
            clippy::cast_precision_loss,
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "counts are far below 2^52 and never negative"
        )]
        let wanted = (all as f64 * percent / 100.0).ceil() as u64;
        let mut seen = 0;
        for (class, count) in counts.into_iter().enumerate() {
            seen += count;
            if seen >= wanted && seen > 0 {
                return Duration::from_nanos(upper_end(class).min(longest));
            }
        }
        Duration::ZERO
    }

    fn between(&self, from: Duration, to: Duration) -> impl Iterator<Item = &Slot> {
        let end = slot_of(to).min(self.slots.len());
        self.slots[slot_of(from).min(end)..end].iter()
    }
}

fn slot_of(at: Duration) -> usize {
    usize::try_from(at.as_nanos() / SLOT.as_nanos()).unwrap_or(usize::MAX - 1)
}

fn class_of(ns: u64) -> usize {
    let ns = ns.max(u64::from(STEPS));
    let doubling = ns.ilog2();
    let step = (ns >> (doubling - STEPS.ilog2())) & u64::from(STEPS - 1);
    let class = u64::from(doubling * STEPS) + step;
    usize::try_from(class).unwrap_or(usize::MAX).min(CLASSES - 1)
}

fn upper_end(class: usize) -> u64 {
    let steps = STEPS as usize;
    let (doubling, step) = (class / steps, class % steps);
    ((steps + step + 1) as u64) << doubling.saturating_sub(steps.ilog2() as usize)
}
