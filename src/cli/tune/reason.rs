//! The reason for a recommendation, in a sentence or two.
//!
//! Everything said here was measured: what a call does alone, which settings are clearly better than which, and
//! how busy the CPUs were. `mod` prints it, `report` puts it above the lines to paste.

use std::time::Duration;

use super::cells::{Cell, Cells};
use super::grid::Grid;
use super::judge::Verdict;
use crate::cli::units;

/// Calls that take no longer than this, there and back, are quick enough for the poller to run them itself, and most
/// of their time is the way.
const QUICK: Duration = Duration::from_micros(100);
/// Shares of the time from which on a handler does one thing and hardly the other.
const MOSTLY: f64 = 0.8;
/// The CPUs count as busy from this share on; a machine has other things to do too.
const BUSY: f64 = 0.85;
/// Rounds of one setting that differ by more than this are worth a word.
const ROUGH: f64 = 0.1;
/// Other programs are in the way from this share of the CPUs on.
const IN_THE_WAY: f64 = 0.15;

/// What a call does when it is the only one.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Alone {
    /// From the request to the answer.
    pub(super) time: Duration,
    /// The server's CPU time for it.
    pub(super) cpu: Duration,
}

impl Alone {
    /// The share of its time in which the handler waits, 0 to 1.
    pub(super) fn waiting(&self) -> f64 {
        if self.time.is_zero() {
            return 0.0;
        }
        (1.0 - self.cpu.as_secs_f64() / self.time.as_secs_f64()).clamp(0.0, 1.0)
    }
}

/// Why `verdict` recommends what it does.
pub(super) fn reason(alone: Alone, verdict: &Verdict, cells: &Cells, grid: Grid) -> String {
    let mut text = format!("{}: {}", nature(alone), what_helps(verdict, grid));
    let Some(cell) = cells.get(verdict.recommended) else { return text + "." };
    if let Some(limit) = limit(alone, cell, grid) {
        text.push_str("; ");
        text.push_str(&limit);
    }
    text.push('.');
    if let Some(other) = verdict.as_fast.first() {
        text.push_str(&format!(" {other} is as fast, and a crash costs fewer calls there."));
    }
    if let Some(caution) = caution(verdict, cell, cells, grid) {
        text.push(' ');
        text.push_str(&caution);
    }
    text
}

fn nature(alone: Alone) -> String {
    let waiting = alone.waiting();
    if alone.time <= QUICK {
        format!(
            "calls take {} there and back, quick enough for the poller to answer them itself",
            units::duration(alone.time)
        )
    } else if waiting >= MOSTLY {
        format!("handlers wait {} of their time", percent(waiting))
    } else if waiting <= 1.0 - MOSTLY {
        format!("handlers burn CPU {} of their time", percent(1.0 - waiting))
    } else {
        format!("handlers wait {} of their time and burn CPU for the rest", percent(waiting))
    }
}

fn what_helps(verdict: &Verdict, grid: Grid) -> String {
    let setting = verdict.recommended;
    let cpus = if setting.in_all() == grid.cpus && grid.cpus > 1 { ", one for each CPU" } else { "" };
    match (setting.processes, setting.threads) {
        (1, 1) => "neither more threads nor more processes help".to_owned(),
        (1, threads) => format!("more threads help up to {threads}{cpus}, more processes don't"),
        (processes, 1) => format!("more processes help up to {processes}{cpus}, more threads don't"),
        (processes, threads) => {
            format!("processes help up to {processes}, with {threads} threads in each{cpus}")
        }
    }
}

/// What keeps larger settings from being faster, where the figures show it.
fn limit(alone: Alone, cell: &Cell, grid: Grid) -> Option<String> {
    let (server, load) = (cell.server_cpus(), cell.load_cpus());
    if server + load >= BUSY * as_f64(grid.cpus) {
        return Some(format!(
            "the CPUs are busy then (server {server:.1}, load generator {load:.1}, of {})",
            grid.cpus
        ));
    }
    (alone.time > QUICK && cell.setting.in_all() >= grid.connections).then(|| {
        let connections = grid.connections;
        let have = match connections {
            1 => "the one connection has".to_owned(),
            _ => format!("every one of the {connections} connections has"),
        };
        format!("{have} a thread then, so expect more callers to need more (--connections)")
    })
}

/// How far not to trust it.
fn caution(verdict: &Verdict, cell: &Cell, cells: &Cells, grid: Grid) -> Option<String> {
    let differ = match verdict.doubt {
        Some(smaller) => format!("The rounds differ too much to tell it from {smaller}"),
        None if cell.spread() > ROUGH => format!("Its rounds differ by {}", percent(cell.spread())),
        None => return None,
    };
    let others = cells.other_cpus();
    Some(if is_in_the_way(others, grid.cpus) {
        format!(
            "{differ}, and other programs used {others:.1} CPUs meanwhile: measure again when the machine is quieter."
        )
    } else {
        format!("{differ}: measure again, and longer (--time).")
    })
}

