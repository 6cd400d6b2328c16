//! The log: lines to standard error that never make anyone wait.
//!
//! Every process of the service sets this up for itself, after it was forked or executed. A line that standard
//! error does not take at once is dropped and counted; the next one that gets through says how many were lost.
//! What a record may look like is in `line`, how often others can have one written in `counted`.

mod counted;
mod destination;
mod line;

use std::io::{self, IsTerminal, Write};
use std::sync::atomic::{AtomicU64, Ordering};

use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::{FormatTime, SystemTime};

use crate::config::{Log, LogFormat};
use destination::Destination;

pub(crate) use counted::{Counted, More, tell_of_counted};
pub(crate) use line::{cut, spelled_out, text_of};

static DROPPED: AtomicU64 = AtomicU64::new(0);
static DROPPED_AND_TOLD: AtomicU64 = AtomicU64::new(0);

/// Begins to log as the configuration says. A subscriber that the program has set itself stays in place.
pub(crate) fn init(config: &Log) {
    let format = config.format;
    let in_colour = format == LogFormat::Text && io::stderr().is_terminal();
    let destination = Lines { destination: Destination::open(), format, in_colour };
    let builder = tracing_subscriber::fmt()
        .with_max_level(config.level)
        .with_target(false)
        // A line's own escapes could not be told from those of a text in it, so ours come afterwards.
        .with_ansi(false)
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

/// What `tracing` writes to.
#[derive(Debug)]
struct Lines {
    destination: Destination,
    format: LogFormat,
    in_colour: bool,
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
        let Lines { destination, format, in_colour } = self.0;
        tell_of_dropped(destination, *format);
        let one = line::line_of(line, *format);
        let written =
            if *in_colour { destination.write_line(&coloured(&one)) } else { destination.write_line(&one) };
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

/// The line with its level in the colour that people know it by.
fn coloured(line: &[u8]) -> Vec<u8> {
    const LEVELS: [(&[u8], &str); 5] =
        [(b"ERROR", "31"), (b"WARN", "33"), (b"INFO", "32"), (b"DEBUG", "34"), (b"TRACE", "35")];
    // Behind the time, which has no spaces in it.
    let at = line.iter().position(|byte| *byte == b' ').unwrap_or(0);
    let (time, rest) = line.split_at(at);
    let rest = rest.trim_ascii_start();
    match LEVELS.into_iter().find(|(level, _)| rest.starts_with(level)) {
        None => line.to_vec(),
        Some((level, colour)) => {
            let paint = format!("\u{1b}[{colour}m");
            let space = &line[at..line.len() - rest.len()];
            [b"\x1b[2m", time, b"\x1b[0m", space, paint.as_bytes(), level, b"\x1b[0m", &rest[level.len()..]]
                .concat()
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{PipeReader, Read};
    use std::os::fd::OwnedFd;

    use nix::fcntl::{FcntlArg, OFlag, fcntl};

    use super::*;

    /// Lines to a pipe, its other end, and how many bytes it takes.
    fn lines_to_pipe(format: LogFormat) -> (Lines, PipeReader, usize) {
        let (reader, writer) = std::io::pipe().unwrap();
        fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let capacity = fcntl(&writer, FcntlArg::F_SETPIPE_SZ(4096)).unwrap();
        let capacity = usize::try_from(capacity).unwrap();
        let destination = Destination::Own(File::from(OwnedFd::from(writer)));
        (Lines { destination, format, in_colour: false }, reader, capacity)
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
        assert!(read.len() <= line::LONGEST_LINE && read.ends_with("… (cut)\n"), "{} bytes", read.len());
    }
}
