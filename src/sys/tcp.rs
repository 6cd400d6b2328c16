//! How far a TCP connection's input and output have gone, by the kernel's own count.
//!
//! Whoever takes over a connection of a process that died asks here: the dead process may have received or sent more than
//! it came to write down, and the kernel knows. What the bytes mean is not known here.
//!
//! The kernel has no counter of what was read or written. It has two counters of the wire (`struct tcp_info`, tcp(7)) and
//! the lengths of the two queues, and from those it follows:
//!
//! ```text
//! taken = received by the kernel − waiting to be read − 1 once the peer's FIN has arrived
//! sent  = acknowledged by the peer + waiting to be acknowledged − 1 once our FIN was sent
//! ```
//!
//! A FIN takes a place in either sequence. The counters and the lengths can't be read in one call, and between two calls a
//! segment may come in, so both are read until nothing has moved in between.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use nix::errno::Errno;
use nix::libc;

use super::socket::queued;

/// How often the counters are read until they stand still. A peer can move them with each segment it sends, and none
/// can send so many while a process makes two system calls.
const ATTEMPTS: usize = 1_000;

/// How far a connection has gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Progress {
    /// Bytes of input that have been taken out of the receive queue, since the connection began.
    pub(crate) taken: u64,
    /// Bytes of output that have been handed to the kernel, since the connection began.
    pub(crate) sent: u64,
    /// Both directions are over: by a reset, or after both FINs.
    pub(crate) is_over: bool,
}

/// Where the fields of `struct tcp_info` are that are read here (Linux 4.2 and later): they have no place in libc's.
mod field {
    pub(super) const STATE: usize = 0;
    pub(super) const BYTES_ACKED: usize = 120;
    pub(super) const BYTES_RECEIVED: usize = 128;
    pub(super) const END: usize = 136;
}

/// The states of a connection (`enum` in the kernel's `net/tcp_states.h`) that tell of a FIN.
mod state {
    pub(super) const FIN_WAIT1: u8 = 4;
    pub(super) const FIN_WAIT2: u8 = 5;
    pub(super) const TIME_WAIT: u8 = 6;
    pub(super) const CLOSE: u8 = 7;
    pub(super) const CLOSE_WAIT: u8 = 8;
    pub(super) const LAST_ACK: u8 = 9;
    pub(super) const CLOSING: u8 = 11;
}

/// What one look at `struct tcp_info` found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Counters {
    state: u8,
    acked: u64,
    received: u64,
}

/// How far the connection has gone, when nobody else reads from it or writes to it.
///
/// # Errors
///
/// The descriptor is no TCP connection, the kernel is older than Linux 4.2, or the peer moves the counters without end.
pub(crate) fn progress(socket: impl AsFd) -> io::Result<Progress> {
    let socket = socket.as_fd();
    let mut before = counters(socket)?;
    for _ in 0..ATTEMPTS {
        let unacknowledged = queue(socket, libc::TIOCOUTQ)?;
        let unread = queue(socket, libc::FIONREAD)?;
        let after = counters(socket)?;
        if after == before {
            return Ok(before.progress(unacknowledged, unread));
        }
        before = after;
    }
    Err(io::Error::other(format!("the counters of the connection did not stand still in {ATTEMPTS} looks")))
}

impl Counters {
    fn progress(self, unacknowledged: u64, unread: u64) -> Progress {
        let (peers_fin, our_fin) = (u64::from(self.has_peers_fin()), u64::from(self.has_our_fin()));
        Progress {
            taken: self.received.saturating_sub(unread).saturating_sub(peers_fin),
            sent: self.acked.saturating_add(unacknowledged).saturating_sub(our_fin),
            is_over: matches!(self.state, state::CLOSE | state::TIME_WAIT),
        }
    }

    fn has_peers_fin(self) -> bool {
        matches!(self.state, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING | state::TIME_WAIT)
    }

    fn has_our_fin(self) -> bool {
        matches!(
            self.state,
            state::FIN_WAIT1 | state::FIN_WAIT2 | state::LAST_ACK | state::CLOSING | state::TIME_WAIT
        )
    }
}

fn queue(socket: BorrowedFd<'_>, request: libc::Ioctl) -> io::Result<u64> {
    let bytes = queued(socket, request).ok_or_else(io::Error::last_os_error)?;
    Ok(u64::try_from(bytes).unwrap_or(0))
}

