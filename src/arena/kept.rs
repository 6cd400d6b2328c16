//! A connection as the arena of another worker says it is: copied, checked, and ready to be gone on with.
//!
//! That worker has died, or has let the connection go. Either way a handler of it may have scribbled over its arena, so
//! everything is copied first and the copy is believed only as far as it makes sense: places inside the blocks, no more bytes
//! than its worker had memory for (whatever the limits of either are), offsets that agree with what the kernel counted.
//! Whatever doesn't costs this connection and no other.
//!
//! Who asks is the worker that adopts. What a message means is not known here.

use std::collections::HashSet;
use std::fmt;
use std::ops::Range;
use std::os::fd::{AsFd, OwnedFd};

use super::error::ArenaError;
use super::gathered::{FILLED, entries};
use super::layout::{HEADER_WORDS, Layout, RECORD_WORDS};
use super::record::{CURRENT, Core, Flags, Key, LIFE, Place, VERSIONS, call_word};
use crate::sys::blocks::HEAD;
use crate::sys::memory::{self, ReadableMemory, WORD};

/// How far a connection's streams had gone when its worker let go of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moved {
    /// By the kernel's count.
    Counted { taken: u64, sent: u64 },
    /// The kernel doesn't count for this kind of socket; the record has to know.
    Recorded,
}

/// All that is needed to go on with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KeptConnection {
    pub(crate) flags: Flags,
    /// Bytes taken out of the receive queue since it began.
    pub(crate) taken: u64,
    /// Bytes handed to the kernel since it began.
    pub(crate) sent: u64,
    /// The last bytes taken, of messages that have not begun.
    pub(crate) input: Vec<u8>,
    /// Answers that come next on the wire, perhaps from within the first of them.
    pub(crate) output: Vec<u8>,
    /// When something moved on it last, or when it began to linger, in nanoseconds of the monotonic clock; 0 where that is not known.
    pub(crate) moved_ns: u64,
    /// When the message at the start of the input began to arrive, which is not whole; 0 where that is not known.
    pub(crate) message_ns: u64,
    /// Calls that ran and will not be answered by who ran them, oldest first.
    pub(crate) ran: Vec<Ran>,
    /// Calls that waited for a thread, oldest first.
    pub(crate) waited: Vec<Waited>,
}

/// A call or a batch that had been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ran {
    pub(crate) message: Vec<u8>,
    /// The answers of a batch's calls that were there, with the calls' numbers in the batch. Empty for notifications that were run.
    pub(crate) gathered: Vec<(u32, Vec<u8>)>,
}

/// A call that had not been started, or a batch of which some calls are still to be run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Waited {
    pub(crate) message: Vec<u8>,
    /// Of a batch: its calls that have been run, with their answers, which are empty for notifications.
    pub(crate) gathered: Vec<(u32, Vec<u8>)>,
    /// When, in nanoseconds of the monotonic clock, which all processes share. How long it may take stands in its message, which
    /// its worker may not have read.
    pub(crate) arrived_ns: u64,
}

/// Why a record can't be gone on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The record is not this connection's, or not any more.
    NotThere,
    /// What stands there makes no sense; the name says where.
    Senseless(&'static str),
    /// A worker died within a receive or send on a socket whose bytes nobody counts.
    InTheMiddle,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotThere => f.write_str("its record is not there"),
            Self::Senseless(what) => {
                write!(f, "its record makes no sense ({what}): something has overwritten it")
            }
            Self::InTheMiddle => f.write_str(
                "its worker died while it received or sent, and the kernel doesn't count the bytes of a Unix socket",
            ),
        }
    }
}

/// The arena of another worker, mapped read-only. What its connections hold is copied out of the file.
#[derive(Debug)]
pub(crate) struct KeptArena {
    file: OwnedFd,
    memory: ReadableMemory,
    layout: Layout,
    /// Bytes of memory that it has: no connection can hold more. Its file is sparse, and much larger.
    held: usize,
}

impl KeptArena {
    /// Maps an arena. Connections that are read must have been left before.
    ///
    /// # Errors
    ///
    /// It can't be mapped, or its header is no arena's any more.
    pub(crate) fn open(fd: impl AsFd) -> Result<Self, ArenaError> {
        let size = memory::sealed_size(fd.as_fd())?;
        let memory = ReadableMemory::map(fd.as_fd(), size)?;
        let header =
            std::array::from_fn::<_, HEADER_WORDS, _>(|index| memory.load(index * WORD).unwrap_or(0));
        let layout = Layout::read(&header, size)?;
        let held = memory::held(fd.as_fd())?;
        Ok(Self { file: fd.as_fd().try_clone_to_owned()?, memory, layout, held })
    }

