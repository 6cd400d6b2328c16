//! What connections cost: the supervisor, for those that it keeps and those that are too short for it; and the whole service, for
//! those on which one call is made.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use tine::BoxError;

use super::Bench;
use super::report::{Figure, Unit, Wanted};
use super::support::cores::Place;
use super::support::numbers::{Spread, float};
use super::support::process::{cpu_time, descriptors};
use super::support::service::Service;

const CONNECTIONS: usize = 4_000;
/// In the short round.
const FEW: usize = 100;
const ROUNDS: usize = 5;
const PROCESSES: usize = 4;
const VISITS: usize = 6_400;
const BUILT_IN: &str = r#"{"in":"echo","params":1}"#;
/// A method of `rig` that returns at once.
const HANDLER: &str = r#"{"in":"crash","params":{"how":"none"}}"#;
const PATIENCE: Duration = Duration::from_secs(30);
/// Longer than connections that come close together take to be looked at.
const SETTLED: Duration = Duration::from_millis(500);

pub(crate) fn supervisors_part(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let (count, rounds) = if bench.is_for_the_record { (CONNECTIONS, ROUNDS) } else { (FEW, 1) };
    let service = Service::start(&bench.tine, PROCESSES, "", &bench.cores, Place::Server)?;
    let (mut kept, mut short) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        kept.push(of_each(&service, count, stay_until_kept)?);
        short.push(of_each(&service, count, come_and_go)?);
    }
    let figure = |what: &str, most: f64, samples: Vec<f64>| -> Result<Figure, BoxError> {
        Ok(Figure {
            what: what.to_owned(),
            wanted: Wanted::AtMost(most),
            spread: Spread::of(samples).ok_or("there is a round")?,
            unit: Unit::Microseconds,
            // CPU time is nobody else's.
            others: 0.0,
            behind: format!("{count} connections in a round, {PROCESSES} workers"),
        })
    };
    Ok(vec![
        figure(
            "CPU time of the supervisor for each connection that it keeps, from beginning to end",
            10.0,
            kept,
        )?,
        figure(
            "CPU time of the supervisor for each connection shorter than timeouts.keep_after",
            0.5,
            short,
        )?,
    ])
}

/// The CPU time, supervisor and workers, by which a visit (connect, one call, close) that needs keeping costs more than one that calls a
/// built-in method.
pub(crate) fn visits(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let (count, rounds) = if bench.is_for_the_record { (VISITS, ROUNDS) } else { (FEW, 1) };
    let service = Service::start(&bench.rig, 2, "", &bench.cores, Place::Server)?;
    let mut figures = Vec::new();
    for (at_once, wanted) in [(64, Wanted::AtMost(12.0)), (1, Wanted::ForTheRecord)] {
        // Quick methods are known as such after some calls.
        let _ = of_each_visit(&service, FEW, at_once, HANDLER)?;
        let samples = (0..rounds)
            .map(|_| {
                let builtin = of_each_visit(&service, count, at_once, BUILT_IN)?;
                Ok(of_each_visit(&service, count, at_once, HANDLER)? - builtin)
            })
            .collect::<Result<Vec<f64>, BoxError>>()?;
        figures.push(Figure {
            what: format!(
                "CPU time of the service for keeping a connection before its one call, {at_once} at once"
            ),
            wanted,
            spread: Spread::of(samples).ok_or("there is a round")?,
            unit: Unit::Microseconds,
            others: 0.0,
            behind: format!("{count} visits in a round, 2 workers"),
        });
    }
    Ok(figures)
}

/// Microseconds of CPU time of the supervisor and its workers for each visit.
fn of_each_visit(service: &Service, count: usize, at_once: usize, call: &str) -> Result<f64, BoxError> {
    let used = || -> Result<Duration, BoxError> {
        // What the supervisor hears of ends is gathered for a while.
        thread::sleep(SETTLED);
        let workers = service.workers().iter().map(|pid| cpu_time(*pid)).sum::<Result<Duration, _>>()?;
        Ok(workers + cpu_time(service.pid())?)
    };
    let each = count / at_once;
    let before = used()?;
    thread::scope(|scope| {
        let visitors: Vec<_> = (0..at_once)
            .map(|_| scope.spawn(move || (0..each).try_for_each(|_| visit(service.address(), call))))
            .collect();
        visitors.into_iter().try_for_each(|visitor| visitor.join().map_err(|_| "a visitor panicked")?)
    })?;
    Ok(used()?.saturating_sub(before).as_secs_f64() * 1e6 / float((each * at_once) as u64))
}

fn visit(address: &str, call: &str) -> Result<(), BoxError> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let length = u32::try_from(call.len())?.to_le_bytes();
    stream.write_all(&[&length, call.as_bytes()].concat())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    Ok(stream.read_exact(&mut answer)?)
}

/// Microseconds of the supervisor's CPU time for each connection.
fn of_each(
    service: &Service,
    count: usize,
    have: fn(&Service, usize) -> Result<(), BoxError>,
) -> Result<f64, BoxError> {
    // What the round before has left behind is done.
    thread::sleep(SETTLED);
    let before = cpu_time(service.pid())?;
    have(service, count)?;
    thread::sleep(SETTLED);
    let used = cpu_time(service.pid())?.saturating_sub(before);
    Ok(used.as_secs_f64() * 1e6 / float(count as u64))
}

fn stay_until_kept(service: &Service, count: usize) -> Result<(), BoxError> {
    let open = descriptors(service.pid())?;
    let streams = (0..count).map(|_| TcpStream::connect(service.address())).collect::<Result<Vec<_>, _>>()?;
    await_descriptors(service, |found| found >= open + count)?;
    drop(streams);
    await_descriptors(service, |found| found <= open)
}

fn come_and_go(service: &Service, count: usize) -> Result<(), BoxError> {
    for _ in 0..count {
        drop(TcpStream::connect(service.address())?);
    }
    Ok(())
}

pub(crate) fn await_descriptors(service: &Service, enough: impl Fn(usize) -> bool) -> Result<(), BoxError> {
    let until = Instant::now() + PATIENCE;
    loop {
        let found = descriptors(service.pid())?;
        if enough(found) {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(format!("the supervisor has {found} descriptors open, after {PATIENCE:?}").into());
        }
        thread::sleep(Duration::from_millis(20));
    }
}
