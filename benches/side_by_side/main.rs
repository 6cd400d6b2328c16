//! `tine` beside other servers: each is started in turn, all get the same load, in several rounds.
//!
//!     cargo bench --bench side_by_side                      the servers that are here
//!     cargo bench --bench side_by_side -- --build-peers     builds those of benches/peers/rust first
//!
//! Each server has one core and the load the other. What comes of it is printed as Markdown, and written with plots into a
//! folder that is named at the end. Without the `--bench` that cargo adds, one very short round shows that it works.

#[path = "../support/mod.rs"]
mod support;

mod contenders;
mod exchanges;
mod plots;
mod tables;

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use contenders::{Contender, contenders};
use support::cores::{Cores, Place};
use support::drive::{Lengths, Run, Shape, repeat};
use support::numbers::Spread;
use support::{children, peers};
use tine::BoxError;

/// What every server is asked to do.
pub(crate) const SHAPES: [Shape; 5] = [
    Shape::single(1),
    Shape::single(16),
    Shape::single(64),
    Shape::single(256),
    Shape { connections: 64, pipeline: 16 },
];

const ROUNDS: usize = 5;

/// How the shape is called in tables and plots.
pub(crate) fn name_of(shape: Shape) -> String {
    match shape {
        Shape { connections: 1, pipeline: 1 } => "1 connection".to_owned(),
        Shape { connections, pipeline: 1 } => format!("{connections} connections"),
        Shape { connections, pipeline } => format!("{connections} × {pipeline} deep"),
    }
}

/// All that one server did: a list of runs for each shape, one of each round.
pub(crate) struct Measured {
    pub(crate) name: &'static str,
    pub(crate) what: &'static str,
    runs: [Vec<Run>; SHAPES.len()],
}

impl Measured {
    /// A figure of the runs of one shape.
    pub(crate) fn spread(&self, shape: usize, figure: impl Fn(&Run) -> f64) -> Option<Spread> {
        Spread::of(self.runs.get(shape)?.iter().map(figure))
    }

    /// The rate as a share of another server's in the same rounds.
    pub(crate) fn against(&self, other: &Self, shape: usize) -> Option<Spread> {
        let pairs = self.runs.get(shape)?.iter().zip(other.runs.get(shape)?);
        Spread::of(pairs.map(|(mine, others)| mine.rate / others.rate))
    }
}

fn main() -> Result<ExitCode, BoxError> {
    children::serve_if_child()?;
    let arguments = support::own_arguments();
    if let Some(unknown) = arguments.iter().find(|argument| *argument != "--build-peers") {
        eprintln!("expected --build-peers or nothing, found {unknown:?}");
        return Ok(ExitCode::from(2));
    }
    let cores = Cores::find()?;
    let rust_peers = peers::rust_peers(!arguments.is_empty())?;
    cores.pin(Place::Load)?;
    let is_for_the_record = support::is_for_the_record();
    let (rounds, lengths) = if is_for_the_record {
        (
            ROUNDS,
            Lengths {
                runs: 1,
                tries: 2,
                warm_up: Duration::from_millis(250),
                measured: Duration::from_secs(1),
            },
        )
    } else {
        (1, Lengths::new(false))
    };
    let measured = measure(contenders(rust_peers), &cores, rounds, lengths)?;

    let tables = tables::markdown(&measured);
    println!("\n{tables}");
    let folder = folder(is_for_the_record)?;
    fs::write(folder.join("side_by_side.md"), &tables)?;
    plots::rates(&measured, &folder.join("rates.svg"))?;
    plots::latencies(&measured, &folder.join("latencies.svg"))?;
    println!("written to {}", folder.display());
    Ok(ExitCode::SUCCESS)
}

/// Rounds in which every server has its turn. One that can't be had is left out of all of them.
fn measure(
    contenders: Vec<Contender>,
    cores: &Cores,
    rounds: usize,
    lengths: Lengths,
) -> Result<Vec<Measured>, BoxError> {
    let mut measured: Vec<(Contender, Measured)> = Vec::new();
    for contender in contenders {
        let (name, what) = (contender.name, contender.what);
        measured.push((contender, Measured { name, what, runs: Default::default() }));
    }
    for round in 1..=rounds {
        let mut left_out = Vec::new();
        for (index, (contender, measured)) in measured.iter_mut().enumerate() {
            let Some(server) = (contender.start)(cores)? else {
                left_out.push(index);
                continue;
            };
            for (runs, shape) in measured.runs.iter_mut().zip(SHAPES) {
                let run = repeat(lengths, || server.drive(shape, lengths));
                runs.extend(run.map_err(|error| format!("{}: {error}", measured.name))?);
            }
            println!("round {round} of {rounds}: {}", measured.name);
        }
        for index in left_out.into_iter().rev() {
            measured.remove(index);
        }
    }
    Ok(measured.into_iter().map(|(_, measured)| measured).collect())
}

/// Where the results are written. A short round must not replace what somebody has measured.
fn folder(is_for_the_record: bool) -> Result<PathBuf, BoxError> {
    let name = if is_for_the_record { "side_by_side" } else { "side_by_side_short" };
    let folder = support::target_folder()?.join(name);
    fs::create_dir_all(&folder)?;
    Ok(folder)
}
