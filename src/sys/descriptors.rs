//! Where this program's own descriptors lie, and how it is noticed that somebody else has closed one.
//!
//! The kernel gives whoever opens something the lowest free number. What a worker stands on therefore lies out of the way,
//! from 1,024 on: `select` can't wait for a number above that, so the low ones are left to handlers and their libraries,
//! and a handler that closes a number twice hits its own.
//!
//! ```text
//! 0 … 1023          the standard streams, whatever handlers and libraries open, a connection for the moment of its accept
//! 1024 … 1535       control: channel, epoll, events, listeners, the log
//! 1536 …            connections
//! ```
//!
//! So `accept` returns no number of a control descriptor, even of one that was closed, while a low one is free. Each
//! connection gets a number that is free by this program's own book, not only by the kernel's: one whose descriptor
//! a handler has closed shares its number with no other connection. Where the limit leaves no room above, control
//! descriptors lie at its end and connections anywhere.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use nix::errno::Errno;
use nix::sys::stat::fstat;
use parking_lot::Mutex;
use rustix::io::fcntl_dupfd_cloexec;

use super::limits;

/// The numbers that `select` can wait for: `FD_SETSIZE`.
const SELECTABLE: u64 = 1024;

/// Numbers for control descriptors: some ten, and as many listeners as one message brings.
const CONTROL: u64 = 512;

/// As many where there is little room.
const CONTROL_AT_LEAST: u64 = 64;

/// Where descriptors go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Layout {
    control: RawFd,
    /// None where they stay where they are.
    connections: Option<RawFd>,
}

impl Layout {
    /// In a process that may have this many open.
    fn of(limit: u64) -> Self {
        let raw = |number: u64| RawFd::try_from(number).unwrap_or(RawFd::MAX);
        if limit > SELECTABLE + CONTROL {
            return Self { control: raw(SELECTABLE), connections: Some(raw(SELECTABLE + CONTROL)) };
        }
        let at_end = limit - CONTROL_AT_LEAST.min(limit / 4);
        Self { control: raw(at_end.min(SELECTABLE)), connections: None }
    }

    fn here() -> Self {
        static HERE: OnceLock<Layout> = OnceLock::new();
        *HERE.get_or_init(|| Self::of(limits::descriptors()))
    }
}

/// How many connections of `wanted` lie below 1,024, where a library's `select` has an open number less for each; None if
/// that makes no difference, as no number is above.
pub(crate) fn crowd_out_select(limit: u64, wanted: u64) -> bool {
    limit > SELECTABLE && limit < SELECTABLE + CONTROL + wanted
}

/// Moves a descriptor among the control descriptors. Where the kernel has no number for it there it stays where it is.
pub(crate) fn control(fd: OwnedFd) -> OwnedFd {
    let Layout { control, connections } = Layout::here();
    let is_there = fd.as_raw_fd() >= control && connections.is_none_or(|end| fd.as_raw_fd() < end);
    if is_there {
        return fd;
    }
    fcntl_dupfd_cloexec(&fd, control).unwrap_or(fd)
}

/// Has the kernel's table made large enough for so many connections. While a process has one thread that is done at once;
/// later each growth waits until all processors have taken note.
pub(crate) fn make_room(any: impl AsFd, connections: usize) {
    /// What a table of a quarter of a megabyte has room for.
    const MOST: usize = 30_000;
    let Some(first) = Layout::here().connections else { return };
    let last = RawFd::try_from(connections.min(MOST)).unwrap_or_default().saturating_add(first);
    // It is closed at once, and the table stays.
    let _ = fcntl_dupfd_cloexec(any, last);
}

/// Which numbers this process holds connections at.
#[derive(Debug)]
struct Book {
    /// A bit for each number.
    taken: Vec<u64>,
    /// No number below this word is free, from the first that connections get on.
    full_below: usize,
}

static BOOK: Mutex<Book> = Mutex::new(Book { taken: Vec::new(), full_below: 0 });

impl Book {
    /// The lowest number from `first` on that is not taken.
    fn next(&mut self, first: RawFd) -> RawFd {
        let first = usize::try_from(first).unwrap_or_default();
        let mut word = self.full_below.max(first / 64);
        while self.taken.get(word) == Some(&u64::MAX) {
            word += 1;
        }
        self.full_below = word;
        let bits = self.taken.get(word).copied().unwrap_or_default();
        let number = word * 64 + bits.trailing_ones() as usize;
        RawFd::try_from(number.max(first)).unwrap_or(RawFd::MAX)
    }

