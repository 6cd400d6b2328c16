//! Clock readings as whole nanoseconds.

use std::time::{Duration, Instant};

use nix::time::{ClockId, clock_gettime};

/// Nanoseconds of `CLOCK_MONOTONIC`, which all processes of a machine share: one can tell how long another has
/// been at something.
pub(crate) fn monotonic_ns() -> u64 {
    // The call can't fail: the clock exists on every Linux.
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(0, |now| whole_ns(now.into()))
}

/// A moment on this process's clock, and on the one that all processes share.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) instant: Instant,
    /// Nanoseconds of `CLOCK_MONOTONIC`.
    pub(crate) ns: u64,
}

impl Moment {
    /// The moment that another process has written down as `ns`, seen from this one, which is not before it. It is this one where
    /// nothing was written down (0), or something that has not been yet.
    pub(crate) fn earlier(self, ns: u64) -> Self {
        let age = if ns == 0 { 0 } else { self.ns.saturating_sub(ns) };
        match self.instant.checked_sub(Duration::from_nanos(age)) {
            Some(instant) => Self { instant, ns: self.ns - age },
            None => self,
        }
    }
}

/// Nanoseconds in `duration`; the 584 years that fit are more than any uptime.
pub(crate) fn whole_ns(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_that_another_process_wrote_down_is_as_long_ago_here() {
        let now = Moment { instant: Instant::now(), ns: 5_000_000 };
        for (written, age) in [(0, 0), (1_000_000, 4_000_000), (5_000_000, 0), (9_000_000, 0), (u64::MAX, 0)]
        {
            let found = now.earlier(written);
            assert_eq!(
                (now.ns - found.ns, now.instant.duration_since(found.instant)),
                (age, Duration::from_nanos(age)),
                "{written}"
            );
        }
    }
}
