//! Reloads: many in a row, broken ones, and a new program in place of the old.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::group::{Group, Life};
use crate::support::load::tally::Tally;
use crate::support::proc::{self, wait_until};
use crate::support::service::{Folder, PATIENCE, Service, program};

pub const RELOAD: Row = Row {
    name: "reload",
    fault: "100 reloads in a row under 64 clients that call without pause",
    promise: "no failed call, no closed connection, no refused connect; p99 at most 3 times the usual",
    parts: &[
        Part { name: "single", run: |extent| in_a_row(extent, CLIENTS) },
        Part { name: "pipelined", run: |extent| in_a_row(extent, CLIENTS.pipelined(16)) },
        Part { name: "out-of-order", run: |extent| in_a_row(extent, CLIENTS.out_of_order(16)) },
        Part { name: "any-framing", run: |extent| in_a_row(extent, CLIENTS.pipelined(4).in_any_framing()) },
        Part { name: "every-25ms", run: without_pause },
    ],
};

pub const BAD: Row = Row {
    name: "bad-reload",
    fault: "a reload with a broken config, preload, worker or program",
    promise: "the old generation never stops serving; the log says why",
    parts: &[
        Part { name: "config", run: |extent| bad(extent, |service| service.write_config("no_such_key = 1")) },
        Part {
            name: "preload-fails",
            run: |extent| bad(extent, |service| misbehave(service, "preload", "fail")),
        },
        Part {
            name: "preload-exits",
            run: |extent| bad(extent, |service| misbehave(service, "preload", "exit")),
        },
        Part {
            name: "preload-hangs",
            run: |extent| bad(extent, |service| misbehave(service, "preload", "hang")),
        },
        Part {
            name: "worker-fails",
            run: |extent| bad(extent, |service| misbehave(service, "start", "fail")),
        },
        Part {
            name: "worker-dies-at-boot",
            run: |extent| bad(extent, |service| misbehave(service, "start", "exit")),
        },
        Part {
            name: "worker-dies-soon",
            run: |extent| bad(extent, |service| misbehave(service, "start", "later")),
        },
        Part {
            name: "program-no-executable",
            run: |extent| bad(extent, |service| replace(service, b"not a program")),
        },
    ],
};

pub const BINARY: Row = Row {
    name: "new-binary",
    fault: "a new binary in place of the old, then a reload",
    promise: "calls are answered by the new binary; the supervisor's pid stays; no failed call",
    parts: &[
        Part { name: "reload", run: |extent| new_binary(extent, false) },
        Part { name: "with-a-crash", run: |extent| new_binary(extent, true) },
    ],
};

const CLIENTS: Group = Group::new("clients", 64);

/// They come and go, so that a refused connect shows.
const VISITORS: Group =
    Group::new("visitors", 4).pace(Duration::from_millis(20)).life(Life::Visit { calls: 1 });

/// How long after a reload latencies count as its.
const AFTERMATH: Duration = Duration::from_secs(2);

const PROCESSES: usize = 2;

fn start() -> Result<Service, BoxError> {
    Service::start(PROCESSES, "")
}

fn in_a_row(extent: Extent, group: Group) -> Result<Judge, BoxError> {
    let service = start()?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[group, VISITORS.in_any_framing()])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(Duration::from_millis(500));
    let from = load.elapsed();
    std::thread::sleep(extent.seconds(10, 1));
    let quiet = (from, load.elapsed());
    let mut windows = Vec::new();
    let mut done = 0;
    for _ in 0..extent.count(100, 2) {
        let mark = service.mark();
        windows.push((load.elapsed(), load.elapsed() + AFTERMATH));
        service.signal(Signal::SIGHUP);
        if service.await_log(mark, "reloaded").is_none() {
            break;
        }
        done += 1;
    }
    std::thread::sleep(AFTERMATH);
    let gone = await_one_generation(&service);
    let tallies = load.finish(PATIENCE)?;
    judge.at_least("reloads", done, extent.count(100, 2));
    judge_reloads(&mut judge, &tallies);
    judge.holds("old generations are gone afterwards", gone);
    let usual = tallies[0].p99(&[quiet]);
    judge.tell(format!("p99 without {usual:.2?}"));
    judge.within("p99 after reloads", tallies[0].p99(&windows), usual * 3);
    judge.heard(&service);
    Ok(judge)
}

fn judge_reloads(judge: &mut Judge, tallies: &[Tally]) {
    judge.unharmed(tallies);
    judge.without_errors(tallies);
    let young: u64 = tallies.iter().map(|tally| tally.closed_young).sum();
    let refused: u64 = tallies.iter().map(|tally| tally.refused).sum();
    judge.at_most("closed young connections", young, 0);
    judge.at_most("refused connects", refused, 0);
}

/// One template and one set of workers, all of the generation that came last.
fn await_one_generation(service: &Service) -> bool {
    // Nothing here runs for longer than a moment, so nobody has a reason to use up `timeouts.drain`.
    wait_until(Duration::from_secs(5), || {
        let living = service.workers();
        let last = service.generations().into_values().max();
        living.len() == PROCESSES
            && service.processes().len() == PROCESSES + 2
            && living.iter().all(|pid| service.generations().get(pid).copied() == last)
    })
}