    /// Bytes of memory that it has.
    pub(super) fn held(&self) -> usize {
        self.held
    }

    /// The same without what its connections hold: enough to ask which [are busy](Self::is_busy).
    ///
    /// # Errors
    ///
    /// As for [`Self::open`].
    pub(crate) fn open_records(fd: impl AsFd) -> Result<Self, ArenaError> {
        let size = memory::sealed_size(fd.as_fd())?;
        let header = ReadableMemory::map(fd.as_fd(), size.min(HEADER_WORDS * WORD))?;
        let header =
            std::array::from_fn::<_, HEADER_WORDS, _>(|index| header.load(index * WORD).unwrap_or(0));
        let layout = Layout::read(&header, size)?;
        let (first, words) = layout.records();
        let memory = ReadableMemory::map(fd.as_fd(), first + words * WORD)?;
        Ok(Self { file: fd.as_fd().try_clone_to_owned()?, memory, layout, held: 0 })
    }

    /// Whether a call of the connection waited or ran. Good for an order in which connections are looked at, and no more:
    /// nothing of it is checked.
    pub(crate) fn is_busy(&self, key: Key) -> bool {
        self.record(key).is_ok_and(|core| core.calls != 0 || core.inline.length != 0)
    }

    /// What the record of a connection says. `moved` must have been asked for after the writer's last receive or send.
    ///
    /// # Errors
    ///
    /// There is nothing to go on with: the connection can only be closed.
    pub(crate) fn kept(&self, key: Key, moved: Moved) -> Result<KeptConnection, Refusal> {
        let core = self.record(key)?;
        let (taken, sent) = match moved {
            Moved::Counted { taken, sent } => (taken, sent),
            Moved::Recorded if core.flags.contains(Flags::IN_IO) => return Err(Refusal::InTheMiddle),
            Moved::Recorded => (core.taken, core.sent),
        };
        let (ran, waited) = self.calls(&core)?;
        // Nothing is begun any more; what comes in is thrown away, and nowhere.
        let is_ending = core.flags.contains(Flags::FINISHING) || core.flags.contains(Flags::LINGERING);
        Ok(KeptConnection {
            flags: core.flags,
            taken,
            sent,
            input: if is_ending { Vec::new() } else { self.input(&core, taken)? },
            output: self.output(&core, sent)?,
            moved_ns: core.moved_ns,
            message_ns: core.message_ns,
            ran,
            waited,
        })
    }

    /// The core that counts.
    ///
    /// The order of the loads is the opposite of the writer's stores: first the word that says which version counts, then
    /// that version, which the next commit leaves alone.
    fn record(&self, key: Key) -> Result<Core, Refusal> {
        let (first, words) = self.layout.records();
        let record = key.index as usize * RECORD_WORDS;
        if record >= words {
            return Err(Refusal::NotThere);
        }
        let word = |index: usize| self.load(first + (record + index) * WORD);
        if word(LIFE) != key.life() {
            return Err(Refusal::NotThere);
        }
        let current = usize::try_from(word(CURRENT)).ok().and_then(|current| VERSIONS.get(current));
        let version = *current.ok_or(Refusal::Senseless("version"))?;
        Ok(Core::from_words(std::array::from_fn(|index| word(version + index))))
    }

    fn input(&self, core: &Core, taken: u64) -> Result<Vec<u8>, Refusal> {
        let senseless = Refusal::Senseless("input");
        let unbegun = taken.checked_sub(core.begun).ok_or(senseless)?;
        if unbegun > core.input.length {
            return Err(senseless);
        }
        self.bytes(Place { at: core.input.at, length: unbegun }, self.held).ok_or(senseless)
    }

    fn output(&self, core: &Core, sent: u64) -> Result<Vec<u8>, Refusal> {
        let senseless = Refusal::Senseless("output");
        let gone = sent.checked_sub(core.out_from).ok_or(senseless)?;
        let length = core.output.length.checked_sub(gone).ok_or(senseless)?;
        let at = core.output.at.checked_add(gone).ok_or(senseless)?;
        self.bytes(Place { at, length }, self.held).ok_or(senseless)
    }

