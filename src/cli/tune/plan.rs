//! What is measured next: the coarse grid wave by wave, then around the best, then whoever may still win.
//!
//! `sweep` asks before each pass. A pass measures several settings once, one after the other, and passes with the
//! same settings follow each other, every second one backwards: what changes slowly on the machine meets all
//! of them alike. The plan knows no clock and starts nothing.

use std::time::Duration;

use super::cells::{Cells, ENOUGH};
use super::grid::{Grid, Setting};
use super::judge::{NOISE_FLOOR, judge};

/// Passes over each wave, and around the best; more over what was disturbed.
const SURVEY_PASSES: usize = ENOUGH;
const LONGEST_SURVEY: usize = 4;
/// Waves without anything clearly better, after which larger settings are not tried: one may be bad luck.
const BARREN_WAVES: usize = 2;
/// Further passes over those who may still win: as many in any case, and while rounds are disturbed or the verdict is
/// in doubt.
const CONTEST_PASSES: usize = 5;
const LONGEST_CONTEST: usize = 12;
/// Who may still win: a setting whose best round has this share of the highest rate.
const CONTENDERS_SHARE: f64 = 0.92;
const MOST_CONTENDERS: usize = 8;
/// Around whom it is looked closer: the best, the recommended one, and the smallest that may still win. Each has at
/// most four settings halfway to its neighbours.
const CENTRES: usize = 3;
const MOST_AROUND: usize = 4 * CENTRES;

/// One time through some settings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pass {
    pub(super) number: usize,
    /// In the order in which they are measured.
    pub(super) settings: Vec<Setting>,
}

/// Bounds of a whole plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct AtMost {
    pub(super) settings: usize,
    pub(super) rounds: usize,
}

/// How far the measuring is.
#[derive(Debug)]
pub(super) struct Plan {
    grid: Grid,
    waves: std::vec::IntoIter<Vec<Setting>>,
    stage: Stage,
    /// What the current stage measures again and again.
    settings: Vec<Setting>,
    /// The pass with which the stage, or its wave, began.
    began: usize,
    pass: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// `incumbent` was the best before this wave, and is measured along with it; `barren` waves have passed.
    Survey {
        incumbent: Option<Setting>,
        barren: usize,
    },
    Around,
    Contest,
    Over,
}

impl Plan {
    pub(super) fn new(grid: Grid) -> Self {
        let mut waves = grid.waves().into_iter();
        let settings = waves.next().unwrap_or_default();
        let stage = Stage::Survey { incumbent: None, barren: 0 };
        Self { grid, waves, stage, settings, began: 0, pass: 0 }
    }

    /// What the whole plan may take.
    pub(super) fn at_most(&self) -> AtMost {
        let waves = self.grid.waves();
        let settings: usize = waves.iter().map(Vec::len).sum();
        // The best so far is measured along with each wave, and the centres with what is around them.
        let survey = (settings + waves.len()) * LONGEST_SURVEY;
        let around = (MOST_AROUND + CENTRES) * LONGEST_SURVEY;
        AtMost {
            settings: settings + MOST_AROUND,
            rounds: survey + around + MOST_CONTENDERS * LONGEST_CONTEST,
        }
    }

    /// The longest that the plan may take, when a round of a setting takes what `round` says. A handler that nothing
    /// helps has only the smallest settings left in the end, which take longest to answer what they were asked.
    pub(super) fn longest(&self, round: impl Fn(Setting) -> Duration) -> Duration {
        let smallest = round(Setting::new(1, 1));
        let settings = self.grid.waves().concat();
        let survey: Duration = settings.iter().map(|&setting| round(setting)).sum();
        let repeated = self.at_most().rounds - LONGEST_SURVEY * settings.len();
        survey * u32::try_from(LONGEST_SURVEY).unwrap_or(u32::MAX)
            + smallest.saturating_mul(u32::try_from(repeated).unwrap_or(u32::MAX))
    }

