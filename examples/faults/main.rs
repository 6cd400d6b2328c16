//! Every fault that tine claims to survive, injected into the real program under load from clients that check every
//! answer and never connect again.
//!
//!     cargo run --release --example faults                      every row, in full length
//!     cargo run --release --example faults -- kill stop --short  two rows, some seconds each
//!     cargo run --release --example faults -- --list
//!
//! It prints a line for each part of a row, with the figures it measured, and ends with 1 if any failed.
//! `--markdown` prints the table that README.md shows.

#![allow(unreachable_pub)] // nothing outside can reach into a program anyway

mod judge;
mod rows;
#[path = "../support/mod.rs"]
mod support;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;

use judge::{Judge, Outcome};
use rows::{Part, Row};

/// Injects faults into the real program under load and judges what clients see.
#[derive(Debug, Parser)]
struct Arguments {
    /// Rows (`kill`) or parts of them (`kill/pipelined`); all without.
    rows: Vec<String>,
    /// Some seconds for each part, which shows that it works; the figures are rough, and times and rates are told and
    /// not judged.
    #[arg(long)]
    short: bool,
    /// Print a table for README.md at the end.
    #[arg(long)]
    markdown: bool,
    /// Print the names of rows and parts, and run nothing.
    #[arg(long)]
    list: bool,
}

/// How long and how often.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    short: bool,
}

impl Extent {
    /// A time in seconds: in full, or short.
    pub fn seconds(self, full: u64, short: u64) -> Duration {
        Duration::from_secs(if self.short { short } else { full })
    }

    /// How often: in full, or short.
    pub fn count(self, full: usize, short: usize) -> usize {
        if self.short { short } else { full }
    }

    /// True when only some seconds are wanted.
    pub fn is_short(self) -> bool {
        self.short
    }
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let wanted: Vec<(&Row, Vec<&Part>)> = rows::ALL
        .iter()
        .map(|row| (row, row.parts.iter().filter(|part| is_wanted(row, part, &arguments.rows)).collect()))
        .filter(|(_, parts): &(_, Vec<_>)| !parts.is_empty())
        .collect();
    if wanted.is_empty() {
        eprintln!("expected names of rows, found {:?}, which fit none; --list has them", arguments.rows);
        return ExitCode::from(2);
    }
    if arguments.list {
        for (row, parts) in wanted {
            println!("{:12} {}", row.name, row.fault);
            for part in parts {
                println!("    {}/{}", row.name, part.name);
            }
        }
        return ExitCode::SUCCESS;
    }
    let extent = Extent { short: arguments.short };
    let mut table = Vec::new();
    for (row, parts) in wanted {
        println!("# {}: {}", row.name, row.fault);
        let judged: Vec<(&Part, Judge)> =
            parts.into_iter().map(|part| (part, run(row, part, extent))).collect();
        table.push((row, judged));
    }
    if arguments.markdown {
        print_markdown(&table);
    }
    let failed: Vec<String> = table
        .iter()
        .flat_map(|(row, judged)| judged.iter().map(move |(part, judge)| (row, part, judge)))
        .filter(|(_, _, judge)| judge.outcome() == Outcome::Fail)
        .map(|(row, part, _)| format!("{}/{}", row.name, part.name))
        .collect();
    if failed.is_empty() {
        println!("== every row that is possible here passed");
        ExitCode::SUCCESS
    } else {
        println!("== failed: {}", failed.join(", "));
        ExitCode::FAILURE
    }
}

fn is_wanted(row: &Row, part: &Part, wanted: &[String]) -> bool {
    let full = format!("{}/{}", row.name, part.name);
    wanted.is_empty() || wanted.iter().any(|wanted| *wanted == row.name || *wanted == full)
}

fn run(row: &Row, part: &Part, extent: Extent) -> Judge {
    let begun = Instant::now();
    let mut judge = (part.run)(extent).unwrap_or_else(|error| {
        let mut judge = Judge::default();
        judge.failures.push(error.to_string());
        judge
    });
    if !extent.is_short() {
        judge.judge_times();
    }
    let (outcome, took) = (judge.outcome(), begun.elapsed());
    println!("{outcome:4} {}/{}: {} ({took:.1?})", row.name, part.name, summary(&judge));
    for failure in &judge.failures {
        println!("       {failure}");
    }
    for late in &judge.late {
        println!("       slow, which a short run only tells: {late}");
    }
    if outcome == Outcome::Fail && !judge.evidence.is_empty() {
        println!("     what the service said:\n{}", judge.evidence.trim_end());
    }
    judge
}

fn summary(judge: &Judge) -> String {
    let figures = judge.figures.join(", ");
    match (&judge.impossible, figures.is_empty()) {
        (Some(why), true) => why.clone(),
        (Some(why), false) => format!("{why}; {figures}"),
        (None, _) => figures,
    }
}

fn print_markdown(table: &[(&Row, Vec<(&Part, Judge)>)]) {
    println!("\n| what happens | what clients see | measured | |\n|---|---|---|---|");
    for (row, judged) in table {
        let worst = judged.iter().map(|(_, judge)| judge.outcome()).max().unwrap_or(Outcome::Pass);
        let measured: Vec<String> =
            judged.iter().map(|(part, judge)| format!("*{}*: {}", part.name, summary(judge))).collect();
        println!("| {} | {} | {} | {worst} |", row.fault, row.promise, measured.join("<br>"));
    }
}
