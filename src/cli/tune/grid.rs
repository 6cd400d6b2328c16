//! Which settings are worth measuring: a coarse grid in waves, and what lies around a setting.
//!
//! `plan` asks; what was measured, and how well anything did, is not known here.

use std::cmp::Ordering;
use std::fmt;

/// What the configuration allows.
const MOST_PROCESSES: usize = 1024;
const MOST_THREADS: usize = 4096;

/// Processes × threads, each at least 1.
///
/// Ordered by size: fewer threads in all first, then fewer processes, as a process costs memory that a thread shares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Setting {
    pub(super) processes: usize,
    pub(super) threads: usize,
}

impl Setting {
    pub(super) fn new(processes: usize, threads: usize) -> Self {
        Self { processes, threads }
    }

    /// Calls that can run at once.
    pub(super) fn in_all(self) -> usize {
        self.processes.saturating_mul(self.threads)
    }
}

impl Ord for Setting {
    fn cmp(&self, other: &Self) -> Ordering {
        (self.in_all(), self.processes).cmp(&(other.in_all(), other.processes))
    }
}

impl PartialOrd for Setting {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Setting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} × {}", self.processes, self.threads)
    }
}

/// The settings there are for a machine and a load.
#[derive(Debug, Clone, Copy)]
pub(super) struct Grid {
    /// CPUs that the server may use, at least 1.
    pub(super) cpus: usize,
    /// Connections of the load, each with one call at a time; at least 1.
    pub(super) connections: usize,
}

impl Grid {
    /// The coarse grid. The settings of a wave have about as many threads in all (up to twice the wave's least); each
    /// wave has twice those of the one before. A search that goes wave by wave sees processes and threads grow
    /// together, so it does not stop where either alone is of no use.
    pub(super) fn waves(&self) -> Vec<Vec<Setting>> {
        let mut settings: Vec<Setting> = Vec::new();
        for processes in doubled(self.most_processes(), self.cpus) {
            let threads = doubled(self.most_threads(), self.most_threads());
            settings.extend(threads.into_iter().map(|threads| Setting { processes, threads }));
        }
        settings.retain(|&setting| self.is_useful(setting));
        settings.sort_unstable();
        let wave = |setting: &Setting| setting.in_all().ilog2();
        settings.chunk_by(|a, b| wave(a) == wave(b)).map(<[Setting]>::to_vec).collect()
    }

    /// The settings halfway between one of the coarse grid and its neighbours, smallest first.
    pub(super) fn around(&self, setting: Setting) -> Vec<Setting> {
        let Setting { processes, threads } = setting;
        let mut around: Vec<Setting> =
            halfway(threads).map(|threads| Setting { processes, threads }).collect();
        around.extend(halfway(processes).map(|processes| Setting { processes, threads }));
        around.retain(|&other| other != setting && self.is_useful(other));
        around.sort_unstable();
        around.dedup();
        around
    }

    /// More threads than connections can't be busy. Connections don't spread evenly over processes, so together
    /// these may have twice as many.
    fn is_useful(&self, setting: Setting) -> bool {
        setting.processes <= self.most_processes()
            && setting.threads <= self.most_threads()
            && (setting.threads == 1 || setting.in_all() <= 2 * self.connections)
    }

    /// Twice the CPUs: a process that waits leaves its CPU to another.
    fn most_processes(&self) -> usize {
        (2 * self.cpus).min(2 * self.connections).clamp(1, MOST_PROCESSES)
    }

    fn most_threads(&self) -> usize {
        self.connections.clamp(1, MOST_THREADS)
    }
}

/// 1, 2, 4 … up to `most`, which is in it, and so is `also` if it is no more than that.
fn doubled(most: usize, also: usize) -> Vec<usize> {
    let mut steps: Vec<usize> = std::iter::successors(Some(1_usize), |step| step.checked_mul(2))
        .take_while(|&step| step < most)
        .chain([most, also])
        .filter(|&step| step <= most)
        .collect();
    steps.sort_unstable();
    steps.dedup();
    steps
}

/// Halfway down to half of `count`, and up to twice of it, in whole numbers.
fn halfway(count: usize) -> impl Iterator<Item = usize> {
    [count - count / 4, count + count / 2].into_iter().filter(move |&step| step != count)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(settings: &[Setting]) -> String {
        settings.iter().map(Setting::to_string).collect::<Vec<_>>().join(", ")
    }

    #[test]
    fn fewer_threads_in_all_are_smaller_then_fewer_processes() {
        let mut settings = [(2, 2), (1, 5), (4, 1), (1, 4), (1, 1)].map(|(p, t)| Setting::new(p, t));
        settings.sort_unstable();
        assert_eq!(shown(&settings), "1 × 1, 1 × 4, 2 × 2, 4 × 1, 1 × 5");
    }

    #[test]
    fn waves_double_the_threads_in_all() {
        let waves = Grid { cpus: 2, connections: 16 }.waves();
        let shown: Vec<String> = waves.iter().map(|wave| shown(wave)).collect();
        assert_eq!(
            shown,
            [
                "1 × 1",
                "1 × 2, 2 × 1",
                "1 × 4, 2 × 2, 4 × 1",
                "1 × 8, 2 × 4, 4 × 2",
                "1 × 16, 2 × 8, 4 × 4",
                "2 × 16, 4 × 8"
            ]
        );
    }

    #[test]
    fn the_number_of_cpus_and_of_connections_are_steps_too() {
        let settings = Grid { cpus: 3, connections: 20 }.waves().concat();
        for setting in [(3, 1), (6, 1), (1, 20), (2, 20), (3, 4)] {
            assert!(
                settings.contains(&Setting::new(setting.0, setting.1)),
                "{setting:?}: {}",
                shown(&settings)
            );
        }
    }

    #[test]
    fn no_grid_is_empty_and_none_is_larger_than_one_can_wait_for() {
        for (cpus, connections, at_most) in [
            (1, 1, 2),
            (2, 1, 2),
            (1, 64, 14),
            (2, 64, 20),
            (8, 64, 40),
            (64, 64, 50),
            (512, 64, 50),
            (64, 10_000, 120),
        ] {
            let waves = Grid { cpus, connections }.waves();
            let settings = waves.concat();
            assert_eq!(waves[0][0], Setting::new(1, 1));
            assert!(settings.len() <= at_most, "{cpus} CPUs, {connections}: {} settings", settings.len());
            assert!(settings.is_sorted(), "{}", shown(&settings));
        }
    }

    #[test]
    fn around_a_setting_is_halfway_to_its_neighbours() {
        let grid = Grid { cpus: 8, connections: 64 };
        for (setting, expected) in [
            ((1, 1), ""),
            ((1, 2), "1 × 3"),
            ((2, 1), "3 × 1"),
            ((1, 64), "1 × 48"),
            ((1, 32), "1 × 24, 1 × 48"),
            ((4, 8), "3 × 8, 4 × 6, 4 × 12, 6 × 8"),
            ((2, 64), "2 × 48"),
        ] {
            let around = grid.around(Setting::new(setting.0, setting.1));
            assert_eq!(shown(&around), expected, "around {setting:?}");
        }
    }
}
