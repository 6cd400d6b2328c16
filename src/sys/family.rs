//! The children of this process, as `/proc` shows them.

use std::fs;
use std::io;

/// A child that has not been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Child {
    pub(crate) pid: i32,
    /// When it was started, in clock ticks since the machine was: tells apart who had the number one after the other.
    pub(crate) started: u64,
    pub(crate) session: i32,
}

/// The children of the calling thread, as the only one of its process, that have not ended; those that are `known` are left out.
///
/// # Errors
///
/// The kernel keeps no such list, or `/proc` is missing.
pub(crate) fn children(known: impl Fn(i32) -> bool) -> io::Result<Vec<Child>> {
    let list = fs::read_to_string("/proc/thread-self/children")?;
    let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    Ok(pids.filter(|pid| !known(*pid)).filter_map(child).collect())
}

/// None for one that has ended.
fn child(pid: i32) -> Option<Child> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    read(pid, &stat)
}

fn read(pid: i32, stat: &str) -> Option<Child> {
    // The name, in parentheses, may hold anything; after it come state, ppid, pgrp, session, and more.
    let (_, rest) = stat.rsplit_once(')')?;
    let mut fields = rest.split_whitespace();
    let has_ended = matches!(fields.next()?, "Z" | "X");
    let session = fields.nth(2)?.parse().ok()?;
    let started = fields.nth(15)?.parse().ok()?;
    (!has_ended).then_some(Child { pid, started, session })
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    #[test]
    fn a_line_is_read_whatever_the_name_is() {
        let line = |state| {
            format!(
                "41 (a) b 1 (c)) {state} 2 3 4 0 -1 4194560 9 0 0 0 1 2 0 0 20 0 1 0 777 123 45 18446744073709551615"
            )
        };
        assert_eq!(read(41, &line("S")), Some(Child { pid: 41, started: 777, session: 4 }));
        assert_eq!(read(41, &line("Z")), None);
        assert_eq!(read(41, "41 (cut) S 2"), None);
    }

    #[test]
    fn a_child_is_listed_until_it_ends() {
        let mut cat = Command::new("cat").stdin(Stdio::piped()).spawn().unwrap();
        let pid = i32::try_from(cat.id()).unwrap();
        let own = nix::unistd::getsid(None).unwrap().as_raw();
        let listed = || children(|other| other != pid).unwrap();
        assert!(listed().iter().all(|child| child.session == own) && listed().len() == 1);
        assert_eq!(children(|_| true).unwrap(), []);
        drop(cat.stdin.take());
        cat.wait().unwrap();
        assert_eq!(listed(), []);
    }
}
