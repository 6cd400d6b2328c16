//! Signals as events: the supervisor reads them from a descriptor, the worker is only woken by them.
//!
//! No handler here decides anything: it returns at once or wakes a loop that decides.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc;
use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use super::descriptors;

/// What the supervisor listens to; all of it is blocked in that process and read from here instead.
const SUPERVISOR: [Signal; 9] = [
    Signal::SIGCHLD,
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGQUIT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// What a terminal, a service manager or a `pkill` by name sends to the whole family though it means the supervisor.
/// A worker then gives SIGTERM a meaning of its own, see [`OnTerm`].
const FOR_THE_SUPERVISOR: [Signal; 7] = [
    Signal::SIGTERM,
    Signal::SIGINT,
    Signal::SIGHUP,
    Signal::SIGUSR1,
    Signal::SIGUSR2,
    Signal::SIGTTIN,
    Signal::SIGTTOU,
];

/// What the kernel sends to whoever writes to a pipe that nobody reads, or past `RLIMIT_FSIZE`. The write fails too, and
/// that is what our own code looks at.
const OF_WRITES: [Signal; 2] = [Signal::SIGPIPE, Signal::SIGXFSZ];

/// The supervisor's signals as a descriptor.
#[derive(Debug)]
pub(crate) struct Signals(SignalFd);

impl Signals {
    /// Blocks the supervisor's signals and opens the descriptor that reports them.
    pub(crate) fn open() -> io::Result<Self> {
        let set: SigSet = SUPERVISOR.into_iter().collect();
        set.thread_block()?;
        Ok(Self(SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?))
    }

    /// The next signal that has arrived, if any, but for what a terminal says about reading and writing.
    pub(crate) fn next(&self) -> io::Result<Option<Signal>> {
        loop {
            match self.0.read_signal() {
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
                Ok(None) => return Ok(None),
                Ok(Some(info)) => {
                    if is_job_control(info.ssi_signo, info.ssi_code) {
                        continue;
                    }
                    if let Ok(signal) =
                        i32::try_from(info.ssi_signo).map_or(Err(Errno::EINVAL), Signal::try_from)
                    {
                        return Ok(Some(signal));
                    }
                }
            }
        }
    }
}

/// SIGTTIN and SIGTTOU are orders only where a process has sent them: the terminal driver sends them to a whole group
/// of processes one of which has read from the terminal, or written to it, in the background.
fn is_job_control(signal: u32, code: i32) -> bool {
    let is_one = [libc::SIGTTIN, libc::SIGTTOU].iter().any(|one| i64::from(*one) == i64::from(signal));
    is_one && code == libc::SI_KERNEL
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// SIGTERM has come, and nobody has been told.
static TERM_CAME: AtomicBool = AtomicBool::new(false);
/// The epoll, the descriptor and the token by which [`OnTerm`] is reported, for the handler; the epoll is -1 before.
static TERM_EPOLL: AtomicI32 = AtomicI32::new(-1);
static TERM_EVENT: AtomicI32 = AtomicI32::new(-1);
static TERM_TOKEN: AtomicU64 = AtomicU64::new(0);

/// Makes the signals that mean the supervisor harmless here, in a template or worker. They get a handler that does
/// nothing rather than `SIG_IGN`, which programs started by user code would inherit.
pub(crate) fn ignore_what_is_for_the_supervisor() -> io::Result<()> {
    let nothing = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in FOR_THE_SUPERVISOR {
        // SAFETY: the handler touches no memory and calls nothing.
        unsafe { sigaction(signal, &nothing) }?;
    }
    Ok(())
}

/// Has a write that fails only fail: SIGPIPE and SIGXFSZ get a handler that does nothing. They are not ignored, because
/// programs that user code starts would inherit that: a shell's pipeline would go on after its reader has ended.
pub(crate) fn write_errors_only() -> io::Result<()> {
    let nothing = SigAction::new(SigHandler::Handler(do_nothing), SaFlags::SA_RESTART, SigSet::empty());
    for signal in OF_WRITES {
        // SAFETY: the handler touches no memory and calls nothing.
        unsafe { sigaction(signal, &nothing) }?;
    }
    Ok(())
}

/// SIGTERM as an event of an epoll. It is told by arming an entry there, not by a write, which would reach whatever has the
/// number by then if a handler has closed it.
#[derive(Debug)]
pub(crate) struct OnTerm(OwnedFd);

impl OnTerm {
    /// Notes SIGTERM from now on. For a worker's main thread, once.
    pub(crate) fn catch() -> io::Result<Self> {
        let always_readable =
            EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let event = descriptors::control(always_readable.into());
        let note = SigAction::new(SigHandler::Handler(note_term), SaFlags::SA_RESTART, SigSet::empty());
        // SAFETY: the handler uses atomics, and calls epoll_ctl(2) and _exit(2), both bare system calls; it restores errno.
        unsafe { sigaction(Signal::SIGTERM, &note) }?;
        Ok(Self(event))
    }

    /// Has it reported there under this token, also where it has come already.
    pub(crate) fn report_to(&self, epoll: &Epoll, token: u64) -> io::Result<()> {
        epoll.add(&self.0, EpollEvent::new(EpollFlags::EPOLLONESHOT, token))?;
        TERM_EVENT.store(self.0.as_raw_fd(), Ordering::SeqCst);
        TERM_TOKEN.store(token, Ordering::SeqCst);
        TERM_EPOLL.store(epoll.0.as_raw_fd(), Ordering::SeqCst);
        if TERM_CAME.load(Ordering::SeqCst) {
            epoll.modify(
                &self.0,
                &mut EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, token),
            )?;
        }
        Ok(())
    }
}

extern "C" fn do_nothing(_: libc::c_int) {}

extern "C" fn note_term(_: libc::c_int) {
    TERM_CAME.store(true, Ordering::SeqCst);
    let epoll = TERM_EPOLL.load(Ordering::SeqCst);
    if epoll < 0 {
        return;
    }
    let saved = Errno::last_raw();
    let events = (EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT).bits().cast_unsigned();
    let mut event = libc::epoll_event { events, u64: TERM_TOKEN.load(Ordering::SeqCst) };
    let number = TERM_EVENT.load(Ordering::SeqCst);
    // SAFETY: the call reads one event from a live local. Numbers that mean something else by now are refused, as the entry
    // is found by its number and its file.
    if unsafe { libc::epoll_ctl(epoll, libc::EPOLL_CTL_MOD, number, &raw mut event) } != 0 {
        // A handler has closed what the worker stands on. It was asked to end, and can't do so in order.
        // SAFETY: takes a number and does not return.
        unsafe { libc::_exit(1) };
    }
    Errno::set_raw(saved);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_process_orders_workers_by_the_signals_of_job_control() {
        let number = |signal: libc::c_int| u32::try_from(signal).unwrap();
        let table = [
            (libc::SIGTTIN, libc::SI_KERNEL, true),
            (libc::SIGTTOU, libc::SI_KERNEL, true),
            (libc::SIGTTIN, libc::SI_USER, false),
            (libc::SIGTTOU, libc::SI_QUEUE, false),
            (libc::SIGTTOU, libc::SI_TKILL, false),
            // Ctrl-C is the terminal's word too, and an order.
            (libc::SIGINT, libc::SI_KERNEL, false),
            (libc::SIGHUP, libc::SI_KERNEL, false),
        ];
        for (signal, code, is_passed_over) in table {
            assert_eq!(is_job_control(number(signal), code), is_passed_over, "signal {signal}, code {code}");
        }
    }
}
