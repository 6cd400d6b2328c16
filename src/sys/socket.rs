//! Sockets that serve calls: listeners, accepted connections, and what the kernel knows about them.
//!
//! Used by the supervisor (binding) and the worker (accepting, receiving, sending). Every receive and send
//! carries `MSG_DONTWAIT`, so nothing here can block whatever mode a descriptor was left in by others.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{
    AddressFamily, Backlog, Shutdown, SockFlag, SockType, SockaddrLike, SockaddrStorage, UnixAddr, bind,
    connect, getsockname, getsockopt, listen, setsockopt, shutdown, socket, sockopt,
};
use nix::sys::stat::{Mode, fchmod, umask};
// The two calls that are made for every message go to the kernel straight: libc's are cancellation points, which costs
// a process with threads four locked instructions each time.
use rustix::net::sockopt::set_tcp_quickack;
use rustix::net::{RecvFlags, SendFlags, recv, send};

use super::descriptors::{self, Descriptor};
use super::peer::PeerAddress;
use super::socket_file::{self, SocketFile};

/// A bound socket on which connections arrive.
#[derive(Debug)]
pub(crate) enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener),
}

/// What follows from an error of `accept`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AcceptFailure {
    /// This one connection is gone; the next may be fine.
    NextConnection,
    /// The machine is out of something (descriptors, memory): wait a little, others may free it.
    Pause,
    /// The listener itself is unusable.
    GiveUp,
}

impl Listener {
    /// Binds `address`. Connections accepted from it have Nagle's algorithm off, keep-alive probes on and urgent
    /// data in line: Linux copies these options from the listener, which spares three calls a connection.
    pub(crate) fn bind_tcp(address: SocketAddr, backlog: u32) -> io::Result<Self> {
        let listener = TcpListener::bind(address)?;
        setsockopt(&listener, sockopt::TcpNoDelay, &true)?;
        setsockopt(&listener, sockopt::KeepAlive, &true)?;
        setsockopt(&listener, sockopt::OobInline, &true)?;
        prepare(&listener, backlog)?;
        Ok(Self::Tcp(listener))
    }

    /// Binds the socket file `path`, which must not exist, with that owner and mode from the first moment that somebody can
    /// connect.
    pub(crate) fn bind_unix(
        path: &Path,
        backlog: u32,
        owner: Option<(Option<u32>, Option<u32>)>,
        mode: Option<u32>,
    ) -> io::Result<(Self, SocketFile)> {
        let folder = socket_file::folder_of(path)?;
        let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
        let bound = || bind(socket.as_raw_fd(), &UnixAddr::new(path)?);
        match mode.map(Mode::from_bits_truncate) {
            None => bound()?,
            Some(mode) => {
                // The file gets the socket's own mode without the bits of the mask, which is the whole process's.
                fchmod(&socket, mode)?;
                let before = umask(Mode::empty());
                let done = bound();
                umask(before);
                done?;
            }
        }
        let file = SocketFile::just_bound(path, folder)?;
        file.set_owner_and_mode(owner, mode)?;
        let listener = UnixListener::from(socket);
        prepare(&listener, backlog)?;
        Ok((Self::Unix(listener), file))
    }

    /// Ends listening for everybody who has this socket, such as a child that a handler has forked; what waits to be accepted is
    /// refused, but for Unix sockets.
    pub(crate) fn shut_down(&self) {
        // It was shut down before, perhaps.
        let _ = shutdown(self.as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// Whether somebody has shut it down.
    pub(crate) fn is_shut_down(&self) -> bool {
        // `nix` knows no `POLLRDHUP`, which is all that tells of a Unix socket that was shut down for receiving alone.
        let mut listener = libc::pollfd { fd: self.as_fd().as_raw_fd(), events: libc::POLLRDHUP, revents: 0 };
        // SAFETY: the pointer is to one live `pollfd`, and without a timeout nothing waits.
        let ready = unsafe { libc::poll(&raw mut listener, 1, 0) };
        ready > 0 && listener.revents & (libc::POLLRDHUP | libc::POLLHUP) != 0
    }

    /// Wraps a listener that another process bound and passed on.
    pub(crate) fn inherited(fd: OwnedFd) -> io::Result<Self> {
        let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        match name.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => Ok(Self::Tcp(TcpListener::from(fd))),
            Some(AddressFamily::Unix) => Ok(Self::Unix(UnixListener::from(fd))),
            other => {
                Err(io::Error::other(format!("expected a TCP or Unix listener, found family {other:?}")))
            }
        }
    }

    /// Changes how many connections may wait.
    pub(crate) fn set_backlog(&self, backlog: u32) -> io::Result<()> {
        set_backlog(self, backlog)
    }

    /// The address it is bound to, with the port the kernel chose where 0 was asked for.
    pub(crate) fn local_tcp_address(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr().ok(),
            Self::Unix(_) => None,
        }
    }

