//! Makes a connection to a server that may just be starting again.
//!
//! The client calls this before a call is sent, so trying again can't run anything twice.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, UnixAddr, setsockopt, sockopt::SendTimeout};
use nix::sys::time::{TimeVal, TimeValLike};

use super::stream::{Deadline, Stream};
use crate::config::Address;

/// What lies between one try and the next. A server that is restarted binds again in less than their sum, and
/// a person who gave a wrong address does not feel it.
const PAUSES: [Duration; 4] = [
    Duration::from_millis(20),
    Duration::from_millis(40),
    Duration::from_millis(80),
    Duration::from_millis(160),
];

/// Longer than any connect takes, and a time that every type on the way to the kernel can hold.
const LONGEST: Duration = Duration::from_secs(3600);

/// Connects, a few times if nobody listens yet. `pause` waits for as long as it is told.
pub(super) fn connect(
    target: &Address,
    deadline: Deadline,
    mut pause: impl FnMut(Duration),
) -> io::Result<Stream> {
    let mut failures = 0;
    loop {
        let Some(left) = remaining(deadline) else { return Err(io::ErrorKind::TimedOut.into()) };
        let error = match open(target, left) {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        };
        match next_pause(failures, error.kind(), remaining(deadline).unwrap_or_default()) {
            Some(time) => pause(time),
            None => return Err(error),
        }
        failures += 1;
    }
}

/// `None` when the time is over.
fn remaining(deadline: Deadline) -> Option<Duration> {
    deadline.left().ok().map(|left| left.map_or(LONGEST, |left| left.min(LONGEST)))
}

/// How long to wait after so many failures before this one, or `None` to give up. Only what passes by itself is worth
/// another try: nobody listens, the socket file is not there yet, a signal came in between.
fn next_pause(failures: usize, kind: io::ErrorKind, left: Duration) -> Option<Duration> {
    match kind {
        io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound | io::ErrorKind::Interrupted => {
            PAUSES.get(failures).copied().filter(|pause| *pause < left)
        }
        _ => None,
    }
}

fn open(target: &Address, left: Duration) -> io::Result<Stream> {
    match target {
        Address::Tcp(address) => {
            let socket = TcpStream::connect_timeout(address, left)?;
            socket.set_nodelay(true)?;
            Ok(socket.into())
        }
        Address::Unix(path) => open_unix(path, left).map(Stream::from),
    }
}

/// As `UnixStream::connect`, but it does not wait for ever while the listener's backlog is full: there the kernel
/// keeps to the sending time limit, which can only be set between `socket` and `connect`.
fn open_unix(path: &Path, left: Duration) -> io::Result<UnixStream> {
    let socket = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    // Zero would be no limit at all.
    let limit = i64::try_from(left.as_micros()).unwrap_or(i64::MAX).max(1);
    setsockopt(&socket, SendTimeout, &TimeVal::microseconds(limit))?;
    match socket::connect(socket.as_raw_fd(), &UnixAddr::new(path)?) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(Errno::EAGAIN) => Err(io::Error::new(io::ErrorKind::TimedOut, "it accepts no connections")),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A path for a socket that goes when the test ends.
    struct SocketPath(std::path::PathBuf);

    impl SocketPath {
        fn new() -> Self {
            static MADE: AtomicU32 = AtomicU32::new(0);
            let name =
                format!("tine-connect-{}-{}", std::process::id(), MADE.fetch_add(1, Ordering::Relaxed));
            Self(std::env::temp_dir().join(name))
        }

        fn target(&self) -> Address {
            Address::Unix(self.0.clone())
        }
    }

    impl Drop for SocketPath {
        fn drop(&mut self) {
            let _ = std::fs::remove_file(&self.0);
        }
    }

    #[test]
    fn the_pauses_grow_and_end() {
        let refused = io::ErrorKind::ConnectionRefused;
        let plenty = Duration::from_secs(60);
        let ms = |ms| Some(Duration::from_millis(ms));
        for (failures, kind, left, expected) in [
            (0, refused, plenty, ms(20)),
            (3, refused, plenty, ms(160)),
            (4, refused, plenty, None),
            (0, io::ErrorKind::NotFound, plenty, ms(20)),
            (0, io::ErrorKind::PermissionDenied, plenty, None),
            (0, io::ErrorKind::TimedOut, plenty, None),
            (1, refused, Duration::from_millis(40), None),
            (1, refused, Duration::from_millis(41), ms(40)),
        ] {
            assert_eq!(next_pause(failures, kind, left), expected, "{failures} failures, {kind:?}, {left:?}");
        }
    }

    #[test]
    fn a_server_that_starts_while_the_client_tries_is_reached() {
        let path = SocketPath::new();
        let mut listener = None;
        let stream = connect(&path.target(), Deadline::after(None), |_| {
            listener = Some(UnixListener::bind(&path.0).expect("a free path"));
        });
        assert!(stream.is_ok() && listener.is_some(), "{stream:?}");
    }

    #[test]
    fn the_client_gives_up_after_its_last_pause() {
        let path = SocketPath::new();
        let mut pauses = Vec::new();
        let error = connect(&path.target(), Deadline::after(None), |pause| pauses.push(pause));
        assert_eq!(error.expect_err("nobody listens").kind(), io::ErrorKind::NotFound);
        assert_eq!(pauses, PAUSES);
    }

    #[test]
    fn a_socket_whose_backlog_is_full_is_given_up_at_the_deadline() {
        let path = SocketPath::new();
        let listener = socket::socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)
            .expect("a socket");
        let address = UnixAddr::new(&path.0).expect("a short path");
        socket::bind(listener.as_raw_fd(), &address).expect("a free path");
        socket::listen(&listener, socket::Backlog::new(0).expect("0 is a backlog")).expect("a bound socket");

        let mut waiting = Vec::new();
        let full = loop {
            match connect(&path.target(), Deadline::after(Some(Duration::from_millis(20))), |_| {}) {
                Ok(stream) => waiting.push(stream),
                Err(error) => break error,
            }
        };
        assert_eq!(full.kind(), io::ErrorKind::TimedOut, "{full}");
    }

    #[test]
    fn a_time_longer_than_the_kernel_counts_connects_as_well() {
        let path = SocketPath::new();
        let _listener = UnixListener::bind(&path.0).expect("a free path");
        let ages = Deadline::after(Some(Duration::from_secs(1 << 60)));
        assert!(connect(&path.target(), ages, |_| {}).is_ok());
    }

    #[test]
    fn a_time_that_is_over_connects_nowhere() {
        let path = SocketPath::new();
        let _listener = UnixListener::bind(&path.0).expect("a free path");
        let late = connect(&path.target(), Deadline::after(Some(Duration::ZERO)), |_| {});
        assert_eq!(late.expect_err("no time").kind(), io::ErrorKind::TimedOut);
    }
}
