//! The measuring itself: a call to try, then round after round as the plan says.
//!
//! `mod` runs both. Each round has a server of its own, freshly started, so how connections happened to spread over
//! processes is part of what differs from round to round, as it is for a user who restarts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;
use serde_json::value::RawValue;

use super::cells::{Cells, Round};
use super::grid::Setting;
use super::machine;
use super::plan::Plan;
use super::reason::{Alone, is_in_the_way};
use super::server::{Launcher, Processes, Server, StartError};
use super::table;
use crate::client::load::{Load, Native};
use crate::client::{Client, ClientError};
use crate::rpc::Error;

/// A shorter round sees mostly its beginning and its end.
const SHORT: Duration = Duration::from_millis(400);
/// Calls that fit into a round, one after the other, so that one more or less is within noise; fewer where that would
/// make a round longer than [`LONG`].
const CALLS: u32 = 30;
const LONG: Duration = Duration::from_secs(10);
const LEAST_CALLS: u32 = 4;
/// The load waits that long for answers when a round is over.
const LOAD_GRACE: Duration = Duration::from_secs(5);

/// The first call may load and cache things; these follow it, and are measured.
const TRIED: Duration = Duration::from_millis(300);
const MOST_TRIED: usize = 200;
/// How often a wait looks whether it should end.
const LOOK: Duration = Duration::from_millis(20);

/// Why it could not be measured, or not to the end.
#[derive(Debug)]
pub(super) enum Failure {
    /// The command line or the configuration is wrong.
    Bad(String),
    /// The server or the method fails.
    Failed(String),
    /// Somebody asked for the end.
    Stopped,
}

impl From<StartError> for Failure {
    fn from(error: StartError) -> Self {
        match error {
            StartError::BadConfig(words) => Failure::Bad(words),
            StartError::Failed(words) => Failure::Failed(words),
            StartError::Stopped => Failure::Stopped,
        }
    }
}

/// What a first call has shown.
#[derive(Debug, Clone, Copy)]
pub(super) struct Trial {
    pub(super) alone: Alone,
    /// From the start of a server to its end, without what is between.
    overhead: Duration,
}

/// How long the parts of a round take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Timing {
    pub(super) warm_up: Duration,
    pub(super) time: Duration,
}

impl Timing {
    /// For calls that take so long; `asked` is what the user wants a round to take.
    pub(super) fn new(call: Duration, asked: Option<Duration>) -> Self {
        let time = asked.unwrap_or_else(|| {
            let enough = call.saturating_mul(CALLS).min(LONG);
            SHORT.max(enough).max(call.saturating_mul(LEAST_CALLS))
        });
        Self { warm_up: (time / 4).max(call.saturating_mul(2)).min(time), time }
    }

    /// The longest that a round of `setting` takes, with a server that is as fast as it was in the trial.
    pub(super) fn round_at_most(&self, trial: &Trial, setting: Setting, connections: usize) -> Duration {
        // When a round is over each connection has a call that runs or waits.
        let rows = u32::try_from(connections.div_ceil(setting.in_all())).unwrap_or(u32::MAX);
        let answers = trial.alone.time.saturating_mul(rows.saturating_add(1)).min(LOAD_GRACE);
        self.warm_up + self.time + answers + trial.overhead
    }
}

/// Makes a few calls, one after the other, on one process with one thread.
pub(super) fn try_out(
    launcher: &Launcher,
    method: &str,
    params: Option<Box<RawValue>>,
    stop: &AtomicBool,
) -> Result<Trial, Failure> {
    let begun = Instant::now();
    let mut server = launcher.start(Setting::new(1, 1), stop)?;
    let booted = begun.elapsed();
    // On a thread of its own, as the client can't be interrupted: when the server is ended, its call ends too.
    let (sender, outcome) = channel();
    let (address, name, processes) = (server.address().to_owned(), method.to_owned(), server.processes());
    thread::spawn(move || sender.send(calls(&address, &name, params.as_deref(), processes)));
    let alone = loop {
        match outcome.recv_timeout(LOOK) {
            Ok(Ok(alone)) => break alone,
            Ok(Err(error)) => {
                // Before the log is read, which may have more to say about it.
                let _ = server.end();
                return Err(refused(launcher, method, error));
            }
            Err(RecvTimeoutError::Timeout) if stop.load(Ordering::SeqCst) => return Err(Failure::Stopped),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Failure::Failed("the call that was tried ended without an answer".to_owned()));
            }
        }
    };
    let told = Instant::now();
    server.end().map_err(|error| Failure::Failed(format!("the server can't be waited for: {error}")))?;
    Ok(Trial { alone, overhead: booted + told.elapsed() })
}

fn calls(
    address: &str,
    method: &str,
    params: Option<&RawValue>,
    processes: Processes,
) -> Result<Alone, ClientError> {
    let client = Client::connect(address)?;
    let one = || -> Result<Alone, ClientError> {
        let (before, begun) = (processes.cpu_time(), Instant::now());
        client.call_raw(method, params)?;
        let time = begun.elapsed();
        Ok(Alone { time, cpu: processes.cpu_time().saturating_sub(before) })
    };
    one()?;
    let begun = Instant::now();
    let mut calls = Vec::new();
    while calls.is_empty() || (calls.len() < MOST_TRIED && begun.elapsed() < TRIED) {
        calls.push(one()?);
    }
    Ok(typical(calls))
}

/// A call of the quicker ones: the slower may have waited for a CPU that another program had, and that is not the
/// handler's waiting.
fn typical(mut calls: Vec<Alone>) -> Alone {
    calls.sort_by_key(|call| call.time);
    calls.get(calls.len() / 4).copied().unwrap_or(Alone { time: Duration::ZERO, cpu: Duration::ZERO })
}

