//! Processes: fork, the ends of children, signals to them, and what a child resets.
//!
//! For whoever has children: the supervisor, the template, `fork_processes`. It knows the kernel's rules
//! about processes and nothing of what any process is for.
//!
//! `nix` is used where its call is safe and complete. Two of its calls are not: its `waitpid` reaps a child
//! that a real-time signal ended, and then reports an error in place of that child's pid; and it has no
//! `sigtimedwait`.

use std::fmt;
use std::fs;
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::libc;
use nix::sys::signal::{self, SigEvent, SigSet, SigevNotify, SigmaskHow};
use nix::sys::timer::{Expiration, Timer, TimerSetTimeFlags};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use nix::time::ClockId;
use nix::unistd;

pub(crate) use nix::sys::signal::Signal;
pub(crate) use nix::unistd::Pid;

/// Which side of a [`fork`] the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Forked {
    Parent { child: Pid },
    Child,
}

/// True while [`fork`] copies this process.
static FORKS_FOR_ITSELF: AtomicBool = AtomicBool::new(false);

/// Whether the child that asks is one of [`fork`], and not of user code: for hooks that run in every child.
pub(super) fn forks_for_itself() -> bool {
    FORKS_FOR_ITSELF.load(Ordering::SeqCst)
}

/// Copies this process.
///
/// # Errors
///
/// When this process has more than one thread (the child would have only the caller, and every lock that
/// another thread held would stay locked in it), and when the kernel refuses: `EAGAIN` for a limit on
/// processes, `ENOMEM`.
pub(crate) fn fork() -> io::Result<Forked> {
    let threads = thread_count()?;
    if threads > 1 {
        return Err(io::Error::other(format!(
            "this process has {threads} threads and must have one to fork: what the others have locked would stay \
             locked in the child for ever"
        )));
    }
    FORKS_FOR_ITSELF.store(true, Ordering::SeqCst);
    // SAFETY: the calling thread is the only one, so no other can hold a lock or be in the middle of a change
    // that the child would inherit unfinished; the child may do whatever the parent may.
    let forked = unsafe { unistd::fork() };
    FORKS_FOR_ITSELF.store(false, Ordering::SeqCst);
    match forked? {
        unistd::ForkResult::Parent { child } => Ok(Forked::Parent { child }),
        unistd::ForkResult::Child => Ok(Forked::Child),
    }
}

/// The threads of this process that may still run code, the caller included.
///
/// A thread that was just joined can be listed by the kernel for a moment longer. It is not counted: it has
/// left user code for good.
///
/// # Errors
///
/// When `/proc/self/task` cannot be read.
pub(crate) fn thread_count() -> io::Result<usize> {
    const TASKS: &str = "/proc/self/task";
    let failed = |error: io::Error| {
        let why = format!("cannot count this process's threads in {TASKS} (is /proc mounted?): {error}");
        io::Error::new(error.kind(), why)
    };
    let mut running = 0;
    for task in fs::read_dir(TASKS).map_err(failed)? {
        match fs::read_to_string(task.map_err(failed)?.path().join("stat")) {
            Ok(stat) if is_exiting(&stat) => {}
            Ok(_) => running += 1,
            Err(error) if has_gone(&error) => {}
            Err(error) => return Err(failed(error)),
        }
    }
    Ok(running)
}

/// The names of this process's threads, for messages about them; what can't be read is left out.
pub(crate) fn thread_names() -> Vec<String> {
    let Ok(tasks) = fs::read_dir("/proc/self/task") else {
        return Vec::new();
    };
    let name = |task: fs::DirEntry| fs::read_to_string(task.path().join("comm")).ok();
    tasks.flatten().filter_map(name).map(|name| name.trim_end().to_owned()).collect()
}

/// How a child ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    Exited(i32),
    Signalled { signal: i32, core_dumped: bool },
}

impl Ended {
    pub(crate) fn is_by(self, by: Signal) -> bool {
        matches!(self, Self::Signalled { signal, .. } if signal == by as i32)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Ended::Exited(code) => write!(out, "exit {code}"),
            Ended::Signalled { signal, core_dumped } => {
                out.write_str(&signal_name(signal))?;
                out.write_str(if core_dumped { " (core dumped)" } else { "" })
            }
        }
    }
}

