//! One socket to a server, TCP or Unix, on which every wait ends at a deadline.
//!
//! `connect` makes streams; `connection` shares one among threads, `http` has one for itself. Bytes only: nothing here
//! knows what a call is. Sending and receiving never block, only `wait` does, so that a thread can wait for both at once.

use std::io;
use std::net::TcpStream;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::socket::{MsgFlags, Shutdown, recv, send, shutdown};
use nix::sys::time::TimeSpec;

/// Longer than anybody waits at a time, and within what the kernel takes; who wants more looks again.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

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

    pub(super) fn moment(self) -> Option<Instant> {
        self.0
    }

    pub(super) fn or_sooner(self, other: Self) -> Self {
        Self(match (self.0, other.0) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        })
    }
}

/// How an attempt ended that did not do all it should, sorted by what follows from it.
#[derive(Debug)]
pub(super) enum Broken {
    TimedOut,
    /// The server has hung up, politely or not.
    Closed,
    Io(io::Error),
}

impl From<Errno> for Broken {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ETIMEDOUT | Errno::ECONNRESET | Errno::ECONNABORTED | Errno::EPIPE | Errno::ENOTCONN => {
                Broken::Closed
            }
            errno => Broken::Io(errno.into()),
        }
    }
}

#[derive(Debug)]
pub(super) struct Stream(OwnedFd);

impl From<TcpStream> for Stream {
    fn from(socket: TcpStream) -> Self {
        Self(socket.into())
    }
}

impl From<UnixStream> for Stream {
    fn from(socket: UnixStream) -> Self {
        Self(socket.into())
    }
}

impl Stream {
    /// Hands bytes to the system, as many as it takes now; 0 when it takes none.
    pub(super) fn send(&self, bytes: &[u8]) -> Result<usize, Broken> {
        loop {
            match send(self.0.as_raw_fd(), bytes, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(0),
                sent => return Ok(sent?),
            }
        }
    }

    /// Takes what has arrived, as much as there is room for; `None` when that is nothing. `Closed` is the end.
    pub(super) fn receive(&self, room: &mut [u8]) -> Result<Option<usize>, Broken> {
        loop {
            match recv(self.0.as_raw_fd(), room, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(Broken::Closed),
                Ok(count) => return Ok(Some(count)),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Waits until there may be something to receive (`POLLIN`) or room to send (`POLLOUT`).
    pub(super) fn wait(&self, wanted: PollFlags, deadline: Deadline) -> Result<(), Broken> {
        loop {
            let left = deadline.left()?;
            let mut sockets = [PollFd::new(self.0.as_fd(), wanted)];
            match ppoll(&mut sockets, Some(TimeSpec::from(left.unwrap_or(LONGEST).min(LONGEST))), None) {
                // The loop's next turn says whether this was the deadline.
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(Broken::Io(errno.into())),
            }
        }
    }

    /// Sends all of it. After an error the last byte was not handed over: whoever reads the other end lacks some.
    pub(super) fn send_all(&self, mut bytes: &[u8], deadline: Deadline) -> Result<(), Broken> {
        while !bytes.is_empty() {
            deadline.left()?;
            match self.send(bytes)? {
                0 => self.wait(PollFlags::POLLOUT, deadline)?,
                count => bytes = bytes.get(count..).unwrap_or_default(),
            }
        }
        Ok(())
    }

    /// Waits for bytes and takes them.
    pub(super) fn receive_some(&self, room: &mut [u8], deadline: Deadline) -> Result<usize, Broken> {
        loop {
            self.wait(PollFlags::POLLIN, deadline)?;
            if let Some(count) = self.receive(room)? {
                return Ok(count);
            }
        }
    }

    /// Ends both directions, which wakes whoever waits. The descriptor stays until the last user is gone.
    pub(super) fn hang_up(&self) {
        // An error says that the other side has done so already.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    fn pair() -> (Stream, UnixStream) {
        let (ours, theirs) = UnixStream::pair().expect("a socket pair");
        (ours.into(), theirs)
    }

    fn soon() -> Deadline {
        Deadline::after(Some(Duration::from_millis(1)))
    }

    fn never() -> Deadline {
        Deadline::after(None)
    }

    #[test]
    fn nothing_arrived_bytes_and_the_end_are_told_apart() {
        let (stream, mut peer) = pair();
        let mut room = [0; 8];
        assert!(matches!(stream.receive(&mut room), Ok(None)));
        assert!(matches!(stream.receive_some(&mut room, soon()), Err(Broken::TimedOut)));
        peer.write_all(b"abc").expect("room for three bytes");
        assert!(matches!(stream.receive_some(&mut room, never()), Ok(3)));
        drop(peer);
        assert!(matches!(stream.receive(&mut room), Err(Broken::Closed)));
        assert!(matches!(stream.receive_some(&mut room, never()), Err(Broken::Closed)));
    }

    #[test]
    fn what_nobody_reads_ends_at_its_deadline() {
        let (stream, _peer) = pair();
        assert!(matches!(stream.send_all(&vec![0; 16 << 20], soon()), Err(Broken::TimedOut)));
        assert!(matches!(stream.send(b"x"), Ok(0)));
    }

    #[test]
    fn a_peer_that_is_gone_is_closed_and_no_error_of_the_system() {
        let (stream, peer) = pair();
        drop(peer);
        assert!(matches!(stream.send_all(b"x", never()), Err(Broken::Closed)));
    }

    #[test]
    fn hanging_up_wakes_who_waits() {
        let (stream, mut peer) = pair();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| stream.receive_some(&mut [0; 8], never()));
            stream.hang_up();
            assert!(matches!(waiting.join().expect("no panic"), Err(Broken::Closed)));
        });
        assert!(matches!(peer.read(&mut [0; 1]), Ok(0)));
    }

    #[test]
    fn a_time_beyond_every_clock_is_no_deadline() {
        assert!(matches!(Deadline::after(Some(Duration::MAX)).left(), Ok(None)));
        assert!(matches!(Deadline::after(Some(Duration::ZERO)).left(), Err(Broken::TimedOut)));
    }

    #[test]
    fn the_sooner_of_two_deadlines_holds_and_none_is_the_latest() {
        let (early, late) =
            (Deadline::after(Some(Duration::from_secs(1))), Deadline::after(Some(Duration::from_secs(9))));
        for (one, two, sooner) in
            [(early, late, early), (late, early, early), (early, never(), early), (never(), late, late)]
        {
            assert_eq!(one.or_sooner(two).moment(), sooner.moment());
        }
        assert_eq!(never().or_sooner(never()).moment(), None);
    }
}
