//! All faults at random, for as long as one likes, under clients that check every answer and never connect again.
//!
//!     cargo run --release --example soak -- --minutes 10
//!     cargo run --release --example soak -- --minutes 1 --seed 7
//!
//! Each call must get exactly one answer, its own; no connection may close; and processes, descriptors and memory must
//! end where they began. It ends with 1 at the first harm, with what the service said.

#![allow(unreachable_pub)] // nothing outside can reach into a program anyway

mod faults;
#[path = "../support/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tine::BoxError;

use faults::Faults;
use support::load::Load;
use support::load::content::Work;
use support::load::group::{Group, Life, Reading, Sending};
use support::load::tally::Tally;
use support::proc;
use support::service::{PATIENCE, Service};

/// All faults at random under load.
#[derive(Debug, Parser)]
struct Arguments {
    #[arg(long, default_value_t = 10.0)]
    minutes: f64,
    /// Of the faults and when they come; drawn and printed without.
    #[arg(long)]
    seed: Option<u64>,
    /// Faults to leave out, such as `reload`.
    #[arg(long)]
    without: Vec<String>,
}

const PROCESSES: usize = 4;

const CONFIG: &str = r#"threads = 8
[limits]
queue_wait = "5s"
[timeouts]
stuck = "1s"
drain = "3s"
[restart]
max_restarts = 0
backoff = "10ms"
backoff_max = "100ms"
[quarantine]
crashes = 0
[methods.hang]
timeout = "200ms"
"#;

