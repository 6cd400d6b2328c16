//! Clock readings as whole nanoseconds.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share: one can tell how long another has
/// been at something.
pub(crate) fn monotonic_ns() -> u64 {
    // The call can't fail: the clock exists on every Linux.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| whole_ns(now.into()))
}

/// Nanoseconds in `duration`; the 584 years that fit are more than any uptime.
pub(crate) fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
