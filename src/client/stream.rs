//! One connection to a server, TCP or Unix, whose reads and writes end at a deadline.
//!
//! `connect` makes streams, the client in `mod.rs` uses them. Bytes only: nothing here knows what a call is.

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};

/// The least that a buffer grows by. It at most doubles, so an announced length alone takes no memory.
const STEP: usize = 64 * 1024;

/// The moment when waiting ends; without one it never does.
#[derive(Debug, Clone, Copy)]
pub(super) struct Deadline(Option<Instant>);

impl Deadline {
    /// A time that no clock reaches counts as none.
    pub(super) fn after(time: Option<Duration>) -> Self {
        Self(time.and_then(|time| Instant::now().checked_add(time)))
    }

    /// What is left, never zero; `None` without a deadline.
    pub(super) fn left(self) -> Result<Option<Duration>, Broken> {
        let Some(end) = self.0 else { return Ok(None) };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() { Err(Broken::TimedOut) } else { Ok(Some(left)) }
    }
}

/// How a read or write ended that did not do all it should, sorted by what follows from it.
#[derive(Debug)]
pub(super) enum Broken {
    TimedOut,
    /// The server has hung up, politely or not.
    Closed,
    Io(io::Error),
}

impl From<io::Error> for Broken {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            // A socket's own time limit shows as EAGAIN.
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Broken::TimedOut,
            io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionAborted
            | io::ErrorKind::BrokenPipe
            | io::ErrorKind::NotConnected
            | io::ErrorKind::UnexpectedEof => Broken::Closed,
            _ => Broken::Io(error),
        }
    }
}

#[derive(Debug)]
pub(super) enum Stream {
    Tcp(TcpStream),
    Unix(UnixStream),
}

impl Stream {
    /// True while nothing has arrived, neither bytes nor the end: the state that a connection rests in between
    /// calls. Asks the socket without waiting or taking anything.
    pub(super) fn is_at_rest(&self) -> bool {
        let mut byte = [0];
        recv(self.descriptor(), &mut byte, MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT) == Err(Errno::EAGAIN)
    }

    /// After an error the last byte was not handed over: whoever reads the other end has not got all of `bytes`.
    pub(super) fn write_all(&mut self, mut bytes: &[u8], deadline: Deadline) -> Result<(), Broken> {
        while !bytes.is_empty() {
            let left = deadline.left()?;
            let wrote = match self {
                Stream::Tcp(socket) => socket.set_write_timeout(left).and_then(|()| socket.write(bytes)),
                Stream::Unix(socket) => socket.set_write_timeout(left).and_then(|()| socket.write(bytes)),
            };
            match wrote {
                Ok(count) => bytes = bytes.get(count..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// The next `count` bytes.
    pub(super) fn read_exactly(&mut self, count: usize, deadline: Deadline) -> Result<Vec<u8>, Broken> {
        let mut bytes = Vec::new();
        while bytes.len() < count {
            let had = bytes.len();
            bytes.resize(count.min(had + STEP.max(had)), 0);
            let room = bytes.get_mut(had..).unwrap_or_default();
            let left = deadline.left()?;
            let read = match self {
                Stream::Tcp(socket) => socket.set_read_timeout(left).and_then(|()| socket.read(room)),
                Stream::Unix(socket) => socket.set_read_timeout(left).and_then(|()| socket.read(room)),
            };
            let arrived = match read {
                Ok(0) => return Err(Broken::Closed),
                Ok(arrived) => arrived,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
                Err(error) => return Err(error.into()),
            };
            bytes.truncate(had + arrived);
        }
        Ok(bytes)
    }

    fn descriptor(&self) -> RawFd {
        match self {
            Stream::Tcp(socket) => socket.as_raw_fd(),
            Stream::Unix(socket) => socket.as_raw_fd(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        (Stream::Unix(ours), theirs)
    }

    fn soon() -> Deadline {
        Deadline::after(Some(Duration::from_millis(1)))
    }

    #[test]
    fn a_stream_is_at_rest_until_bytes_or_the_end_arrive() {
        let (stream, mut peer) = pair();
        assert!(stream.is_at_rest());
        peer.write_all(b"x").expect("room for a byte");
        assert!(!stream.is_at_rest());

        let (stream, peer) = pair();
        drop(peer);
        assert!(!stream.is_at_rest());
    }

    #[test]
    fn a_read_that_gets_too_little_ends_at_its_deadline() {
        let (mut stream, mut peer) = pair();
        peer.write_all(b"abc").expect("room for three bytes");
        assert!(matches!(stream.read_exactly(4, soon()), Err(Broken::TimedOut)));
    }

    #[test]
    fn a_write_that_nobody_reads_ends_at_its_deadline() {
        let (mut stream, _peer) = pair();
        assert!(matches!(stream.write_all(&vec![0; 16 << 20], soon()), Err(Broken::TimedOut)));
    }

    #[test]
    fn a_peer_that_is_gone_is_closed_and_no_error_of_the_system() {
        let (mut stream, peer) = pair();
        drop(peer);
        assert!(matches!(stream.write_all(b"x", Deadline::after(None)), Err(Broken::Closed)));
        assert!(matches!(stream.read_exactly(1, Deadline::after(None)), Err(Broken::Closed)));
    }

    #[test]
    fn a_time_beyond_every_clock_is_no_deadline() {
        assert!(matches!(Deadline::after(Some(Duration::MAX)).left(), Ok(None)));
        assert!(matches!(Deadline::after(Some(Duration::ZERO)).left(), Err(Broken::TimedOut)));
    }

    #[test]
    fn a_long_read_comes_back_whole() {
        let (mut stream, mut peer) = pair();
        let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        let writer = std::thread::spawn({
            let sent = sent.clone();
            move || peer.write_all(&sent)
        });
        assert_eq!(stream.read_exactly(sent.len(), Deadline::after(None)).expect("all of it"), sent);
        writer.join().expect("no panic").expect("all written");
    }
}