/// What each kind of client may be told: everything else is harm. -32002 is for all whose calls may run in a worker that dies.
const GROUPS: &[(Group, &[i64])] = &[
    (Group::new("single", 10).in_any_framing(), &[-32002]),
    (Group::new("pipelined", 10).pipelined(16).in_any_framing(), &[-32002]),
    (Group::new("out of order", 6).out_of_order(16), &[-32002]),
    (Group::new("any framing, out of order", 10).out_of_order(8).in_any_framing(), &[-32002]),
    (Group::new("large", 10).work(Work::Echo { bytes: 200_000 }).pace(PACE).in_any_framing(), &[-32002]),
    (
        Group::new("slow readers", 10)
            .in_any_framing()
            .work(Work::Blob { bytes: 1 << 20 })
            .reading(Reading::Paced { bytes: 64 << 10, every: Duration::from_millis(10) }),
        &[-32002],
    ),
    (
        Group::new("half-closed", 10)
            .in_any_framing()
            .work(Work::Mixed { bytes: 40, every: 2, ms: 10 })
            .pipelined(64)
            .life(Life::HalfClosing { calls: 64 }),
        &[-32002],
    ),
    (Group::new("urgent", 10).in_any_framing().pipelined(4).sending(Sending::Urgent).pace(PACE), &[-32002]),
    (
        Group::new("odd pieces", 10)
            .in_any_framing()
            .pipelined(4)
            .sending(Sending::Odd)
            .work(Work::Echo { bytes: 900 }),
        &[-32002],
    ),
    (
        Group::new("sleepers", 10).in_any_framing().work(Work::Mixed { bytes: 40, every: 1, ms: 15 }),
        &[-32002],
    ),
    (Group::new("rare", 10).in_any_framing().pace(Duration::from_millis(700)), &[-32002]),
    (
        Group::new("visitors", 10)
            .in_any_framing()
            .pace(Duration::from_millis(20))
            .life(Life::Visit { calls: 1 }),
        &[-32002],
    ),
    (deadly("segv", r#"{"how":"segv"}"#), &[-32002]),
    (deadly("abort", r#"{"how":"abort"}"#), &[-32002]),
    (deadly("exit", r#"{"how":"exit","code":3}"#), &[-32002]),
    (deadly("stack", r#"{"how":"stack"}"#), &[-32002]),
    (
        Group::new("hang", 10)
            .in_any_framing()
            .work(Work::Fixed { method: "hang", params: "[]", result: None })
            .calling_over(Duration::from_secs(60))
            .pace(Duration::from_secs(60)),
        &[-32001, -32002],
    ),
];

/// Who takes a worker down has by then a connection that survives it.
const FIRST_DEATH: Duration = Duration::from_secs(2);

/// Nothing breaks before the clients' connections are old enough to be kept.
const ALL_ARE_KEPT: Duration = Duration::from_secs(1);

const PACE: Duration = Duration::from_millis(5);

const fn deadly(name: &'static str, params: &'static str) -> Group {
    let work = Work::Fixed { method: "crash", params, result: None };
    // In each framing, but one after the other: all together they make a death each second or so.
    let each = Duration::from_secs(50);
    Group::new(name, 10).in_any_framing().work(work).calling_over(each).pace(each).after(FIRST_DEATH)
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let seed = arguments.seed.unwrap_or_else(|| rand::rng().next_u64());
    println!("soak of {} minutes, --seed {seed}", arguments.minutes);
    match soak(&arguments, seed) {
        Ok(complaints) if complaints.is_empty() => {
            println!("== clean");
            ExitCode::SUCCESS
        }
        Ok(complaints) => {
            for complaint in complaints {
                println!("== {complaint}");
            }
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("== {error}");
            ExitCode::FAILURE
        }
    }
}

/// Descriptors and bytes of memory, by the name of a process: the most of one.
type Footprint = BTreeMap<String, (usize, usize, u64)>;

fn footprint(service: &Service) -> Footprint {
    let mut all = Footprint::new();
    for pid in service.processes() {
        let name = if pid == service.pid() { "supervisor".to_owned() } else { proc::name(pid) };
        let (count, descriptors, memory) = all.entry(name).or_default();
        *count += 1;
        *descriptors = (*descriptors).max(proc::descriptors(pid));
        *memory = (*memory).max(proc::memory(pid));
    }
    all
}

fn soak(arguments: &Arguments, seed: u64) -> Result<Vec<String>, BoxError> {
    let mut service = Service::start(PROCESSES, CONFIG)?;
    // Once through everything, so that what is made at the first use is there.
    warm_up(&service)?;
    let before = footprint(&service);
    let groups: Vec<Group> = GROUPS.iter().map(|(group, _)| *group).collect();
    let load = Load::start(service.address(), &groups)?;
    std::thread::sleep(ALL_ARE_KEPT);
    let mut faults = Faults::new(&service, StdRng::seed_from_u64(seed), PROCESSES, &arguments.without);
    let begun = Instant::now();
    let end = begun + Duration::try_from_secs_f64(arguments.minutes * 60.0)?;
    let mut next_word = begun + WORD_EVERY;
    let mut complaints = Vec::new();
    while Instant::now() < end && complaints.is_empty() {
        faults.next()?;
        complaints = load.look(harm);
        if Instant::now() >= next_word {
            next_word += WORD_EVERY;
            load.look(|tallies| progress(begun.elapsed(), tallies, &faults));
        }
    }
    let is_clean = complaints.is_empty();
    // Some of them come late, or call once a minute.
    let is_long = begun.elapsed() > Duration::from_secs(70);
    faults.end();
    let tallies = load.finish(PATIENCE)?;
    complaints = harm(&tallies);
    if is_long {
        complaints.extend(tallies.iter().flat_map(Tally::silent));
    }
    progress(begun.elapsed(), &tallies, &faults);
    tallies.iter().for_each(summary);
    if !is_clean || !complaints.is_empty() {
        complaints.push(format!("the service said last:\n{}", service.tail(30)));
        return Ok(complaints);
    }
    complaints.extend(compare(&service, &before));
    if service.has_panicked() {
        complaints.push("a process of the service panicked".to_owned());
    }
    if service.stop() != Some(0) {
        complaints.push(format!("expected an end with 0; the service said last:\n{}", service.tail(10)));
    }
    Ok(complaints)
}

/// Descriptors that a worker has or not, by what it happened to do last.
const MADE_AT_NEED: usize = 2;

const WORD_EVERY: Duration = Duration::from_secs(10);

fn warm_up(service: &Service) -> Result<(), BoxError> {
    let groups: Vec<Group> = GROUPS[..11].iter().map(|(group, _)| *group).collect();
    let load = Load::start(service.address(), &groups)?;
    std::thread::sleep(Duration::from_secs(2));
    load.finish(PATIENCE)?;
    std::thread::sleep(Duration::from_secs(1));
    Ok(())
}

/// What no fault excuses.
fn harm(tallies: &[Tally]) -> Vec<String> {
    let mut all = Vec::new();
    for (tally, (_, expected)) in tallies.iter().zip(GROUPS) {
        all.extend(tally.complaints());
        for (failure, count) in &tally.errors {
            let has_reason =
                failure.code != -32002 || (!failure.cause.is_empty() && !failure.method.is_empty());
            if !expected.contains(&failure.code) || !has_reason {
                all.push(format!("{}: {count} calls answered {failure:?}", tally.group));
            }
        }
    }
    all
}

fn progress(elapsed: Duration, tallies: &[Tally], faults: &Faults<'_>) {
    let right: u64 = tallies.iter().map(|tally| tally.right).sum();
    let errors: u64 = tallies.iter().map(Tally::all_errors).sum();
    let young: u64 = tallies.iter().map(|tally| tally.closed_young).sum();
    println!("{:4} s: {right} right, {errors} errors, {young} young closed; {faults}", elapsed.as_secs());
}

fn summary(tally: &Tally) {
    let Tally { group, connects, right, .. } = tally;
    println!("  {group:13} {connects:6} connects {right:9} right  {}", tally.errors_as_text());
}

/// Whether processes, descriptors and memory are where they were.
fn compare(service: &Service, before: &Footprint) -> Vec<String> {
    let is_back = |found: &Footprint| {
        found.len() == before.len()
            && found.iter().all(|(name, (count, descriptors, memory))| {
                let Some(was) = before.get(name) else { return false };
                *count == was.0
                    && *descriptors <= was.1 + MADE_AT_NEED
                    && *memory <= was.2 + was.2 / 4 + (16 << 20)
            })
    };
    let mut found = footprint(service);
    let until = Instant::now() + Duration::from_secs(20);
    while !is_back(&found) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(100));
        found = footprint(service);
    }
    for (name, (count, descriptors, memory)) in &found {
        println!("  {count} {name}: {descriptors} descriptors, {} MiB", memory >> 20);
    }
    if is_back(&found) {
        return Vec::new();
    }
    let said = service.lines_with(&["one worker", "reloaded", "reload failed", "signal"], 20);
    vec![format!(
        "expected processes, descriptors and memory as before: {before:?}, found {found:?}; it said:\n{said}"
    )]
}
