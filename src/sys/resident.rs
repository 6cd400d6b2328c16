//! How much memory this process has for itself, as the kernel counts it.
//!
//! "For itself" is anonymous memory: heap, stacks, written data. Files and shared memory don't count.

use std::io;

use nix::unistd::{SysconfVar, sysconf};

/// Bytes of anonymous memory that are resident, including what is shared with the process that forked this one: an upper
/// bound of [`own`], for a few microseconds.
pub(crate) fn anonymous() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/statm")?;
    let page = sysconf(SysconfVar::PAGE_SIZE)?.and_then(|page| u64::try_from(page).ok()).unwrap_or(4096);
    pages_of(&text).map(|pages| pages.saturating_mul(page)).ok_or_else(|| not_understood("statm", &text))
}

/// Bytes of anonymous memory that are this process's: what it has alone, and its part of what it shares. The kernel walks
/// all of its memory for this, which takes some milliseconds for each gigabyte.
pub(crate) fn own() -> io::Result<u64> {
    let text = std::fs::read_to_string("/proc/self/smaps_rollup")?;
    own_in(&text).ok_or_else(|| not_understood("smaps_rollup", &text))
}

fn not_understood(file: &str, text: &str) -> io::Error {
    io::Error::other(format!(
        "/proc/self/{file} is not understood: {:?}",
        text.lines().next().unwrap_or_default()
    ))
}

/// Resident pages less those of files and shared memory.
fn pages_of(statm: &str) -> Option<u64> {
    let mut fields = statm.split_whitespace().skip(1).map(str::parse::<u64>);
    let (resident, shared) = (fields.next()?.ok()?, fields.next()?.ok()?);
    Some(resident.saturating_sub(shared))
}

/// Since Linux 5.4 the kernel tells the anonymous part; before, files count too.
fn own_in(rollup: &str) -> Option<u64> {
    let field = |name: &str| {
        let line = rollup.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
    };
    field("Pss_Anon:").or_else(|| field("Private_Dirty:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_that_is_written_is_counted() {
        let before = (anonymous().unwrap(), own().unwrap());
        let held = std::hint::black_box(vec![1_u8; 64 << 20]);
        let after = (anonymous().unwrap(), own().unwrap());
        // Other tests may give back some meanwhile.
        assert!(after.0 >= before.0 + (32 << 20), "{before:?}, {after:?}");
        assert!(after.1 >= before.1 + (32 << 20), "{before:?}, {after:?}");
        drop(held);
    }

    #[test]
    fn what_the_kernel_writes_is_read() {
        assert_eq!(pages_of("2000 500 120 1 0 300 0\n"), Some(380));
        assert_eq!(pages_of("2000 5"), None);
        let rollup =
            "55e0 [rollup]\nRss:  900 kB\nPss:  800 kB\nPss_Anon:  300 kB\nPrivate_Dirty:   400 kB\n";
        assert_eq!(own_in(rollup), Some(300 * 1024));
        assert_eq!(own_in("Rss:  900 kB\nPrivate_Dirty:   400 kB\n"), Some(400 * 1024));
        assert_eq!(own_in("Rss: much"), None);
    }
}
