//! Thousands of connections that send nothing: what each costs a worker, and what they do to others.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use tine::BoxError;

use super::Bench;
use super::ping::ping;
use super::report::{Figure, Unit, Wanted};
use super::support::cores::Place;
use super::support::drive::{self, Shape, by_turns, others, spread};
use super::support::numbers::{Spread, float, time};
use super::support::process::{descriptors, private_memory, raise_descriptor_limit};
use super::support::service::Service;

const SILENT: usize = 10_000;
/// In the short round.
const FEW: usize = 200;
/// Descriptors of this process, and of a worker, besides those of silent connections.
const OWN: usize = 300;
const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) fn ten_thousand(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let wanted = if bench.is_for_the_record { SILENT } else { FEW };
    let allowed = raise_descriptor_limit()?.saturating_sub(OWN);
    let count = wanted.min(allowed);
    if count < wanted {
        println!(
            "  the hard descriptor limit allows {count} silent connections instead of {wanted} (ulimit -Hn)"
        );
    }
    // Two services on one core, so that the runs with and without can be made by turns.
    let config = "[limits]\nmax_connections = 12000";
    let start = || Service::start(&bench.tine, 1, config, &bench.cores, Place::Server);
    let (quiet, crowded) = (start()?, start()?);
    let ping = ping()?;
    let run = |service: &Service| {
        drive::run(service.address(), service.workers(), Shape::single(16), bench.lengths, &ping)
    };
    // What the first calls take for good is no connection's.
    run(&crowded)?;
    let silent = Silent::connect(&crowded, count)?;
    let pairs = by_turns(bench.lengths, || run(&quiet), || run(&crowded))?;
    let p99s = format!(
        "{} with {count} silent connections, {} with none",
        time(spread(&pairs, |(_, crowded)| crowded.p99.as_secs_f64())?.median),
        time(spread(&pairs, |(quiet, _)| quiet.p99.as_secs_f64())?.median),
    );
    let each = float(silent.memory) / float(count as u64);
    drop(crowded);
    drop(silent);
    Ok(vec![
        Figure {
            what: "private memory of the worker for each silent connection".to_owned(),
            wanted: Wanted::AtMost(2048.0),
            spread: Spread::single(each),
            unit: Unit::Bytes,
            // Memory is nobody else's.
            others: 0.0,
            behind: format!("{count} connections; the kernel's part of a socket is not in it"),
        },
        Figure {
            what: "p99 of ping on 16 others, with ÷ without".to_owned(),
            wanted: Wanted::AtMost(1.2),
            spread: spread(&pairs, |(quiet, crowded)| crowded.p99.as_secs_f64() / quiet.p99.as_secs_f64())?,
            unit: Unit::Ratio,
            others: others(&pairs)?,
            behind: p99s,
        },
    ])
}

/// Connections that send nothing, and the private memory that they added to the worker.
struct Silent {
    _streams: Vec<TcpStream>,
    memory: u64,
}

impl Silent {
    fn connect(service: &Service, count: usize) -> Result<Self, BoxError> {
        let worker = *service.workers().first().ok_or("the service has a worker")?;
        let open = settled_descriptors(worker)?;
        let memory = private_memory(worker)?;
        let mut streams = Vec::with_capacity(count);
        for _ in 0..count {
            streams.push(TcpStream::connect(service.address())?);
        }
        // Connected means in the backlog; that the worker has them is seen from outside.
        let until = Instant::now() + PATIENCE;
        while descriptors(worker)? < open + count {
            if Instant::now() > until {
                let found = descriptors(worker)?.saturating_sub(open);
                return Err(format!("expected the worker to take {count} connections, found {found}").into());
            }
            thread::sleep(Duration::from_millis(20));
        }
        Ok(Self { _streams: streams, memory: private_memory(worker)?.saturating_sub(memory) })
    }
}

/// Descriptors of a worker once it has closed what the run before had opened.
fn settled_descriptors(worker: i32) -> Result<usize, BoxError> {
    const LOOKS: usize = 10;
    let (mut last, mut same) = (descriptors(worker)?, 0);
    while same < LOOKS {
        thread::sleep(Duration::from_millis(20));
        let now = descriptors(worker)?;
        same = if now == last { same + 1 } else { 0 };
        last = now;
    }
    Ok(last)
}
