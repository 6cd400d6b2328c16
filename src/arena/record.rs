//! The record of a connection: all that another worker needs to go on exactly where this one stood.
//!
//! Each connection of a worker has a record in its arena, at the place that its [`Key`] names. What changes about it is its
//! [`Core`], of which the record holds two versions and a word that says which of them counts. A [commit](Record::commit) writes
//! the other version and then that word, in one store: whenever the writer dies, a reader finds all of the state before or
//! all of the state after, and never a mixture.
//!
//! The bytes themselves lie in blocks of the arena, which the record names by their place. Input that the kernel gave out
//! and the record says nothing about yet is where the record said it would go; the kernel knows how many bytes those are.
//!
//! The reader is `kept`, in another process. Everything here is the writer's, under the connection's lock.
//!
//! A read is whole while at most one commit is made in the meantime: the second one writes the version that the reader may be
//! at. Nothing here forbids that, so the protocol must: a record is read when its writer has died, or has let the
//! connection go, and **who lets go commits before it says so, and never after**.

use serde::{Deserialize, Serialize};

use super::layout::RECORD_WORDS;
use crate::fail_points;
use crate::sys::blocks::HEAD_WORDS;
use crate::sys::sync::{AtomicU64, Ordering};

/// Which connection of a worker process: the place of its record, and how often that place was used before.
///
/// Epoll and channels report this and never a descriptor, whose number may belong to another connection by the time the
/// report is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(from = "(u32, u32)", into = "(u32, u32)")]
pub(crate) struct Key {
    pub(crate) index: u32,
    pub(crate) generation: u32,
}

/// Record word: 0 while nobody uses the record, otherwise generation × 2 + 1.
pub(super) const LIFE: usize = 0;
/// Record word: which version of the core counts, 0 or 1.
pub(super) const CURRENT: usize = 8;
/// Record words: the first of either version, each in cache lines of its own.
pub(super) const VERSIONS: [usize; 2] = [16, 40];

/// Words in the head of a block that holds a call: a link of the list that [`Core::calls`] begins.
pub(super) mod call_word {
    /// The call's number on its connection.
    pub(crate) const NUMBER: usize = 0;
    /// The place of the next call's block; 0 at the end.
    pub(crate) const NEXT: usize = 1;
    /// 1 from when a thread runs the call, or takes the batch apart that it is; 0 before, and again where what is left of a
    /// batch goes to another worker.
    pub(crate) const RUNS: usize = 2;
    /// When it arrived, in nanoseconds of the monotonic clock.
    pub(crate) const ARRIVED_NS: usize = 3;
    /// Bytes of its message, which stands behind the head.
    pub(crate) const LENGTH: usize = 4;
    /// Of a batch: the place of the block with the answers of its calls that are there; 0 while there are none.
    pub(crate) const GATHERED: usize = 5;
}

/// Bytes somewhere in the arena.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Place {
    /// Offset in the memfd. Where `length` is 0 it means nothing.
    pub(crate) at: u64,
    /// Bytes from there on.
    pub(crate) length: u64,
}

/// What changes about a connection. Offsets of the streams count from the connection's beginning, as the kernel's do,
/// and go on through all workers that ever serve it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Core {
    /// Input before this offset belongs to messages that have begun or were answered at once.
    pub(crate) begun: u64,
    /// Where the input from `begun` on lies, with the room there that a receive may fill.
    pub(crate) input: Place,
    /// The offset of the first byte in `output`. Everything before it was handed to the kernel.
    pub(crate) out_from: u64,
    /// Answers that may not have been handed to the kernel yet; published up to `out_from` + length.
    pub(crate) output: Place,
    /// The message of the call that the poller runs right where it was read; no length when it runs none.
    pub(crate) inline: Place,
    /// The place of the first block in the list of calls that wait or run in the pool; 0 when there is none.
    pub(crate) calls: u64,
    /// The number of the call whose answer was published last, from 1. It may still be in the list: it is unlinked after that.
    pub(crate) answered: u64,
    pub(crate) flags: Flags,
    /// Bytes taken out of the receive queue: for a Unix socket, of which the kernel doesn't know.
    pub(crate) taken: u64,
    /// Bytes handed to the kernel; for a Unix socket.
    pub(crate) sent: u64,
    /// When something moved on the connection last, in nanoseconds of the monotonic clock: it was accepted, bytes came, an answer was
    /// published or sent. Of one that lingers: when that began. A worker that dies in between leaves the moment before, of a
    /// program that doesn't know this 0.
    pub(crate) moved_ns: u64,
    /// When the first byte came of the message at the end of the input that is not whole; 0 where there is none. A worker that
    /// dies after it has received that byte and before it has looked at it leaves 0: then it came when somebody looks.
    pub(crate) message_ns: u64,
}

