//! The calls of one connection that have no answer yet, oldest first, by when they started.

use std::collections::VecDeque;

/// Calls in flight. Those that started together are one entry, as a pipeline's calls mostly do.
#[derive(Debug)]
pub(super) struct Flight {
    runs: VecDeque<Run>,
    calls: usize,
}

#[derive(Debug)]
struct Run {
    start: u64,
    calls: usize,
}

impl Flight {
    /// Room for `most` calls without asking for memory again.
    pub(super) fn with_capacity(most: usize) -> Self {
        Self { runs: VecDeque::with_capacity(most), calls: 0 }
    }

    pub(super) fn len(&self) -> usize {
        self.calls
    }

    pub(super) fn issue(&mut self, start: u64, calls: usize) {
        self.calls += calls;
        match self.runs.back_mut() {
            Some(run) if run.start == start => run.calls += calls,
            _ => self.runs.push_back(Run { start, calls }),
        }
    }

    /// The oldest call is answered; when it started. None when nothing was asked.
    pub(super) fn finish(&mut self) -> Option<u64> {
        let run = self.runs.front_mut()?;
        let start = run.start;
        run.calls -= 1;
        self.calls -= 1;
        if run.calls == 0 {
            self.runs.pop_front();
        }
        Some(start)
    }

    /// Gives all calls up; how many of them started at `since` or later.
    pub(super) fn abandon(&mut self, since: u64) -> u64 {
        self.calls = 0;
        let counted = self.runs.drain(..).filter(|run| run.start >= since);
        counted.map(|run| run.calls as u64).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_finish_in_the_order_they_started() {
        let mut flight = Flight::with_capacity(4);
        flight.issue(10, 2);
        flight.issue(10, 1);
        flight.issue(20, 1);
        assert_eq!((flight.len(), flight.runs.len()), (4, 2));
        let starts: Vec<u64> = std::iter::from_fn(|| flight.finish()).collect();
        assert_eq!(starts, [10, 10, 10, 20]);
        assert_eq!(flight.len(), 0);
    }

    #[test]
    fn given_up_calls_count_from_a_moment_on() {
        let mut flight = Flight::with_capacity(4);
        flight.issue(10, 2);
        flight.issue(20, 3);
        assert_eq!(flight.abandon(11), 3);
        assert_eq!((flight.len(), flight.finish()), (0, None));
    }
}