fn without_pause(extent: Extent) -> Result<Judge, BoxError> {
    let service = start()?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[CLIENTS.in_any_framing(), VISITORS.in_any_framing()])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    let until = Instant::now() + extent.seconds(30, 3);
    let mark = service.mark();
    let mut sent = 0;
    while Instant::now() < until {
        service.signal(Signal::SIGHUP);
        sent += 1;
        std::thread::sleep(Duration::from_millis(25));
    }
    let first = service.await_log(mark, "reloaded");
    // The reload that the last signal asked for may just have begun.
    std::thread::sleep(AFTERMATH);
    let gone = await_one_generation(&service);
    let tallies = load.finish(PATIENCE)?;
    judge.tell(format!("{sent} signals, {} reloads", service.count_log(mark, "\"reloaded\"")));
    judge.holds("it reloads at all", first.is_some());
    judge_reloads(&mut judge, &tallies);
    judge.holds("old generations are gone afterwards", gone);
    judge.heard(&service);
    Ok(judge)
}

/// A service whose program and behaviour can be changed while it runs.
fn start_changeable(config: &str) -> Result<(Service, Folder), BoxError> {
    let folder = Folder::new()?;
    let place = folder.path().join("rig");
    fs::copy(program("rig")?, &place)?;
    let mut command = Command::new(&place);
    command.env("RIG_PRELOAD", "@preload").env("RIG_WORKER_START", "@start");
    Ok((Service::start_with(command, PROCESSES, config)?, folder))
}

fn misbehave(service: &Service, when: &str, how: &str) -> Result<(), BoxError> {
    Ok(fs::write(service.folder().join(when), how)?)
}

/// Puts these bytes where the service's program is: a new file, as an installation does it.
fn replace(service: &Service, bytes: &[u8]) -> Result<(), BoxError> {
    put(service.program(), bytes)
}

fn put(place: &Path, bytes: &[u8]) -> Result<(), BoxError> {
    let beside = place.with_extension("new");
    fs::write(&beside, bytes)?;
    fs::set_permissions(&beside, fs::metadata(place)?.permissions())?;
    Ok(fs::rename(beside, place)?)
}

fn bad(extent: Extent, spoil: fn(&Service) -> Result<(), BoxError>) -> Result<Judge, BoxError> {
    let boot = if extent.is_short() { "1s" } else { "3s" };
    let (service, _program) = start_changeable(&format!("[timeouts]\nboot = \"{boot}\""))?;
    let mut judge = Judge::default();
    let before = service.workers();
    let load = Load::start(service.address(), &[CLIENTS.in_any_framing(), VISITORS.in_any_framing()])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    spoil(&service)?;
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    let why = service.await_log(mark, "reload failed");
    std::thread::sleep(Duration::from_millis(500));
    let cleared = wait_until(PATIENCE, || service.processes().len() == PROCESSES + 2);
    let tallies = load.finish(PATIENCE)?;
    judge_reloads(&mut judge, &tallies);
    judge.holds("the same workers serve", same(service.workers(), before));
    judge.holds("nothing of the new generation is left", cleared);
    match why.as_ref().and_then(|line| line["message"].as_str()) {
        Some(why) => judge.tell(format!("the log: {why:?}")),
        None => judge
            .failures
            .push("expected a line in the log that says why the reload failed, found none".into()),
    }
    judge.heard(&service);
    Ok(judge)
}

fn same(mut a: Vec<i32>, mut b: Vec<i32>) -> bool {
    a.sort_unstable();
    b.sort_unstable();
    a == b
}

fn new_binary(extent: Extent, with_a_crash: bool) -> Result<Judge, BoxError> {
    let (service, folder) = start_changeable("")?;
    let place = folder.path().join("rig");
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[CLIENTS.in_any_framing(), VISITORS.in_any_framing()])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(extent.seconds(2, 1));
    // What stands behind an executable's last section doesn't matter to anyone, but for its length.
    let mut bytes = fs::read(&place)?;
    bytes.extend_from_slice(b"a newer version");
    put(&place, &bytes)?;
    let (pid, mark) = (service.pid(), service.mark());
    let old = service.workers();
    service.signal(Signal::SIGHUP);
    if with_a_crash {
        std::thread::sleep(Duration::from_millis(100));
        old.iter().take(1).for_each(|pid| proc::signal(*pid, Signal::SIGKILL));
    }
    let reloaded = service.await_log(mark, "reloaded").is_some();
    std::thread::sleep(AFTERMATH);
    let gone = await_one_generation(&service);
    let is_new = |pid: i32| {
        fs::metadata(format!("/proc/{pid}/exe")).is_ok_and(|file| file.len() == bytes.len() as u64)
    };
    let workers = service.workers();
    let supervisor_is_new = wait_until(Duration::from_secs(3), || is_new(pid));
    let after = load.right();
    std::thread::sleep(Duration::from_millis(500));
    judge.holds("calls are answered afterwards", load.right() > after);
    let tallies = load.finish(PATIENCE)?;
    judge.holds("the reload succeeds", reloaded);
    judge.holds("workers run the new binary", workers.len() == PROCESSES && workers.into_iter().all(is_new));
    judge.holds("the supervisor runs the new binary under its old pid", supervisor_is_new);
    judge.holds("the old generation is gone", gone);
    if with_a_crash {
        judge.unharmed(&tallies[..1]);
        judge.only_errors(&tallies, |failure| failure.code == -32002);
    } else {
        judge_reloads(&mut judge, &tallies);
    }
    judge.heard(&service);
    Ok(judge)
}