    /// False if it was taken: then somebody has closed it, or the kernel would not give it out.
    fn take(&mut self, number: RawFd) -> bool {
        let (word, bit) = place(number);
        if self.taken.len() <= word {
            self.taken.resize(word + 1, 0);
        }
        let Some(word) = self.taken.get_mut(word) else { return true };
        let is_new = *word & bit == 0;
        *word |= bit;
        is_new
    }

    fn is_taken(&self, number: RawFd) -> bool {
        let (word, bit) = place(number);
        self.taken.get(word).is_some_and(|word| word & bit != 0)
    }

    fn give_back(&mut self, number: RawFd) {
        let (at, bit) = place(number);
        if let Some(word) = self.taken.get_mut(at) {
            *word &= !bit;
            self.full_below = self.full_below.min(at);
        }
    }
}

fn place(number: RawFd) -> (usize, u64) {
    let number = usize::try_from(number).unwrap_or_default();
    (number / 64, 1 << (number % 64))
}

/// The descriptor of a connection. Its number is no other connection's while this is there, whoever has closed it.
#[derive(Debug)]
pub(crate) struct Descriptor {
    fd: ManuallyDrop<OwnedFd>,
    /// Whether the book has its number.
    is_booked: bool,
}

impl Drop for Descriptor {
    /// Closes it and gives its number back under one lock. As soon as it is closed the kernel may give the number to another
    /// thread's `accept`. Without the lock that thread could still find the number taken, and would think that a connection was lost.
    fn drop(&mut self) {
        let number = self.fd.as_raw_fd();
        let book = self.is_booked.then(|| BOOK.lock());
        // SAFETY: it is dropped only here, and nothing uses it afterwards.
        unsafe { ManuallyDrop::drop(&mut self.fd) };
        if let Some(mut book) = book {
            book.give_back(number);
        }
    }
}

impl Descriptor {
    /// Moves a connection's descriptor out of the way.
    ///
    /// # Errors
    ///
    /// `EBADF` when the kernel gave it the number of a connection that is still held, which somebody must have closed.
    pub(crate) fn of_connection(fd: OwnedFd) -> io::Result<Self> {
        let Some(first) = Layout::here().connections else {
            return Self::at(fd);
        };
        let next = {
            let mut book = BOOK.lock();
            if book.is_taken(fd.as_raw_fd()) {
                drop(book);
                return Err(lost_connection());
            }
            book.next(first)
        };
        match fcntl_dupfd_cloexec(&fd, next) {
            Ok(moved) => Self::at(moved),
            // Nothing is free up there; it is served where it is.
            Err(rustix::io::Errno::MFILE | rustix::io::Errno::INVAL | rustix::io::Errno::NOMEM) => {
                Self::at(fd)
            }
            // Closed by somebody in the moment since it was accepted.
            Err(_) => Err(lost_connection()),
        }
    }

    fn at(fd: OwnedFd) -> io::Result<Self> {
        let number = fd.as_raw_fd();
        let is_new = BOOK.lock().take(number);
        if !is_new {
            return Err(lost_connection());
        }
        Ok(Self { fd: ManuallyDrop::new(fd), is_booked: true })
    }
}

#[cfg(test)]
impl From<OwnedFd> for Descriptor {
    fn from(fd: OwnedFd) -> Self {
        Self { fd: ManuallyDrop::new(fd), is_booked: false }
    }
}

impl AsFd for Descriptor {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What a descriptor refers to, to be told from what may have taken its number. Not for events and epoll, which all look
/// alike.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    device: u64,
    inode: u64,
}

impl Identity {
    pub(crate) fn of(fd: impl AsFd) -> io::Result<Self> {
        let found = fstat(fd)?;
        Ok(Self { device: found.st_dev, inode: found.st_ino })
    }

    /// Whether the number still refers to it.
    pub(crate) fn is_still(self, fd: impl AsFd) -> bool {
        Self::of(fd).is_ok_and(|found| found == self)
    }
}

/// What a worker does when something that it stands on is gone; it does not return.
static WHEN_LOST: OnceLock<WhenLost> = OnceLock::new();

/// Is given the name of what was lost, and the error that told.
type WhenLost = Box<dyn Fn(&str, &io::Error) + Send + Sync>;

/// Has `then` called when something is lost. The first that says so is heard.
pub(crate) fn when_lost(then: WhenLost) {
    let _ = WHEN_LOST.set(then);
}

