//! When a worker speaks up by itself, so that the supervisor, which sleeps while nobody is connected, begins to ask it for
//! signs of life.
//!
//! The supervisor looks once more a quarter of `stuck` after every word, and asks for as long as it then finds connections or
//! calls. So one word in that time is enough, however often clients come and go. Pure.

use std::time::{Duration, Instant};

/// How often in `timeouts.stuck` the supervisor asks.
pub(crate) const LOOKS: u32 = 4;

#[derive(Debug)]
pub(in crate::worker) struct Life {
    every: Duration,
    /// When it last spoke unasked. Answers don't count: the look that follows one may be sooner.
    spoke: Option<Instant>,
}

impl Life {
    pub(in crate::worker) fn new(stuck: Duration) -> Self {
        Self { every: stuck / LOOKS, spoke: None }
    }

    /// Somebody has connected, and nobody was. True when that is to be told.
    pub(in crate::worker) fn is_to_tell(&mut self, now: Instant) -> bool {
        let is_new = self.spoke.is_none_or(|spoke| now.saturating_duration_since(spoke) >= self.every);
        if is_new {
            self.spoke = Some(now);
        }
        is_new
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_come_and_go_cost_a_word_now_and_then() {
        let (mut life, start) = (Life::new(Duration::from_secs(4)), Instant::now());
        let table = [(0, true), (1, false), (999, false), (1_000, true), (1_500, false), (9_000, true)];
        for (ms, told) in table {
            assert_eq!(life.is_to_tell(start + Duration::from_millis(ms)), told, "after {ms} ms");
        }
    }
}
