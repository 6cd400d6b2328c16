//! What was measured: rounds, the cells they belong to, and the few figures that are made of them.
//!
//! `measure` adds rounds; `plan`, `judge` and everything that prints read them. Nothing here decides.

use std::collections::BTreeMap;
use std::time::Duration;

use super::grid::Setting;

/// The standard deviation of a normal distribution in units of its median absolute deviation, 1 / Φ⁻¹(3/4):
/// P. J. Rousseeuw and C. Croux, "Alternatives to the Median Absolute Deviation", JASA 88 (1993), section 1.
const DEVIATION: f64 = 1.4826;
/// What the standard error of a median is to that of a mean, √(π/2), for many normally distributed values:
/// M. G. Kendall and A. Stuart, "The Advanced Theory of Statistics", volume 1, section 10.10.
const MEDIAN_ERROR: f64 = 1.2533;

/// Rounds that nobody disturbed, from which on those that somebody did are left out.
pub(super) const ENOUGH: usize = 2;

/// One setting under load for a moment, by a server that was started for it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Round {
    /// Which time through; the rounds of one pass lie side by side.
    pub(super) pass: usize,
    /// Right answers a second.
    pub(super) rate: f64,
    /// Calls that were answered right.
    pub(super) calls: u64,
    /// Error answers.
    pub(super) errors: u64,
    /// Answers that were not what was expected.
    pub(super) wrong: u64,
    /// Calls without an answer in time.
    pub(super) unanswered: u64,
    /// Connections that the server closed.
    pub(super) closed: u64,
    pub(super) elapsed: Duration,
    pub(super) p50: Duration,
    pub(super) p99: Duration,
    /// CPU time of the server's processes for each second of the round.
    pub(super) server_cpus: f64,
    /// CPU time of the load generator for each second of the round.
    pub(super) load_cpus: f64,
    /// CPU time of all other programs for each second of the round.
    pub(super) other_cpus: f64,
    /// Other programs were in the way; see [`Cell::counted`].
    pub(super) is_disturbed: bool,
}

impl Round {
    /// Whether everything that was sent was answered right, and anything at all.
    pub(super) fn is_good(&self) -> bool {
        self.rate > 0.0 && self.failures() == 0
    }

    /// Calls without a right answer, and connections lost.
    pub(super) fn failures(&self) -> u64 {
        self.errors + self.wrong + self.unanswered + self.closed
    }
}

/// All rounds of one setting, at least one.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    pub(super) setting: Setting,
    pub(super) rounds: Vec<Round>,
}

impl Cell {
    /// The rounds that count: those that nobody disturbed, or all where these are fewer than [`ENOUGH`]. Under others'
    /// load a setting with more threads gets a larger part of the CPUs, and seems better than it is.
    pub(super) fn counted(&self) -> impl Iterator<Item = &Round> + Clone {
        let take_all = self.quiet() < ENOUGH;
        self.rounds.iter().filter(move |round| take_all || !round.is_disturbed)
    }

    /// How many rounds nobody disturbed.
    pub(super) fn quiet(&self) -> usize {
        self.rounds.iter().filter(|round| !round.is_disturbed).count()
    }

    /// As [`quiet`](Self::quiet), in these passes.
    pub(super) fn quiet_in(&self, passes: std::ops::Range<usize>) -> usize {
        self.rounds.iter().filter(|round| !round.is_disturbed && passes.contains(&round.pass)).count()
    }

    /// The median of the rounds' rates, in right answers a second.
    pub(super) fn rate(&self) -> f64 {
        median(self.counted().map(|round| round.rate))
    }

    /// The rate of the best round: what the setting may be worth, if the others were disturbed.
    pub(super) fn best_rate(&self) -> f64 {
        self.counted().map(|round| round.rate).fold(0.0, f64::max)
    }

    pub(super) fn p99(&self) -> Duration {
        Duration::from_secs_f64(median(self.counted().map(|round| round.p99.as_secs_f64())))
    }

