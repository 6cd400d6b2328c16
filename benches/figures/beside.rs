//! Slow calls: what they do to quick ones beside them, and how many of them a service gets done.

use std::thread;

use tine::BoxError;
use tine::load::Native;

use super::Bench;
use super::ping::ping;
use super::report::{Figure, Unit, Wanted};
use super::support::cores::Place;
use super::support::drive::{self, Run, Shape, by_turns, others, repeat, spread};
use super::support::numbers::{grouped, time};
use super::support::service::Service;

const SLEEPERS: Shape = Shape::single(4);
const SLEEP_POOL: Shape = Shape::single(64);
/// 64 connections, each of which could be answered 100 times a second.
const IDEAL: f64 = 6_400.0;
/// So that both workers have callers, however the kernel spreads them.
const SPINNING: Shape = Shape::single(16);

/// `ping` beside another load, at the same time, both on the load's core.
fn ping_beside(
    bench: &Bench,
    service: &Service,
    shape: Shape,
    other: (Shape, &Native),
) -> Result<(Run, Run), BoxError> {
    let ping = ping()?;
    let run = |shape, exchange: &Native| {
        drive::run(service.address(), service.workers(), shape, bench.lengths, exchange)
    };
    thread::scope(|scope| {
        let beside = scope.spawn(|| run(other.0, other.1));
        let pinged = run(shape, &ping)?;
        let beside = beside.join().map_err(|_| "the other load panicked")??;
        Ok((pinged, beside))
    })
}

pub(crate) fn sleepers(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let service = Service::start(&bench.rig, 1, "threads = 8", &bench.cores, Place::Server)?;
    let (ping, sleep) = (ping()?, Native::new("sleep", Some(r#"{"ms":50}"#))?);
    let shape = Shape::single(60);
    let pairs = by_turns(
        bench.lengths,
        || drive::run(service.address(), service.workers(), shape, bench.lengths, &ping),
        || ping_beside(bench, &service, shape, (SLEEPERS, &sleep)),
    )?;
    let rates = format!(
        "{} calls/s beside {} sleeping calls/s, {} alone",
        grouped(spread(&pairs, |(_, (pinged, _))| pinged.rate)?.median),
        grouped(spread(&pairs, |(_, (_, slept))| slept.rate)?.median),
        grouped(spread(&pairs, |(alone, _)| alone.rate)?.median)
    );
    let others = others(&pairs)?;
    let p99s = format!(
        "{} beside them, {} alone",
        time(spread(&pairs, |(_, (pinged, _))| pinged.p99.as_secs_f64())?.median),
        time(spread(&pairs, |(alone, _)| alone.p99.as_secs_f64())?.median)
    );
    Ok(vec![
        Figure {
            what: "rate of ping, beside sleepers ÷ alone".to_owned(),
            wanted: Wanted::AtLeast(0.90),
            spread: spread(&pairs, |(alone, (pinged, _))| pinged.rate / alone.rate)?,
            unit: Unit::Ratio,
            others,
            behind: rates,
        },
        Figure {
            what: "p99 of ping, beside sleepers ÷ alone".to_owned(),
            wanted: Wanted::AtMost(2.0),
            spread: spread(&pairs, |(alone, (pinged, _))| {
                pinged.p99.as_secs_f64() / alone.p99.as_secs_f64()
            })?,
            unit: Unit::Ratio,
            others,
            behind: p99s,
        },
    ])
}

pub(crate) fn sleep_pool(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let service = Service::start(&bench.rig, 2, "threads = 48", &bench.cores, Place::Anywhere)?;
    let sleep = Native::new("sleep", Some(r#"{"ms":10}"#))?;
    let runs = repeat(bench.lengths, || {
        drive::run(service.address(), service.workers(), SLEEP_POOL, bench.lengths, &sleep)
    })?;
    Ok(vec![Figure {
        what: "rate ÷ the ideal 6,400 calls/s".to_owned(),
        wanted: Wanted::AtLeast(0.97),
        spread: spread(&runs, |run| run.rate / IDEAL)?,
        unit: Unit::Ratio,
        others: others(&runs)?,
        behind: format!(
            "{} calls/s; p50 {}, p99 {}; CPU of the server per call {}",
            grouped(spread(&runs, |run| run.rate)?.median),
            time(spread(&runs, |run| run.p50.as_secs_f64())?.median),
            time(spread(&runs, |run| run.p99.as_secs_f64())?.median),
            time(spread(&runs, Run::cpu_per_call)?.median),
        ),
    }])
}

pub(crate) fn flaky(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let service = Service::start(&bench.rig, 1, "threads = 8", &bench.cores, Place::Server)?;
    let flaky = Native::new("flaky", Some(r#"{"every":1000,"ms":20}"#))?;
    let half = Shape::single(32);
    let runs = repeat(bench.lengths, || ping_beside(bench, &service, half, (half, &flaky)))?;
    let pings = |figure: fn(&Run) -> f64| spread(&runs, |(pinged, _)| figure(pinged));
    Ok(vec![Figure {
        what: "p99 of ping".to_owned(),
        wanted: Wanted::AtMost(3.0),
        spread: pings(|run| run.p99.as_secs_f64() * 1e3)?,
        unit: Unit::Milliseconds,
        others: others(&runs)?,
        behind: format!(
            "p50 {}, p99.9 {}; {} pings/s, {} flaky calls/s with a p99 of {}",
            time(pings(|run| run.p50.as_secs_f64())?.median),
            time(pings(|run| run.p999.as_secs_f64())?.median),
            grouped(pings(|run| run.rate)?.median),
            grouped(spread(&runs, |(_, flaky)| flaky.rate)?.median),
            time(spread(&runs, |(_, flaky)| flaky.p99.as_secs_f64())?.median),
        ),
    }])
}

pub(crate) fn spin_scaling(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let start =
        |processes| Service::start(&bench.rig, processes, "threads = 1", &bench.cores, Place::Anywhere);
    let (one, two) = (start(1)?, start(2)?);
    let spin = Native::new("spin", Some(r#"{"us":1000}"#))?;
    let run = |service: &Service| {
        bench.cores.at(Place::Anywhere, || {
            drive::run(service.address(), service.workers(), SPINNING, bench.lengths, &spin)
        })?
    };
    let pairs = by_turns(bench.lengths, || run(&one), || run(&two))?;
    Ok(vec![Figure {
        what: "rate, 2 processes ÷ 1".to_owned(),
        wanted: Wanted::AtLeast(1.8),
        spread: spread(&pairs, |(one, two)| two.rate / one.rate)?,
        unit: Unit::Ratio,
        others: others(&pairs)?,
        behind: format!(
            "{} and {} calls/s; share of a core that the load used {:.2} and {:.2}",
            grouped(spread(&pairs, |(_, two)| two.rate)?.median),
            grouped(spread(&pairs, |(one, _)| one.rate)?.median),
            spread(&pairs, |(_, two)| two.load_share)?.median,
            spread(&pairs, |(one, _)| one.load_share)?.median,
        ),
    }])
}