/// What looking for an ended child found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reaped {
    /// This child had ended and is gone now.
    Child(Pid, Ended),
    /// There are children, and none has ended.
    NoneYet,
    NoChildren,
}

/// How a child has ended that was not reaped, if it has. It stays a zombie, so its pid is nobody else's before it is reaped.
pub(crate) fn how_ended(pid: Pid) -> Option<Ended> {
    let look = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    match waitid(Id::Pid(pid), look) {
        Ok(WaitStatus::Exited(_, code)) => Some(Ended::Exited(code)),
        Ok(WaitStatus::Signaled(_, signal, core_dumped)) => {
            Some(Ended::Signalled { signal: signal as i32, core_dumped })
        }
        // None yet, or ended by a signal without a name, which whoever reaps it hears of.
        _ => None,
    }
}

/// Reaps one ended child of this process, whichever it is, without waiting for one.
///
/// # Errors
///
/// None that the kernel documents for these arguments.
pub(crate) fn reap_any() -> io::Result<Reaped> {
    wait_any(libc::WNOHANG)
}

/// Waits until a child of this process ends, whichever it is, and reaps it; never [`Reaped::NoneYet`].
///
/// # Errors
///
/// As [`reap_any`].
pub(crate) fn reap_next() -> io::Result<Reaped> {
    wait_any(0)
}

/// Like [`reap_next`], but not for longer than until `deadline`: then it is [`Reaped::NoneYet`].
///
/// For processes with one thread: in others the signal that ends the wait may go to another thread, and an
/// end is then noticed only at the deadline.
///
/// # Errors
///
/// As [`reap_any`].
pub(crate) fn reap_next_until(deadline: Instant) -> io::Result<Reaped> {
    let mut child_signal = SigSet::empty();
    child_signal.add(Signal::SIGCHLD);
    // Blocked before the look: a child that ends after the look leaves its signal pending for the wait.
    let mask_before = child_signal.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
    let reaped = loop {
        match reap_any() {
            Ok(Reaped::NoneYet) => {}
            found => break found,
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            break Ok(Reaped::NoneYet);
        }
        wait_for_signal(&child_signal, left);
    };
    mask_before.thread_set_mask()?;
    reaped
}

/// Makes the kernel keep the exit statuses of children for this process to wait for.
///
/// It does not when SIGCHLD is ignored or has `SA_NOCLDWAIT`, and a process inherits the first from whoever
/// started it; SIGCHLD then goes back to its default. A handler of the program's own is left alone.
///
/// # Errors
///
/// None that the kernel documents for this signal.
pub(crate) fn keep_exit_statuses() -> io::Result<()> {
    // SAFETY: zero bytes are a valid `sigaction`: a plain C struct of integers and a nullable handler.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: a null new action changes nothing; `action` is writable and large enough for the current one.
    Errno::result(unsafe { libc::sigaction(libc::SIGCHLD, ptr::null(), &raw mut action) })?;
    if action.sa_sigaction == libc::SIG_IGN || action.sa_flags & libc::SA_NOCLDWAIT != 0 {
        set_disposition(libc::SIGCHLD, libc::SIG_DFL)?;
    }
    Ok(())
}

