//! The rows of the table, in its order.

mod kill;

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

pub const ALL: &[Row] = &[kill::ROW];
