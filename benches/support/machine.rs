//! Who else uses the machine while a server and its load run.
//!
//! A figure of one program against another says little while a third has a part of the cores, and nobody would see it.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use nix::unistd::{SysconfVar, sysconf};
use tine::BoxError;

use super::process::cpu_time;

/// The parent of all threads of the kernel. They work for everybody, for the load's packets above all.
const KERNEL_THREADS: u32 = 2;

/// One look at the clocks, to be compared with a later one.
#[derive(Debug)]
pub struct Look<'a> {
    pids: &'a [i32],
    at: Instant,
    server: Duration,
    others: Duration,
}

/// Shares of one core since a look.
#[derive(Debug, Clone, Copy)]
pub struct Shares {
    pub server: f64,
    /// What programs used that are neither this one nor started by it, and what a hypervisor took.
    pub others: f64,
}

impl<'a> Look<'a> {
    /// At the machine, for a server of these processes.
    pub fn now(pids: &'a [i32]) -> Result<Self, BoxError> {
        let server = pids.iter().map(|pid| cpu_time(*pid)).sum::<Result<_, _>>()?;
        let ticks = ticks_of_others()? + stolen_ticks()?;
        let ticks_a_second = u64::try_from(sysconf(SysconfVar::CLK_TCK)?.ok_or("the length of a tick")?)?;
        let others = Duration::from_millis(ticks * 1_000 / ticks_a_second);
        Ok(Self { pids, at: Instant::now(), server, others })
    }

    pub fn shares(&self) -> Result<Shares, BoxError> {
        let now = Self::now(self.pids)?;
        let seconds = now.at.duration_since(self.at).as_secs_f64();
        let share = |now: Duration, before: Duration| now.saturating_sub(before).as_secs_f64() / seconds;
        Ok(Shares { server: share(now.server, self.server), others: share(now.others, self.others) })
    }
}

/// One process in `/proc/PID/stat` (its manual page is `proc_pid_stat`).
struct Process {
    parent: u32,
    /// Its own and those of children that it has waited for, so that no child's are lost when it ends.
    ticks: u64,
}

/// CPU time of all processes but this one, what it has started, and the kernel's.
fn ticks_of_others() -> Result<u64, BoxError> {
    let mut processes = HashMap::new();
    for entry in fs::read_dir("/proc")? {
        let Some(pid) = entry?.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        // One that has ended meanwhile is in its parent's numbers.
        if let Some(process) = fs::read_to_string(format!("/proc/{pid}/stat")).ok().as_deref().and_then(parse)
        {
            processes.insert(pid, process);
        }
    }
    let (own, is_known) = (std::process::id(), |pid: u32| processes.contains_key(&pid));
    let is_ours = |mut pid: u32| {
        while pid != own && pid != KERNEL_THREADS && is_known(pid) {
            pid = processes[&pid].parent;
        }
        pid == own || pid == KERNEL_THREADS
    };
    Ok(processes.iter().filter(|(pid, _)| !is_ours(**pid)).map(|(_, process)| process.ticks).sum())
}

fn parse(stat: &str) -> Option<Process> {
    // Counted from behind the name, which may hold anything.
    const PARENT: usize = 1;
    const TICKS: std::ops::Range<usize> = 11..15;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = fields.get(TICKS)?.iter().map(|ticks| ticks.parse::<u64>()).sum::<Result<_, _>>().ok()?;
    Some(Process { parent: fields.get(PARENT)?.parse().ok()?, ticks })
}

/// What a hypervisor gave to others while a core of this machine had something to do.
fn stolen_ticks() -> Result<u64, BoxError> {
    const STEAL: usize = 8;
    let stat = fs::read_to_string("/proc/stat")?;
    let all = stat.lines().next().unwrap_or_default().split_whitespace().nth(STEAL);
    Ok(all.ok_or("/proc/stat begins with a line for all cores")?.parse()?)
}
