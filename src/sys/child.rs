//! Child programs that must not outlive this one, and what the kernel knows about them.
//!
//! For commands in the foreground that start a server of their own (`tune`). The supervisor's processes are forked and
//! reaped elsewhere.

use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{Pid, getppid};

/// Makes the program lead a process group of its own, which a terminal's Ctrl-C does not reach, and has the kernel
/// send it `signal` when the thread that starts it ends, however that happens.
pub(crate) fn bind_to_this_thread(command: &mut Command, signal: Signal) {
    let parent = nix::unistd::getpid();
    command.process_group(0);
    let prepare = move || {
        nix::sys::prctl::set_pdeathsig(signal)?;
        // The parent may have ended before the request took effect; then nobody would ever end the program.
        if getppid() == parent { Ok(()) } else { Err(Errno::ESRCH.into()) }
    };
    // SAFETY: between fork and exec the closure makes two system calls through wrappers that neither allocate nor take a
    // lock, and an error made of an errno does not allocate either.
    unsafe { command.pre_exec(prepare) };
}

/// Whether a child has ended. It stays a zombie that its owner must still wait for, so its pid and its group are
/// not given to anybody else before.
pub(crate) fn has_ended(pid: Pid) -> bool {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    !matches!(waitid(Id::Pid(pid), look), Ok(WaitStatus::StillAlive) | Err(Errno::EINTR))
}

/// Kills whatever is left of the group that a child leads. Call it before the child is waited for, while nobody
/// else can have its number.
pub(crate) fn kill_group(leader: Pid) {
    // ESRCH: nobody is left, which is what was wanted.
    let _ = killpg(leader, Signal::SIGKILL);
}

/// The CPU time that a process has used, of all its threads, those that have ended too.
///
/// # Errors
///
/// There is no such process any more, or it is hidden from this one.
pub(crate) fn cpu_time(pid: Pid) -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::pid_cpu_clock_id(pid)?)?.into())
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    /// A program that ends when its input does, with another process of its own that does not.
    fn child() -> std::process::Child {
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 600 & echo started; read line; exit 0"]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        bind_to_this_thread(&mut command, Signal::SIGKILL);
        command.spawn().expect("a shell")
    }

    fn pid(child: &std::process::Child) -> Pid {
        Pid::from_raw(child.id().cast_signed())
    }

    #[test]
    fn a_child_that_has_ended_is_seen_before_it_is_waited_for_and_its_group_goes_with_it() {
        use std::io::Read;
        let mut child = child();
        let leader = pid(&child);
        let mut out = child.stdout.take().expect("a pipe");
        let mut started = [0; 8];
        out.read_exact(&mut started).expect("it says so");
        assert!(!has_ended(leader));
        assert!(cpu_time(leader).expect("it lives") > Duration::ZERO);

        drop(child.stdin.take());
        while !has_ended(leader) {
            std::thread::yield_now();
        }
        // The other process still holds the pipe open; the end of the pipe is its end.
        kill_group(leader);
        assert_eq!(out.read(&mut started).expect("the end"), 0);
        assert!(child.wait().expect("a zombie").success());
        assert!(cpu_time(leader).is_err());
    }
}
