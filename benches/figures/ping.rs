//! `ping` against what the socket allows and against Redis, under the same load.

use tine::BoxError;
use tine::load::{Fixed, Native};

use super::Bench;
use super::report::{Figure, Unit, Wanted};
use super::support::children::Own;
use super::support::cores::Place;
use super::support::drive::{self, Run, Shape, by_turns, spread};
use super::support::numbers::{grouped, time};
use super::support::service::Service;
use super::support::{PING_PARAMS, peers, ping_frame};

/// The method and params that all rows here call.
pub fn ping() -> Result<Native, BoxError> {
    Ok(Native::new("ping", Some(PING_PARAMS))?)
}

/// The same bytes, which come back as they are.
pub fn echo() -> Fixed {
    Fixed::new(ping_frame(), ping_frame())
}

/// What a Redis client sends for `PING`.
pub fn redis_ping() -> Fixed {
    Fixed::new(b"*1\r\n$4\r\nPING\r\n".to_vec(), b"+PONG\r\n".to_vec())
}

/// tine as a user runs it, with one process on the server's core.
pub fn one_process(bench: &Bench) -> Result<Service, BoxError> {
    Service::start(&bench.tine, 1, "", &bench.cores, Place::Server)
}

pub fn against_echo(bench: &Bench, connections: usize, least: f64) -> Result<Vec<Figure>, BoxError> {
    compare_with_echo(bench, Shape::single(connections), Wanted::AtLeast(least))
}

pub fn pipelined_against_echo(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    compare_with_echo(bench, Shape { connections: 64, pipeline: 16 }, Wanted::ForTheRecord)
}

fn compare_with_echo(bench: &Bench, shape: Shape, wanted: Wanted) -> Result<Vec<Figure>, BoxError> {
    let service = one_process(bench)?;
    let peer = Own::Echo.start(&bench.cores, Place::Server)?;
    let (ping, echo) = (ping()?, echo());
    let pairs = by_turns(
        bench.lengths.runs,
        || drive::run(service.address(), service.workers(), shape, bench.lengths, &ping),
        || drive::run(&peer.address, &[peer.process.pid()], shape, bench.lengths, &echo),
    )?;
    Ok(vec![compared(&pairs, wanted, "echo loop")?])
}

pub fn against_redis(bench: &Bench, pipeline: usize, least: f64) -> Result<Vec<Figure>, BoxError> {
    let Some(peer) = peers::redis(&bench.cores, Place::Server)? else { return Ok(Vec::new()) };
    let service = one_process(bench)?;
    let shape = Shape { connections: 64, pipeline };
    let (ping, redis_ping) = (ping()?, redis_ping());
    let pairs = by_turns(
        bench.lengths.runs,
        || drive::run(service.address(), service.workers(), shape, bench.lengths, &ping),
        || drive::run(&peer.address, &[peer.process.pid()], shape, bench.lengths, &redis_ping),
    )?;
    Ok(vec![compared(&pairs, Wanted::AtLeast(least), "Redis")?])
}

fn compared(pairs: &[(Run, Run)], wanted: Wanted, peer: &str) -> Result<Figure, BoxError> {
    let rate = |pick: fn(&(Run, Run)) -> Run| spread(pairs, |pair| pick(pair).rate);
    let cpu = |pick: fn(&(Run, Run)) -> Run| spread(pairs, |pair| pick(pair).cpu_per_call());
    let (tine, other): (fn(&(Run, Run)) -> Run, fn(&(Run, Run)) -> Run) = (|pair| pair.0, |pair| pair.1);
    Ok(Figure {
        what: format!("rate, tine ÷ {peer}"),
        wanted,
        spread: spread(pairs, |(tine, other)| tine.rate / other.rate)?,
        unit: Unit::Ratio,
        behind: format!(
            "{} and {} calls/s; CPU of the server per call {} and {}; p99 {} and {}; share of its core that the load used \
             {:.2} and {:.2}",
            grouped(rate(tine)?.median),
            grouped(rate(other)?.median),
            time(cpu(tine)?.median),
            time(cpu(other)?.median),
            time(spread(pairs, |pair| pair.0.p99.as_secs_f64())?.median),
            time(spread(pairs, |pair| pair.1.p99.as_secs_f64())?.median),
            spread(pairs, |pair| pair.0.load_share)?.median,
            spread(pairs, |pair| pair.1.load_share)?.median,
        ),
    })
}