    /// Takes the next waiting connection; `WouldBlock` when there is none.
    pub(crate) fn accept(&self) -> io::Result<(Socket, PeerAddress)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, address) = listener.accept()?;
                Ok((Socket(Descriptor::of_connection(stream.into())?), PeerAddress::Tcp(address)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept()?;
                let credentials = getsockopt(&stream, sockopt::PeerCredentials)?;
                let peer = PeerAddress::Unix { uid: credentials.uid(), pid: credentials.pid() };
                Ok((Socket(Descriptor::of_connection(stream.into())?), peer))
            }
        }
    }
}

impl AsFd for Listener {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

/// Whether anybody listens at this socket file. Never waits: where the backlog is full somebody does.
pub(crate) fn is_listened_to(path: &Path) -> io::Result<bool> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let socket = socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    match connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) | Err(Errno::EAGAIN) => Ok(true),
        Err(Errno::ECONNREFUSED) => Ok(false),
        Err(errno) => Err(errno.into()),
    }
}

fn prepare(listener: &impl AsFd, backlog: u32) -> io::Result<()> {
    set_backlog(listener, backlog)?;
    let flags = nix::fcntl::fcntl(listener.as_fd(), nix::fcntl::FcntlArg::F_GETFL)?;
    let flags = nix::fcntl::OFlag::from_bits_retain(flags) | nix::fcntl::OFlag::O_NONBLOCK;
    nix::fcntl::fcntl(listener.as_fd(), nix::fcntl::FcntlArg::F_SETFL(flags))?;
    Ok(())
}

fn set_backlog(listener: &impl AsFd, backlog: u32) -> io::Result<()> {
    // The kernel cuts the backlog to net.core.somaxconn without an error.
    let backlog = Backlog::new(i32::try_from(backlog).unwrap_or(i32::MAX)).unwrap_or(Backlog::MAXCONN);
    Ok(listen(&listener.as_fd(), backlog)?)
}

/// Sorts an error of `accept` by what follows from it. Linux reports errors that were pending on the new
/// connection as errors of `accept` (accept(2), "Error handling"): they concern one client only.
pub(crate) fn sort_accept_error(error: &io::Error) -> AcceptFailure {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOBUFS | Errno::ENOMEM) => AcceptFailure::Pause,
        Some(Errno::EBADF | Errno::EINVAL | Errno::ENOTSOCK | Errno::EFAULT | Errno::EOPNOTSUPP) => {
            AcceptFailure::GiveUp
        }
        _ => AcceptFailure::NextConnection,
    }
}

/// An accepted connection.
#[derive(Debug)]
pub(crate) struct Socket(Descriptor);

impl Socket {
    /// A connection that another process accepted, and who is at its other end.
    ///
    /// # Errors
    ///
    /// It is no connection, or its peer is gone already.
    pub(crate) fn handed_over(fd: OwnedFd) -> io::Result<(Self, PeerAddress)> {
        let name: SockaddrStorage = getsockname(fd.as_raw_fd())?;
        let peer = match name.family() {
            Some(AddressFamily::Inet | AddressFamily::Inet6) => {
                let stream = std::net::TcpStream::from(fd);
                let peer = PeerAddress::Tcp(stream.peer_addr()?);
                return Ok((Self(Descriptor::of_connection(stream.into())?), peer));
            }
            Some(AddressFamily::Unix) => {
                let credentials = getsockopt(&fd, sockopt::PeerCredentials)?;
                PeerAddress::Unix { uid: credentials.uid(), pid: credentials.pid() }
            }
            other => {
                let text = format!("expected a TCP or Unix connection, found family {other:?}");
                return Err(io::Error::other(text));
            }
        };
        Ok((Self(Descriptor::of_connection(fd)?), peer))
    }

    /// Receives what is there; `Ok(0)` is the peer's FIN, `WouldBlock` means nothing is there now.
    pub(crate) fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let received = retry(|| recv(&self.0, &mut *buffer, RecvFlags::DONTWAIT))?;
        Ok(received.0)
    }

    /// Sends as much as the socket takes; `WouldBlock` when it takes nothing now.
    pub(crate) fn send(&self, bytes: &[u8]) -> io::Result<usize> {
        retry(|| send(&self.0, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL))
    }

    /// Has the kernel acknowledge at once what was received, which it otherwise puts off for up to 40 ms to send it with
    /// the next answer. Holds until then.
    pub(crate) fn acknowledge(&self) {
        // It would arrive all the same, only later; a Unix socket has nothing to acknowledge.
        let _ = set_tcp_quickack(&self.0, true);
    }

    /// Sends FIN after what was sent; input can still be received.
    pub(crate) fn shut_down_sending(&self) {
        // ENOTCONN means the peer has reset already: there is nobody left to tell.
        let _ = shutdown(self.0.as_fd().as_raw_fd(), Shutdown::Write);
    }

    /// Ends both directions at once, also for other holders of the descriptor.
    pub(crate) fn shut_down(&self) {
        let _ = shutdown(self.0.as_fd().as_raw_fd(), Shutdown::Both);
    }

    /// True when the peer's kernel has all that was sent and no input waits unread: closing now cannot turn
    /// the last answer into a reset.
    pub(crate) fn is_settled(&self) -> bool {
        queued(&self.0, libc::TIOCOUTQ) == Some(0) && queued(&self.0, libc::FIONREAD) == Some(0)
    }
}

