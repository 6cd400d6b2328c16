//! Who is recommended: the smallest setting that nothing larger beats by more than noise.
//!
//! The rule. Take the cell with the highest rate. From there step to the smallest setting that is within noise of
//! where one stands, again and again, but only to settings with at least [`FAIR_SHARE`] of the highest rate. Where no
//! step is left is the recommendation. So nothing smaller is within noise of it, and yet it has 0.95 of the best;
//! where the two can't both be had, because rounds differ too much or a row of settings is each within noise of the
//! next, 0.95 of the best is kept, and the smaller setting is named as a doubt: then it is a guess, and more rounds or a
//! quieter machine would tell. Cells in which a single call failed take no part.
//!
//! Noise between two cells is twice the standard error of the difference of their medians (for many rounds about
//! the 95 % interval of a normal distribution), and never less than [`NOISE_FLOOR`]: rounds of one second do not see
//! what changes from one hour to the next. `plan` asks whether to go on, `mod` for the result.

use super::cells::{Cell, Cells};
use super::grid::Setting;

/// What is recommended has at least this share of the highest rate.
pub(super) const FAIR_SHARE: f64 = 0.95;
/// Differences below this share are never taken for real.
pub(super) const NOISE_FLOOR: f64 = 0.03;

/// Whom the cells speak for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Verdict {
    pub(super) recommended: Setting,
    /// The setting with the highest rate, which may be the same.
    pub(super) best: Setting,
    /// Settings with as many threads in all in more processes, whose rate is no lower than the least noise explains.
    pub(super) as_fast: Vec<Setting>,
    /// A smaller setting that the rounds can't tell from the recommended one, though its rate is below the
    /// fair share: more rounds, or a quieter machine, would tell.
    pub(super) doubt: Option<Setting>,
}

/// The verdict on what was measured so far; `None` while no setting has answered every call right.
pub(super) fn judge(cells: &Cells) -> Option<Verdict> {
    let best = cells.best()?;
    let fair = best.rate() * FAIR_SHARE;
    let mut here = best;
    while let Some(smaller) = cells
        .good()
        .find(|cell| cell.setting < here.setting && cell.rate() >= fair && within_noise(cell, here))
    {
        here = smaller;
    }
    let peers = cells.good().filter(|cell| {
        cell.setting.in_all() == here.setting.in_all()
            && cell.setting.processes > here.setting.processes
            && cell.rate() >= here.rate() * (1.0 - NOISE_FLOOR)
    });
    let doubt = cells.good().find(|cell| cell.setting < here.setting && within_noise(cell, here));
    Some(Verdict {
        recommended: here.setting,
        best: best.setting,
        as_fast: peers.map(|cell| cell.setting).collect(),
        doubt: doubt.map(|cell| cell.setting),
    })
}

/// Whether `cell` may be as fast as `other`, as far as the rounds can tell.
fn within_noise(cell: &Cell, other: &Cell) -> bool {
    other.rate() - cell.rate() <= noise(cell, other)
}

/// By how many calls a second two cells must differ to be told apart.
fn noise(one: &Cell, other: &Cell) -> f64 {
    let error = |cell: &Cell| cell.error() * cell.rate();
    (2.0 * error(one).hypot(error(other))).max(NOISE_FLOOR * one.rate().max(other.rate()))
}

#[cfg(test)]
mod tests {
    use super::super::cells::Round;
    use super::super::cells::samples::{cells, round};
    use super::*;

