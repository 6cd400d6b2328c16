//! The configuration: from text and command line flags to values that every other part can rely on.
//!
//! ```text
//! read_source ─→ text ─→ raw (TOML with positions) ─→ checked, listener (limits, rules) ─→ Config
//! ```
//!
//! `cli` and `template` call [`read_source`], [`check`] and [`check_methods`]; everything else only reads the fields of a
//! [`Config`]. A `Config` is complete and within all limits, so nobody downstream checks again. Nothing is
//! bound or started here; the file system, the user database and the resolver are only read.

mod address;
mod checked;
pub(crate) mod contract;
mod contradictions;
mod describe;
mod endpoint;
mod error;
mod listener;
mod origin;
mod places;
mod raw;
mod size;
mod source;
pub(crate) mod span;
mod values;

#[cfg(test)]
mod tests;

pub(crate) use address::{Address, AddressError};
pub(crate) use checked::{Config, Log, LogFormat, Recycle, check, check_methods};
pub(crate) use contradictions::{COUNTED_AT_ONCE, warnings};
pub(crate) use describe::{VALUES_AT, counted};
pub(crate) use endpoint::Endpoint;
pub(crate) use error::ConfigError;
pub(crate) use listener::Listener;
pub(crate) use places::check_places;
pub(crate) use source::{DEFAULTS, Source, read_source, read_source_again};

/// What the command line says instead of the file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Overrides {
    /// Addresses as typed; one or more of them replace all of the file's listeners.
    pub(crate) listen: Vec<String>,
    /// Zero means one for each CPU, as in the file.
    pub(crate) processes: Option<usize>,
    pub(crate) threads: Option<usize>,
}