    /// The next pass; `None` when it is over. `cells` has what the passes before brought.
    pub(super) fn next(&mut self, cells: &Cells) -> Option<Pass> {
        if !self.goes_on(cells) {
            self.advance(cells);
        }
        let number = self.pass;
        let mut settings = self.settings.clone();
        if number - self.began >= SURVEY_PASSES && matches!(self.stage, Stage::Survey { .. } | Stage::Around)
        {
            settings.retain(|&setting| self.lacks(setting, SURVEY_PASSES, cells));
        }
        if number % 2 == 1 {
            settings.reverse();
        }
        self.pass += 1;
        (!settings.is_empty()).then_some(Pass { number, settings })
    }

    /// Whether the stage, or its wave, needs another pass.
    fn goes_on(&self, cells: &Cells) -> bool {
        let done = self.pass - self.began;
        let anyone_lacks =
            |rounds: usize| self.settings.iter().any(|&setting| self.lacks(setting, rounds, cells));
        match self.stage {
            Stage::Survey { .. } | Stage::Around => {
                done < SURVEY_PASSES || (done < LONGEST_SURVEY && anyone_lacks(SURVEY_PASSES))
            }
            Stage::Contest => {
                let doubt = || judge(cells).is_some_and(|verdict| verdict.doubt.is_some());
                done < CONTEST_PASSES || (done < LONGEST_CONTEST && (anyone_lacks(CONTEST_PASSES) || doubt()))
            }
            Stage::Over => false,
        }
    }

    /// Whether fewer rounds of this stage than that went undisturbed.
    fn lacks(&self, setting: Setting, rounds: usize, cells: &Cells) -> bool {
        let quiet = cells.get(setting).map_or(0, |cell| cell.quiet_in(self.began..self.pass));
        quiet < rounds
    }

    fn advance(&mut self, cells: &Cells) {
        let (stage, settings) = match self.stage {
            Stage::Survey { incumbent, barren } => self.after_wave(cells, incumbent, barren),
            Stage::Around => (Stage::Contest, contenders(cells)),
            Stage::Contest | Stage::Over => (Stage::Over, Vec::new()),
        };
        self.stage = stage;
        self.settings = settings;
        self.began = self.pass;
    }

    fn after_wave(
        &mut self,
        cells: &Cells,
        incumbent: Option<Setting>,
        barren: usize,
    ) -> (Stage, Vec<Setting>) {
        let barren = if self.is_better_than(incumbent, cells) { 0 } else { barren + 1 };
        let best = cells.best().map(|cell| cell.setting);
        if barren < BARREN_WAVES
            && let Some(mut wave) = self.waves.next()
        {
            wave.extend(best);
            return (Stage::Survey { incumbent: best, barren }, wave);
        }
        let around = self.around(cells);
        if around.is_empty() { (Stage::Contest, contenders(cells)) } else { (Stage::Around, around) }
    }

    /// Whether the last wave has anything clearly better than the best before it, in the passes that they share.
    /// While nothing has answered every call right (small settings may refuse some), larger settings are hoped for.
    fn is_better_than(&self, incumbent: Option<Setting>, cells: &Cells) -> bool {
        let passes = self.began..self.pass;
        let Some(incumbent) = incumbent.and_then(|setting| cells.get(setting)).filter(|cell| cell.is_good())
        else {
            return true;
        };
        let Some(bar) = incumbent.rate_in(passes.clone()) else { return true };
        let mut wave = self.settings.iter().filter_map(|&setting| cells.get(setting));
        wave.any(|cell| {
            cell.is_good()
                && cell.rate_in(passes.clone()).is_some_and(|rate| rate > bar * (1.0 + NOISE_FLOOR))
        })
    }

    /// What is new around the centres, and these beside it.
    fn around(&self, cells: &Cells) -> Vec<Setting> {
        let Some(verdict) = judge(cells) else { return Vec::new() };
        let smallest = contenders(cells).first().copied().unwrap_or(verdict.recommended);
        let centres = [verdict.recommended, verdict.best, smallest];
        let mut around: Vec<Setting> =
            centres.into_iter().flat_map(|centre| self.grid.around(centre)).collect();
        around.retain(|&setting| cells.get(setting).is_none());
        if !around.is_empty() {
            around.extend(centres);
        }
        around.sort_unstable();
        around.dedup();
        around
    }
}