/// Looks at the error of an operation on one of this process's own descriptors. In a worker this does not return where it
/// means that the descriptor was closed, or refers to something else by now.
pub(crate) fn lost_by(what: &str, error: &io::Error) {
    if means_lost(error) {
        lost(what, error);
    }
}

/// A descriptor of this process was closed or replaced.
pub(crate) fn lost(what: &str, error: &io::Error) {
    if let Some(then) = WHEN_LOST.get() {
        then(what, error);
    }
}

fn lost_connection() -> io::Error {
    let error = Errno::EBADF.into();
    lost("a connection", &error);
    error
}

/// As [`lost_by`], for a connection, where other errors are the network's.
pub(crate) fn lost_by_connection(error: &io::Error) {
    if matches!(error.raw_os_error().map(Errno::from_raw), Some(Errno::EBADF | Errno::ENOTSOCK)) {
        lost("a connection", error);
    }
}

/// What no operation on the right kind of descriptor fails with: it is closed, no socket, a socket of another kind, or (for
/// `epoll`) not the one that was added.
fn means_lost(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw),
        Some(
            Errno::EBADF
                | Errno::ENOTSOCK
                | Errno::EINVAL
                | Errno::EOPNOTSUPP
                | Errno::EISCONN
                | Errno::EDESTADDRREQ
                | Errno::EPROTOTYPE
                | Errno::ENOENT
                | Errno::EPERM
                | Errno::EISDIR
                | Errno::ESPIPE
        )
    )
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    #[test]
    fn control_descriptors_lie_above_what_select_reaches_and_below_connections_where_there_is_room() {
        let cases = [
            (1_048_576, 1024, Some(1536)),
            (1_537, 1024, Some(1536)),
            (1_536, 1024, None),
            (1_100, 1024, None),
            (1_024, 960, None),
            (256, 192, None),
            (100, 75, None),
            (0, 0, None),
        ];
        for (limit, control, connections) in cases {
            assert_eq!(Layout::of(limit), Layout { control, connections }, "{limit}");
        }
    }

    #[test]
    fn a_number_is_given_out_once_until_it_is_given_back() {
        let mut book = Book { taken: Vec::new(), full_below: 0 };
        for expected in 1536..1800 {
            let next = book.next(1536);
            assert_eq!(next, expected);
            assert!(book.take(next));
        }
        assert!(!book.take(1700), "somebody has closed what is at this number");
        book.give_back(1700);
        book.give_back(1540);
        assert_eq!(book.next(1536), 1540);
        assert!(book.take(1540) && !book.is_taken(1700) && book.is_taken(1701));
        assert_eq!(book.next(1536), 1700);
    }

    /// As in a process that may have only 1,024 open, where a connection stays at the number that it came with: the kernel gives
    /// one thread the number that another has just closed. A worker ended itself for that, and accepted connections were dropped.
    #[test]
    fn a_number_that_another_thread_has_just_closed_is_free() {
        std::thread::scope(|threads| {
            for _ in 0..4 {
                threads.spawn(|| {
                    for _ in 0..5_000 {
                        let accepted = File::open("/dev/null").unwrap();
                        Descriptor::at(accepted.into()).expect("nobody has closed a connection");
                    }
                });
            }
        });
    }

    #[test]
    fn whose_number_came_to_refer_to_something_else_is_told() {
        let (mine, other) = (File::open("/dev/null").unwrap(), File::open("/dev/zero").unwrap());
        let identity = Identity::of(&mine).unwrap();
        assert!(identity.is_still(&mine) && !identity.is_still(&other));
    }

    #[test]
    fn errors_that_pass_do_not_mean_that_a_descriptor_is_lost() {
        let lost = |errno: Errno| means_lost(&io::Error::from(errno));
        assert!(lost(Errno::EBADF) && lost(Errno::ENOTSOCK) && lost(Errno::EINVAL) && lost(Errno::ENOENT));
        for passes in
            [Errno::EAGAIN, Errno::EPIPE, Errno::ECONNRESET, Errno::ENOBUFS, Errno::EMFILE, Errno::ENOMEM]
        {
            assert!(!lost(passes), "{passes}");
        }
    }

    #[test]
    fn select_is_crowded_out_only_where_some_numbers_are_above_it() {
        for (limit, wanted, crowds) in
            [(1_048_576, 10_000, false), (4_096, 10_000, true), (1_024, 10_000, false), (1_600, 100, true)]
        {
            assert_eq!(crowd_out_select(limit, wanted), crowds, "{limit}, {wanted}");
        }
    }
}
