//! Figures made of several runs: the median, and how far the runs were apart.

/// A figure of several runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Spread {
    pub least: f64,
    pub median: f64,
    pub most: f64,
}

impl Spread {
    /// None without a sample.
    pub fn of(samples: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut sorted: Vec<f64> = samples.into_iter().collect();
        sorted.sort_by(f64::total_cmp);
        let (least, most) = (*sorted.first()?, *sorted.last()?);
        // The two in the middle, which are one and the same of an odd number.
        let (low, high) = (sorted[(sorted.len() - 1) / 2], sorted[sorted.len() / 2]);
        Some(Self { least, median: f64::midpoint(low, high), most })
    }

    /// One figure that was taken once.
    pub fn single(value: f64) -> Self {
        Self { least: value, median: value, most: value }
    }
}

/// A count, to calculate with.
#[expect(clippy::cast_precision_loss, reason = "counts of a benchmark are far below 2^52")]
pub fn float(count: u64) -> f64 {
    count as f64
}

/// A rate or count for people: `1,234,567`.
pub fn grouped(number: f64) -> String {
    let digits = format!("{number:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

/// A time for people, with its unit.
pub fn time(seconds: f64) -> String {
    match seconds {
        s if s >= 1.0 => format!("{s:.2} s"),
        s if s >= 1e-3 => format!("{:.2} ms", s * 1e3),
        s => format!("{:.1} µs", s * 1e6),
    }
}
