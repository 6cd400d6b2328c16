//! The log: lines to standard error that never make anyone wait.
//!
//! Every process of the service sets this up for itself, after it was forked or executed. A line that standard
//! error does not take at once is dropped and counted; the next one that gets through says how many were lost.

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::libc::{O_NOCTTY, O_NONBLOCK};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{MsgFlags, send};
use nix::unistd::write;
use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::config::{Log, LogFormat};

/// The longest line: what a pipe takes whole or not at all (`PIPE_BUF`).
const LONGEST_LINE: usize = 4096;

/// Ends what was cut.
const CUT: &str = "… (cut)";

static DROPPED: AtomicU64 = AtomicU64::new(0);
static DROPPED_AND_TOLD: AtomicU64 = AtomicU64::new(0);

/// Begins to log as the configuration says. A subscriber that the program has set itself stays in place.
pub(crate) fn init(config: &Log) {
    let format = config.format;
    let destination = Lines { destination: Destination::open(), format };
    let builder = tracing_subscriber::fmt()
        .with_max_level(config.level)
        .with_target(false)
        .with_ansi(io::stderr().is_terminal())
        .with_writer(destination);
    let _ = match format {
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
    /// The inherited descriptor is a socket, which takes that wish with each message.
    Socket,
    /// The inherited descriptor: a file or device that does not block, or one that can't be opened again and is
    /// asked for room before each write.
    Inherited { ask_for_room: bool },
}

impl Destination {
    fn open() -> Self {
        let stderr = io::stderr();
        // Not by opening it: a socket can't be opened.
        let kind = std::fs::metadata("/proc/self/fd/2").map(|found| found.file_type());
        if kind.as_ref().is_ok_and(FileTypeExt::is_socket) {
            return Self::Socket;
        }
        let can_block = stderr.is_terminal() || kind.map_or(true, |kind| kind.is_fifo());
        if !can_block {
            return Self::Inherited { ask_for_room: false };
        }
        let opened =
            OpenOptions::new().append(true).custom_flags(O_NONBLOCK | O_NOCTTY).open("/proc/self/fd/2");
        opened.map_or(Self::Inherited { ask_for_room: true }, Self::Own)
    }

    fn write_line(&self, line: &[u8]) -> bool {
        loop {
            match self.try_write(line) {
                Ok(_) => return true,
                Err(Errno::EINTR) => {}
                Err(_) => return false,
            }
        }
    }

    fn try_write(&self, line: &[u8]) -> nix::Result<usize> {
        let stderr = io::stderr();
        match self {
            Self::Own(file) => write(file, line),
            Self::Socket => send(stderr.as_raw_fd(), line, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL),
            Self::Inherited { ask_for_room: true } if !has_room(stderr.as_fd()) => Err(Errno::EAGAIN),
            Self::Inherited { .. } => write(stderr, line),
        }
    }
}

fn has_room(fd: BorrowedFd<'_>) -> bool {
    let mut wanted = [PollFd::new(fd, PollFlags::POLLOUT)];
    poll(&mut wanted, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

/// What `tracing` writes to.
#[derive(Debug)]
struct Lines {
    destination: Destination,
    format: LogFormat,
}

/// Writes one line; made anew for each.
struct LineWriter<'a>(&'a Lines);

impl<'a> MakeWriter<'a> for Lines {
    type Writer = LineWriter<'a>;

    fn make_writer(&'a self) -> Self::Writer {
        LineWriter(self)
    }
}

impl Write for LineWriter<'_> {
    /// Takes everything, written or not: there is nobody to whom an error of the log could be told.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let Lines { destination, format } = self.0;
        tell_of_dropped(destination, *format);
        let written = if line.len() <= LONGEST_LINE {
            destination.write_line(line)
        } else {
            destination.write_line(&shortened(line, *format))
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

fn tell_of_dropped(destination: &Destination, format: LogFormat) {
    let dropped = DROPPED.load(Ordering::Relaxed);
    let told = DROPPED_AND_TOLD.load(Ordering::Relaxed);
    if dropped > told && destination.write_line(line_of_dropped(dropped - told, format).as_bytes()) {
        DROPPED_AND_TOLD.store(dropped, Ordering::Relaxed);
    }
}

/// Made by hand, because the writer of a line can't ask for another to be written.
fn line_of_dropped(lines: u64, format: LogFormat) -> String {
    let mut now = String::new();
    // A clock that can't be told is left out.
    let _ = SystemTime.format_time(&mut Writer::new(&mut now));
    let text = format!("{lines} log lines were dropped: standard error did not take them");
    match format {
        LogFormat::Text => format!("{now}  WARN {text}\n"),
        LogFormat::Json => format!("{{\"timestamp\":\"{now}\",\"level\":\"WARN\",\"message\":\"{text}\"}}\n"),
    }
}

/// A line of at most `LONGEST_LINE` bytes that says what fits.
fn shortened(line: &[u8], format: LogFormat) -> Vec<u8> {
    let object = match format {
        LogFormat::Text => None,
        LogFormat::Json => serde_json::from_slice(line).ok().and_then(shortened_object),
    };
    object.unwrap_or_else(|| {
        let text = String::from_utf8_lossy(line);
        format!("{}{CUT}\n", beginning(&text, LONGEST_LINE - CUT.len() - 1)).into_bytes()
    })
}

/// Cuts the longest texts of an object until it fits; `None` where it is not texts that make it long.
fn shortened_object(mut object: serde_json::Map<String, Value>) -> Option<Vec<u8>> {
    loop {
        let mut line = serde_json::to_vec(&object).ok()?;
        line.push(b'\n');
        if line.len() <= LONGEST_LINE {
            return Some(line);
        }
        let texts = object.values_mut().filter_map(|value| match value {
            Value::String(text) => Some(text),
            _ => None,
        });
        let longest = texts.max_by_key(|text| text.len()).filter(|text| text.len() > 4 * CUT.len())?;
        *longest = format!("{}{CUT}", beginning(longest, longest.len() / 2));
    }
}

/// At most `most` bytes of `text`, in whole characters.
fn beginning(text: &str, most: usize) -> &str {
    (0..=most).rev().find_map(|end| text.get(..end)).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::io::{PipeReader, Read};
    use std::os::fd::OwnedFd;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    #[test]
    fn a_long_line_of_text_is_cut_between_characters() {
        for ascii in 0..4 {
            let line = format!("{}{}\n", "x".repeat(ascii), "ä€".repeat(3_000));
            let short = String::from_utf8(shortened(line.as_bytes(), LogFormat::Text)).unwrap();
            assert!(short.len() <= LONGEST_LINE && short.len() > LONGEST_LINE - 8, "{} bytes", short.len());
            assert!(short.ends_with("€… (cut)\n") || short.ends_with("ä… (cut)\n"), "{short}");
        }
    }

    #[test]
    fn a_long_line_of_json_stays_json_and_keeps_its_other_members() {
        let message = "\u{1}\"\\ä".repeat(5_000);
        let line = serde_json::json!({ "level": "ERROR", "message": message, "slot": 3 }).to_string();
        let short = shortened(line.as_bytes(), LogFormat::Json);
        assert!(short.len() <= LONGEST_LINE && short.ends_with(b"\n"));
        let short: Value = serde_json::from_slice(&short).unwrap();
        assert_eq!((&short["level"], &short["slot"]), (&"ERROR".into(), &3.into()));
        assert!(short["message"].as_str().unwrap().ends_with(CUT));
    }

    #[test]
    fn json_that_is_long_without_long_texts_is_cut_as_text() {
        let line = serde_json::json!({ "numbers": vec![1; 5_000] }).to_string();
        let short = shortened(line.as_bytes(), LogFormat::Json);
        assert!(short.len() <= LONGEST_LINE && short.ends_with("… (cut)\n".as_bytes()));
    }

    /// Lines to a pipe, its other end, and how many bytes it takes.
    fn lines_to_pipe(format: LogFormat) -> (Lines, PipeReader, usize) {
        let (reader, writer) = std::io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let capacity = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let capacity = usize::try_from(capacity).unwrap();
        let destination = Destination::Own(File::from(OwnedFd::from(writer)));
        (Lines { destination, format }, reader, capacity)
    }

    fn log(lines: &Lines, line: &str) {
        assert_eq!(LineWriter(lines).write(line.as_bytes()).unwrap(), line.len(), "written or not");
    }

    /// Both formats in one test: what is dropped is counted for the whole process.
    #[test]
    fn what_a_full_pipe_does_not_take_is_counted_and_told_once_there_is_room() {
        for format in [LogFormat::Text, LogFormat::Json] {
            let (lines, mut reader, capacity) = lines_to_pipe(format);
            let before = dropped_lines();
            let long = format!("{}\n", "x".repeat(1_023));
            for _ in 0..capacity / long.len() + 3 {
                log(&lines, &long);
            }
            assert_eq!(dropped_lines() - before, 3, "all but what filled the pipe");
            reader.read_exact(&mut vec![0; capacity]).unwrap();
            log(&lines, "there is room\n");
            log(&lines, "and still is\n");
            drop(lines);
            let mut read = String::new();
            reader.read_to_string(&mut read).unwrap();
            let read: Vec<&str> = read.lines().collect();
            assert!(read[0].contains("3 log lines were dropped"), "{read:?}");
            assert_eq!(format == LogFormat::Json, read[0].starts_with('{'), "{read:?}");
            assert_eq!(read[1..], ["there is room", "and still is"]);
            assert_eq!(dropped_lines() - before, 3);
        }
    }

    #[test]
    fn a_line_that_is_too_long_arrives_whole_though_cut() {
        let (lines, mut reader, _) = lines_to_pipe(LogFormat::Text);
        log(&lines, &format!("{}\n", "ä".repeat(10_000)));
        drop(lines);
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert!(read.len() <= LONGEST_LINE && read.ends_with("… (cut)\n"), "{} bytes", read.len());
    }
}
