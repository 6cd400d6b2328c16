//! Counts what happened to calls, if they belong to the measured time.
//!
//! Pure: the engine says what happened and when.

use std::time::Duration;

use super::exchange::excerpt;
use super::report::{Phase, Progress, Report};
use crate::sys::clock::whole_ns;

/// The measured time, and what was counted in it.
#[derive(Debug)]
pub(super) struct Tally {
    pub(super) report: Report,
    /// A call counts if it started at this moment or later.
    from: u64,
    end: u64,
    /// Right answers of calls that started together and were read together: one entry in the histogram.
    run_start: u64,
    run_calls: u64,
}

impl Tally {
    /// Counts nothing until it is told [when](Self::measure).
    pub(super) fn new() -> Self {
        Self { report: Report::new(), from: u64::MAX, end: u64::MAX, run_start: 0, run_calls: 0 }
    }

    pub(super) fn measure(&mut self, from: u64, end: u64) {
        self.from = from;
        self.end = end;
    }

    pub(super) fn from(&self) -> u64 {
        self.from
    }

    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// A call that started at `start` was answered right; [`Self::read_at`] follows.
    pub(super) fn right(&mut self, start: u64, now: u64) {
        if start != self.run_start {
            self.read_at(now);
            self.run_start = start;
        }
        self.run_calls += 1;
    }

    /// The right answers told since the last time were read at `now`.
    pub(super) fn read_at(&mut self, now: u64) {
        let calls = std::mem::take(&mut self.run_calls);
        if calls == 0 {
            return;
        }
        if now >= self.from && now < self.end {
            self.report.arrived += calls;
        }
        if self.run_start >= self.from {
            self.report.record(now.saturating_sub(self.run_start).max(1), calls);
        }
    }

    pub(super) fn error(&mut self, start: u64, answer: &[u8]) {
        if start >= self.from {
            self.report.errors += 1;
            self.report.first_error.get_or_insert_with(|| excerpt(answer));
        }
    }

    pub(super) fn wrong(&mut self, start: u64, why: String) {
        if start >= self.from {
            self.report.wrong += 1;
            self.report.first_wrong.get_or_insert(why);
        }
    }

    pub(super) fn unanswered(&mut self, calls: u64) {
        self.report.unanswered += calls;
    }

    pub(super) fn closed(&mut self, now: u64) {
        if now >= self.from {
            self.report.closed += 1;
        }
    }

    /// The load ends at `now`, maybe before its time; the measured time is what has passed of it.
    pub(super) fn finish(mut self, now: u64, load_cpu: Duration) -> Report {
        self.report.elapsed = Duration::from_nanos(now.min(self.end).saturating_sub(self.from));
        self.report.load_cpu = load_cpu;
        self.report
    }

    pub(super) fn progress(&self, begin: u64, now: u64, open: usize) -> Progress {
        let Report { calls, errors, wrong, unanswered, .. } = self.report;
        let phase = match now {
            now if now < self.from => Phase::WarmUp,
            now if now < self.end => Phase::Measuring,
            _ => Phase::Finishing,
        };
        Progress {
            phase,
            elapsed: Duration::from_nanos(now.saturating_sub(begin)),
            calls,
            failed: errors + wrong + unanswered,
            open,
        }
    }
}

/// The moment `after` another one; what no clock reaches is never.
pub(super) fn later(moment: u64, after: Duration) -> u64 {
    moment.saturating_add(whole_ns(after))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measuring(from: u64, end: u64) -> Tally {
        let mut tally = Tally::new();
        tally.measure(from, end);
        tally
    }

    #[test]
    fn a_call_counts_by_its_start_and_the_rate_by_its_answer() {
        for (start, answered, calls, arrived) in
            [(99, 100, 0, 1), (99, 99, 0, 0), (100, 150, 1, 1), (199, 200, 1, 0), (100, 100, 1, 1)]
        {
            let mut tally = measuring(100, 200);
            tally.right(start, answered);
            tally.read_at(answered);
            let found = (tally.report.calls, tally.report.arrived);
            assert_eq!(found, (calls, arrived), "from {start} to {answered}");
        }
    }

    #[test]
    fn calls_read_together_have_each_their_own_latency() {
        let mut tally = measuring(0, 10_000);
        for start in [100, 100, 200, 300, 300] {
            tally.right(start, 400);
        }
        tally.read_at(400);
        let ns = Duration::from_nanos;
        let report = tally.report;
        assert_eq!((report.calls, report.min(), report.max()), (5, ns(100), ns(300)));
        assert_eq!((report.percentile(40.0), report.percentile(60.0)), (ns(100), ns(200)));
    }

    #[test]
    fn what_failed_before_the_measured_time_is_not_counted() {
        let mut tally = measuring(100, 200);
        for start in [99, 100, 101] {
            tally.error(start, b"e");
            tally.wrong(start, "w".to_owned());
            tally.closed(start);
        }
        let report = tally.finish(150, Duration::ZERO);
        assert_eq!((report.errors, report.wrong, report.closed), (2, 2, 2));
        assert_eq!(report.elapsed, Duration::from_nanos(50));
    }

    #[test]
    fn a_load_stopped_while_warming_up_has_no_measured_time() {
        let report = measuring(100, 200).finish(50, Duration::ZERO);
        assert_eq!((report.elapsed, report.rate()), (Duration::ZERO, 0.0));
    }
}
