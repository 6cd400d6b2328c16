//! `tine bench`: puts a server under load and prints what came of it.
//!
//! The load is `client::load`; here it gets its settings from the command line, a progress bar, Ctrl-C, and the server's
//! CPU time from /proc. Standard output gets the result and nothing else. Exit codes: 0 all well or Ctrl-C, 1 some
//! call failed, 2 a bad command line, 3 no server.

mod json;
mod picture;
mod server_cpu;
mod text;

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::args::BenchArgs;
use super::{page, params, units};
use crate::client::load::{Load, LoadError, Native, Phase, Progress, Report};
use server_cpu::ServerCpu;

const OK: u8 = 0;
const SOME_CALL_FAILED: u8 = 1;
const BAD_COMMAND_LINE: u8 = 2;
const NO_SERVER: u8 = 3;
/// What a shell says of a program that Ctrl-C ended.
const ENDED_AT_ONCE: i32 = 130;

/// What was measured, for whoever prints it.
#[derive(Debug)]
struct Measured<'a> {
    args: &'a BenchArgs,
    report: Report,
    interrupted: bool,
    /// The server's CPU time in the measured time, where a process was named.
    server_cpu: Option<Duration>,
}

impl Measured<'_> {
    /// The server's CPU time for each answer that it gave in the measured time.
    fn server_cpu_per_call(&self) -> Option<Duration> {
        let answers = self.report.arrived + self.report.errors + self.report.wrong;
        #[expect(clippy::cast_precision_loss)] // far more answers than a run can have are exact
        let answers = answers as f64;
        self.server_cpu.filter(|_| answers > 0.0).map(|cpu| cpu.div_f64(answers))
    }
}

/// Measures, prints, and says how to exit.
pub(super) fn run(args: &BenchArgs) -> ExitCode {
    match measure(args, io::stdin()) {
        Ok(measured) => print(&measured),
        Err((code, words)) => {
            page::complain(&format!("error: {words}"));
            ExitCode::from(code)
        }
    }
}

fn print(measured: &Measured<'_>) -> ExitCode {
    let result = if measured.args.json { json::object(measured) } else { text::text(measured) };
    if let Err(error) = io::stdout().write_all(result.as_bytes()).and_then(|()| io::stdout().flush()) {
        page::complain(&format!("error: the result can't be written to standard output: {error}"));
        return ExitCode::from(NO_SERVER);
    }
    let is_well = measured.interrupted || measured.report.is_clean();
    ExitCode::from(if is_well { OK } else { SOME_CALL_FAILED })
}

fn measure(args: &BenchArgs, stdin: impl Read) -> Result<Measured<'_>, (u8, String)> {
    let params =
        params::read("--params", args.params.as_deref(), stdin).map_err(|words| (BAD_COMMAND_LINE, words))?;
    let calls = Native::new(&args.method, params.as_ref().map(|params| params.get()))
        .map_err(|error| (BAD_COMMAND_LINE, format!("--params: {error}")))?;
    let server_cpu = args.pid.map(ServerCpu::of).transpose();
    let mut server_cpu = server_cpu.map_err(|words| (BAD_COMMAND_LINE, format!("--pid: {words}")))?;
    let stop = stop_on_ctrl_c().map_err(|words| (NO_SERVER, words))?;

    let load = Load {
        to: args.to.clone(),
        connections: args.connections,
        pipeline: args.pipeline,
        rate: args.rate,
        warm_up: args.warm_up,
        duration: args.duration,
    };
    let bar = Bar::new(args);
    let report = load.run(&calls, &stop, &mut |progress| {
        if let Some(server_cpu) = &mut server_cpu {
            server_cpu.reached(progress.phase);
        }
        bar.show(progress);
    });
    bar.clear();
    let report = report.map_err(|error| explained(&error))?;
    let server_cpu = server_cpu.and_then(|server_cpu| {
        // What was measured is worth more than this one figure.
        server_cpu.used().unwrap_or_else(|words| {
            page::complain(&format!("warning: --pid: {words}"));
            None
        })
    });
    Ok(Measured { args, report, interrupted: stop.load(Ordering::Relaxed), server_cpu })
}