#[cfg(test)]
impl Socket {
    /// A connection and its client's end.
    pub(crate) fn pair() -> (Self, std::os::unix::net::UnixStream) {
        let (here, there) = std::os::unix::net::UnixStream::pair().unwrap();
        (Self(OwnedFd::from(here).into()), there)
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> io::Result<T> {
    loop {
        match call() {
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => {
                let error = error.into();
                descriptors::lost_by_connection(&error);
                return Err(error);
            }
            Ok(done) => return Ok(done),
        }
    }
}

/// Bytes in one of the socket's queues: `TIOCOUTQ` sent and not acknowledged, `FIONREAD` received and not read.
pub(super) fn queued(fd: impl AsFd, request: libc::Ioctl) -> Option<i32> {
    let fd = fd.as_fd();
    let mut bytes: i32 = 0;
    // SAFETY: both requests write one int through the pointer, which points to a live local; the descriptor is
    // open for the whole call because `fd` borrows it.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), request, &raw mut bytes) };
    (result == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use super::*;

    fn accept_when_ready(listener: &Listener) -> (Socket, PeerAddress) {
        let mut poll = [nix::poll::PollFd::new(listener.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE).unwrap();
        listener.accept().unwrap()
    }

    #[test]
    fn an_accepted_connection_has_the_listeners_options() {
        let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let _client = TcpStream::connect(listener.local_tcp_address().unwrap()).unwrap();
        let (socket, _) = accept_when_ready(&listener);
        assert!(getsockopt(&socket, sockopt::TcpNoDelay).unwrap());
        assert!(getsockopt(&socket, sockopt::KeepAlive).unwrap());
        assert!(getsockopt(&socket, sockopt::OobInline).unwrap());
    }

    #[test]
    fn an_idle_connection_never_blocks_its_reader_and_is_settled() {
        let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let mut client = TcpStream::connect(listener.local_tcp_address().unwrap()).unwrap();
        let (socket, peer) = accept_when_ready(&listener);
        assert_eq!(peer, PeerAddress::Tcp(client.local_addr().unwrap()));
        let error = socket.receive(&mut [0; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
        assert!(socket.is_settled());
        assert_eq!(socket.send(b"abc").unwrap(), 3);
        socket.shut_down_sending();
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "abc");
        client.write_all(b"unread").unwrap();
        let mut poll = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, nix::poll::PollTimeout::NONE).unwrap();
        assert!(!socket.is_settled());
    }

    #[test]
    fn what_a_client_waits_for_to_send_the_rest_is_acknowledged_at_once() {
        let listener = Listener::bind_tcp("127.0.0.1:0".parse().unwrap(), 16).unwrap();
        let mut client = TcpStream::connect(listener.local_tcp_address().unwrap()).unwrap();
        let (socket, _) = accept_when_ready(&listener);
        for _ in 0..4 {
            client.write_all(b"call").unwrap();
            while socket.receive(&mut [0; 8]).is_err() {}
            socket.send(b"answer").unwrap();
            client.read_exact(&mut [0; 6]).unwrap();
        }
        let at_once = || rustix::net::sockopt::tcp_quickack(&socket.0).unwrap();
        assert!(!at_once(), "the kernel has seen that answers follow");
        socket.acknowledge();
        assert!(at_once());
    }

    #[test]
    fn accept_errors_are_sorted_by_consequence() {
        let sorted = |errno: Errno| sort_accept_error(&io::Error::from(errno));
        assert_eq!(sorted(Errno::ECONNABORTED), AcceptFailure::NextConnection);
        assert_eq!(sorted(Errno::EPROTO), AcceptFailure::NextConnection);
        assert_eq!(sorted(Errno::ENETDOWN), AcceptFailure::NextConnection);
        assert_eq!(sorted(Errno::EMFILE), AcceptFailure::Pause);
        assert_eq!(sorted(Errno::ENOMEM), AcceptFailure::Pause);
        assert_eq!(sorted(Errno::EINVAL), AcceptFailure::GiveUp);
    }
}