/// Whether CPUs that other programs use are too many to measure beside them.
pub(super) fn is_in_the_way(other_cpus: f64, cpus: usize) -> bool {
    other_cpus > IN_THE_WAY * as_f64(cpus)
}

fn as_f64(cpus: usize) -> f64 {
    f64::from(u32::try_from(cpus).unwrap_or(u32::MAX))
}

/// A share in percent; never 100 % of what is a little less.
fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 99.0 && percent < 99.95 { format!("{percent:.1} %") } else { format!("{percent:.0} %") }
}

#[cfg(test)]
mod tests {
    use super::super::cells::Round;
    use super::super::cells::samples::{cells, round};
    use super::super::grid::Setting;
    use super::*;

    fn alone(time_us: u64, cpu_us: u64) -> Alone {
        Alone { time: Duration::from_micros(time_us), cpu: Duration::from_micros(cpu_us) }
    }

    fn recommended(processes: usize, threads: usize) -> Verdict {
        let setting = Setting::new(processes, threads);
        Verdict { recommended: setting, best: setting, as_fast: Vec::new(), doubt: None }
    }

    fn told(alone: Alone, verdict: &Verdict) -> String {
        reason(alone, verdict, &Cells::default(), Grid { cpus: 2, connections: 64 })
    }

    #[test]
    fn the_sentence_says_what_handlers_do_and_what_helps() {
        for (alone, (processes, threads), expected) in [
            (
                alone(10_000, 800),
                (1, 32),
                "handlers wait 92 % of their time: more threads help up to 32, more processes don't.",
            ),
            (
                alone(1000, 980),
                (2, 1),
                "handlers burn CPU 98 % of their time: more processes help up to 2, one for each CPU, more threads don't.",
            ),
            (
                alone(1000, 400),
                (4, 8),
                "handlers wait 60 % of their time and burn CPU for the rest: processes help up to 4, with 8 threads in each.",
            ),
            (
                alone(40, 20),
                (1, 1),
                "calls take 40.0us there and back, quick enough for the poller to answer them itself: neither more threads nor more processes help.",
            ),
            (
                alone(10_000, 40),
                (1, 64),
                "handlers wait 99.6 % of their time: more threads help up to 64, more processes don't.",
            ),
        ] {
            assert_eq!(told(alone, &recommended(processes, threads)), expected);
        }
    }

    #[test]
    fn what_limits_larger_settings_is_said_when_it_was_seen() {
        let grid = Grid { cpus: 2, connections: 64 };
        let mut measured = cells(&[((1, 64), &[6000; 3])]);
        let all_served = reason(alone(10_000, 100), &recommended(1, 64), &measured, grid);
        assert!(all_served.contains("every one of the 64 connections has a thread then"), "{all_served}");
        for pass in 3..9 {
            measured
                .add(Setting::new(1, 64), Round { server_cpus: 1.5, load_cpus: 0.4, ..round(pass, 6000) });
        }
        let busy = reason(alone(10_000, 100), &recommended(1, 64), &measured, grid);
        assert!(busy.contains("the CPUs are busy then (server 1.5, load generator 0.4, of 2)"), "{busy}");
    }

    #[test]
    fn equals_and_doubts_are_named() {
        let verdict = Verdict {
            as_fast: vec![Setting::new(2, 1)],
            doubt: Some(Setting::new(1, 1)),
            ..recommended(1, 2)
        };
        let measured = cells(&[((1, 2), &[1900; 3])]);
        let grid = Grid { cpus: 2, connections: 64 };
        let told = reason(alone(1000, 990), &verdict, &measured, grid);
        assert!(told.contains("2 × 1 is as fast, and a crash costs fewer calls there."), "{told}");
        assert!(told.contains("tell it from 1 × 1:"), "{told}");
        let mut disturbed = cells(&[((1, 2), &[1900, 1200, 1600])]);
        let told = reason(alone(1000, 990), &recommended(1, 2), &disturbed, grid);
        assert!(told.ends_with("Its rounds differ by 28 %: measure again, and longer (--time)."), "{told}");
        for (pass, rate) in (3..).zip([1000, 1900, 1300, 1800]) {
            disturbed.add(Setting::new(1, 2), Round { other_cpus: 0.8, ..round(pass, rate) });
        }
        let told = reason(alone(1000, 990), &recommended(1, 2), &disturbed, grid);
        assert!(told.contains("other programs used 0.8 CPUs meanwhile"), "{told}");
    }

    #[test]
    fn nonsense_of_the_clocks_is_no_nonsense_in_words() {
        for (time, cpu, waiting) in [(0, 5, 0.0), (10, 20, 0.0), (10, 0, 1.0)] {
            assert!((alone(time, cpu).waiting() - waiting).abs() < 1e-9, "{time} {cpu}");
        }
    }
}