/// What is true of a connection, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Flags(u64);

impl Flags {
    /// The first bytes were those of the listener's framing.
    pub(crate) const RECOGNISED: Self = Self(1);
    /// The answer that ends it was published; nothing more is begun.
    pub(crate) const FINISHING: Self = Self(2);
    /// Our FIN is about to be sent or was; input is only thrown away.
    pub(crate) const LINGERING: Self = Self(4);
    /// A receive or send on a Unix socket is being made, so that `taken` and `sent` may be behind.
    pub(crate) const IN_IO: Self = Self(8);
    /// Lengths come and go with the highest byte first.
    pub(crate) const BIG_ENDIAN: Self = Self(16);
    /// The client was told to send the rest of the message that is not whole, or will be by what is in the output.
    pub(crate) const INVITED: Self = Self(32);
    /// It is none of those that its worker may hold, and waits for a place. Where the worker dies before it says that there is one
    /// the next has it wait as well.
    pub(crate) const WITHOUT_PLACE: Self = Self(64);

    /// Where the byte about the framing stands.
    const FRAMING_AT: u32 = 8;

    /// What is known of the framing, in a byte whose meaning is not known here.
    pub(crate) fn framing(self) -> u8 {
        self.0.to_le_bytes()[Self::FRAMING_AT as usize / 8]
    }

    pub(crate) fn set_framing(&mut self, byte: u8) {
        self.0 = self.0 & !(0xff << Self::FRAMING_AT) | u64::from(byte) << Self::FRAMING_AT;
    }

    pub(crate) fn contains(self, flag: Self) -> bool {
        self.0 & flag.0 == flag.0
    }

    pub(crate) fn set(&mut self, flag: Self, on: bool) {
        self.0 = if on { self.0 | flag.0 } else { self.0 & !flag.0 };
    }
}

/// The number of words of a [`Core`].
pub(super) const CORE_WORDS: usize = 15;

impl Core {
    pub(super) fn to_words(self) -> [u64; CORE_WORDS] {
        [
            self.begun,
            self.input.at,
            self.input.length,
            self.out_from,
            self.output.at,
            self.output.length,
            self.inline.at,
            self.inline.length,
            self.calls,
            self.answered,
            self.flags.0,
            self.taken,
            self.sent,
            self.moved_ns,
            self.message_ns,
        ]
    }

    pub(super) fn from_words(words: [u64; CORE_WORDS]) -> Self {
        let [begun, in_at, in_length, out_from, out_at, out_length, inline_at, inline_length, ..] = words;
        let [.., calls, answered, flags, taken, sent, moved_ns, message_ns] = words;
        Self {
            begun,
            input: Place { at: in_at, length: in_length },
            out_from,
            output: Place { at: out_at, length: out_length },
            inline: Place { at: inline_at, length: inline_length },
            calls,
            answered,
            flags: Flags(flags),
            taken,
            sent,
            moved_ns,
            message_ns,
        }
    }
}

impl From<(u32, u32)> for Key {
    fn from((index, generation): (u32, u32)) -> Self {
        Self { index, generation }
    }
}

impl From<Key> for (u32, u32) {
    fn from(key: Key) -> Self {
        (key.index, key.generation)
    }
}

impl Key {
    /// The word that says that the record is this connection's.
    pub(super) fn life(self) -> u64 {
        u64::from(self.generation) << 1 | 1
    }
}

/// All records of a worker. Each place must be used by one connection at a time, which the worker's table sees to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Records {
    words: &'static [[AtomicU64; RECORD_WORDS]],
}

/// The record of one connection, to be written under its lock.
#[derive(Debug)]
pub(crate) struct Record {
    words: &'static [AtomicU64; RECORD_WORDS],
    /// Kept here and not read back: a word that a handler scribbled on is right again with the next commit.
    current: bool,
}

impl Records {
    pub(super) fn new(words: &'static [AtomicU64]) -> Self {
        Self { words: words.as_chunks().0 }
    }

    /// Begins the record of a connection. None when the arena has no such place.
    ///
    /// A reader takes the record for the connection's once the word of its life is stored, and that is last.
    pub(crate) fn open(&self, key: Key, core: &Core) -> Option<Record> {
        let words = self.words.get(key.index as usize)?;
        let mut record = Record { words, current: false };
        store(&words[LIFE], 0);
        record.commit(core);
        store(&words[LIFE], key.life());
        Some(record)
    }
}