/// Sends `signal` to the one process `pid`; one that has already gone is fine.
///
/// # Errors
///
/// `EPERM` when the kernel does not let this process signal that one; `InvalidInput` for a `pid` of 0 or
/// below, which to the kernel would mean whole groups of processes.
pub(crate) fn kill(pid: Pid, signal: Signal) -> io::Result<()> {
    if pid.as_raw() <= 0 {
        let why = format!("refused to send {signal} to pid {pid}, which would reach many processes");
        return Err(io::Error::new(io::ErrorKind::InvalidInput, why));
    }
    match signal::kill(pid, signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Whether a process that was not reaped has memory still: one that ends gives that up first, and then its descriptors.
pub(crate) fn is_alive(pid: Pid) -> io::Result<bool> {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm"))?;
    Ok(statm.split_whitespace().next().is_some_and(|pages| pages != "0"))
}

/// A signal's name as a log should say it: `SIGSEGV`, `SIGRTMIN+3`, or `signal 99` for one without a name.
pub(crate) fn signal_name(signal: i32) -> String {
    if let Ok(known) = Signal::try_from(signal) {
        return known.as_str().to_owned();
    }
    match signal.saturating_sub(libc::SIGRTMIN()) {
        0 => "SIGRTMIN".to_owned(),
        above if above > 0 && signal <= libc::SIGRTMAX() => format!("SIGRTMIN+{above}"),
        _ => format!("signal {signal}"),
    }
}

/// Ends this process at once: no exit hooks, no flushing, nothing dropped.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: `_exit` only takes a number and does not return.
    unsafe { libc::_exit(code) }
}

/// Kills every process of this one's group, and with them this one. For a process that has a group of its own, with what it has
/// started.
pub(crate) fn kill_own_group() {
    // It can't be refused: this process itself may be signalled by itself.
    let _ = signal::kill(Pid::from_raw(0), Signal::SIGKILL);
}

/// Has the kernel kill this process when `wait` is over, whatever it does until then.
pub(crate) fn kill_this_after(wait: Duration) -> io::Result<()> {
    let kill = SigEvent::new(SigevNotify::SigevSignal { signal: Signal::SIGKILL, si_value: 0 });
    let mut timer = Timer::new(ClockId::CLOCK_MONOTONIC, kill)?;
    timer.set(Expiration::OneShot(wait.into()), TimerSetTimeFlags::empty())?;
    // Dropped, it would be taken back.
    std::mem::forget(timer);
    Ok(())
}

/// Gives every signal its default disposition, except those of [`write_errors_only`](super::signals::write_errors_only),
/// and empties the mask. For a child after [`fork`], which has its parent's.
///
/// std's own handlers for SIGSEGV and SIGBUS go too: a stack overflow then ends the process by SIGSEGV and
/// prints nothing.
pub(crate) fn reset_signals() {
    for signal in 1..=libc::SIGRTMAX() {
        // Refused for SIGKILL, SIGSTOP and the two that the C library keeps for itself: nothing to reset
        // there.
        let _ = set_disposition(signal, libc::SIG_DFL);
    }
    // Refused for no signal that has a number.
    let _ = super::signals::write_errors_only();
    // After the dispositions, because a signal that has waited behind the mask arrives now and must not run a
    // handler of the parent's. An empty mask cannot be refused.
    let _ = SigSet::empty().thread_set_mask();
}

fn wait_any(options: libc::c_int) -> io::Result<Reaped> {
    loop {
        let mut status = 0;
        // SAFETY: `status` is writable for as long as the call lasts.
        match Errno::result(unsafe { libc::waitpid(-1, &raw mut status, options) }) {
            Ok(0) => return Ok(Reaped::NoneYet),
            Ok(pid) => {
                if let Some(ended) = decode(status) {
                    return Ok(Reaped::Child(Pid::from_raw(pid), ended));
                }
            }
            Err(Errno::EINTR) => {}
            Err(Errno::ECHILD) => return Ok(Reaped::NoChildren),
            Err(error) => return Err(error.into()),
        }
    }
}

/// `None` for a child that only stopped, which the kernel reports to whoever traces it.
fn decode(status: i32) -> Option<Ended> {
    if libc::WIFEXITED(status) {
        Some(Ended::Exited(libc::WEXITSTATUS(status)))
    } else if libc::WIFSIGNALED(status) {
        let core_dumped = libc::WCOREDUMP(status);
        Some(Ended::Signalled { signal: libc::WTERMSIG(status), core_dumped })
    } else {
        None
    }
}

/// Returns when a signal of `set` was taken, when `limit` has passed, or early for another signal's handler.
fn wait_for_signal(set: &SigSet, limit: Duration) {
    let limit = libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // SAFETY: both pointers are to values that outlive the call, and a null `siginfo_t` is allowed.
    unsafe { libc::sigtimedwait(set.as_ref(), ptr::null_mut(), &raw const limit) };
}

fn set_disposition(signal: i32, disposition: libc::sighandler_t) -> io::Result<()> {
    debug_assert!(disposition == libc::SIG_DFL || disposition == libc::SIG_IGN);
    // SAFETY: the default or nothing, never a function, so no code runs when the signal comes.
    if unsafe { libc::signal(signal, disposition) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Reads the flags of a `/proc/PID/task/TID/stat` line: has the kernel begun to take this thread down?
fn is_exiting(stat: &str) -> bool {
    const PF_EXITING: u32 = 0x4;
    // The name, in parentheses, may hold anything; after it come state, ppid, pgrp, session, tty, tpgid,
    // flags.
    let flags = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(6));
    flags.and_then(|flags| flags.parse::<u32>().ok()).is_some_and(|flags| flags & PF_EXITING != 0)
}

/// A thread that ends between the listing and the look: its folder is missing, or is there and answers ESRCH.
fn has_gone(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH)
}

#[cfg(test)]
mod tests {
    use std::env;
    use std::process::Command;

    use super::*;

    #[test]
    fn an_end_is_told_by_its_exit_code_or_its_signal() {
        let signalled = |signal, core_dumped| Ended::Signalled { signal, core_dumped }.to_string();
        assert_eq!(Ended::Exited(3).to_string(), "exit 3");
        assert_eq!(signalled(libc::SIGSEGV, false), "SIGSEGV");
        assert_eq!(signalled(libc::SIGSEGV, true), "SIGSEGV (core dumped)");
        assert_eq!(signalled(libc::SIGRTMIN() + 3, false), "SIGRTMIN+3");
    }

    #[test]
    fn a_wait_status_becomes_an_end_even_for_real_time_signals() {
        assert_eq!(decode(3 << 8), Some(Ended::Exited(3)));
        assert_eq!(decode(9), Some(Ended::Signalled { signal: 9, core_dumped: false }));
        assert_eq!(
            decode(0x80 | libc::SIGSEGV),
            Some(Ended::Signalled { signal: libc::SIGSEGV, core_dumped: true })
        );
        assert_eq!(decode(40), Some(Ended::Signalled { signal: 40, core_dumped: false }));
        let stopped = (libc::SIGSTOP << 8) | 0x7f;
        assert_eq!(decode(stopped), None);
    }

    #[test]
    fn every_signal_number_has_a_name() {
        assert_eq!(signal_name(libc::SIGTERM), "SIGTERM");
        assert_eq!(signal_name(libc::SIGRTMIN()), "SIGRTMIN");
        assert_eq!(
            signal_name(libc::SIGRTMAX()),
            format!("SIGRTMIN+{}", libc::SIGRTMAX() - libc::SIGRTMIN())
        );
        for unnamed in [i32::MIN, -1, 0, libc::SIGRTMAX() + 1, i32::MAX] {
            assert_eq!(signal_name(unnamed), format!("signal {unnamed}"));
        }
    }

    #[test]
    fn a_process_with_threads_is_not_forked_and_the_error_says_why() {
        // The harness's own thread and this test's are two already.
        let error = fork().expect_err("forked with several threads");
        assert!(error.to_string().contains("must have one to fork"), "{error}");
    }

    #[test]
    fn a_reset_leaves_no_mask_and_handlers_only_where_a_write_fails() {
        const INSIDE: &str = "TINE_TEST_RESET_SIGNALS";
        if env::var_os(INSIDE).is_none() {
            // In a process of its own, because other tests may need the dispositions of this one.
            let this_test =
                "sys::process::tests::a_reset_leaves_no_mask_and_handlers_only_where_a_write_fails";
            let test_binary = env::current_exe().expect("path of the test binary");
            let run = Command::new(test_binary).args(["--exact", this_test]).env(INSIDE, "1").output();
            let run = run.expect("start the test binary");
            assert_eq!(run.status.code(), Some(7), "{}", String::from_utf8_lossy(&run.stdout));
            return;
        }
        let signals = |kind: &str| {
            let status = fs::read_to_string("/proc/thread-self/status").expect("read own status");
            let line = status.lines().find(|line| line.starts_with(kind)).expect("such a line");
            let bits = line.rsplit_once('\t').expect("a tab before the value").1;
            // Signals 32 and 33 are the C library's own and out of reach.
            u64::from_str_radix(bits, 16).expect("hexadecimal") & !(0b11 << 31)
        };
        SigSet::all().thread_block().expect("block signals");
        assert_ne!(signals("SigCgt"), 0, "std should have handlers");
        reset_signals();
        let writes = 1 << (libc::SIGPIPE - 1) | 1 << (libc::SIGXFSZ - 1);
        assert_eq!((signals("SigCgt"), signals("SigBlk")), (writes, 0));
        assert_eq!(signals("SigIgn"), 0, "programs that are started would inherit it");
        let (reader, mut writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let error = std::io::Write::write(&mut writer, b"x").expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        let file =
            nix::sys::memfd::memfd_create(c"test", nix::sys::memfd::MFdFlags::empty()).expect("a file");
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_FSIZE, 0, 0)
            .expect("less is allowed");
        assert_eq!(nix::unistd::write(&file, b"x"), Err(Errno::EFBIG));
        exit_now(7);
    }

    #[test]
    fn signals_go_to_one_process_or_nowhere() {
        for group in [0, -1, -1234] {
            let error = kill(Pid::from_raw(group), Signal::SIGTERM).expect_err("signalled a group");
            assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        }
        // Above the largest pid the kernel can give out.
        kill(Pid::from_raw(i32::MAX), Signal::SIGTERM).expect("a process that has gone is fine");
    }

    #[test]
    fn a_process_is_alive_until_it_ends_although_nobody_has_reaped_it() {
        let mut child = Command::new("cat").stdin(std::process::Stdio::piped()).spawn().expect("a child");
        let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
        assert!(is_alive(pid).expect("its memory"));
        drop(child.stdin.take());
        let ended = nix::sys::wait::Id::Pid(pid);
        let flags = nix::sys::wait::WaitPidFlag::WEXITED | nix::sys::wait::WaitPidFlag::WNOWAIT;
        nix::sys::wait::waitid(ended, flags).expect("it ends");
        assert!(!is_alive(pid).expect("it is not reaped"));
        child.wait().expect("now it is");
        assert!(is_alive(pid).is_err());
    }

    #[test]
    fn how_a_child_has_ended_is_seen_as_often_as_wanted_until_it_is_reaped() {
        let ends = [
            ("read line; exit 3", Ended::Exited(3)),
            ("read line; kill -9 $$", Ended::Signalled { signal: 9, core_dumped: false }),
        ];
        for (script, end) in ends {
            let mut command = Command::new("sh");
            let mut child =
                command.args(["-c", script]).stdin(std::process::Stdio::piped()).spawn().expect("a shell");
            let pid = Pid::from_raw(i32::try_from(child.id()).expect("a pid"));
            assert_eq!(how_ended(pid), None, "{script}");
            drop(child.stdin.take());
            let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
            waitid(Id::Pid(pid), flags).expect("it ends");
            assert_eq!([how_ended(pid), how_ended(pid)], [Some(end); 2], "{script}");
            child.wait().expect("now it is reaped");
            assert_eq!(how_ended(pid), None, "{script}");
        }
    }

    #[test]
    fn a_thread_on_its_way_out_is_told_by_its_flags_whatever_its_name_is() {
        let stat = |name: &str, flags| format!("41 ({name}) S 1 2 3 0 -1 {flags} 99 0 0 0");
        assert!(is_exiting(&stat("pool", 0x40_0044)));
        assert!(!is_exiting(&stat("pool", 0x40_0040)));
        assert!(is_exiting(&stat("a) b 1 (c", 0x40_0044)));
        assert!(!is_exiting("41 (cut short) S 1"));
        assert!(!is_exiting(""));
    }
}
