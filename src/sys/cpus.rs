//! How many CPUs this process may use: its affinity mask, and the CPU quota of its control groups.
//!
//! `config` asks once, to turn `processes = 0` into a number; `supervisor::needs` asks how many are online. Unlike
//! `std::thread::available_parallelism`, a quota is rounded up: 1.5 CPUs are two workers' worth, because a
//! worker too many waits a little, while a worker too few leaves paid CPU time unused.

use std::fs;
use std::path::{Path, PathBuf};

use nix::sched::{CpuSet, sched_getaffinity};
use nix::unistd::{Pid, SysconfVar, sysconf};

/// The CPUs this process may use, at least 1.
pub(crate) fn available() -> usize {
    let membership = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    limited(by_affinity(), &membership, |path| fs::read_to_string(path).ok())
}

fn by_affinity() -> usize {
    if let Ok(set) = sched_getaffinity(Pid::from_raw(0)) {
        return (0..CpuSet::count()).filter(|&cpu| set.is_set(cpu).unwrap_or(false)).count();
    }
    // The kernel refuses the mask (EINVAL) where it knows of more CPUs than glibc's fixed-size set holds.
    online()
}

/// The CPUs of the machine, at least 1.
pub(crate) fn online() -> usize {
    let online = sysconf(SysconfVar::_NPROCESSORS_ONLN).ok().flatten();
    online.and_then(|cpus| usize::try_from(cpus).ok()).unwrap_or(1)
}

/// The smallest of the affinity and every quota that holds for this process; `read` answers for the file
/// system, so that a test can play a container.
fn limited(affinity: usize, membership: &str, read: impl Fn(&Path) -> Option<String>) -> usize {
    let unified = unified_directories(membership).into_iter().filter_map(|directory| {
        let text = read(&directory.join("cpu.max"))?;
        let mut words = text.split_whitespace();
        cpus_of_quota(words.next()?, words.next()?)
    });
    let legacy = legacy_directories(membership).into_iter().filter_map(|directory| {
        let quota = read(&directory.join("cpu.cfs_quota_us"))?;
        let period = read(&directory.join("cpu.cfs_period_us"))?;
        cpus_of_quota(quota.trim(), period.trim())
    });
    unified.chain(legacy).fold(affinity, usize::min).max(1)
}

/// CPUs of a quota in microseconds for each period, rounded up. `max` (version 2) and -1 (version 1) mean no
/// limit; so does anything that is not two positive numbers, because a wrong guess here would cost a
/// machine its workers.
fn cpus_of_quota(quota: &str, period: &str) -> Option<usize> {
    let quota: u64 = quota.parse().ok().filter(|&microseconds| microseconds > 0)?;
    let period: u64 = period.parse().ok().filter(|&microseconds| microseconds > 0)?;
    usize::try_from(quota.div_ceil(period)).ok()
}

/// Version 2: the line `0::/path`.
fn unified_directories(membership: &str) -> Vec<PathBuf> {
    let path = membership.lines().find_map(|line| line.strip_prefix("0::"));
    path.map(|path| with_parents(Path::new("/sys/fs/cgroup"), path)).unwrap_or_default()
}

/// Version 1: the line whose list of controllers has `cpu`, for example `4:cpu,cpuacct:/path`.
fn legacy_directories(membership: &str) -> Vec<PathBuf> {
    let found = membership.lines().find_map(|line| {
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        controllers.split(',').any(|name| name == "cpu").then_some((controllers, path))
    });
    let Some((controllers, path)) = found else { return Vec::new() };
    // Distributions mount the pair under its joint name and usually, not always, link `cpu` to it.
    let mounts = [Path::new("/sys/fs/cgroup").join(controllers), PathBuf::from("/sys/fs/cgroup/cpu")];
    mounts.iter().flat_map(|mount| with_parents(mount, path)).collect()
}

/// The group's directory and all above it, because a parent's quota holds too. Without a control group
/// namespace a container reads the host's path but sees only its own part of the tree, mounted as the root:
/// then the lower directories do not exist and the root has the quota.
fn with_parents(mount: &Path, group: &str) -> Vec<PathBuf> {
    // `/..` stands before a group outside the namespace's root; its directory can't be named from here.
    let group = if group.split('/').any(|part| part == "..") { "" } else { group.trim_start_matches('/') };
    Path::new(group).ancestors().map(|part| mount.join(part)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// CPUs of a machine with 16 of them, where `files` are the control group files that exist.
    fn cpus(membership: &str, files: &[(&str, &str)]) -> usize {
        limited(16, membership, |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, text)| (*text).to_owned())
        })
    }

    #[test]
    fn a_process_may_use_at_least_one_cpu() {
        assert!(available() >= 1);
        assert_eq!(limited(0, "", |_| None), 1);
    }

    #[test]
    fn without_a_quota_the_affinity_decides() {
        assert_eq!(cpus("0::/\n", &[]), 16);
        assert_eq!(cpus("0::/\n", &[("/sys/fs/cgroup/cpu.max", "max 100000\n")]), 16);
        assert_eq!(cpus("", &[("/sys/fs/cgroup/cpu.max", "100000 100000\n")]), 16);
    }

    #[test]
    fn a_quota_is_rounded_up_and_never_raises_the_affinity() {
        let quota = |text| cpus("0::/\n", &[("/sys/fs/cgroup/cpu.max", text)]);
        assert_eq!(quota("150000 100000\n"), 2);
        assert_eq!(quota("200000 100000\n"), 2);
        assert_eq!(quota("5000 100000\n"), 1);
        assert_eq!(quota("6400000 100000\n"), 16);
    }

    #[test]
    fn the_smallest_quota_on_the_way_to_the_root_holds() {
        let files = [
            ("/sys/fs/cgroup/a/b/cpu.max", "max 100000\n"),
            ("/sys/fs/cgroup/a/cpu.max", "250000 100000\n"),
            ("/sys/fs/cgroup/cpu.max", "400000 100000\n"),
        ];
        assert_eq!(cpus("0::/a/b\n", &files), 3);
    }

    #[test]
    fn a_container_that_reads_the_hosts_path_finds_the_quota_at_its_root() {
        let files = [("/sys/fs/cgroup/cpu.max", "100000 50000\n")];
        assert_eq!(cpus("0::/system.slice/docker-12ab.scope\n", &files), 2);
        assert_eq!(cpus("0::/../../elsewhere\n", &files), 2);
    }

    #[test]
    fn version_1_quotas_count_under_either_mount_name() {
        let joint = [
            ("/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_quota_us", "350000\n"),
            ("/sys/fs/cgroup/cpu,cpuacct/app/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(cpus("5:memory:/\n4:cpu,cpuacct:/app\n", &joint), 4);
        let alone = [
            ("/sys/fs/cgroup/cpu/app/cpu.cfs_quota_us", "-1\n"),
            ("/sys/fs/cgroup/cpu/app/cpu.cfs_period_us", "100000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", "700000\n"),
            ("/sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n"),
        ];
        assert_eq!(cpus("2:cpuacct:/\n1:cpu:/app\n0::/\n", &alone), 7);
    }

    #[test]
    fn nonsense_in_the_files_is_no_limit() {
        for text in ["", "max", "0 100000", "100000 0", "-5 100000", "many few", "\u{1f9ea}"] {
            assert_eq!(cpus("0::/\n", &[("/sys/fs/cgroup/cpu.max", text)]), 16, "{text:?}");
        }
        assert_eq!(cpus("::::\n0:\ncpu\n:cpu\n", &[]), 16);
    }
}
