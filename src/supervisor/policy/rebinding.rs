//! When a listener that was lost is bound anew, and tried again where that fails.

use std::time::{Duration, Instant};

use super::Policy;

/// How long until a listener that can't be bound anew is tried again: at first, and at most.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long until a socket file that something has happened to is looked at: whoever removes it may be about to put another in
/// its place, or to remove the folder.
const SETTLES: Duration = Duration::from_millis(100);

/// When it is tried again to bind what could not be bound.
#[derive(Debug, Default)]
pub(crate) struct Rebinding {
    at: Option<Instant>,
    wait: Option<Duration>,
}

impl Rebinding {
    /// It has failed. True where that is to be said.
    pub(crate) fn failed(&mut self, now: Instant) -> bool {
        let is_first = self.wait.is_none();
        let wait = self.wait.map_or(TRY_AGAIN.0, |wait| (wait * 2).min(TRY_AGAIN.1));
        self.wait = Some(wait);
        self.at = now.checked_add(wait);
        is_first
    }

    /// There is something to look at.
    pub(crate) fn soon(&mut self, now: Instant) {
        self.at = now.checked_add(SETTLES);
    }
}

impl Policy for Rebinding {
    type Seen<'a> = ();
    /// All listeners are to be checked, and those that were lost to be bound.
    type Decision = bool;

    fn next_due(&self) -> Option<Instant> {
        self.at
    }

    fn due(&mut self, now: Instant, (): ()) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_bound_is_tried_again_less_and_less_often_and_said_once() {
        let (mut retry, mut now) = (Rebinding::default(), Instant::now());
        let mut waits = Vec::new();
        for attempt in 0..9 {
            assert_eq!(retry.failed(now), attempt == 0);
            let at = retry.at.unwrap();
            assert!(!retry.due(now, ()));
            waits.push((at - now).as_secs());
            now = at;
            assert!(retry.due(now, ()));
            assert!(!retry.due(now, ()), "once");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
