//! CPU time of a process and all below it, over the measured time, from /proc.
//!
//! Reading /proc takes longer than a call does, so a thread of its own does it and the load goes on.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use nix::unistd::{SysconfVar, sysconf};

use crate::client::load::Phase;

/// Watches the processes of a server.
#[derive(Debug)]
pub(super) struct ServerCpu {
    pid: u32,
    reached: Phase,
    ask: Sender<()>,
    samples: JoinHandle<Vec<Option<Duration>>>,
}

impl ServerCpu {
    /// Of `pid` and all below it. Words for the person when there is no such process.
    pub(super) fn of(pid: u32) -> Result<Self, String> {
        if cpu_time_below(pid).is_none() {
            return Err(format!("expected a process of this machine, found none with the number {pid}"));
        }
        let (ask, asked) = channel();
        let samples = thread::Builder::new()
            .name("server-cpu".to_owned())
            .spawn(move || take_samples(pid, &asked))
            .map_err(|error| format!("no thread to watch it with: {error}"))?;
        Ok(Self { pid, reached: Phase::WarmUp, ask, samples })
    }

    /// The load is that far. The time counts from the beginning to the end of measuring.
    pub(super) fn reached(&mut self, phase: Phase) {
        if self.reached != phase {
            self.reached = phase;
            self.sample();
        }
    }

    fn sample(&self) {
        // A thread that has ended says so when it is joined.
        let _ = self.ask.send(());
    }

    /// What was used; None when measuring never began. Words for the person when the process has ended meanwhile.
    pub(super) fn used(self) -> Result<Option<Duration>, String> {
        // A load that was stopped early has not told its end.
        if self.reached == Phase::Measuring {
            self.sample();
        }
        drop(self.ask);
        let samples = self.samples.join().map_err(|_| "the thread that watched it has failed".to_owned())?;
        let ended =
            || format!("process {} ended before the load did, so its CPU time is not known", self.pid);
        match samples.as_slice() {
            [begin, end, ..] => match (begin, end) {
                (Some(begin), Some(end)) => Ok(Some(end.saturating_sub(*begin))),
                _ => Err(ended()),
            },
            _ => Ok(None),
        }
    }
}

fn take_samples(pid: u32, asked: &Receiver<()>) -> Vec<Option<Duration>> {
    asked.iter().map(|()| cpu_time_below(pid)).collect()
}

/// What of `/proc/PID/stat` matters here.
#[derive(Debug, PartialEq, Eq)]
struct Stat {
    parent: u32,
    /// Clock ticks of its own, and of children that it has waited for.
    ticks: u64,
}

/// CPU time of `pid` and all below it that live, and of those that have ended and been waited for: a child that ends
/// meanwhile moves from itself to its parent, and the sum stays. None when there is no such process.
fn cpu_time_below(pid: u32) -> Option<Duration> {
    let mut stats: HashMap<u32, Stat> = HashMap::new();
    for entry in fs::read_dir("/proc").ok()?.flatten() {
        let number = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let stat = number.and_then(|number: u32| {
            let text = fs::read_to_string(format!("/proc/{number}/stat")).ok()?;
            Some((number, parse_stat(&text)?))
        });
        stats.extend(stat);
    }
    let ticks_a_second =
        sysconf(SysconfVar::CLK_TCK).ok().flatten().and_then(|ticks| u32::try_from(ticks).ok());
    #[expect(clippy::cast_precision_loss)] // centuries of ticks are exact
    let ticks = ticks_below(pid, &stats)? as f64;
    Some(Duration::from_secs_f64(ticks / f64::from(ticks_a_second.unwrap_or(100).max(1))))
}

fn ticks_below(pid: u32, stats: &HashMap<u32, Stat>) -> Option<u64> {
    let mut ticks = stats.get(&pid)?.ticks;
    let mut above = HashSet::from([pid]);
    // One level of the tree in each turn.
    loop {
        let below: HashSet<u32> = stats
            .iter()
            .filter(|(number, stat)| above.contains(&stat.parent) && **number != pid)
            .map(|(number, _)| *number)
            .collect();
        if below.is_empty() {
            return Some(ticks);
        }
        ticks += below.iter().filter_map(|number| stats.get(number)).map(|stat| stat.ticks).sum::<u64>();
        above = below;
    }
}

/// Fields as `proc_pid_stat(5)` counts them: 4 is the parent, 14 to 17 are utime, stime, cutime and cstime. The name
/// before them may hold anything, also parentheses and spaces.
fn parse_stat(text: &str) -> Option<Stat> {
    let (_, after_name) = text.rsplit_once(')')?;
    let mut fields = after_name.split_whitespace().skip(1);
    let parent = fields.next()?.parse().ok()?;
    let times: Vec<u64> = fields.skip(9).take(4).map_while(|field| field.parse().ok()).collect();
    (times.len() == 4).then(|| Stat { parent, ticks: times.iter().sum() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_anything_in_it_does_not_shift_the_fields() {
        let times = "1 2 3 4 5 6 7 8 9 1000 200 30 4 20 0 8 0";
        for name in ["tine", "a b", ") R 1 (", ""] {
            let text = format!("77 ({name}) S 42 {times}");
            assert_eq!(parse_stat(&text), Some(Stat { parent: 42, ticks: 1234 }), "{name:?}");
        }
        for text in ["", "77 (tine", "77 (tine) S", "77 (tine) S 42 1 2 3"] {
            assert_eq!(parse_stat(text), None, "{text:?}");
        }
    }

    #[test]
    fn all_below_a_process_counts_and_its_neighbours_do_not() {
        let stats = [(1, 0, 1), (10, 1, 10), (11, 10, 100), (12, 11, 1_000), (20, 1, 10_000)];
        let stats: HashMap<u32, Stat> =
            stats.into_iter().map(|(pid, parent, ticks)| (pid, Stat { parent, ticks })).collect();
        for (pid, ticks) in [(10, Some(1_110)), (12, Some(1_000)), (20, Some(10_000)), (5, None)] {
            assert_eq!(ticks_below(pid, &stats), ticks, "{pid}");
        }
    }

    #[test]
    fn this_process_has_used_some_time_by_now_and_nobody_has_none() {
        assert!(cpu_time_below(std::process::id()).is_some());
        assert!(ServerCpu::of(u32::MAX).is_err());
    }
}
