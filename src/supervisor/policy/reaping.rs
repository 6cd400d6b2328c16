//! When children that have ended are reaped.
//!
//! The kernel takes 10 ms to reap a worker with 10,000 descriptors if somebody has listed these in `/proc`. While connections wait for
//! another worker, the supervisor does not spend that time, but no child stays a zombie for long.

use std::time::{Duration, Instant};

use super::Policy;

/// How long children that have ended may wait to be reaped while connections wait for a worker.
const REAP_WITHIN: Duration = Duration::from_millis(50);

#[derive(Debug, Default)]
pub(crate) struct Reaping {
    /// When all are reaped, whoever waits. None while there is nobody to reap.
    latest: Option<Instant>,
}

impl Reaping {
    /// Some children have ended.
    pub(crate) fn children_ended(&mut self, now: Instant) {
        self.latest.get_or_insert(now + REAP_WITHIN);
    }

    /// All that have ended are reaped.
    pub(crate) fn done(&mut self) {
        self.latest = None;
    }
}

impl Policy for Reaping {
    /// Connections wait for a worker.
    type Seen<'a> = bool;
    /// All that have ended are to be reaped.
    type Decision = bool;

    fn next_due(&self) -> Option<Instant> {
        self.latest
    }

    fn due(&mut self, now: Instant, connections_wait: bool) -> bool {
        self.latest.is_some_and(|latest| !connections_wait || latest <= now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn children_are_reaped_when_no_connection_waits_and_after_50_ms_in_any_case() {
        let start = Instant::now();
        // Children end at 0 and 20 ms. When it is, whether connections wait, and whether children are reaped.
        let cases =
            [(0, true, false), (0, false, true), (49, true, false), (50, true, true), (69, true, true)];
        for (ms, connections_wait, expected) in cases {
            let mut reaping = Reaping::default();
            assert!(!reaping.due(start, false), "nobody has ended");
            for ended in [0, 20] {
                reaping.children_ended(start + Duration::from_millis(ended));
            }
            let now = start + Duration::from_millis(ms);
            assert_eq!(reaping.due(now, connections_wait), expected, "{ms} ms, {connections_wait}");
            reaping.done();
            assert_eq!(reaping.next_due(), None);
        }
    }
}
