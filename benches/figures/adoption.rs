//! How long clients wait whose worker was killed: from `kill -9` to the first answer on a connection that outlived it.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::thread;
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use tine::BoxError;

use super::Bench;
use super::keeping::await_descriptors;
use super::report::{Figure, Unit, Wanted};
use super::support::cores::Place;
use super::support::machine::Look;
use super::support::numbers::{Spread, float};
use super::support::process::{descriptors, raise_descriptor_limit};
use super::support::service::Service;

/// Connections, and in how many milliseconds the first of them that calls is to be answered.
const CASES: [(usize, f64); 2] = [(1_000, 10.0), (10_000, 30.0)];
/// In the short round.
const FEW: usize = 100;
/// Of them so many call when their worker is killed.
const CALLERS: usize = 16;
const ROUNDS: usize = 7;
/// Descriptors of this process besides those of connections.
const OWN: usize = 300;
const CONFIG: &str = "[limits]\nmax_connections = 12000\n[timeouts]\nkeep_after = \"0s\"";
/// A worker that has replaced another has nothing left to do after that.
const SETTLED: Duration = Duration::from_millis(500);

pub(crate) fn first_answers(bench: &Bench) -> Result<Vec<Figure>, BoxError> {
    let allowed = raise_descriptor_limit()?.saturating_sub(OWN);
    let mut figures = Vec::new();
    for (wanted, most) in CASES {
        let count = if bench.is_for_the_record { wanted.min(allowed) } else { FEW };
        let rounds = if bench.is_for_the_record { ROUNDS } else { 1 };
        let service = Service::start(&bench.tine, 1, CONFIG, &bench.cores, Place::Anywhere)?;
        let open = descriptors(service.pid())?;
        let mut clients =
            (0..count).map(|_| TcpStream::connect(service.address())).collect::<Result<Vec<_>, _>>()?;
        await_descriptors(&service, |found| found >= open + count)?;
        let look = Look::now(&[])?;
        let samples =
            (0..rounds).map(|_| kill_and_call(&mut clients)).collect::<Result<Vec<_>, BoxError>>()?;
        let others = look.shares()?.others;
        let (first, each): (Vec<f64>, Vec<f64>) = samples.into_iter().unzip();
        let figure = |what: &str, wanted, samples, unit| -> Result<Figure, BoxError> {
            Ok(Figure {
                what: format!("{what}, {count} connections"),
                wanted,
                spread: Spread::of(samples).ok_or("there is a round")?,
                unit,
                others,
                behind: format!(
                    "{CALLERS} clients call as their worker, the only one, is killed; nothing is pinned"
                ),
            })
        };
        figures.push(figure(
            "from `kill -9` to the first answer of a kept connection",
            Wanted::AtMost(most),
            first,
            Unit::Milliseconds,
        )?);
        figures.push(figure(
            "until all have been answered, for each",
            Wanted::ForTheRecord,
            each,
            Unit::Microseconds,
        )?);
    }
    Ok(figures)
}

/// Milliseconds to the first answer, and microseconds for each connection until all are answered.
fn kill_and_call(clients: &mut [TcpStream]) -> Result<(f64, f64), BoxError> {
    thread::sleep(SETTLED);
    let worker = worker_of(&mut clients[0])?;
    thread::sleep(SETTLED);
    let step = (clients.len() / CALLERS).max(1);
    let call = framed(r#"{"in":"echo","params":1}"#)?;
    let killed = Instant::now();
    kill(Pid::from_raw(worker), Signal::SIGKILL)?;
    for caller in clients.iter_mut().step_by(step) {
        caller.write_all(&call)?;
    }
    let mut callers: Vec<PollFd<'_>> =
        clients.iter().step_by(step).map(|caller| PollFd::new(caller.as_fd(), PollFlags::POLLIN)).collect();
    poll(&mut callers, PollTimeout::NONE)?;
    let first = killed.elapsed();
    for (number, client) in clients.iter_mut().enumerate() {
        if !number.is_multiple_of(step) {
            client.write_all(&call)?;
        }
    }
    for client in clients.iter_mut() {
        receive(client)?;
    }
    let each = killed.elapsed().as_secs_f64() / float(clients.len() as u64);
    Ok((first.as_secs_f64() * 1e3, each * 1e6))
}

fn worker_of(client: &mut TcpStream) -> Result<i32, BoxError> {
    client.write_all(&framed(r#"{"in":"tine.worker"}"#)?)?;
    let answer: Value = serde_json::from_slice(&receive(client)?)?;
    Ok(i32::try_from(answer["result"]["pid"].as_i64().ok_or("a worker has a pid")?)?)
}

fn framed(body: &str) -> Result<Vec<u8>, BoxError> {
    Ok([&u32::try_from(body.len())?.to_le_bytes(), body.as_bytes()].concat())
}

fn receive(client: &mut TcpStream) -> Result<Vec<u8>, BoxError> {
    let mut length = [0; 4];
    client.read_exact(&mut length)?;
    let mut answer = vec![0; u32::from_le_bytes(length) as usize];
    client.read_exact(&mut answer)?;
    Ok(answer)
}
