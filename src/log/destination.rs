//! Standard error, written to such that nobody ever waits for whoever reads it.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};

use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::write;

use crate::sys::descriptors;

/// Standard error, opened or guarded such that a write can't block.
#[derive(Debug)]
pub(super) enum Destination {
    /// A description of our own, non-blocking: to set the flag on the inherited one would change it for
    /// everybody who shares it, such as the shell.
    Own(File),
    /// The inherited descriptor is a socket, which takes that wish with each message.
    Socket,
    /// The inherited descriptor: a file or device that does not block, or one that can't be opened again and is
    /// asked for room before each write.
    Inherited { ask_for_room: bool },
}

impl Destination {
    pub(super) fn open() -> Self {
        let stderr = io::stderr();
        // Not by opening it: a socket can't be opened.
        let kind = std::fs::metadata("/proc/self/fd/2").map(|found| found.file_type());
        if kind.as_ref().is_ok_and(FileTypeExt::is_socket) {
            return Self::Socket;
        }
        let can_block = stderr.is_terminal() || kind.map_or(true, |kind| kind.is_fifo());
        if !can_block {
            return Self::Inherited { ask_for_room: false };
        }
        let opened =
            OpenOptions::new().append(true).custom_flags(O_NONBLOCK | O_NOCTTY).open("/proc/self/fd/2");
        let own = |file: File| Self::Own(descriptors::control(file.into()).into());
        opened.map_or(Self::Inherited { ask_for_room: true }, own)
    }

    pub(super) fn write_line(&self, line: &[u8]) -> bool {
        loop {
            match self.try_write(line) {
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn try_write(&self, line: &[u8]) -> nix::Result<usize> {
        let stderr = io::stderr();
        match self {
            Self::Own(file) => write(file, line),
            Self::Socket => send(stderr.as_raw_fd(), line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
            Self::Inherited { ask_for_room: true } if !has_room(stderr.as_fd()) => Err(Errno::EAGAIN),
            Self::Inherited { .. } => write(stderr, line),
        }
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut wanted = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}