    pub(super) fn server_cpus(&self) -> f64 {
        median(self.counted().map(|round| round.server_cpus))
    }

    pub(super) fn load_cpus(&self) -> f64 {
        median(self.counted().map(|round| round.load_cpus))
    }

    /// Server CPU time for each call.
    pub(super) fn cpu_per_call(&self) -> Duration {
        let rate = self.rate();
        if rate > 0.0 { Duration::from_secs_f64(self.server_cpus() / rate) } else { Duration::ZERO }
    }

    pub(super) fn is_good(&self) -> bool {
        self.rounds.iter().all(Round::is_good)
    }

    /// How far rounds lie from their median: the estimate of the standard deviation that disturbed rounds
    /// change least, as a share of the rate.
    pub(super) fn spread(&self) -> f64 {
        let rate = self.rate();
        let deviation = median(self.counted().map(|round| (round.rate - rate).abs()));
        if rate > 0.0 { DEVIATION * deviation / rate } else { 0.0 }
    }

    /// The standard error of the rate, as a share of it.
    pub(super) fn error(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a few rounds")]
        let rounds = self.counted().count().max(1) as f64;
        MEDIAN_ERROR * self.spread() / rounds.sqrt()
    }

    /// The median rate in these passes, of what nobody disturbed if there is any; `None` without a round in them.
    pub(super) fn rate_in(&self, passes: std::ops::Range<usize>) -> Option<f64> {
        let rounds = self.rounds.iter().filter(|round| passes.contains(&round.pass));
        let take_all = rounds.clone().all(|round| round.is_disturbed);
        let rates = rounds.filter(|round| take_all || !round.is_disturbed).map(|round| round.rate);
        (rates.clone().count() > 0).then(|| median(rates))
    }
}

/// Every cell that has a round.
#[derive(Debug, Default)]
pub(super) struct Cells(BTreeMap<Setting, Cell>);

impl Cells {
    pub(super) fn add(&mut self, setting: Setting, round: Round) {
        self.0.entry(setting).or_insert_with(|| Cell { setting, rounds: Vec::new() }).rounds.push(round);
    }

    pub(super) fn get(&self, setting: Setting) -> Option<&Cell> {
        self.0.get(&setting)
    }

    /// Smallest setting first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = &Cell> {
        self.0.values()
    }

    /// Those in which every call was answered right, smallest setting first.
    pub(super) fn good(&self) -> impl Iterator<Item = &Cell> {
        self.iter().filter(|cell| cell.is_good())
    }

    /// What other programs used in the middle one of all rounds: CPU time for each second.
    pub(super) fn other_cpus(&self) -> f64 {
        median(self.iter().flat_map(|cell| cell.rounds.iter().map(|round| round.other_cpus)))
    }

    /// The good cell with the highest rate.
    pub(super) fn best(&self) -> Option<&Cell> {
        self.good().max_by(|a, b| a.rate().total_cmp(&b.rate()))
    }
}

/// The middle value, or the mean of the middle two; 0 of none.
pub(super) fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut sorted: Vec<f64> = values.collect();
    sorted.sort_unstable_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    match sorted.len() {
        0 => 0.0,
        count if count % 2 == 1 => sorted[middle],
        _ => f64::midpoint(sorted[middle - 1], sorted[middle]),
    }
}

/// Cells for the tests of those who read them.
#[cfg(test)]
pub(super) mod samples {
    use super::*;

    /// A good round with so many calls in one second.
    pub(in crate::cli::tune) fn round(pass: usize, calls: u32) -> Round {
        Round {
            pass,
            rate: f64::from(calls),
            calls: calls.into(),
            errors: 0,
            wrong: 0,
            unanswered: 0,
            closed: 0,
            elapsed: Duration::from_secs(1),
            p50: Duration::from_millis(10),
            p99: Duration::from_millis(20),
            server_cpus: 0.5,
            load_cpus: 0.25,
            other_cpus: 0.0,
            is_disturbed: false,
        }
    }

