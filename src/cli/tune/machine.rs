//! How busy the whole machine is, from `/proc/stat`: to tell a user that other programs were in the way.
//!
//! `sweep` reads it before and after a round. Whose work it was is not known here.

use std::fs;
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

/// Ticks a second that `/proc/stat` counts in, where the system does not say: every Linux of today.
const USUAL_TICKS: u32 = 100;

/// CPU time that all programs of the machine have used since it was started; zero where that can't be read.
pub(super) fn busy_time() -> Duration {
    let text = fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok());
    let per_second = f64::from(ticks.filter(|&ticks| ticks > 0).unwrap_or(USUAL_TICKS));
    Duration::try_from_secs_f64(busy_ticks(&text) / per_second).unwrap_or_default()
}

/// The sum of the line `cpu`, without its fourth and fifth number, which are times of idleness, and without what guests
/// have used, which is in the first and second already (`man 5 proc_stat`).
fn busy_ticks(text: &str) -> f64 {
    let line = text.lines().find_map(|line| line.strip_prefix("cpu ")).unwrap_or_default();
    let numbers = line.split_whitespace().take(8).map(|number| number.parse::<f64>().unwrap_or_default());
    numbers.enumerate().filter(|(index, _)| !matches!(index, 3 | 4)).map(|(_, ticks)| ticks).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_but_idle_times_and_guests_are_busy() {
        let text = "cpu  100 20 3 1000 2000 4 5 6 70 80\ncpu0 1 1 1 1 1 1 1 1 1 1\nintr 5\n";
        assert!((busy_ticks(text) - 138.0).abs() < 1e-9);
        for text in ["", "cpu0 1 2 3", "cpu a b c"] {
            assert!(busy_ticks(text).abs() < 1e-9, "{text:?}");
        }
    }

    #[test]
    fn a_machine_that_runs_this_test_has_been_busy() {
        let before = busy_time();
        assert!(before > Duration::ZERO);
        assert!(busy_time() >= before);
    }
}
