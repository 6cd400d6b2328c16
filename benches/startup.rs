//! How soon a service answers after it was started, and how much memory a worker has that does nothing.
//!
//! `cargo bench --bench startup` prints both; README.md beside this file says how they are measured. Without the
//! `--bench` that cargo adds, as in `cargo test --all-targets`, one round shows that it works.

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use support::cores::{Cores, Place};
use support::numbers::{Spread, float};
use support::process::private_memory;
use support::service::{self, Starting};
use tine::BoxError;

const ROUNDS: usize = 50;
const WORKERS: usize = 4;

fn main() -> Result<(), BoxError> {
    let rounds = if support::is_for_the_record() { ROUNDS } else { 1 };
    let cores = Cores::find()?;
    let (mut times, mut memories) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let round = measure(&cores)?;
        times.push(round.first_answer.as_secs_f64() * 1e3);
        memories.extend(round.workers.into_iter().map(|bytes| float(bytes) / 1e6));
    }
    println!("{rounds} starts of a service with {WORKERS} workers");
    print("from exec to the first answer", "50 ms", times, |ms| format!("{ms:.1} ms"));
    print("private memory of an idle worker", "3 MB", memories, |mb| format!("{mb:.2} MB"));
    Ok(())
}

fn print(what: &str, target: &str, samples: Vec<f64>, show: impl Fn(f64) -> String) {
    if let Some(Spread { least, median, most }) = Spread::of(samples) {
        let [least, median, most] = [least, median, most].map(show);
        println!("{what}: median {median}, least {least}, most {most} (at most {target} wanted)");
    }
}

struct Round {
    first_answer: Duration,
    /// Bytes of private memory of each worker.
    workers: Vec<u64>,
}

fn measure(cores: &Cores) -> Result<Round, BoxError> {
    let config = format!("processes = {WORKERS}");
    let mut service = Starting::start(&service::tine(), &config, cores, Place::Anywhere)?;
    // The listener is there before any worker is; the connection waits for the first that is ready.
    let mut stream = TcpStream::connect(service.address()?)?;
    stream.write_all(&support::ping_frame())?;
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::try_from(u32::from_le_bytes(length))?];
    stream.read_exact(&mut answer)?;
    let first_answer = service.started().elapsed();
    drop(stream);

    let workers = service.workers(WORKERS)?.into_iter().map(private_memory).collect::<Result<_, _>>()?;
    service.stop()?;
    Ok(Round { first_answer, workers })
}
