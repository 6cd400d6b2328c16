//! `kill -9` of a random worker, again and again, under every kind of client.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::seq::IndexedRandom;
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::content::Work;
use crate::support::load::group::{Group, Life, Reading, Sending};
use crate::support::proc;
use crate::support::service::{PATIENCE, Service};
use crate::support::stalls::Stalls;

pub const ROW: Row = Row {
    name: "kill",
    fault: "`kill -9` of a random worker every 100 ms, 4 workers, 64 connections",
    promise: "no connection closes; the calls that were running get -32002 with the cause, all others their answer",
    parts: &[
        Part { name: "single", run: |extent| killed(extent, CLIENTS) },
        Part { name: "pipelined", run: |extent| killed(extent, CLIENTS.pipelined(16)) },
        Part { name: "out-of-order", run: |extent| killed(extent, CLIENTS.out_of_order(16)) },
        Part { name: "large", run: |extent| killed(extent, CLIENTS.work(Work::Echo { bytes: 256 << 10 })) },
        Part { name: "slow-readers", run: |extent| killed(extent, SLOW_READERS) },
        Part { name: "half-closed", run: |extent| killed(extent, HALF_CLOSED) },
        Part { name: "urgent", run: |extent| killed(extent, CLIENTS.pipelined(4).sending(Sending::Urgent)) },
        Part { name: "odd-pieces", run: |extent| killed(extent, ODD) },
        Part { name: "any-framing", run: |extent| killed(extent, CLIENTS.in_any_framing()) },
        Part {
            name: "any-pipelined",
            run: |extent| killed(extent, CLIENTS.out_of_order(8).in_any_framing()),
        },
        Part { name: "any-odd-pieces", run: |extent| killed(extent, ODD.in_any_framing()) },
        Part { name: "any-slow-readers", run: |extent| killed(extent, SLOW_READERS.in_any_framing()) },
        Part { name: "any-half-closed", run: |extent| killed(extent, HALF_CLOSED.in_any_framing()) },
        Part { name: "visits", run: |extent| visited(extent, "100ms") },
        Part { name: "visits-kept-at-once", run: |extent| visited(extent, "0s") },
    ],
};

const CLIENTS: Group = Group::new("clients", 64);

const SLOW_READERS: Group = CLIENTS
    .work(Work::Blob { bytes: 1 << 20 })
    .reading(Reading::Paced { bytes: 64 << 10, every: Duration::from_millis(10) });

/// Each sends all its calls and FIN at once, and then reads for some seconds.
const HALF_CLOSED: Group = CLIENTS
    .work(Work::Mixed { bytes: 40, every: 2, ms: 10 })
    .pipelined(128)
    .life(Life::HalfClosing { calls: 128 });

const ODD: Group = CLIENTS.pipelined(4).sending(Sending::Odd).work(Work::Echo { bytes: 900 });

