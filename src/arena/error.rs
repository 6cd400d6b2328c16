//! Why an arena can't be made or opened.

use std::fmt;
use std::io;

/// Why an arena can't be made, opened or lent out.
#[derive(Debug)]
pub(crate) enum ArenaError {
    /// The descriptor can't be mapped: no memfd, not sealed, too short, or out of memory.
    Memory(io::Error),
    /// More rows or methods than an arena may have, or no row at all.
    Size { rows: usize, methods: usize },
    /// More connections than an arena may have records for, or more buffers than can be addressed.
    Connections { connections: usize, buffers: usize },
    /// The content does not start like an arena.
    NotAnArena { found: u64 },
    /// Another version of the layout.
    Version { found: u64, expected: u64 },
    /// A header field points outside the arena, or is out of its limits.
    Header { field: &'static str, found: u64, least: u64, most: u64 },
    /// The arena was made without blocks, or they are in use already.
    NoBlocks { found: usize, expected: usize },
    /// No row has this number.
    NoSuchRow { row: usize, rows: usize },
    /// This row has its one writer already.
    RowTaken { row: usize },
}

impl fmt::Display for ArenaError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Memory(error) => write!(f, "the arena's memory can't be mapped: {error}"),
            Self::Size { rows, methods } => write!(
                f,
                "an arena for {rows} threads and {methods} methods: expected 1 to {} threads, at most {} methods and \
                 at most {} MiB for both; use fewer threads a process, or fewer methods",
                super::layout::MAX_ROWS,
                super::layout::MAX_METHODS,
                super::layout::MAX_ROWS_BYTES >> 20,
            ),
            Self::Connections { connections, buffers } => write!(
                f,
                "an arena for {connections} connections that hold up to {buffers} bytes: expected at most {} connections, \
                 and buffers that can be addressed; lower limits.max_connections or limits.buffers",
                super::layout::MAX_RECORDS,
            ),
            Self::NotAnArena { found } => {
                write!(
                    f,
                    "the arena's first word is {found:#x}, which is no arena's; something has overwritten it"
                )
            }
            Self::Version { found, expected } => write!(
                f,
                "the arena has layout version {found}, expected {expected}: it was made by another version of this program"
            ),
            Self::Header { field, found, least, most } => write!(
                f,
                "the arena's header field `{field}` is {found}, expected {least} to {most}, and offsets in whole words; \
                 something has overwritten it"
            ),
            Self::NoBlocks { found, expected } => write!(
                f,
                "the arena has {found} bytes for what connections hold, expected {expected} that nobody has yet; something has \
                 overwritten its header"
            ),
            Self::NoSuchRow { row, rows } => {
                write!(f, "the arena has no row {row}, it has {rows}, counted from 0")
            }
            Self::RowTaken { row } => {
                write!(f, "row {row} of the arena has been given out already; each row has one writer")
            }
        }
    }
}

impl std::error::Error for ArenaError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Memory(error) => Some(error),
            _ => None,
        }
    }
}

impl From<io::Error> for ArenaError {
    fn from(error: io::Error) -> Self {
        Self::Memory(error)
    }
}

impl From<ArenaError> for io::Error {
    fn from(error: ArenaError) -> Self {
        match error {
            ArenaError::Memory(error) => error,
            other => io::Error::new(io::ErrorKind::InvalidInput, other),
        }
    }
}
