//! What watching over the poller costs, and what the load generator could do if a server were faster.

use std::thread;
use std::time::{Duration, Instant};

use tine::BoxError;
use tine::load::Exchange;

use super::Bench;
use super::ping::{echo, one_process, ping};
use super::report::{Figure, Unit, Wanted};
use super::support::children::Own;
use super::support::cores::Place;
use super::support::drive::{self, Run, Shape, Taken, others, repeat, spread};
use super::support::numbers::{float, grouped};
use super::support::process::Thread;

const PIPELINED: Shape = Shape { connections: 64, pipeline: 16 };
/// The name of the thread in a worker.
const WATCH: &str = "watch";
/// How long a worker may take to come to rest: the watch parks only once there have been no calls for a moment.
const SETTLED: Duration = Duration::from_millis(500);

/// The watch in one run.
struct Watched {
    run: Run,
    /// Of one core.
    share: f64,
    /// How often it was woken while there were no calls.
    woken: u64,
}

impl Taken for Watched {
    fn others(&self) -> f64 {
        self.run.others()
    }
}

pub(crate) fn watch(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let service = one_process(bench)?;
    let worker = *service.workers().first().ok_or("the service has a worker")?;
    let ping = ping()?;
    // A thread gives itself its name when it first runs, which may be after the first calls.
    let until = Instant::now() + SETTLED;
    let mut found = Thread::named(worker, WATCH)?;
    while found.is_none() && Instant::now() < until {
        thread::sleep(Duration::from_millis(10));
        found = Thread::named(worker, WATCH)?;
    }
    let Some(watch) = found else {
        println!("  the worker has no thread named `{WATCH}`: nothing to measure in this version");
        return Ok(Vec::new());
    };
    let runs = repeat(bench.lengths, || {
        let (started, before) = (Instant::now(), watch.cpu_time()?);
        let run = drive::run(service.address(), service.workers(), Shape::single(64), bench.lengths, &ping)?;
        let used = watch.cpu_time()?.saturating_sub(before);
        let share = used.as_secs_f64() / started.elapsed().as_secs_f64();
        thread::sleep(SETTLED);
        let before = watch.voluntary_switches()?;
        thread::sleep(bench.lengths.measured);
        Ok(Watched { run, share, woken: watch.voluntary_switches()?.saturating_sub(before) })
    })?;
    Ok(vec![
        Figure {
            what: "CPU time of the watch, as a share of a core, under ping on 64 connections".to_owned(),
            wanted: Wanted::AtMost(0.01),
            spread: spread(&runs, |run| run.share)?,
            unit: Unit::Percent,
            others: others(&runs)?,
            behind: format!("{} calls/s", grouped(spread(&runs, |run| run.run.rate)?.median)),
        },
        Figure {
            what: format!("wake-ups of the watch in {:?} without calls", bench.lengths.measured),
            wanted: Wanted::AtMost(0.0),
            spread: spread(&runs, |run| float(run.woken))?,
            unit: Unit::Count,
            // Nobody else wakes it.
            others: 0.0,
            behind: "voluntary context switches".to_owned(),
        },
    ])
}

pub(crate) fn load_headroom(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let peer = Own::Echo.start(&bench.cores, Place::Server)?;
    headroom(bench, &peer.address, &[peer.process.pid()], &echo(), Wanted::AtLeast(1.5))
}

pub(crate) fn load_headroom_tine(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let service = one_process(bench)?;
    headroom(bench, service.address(), service.workers(), &ping()?, Wanted::ForTheRecord)
}

/// What the load could do with a whole core (its rate ÷ its share) against what the server could (the same of its own).
/// Where the server has no rest this is what the load has left; and it stays true while other programs run.
fn headroom<E: Exchange>(
    bench: &Bench,
    to: &str,
    pids: &[i32],
    exchange: &E,
    wanted: Wanted,
) -> Result<Vec<Figure>, BoxError> {
    let runs = repeat(bench.lengths, || drive::run(to, pids, PIPELINED, bench.lengths, exchange))?;
    Ok(vec![Figure {
        what: "capacity of the load ÷ the server's (each: rate ÷ share of its core)".to_owned(),
        wanted,
        spread: spread(&runs, |run| run.server_share / run.load_share)?,
        unit: Unit::Ratio,
        others: others(&runs)?,
        behind: format!(
            "{} calls/s; share of its core that the load used {:.2}, the server {:.2}",
            grouped(spread(&runs, |run| run.rate)?.median),
            spread(&runs, |run| run.load_share)?.median,
            spread(&runs, |run| run.server_share)?.median,
        ),
    }])
}