/// Those who may still be the best or the recommended one: the fastest few, and the smallest of the others.
fn contenders(cells: &Cells) -> Vec<Setting> {
    let Some(best) = cells.best() else { return Vec::new() };
    let bar = best.rate() * CONTENDERS_SHARE;
    let mut hopeful: Vec<_> = cells.good().filter(|cell| cell.best_rate() >= bar).collect();
    hopeful.sort_by(|a, b| b.rate().total_cmp(&a.rate()));
    let mut rest = hopeful.split_off(hopeful.len().min(MOST_CONTENDERS / 2));
    rest.sort_by_key(|cell| cell.setting);
    let mut contenders: Vec<Setting> = hopeful.iter().chain(&rest).map(|cell| cell.setting).collect();
    contenders.truncate(MOST_CONTENDERS);
    contenders.sort_unstable();
    contenders
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::cells::Round;
    use super::super::cells::samples::round;
    use super::*;

    const GRID: Grid = Grid { cpus: 2, connections: 64 };

    /// Plays a whole plan on a machine where a setting has the rate that `rate` says, in percent more or less by
    /// pass and setting.
    fn play(grid: Grid, noise: usize, rate: impl Fn(Setting) -> usize) -> (Cells, usize) {
        let (mut plan, mut cells, mut rounds) = (Plan::new(grid), Cells::default(), 0);
        while let Some(pass) = plan.next(&cells) {
            for setting in pass.settings {
                let dice = (setting.in_all() * 31 + setting.processes * 17 + pass.number * 7) % 11;
                let rate = rate(setting) * (1000 + noise * dice) / 1000;
                let rate = u32::try_from(rate).expect("a small rate");
                cells.add(setting, if rate == 0 { failed(pass.number) } else { round(pass.number, rate) });
                rounds += 1;
            }
        }
        (cells, rounds)
    }

    fn failed(pass: usize) -> Round {
        Round { errors: 9, ..round(pass, 100_000) }
    }

    /// The best of the coarse grid and the recommended one, in percent of it.
    fn share(grid: Grid, cells: &Cells, rate: impl Fn(Setting) -> usize) -> (Setting, usize) {
        let best = grid.waves().concat().into_iter().map(&rate).max().expect("a grid");
        let recommended = judge(cells).expect("a verdict").recommended;
        (recommended, rate(recommended) * 100 / best)
    }

    #[test]
    fn what_is_recommended_has_its_share_of_the_full_grid() {
        type Rate = fn(Setting) -> usize;
        let handlers: [(&str, Rate, (usize, usize)); 7] = [
            ("sleeps: a thread for each connection", |s| 100_000 * s.in_all().min(64), (1, 64)),
            ("spins: a thread for each CPU", |s| 100_000 * s.in_all().min(2), (1, 2)),
            ("quick: no help", |_| 100_000, (1, 1)),
            ("a lock in each process: processes alone help", |s| 100_000 * s.processes.min(2), (2, 1)),
            ("one lock in the machine", |s| 100_000 / s.in_all().isqrt(), (1, 1)),
            ("waits, then spins", |s| 10_000 * s.in_all().min(22), (1, 24)),
            (
                "processes and threads only together",
                |s| {
                    if s.processes >= 2 && s.threads >= 4 { 200_000 } else { 20_000 * s.in_all().min(4) }
                },
                (2, 4),
            ),
        ];
        for (what, rate, expected) in handlers {
            for noise in [0, 2] {
                let (cells, rounds) = play(GRID, noise, rate);
                let (recommended, percent) = share(GRID, &cells, rate);
                assert_eq!(recommended, Setting::new(expected.0, expected.1), "{what}, noise {noise}");
                assert!(percent >= 95, "{what}: {percent} %");
                let most = Plan::new(GRID).at_most();
                assert!(
                    rounds <= most.rounds && cells.iter().count() <= most.settings,
                    "{what}: {rounds} rounds"
                );
            }
        }
    }

    #[test]
    fn a_search_that_finds_nothing_better_ends_early() {
        let (cells, _) = play(GRID, 0, |_| 1000);
        assert_eq!(cells.iter().next_back().map(|cell| cell.setting), Some(Setting::new(4, 1)));
    }

    #[test]
    fn small_settings_that_refuse_calls_do_not_end_the_search() {
        let rate = |setting: Setting| if setting.in_all() < 32 { 0 } else { 1000 };
        let (cells, _) = play(GRID, 0, rate);
        // 24 was tried, around 32, and refused calls too.
        assert_eq!(judge(&cells).map(|verdict| verdict.recommended), Some(Setting::new(1, 32)));
    }

    #[test]
    fn when_every_setting_refuses_calls_it_ends_without_a_verdict() {
        let (cells, rounds) = play(GRID, 0, |_| 0);
        assert_eq!(judge(&cells), None);
        assert!(rounds <= Plan::new(GRID).at_most().rounds);
    }

    #[test]
    fn every_second_pass_runs_backwards() {
        let mut plan = Plan::new(GRID);
        let mut cells = Cells::default();
        for number in 0..2 {
            let pass = plan.next(&cells).expect("the first wave");
            assert_eq!((pass.number, pass.settings.len()), (number, 1));
            cells.add(pass.settings[0], round(number, 1000));
        }
        let forth = plan.next(&cells).expect("the second wave").settings;
        let mut back = plan.next(&cells).expect("the second wave again").settings;
        assert_eq!(forth.len(), 3, "with the best before it: {forth:?}");
        back.reverse();
        assert_eq!(forth, back);
    }

    #[test]
    fn what_was_disturbed_is_measured_again_but_not_for_ever() {
        let disturbed = |pass: usize, rate| Round { is_disturbed: true, ..round(pass, rate) };
        let (mut plan, mut cells, mut rounds) = (Plan::new(GRID), Cells::default(), 0);
        while let Some(pass) = plan.next(&cells) {
            for setting in pass.settings {
                cells.add(setting, disturbed(pass.number, 1000));
                rounds += 1;
            }
        }
        let first = cells.get(Setting::new(1, 1)).map_or(0, |cell| cell.rounds.len());
        assert!(first >= LONGEST_SURVEY + LONGEST_CONTEST, "{first}");
        assert!(rounds <= Plan::new(GRID).at_most().rounds, "{rounds}");

        // Only who lacks a quiet round gets another.
        let (mut plan, mut cells) = (Plan::new(GRID), Cells::default());
        for _ in 0..2 {
            let pass = plan.next(&cells).expect("the first wave");
            cells.add(Setting::new(1, 1), round(pass.number, 1000));
        }
        for _ in 0..2 {
            for setting in plan.next(&cells).expect("the second wave").settings {
                let made = if setting == Setting::new(1, 2) { disturbed(3, 900) } else { round(3, 1000) };
                cells.add(setting, made.clone());
            }
        }
        let again = plan.next(&cells).expect("the second wave goes on").settings;
        assert_eq!(again, [Setting::new(1, 2)]);
    }

    #[test]
    fn a_contest_is_among_few_and_goes_on_while_there_is_doubt() {
        let count = |noise| {
            let (cells, _) = play(GRID, noise, |s| 1000 * s.in_all().min(8));
            cells.get(Setting::new(1, 8)).map_or(0, |cell| cell.rounds.len())
        };
        // In its wave, in the two after it, around it, and in the contest.
        let quiet = SURVEY_PASSES * 4 + CONTEST_PASSES;
        assert!(count(0) <= quiet, "{}", count(0));
        let (cells, _) = play(GRID, 0, |_| 1000);
        let passes: BTreeSet<usize> =
            cells.iter().flat_map(|cell| cell.rounds.iter().map(|round| round.pass)).collect();
        assert!(contenders(&cells).len() <= MOST_CONTENDERS);
        assert!(passes.len() <= SURVEY_PASSES * 5 + LONGEST_CONTEST);
    }
}