    /// Cells from `((processes, threads), rates of the rounds)`.
    pub(in crate::cli::tune) fn cells(rates: &[((usize, usize), &[u32])]) -> Cells {
        let mut cells = Cells::default();
        for ((processes, threads), rates) in rates {
            for (pass, rate) in rates.iter().enumerate() {
                cells.add(Setting::new(*processes, *threads), round(pass, *rate));
            }
        }
        cells
    }
}

#[cfg(test)]
mod tests {
    use super::samples::{cells, round};
    use super::*;

    fn cell(rates: &[u32]) -> Cell {
        cells(&[((1, 1), rates)]).get(Setting::new(1, 1)).expect("it has rounds").clone()
    }

    #[test]
    fn a_rate_is_the_median_and_one_disturbed_round_changes_little() {
        for (rates, rate) in [(&[100][..], 100.0), (&[90, 110], 100.0), (&[100, 10, 104], 100.0)] {
            assert!((cell(rates).rate() - rate).abs() < 1e-9, "{rates:?}");
        }
    }

    #[test]
    fn the_spread_is_that_of_most_rounds() {
        // Deviations 0, 1, 1, 2, 90: the median is 1 %.
        let cell = cell(&[100, 99, 101, 98, 10]);
        let median = 99.0;
        assert!((cell.rate() - median).abs() < 1e-9);
        assert!((cell.spread() - DEVIATION / median).abs() < 1e-9, "{}", cell.spread());
        assert!((cell.error() - MEDIAN_ERROR * cell.spread() / 5_f64.sqrt()).abs() < 1e-9);
    }

    #[test]
    fn one_round_has_no_spread_and_none_has_no_rate() {
        assert!(cell(&[7]).spread().abs() < 1e-9);
        assert!(median(std::iter::empty()).abs() < 1e-9);
    }

    #[test]
    fn disturbed_rounds_are_left_out_where_enough_others_are_there() {
        let mut cell = cell(&[100, 102]);
        let disturbed = |rate| Round { is_disturbed: true, ..round(5, rate) };
        cell.rounds.extend([disturbed(50), disturbed(50), disturbed(50)]);
        assert!((cell.rate() - 101.0).abs() < 1e-9, "{}", cell.rate());
        assert_eq!((cell.counted().count(), cell.quiet()), (2, 2));
        assert_eq!(cell.rate_in(1..6), Some(102.0));
        assert_eq!(cell.rate_in(5..6), Some(50.0));
        cell.rounds.remove(0);
        assert!((cell.rate() - 50.0).abs() < 1e-9, "{}", cell.rate());
    }

    #[test]
    fn what_failed_once_is_not_good() {
        let good = round(0, 10);
        assert!(good.is_good());
        for bad in [
            Round { rate: 0.0, ..good.clone() },
            Round { unanswered: 1, ..good.clone() },
            Round { errors: 1, ..good.clone() },
            Round { wrong: 1, ..good.clone() },
            Round { closed: 1, ..good.clone() },
        ] {
            assert!(!bad.is_good(), "{bad:?}");
            let mut cells = cells(&[((1, 1), &[10, 10])]);
            cells.add(Setting::new(1, 1), bad);
            assert!(cells.best().is_none());
        }
    }

    #[test]
    fn cpu_time_is_shared_among_the_calls() {
        // Half a CPU for 100 calls a second is 5 ms each.
        assert_eq!(cell(&[100]).cpu_per_call(), Duration::from_millis(5));
        assert_eq!(cell(&[0]).cpu_per_call(), Duration::ZERO);
    }

    #[test]
    fn rates_of_single_passes_can_be_set_side_by_side() {
        let cell = cell(&[100, 200, 400]);
        assert_eq!(cell.rate_in(1..3), Some(300.0));
        assert_eq!(cell.rate_in(3..9), None);
    }
}
