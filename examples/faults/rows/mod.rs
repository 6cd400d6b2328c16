//! The rows of the table, in its order.

mod crash;
mod first_calls;
mod kill;
mod leaving;
mod lifecycle;
mod overload;
mod points;
mod reload;
mod scarce;
mod stuck;

use tine::BoxError;

use crate::Extent;
use crate::judge::Judge;

/// A kind of fault.
pub struct Row {
    pub name: &'static str,
    pub fault: &'static str,
    /// What clients see, as README.md says it.
    pub promise: &'static str,
    pub parts: &'static [Part],
}

/// One way to run it.
pub struct Part {
    pub name: &'static str,
    pub run: fn(Extent) -> Result<Judge, BoxError>,
}

pub const ALL: &[Row] = &[
    reload::RELOAD,
    reload::BAD,
    reload::BINARY,
    kill::ROW,
    points::ROW,
    crash::GARBAGE,
    crash::CRASH,
    first_calls::ROW,
    crash::QUARANTINE,
    stuck::HANG,
    stuck::STOPPED,
    leaving::ROW,
    lifecycle::RECYCLE,
    lifecycle::SCALE,
    lifecycle::SUPERVISOR,
    overload::OVERLOAD,
    overload::FLOODS,
    scarce::ROW,
    lifecycle::STOP,
];
