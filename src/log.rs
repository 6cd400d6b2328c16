//! The log: lines to standard error that never make anyone wait.
//!
//! Every process of the service sets this up for itself, after it was forked or executed. A line that standard
//! error does not take at once is dropped and counted; the next one that gets through says how many were lost.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tracing_subscriber::fmt::MakeWriter;

use crate::config::{Log, LogFormat};

/// The longest line: what a pipe takes whole or not at all (`PIPE_BUF`).
const LONGEST_LINE: usize = 4096;

static DROPPED: AtomicU64 = AtomicU64::new(0);
static DROPPED_AND_TOLD: AtomicU64 = AtomicU64::new(0);

/// Begins to log as the configuration says. A subscriber that the program has set itself stays in place.
pub(crate) fn init(config: &Log) {
    let destination = Destination::open();
    let builder = tracing_subscriber::fmt()
        .with_max_level(config.level)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(destination);
    let _ = match config.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Lines that this process has dropped so far.
pub(crate) fn dropped_lines() -> u64 {
    DROPPED.load(Ordering::Relaxed)
}

/// Standard error, opened or guarded such that a write can't block.
#[derive(Debug)]
enum Destination {
    /// A description of our own, non-blocking: to set the flag on the inherited one would change it for
    /// everybody who shares it, such as the shell.
    Own(File),
    /// The inherited descriptor: a file or device that does not block, or one that can't be opened again and is
    /// asked for room before each write.
    Inherited { ask_for_room: bool },
}

impl Destination {
    fn open() -> Self {
        let stderr = io::stderr();
        let kind =
            File::open("/proc/self/fd/2").and_then(|file| file.metadata()).map(|found| found.file_type());
        let can_block = stderr.is_terminal() || kind.map_or(true, |kind| kind.is_fifo() || kind.is_socket());
        if !can_block {
            return Self::Inherited { ask_for_room: false };
        }
        let opened = OpenOptions::new().append(true).custom_flags(O_NONBLOCK).open("/proc/self/fd/2");
        opened.map_or(Self::Inherited { ask_for_room: true }, Self::Own)
    }

    fn write_line(&self, line: &[u8]) -> bool {
        let stderr = io::stderr();
        let (fd, ask): (BorrowedFd<'_>, bool) = match self {
            Self::Own(file) => (file.as_fd(), false),
            Self::Inherited { ask_for_room } => (stderr.as_fd(), *ask_for_room),
        };
        if ask && !has_room(fd) {
            return false;
        }
        loop {
            match nix::unistd::write(fd, line) {
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut wanted = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// Writes one line; made anew for each.
struct LineWriter<'a>(&'a Destination);

impl<'a> MakeWriter<'a> for Destination {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self)
    }
}

impl Write for LineWriter<'_> {
    /// Takes everything, written or not: there is nobody to whom an error of the log could be told.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        tell_of_dropped(self.0);
        let written = if line.len() <= LONGEST_LINE {
            self.0.write_line(line)
        } else {
            self.0.write_line(&shortened(line))
        };
        if !written {
            DROPPED.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn tell_of_dropped(destination: &Destination) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    let told = DROPPED_AND_TOLD.load(Ordering::Relaxed);
    if dropped > told {
        let line = format!("({} log lines were dropped: standard error did not take them)\n", dropped - told);
        if destination.write_line(line.as_bytes()) {
            DROPPED_AND_TOLD.store(dropped, Ordering::Relaxed);
        }
    }
}

fn shortened(line: &[u8]) -> Vec<u8> {
    const ENDING: &[u8] = "… (cut)\n".as_bytes();
    let text = String::from_utf8_lossy(line);
    let room = LONGEST_LINE - ENDING.len();
    let kept = (0..=room).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
    let mut short = text.as_bytes().get(..kept).unwrap_or_default().to_vec();
    short.extend_from_slice(ENDING);
    short
}
