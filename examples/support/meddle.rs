//! What handlers do to descriptors that aren't theirs, for `rig`: closing them, putting others in their place, opening
//! many, writing to the line.

use std::fs::{File, read_dir, read_link};
use std::io::{IoSlice, Read};
use std::os::fd::{AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::process::Command;

use nix::errno::Errno;
use nix::libc;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::socket::{ControlMessage, MsgFlags, SockType, getsockopt, sendmsg, sockopt};
use serde::Deserialize;
use tine::{BoxError, Call, Error};

/// What a descriptor is.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Line,
    Listener,
    Connection,
    Epoll,
    Event,
    Other,
}

#[allow(unsafe_code)]
fn kind_of(number: RawFd) -> Kind {
    let link = read_link(format!("/proc/self/fd/{number}")).unwrap_or_default();
    match link.to_str() {
        Some("anon_inode:[eventpoll]") => return Kind::Epoll,
        Some("anon_inode:[eventfd]") => return Kind::Event,
        _ => {}
    }
    // SAFETY: the number was open a moment ago; one that is closed meanwhile makes the questions fail.
    let fd = unsafe { BorrowedFd::borrow_raw(number) };
    match getsockopt(&fd, sockopt::SockType) {
        Ok(SockType::SeqPacket) => Kind::Line,
        Ok(_) if getsockopt(&fd, sockopt::AcceptConn) == Ok(true) => Kind::Listener,
        Ok(_) => Kind::Connection,
        Err(_) => Kind::Other,
    }
}

fn open_numbers() -> Result<Vec<RawFd>, Error> {
    let open = read_dir("/proc/self/fd").map_err(Error::internal)?;
    Ok(open.flatten().filter_map(|fd| fd.file_name().to_str()?.parse().ok()).collect())
}

/// Closes the sockets by which this worker talks to its supervisor, as a handler does that closes what isn't its own.
pub(super) fn deafen(call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<(), Error> {
    meddle(call, Meddle { with: Kind::Line, how: How::Close }).map(drop)
}

#[derive(Deserialize)]
pub(super) struct Meddle {
    with: Kind,
    how: How,
}

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum How {
    Close,
    /// By a file that is no socket.
    Replace,
}

/// Closes or replaces all descriptors of a kind; answers how many there were.
#[allow(unsafe_code)]
pub(super) fn meddle(_call: &Call<'_>, Meddle { with, how }: Meddle) -> Result<usize, Error> {
    let null = File::open("/dev/null").map_err(Error::internal)?;
    let mut met = 0;
    for number in open_numbers()?.into_iter().filter(|number| kind_of(*number) == with) {
        met += 1;
        // SAFETY: none is meant: this is what a broken handler does. Whoever owns the number finds something else there,
        // or nothing, which for these kinds is an error of the next call and no access to memory.
        unsafe {
            match how {
                How::Close => libc::close(number),
                How::Replace => libc::dup2(null.as_raw_fd(), number),
            };
        }
    }
    Ok(met)
}

#[derive(Deserialize)]
pub(super) struct Open {
    count: usize,
}

/// Opens descriptors and keeps them for good, as a handler does that leaks; answers the highest number.
pub(super) fn open(_call: &Call<'_>, Open { count }: Open) -> Result<RawFd, Error> {
    let mut highest = 0;
    for _ in 0..count {
        highest = highest.max(File::open("/dev/null").map_err(Error::internal)?.into_raw_fd());
    }
    Ok(highest)
}

/// Every number that is open in this worker and that `select` can wait for, but for the standard streams.
pub(super) fn selectable(_call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<Vec<String>, Error> {
    let what = |number: &RawFd| read_link(format!("/proc/self/fd/{number}")).ok();
    let low = open_numbers()?.into_iter().filter(|number| (3..1024).contains(number));
    // The folder that is read here is gone by now.
    Ok(low.filter_map(|number| Some(format!("{number}: {}", what(&number)?.display()))).collect())
}

#[derive(Deserialize)]
pub(super) struct Tell {
    text: String,
    descriptors: usize,
    times: usize,
}

/// Writes to the line what isn't its to write, with descriptors.
#[allow(unsafe_code)]
pub(super) fn tell(_call: &Call<'_>, Tell { text, descriptors, times }: Tell) -> Result<usize, Error> {
    let line = open_numbers()?.into_iter().find(|number| kind_of(*number) == Kind::Line);
    let line = line.ok_or_else(|| Error::internal("there is no line"))?;
    let null = File::open("/dev/null").map_err(Error::internal)?;
    let numbers = vec![null.as_raw_fd(); descriptors];
    for _ in 0..times {
        loop {
            let sent = sendmsg::<()>(
                line,
                &[IoSlice::new(text.as_bytes())],
                &[ControlMessage::ScmRights(&numbers)],
                MsgFlags::MSG_NOSIGNAL,
                None,
            );
            match sent {
                Ok(_) => break,
                Err(Errno::EAGAIN | Errno::ETOOMANYREFS) => std::thread::yield_now(),
                Err(errno) => return Err(Error::internal(errno)),
            }
        }
    }
    Ok(times)
}

/// The soft descriptor limit: in this process, in a child by `fork`, in a program that such a child executes, and in one that
/// is started by `posix_spawn`.
pub(super) fn limits(_call: &Call<'_>, _params: Option<serde_json::Value>) -> Result<[u64; 4], Error> {
    limits_of_children().map_err(Error::internal)
}

fn limits_of_children() -> Result<[u64; 4], BoxError> {
    let (here, _) = getrlimit(Resource::RLIMIT_NOFILE)?;
    let spawned = Command::new("sh").args(["-c", "ulimit -Sn"]).output()?.stdout;
    let spawned = String::from_utf8(spawned)?.trim().parse()?;
    Ok([here, in_fork(&[])?, in_fork(&[c"/bin/sh", c"-c", c"ulimit -Sn >&1"])?, spawned])
}

/// What a child by `fork` says of its limit, or the program that it executes.
#[allow(unsafe_code)]
fn in_fork(program: &[&std::ffi::CStr]) -> Result<u64, BoxError> {
    let (mut from, to) = std::io::pipe()?;
    let to = OwnedFd::from(to);
    let mut arguments: Vec<_> = program.iter().map(|word| word.as_ptr()).collect();
    arguments.push(std::ptr::null());
    // SAFETY: the child calls nothing but functions that are async-signal-safe, on what was made before it.
    unsafe {
        if libc::fork() == 0 {
            if program.is_empty() {
                let mut limit = std::mem::zeroed::<libc::rlimit>();
                libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit);
                let mut digits = [0_u8; 20];
                let mut rest = limit.rlim_cur;
                for digit in digits.iter_mut().rev() {
                    *digit = b'0' + u8::try_from(rest % 10).unwrap_or_default();
                    rest /= 10;
                }
                libc::write(to.as_raw_fd(), digits.as_ptr().cast(), digits.len());
            } else {
                libc::dup2(to.as_raw_fd(), 1);
                libc::execv(arguments[0], arguments.as_ptr());
            }
            libc::_exit(0);
        }
    }
    drop(to);
    let mut said = String::new();
    from.read_to_string(&mut said)?;
    Ok(said.trim().parse()?)
}
