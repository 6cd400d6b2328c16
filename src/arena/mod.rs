//! The shared memory of one worker process: its counters, what each of its threads runs, how long its methods take, and
//! all that its connections are.
//!
//! The supervisor makes an arena before the worker is forked ([`create`]). The worker alone maps it for writing
//! ([`ArenaWriter`], of which each thread owns a [`Row`]); whoever wants to know maps it read-only
//! ([`ArenaReader`]) and takes a [`Snapshot`]. [`Scoreboard`] adds up the snapshots of all workers, also of those
//! that have ended.
//!
//! ```text
//!   worker                                    supervisor, admin
//!     poller       ─ ArenaWriter ─┐                ┌─ ArenaReader ─→ Snapshot ─→ Scoreboard ─→ Totals
//!     each thread  ─ its Row ─────┼─→ the memfd ───┤
//!     connections  ─ Record ──────┘                └─ KeptArena ─→ KeptConnection
//!                                             another worker
//! ```
//!
//! Three rules hold everywhere here. Every word has **one writer**, so plain stores do and nobody waits (but for the one
//! that names who took the process down, which is swapped once).
//! A worker may **die between any two stores**, and what a reader then finds is said where the stores are made.
//! A reader **believes nothing**: a handler may have scribbled over the arena.

mod called_by;
pub(crate) mod contract;
mod error;
mod gathered;
mod histogram;
mod kept;
mod layout;
mod reader;
mod record;
mod scoreboard;
mod snapshot;
mod totals;
mod writer;

use std::io;
use std::os::fd::{AsFd, OwnedFd};

pub(crate) use error::ArenaError;
pub(crate) use gathered::{Gathered, NotGathered};
pub(crate) use kept::{KeptArena, KeptConnection, Moved, Ran, Refusal, Waited};
pub(crate) use reader::ArenaReader;
pub(crate) use record::{
    Core, Flags, Key, Place, Record, Records, call_runs, call_waits, unlink_next, write_call,
};
pub(crate) use scoreboard::Scoreboard;
pub(crate) use snapshot::{Culprit, Snapshot};
pub(crate) use totals::{Counter, Totals};
pub(crate) use writer::{ArenaWriter, Outcome, OwnRow, Row};

use crate::sys::memory::{self, WORD, WritableMemory};
use crate::sys::sync::Ordering;
pub(crate) use layout::Room;
use layout::{HEADER_WORDS, Layout};

/// How far a worker has come in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// It makes its state and starts its threads.
    Booting,
    /// It accepts connections and answers calls.
    Ready,
    /// It accepts nothing more and finishes what runs.
    Draining,
    /// It has done everything and is about to exit.
    Ended,
}

impl State {
    /// The word that stands for it; 0 stands for no state.
    fn to_word(self) -> u64 {
        match self {
            Self::Booting => 1,
            Self::Ready => 2,
            Self::Draining => 3,
            Self::Ended => 4,
        }
    }

    fn from_word(word: u64) -> Option<Self> {
        [Self::Booting, Self::Ready, Self::Draining, Self::Ended]
            .into_iter()
            .find(|state| state.to_word() == word)
    }
}

/// Makes the arena of a worker.
///
/// Memory is used only where something is counted or kept: about 1 KiB for each method that a thread has run, 512 bytes
/// for each connection, and what connections hold.
pub(crate) fn create(room: &Room) -> io::Result<OwnedFd> {
    let layout = Layout::new(room)?;
    let fd = memory::create_sealed(c"tine-arena", layout.size)?;
    let memory = WritableMemory::map(fd.as_fd(), HEADER_WORDS * WORD)?;
    for (index, value) in layout.header().into_iter().enumerate() {
        if let Some(word) = memory.word(index * WORD) {
            word.store(value, Ordering::Release);
        }
    }
    Ok(fd)
}

/// Bytes that a worker's arena has, of which only what is touched is memory.
pub(crate) fn size(room: &Room) -> Result<u64, ArenaError> {
    Ok(Layout::new(room)?.size as u64)
}

/// An arena without connections.
#[cfg(test)]
fn counters(rows: usize, methods: usize) -> io::Result<OwnedFd> {
    create(&Room { rows, methods, connections: 0, buffers: 0 })
}

/// An arena for this many connections, and what their worker has of it.
#[cfg(test)]
pub(crate) fn of_connections(connections: usize) -> (OwnedFd, Records, &'static crate::sys::blocks::Pool) {
    let fd = create(&Room { rows: 1, methods: 0, connections, buffers: 16 << 20 }).unwrap();
    let mut writer = ArenaWriter::open(fd.try_clone().unwrap()).unwrap();
    (fd, writer.records(), writer.blocks().unwrap())
}

/// An arena with its writer and a reader, both in this process.
#[cfg(test)]
fn writer_and_reader(rows: usize, methods: usize) -> (ArenaWriter, ArenaReader) {
    let fd = counters(rows, methods).unwrap();
    let reader = ArenaReader::open(&fd).unwrap();
    (ArenaWriter::open(fd).unwrap(), reader)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arena_for_too_many_threads_is_an_error_that_says_what_to_do() {
        let error = counters(0, 1).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(counters(1 << 40, 1).unwrap_err().to_string().contains("use fewer threads"), "{error}");
    }

    #[test]
    fn every_state_comes_back_from_its_word() {
        for state in [State::Booting, State::Ready, State::Draining, State::Ended] {
            assert_eq!(State::from_word(state.to_word()), Some(state));
        }
        assert_eq!([0, 5, u64::MAX].map(State::from_word), [None; 3]);
    }
}
