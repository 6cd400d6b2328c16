//! Starting this very program again, or what has taken its place: how a template comes to be.

use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::process::{Forked, fork, reset_signals};

/// A program to execute: its file, held open so that a later file of the same name cannot take its place, and the
/// arguments that this process was started with.
#[derive(Debug)]
pub(crate) struct Program {
    file: File,
    /// Where the running program was found when it was started. A symbolic link is kept as such.
    path: PathBuf,
    arguments: Vec<CString>,
}

impl Program {
    /// Records the running program.
    pub(crate) fn current() -> io::Result<Self> {
        let file = File::open("/proc/self/exe")?;
        let arguments = std::env::args_os().map(c_string).collect::<io::Result<_>>()?;
        let path = match path_as_started(&file) {
            Some(path) => path,
            None => std::env::current_exe()?,
        };
        Ok(Self { file, path, arguments })
    }

    /// What the path now leads to, which may be another program than the one that runs.
    ///
    /// # Errors
    ///
    /// Nothing is there, or nothing that this user may read. The error names the path.
    pub(crate) fn found_now(&self) -> io::Result<Self> {
        let file = File::open(&self.path)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", self.path.display())))?;
        Ok(Self { file, path: self.path.clone(), arguments: self.arguments.clone() })
    }

    /// Where it was found.
    pub(crate) fn path(&self) -> &Path {
        &self.path
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

/// The path by which a shell, or whoever executed the running program, found `file`: from it alone another file can be
/// found when a deployment has put one there, or has turned a link to it.
fn path_as_started(file: &File) -> Option<PathBuf> {
    let called = PathBuf::from(std::env::args_os().next()?);
    let is_it = |path: &PathBuf| is_same(path, file).unwrap_or(false);
    if called.components().count() > 1 || called.is_absolute() {
        return std::path::absolute(called).ok().filter(is_it);
    }
    let folders = std::env::var_os("PATH")?;
    let found = std::env::split_paths(&folders).map(|folder| folder.join(&called)).find(is_it)?;
    std::path::absolute(found).ok()
}

fn is_same(path: &Path, file: &File) -> io::Result<bool> {
    let (found, expected) = (std::fs::metadata(path)?, file.metadata()?);
    Ok((found.dev(), found.ino()) == (expected.dev(), expected.ino()))
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
