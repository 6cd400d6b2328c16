//! `tine tune`: which processes × threads fit the handlers.
//!
//! ```text
//! server (start, end) ←── sweep (a trial, then rounds) ←── plan (what next) ←── grid (what there is)
//!                            └→ cells ──→ judge ──→ reason ──→ report (table, csv, plot, lines to paste)
//! ```
//!
//! Server and load share the machine's CPUs and nothing is pinned, as on a user's machine: the load generator's part
//! of the CPU time is in every figure, and told beside it. `plan`, `grid`, `cells`, `judge` and `reason` are pure.

mod cells;
mod csv;
mod grid;
mod judge;
mod machine;
mod plan;
mod plot;
mod reason;
mod report;
mod server;
mod sweep;
mod table;

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::value::RawValue;

use super::args::TuneArgs;
use super::{page, units};
use crate::client::load::Native;
use crate::sys::cpus;

use cells::Cells;
use grid::Grid;
use judge::judge;
use plan::Plan;
use report::Findings;
use server::Launcher;
use sweep::{Failure, Sweep, Timing, try_out};

const MEASURED: i32 = 0;
const FAILED: i32 = 1;
const BAD_COMMAND_LINE: i32 = 2;

/// Characters of the params in headings.
const TITLE_PARAMS: usize = 60;

/// Measures, prints and writes; the result is the exit code.
pub(super) fn run(args: &TuneArgs) -> i32 {
    let (code, words) = match tune(args) {
        Ok(()) => return MEASURED,
        Err(Failure::Bad(words)) => (BAD_COMMAND_LINE, words),
        Err(Failure::Failed(words)) => (FAILED, words),
        Err(Failure::Stopped) => (FAILED, "stopped before anything was measured".to_owned()),
    };
    page::complain(&format!("error: {words}"));
    code
}

fn tune(args: &TuneArgs) -> Result<(), Failure> {
    let exchange = Native::new(&args.method, args.params.as_deref())
        .map_err(|error| Failure::Bad(format!("--params: {error}")))?;
    let params: Option<Box<RawValue>> = args
        .params
        .as_deref()
        .map(serde_json::from_str)
        .transpose()
        .map_err(|error| Failure::Bad(format!("--params: the params are not JSON: {error}")))?;
    if let Some(folder) = &args.out {
        report::prepare(folder).map_err(Failure::Bad)?;
    }
    let program = match &args.program {
        Some(program) => program.clone(),
        None => std::env::current_exe()
            .map_err(|error| Failure::Failed(format!("this program's own file can't be found: {error}")))?,
    };
    let stop = stop_on_ctrl_c()?;
    let launcher = Launcher::new(program, args.config.clone()).map_err(Failure::Failed)?;
    let trial = try_out(&launcher, &args.method, params, &stop)?;

    let grid = Grid { cpus: cpus::available(), connections: args.connections };
    let timing = Timing::new(trial.alone.time, args.time);
    let mut plan = Plan::new(grid);
    let at_most = plan.at_most();
    let longest = plan.longest(|setting| timing.round_at_most(&trial, setting, grid.connections));
    let title = title(args);
    print(&page::fit(&format!(
        "{title}; on {}\nat most {} settings, {}; half of that on an idle machine\n\n",
        units::things(grid.cpus as u64, "CPU"),
        at_most.settings,
        crate::config::span::show(whole_seconds(longest))
    )));

    let sweep = Sweep {
        launcher: &launcher,
        exchange: &exchange,
        connections: grid.connections,
        cpus: grid.cpus,
        timing,
        stop: &stop,
    };
    let (mut cells, mut first_error) = (Cells::default(), None);
    let bar = progress_bar(at_most.rounds);
    let swept = sweep.run(&mut plan, &mut cells, &mut first_error, &bar);
    bar.finish_and_clear();
    let is_cut_short = match swept {
        Ok(()) => false,
        Err(Failure::Stopped) if cells.iter().next().is_some() => true,
        Err(failure) => return Err(failure),
    };

    let verdict = judge(&cells);
    let findings = Findings {
        title: &title,
        grid,
        alone: trial.alone,
        cells: &cells,
        verdict: verdict.as_ref(),
        is_cut_short,
    };
    print(&findings.text());
    if let Some(folder) = &args.out {
        findings.write_to(folder).map_err(Failure::Failed)?;
    }
    match verdict {
        Some(_) => Ok(()),
        None => Err(Failure::Failed(nothing_good(first_error))),
    }
}

/// The method, the beginning of its params, and the load, on one line.
fn title(args: &TuneArgs) -> String {
    let params = args.params.as_deref().unwrap_or_default();
    let params = params.split_whitespace().collect::<Vec<_>>().join(" ");
    let short: String = params.chars().take(TITLE_PARAMS).collect();
    let cut = if short.len() < params.len() { "…" } else { "" };
    let call = format!("{} {short}{cut}", args.method);
    format!("{}, {}", call.trim_end(), units::things(args.connections as u64, "connection"))
}

fn whole_seconds(time: Duration) -> Duration {
    Duration::from_secs(time.as_secs() + 1)
}

fn nothing_good(first_error: Option<String>) -> String {
    let found =
        first_error.map_or_else(|| "none in time".to_owned(), |error| format!("first of all {error}"));
    format!(
        "expected a setting in which every call is answered right, found none ({found}); \
         ask for fewer --connections, or look at `limits` in the configuration"
    )
}

/// The flag that Ctrl-C (or TERM, or HUP) sets; what runs then ends by itself and is told.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>, Failure> {
    let stop = Arc::new(AtomicBool::new(false));
    let flag = Arc::clone(&stop);
    ctrlc::set_handler(move || flag.store(true, Ordering::SeqCst))
        .map_err(|error| Failure::Failed(format!("Ctrl-C can't be caught: {error}")))?;
    Ok(stop)
}

/// On a terminal; elsewhere it draws nothing.
fn progress_bar(rounds: usize) -> ProgressBar {
    let bar = ProgressBar::new(rounds as u64);
    if let Ok(style) =
        ProgressStyle::with_template("{bar:10} {pos}/{len} rounds at most, {elapsed} {msg:36!}")
    {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    bar
}

/// A reader that has seen enough (`| head`) is no reason to panic, nor to leave a server behind.
fn print(text: &str) {
    let mut out = io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_title_is_one_short_line() {
        let title = |params: Option<&str>| {
            title(&TuneArgs {
                config: None,
                program: None,
                method: "sleep".to_owned(),
                params: params.map(str::to_owned),
                connections: 1,
                time: None,
                out: None,
            })
        };
        assert_eq!(title(None), "sleep, 1 connection");
        assert_eq!(title(Some("{\n  \"ms\": 5\n}")), "sleep { \"ms\": 5 }, 1 connection");
        let long = title(Some(&format!("\"{}\"", "x".repeat(500))));
        assert!(long.ends_with("x…, 1 connection") && long.chars().count() < 90, "{long}");
    }
}