    type Measured<'a> = &'a [((usize, usize), &'a [u32])];

    fn verdict(measured: Measured<'_>) -> Verdict {
        judge(&cells(measured)).expect("something good")
    }

    #[test]
    fn the_smallest_setting_that_nothing_beats_by_more_than_noise_is_recommended() {
        let table: [(&str, Measured<'_>, (usize, usize)); 9] = [
            ("one alone", &[((1, 1), &[100])], (1, 1)),
            ("clearly better", &[((1, 1), &[100; 5]), ((1, 2), &[190; 5])], (1, 2)),
            ("better within noise", &[((1, 1), &[100; 5]), ((1, 2), &[102; 5])], (1, 1)),
            ("better by a little more", &[((1, 1), &[100; 5]), ((1, 2), &[104; 5])], (1, 2)),
            ("larger and worse", &[((1, 2), &[100; 5]), ((2, 2), &[60; 5])], (1, 2)),
            ("as many threads, fewer processes", &[((1, 2), &[99; 5]), ((2, 1), &[100; 5])], (1, 2)),
            ("as many threads, processes needed", &[((1, 2), &[55; 5]), ((2, 1), &[100; 5])], (2, 1)),
            (
                "a plateau ends at its smallest",
                &[((1, 1), &[50; 5]), ((1, 2), &[98; 5]), ((1, 4), &[100; 5]), ((4, 4), &[101; 5])],
                (1, 2),
            ),
            (
                "both axes only together",
                &[((1, 1), &[50; 5]), ((1, 4), &[51; 5]), ((4, 1), &[50; 5]), ((4, 4), &[200; 5])],
                (4, 4),
            ),
        ];
        for (what, measured, (processes, threads)) in table {
            assert_eq!(verdict(measured).recommended, Setting::new(processes, threads), "{what}");
        }
    }

    #[test]
    fn small_steps_within_noise_never_lead_below_the_fair_share() {
        // Each is within 3 % of the next, the first is 8 % below the last.
        let verdict = verdict(&[
            ((1, 8), &[920; 5]),
            ((1, 12), &[945; 5]),
            ((1, 16), &[960; 5]),
            ((1, 24), &[980; 5]),
            ((1, 32), &[1000; 5]),
        ]);
        assert_eq!(verdict.recommended, Setting::new(1, 16));
        assert_eq!(verdict.best, Setting::new(1, 32));
        assert_eq!(verdict.doubt, Some(Setting::new(1, 12)));
    }

    #[test]
    fn noisy_rounds_make_more_settings_alike_and_more_rounds_fewer() {
        let (low, high) = (&[93, 96, 96, 100][..], &[96, 98, 100, 104][..]);
        let noisy = verdict(&[((1, 1), low), ((1, 2), high)]);
        assert_eq!(noisy.recommended, Setting::new(1, 1));
        let often = |rounds: &[u32]| rounds.repeat(20);
        let clear = verdict(&[((1, 1), &often(&[93, 95, 97])), ((1, 2), &often(&[98, 100, 102]))]);
        assert_eq!(clear.recommended, Setting::new(1, 2));
    }

    #[test]
    fn what_may_be_as_fast_but_is_below_the_fair_share_is_a_doubt() {
        let verdict = verdict(&[((1, 1), &[70, 80, 110]), ((1, 2), &[99, 100, 101])]);
        assert_eq!(verdict.recommended, Setting::new(1, 2));
        assert_eq!(verdict.doubt, Some(Setting::new(1, 1)));
    }

    #[test]
    fn what_is_far_below_is_no_doubt_however_much_its_rounds_differ() {
        let verdict = verdict(&[((2, 1), &[10, 30]), ((1, 4), &[99, 100, 101])]);
        assert_eq!(verdict.doubt, None);
    }

    #[test]
    fn a_setting_in_which_calls_failed_never_wins() {
        let mut cells = cells(&[((1, 1), &[100; 5]), ((1, 2), &[300; 5])]);
        cells.add(Setting::new(1, 2), Round { closed: 1, ..round(5, 300) });
        let verdict = judge(&cells).expect("one is good");
        assert_eq!((verdict.recommended, verdict.best), (Setting::new(1, 1), Setting::new(1, 1)));
        let mut all_bad = Cells::default();
        all_bad.add(Setting::new(1, 1), Round { errors: 1, ..round(0, 9) });
        assert_eq!(judge(&all_bad), None);
    }

    #[test]
    fn as_many_threads_in_more_processes_are_named_when_they_are_as_fast() {
        let verdict =
            verdict(&[((1, 4), &[100; 5]), ((2, 2), &[98; 5]), ((4, 1), &[80; 5]), ((2, 4), &[100; 5])]);
        assert_eq!(verdict.as_fast, [Setting::new(2, 2)]);
    }
}