fn refused(launcher: &Launcher, method: &str, error: ClientError) -> Failure {
    match error {
        ClientError::Remote(error) if matches!(error.code, -32601 | -32602) => Failure::Bad(format!(
            "expected a method and params that the server takes, found that {method} is answered {} ({})",
            error.code, error.message
        )),
        ClientError::Remote(error) if error.code != Error::CRASHED => Failure::Failed(format!(
            "expected {method} to be answered with a result, found the error {} ({}); only calls that succeed can be tuned",
            error.code, error.message
        )),
        // What a worker died of is in the log.
        other => Failure::Failed(launcher.with_log(&format!("{method} was tried, and found: {other}"))),
    }
}

/// What all rounds have in common.
#[derive(Debug)]
pub(super) struct Sweep<'a> {
    pub(super) launcher: &'a Launcher,
    pub(super) exchange: &'a Native,
    pub(super) connections: usize,
    pub(super) cpus: usize,
    pub(super) timing: Timing,
    pub(super) stop: &'a AtomicBool,
}

impl Sweep<'_> {
    /// Measures what the plan asks for, until it is over; `cells` gets what was measured also when that fails.
    /// `first_error` gets the first answer that was none.
    pub(super) fn run(
        &self,
        plan: &mut Plan,
        cells: &mut Cells,
        first_error: &mut Option<String>,
        bar: &ProgressBar,
    ) -> Result<(), Failure> {
        while let Some(pass) = plan.next(cells) {
            for setting in pass.settings {
                let best = cells.best().map_or_else(String::new, |best| {
                    format!(", best {} ({}/s)", best.setting, table::rate(best.rate()))
                });
                bar.set_message(format!("{setting}{best}"));
                let (round, error) = self.round(setting, pass.number)?;
                cells.add(setting, round);
                if first_error.is_none() {
                    *first_error = error;
                }
                bar.inc(1);
            }
        }
        Ok(())
    }

    /// One round, and the beginning of the first answer in it that was not right.
    fn round(&self, setting: Setting, pass: usize) -> Result<(Round, Option<String>), Failure> {
        let mut server = self.launcher.start(setting, self.stop)?;
        let load = Load {
            to: server.address().to_owned(),
            connections: self.connections,
            warm_up: self.timing.warm_up,
            duration: self.timing.time,
            ..Load::default()
        };
        let (cpu_before, busy_before, begun) =
            (server.processes().cpu_time(), machine::busy_time(), Instant::now());
        let report = load.run(self.exchange, self.stop, &mut |_| {});
        let (cpu, busy, time) = (
            server.processes().cpu_time().saturating_sub(cpu_before),
            machine::busy_time().saturating_sub(busy_before),
            begun.elapsed(),
        );
        if self.stop.load(Ordering::SeqCst) {
            return Err(Failure::Stopped);
        }
        self.check_alive(&server, setting)?;
        let report = report.map_err(|error| {
            Failure::Failed(self.launcher.with_log(&format!("the load for {setting}: {error}")))
        })?;
        server.end().map_err(|error| Failure::Failed(format!("the server can't be waited for: {error}")))?;
        let (server_cpus, load_cpus) = (share(cpu, time), report.load_share());
        let other_cpus = (share(busy, time) - server_cpus - load_cpus).max(0.0);
        let round = Round {
            pass,
            rate: report.rate(),
            calls: report.calls,
            errors: report.errors,
            wrong: report.wrong,
            unanswered: report.unanswered,
            closed: report.closed,
            elapsed: report.elapsed,
            p50: report.percentile(50.0),
            p99: report.percentile(99.0),
            server_cpus,
            load_cpus,
            other_cpus,
            is_disturbed: is_in_the_way(other_cpus, self.cpus),
        };
        Ok((round, report.first_error.or(report.first_wrong)))
    }

    fn check_alive(&self, server: &Server, setting: Setting) -> Result<(), Failure> {
        if server.has_ended() {
            let words = format!("the server with {setting} ended under load");
            return Err(Failure::Failed(self.launcher.with_log(&words)));
        }
        Ok(())
    }
}

fn share(part: Duration, whole: Duration) -> f64 {
    if whole.is_zero() { 0.0 } else { part.as_secs_f64() / whole.as_secs_f64() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_round_is_as_long_as_its_calls_need() {
        for (call_ms, asked_ms, warm_up_ms, time_ms) in [
            (0, None, 100, 400),
            (10, None, 100, 400),
            (50, None, 375, 1500),
            (1000, None, 2500, 10_000),
            (5000, None, 10_000, 20_000),
            (10, Some(50), 20, 50),
            (1000, Some(50), 50, 50),
        ] {
            let timing = Timing::new(Duration::from_millis(call_ms), asked_ms.map(Duration::from_millis));
            let (warm_up, time) = (Duration::from_millis(warm_up_ms), Duration::from_millis(time_ms));
            assert_eq!(timing, Timing { warm_up, time }, "{call_ms} ms, {asked_ms:?}");
        }
    }

    #[test]
    fn a_round_ends_when_every_connection_has_its_last_answer() {
        let alone = Alone { time: Duration::from_millis(10), cpu: Duration::ZERO };
        let trial = Trial { alone, overhead: Duration::from_millis(30) };
        let timing = Timing::new(alone.time, None);
        for (setting, ms) in
            [((1, 1), 400 + 100 + 650 + 30), ((1, 64), 400 + 100 + 20 + 30), ((4, 1), 400 + 100 + 170 + 30)]
        {
            let setting = Setting::new(setting.0, setting.1);
            assert_eq!(timing.round_at_most(&trial, setting, 64), Duration::from_millis(ms), "{setting}");
        }
    }
}
