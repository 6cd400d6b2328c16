//! One non-blocking socket to the server, TCP or Unix. Nothing here waits.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, connect,
    getpeername, getsockname, getsockopt, recv, send, setsockopt, socket, sockopt,
};

use crate::config::Address;

#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

impl Socket {
    /// Begins to connect. When the socket becomes writable, [`Self::connected`] says how it went.
    pub(super) fn open(target: &Address) -> io::Result<Self> {
        match target {
            Address::Tcp(address) => {
                let family = if address.is_ipv6() { AddressFamily::Inet6 } else { AddressFamily::Inet };
                let socket = Self::of(family)?;
                setsockopt(&socket.0, sockopt::TcpNoDelay, &true)?;
                socket.begin(&SockaddrStorage::from(*address))
            }
            Address::Unix(path) => Self::of(AddressFamily::Unix)?.begin(&UnixAddr::new(path)?),
        }
    }

    fn of(family: AddressFamily) -> io::Result<Self> {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        Ok(Self(socket(family, SockType::Stream, flags, None)?))
    }

    fn begin(self, address: &dyn SockaddrLike) -> io::Result<Self> {
        match connect(self.0.as_raw_fd(), address) {
            // A connect that a signal interrupts goes on as one that is in progress does.
            Ok(()) | Err(Errno::EINPROGRESS | Errno::EINTR) => Ok(self),
            // A Unix socket says EAGAIN for a full backlog, and nothing is in progress.
            Err(error) => Err(error.into()),
        }
    }

    /// What became of connecting.
    pub(super) fn connected(&self) -> io::Result<()> {
        match getsockopt(&self.0, sockopt::SocketError)? {
            0 if self.is_connected_to_itself()? => Err(io::ErrorKind::ConnectionRefused.into()),
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }

    /// Nobody listens at a port that the kernel gives to callers, and it gave that very port to this socket.
    fn is_connected_to_itself(&self) -> io::Result<bool> {
        let own: SockaddrStorage = getsockname(self.0.as_raw_fd())?;
        let is_tcp = own.as_sockaddr_in().is_some() || own.as_sockaddr_in6().is_some();
        Ok(is_tcp && own == getpeername::<SockaddrStorage>(self.0.as_raw_fd())?)
    }

    /// Takes what has arrived: `Ok(None)` when nothing has, 0 bytes at the end.
    pub(super) fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<usize>> {
        taken(|| recv(self.0.as_raw_fd(), buffer, MsgFlags::empty()))
    }

    /// Sends as much as the socket takes, which may be nothing.
    pub(super) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        taken(|| send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_NOSIGNAL)).map(Option::unwrap_or_default)
    }
}

fn taken(mut action: impl FnMut() -> nix::Result<usize>) -> io::Result<Option<usize>> {
    loop {
        return match action() {
            Ok(count) => Ok(Some(count)),
            Err(Errno::EAGAIN) => Ok(None),
            Err(Errno::EINTR) => continue,
            Err(error) => Err(error.into()),
        };
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
