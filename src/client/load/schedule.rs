//! When the calls of an open loop are due: at even distances from its beginning, whatever the server does.
//!
//! Pure: times are nanoseconds of one clock, handed in and out. The engine asks it what is due.

/// Calls due at a fixed rate, counted from the first.
#[derive(Debug, Clone)]
pub(super) struct Schedule {
    begin: u64,
    /// Calls a second.
    rate: f64,
    /// The number of the next call, from 0.
    next: u64,
}

impl Schedule {
    /// `rate` is above 0; the first call is due at `begin`.
    pub(super) fn new(begin: u64, rate: f64) -> Self {
        Self { begin, rate, next: 0 }
    }

    /// The moment when the next call is due.
    pub(super) fn next_due(&self) -> u64 {
        // From the number of the call and not from the call before: rounding does not add up. A u64 of calls that
        // an f64 does not hold exactly would take centuries.
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let after = (self.next as f64 * 1e9 / self.rate) as u64;
        self.begin.saturating_add(after)
    }

    /// Takes the next call if it is due by `now` and before `end`; its intended start.
    pub(super) fn take(&mut self, now: u64, end: u64) -> Option<u64> {
        let due = self.next_due();
        if due > now || due >= end {
            return None;
        }
        self.next += 1;
        Some(due)
    }

    /// How many calls that were not taken are due at `from` or later and before `end`.
    pub(super) fn left_between(&self, from: u64, end: u64) -> u64 {
        self.first_due_at(end).saturating_sub(self.first_due_at(from).max(self.next))
    }

    /// The number of the first call that is due at `moment` or later.
    fn first_due_at(&self, moment: u64) -> u64 {
        let due = |number| Self { next: number, ..*self }.next_due();
        // Rounding may put the estimate beside the call.
        #[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        let mut number = (moment.saturating_sub(self.begin) as f64 * self.rate / 1e9) as u64;
        while number > 0 && due(number - 1) >= moment {
            number -= 1;
        }
        while due(number) < moment {
            number += 1;
        }
        number
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_due_at_even_distances() {
        for (rate, dues) in [
            (1.0, [100, 1_000_000_100, 2_000_000_100, 3_000_000_100]),
            (1e9, [100, 101, 102, 103]),
            (3.0, [100, 333_333_433, 666_666_766, 1_000_000_100]),
            (0.5, [100, 2_000_000_100, 4_000_000_100, 6_000_000_100]),
        ] {
            let mut schedule = Schedule::new(100, rate);
            for due in dues {
                assert_eq!(schedule.take(u64::MAX, u64::MAX), Some(due), "{rate} a second");
            }
        }
    }

    #[test]
    fn what_was_not_taken_in_time_stays_due_since_then() {
        let mut schedule = Schedule::new(0, 1e9);
        assert_eq!(schedule.take(0, 1_000), Some(0));
        assert_eq!(schedule.take(0, 1_000), None);
        let late: Vec<u64> = std::iter::from_fn(|| schedule.take(3, 1_000)).collect();
        assert_eq!(late, [1, 2, 3]);
    }

    #[test]
    fn nothing_is_due_from_the_end_on() {
        let mut schedule = Schedule::new(0, 1e9);
        assert_eq!(std::iter::from_fn(|| schedule.take(u64::MAX, 3)).count(), 3);
    }

    #[test]
    fn what_is_left_between_two_moments_is_what_would_be_taken() {
        for rate in [1e9, 3e8, 7e6, 12_345.6] {
            for (taken, from, end) in
                [(0, 0, 1_000), (5, 100, 1_000), (5, 700, 1_000), (0, 100, 900_000), (0, 9, 5)]
            {
                let mut schedule = Schedule::new(100, rate);
                schedule.next = taken;
                let left = schedule.left_between(from, end);
                let one_by_one = std::iter::from_fn(|| schedule.take(u64::MAX, end));
                let counted = one_by_one.filter(|due| *due >= from).count() as u64;
                assert_eq!(left, counted, "{rate} a second, {taken} taken, from {from} to {end}");
            }
        }
    }

    #[test]
    fn a_rate_drifts_by_nothing_in_a_day() {
        let mut schedule = Schedule::new(0, 12_345.6);
        schedule.next = 1_066_659_840;
        assert_eq!(schedule.next_due(), 86_400_000_000_000);
    }
}