impl Record {
    /// Brings the record in line with `core`: the version that doesn't count is written, and then counts. Dying before the
    /// last store leaves the core that was committed before; after it, this one.
    ///
    /// Not to be called once the connection was offered to another worker, which may be reading.
    pub(crate) fn commit(&mut self, core: &Core) {
        self.current = !self.current;
        let version = VERSIONS[usize::from(self.current)];
        let Some(words) = self.words.get(version..).and_then(<[_]>::first_chunk::<CORE_WORDS>) else {
            return;
        };
        for (word, value) in words.iter().zip(core.to_words()) {
            // What reads it comes after the word that says which version counts, and that one releases.
            fail_points::step(fail_points::Kind::Path);
            word.store(value, Ordering::Relaxed);
        }
        store(&self.words[CURRENT], u64::from(self.current));
    }

    /// The connection is closed, or another worker has it: one store.
    pub(crate) fn close(&mut self) {
        store(&self.words[LIFE], 0);
    }
}

/// The head of a block that holds a queued call, written before a commit links it.
pub(crate) fn write_call(
    head: &[AtomicU64; HEAD_WORDS],
    number: u64,
    next: u64,
    arrived_ns: u64,
    length: usize,
) {
    store(&head[call_word::NUMBER], number);
    store(&head[call_word::NEXT], next);
    store(&head[call_word::RUNS], 0);
    store(&head[call_word::ARRIVED_NS], arrived_ns);
    store(&head[call_word::LENGTH], length as u64);
    store(&head[call_word::GATHERED], 0);
}

/// A thread is about to run the call: from here on a death answers it instead of having it run again.
pub(crate) fn call_runs(head: &[AtomicU64; HEAD_WORDS]) {
    store(&head[call_word::RUNS], 1);
}

/// No thread is in the call any more, or in any call of the batch that it is, and what has not been answered of it is to be
/// run by whoever goes on with its connection.
pub(crate) fn call_waits(head: &[AtomicU64; HEAD_WORDS]) {
    store(&head[call_word::RUNS], 0);
}

/// Takes the call that follows this one out of the list. Its answer has been published, so a reader finds it in the
/// list and knows that it is done, or doesn't find it.
pub(crate) fn unlink_next(head: &[AtomicU64; HEAD_WORDS], next: u64) {
    store(&head[call_word::NEXT], next);
}

pub(super) fn store(word: &AtomicU64, value: u64) {
    fail_points::step(fail_points::Kind::Path);
    word.store(value, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn words() -> &'static [AtomicU64] {
        let words: Vec<AtomicU64> =
            std::iter::repeat_with(AtomicU64::default).take(2 * RECORD_WORDS).collect();
        Vec::leak(words)
    }

    fn core(seed: u64) -> Core {
        Core::from_words(std::array::from_fn(|index| seed + index as u64))
    }

    fn read(words: &[AtomicU64]) -> Core {
        let word = |index: usize| words[index].load(Ordering::Acquire);
        let version = VERSIONS[usize::try_from(word(CURRENT)).unwrap()];
        Core::from_words(std::array::from_fn(|index| word(version + index)))
    }

    #[test]
    fn a_commit_that_is_cut_off_anywhere_before_its_last_store_leaves_the_core_before() {
        let words = words();
        let records = Records::new(words);
        let mut record = records.open(Key { index: 0, generation: 7 }, &core(100)).unwrap();
        for round in 1..5_u64 {
            let before = read(words);
            // The stores of a commit, one after the other, into the version that doesn't count.
            let other = VERSIONS[usize::from(!record.current)];
            for (index, value) in core(round * 1_000).to_words().into_iter().enumerate() {
                words[other + index].store(value, Ordering::Relaxed);
                assert_eq!(read(words), before, "after {} stores", index + 1);
            }
            record.commit(&core(round * 1_000));
            assert_eq!(read(words), core(round * 1_000));
        }
    }

    #[test]
    fn a_record_is_nobodys_before_its_first_core_is_whole_and_after_it_is_closed() {
        let words = words();
        let key = Key { index: 0, generation: u32::MAX };
        let mut record = Records::new(words).open(key, &core(1)).unwrap();
        assert_eq!(words[LIFE].load(Ordering::Relaxed), key.life());
        assert_ne!(key.life(), 0);
        record.close();
        assert_eq!(words[LIFE].load(Ordering::Relaxed), 0);
    }

    #[test]
    fn a_place_beyond_the_arena_has_no_record() {
        assert!(Records::new(words()).open(Key { index: 2, generation: 0 }, &Core::default()).is_none());
    }

    #[test]
    fn versions_and_heads_fit_where_they_are() {
        assert!(VERSIONS[0] > CURRENT && VERSIONS[0] + CORE_WORDS <= VERSIONS[1]);
        assert!(VERSIONS[1] + CORE_WORDS <= RECORD_WORDS);
        assert!(VERSIONS.iter().all(|version| version.is_multiple_of(8)), "a cache line is eight words");
    }

    proptest! {
        #[test]
        fn a_core_comes_back_from_its_words(words: [u64; CORE_WORDS]) {
            prop_assert_eq!(Core::from_words(words).to_words(), words);
        }
    }
}
