//! Loads against a server, and what came of them: rate, latency, and the CPU time of both sides.
//!
//! A run in which anything was answered wrong is an error: its rate would be that of something else.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use tine::BoxError;
use tine::load::{Exchange, Load, Report};

use super::machine::{Look, Shares};
use super::numbers::Spread;

/// A run of this length without an answer is not too short, it is wrong.
const LONG_ENOUGH: Duration = Duration::from_secs(2);

/// How long runs are and how many there are.
#[derive(Debug, Clone, Copy)]
pub struct Lengths {
    /// Runs of each side of a comparison.
    pub runs: usize,
    /// How often as many runs may be made, so that enough of them are undisturbed.
    pub tries: usize,
    pub warm_up: Duration,
    pub measured: Duration,
}

impl Lengths {
    /// Long enough for a figure, or so short that it only shows that it works.
    pub fn new(is_for_the_record: bool) -> Self {
        if is_for_the_record {
            Self { runs: 5, tries: 3, warm_up: Duration::from_millis(300), measured: Duration::from_secs(2) }
        } else {
            Self {
                runs: 1,
                tries: 1,
                warm_up: Duration::from_millis(20),
                measured: Duration::from_millis(60),
            }
        }
    }
}

/// How many connections, and how many calls each has on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shape {
    pub connections: usize,
    pub pipeline: usize,
}

impl Shape {
    /// One call at a time.
    pub const fn single(connections: usize) -> Self {
        Self { connections, pipeline: 1 }
    }
}

/// What one run measured.
#[derive(Debug, Clone, Copy)]
pub struct Run {
    /// Calls a second.
    pub rate: f64,
    pub p50: Duration,
    pub p99: Duration,
    pub p999: Duration,
    /// The share of a core that the server's processes used.
    pub server_share: f64,
    /// The share of a core that the load used.
    pub load_share: f64,
    /// What all else on this machine used, as a share of one core.
    pub others: f64,
}

impl Run {
    /// Seconds of CPU time that a call cost the server.
    pub fn cpu_per_call(&self) -> f64 {
        self.server_share / self.rate
    }
}

/// Runs one load against the server at `to`, whose processes are `pids`, on the calling thread.
pub fn run<E: Exchange>(
    to: &str,
    pids: &[i32],
    shape: Shape,
    lengths: Lengths,
    exchange: &E,
) -> Result<Run, BoxError> {
    let look = Look::now(pids)?;
    let report = report(to, shape, lengths, exchange)?;
    // Over the warm-up too: it is the same load.
    let Shares { server: server_share, others } = look.shares()?;
    Ok(Run {
        rate: report.rate(),
        p50: report.percentile(50.0),
        p99: report.percentile(99.0),
        p999: report.percentile(99.9),
        server_share,
        load_share: report.load_share(),
        others,
    })
}

fn report<E: Exchange>(to: &str, shape: Shape, lengths: Lengths, exchange: &E) -> Result<Report, BoxError> {
    let mut load = Load {
        to: to.to_owned(),
        connections: shape.connections,
        pipeline: shape.pipeline,
        rate: None,
        warm_up: lengths.warm_up,
        duration: lengths.measured,
    };
    let run = |load: &Load| load.run(exchange, &AtomicBool::new(false), &mut |_progress| {});
    let mut report = run(&load)?;
    // On a busy machine a short round can be over before a call is.
    while report.calls == 0 && report.is_clean() && load.duration < LONG_ENOUGH {
        load.duration *= 4;
        report = run(&load)?;
    }
    if report.calls == 0 || !report.is_clean() {
        return Err(format!(
            "expected right answers alone from {to}, found {} right, {} errors, {} wrong, {} unanswered, {} connections \
             closed; {}",
            report.calls,
            report.errors,
            report.wrong,
            report.unanswered,
            report.closed,
            report.first_wrong.or(report.first_error).unwrap_or_default()
        )
        .into());
    }
    Ok(report)
}

/// What other programs may use of a core, as a share, before a run counts as disturbed.
pub const TOLERATED: f64 = 0.1;

/// Something that was measured while others may have used the machine too.
pub trait Taken {
    /// What they used, as a share of one core.
    fn others(&self) -> f64;
}

impl Taken for Run {
    fn others(&self) -> f64 {
        self.others
    }
}

impl<A: Taken, B: Taken> Taken for (A, B) {
    fn others(&self) -> f64 {
        self.0.others().max(self.1.others())
    }
}

/// Takes a measurement as often as wanted. One that others have disturbed is taken again while there are tries left; what
/// is kept in the end are the least disturbed. What was measured has no say in that.
pub fn repeat<T: Taken>(
    lengths: Lengths,
    mut take: impl FnMut() -> Result<T, BoxError>,
) -> Result<Vec<T>, BoxError> {
    let mut taken = Vec::new();
    let mut undisturbed = 0;
    while undisturbed < lengths.runs && taken.len() < lengths.runs * lengths.tries {
        let one = take()?;
        undisturbed += usize::from(one.others() < TOLERATED);
        taken.push(one);
    }
    taken.sort_by(|a, b| a.others().total_cmp(&b.others()));
    taken.truncate(lengths.runs);
    Ok(taken)
}

/// Two sides of a comparison, run by turns: A B A B. What changes on the machine meanwhile changes both.
pub fn by_turns<A: Taken, B: Taken>(
    lengths: Lengths,
    mut a: impl FnMut() -> Result<A, BoxError>,
    mut b: impl FnMut() -> Result<B, BoxError>,
) -> Result<Vec<(A, B)>, BoxError> {
    repeat(lengths, || Ok((a()?, b()?)))
}

/// The median of what others used meanwhile.
pub fn others<T: Taken>(taken: &[T]) -> Result<f64, BoxError> {
    Ok(spread(taken, Taken::others)?.median)
}

/// A figure of each pair.
pub fn spread<P>(pairs: &[P], figure: impl Fn(&P) -> f64) -> Result<Spread, BoxError> {
    Spread::of(pairs.iter().map(figure)).ok_or_else(|| "at least one run is made".into())
}
