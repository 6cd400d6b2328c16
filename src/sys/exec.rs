//! Starting this very program again: how a template comes to be.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::process::{Forked, fork, reset_signals};

/// The running program as it was started: its file, held open so that a later file of the same name cannot
/// take its place, and its arguments.
#[derive(Debug)]
pub(crate) struct Program {
    file: File,
    arguments: Vec<CString>,
}

impl Program {
    /// Records the running program.
    pub(crate) fn current() -> io::Result<Self> {
        let file = File::open("/proc/self/exe")?;
        let arguments = std::env::args_os().map(c_string).collect::<io::Result<_>>()?;
        Ok(Self { file, arguments })
    }

    /// Forks and executes the program anew with the same arguments, with `line` left open and its number in
    /// the environment variable `variable`. The child is killed by the kernel when this process dies.
    ///
    /// Returns in the parent only; where the execution fails, `explain` runs in the child, which then ends.
    pub(crate) fn start(
        &self,
        variable: &str,
        line: &OwnedFd,
        explain: impl FnOnce(&OwnedFd, &io::Error),
    ) -> io::Result<Pid> {
        let mut environment: Vec<CString> = std::env::vars_os()
            .filter(|(name, _)| name != variable)
            .map(|(mut entry, value)| {
                entry.push("=");
                entry.push(value);
                c_string(entry)
            })
            .collect::<io::Result<_>>()?;
        environment.push(c_string(format!("{variable}={}", line.as_raw_fd()).into())?);
        let parent = nix::unistd::getpid();
        match fork()? {
            Forked::Parent { child } => Ok(child),
            Forked::Child => {
                let error = self.become_it(line, parent, &environment);
                explain(line, &error);
                super::process::exit_now(127)
            }
        }
    }

    /// Only returns when it failed.
    fn become_it(&self, line: &OwnedFd, parent: Pid, environment: &[CString]) -> io::Error {
        let prepared = || -> nix::Result<()> {
            reset_signals();
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the request took effect; then nobody would ever end us.
            if getppid() != parent {
                super::process::exit_now(0);
            }
            fcntl(line, FcntlArg::F_SETFD(FdFlag::empty()))?;
            nix::unistd::execveat(
                &self.file,
                c"",
                &self.arguments,
                environment,
                nix::fcntl::AtFlags::AT_EMPTY_PATH,
            )
            .map(|never| match never {})
        };
        prepared().err().map_or_else(|| io::Error::other("execveat returned"), io::Error::from)
    }
}

/// Takes the descriptor whose number a parent left in the environment variable `variable`, and removes the
/// variable so that no child of ours mistakes itself for what we are. `None` where the variable is not set.
///
/// Call it before any thread is started: the environment is not safe to change afterwards.
pub(crate) fn take_inherited(variable: &str) -> Option<io::Result<OwnedFd>> {
    let value = std::env::var_os(variable)?;
    // SAFETY: the process has one thread here, as the function's contract asks, so nobody reads the
    // environment at the same time.
    unsafe { std::env::remove_var(variable) };
    let number: Option<RawFd> = value.to_str().and_then(|text| text.parse().ok());
    let Some(number) = number.filter(|number| *number > 2) else {
        return Some(Err(io::Error::other(format!(
            "{variable}: expected a descriptor's number, found {}",
            value.display()
        ))));
    };
    Some(claim(number))
}

fn claim(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFL on any number is harmless; it only tells whether the descriptor is open.
    if unsafe { nix::libc::fcntl(number, nix::libc::F_GETFL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and was left for us alone by the parent that named it in our environment.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(fd)
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
