//! Handlers that never return, and workers that are stopped.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::seq::IndexedRandom;
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::content::Work;
use crate::support::load::group::Group;
use crate::support::load::speech::Speech;
use crate::support::proc::{self, wait_until};
use crate::support::service::{PATIENCE, Service};
use crate::support::stalls::Stalls;

pub const HANG: Row = Row {
    name: "hang",
    fault: "a handler that never returns",
    promise: "its caller gets -32001 within 10 ms of the deadline; neighbours finish; the worker is replaced after `stuck`",
    parts: &[
        Part { name: "one", run: one_hangs },
        Part { name: "any-framing", run: one_of_each_hangs },
        Part { name: "every-slot", run: all_hang },
    ],
};

pub const STOPPED: Row = Row {
    name: "stopped",
    fault: "a worker that is stopped (SIGSTOP) while it has connections",
    promise: "killed after `stuck`, its connections adopted",
    parts: &[Part { name: "sigstop", run: stopped }],
};

const DEADLINE: Duration = Duration::from_millis(300);

const STUCK: Duration = Duration::from_secs(1);

const PROCESSES: usize = 3;

const HANGING: Work = Work::Fixed { method: "hang", params: "[]", result: None };

const PLAIN: Group = Group::new("clients", 32).pace(Duration::from_millis(2));

const CLIENTS: Group = PLAIN.in_any_framing();

const SLEEPERS: Group = Group::new("sleepers", 10)
    .in_any_framing()
    .work(Work::Fixed { method: "sleep", params: r#"{"ms":20}"#, result: Some("null") })
    .pace(Duration::from_millis(30));

fn start(threads: usize) -> Result<Service, BoxError> {
    let config = format!(
        "threads = {threads}\n[timeouts]\nstuck = \"{}ms\"\ndrain = \"2s\"\n[restart]\nmax_restarts = 0\n[methods.hang]\ntimeout = \"{}ms\"",
        STUCK.as_millis(),
        DEADLINE.as_millis()
    );
    Service::start(PROCESSES, &config)
}

/// Workers that serve: those that are there and have said that they are ready.
fn ready(service: &Service) -> usize {
    let ready = service.ready_workers();
    service.workers().iter().filter(|pid| ready.contains(pid)).count()
}

/// Looks at the service for a while; the least and the most workers that were there.
fn watch(service: &Service, duration: Duration) -> (usize, usize) {
    let until = Instant::now() + duration;
    let (mut least, mut most) = (usize::MAX, 0);
    while Instant::now() < until {
        least = least.min(ready(service));
        most = most.max(service.workers().len());
        std::thread::sleep(Duration::from_millis(10));
    }
    (least, most)
}

fn one_hangs(extent: Extent) -> Result<Judge, BoxError> {
    now_and_then(extent, 8, Group::new("stuck", 1).work(HANGING).pace(extent.seconds(5, 3)))
}

/// The same from callers of each framing, who come one after another: with HTTP and no envelope it is 504.
fn one_of_each_hangs(extent: Extent) -> Result<Judge, BoxError> {
    let stuck = Group::new("stuck", Speech::ALL.len()).in_any_framing().work(HANGING);
    let while_all_come = extent.seconds(20, 6);
    // Two batches may come to one worker, and others find a thread there all the same.
    now_and_then(extent, 32, stuck.calling_over(while_all_come).pace(while_all_come))
}

fn now_and_then(extent: Extent, threads: usize, stuck: Group) -> Result<Judge, BoxError> {
    let service = start(threads)?;
    let mut judge = Judge::default();
    let mark = service.mark();
    let load = Load::start(service.address(), &[CLIENTS, SLEEPERS, stuck])?;
    let stalls = Stalls::watch();
    let (least, most) = watch(&service, extent.seconds(30, 8));
    let end = load.elapsed();
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.without_errors(&tallies[..2]);
    judge.only_errors(&tallies[2..], |failure| failure.code == -32001);
    let late = tallies[2].error_latencies.longest(Duration::ZERO, end + Duration::from_secs(5));
    judge.holds("the caller is told", tallies[2].errors_of(-32001) > 0);
    // What the machine did not let anybody do is nobody's fault.
    let stalled = stalls.longest();
    judge.tell(format!("longest stall of the machine {stalled:.1?}"));
    judge.within("told after", late, DEADLINE + stalled + Duration::from_millis(10));
    judge.at_least("ready workers at any time", least, PROCESSES);
    judge.at_most("workers at any time", most, 2 * PROCESSES);
    judge.at_least("workers replaced", service.count_log(mark, "worker ready"), 1);
    let back = wait_until(PATIENCE, || service.workers().len() == PROCESSES);
    judge.holds("in the end there are as many as configured", back);
    judge.heard(&service);
    Ok(judge)
}

fn all_hang(extent: Extent) -> Result<Judge, BoxError> {
    let service = start(8)?;
    let mut judge = Judge::default();
    let stuck = Group::new("stuck", 8).work(HANGING).pace(Duration::from_millis(400));
    // Whatever needs a thread may find none here, a batch or a chunked body too.
    let load = Load::start(service.address(), &[PLAIN, stuck])?;
    let (least, most) = watch(&service, extent.seconds(30, 8));
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.without_errors(&tallies[..1]);
    // Those over the bound are killed, so some callers hear of that; others find no thread free.
    judge.only_errors(&tallies[1..], |failure| [-32001, -32002, -32000].contains(&failure.code));
    judge.at_least("ready workers at any time", least, PROCESSES);
    judge.at_most("workers at any time", most, 2 * PROCESSES);
    judge.holds("it ends with as many as configured", service.await_workers(PROCESSES));
    judge.heard(&service);
    Ok(judge)
}

fn stopped(extent: Extent) -> Result<Judge, BoxError> {
    let service = start(8)?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[CLIENTS, SLEEPERS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(Duration::from_millis(500));
    let rounds = extent.count(10, 2);
    let mut slowest = Duration::ZERO;
    for _ in 0..rounds {
        let Some(pid) = service.workers().choose(&mut rand::rng()).copied() else { break };
        let at = Instant::now();
        proc::signal(pid, Signal::SIGSTOP);
        judge.holds("it is killed", wait_until(Duration::from_secs(10), || !proc::is_alive(pid)));
        slowest = slowest.max(at.elapsed());
        proc::signal(pid, Signal::SIGKILL);
        judge.holds("it is replaced", service.await_workers(PROCESSES));
        std::thread::sleep(Duration::from_millis(500));
    }
    let end = load.elapsed();
    let tallies = load.finish(PATIENCE)?;
    judge.tell(format!("{rounds} workers stopped"));
    judge.unharmed(&tallies);
    judge.only_errors(&tallies, |failure| failure.code == -32002);
    judge.within("killed after", slowest, STUCK * 3);
    let longest = tallies[0].silences.longest(Duration::ZERO, end);
    judge.tell(format!("longest silence {longest:.1?}"));
    judge.heard(&service);
    Ok(judge)
}
