//! Durations by when they were measured, in little memory: what a percentile of a window is taken from.
//!
//! Each tenth of a second has a histogram of its own, whose classes are 1.6 % apart; of those that are over only the
//! classes that were met are kept.

use std::time::Duration;

/// One histogram spans this.
const SLOT: Duration = Duration::from_millis(100);

/// Classes for each doubling of a duration.
const STEPS: u32 = 64;

/// Up to 2^36 ns, more than a minute; what is longer counts as that.
const DOUBLINGS: u32 = 36;

const CLASSES: usize = (DOUBLINGS * STEPS) as usize;

/// Durations by when they were measured.
#[derive(Debug, Clone, Default)]
pub struct Times {
    /// Those that are over, and the one that is not, which `counts` has the rest of.
    slots: Vec<Slot>,
    /// All classes of the last slot; empty before the first.
    counts: Vec<u32>,
}

#[derive(Debug, Clone, Default)]
struct Slot {
    met: Vec<(u16, u32)>,
    longest_ns: u64,
}

impl Times {
    /// Counts a duration that was measured `at` after the beginning. Time doesn't go back: what comes late counts as of the
    /// last slot.
    pub fn add(&mut self, at: Duration, duration_ns: u64) {
        let slot = slot_of(at);
        if self.slots.len() <= slot {
            self.close();
            self.slots.resize_with(slot + 1, Slot::default);
            self.counts.resize(CLASSES, 0);
        }
        self.counts[class_of(duration_ns)] += 1;
        if let Some(slot) = self.slots.last_mut() {
            slot.longest_ns = slot.longest_ns.max(duration_ns);
        }
    }

    /// Keeps of the last slot what was met.
    fn close(&mut self) {
        let Some(last) = self.slots.last_mut() else { return };
        for (class, count) in self.counts.iter_mut().enumerate().filter(|(_, count)| **count > 0) {
            last.met.push((u16::try_from(class).unwrap_or(u16::MAX), *count));
            *count = 0;
        }
    }

    /// The longest between the two.
    pub fn longest(&self, from: Duration, to: Duration) -> Duration {
        let end = slot_of(to).min(self.slots.len());
        let between = &self.slots[slot_of(from).min(end)..end];
        Duration::from_nanos(between.iter().map(|slot| slot.longest_ns).max().unwrap_or(0))
    }

    /// The duration that `percent` of those measured within any of the windows did not exceed.
    pub fn percentile(&self, percent: f64, windows: &[(Duration, Duration)]) -> Duration {
        let mut is_in = vec![false; self.slots.len()];
        for (from, to) in windows {
            let end = slot_of(*to).min(self.slots.len());
            is_in[slot_of(*from).min(end)..end].fill(true);
        }
        let mut counts = vec![0_u64; CLASSES];
        let mut longest = 0;
        for (slot, _) in self.slots.iter().zip(&is_in).filter(|(_, is_in)| **is_in) {
            longest = longest.max(slot.longest_ns);
            for (class, count) in &slot.met {
                counts[usize::from(*class)] += u64::from(*count);
            }
        }
        if is_in.last() == Some(&true) {
            counts.iter_mut().zip(&self.counts).for_each(|(sum, count)| *sum += u64::from(*count));
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
