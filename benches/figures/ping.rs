//! `ping` against what the socket allows and against Redis, under the same load.

use tine::BoxError;
use tine::load::{Fixed, Native};

use super::Bench;
use super::report::{Figure, Unit, Wanted};
use super::support::children::Own;
use super::support::cores::Place;
use super::support::drive::{self, Run, Shape, by_turns, others, spread};
use super::support::numbers::{grouped, time};
use super::support::service::Service;
use super::support::{PING_PARAMS, peers, ping_frame};

/// The method and params that all rows here call.
pub(crate) fn ping() -> Result<Native, BoxError> {
    Ok(Native::new("ping", Some(PING_PARAMS))?)
}

/// The same bytes, which come back as they are.
pub(crate) fn echo() -> Fixed {
    Fixed::new(ping_frame(), ping_frame())
}

/// What a Redis client sends for `PING`.
pub(crate) fn redis_ping() -> Fixed {
    Fixed::new(b"*1\r\n$4\r\nPING\r\n".to_vec(), b"+PONG\r\n".to_vec())
}

/// tine as a user runs it, with one process on the server's core.
pub(crate) fn one_process(bench: &Bench) -> Result<Service, BoxError> {
    Service::start(&bench.tine, 1, "", &bench.cores, Place::Server)
}

pub(crate) fn against_echo(bench: &Bench, connections: usize, least: f64) -> Result<Vec<Figure>, BoxError> {
    compare_with_echo(bench, Shape::single(connections), Wanted::AtLeast(least))
}

pub(crate) fn pipelined_against_echo(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    compare_with_echo(bench, Shape { connections: 64, pipeline: 16 }, Wanted::ForTheRecord)
}

fn compare_with_echo(bench: &Bench, shape: Shape, wanted: Wanted) -> Result<Vec<Figure>, BoxError> {
    let service = one_process(bench)?;
    let peer = Own::Echo.start(&bench.cores, Place::Server)?;
    let (ping, echo) = (ping()?, echo());
    let pairs = by_turns(
        bench.lengths,
        || drive::run(service.address(), service.workers(), shape, bench.lengths, &ping),
        || drive::run(&peer.address, &[peer.process.pid()], shape, bench.lengths, &echo),
    )?;
    Ok(vec![compared(&pairs, wanted, ["tine", "echo loop"])?])
}

pub(crate) fn against_redis(bench: &Bench, pipeline: usize, least: f64) -> Result<Vec<Figure>, BoxError> {
    let Some(peer) = peers::redis(&bench.cores, Place::Server)? else { return Ok(Vec::new()) };
    let service = one_process(bench)?;
    let shape = Shape { connections: 64, pipeline };
    let (ping, redis_ping) = (ping()?, redis_ping());
    let pairs = by_turns(
        bench.lengths,
        || drive::run(service.address(), service.workers(), shape, bench.lengths, &ping),
        || drive::run(&peer.address, &[peer.process.pid()], shape, bench.lengths, &redis_ping),
    )?;
    Ok(vec![compared(&pairs, Wanted::AtLeast(least), ["tine", "Redis"])?])
}

/// The rate of one side by that of the other.
pub(crate) fn compared(
    pairs: &[(Run, Run)],
    wanted: Wanted,
    [this, that]: [&str; 2],
) -> Result<Figure, BoxError> {
    let (these, those): (Vec<Run>, Vec<Run>) = pairs.iter().copied().unzip();
    let both = |figure: fn(&Run) -> f64, show: fn(f64) -> String| -> Result<String, BoxError> {
        Ok(format!("{} and {}", show(spread(&these, figure)?.median), show(spread(&those, figure)?.median)))
    };
    Ok(Figure {
        what: format!("rate, {this} ÷ {that}"),
        wanted,
        spread: spread(pairs, |(this, that)| this.rate / that.rate)?,
        unit: Unit::Ratio,
        others: others(pairs)?,
        behind: format!(
            "{} calls/s; CPU of the server per call {}; p99 {}; share of its core that the server used {}, the load {}",
            both(|run| run.rate, grouped)?,
            both(Run::cpu_per_call, time)?,
            both(|run| run.p99.as_secs_f64(), time)?,
            both(|run| run.server_share, |share| format!("{share:.2}"))?,
            both(|run| run.load_share, |share| format!("{share:.2}"))?,
        ),
    })
}