/// Set by the first Ctrl-C; a second one ends the program.
fn stop_on_ctrl_c() -> Result<Arc<AtomicBool>, String> {
    let stop = Arc::new(AtomicBool::new(false));
    let handler = Arc::clone(&stop);
    let set = ctrlc::set_handler(move || {
        if handler.swap(true, Ordering::Relaxed) {
            std::process::exit(ENDED_AT_ONCE);
        }
    });
    set.map_err(|error| format!("Ctrl-C can't be caught: {error}"))?;
    Ok(stop)
}

fn explained(error: &LoadError) -> (u8, String) {
    match error {
        LoadError::Address(why) => (BAD_COMMAND_LINE, format!("--to: {why}")),
        // Settings are called what their options are called.
        LoadError::Setting(why) => (BAD_COMMAND_LINE, format!("--{why}")),
        LoadError::Params(why) => (BAD_COMMAND_LINE, format!("--params: {why}")),
        LoadError::Descriptors { .. } => (BAD_COMMAND_LINE, format!("--connections: {error}")),
        error => (NO_SERVER, error.to_string()),
    }
}

/// The progress bar, which shows itself on a terminal only.
struct Bar(ProgressBar);

impl Bar {
    fn new(args: &BenchArgs) -> Self {
        let whole = args.warm_up.saturating_add(args.duration);
        let bar = ProgressBar::with_draw_target(
            Some(u64::try_from(whole.as_millis()).unwrap_or(u64::MAX)),
            ProgressDrawTarget::stderr(),
        );
        if let Ok(style) = ProgressStyle::with_template("{bar:16} {msg:60!}") {
            bar.set_style(style);
        }
        Self(bar)
    }

    fn show(&self, progress: &Progress) {
        if self.0.is_hidden() {
            return;
        }
        self.0.set_position(u64::try_from(progress.elapsed.as_millis()).unwrap_or(u64::MAX));
        self.0.set_message(match progress.phase {
            Phase::WarmUp => "warming up".to_owned(),
            Phase::Measuring | Phase::Finishing => {
                let (calls, failed) = (units::things(progress.calls, "call"), units::count(progress.failed));
                format!(
                    "{calls}, {failed} failed, {} open",
                    units::things(progress.open as u64, "connection")
                )
            }
        });
    }

    fn clear(&self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_is_refused_with_the_option_that_said_it() {
        let args = |line: &[&str]| {
            let line: Vec<_> = ["tine", "bench", "--to", "127.0.0.1:1"].iter().chain(line).collect();
            let cli = super::super::args::Cli::parse_from_args(line.iter().map(std::ffi::OsString::from));
            match cli.map(|cli| cli.command) {
                Ok(super::super::args::Command::Bench(args)) => args,
                other => panic!("expected bench, found {other:?}"),
            }
        };
        for (line, code, words) in [
            (&["--params", "oops"][..], 2, "--params is not JSON"),
            (&["--params", "-"], 2, "--params from standard input"),
            (&["--pid", "4294967295"], 2, "--pid: expected a process"),
        ] {
            let args = args(line);
            let (found, why) = measure(&args, io::empty()).expect_err("a refusal");
            assert_eq!(found, code, "{why}");
            assert!(why.contains(words), "{why}");
        }
        for (error, code, words) in [
            (LoadError::Address("x".to_owned()), 2, "--to: x"),
            (LoadError::Setting("rate: x".to_owned()), 2, "--rate: x"),
            (LoadError::Descriptors { connections: 5, most: 4 }, 2, "--connections: 5"),
            (LoadError::NoServer { to: "a:1".to_owned(), source: io::ErrorKind::TimedOut.into() }, 3, "a:1"),
        ] {
            let (found, why) = explained(&error);
            assert_eq!(found, code, "{why}");
            assert!(why.starts_with(words) || why.contains(words), "{why}");
        }
    }
}
