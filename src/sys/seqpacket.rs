//! Socket pairs that keep message boundaries and carry descriptors: the ground that lines stand on.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, sendmsg,
    socketpair,
};

/// Descriptors one message can carry: the kernel's `SCM_MAX_FD`.
pub(crate) const MOST_DESCRIPTORS: usize = 253;

/// Not in `libc`. The number is Linux's own; of its architectures PA-RISC alone, for which there is no std, differs.
const F_SETSIG: libc::c_int = 10;

/// What a receive found.
#[derive(Debug)]
pub(crate) enum Packet {
    Message {
        length: usize,
        /// Those at the end are missing when this process has no room for them (EMFILE).
        descriptors: Vec<OwnedFd>,
        /// Its bytes did not fit.
        cut_short: bool,
    },
    /// Nothing has arrived.
    Nothing,
    /// No process holds the other end any more.
    Closed,
}

/// Two connected ends, non-blocking and closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags)?)
}

/// Sends one message whole or not at all; `WouldBlock` when the other end's queue is full.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control = if raw.is_empty() { &[][..] } else { &rights[..] };
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    loop {
        match sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(bytes)], control, flags, None) {
            Err(Errno::EINTR) => {}
            other => return Ok(other.map(drop)?),
        }
    }
}

/// Has the kernel kill this process as soon as the other end of `fd` is closed or sends anything, until
/// [`live_on`]. For a process that runs code which may never return, so that it can't look for itself.
pub(crate) fn die_with_other_end(fd: BorrowedFd<'_>) -> io::Result<()> {
    let this_process = nix::unistd::getpid().as_raw();
    // SAFETY: F_SETOWN takes a number and touches no memory.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETOWN, this_process) })?;
    // SAFETY: as above. SIGKILL rather than the default SIGIO, which that code may have a handler for.
    Errno::result(unsafe { libc::fcntl(fd.as_raw_fd(), F_SETSIG, libc::SIGKILL) })?;
    set_signalling(fd, true)?;
    // What happened before it was armed raises no signal.
    let mut wanted = [PollFd::new(fd, PollFlags::empty())];
    poll(&mut wanted, PollTimeout::ZERO)?;
    if wanted.iter().any(|other_end| other_end.any() == Some(true)) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    Ok(())
}

/// Takes [`die_with_other_end`] back.
pub(crate) fn live_on(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_signalling(fd, false)
}

fn set_signalling(fd: BorrowedFd<'_>, on: bool) -> io::Result<()> {
    let mut flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    flags.set(OFlag::O_ASYNC, on);
    fcntl(fd, FcntlArg::F_SETFL(flags))?;
    Ok(())
}

/// Receives one message into `buffer`.
pub(crate) fn receive(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Packet> {
    let mut control = nix::cmsg_space!([std::os::fd::RawFd; MOST_DESCRIPTORS]);
    let mut slices = [IoSliceMut::new(buffer)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
    let message = loop {
        match recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => return Ok(Packet::Nothing),
            // Told once, when the other end was closed with messages unread, and before what it sent, which still
            // waits here behind the error.
            Err(Errno::ECONNRESET) => {}
            other => break other?,
        }
    };
    let mut descriptors = Vec::new();
    if let Ok(controls) = message.cmsgs() {
        for control in controls {
            if let ControlMessageOwned::ScmRights(received) = control {
                for raw in received {
                    // SAFETY: the kernel has just installed this descriptor in our table for this message, so
                    // it is open and nobody else owns it.
                    descriptors.push(unsafe { OwnedFd::from_raw_fd(raw) });
                }
            }
        }
    }
    // Zero bytes are the end of the connection: lines never send an empty message.
    if message.bytes == 0 && descriptors.is_empty() {
        return Ok(Packet::Closed);
    }
    let cut_short = message.flags.contains(MsgFlags::MSG_TRUNC);
    Ok(Packet::Message { length: message.bytes, descriptors, cut_short })
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn a_message_arrives_whole_with_its_descriptors() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"hello", &[there.as_fd(), here.as_fd()]).unwrap();
        let mut buffer = [0; 64];
        let Packet::Message { length, descriptors, cut_short } = receive(there.as_fd(), &mut buffer).unwrap()
        else {
            panic!("expected a message");
        };
        assert_eq!((&buffer[..length], descriptors.len(), cut_short), (&b"hello"[..], 2, false));
        assert!(matches!(receive(there.as_fd(), &mut buffer).unwrap(), Packet::Nothing));
    }

    #[test]
    fn a_message_that_does_not_fit_says_so() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"longer than four", &[]).unwrap();
        assert!(matches!(
            receive(there.as_fd(), &mut [0; 4]).unwrap(),
            Packet::Message { cut_short: true, length: 4, .. }
        ));
    }

    #[test]
    fn the_other_end_closing_is_seen_after_what_it_sent() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"last words", &[]).unwrap();
        drop(here);
        let mut buffer = [0; 64];
        assert!(matches!(receive(there.as_fd(), &mut buffer).unwrap(), Packet::Message { length: 10, .. }));
        assert!(matches!(receive(there.as_fd(), &mut buffer).unwrap(), Packet::Closed));
    }

    #[test]
    fn what_the_other_end_sent_arrives_although_it_left_without_reading() {
        let (here, there) = pair().unwrap();
        send(here.as_fd(), b"never read", &[]).unwrap();
        send(there.as_fd(), b"last words", &[]).unwrap();
        drop(there);
        let mut buffer = [0; 64];
        assert!(matches!(receive(here.as_fd(), &mut buffer).unwrap(), Packet::Message { length: 10, .. }));
        assert!(matches!(receive(here.as_fd(), &mut buffer).unwrap(), Packet::Closed));
    }

    #[test]
    fn a_full_queue_is_an_error_not_a_wait() {
        let (here, _there) = pair().unwrap();
        let error = (0..100_000).find_map(|_| send(here.as_fd(), &[1; 4096], &[]).err()).unwrap();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }
}
