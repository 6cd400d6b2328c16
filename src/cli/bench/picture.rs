//! The latencies as bars of text: one for each range of a logarithmic scale, so that most calls and the slowest few are
//! seen in one look.

use std::time::Duration;

use crate::cli::units;
use crate::client::load::Report;

/// Ranges, and so lines, at most.
const LINES: u32 = 16;
/// The longest bar in letters.
const WIDTH: u64 = 40;
/// Parts of a letter, from an eighth on.
const EIGHTHS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];

/// One line for each range: where it begins, its bar, its share. Empty without calls.
pub(super) fn of(report: &Report) -> String {
    if report.calls == 0 {
        return String::new();
    }
    let bounds = bounds(report.min(), report.max());
    let counts: Vec<u64> = bounds
        .iter()
        .zip(bounds.iter().skip(1))
        .map(|(low, high)| report.calls_between(*low, *high))
        .collect();
    let most = counts.iter().copied().max().unwrap_or_default();
    let lines = bounds.iter().zip(&counts).map(|(low, count)| {
        let (low, bar, share) =
            (units::duration(*low), bar(*count, most), units::percent(*count, report.calls));
        format!("  {low:>9} ┤{bar}{}{share}\n", if bar.is_empty() { "" } else { " " })
    });
    lines.collect()
}

/// Bounds of ranges that each reach as many times further than the one before, from `low` to just beyond `high`.
fn bounds(low: Duration, high: Duration) -> Vec<Duration> {
    let first = low.as_secs_f64().max(1e-9);
    // A thousandth beyond, which is the precision of the measured times, or the slowest call would be left out.
    let last = high.as_secs_f64().max(first) * 1.002 + 1e-9;
    // Ranges narrower than a hundredth say nothing.
    let lines = ((last / first).ln() / 1.01_f64.ln()).ceil().clamp(1.0, f64::from(LINES));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // 1 to LINES
    let whole = lines as u32;
    let bound = |line: u32| first * (last / first).powf(f64::from(line) / lines);
    (0..=whole).map(|line| Duration::try_from_secs_f64(bound(line)).unwrap_or(Duration::MAX)).collect()
}

/// A bar of up to `WIDTH` letters; what is not nothing is seen.
fn bar(count: u64, most: u64) -> String {
    if count == 0 || most == 0 {
        return String::new();
    }
    let eighths = u128::from(count) * u128::from(WIDTH) * 8 / u128::from(most);
    let eighths = usize::try_from(eighths).unwrap_or_default().max(1);
    let mut bar = String::from('█').repeat(eighths / 8);
    bar.extend((eighths % 8).checked_sub(1).and_then(|part| EIGHTHS.get(part)));
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_is_in_proportion_and_never_invisible() {
        for (count, most, expected) in
            [(0, 10, ""), (1, 1_000_000, "▏"), (1, 80, "▌"), (3, 80, "█▌"), (0, 0, "")]
        {
            assert_eq!(bar(count, most), expected, "{count} of {most}");
        }
        assert_eq!(bar(7, 7).chars().count(), 40);
        assert_eq!(bar(u64::MAX, u64::MAX).chars().count(), 40);
    }

    #[test]
    fn bounds_grow_evenly_and_hold_every_call() {
        for (low, high, lines) in [
            (250_000, 10_000_000, 16),
            (1, 3_600_000_000_000, 16),
            (500, 500, 1),
            (0, 0, 16),
            (100_000, 103_000, 4),
        ] {
            let (low, high) = (Duration::from_nanos(low), Duration::from_nanos(high));
            let bounds = bounds(low, high);
            assert_eq!(bounds.len(), lines + 1, "{bounds:?}");
            assert!(bounds.is_sorted() && bounds.last() > Some(&high), "{bounds:?}");
            assert!(bounds.first() <= Some(&low.max(Duration::from_nanos(1))), "{bounds:?}");
        }
    }
}
