//! Starting this very program again, or what has taken its place: how a template comes to be, and how a process goes on as
//! another program.

use std::collections::BTreeSet;
use std::ffi::{CString, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use super::process::{Forked, fork, reset_signals};

/// What is read of a file to see whether it is a script: as much of its first line as the kernel looks at.
const FIRST_LINE: usize = 256;

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
        const RUNNING: &str = "/proc/self/exe";
        let file = File::open(RUNNING).map_err(|error| {
            io::Error::new(error.kind(), format!("{RUNNING} can't be opened (is /proc mounted?): {error}"))
        })?;
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

    /// A program that was held open by what ran in this process before.
    pub(crate) fn inherited(file: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let arguments = std::env::args_os().map(c_string).collect::<io::Result<_>>()?;
        Ok(Self { file: file.into(), path, arguments })
    }

    /// Whether this process runs from that very file.
    pub(crate) fn runs_here(&self) -> bool {
        is_same(Path::new("/proc/self/exe"), &self.file).unwrap_or(true)
    }

    /// Whether it is the very file that `other` is.
    pub(crate) fn is(&self, other: &Self) -> bool {
        let file = |program: &Self| program.file.metadata().map(|file| (file.dev(), file.ino()));
        matches!((file(self), file(other)), (Ok(this), Ok(other)) if this == other)
    }

    /// Has this process go on as the program, with its pid, its children, its signal mask, and those descriptors that are
    /// not closed on exec. `variable` is set to `number` in its environment.
    ///
    /// Only returns when it failed; then nothing has changed.
    pub(crate) fn take_place(&self, variable: &str, number: RawFd) -> io::Error {
        let environment = match environment_with(variable, number) {
            Ok(environment) => environment,
            Err(error) => return error,
        };
        self.not_executed(self.execute(&environment))
    }

    /// What the kernel calls a process that was started by its path.
    pub(crate) fn name(&self) -> Option<CString> {
        CString::new(self.path.file_name()?.as_bytes()).ok()
    }

    /// Where it was found.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Forks and executes the program anew with the same arguments, with `channel` left open and its number in
    /// the environment variable `variable`. The child is killed by the kernel when this process dies.
    ///
    /// Returns in the parent only; where the execution fails, `explain` runs in the child, which then ends.
    pub(crate) fn start(
        &self,
        variable: &str,
        channel: &OwnedFd,
        explain: impl FnOnce(&OwnedFd, &io::Error),
    ) -> io::Result<Pid> {
        let environment = environment_with(variable, channel.as_raw_fd())?;
        let parent = nix::unistd::getpid();
        match fork()? {
            Forked::Parent { child } => Ok(child),
            Forked::Child => {
                let error = self.become_it(channel, parent, &environment);
                explain(channel, &error);
                super::process::exit_now(127)
            }
        }
    }

    fn execute(&self, environment: &[CString]) -> nix::Result<()> {
        let flags = nix::fcntl::AtFlags::AT_EMPTY_PATH;
        nix::unistd::execveat(&self.file, c"", &self.arguments, environment, flags)
            .map(|never| match never {})
    }

    /// Only returns when it failed.
    fn become_it(&self, channel: &OwnedFd, parent: Pid, environment: &[CString]) -> io::Error {
        let prepared = || -> nix::Result<()> {
            reset_signals();
            // User code and what it starts have no part in the job control of the terminal that the supervisor has.
            nix::unistd::setsid()?;
            nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?;
            // The parent may have died before the request took effect; then nobody would ever end us.
            if getppid() != parent {
                super::process::exit_now(0);
            }
            fcntl(channel, FcntlArg::F_SETFD(FdFlag::empty()))?;
            self.execute(environment)
        };
        self.not_executed(prepared())
    }

    /// Why the program was not executed, with its path. The kernel says of a script only that something was not found: it
    /// executes the interpreter, and tells that to open the script by a descriptor that is closed by then.
    fn not_executed(&self, executed: nix::Result<()>) -> io::Error {
        let path = self.path.display();
        let Err(errno) = executed else {
            return io::Error::other(format!("{path}: execveat returned"));
        };
        let error = io::Error::from(errno);
        if error.kind() != io::ErrorKind::NotFound {
            return io::Error::new(error.kind(), format!("{path}: {error}"));
        }
        let mut start = [0; FIRST_LINE];
        let read = self.file.read_at(&mut start, 0).unwrap_or(0);
        let start = start.get(..read).unwrap_or_default();
        let why = match start.strip_prefix(b"#!") {
            Some(_) => {
                let line = start.split(|byte| *byte == b'\n').next().unwrap_or_default();
                let line = String::from_utf8_lossy(line);
                format!(
                    "{path}: expected a program, found a script ({}). A running service executes the file by its descriptor, \
                     which an interpreter can't open. Put the program itself there, or restart the service through the script",
                    line.trim_end().escape_debug()
                )
            }
            None => format!("{path}: {error}: the loader that the program names is not on this system"),
        };
        io::Error::new(error.kind(), why)
    }
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// This process's environment, with `variable` set to `number`.
fn environment_with(variable: &str, number: RawFd) -> io::Result<Vec<CString>> {
    let mut environment: Vec<CString> = std::env::vars_os()
        .filter(|(name, _)| name != variable)
        .map(|(mut entry, value)| {
            entry.push("=");
            entry.push(value);
            c_string(entry)
        })
        .collect::<io::Result<_>>()?;
    environment.push(c_string(format!("{variable}={number}").into())?);
    Ok(environment)
}

/// Says whether a descriptor is still open after this process has become another program.
pub(crate) fn stays_open(fd: impl AsFd, stays: bool) -> io::Result<()> {
    let flags = if stays { FdFlag::empty() } else { FdFlag::FD_CLOEXEC };
    fcntl(fd, FcntlArg::F_SETFD(flags))?;
    Ok(())
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
    forget_variable(variable);
    let number: Option<RawFd> = value.to_str().and_then(|text| text.parse().ok());
    let Some(number) = number.filter(|number| *number > 2) else {
        return Some(Err(io::Error::other(format!(
            "{variable}: expected a descriptor's number, found {}",
            value.display()
        ))));
    };
    Some(claim(number).and_then(|fd| {
        let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
        fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(fd)
    }))
}

/// Takes a variable out of the environment, and blanks it where the kernel shows the one that this process began with
/// (`/proc/PID/environ`). The process must have one thread.
fn forget_variable(variable: &str) {
    let Ok(name) = CString::new(variable) else { return };
    // SAFETY: getenv reads the environment, which nobody changes meanwhile in a process with one thread.
    let value = unsafe { nix::libc::getenv(name.as_ptr()) };
    if value.is_null() {
        return;
    }
    // SAFETY: getenv returned a text that ends in a zero byte.
    let length = unsafe { nix::libc::strlen(value) };
    // SAFETY: the process has one thread here, as the function's contract asks, so nobody reads the environment at the same
    // time.
    unsafe { std::env::remove_var(variable) };
    let head = variable.len() + 1;
    // SAFETY: `variable=` and the value are one piece of writable memory, to which nothing refers any more: to remove a
    // variable takes out the reference to it and frees nothing.
    unsafe { value.sub(head).write_bytes(0, head + length) };
}

/// Descriptors that what ran in this process before has left open, each of which is taken once.
#[derive(Debug, Default)]
pub(crate) struct LeftOpen {
    taken: BTreeSet<RawFd>,
}

impl LeftOpen {
    /// The descriptor of this number, closed on exec from now on.
    ///
    /// # Errors
    ///
    /// There is none, or it was taken before, or it is one of the standard streams.
    pub(crate) fn take(&mut self, number: RawFd) -> io::Result<OwnedFd> {
        if number <= 2 || !self.taken.insert(number) {
            return Err(io::Error::other(format!("descriptor {number} is not there to be taken")));
        }
        claim(number)
    }
}

fn claim(number: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: F_GETFL on any number is harmless; it only tells whether the descriptor is open.
    if unsafe { nix::libc::fcntl(number, nix::libc::F_GETFL) } == -1 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the descriptor is open and was left for us alone, by the parent that named it in our environment or by what
    // ran in this process before and named it in what it left; callers see to it that each is taken once.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(fd)
}

fn c_string(text: OsString) -> io::Result<CString> {
    CString::new(text.into_vec()).map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))
}
