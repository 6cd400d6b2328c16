//! One figure and how it is told: a line when it was taken, a row of the Markdown table at the end.

use std::fmt::Write;

use super::support::drive::TOLERATED;
use super::support::numbers::Spread;

/// What a figure should be.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wanted {
    AtLeast(f64),
    AtMost(f64),
    /// It is only told.
    ForTheRecord,
}

/// How its numbers are written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Unit {
    /// One rate by another, or a time by another.
    Ratio,
    Milliseconds,
    Microseconds,
    Bytes,
    /// Of one core, given as a ratio.
    Percent,
    Count,
}

/// One figure over all runs.
#[derive(Debug, Clone)]
pub(crate) struct Figure {
    pub(crate) what: String,
    pub(crate) wanted: Wanted,
    pub(crate) spread: Spread,
    pub(crate) unit: Unit,
    /// The share of a core that other programs used meanwhile.
    pub(crate) others: f64,
    /// The absolute numbers behind it.
    pub(crate) behind: String,
}

impl Figure {
    /// Judged by the median; None where nothing is wanted.
    fn is_reached(&self) -> Option<bool> {
        match self.wanted {
            Wanted::AtLeast(least) => Some(self.spread.median >= least),
            Wanted::AtMost(most) => Some(self.spread.median <= most),
            Wanted::ForTheRecord => None,
        }
    }

    /// A reason not to believe it.
    fn doubt(&self) -> String {
        if self.others < TOLERATED {
            return String::new();
        }
        format!(", but other programs used {:.0} % of a core", self.others * 100.0)
    }

    fn verdict(&self) -> String {
        let verdict = match self.is_reached() {
            Some(true) => "yes",
            Some(false) => "**no**",
            None => "–",
        };
        format!("{verdict}{}", self.doubt())
    }

    fn wanted(&self) -> String {
        match self.wanted {
            Wanted::AtLeast(least) => format!("≥ {}", self.unit.show(least)),
            Wanted::AtMost(most) => format!("≤ {}", self.unit.show(most)),
            Wanted::ForTheRecord => "–".to_owned(),
        }
    }
}

impl Unit {
    fn show(self, value: f64) -> String {
        match self {
            Self::Ratio => format!("{value:.3}"),
            Self::Milliseconds => format!("{value:.2} ms"),
            Self::Microseconds => format!("{value:.2} µs"),
            Self::Bytes => format!("{value:.0} B"),
            Self::Percent => format!("{:.2} %", value * 100.0),
            Self::Count => format!("{value:.0}"),
        }
    }
}

impl Figure {
    /// For whoever watches; a short round is nothing to judge by.
    pub(crate) fn told(&self, is_for_the_record: bool) -> String {
        let Spread { least, median, most } = self.spread;
        let [least, median, most] = [least, median, most].map(|value| self.unit.show(value));
        let verdict = match self.is_reached() {
            _ if !is_for_the_record => " (a short round, no figure)",
            Some(true) => ": reached",
            Some(false) => ": NOT reached",
            None => "",
        };
        let (what, wanted, behind) = (&self.what, self.wanted(), &self.behind);
        format!(
            "  {what}: {median} ({least} to {most}), wanted {wanted}{verdict}{}\n    {behind}",
            self.doubt()
        )
    }
}

/// All figures as a table.
pub(crate) fn markdown(figures: &[(&str, Figure)]) -> String {
    let mut table = "| row | what | wanted | median | least to most | reached | behind it |\n|---|---|---|---|---|---|---|\n"
        .to_owned();
    for (row, figure) in figures {
        let Spread { least, median, most } = figure.spread;
        let show = |value| figure.unit.show(value);
        // Writing to a text can't fail.
        let _ = writeln!(
            table,
            "| `{row}` | {} | {} | {} | {} to {} | {} | {} |",
            figure.what,
            figure.wanted(),
            show(median),
            show(least),
            show(most),
            figure.verdict(),
            figure.behind
        );
    }
    table
}