fn counters(socket: BorrowedFd<'_>) -> io::Result<Counters> {
    let mut info = [0_u8; field::END];
    let mut length = libc::socklen_t::try_from(info.len()).unwrap_or_default();
    // SAFETY: the kernel writes at most `length` bytes through the pointer, which is the array's own length, and how many
    // it wrote through the other, which points to a live local.
    Errno::result(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            info.as_mut_ptr().cast(),
            &raw mut length,
        )
    })?;
    if (length as usize) < field::END {
        return Err(io::Error::other(format!(
            "expected {} bytes of TCP_INFO, found {length}: the kernel must be Linux 4.2 or later",
            field::END
        )));
    }
    let word = |at: usize| {
        info.get(at..).and_then(<[u8]>::first_chunk).map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    Ok(Counters {
        state: info.get(field::STATE).copied().unwrap_or_default(),
        acked: word(field::BYTES_ACKED),
        received: word(field::BYTES_RECEIVED),
    })
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener, TcpStream};

    use nix::sys::socket::{MsgFlags, send, setsockopt, sockopt};

    use super::*;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (server, _) = listener.accept().unwrap();
        setsockopt(&server, sockopt::OobInline, &true).unwrap();
        (server, client)
    }

    fn of(socket: &TcpStream) -> (u64, u64) {
        let progress = progress(socket).unwrap();
        (progress.taken, progress.sent)
    }

    fn await_readable(socket: &TcpStream) {
        let mut wanted = [nix::poll::PollFd::new(socket.as_fd(), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut wanted, nix::poll::PollTimeout::NONE).unwrap();
    }

    #[test]
    fn what_was_read_and_written_is_counted_and_nothing_else() {
        let (mut server, mut client) = pair();
        assert_eq!(of(&server), (0, 0));
        client.write_all(b"ten bytes.").unwrap();
        await_readable(&server);
        assert_eq!(of(&server), (0, 0), "it waits in the queue");
        server.read_exact(&mut [0; 4]).unwrap();
        server.write_all(b"seven..").unwrap();
        assert_eq!(of(&server), (4, 7));
        client.read_exact(&mut [0; 7]).unwrap();
        server.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(of(&server), (10, 7));
    }

    #[test]
    fn a_fin_of_the_peer_is_no_byte() {
        let (mut server, mut client) = pair();
        client.write_all(b"ten bytes.").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        await_readable(&server);
        server.read_exact(&mut [0; 4]).unwrap();
        // The FIN may still be on its way when the data is here.
        while counters(server.as_fd()).unwrap().state != state::CLOSE_WAIT {
            std::thread::yield_now();
        }
        assert_eq!(of(&server), (4, 0));
        server.read_exact(&mut [0; 6]).unwrap();
        assert_eq!(of(&server), (10, 0), "all bytes read, the FIN not");
        assert_eq!(server.read(&mut [0; 6]).unwrap(), 0);
        assert_eq!(of(&server), (10, 0), "the FIN read");
        server.write_all(b"answer").unwrap();
        assert_eq!(of(&server), (10, 6));
    }

    #[test]
    fn our_fin_is_no_byte_acknowledged_or_not() {
        let (mut server, mut client) = pair();
        server.write_all(b"last words").unwrap();
        server.shutdown(Shutdown::Write).unwrap();
        assert_eq!(of(&server), (0, 10));
        let mut all = Vec::new();
        client.read_to_end(&mut all).unwrap();
        assert_eq!(of(&server), (0, 10));
        client.write_all(b"x").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        await_readable(&server);
        server.read_exact(&mut [0; 1]).unwrap();
        while !progress(&server).unwrap().is_over {
            std::thread::yield_now();
        }
    }

    #[test]
    fn output_that_the_peer_does_not_take_is_counted_as_far_as_the_kernel_took_it() {
        let (mut server, mut client) = pair();
        server.set_nonblocking(true).unwrap();
        let mut sent = 0;
        while let Ok(count) = server.write(&vec![7; 100_000]) {
            sent += count as u64;
        }
        assert_eq!(of(&server), (0, sent));
        let mut some = vec![0; 50_000];
        client.read_exact(&mut some).unwrap();
        assert_eq!(of(&server), (0, sent));
    }

    #[test]
    fn urgent_data_is_a_part_of_the_stream() {
        let (mut server, mut client) = pair();
        client.write_all(b"ab").unwrap();
        assert_eq!(send(client.as_raw_fd(), b"!", MsgFlags::MSG_OOB), Ok(1));
        client.write_all(b"cd").unwrap();
        let mut read = [0; 5];
        for (index, byte) in read.iter_mut().enumerate() {
            server.read_exact(std::slice::from_mut(byte)).unwrap();
            assert_eq!(of(&server).0, index as u64 + 1);
        }
        assert_eq!(&read, b"ab!cd");
    }

    #[test]
    fn a_connection_that_was_reset_is_over() {
        let (server, client) = pair();
        setsockopt(&client, sockopt::Linger, &libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
        drop(client);
        await_readable(&server);
        assert!(progress(&server).unwrap().is_over);
    }

    #[test]
    fn what_is_no_tcp_connection_is_an_error() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        assert!(progress(&socket).is_err());
    }
}
