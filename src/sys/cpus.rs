//! How many CPUs this process may use.

use std::num::NonZero;
use std::thread;

/// The CPUs this process may use: its affinity and its cgroup quota counted, at least 1.
pub(crate) fn available() -> usize {
    thread::available_parallelism().map_or(1, NonZero::get)
}