/// Each call on a connection of its own, as curl's are.
const VISITORS: Group = Group::new("visitors", 16)
    .work(Work::Fixed { method: "sleep", params: r#"{"ms":1}"#, result: Some("null") })
    .life(Life::Visit { calls: 1 })
    .in_any_framing();

const THREADS: usize = 8;

const BETWEEN_KILLS: Duration = Duration::from_millis(100);

fn killed(extent: Extent, group: Group) -> Result<Judge, BoxError> {
    let mut judge = Judge::default();
    // Many of these clients are more than it can serve at once, and nothing is refused for that here.
    let config = format!(
        "threads = {THREADS}\n[limits]\nqueue = 10000\nqueue_wait = \"60s\"\n[quarantine]\ncrashes = 0"
    );
    let service = Service::start(4, &config)?;
    let load = Load::start(service.address(), &[group])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    // Until all are in the keeping.
    std::thread::sleep(Duration::from_millis(500));
    let quiet = (load.elapsed(), load.right());
    std::thread::sleep(extent.seconds(10, 1));
    let faulted = (load.elapsed(), load.right());
    let stalls = Stalls::watch();
    let kills = kill_for(&service, extent.seconds(30, 2));
    let ended = (load.elapsed(), load.right());
    let tallies = load.finish(PATIENCE)?;

    let rate = |from: (Duration, u64), to: (Duration, u64)| {
        #[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
        let answers = (to.1 - from.1) as f64;
        (answers / to.0.saturating_sub(from.0).as_secs_f64()).round()
    };
    let (before, meanwhile) = (rate(quiet, faulted), rate(faulted, ended));
    judge.tell(format!("{kills} kills"));
    judge.unharmed(&tallies);
    judge.only_errors(&tallies, |failure| {
        failure.code == -32002 && failure.cause == "SIGKILL" && !failure.method.is_empty()
    });
    let failed = |is_batch: bool| -> u64 {
        let all = tallies.iter().flat_map(|tally| &tally.failed_messages);
        all.filter(|(speech, _)| (speech.calls() > 1) == is_batch).map(|(_, count)| count).sum()
    };
    judge.holds(
        "at most as many failed calls as threads that were killed",
        failed(false) <= kills * (THREADS as u64 + 1),
    );
    // A batch runs as soon as it is taken apart: what is not answered of it goes with its worker.
    if group.speeches.len() > 1 {
        judge.tell(format!("{} failed batches", failed(true)));
    }
    judge.tell(format!("{before} calls/s before"));
    judge.rate_at_least("calls/s meanwhile", meanwhile, before / 2.0);
    let silences = &tallies[0].silences;
    let (usual, longest) =
        (silences.longest(quiet.0, faulted.0), silences.longest(faulted.0, ended.0 + Duration::from_secs(5)));
    // What the machine did not let anybody do is nobody's fault.
    let stalled = stalls.longest();
    judge.tell(format!("longest silence before {usual:.1?}, longest stall of the machine {stalled:.1?}"));
    judge.within("longest silence meanwhile", longest, usual + stalled + Duration::from_millis(50));
    judge.holds("all workers are back", service.await_workers(4));
    judge.heard(&service);
    Ok(judge)
}

fn visited(extent: Extent, keep_after: &str) -> Result<Judge, BoxError> {
    let mut judge = Judge::default();
    let config = format!(
        "threads = {THREADS}\n[limits]\nqueue_wait = \"60s\"\n[timeouts]\nkeep_after = \"{keep_after}\"\n[quarantine]\ncrashes = 0"
    );
    let service = Service::start(4, &config)?;
    let load = Load::start(service.address(), &[VISITORS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    let kills = kill_for(&service, extent.seconds(60, 2));
    let tallies = load.finish(PATIENCE)?;
    judge.tell(format!("{kills} kills, {} visits", tallies[0].connects));
    judge.unharmed(&tallies);
    judge.only_errors(&tallies, |failure| failure.code == -32002 && failure.cause == "SIGKILL");
    // The kernel gives a connection to one process alone: who is accepted in the very moment in which that is killed, some
    // microseconds before it can be kept, ends with it. Longer on a machine where others run in that moment.
    judge.at_most("visits without an answer", tallies[0].closed_young, 1 + kills / 20);
    judge.holds("all workers are back", service.await_workers(4));
    judge.heard(&service);
    Ok(judge)
}

/// Kills a random worker every 100 ms; how many were killed.
fn kill_for(service: &Service, duration: Duration) -> u64 {
    let until = Instant::now() + duration;
    let mut next = Instant::now();
    let mut kills = 0;
    while Instant::now() < until {
        if let Some(pid) = service.workers().choose(&mut rand::rng()) {
            proc::signal(*pid, Signal::SIGKILL);
            kills += 1;
        }
        next += BETWEEN_KILLS;
        std::thread::sleep(next.saturating_duration_since(Instant::now()));
    }
    kills
}