    /// The calls that ran, and those that waited.
    fn calls(&self, core: &Core) -> Result<(Vec<Ran>, Vec<Waited>), Refusal> {
        let senseless = Refusal::Senseless("calls");
        let (mut calls, mut left) = (Vec::new(), self.held);
        // One block named again and again would be copied as often.
        let (mut places, mut numbers) = (HashSet::new(), HashSet::new());
        let mut at = core.calls;
        while at != 0 {
            let call = self.call_at(at, left).ok_or(senseless)?;
            if !places.insert(at) || !numbers.insert(call.number) {
                return Err(senseless);
            }
            left = left.checked_sub(HEAD + call.message.len()).ok_or(senseless)?;
            at = call.next;
            calls.push(call);
        }
        calls.retain(|call| call.number != core.answered);
        calls.sort_unstable_by_key(|call| call.number);
        let (mut ran, mut waited) = (Vec::new(), Vec::new());
        let mut left = self.held;
        for call in calls {
            let gathered = self.gathered(call.gathered, left).ok_or(Refusal::Senseless("batch"))?;
            left -= gathered.iter().map(|(_, answer)| answer.len()).sum::<usize>();
            let Linked { message, arrived_ns, .. } = call;
            if call.runs {
                ran.push(Ran { message, gathered });
            } else {
                waited.push(Waited { message, gathered, arrived_ns });
            }
        }
        if core.inline.length > 0 {
            let message = self.bytes(core.inline, self.held).ok_or(Refusal::Senseless("inline call"))?;
            ran.push(Ran { message, gathered: Vec::new() });
        }
        Ok((ran, waited))
    }

    fn call_at(&self, at: u64, most: usize) -> Option<Linked> {
        let head = self
            .within_blocks(Place { at, length: HEAD as u64 })
            .filter(|head| head.start.is_multiple_of(WORD))?;
        let word = |index: usize| self.load(head.start + index * WORD);
        let message = Place { at: head.end as u64, length: word(call_word::LENGTH) };
        Some(Linked {
            number: word(call_word::NUMBER),
            next: word(call_word::NEXT),
            runs: word(call_word::RUNS) != 0,
            arrived_ns: word(call_word::ARRIVED_NS),
            message: self.bytes(message, most)?,
            gathered: word(call_word::GATHERED),
        })
    }

    /// The answers of a batch that are in the block there, of at most `most` bytes.
    fn gathered(&self, at: u64, most: usize) -> Option<Vec<(u32, Vec<u8>)>> {
        if at == 0 {
            return Some(Vec::new());
        }
        let head = Place { at: at.checked_sub(HEAD as u64)?, length: HEAD as u64 };
        let head = self.within_blocks(head).filter(|head| head.start.is_multiple_of(WORD))?;
        let filled = self.bytes(Place { at, length: self.load(head.start + FILLED * WORD) }, most)?;
        let answer = |range: Range<usize>| filled.get(range).map(<[u8]>::to_vec);
        entries(&filled)
            .map(|entry| entry.and_then(|(member, range)| Some((member, answer(range)?))))
            .collect()
    }

    /// A copy of these bytes, if they lie within the blocks and are no more than `most`.
    fn bytes(&self, place: Place, most: usize) -> Option<Vec<u8>> {
        if place.length == 0 {
            return Some(Vec::new());
        }
        let range = self.within_blocks(place).filter(|range| range.len() <= most)?;
        memory::copy(self.file.as_fd(), range)
    }

    fn load(&self, offset: usize) -> u64 {
        self.memory.load(offset).unwrap_or(0)
    }

    fn within_blocks(&self, place: Place) -> Option<Range<usize>> {
        let start = usize::try_from(place.at).ok()?;
        let end = start.checked_add(usize::try_from(place.length).ok()?)?;
        let (first, blocks) = (self.layout.data_at, self.layout.data);
        (start >= first && end <= first + blocks).then_some(start..end)
    }
}

/// A call as a block says it.
struct Linked {
    number: u64,
    next: u64,
    runs: bool,
    arrived_ns: u64,
    message: Vec<u8>,
    gathered: u64,
}

#[cfg(test)]
mod tests;
