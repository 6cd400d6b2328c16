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

use super::look_up;
use super::stream::{Deadline, Stream};
use crate::config::{Address, Endpoint};

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

/// What one of several addresses gets at least, while there is so much: below it a slow network would look dead.
const LEAST_SHARE: Duration = Duration::from_secs(2);

/// Connects, a few times if nobody listens yet. `pause` waits for as long as it is told.
pub(super) fn connect(
    target: &Endpoint,
    deadline: Deadline,
    mut pause: impl FnMut(Duration),
) -> io::Result<Stream> {
    let mut failures = 0;
    loop {
        let Some(left) = remaining(deadline) else { return Err(io::ErrorKind::TimedOut.into()) };
        // Each time anew: the name may stand for another machine by now.
        let error = match look_up::addresses(target, left).and_then(|found| open_any(&found, deadline)) {
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
    if passes_by_itself(kind) { PAUSES.get(failures).copied().filter(|pause| *pause < left) } else { None }
}

fn passes_by_itself(kind: io::ErrorKind) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, NotFound};
    matches!(kind, ConnectionRefused | NotFound | Interrupted)
}

/// Connects to the first address that takes it. The error is the first one that may pass, or else the first: a machine without
/// IPv6 says of each such address that it can't be reached, and the caller is to read of the other.
fn open_any(addresses: &[Address], deadline: Deadline) -> io::Result<Stream> {
    let mut first: Option<io::Error> = None;
    for (index, address) in addresses.iter().enumerate() {
        let Some(left) = remaining(deadline) else { break };
        match open(address, share(left, addresses.len() - index)) {
            Ok(stream) => return Ok(stream),
            Err(error) => {
                let says_more =
                    |known: &io::Error| passes_by_itself(error.kind()) && !passes_by_itself(known.kind());
                if first.as_ref().is_none_or(says_more) {
                    first = Some(error);
                }
            }
        }
    }
    Err(first.unwrap_or_else(|| io::ErrorKind::TimedOut.into()))
}

/// What one of so many addresses may take of the time that is left, so that one that swallows packets leaves some to the others.
fn share(left: Duration, addresses: usize) -> Duration {
    let equal = left / u32::try_from(addresses).unwrap_or(u32::MAX).max(1);
    equal.max(LEAST_SHARE).min(left)
}

fn open(target: &Address, left: Duration) -> io::Result<Stream> {
    match target {
        Address::Tcp(address) => {
            let socket = TcpStream::connect_timeout(address, left)?;
            if socket.local_addr()? == socket.peer_addr()? {
                // Nobody listens at a port that the kernel gives to callers, and it gave that very port to this one.
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
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

        fn target(&self) -> Endpoint {
            format!("unix:{}", self.0.display()).parse().expect("a path")
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
    fn one_address_leaves_time_to_the_others() {
        let secs = Duration::from_secs;
        for (left, addresses, expected) in [
            (secs(10), 1, secs(10)),
            (secs(10), 2, secs(5)),
            (secs(10), 5, secs(2)),
            (secs(10), 50, secs(2)),
            (secs(1), 50, secs(1)),
        ] {
            assert_eq!(share(left, addresses), expected, "{left:?} for {addresses}");
        }
    }

    // A name for ::1 and 127.0.0.1, with a server at one of them alone, was tried at the other.
    #[test]
    fn every_address_is_tried_and_the_error_that_may_pass_is_told() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        let here = Address::Tcp(listener.local_addr().expect("bound"));
        let nowhere = SocketPath::new();
        let missing = Address::Unix(nowhere.0.clone());
        let too_long = Address::Unix("x".repeat(200).into());
        let soon = || Deadline::after(Some(Duration::from_secs(60)));
        assert!(open_any(&[too_long.clone(), missing.clone(), here], soon()).is_ok());
        let error = open_any(&[too_long.clone(), missing], soon()).expect_err("nobody is there");
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        let error = open_any(&[too_long], soon()).expect_err("nobody is there");
        assert_ne!(error.kind(), io::ErrorKind::NotFound);
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
