//! The table of all settings, for people.

use std::fmt::Write;

use super::cells::{Cell, Cells};
use super::grid::Setting;
use crate::cli::{page, units};

const HEAD: &str = "   processes × threads    calls/s  spread        p99   CPU/call  rounds";

/// Below the setting whose calls failed.
const FAILURES_AT: &str = "               ";

/// A line for each setting, smallest first, with the recommended one marked; ends with a line break.
pub(super) fn table(cells: &Cells, recommended: Option<Setting>) -> String {
    let mut text = format!("{HEAD}\n");
    for cell in cells.iter() {
        let mark = if Some(cell.setting) == recommended { "→" } else { " " };
        // Writing to a `String` can't fail.
        let _ = writeln!(text, "{mark} {}", line(cell));
        if !cell.is_good() {
            let _ = writeln!(text, "{FAILURES_AT}{}", failures(cell));
        }
    }
    page::fit(&text)
}

fn line(cell: &Cell) -> String {
    let Setting { processes, threads } = cell.setting;
    let spread = format!("±{:.1} %", cell.spread() * 100.0);
    let (p99, cpu) = (units::duration(cell.p99()), units::duration(cell.cpu_per_call()));
    let rate = rate(cell.rate());
    let rounds = match (cell.counted().count(), cell.rounds.len()) {
        (counted, all) if counted == all => all.to_string(),
        (counted, all) => format!("{counted} of {all}"),
    };
    format!(" {processes:>9} × {threads:<7} {rate:>10} {spread:>7} {p99:>10} {cpu:>10} {rounds:>7}")
}

fn failures(cell: &Cell) -> String {
    let sum = |count: fn(&super::cells::Round) -> u64| cell.rounds.iter().map(count).sum::<u64>();
    let kinds = [
        (sum(|round| round.errors), "error", "errors"),
        (sum(|round| round.wrong), "wrong answer", "wrong answers"),
        (sum(|round| round.unanswered), "call without an answer", "calls without an answer"),
        (sum(|round| round.closed), "connection closed", "connections closed"),
    ];
    let named =
        |count: u64, one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
    let kinds: Vec<String> = kinds
        .iter()
        .filter(|(count, ..)| *count > 0)
        .map(|(count, one, many)| named(*count, one, many))
        .collect();
    if kinds.is_empty() { "no answers".to_owned() } else { kinds.join(", ") }
}

/// A rate in full, with digits after the point only where it is small.
pub(super) fn rate(rate: f64) -> String {
    if rate < 100.0 { format!("{rate:.1}") } else { units::rounded(rate) }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::cells::Round;
    use super::super::cells::samples::{cells, round};
    use super::*;

    #[test]
    fn each_setting_has_a_line_and_the_recommended_one_is_marked() {
        let mut cells = cells(&[((1, 1), &[99, 100, 101]), ((2, 16), &[12_345; 3])]);
        cells.add(Setting::new(1, 1), Round { is_disturbed: true, ..round(3, 7) });
        cells.add(Setting::new(4, 1), Round { errors: 3, closed: 1, ..round(0, 50) });
        let text = table(&cells, Some(Setting::new(2, 16)));
        let expected = "   processes × threads    calls/s  spread        p99   CPU/call  rounds
           1 × 1              100  ±1.5 %     20.0ms     5.00ms  3 of 4
           4 × 1             50.0  ±0.0 %     20.0ms     10.0ms       1
               3 errors, 1 connection closed
→          2 × 16          12,345  ±0.0 %     20.0ms     40.5us       3
";
        assert_eq!(text, expected, "\n{text}");
    }

    #[test]
    fn the_largest_figures_fit_a_line_of_80_columns() {
        let mut cells = cells(&[((1024, 4096), &[u32::MAX; 3])]);
        let failed = Round {
            errors: u64::MAX / 4,
            wrong: u64::MAX / 4,
            unanswered: u64::MAX / 4,
            closed: u64::MAX / 4,
            rate: 1e19,
            p99: Duration::from_secs(100_000),
            server_cpus: 1e9,
            ..round(0, 1)
        };
        cells.add(Setting::new(1024, 4096), failed.clone());
        cells.add(Setting::new(512, 4096), failed);
        let text = table(&cells, Some(Setting::new(1024, 4096)));
        assert!(text.lines().all(|line| textwrap::core::display_width(line) <= page::WIDTH), "\n{text}");
        assert!(text.contains("10,000,000,000,000,000,000"), "\n{text}");
    }

    #[test]
    fn figures_are_short() {
        for (figure, text) in [
            (0.0, "0.0"),
            (6.04, "6.0"),
            (99.96, "100.0"),
            (100.4, "100"),
            (1000.0, "1,000"),
            (1_234_567.0, "1,234,567"),
        ] {
            assert_eq!(rate(figure), text);
        }
    }
}
