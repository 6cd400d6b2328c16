//! Blocks of shared memory: a pool that cuts a part of a memfd into pieces which one thread owns at a time.
//!
//! The worker keeps what its connections hold in blocks of its arena, so that the bytes outlive it. Who owns which block
//! is known in ordinary memory alone, and goes with the process: a reader follows the places that records name.
//!
//! Sizes are powers of two, and each has a span of its own in the file, as long as all blocks of that size can ever be.
//! The file is sparse, so a span costs nothing but addresses; to find and give back a block takes the same few steps
//! whatever the pool has been through, and nothing is ever split or joined.
//!
//! What a reader finds when the owner of a block dies: the bytes as they were, which mean what the record says that
//! names them, and nothing if none does.

use std::fmt;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

use parking_lot::Mutex;

use super::memory::{Mapping, PAGE};

/// Words at the head of each block, before its bytes.
pub(crate) const HEAD_WORDS: usize = 8;
/// Bytes of the head.
pub(crate) const HEAD: usize = HEAD_WORDS * size_of::<AtomicU64>();

/// The smallest block, with its head.
const SMALLEST: usize = 512;
/// The sizes: 512 B to 1 GiB.
const SIZES: usize = 22;
/// Blocks up to this size have room for so much more than four times what the worker may hold in all: one that grows is half
/// empty at worst, what is in it may be copied for a thread, and a limit is only looked at before the last bytes come.
const PLENTY: usize = 64 << 20;
/// As many there are of each size beyond, and at least of every other.
const FEW: usize = 4;
/// Of the sizes up to this one there are some for every connection, however little the worker may hold in all.
const FOR_EVERYONE: usize = 16 << 10;
/// So many freed bytes stay as they are at most, for the next who takes a block of their size: to have the kernel find and clear
/// pages anew takes longer than a call with them. Of the size that is given back what was freed longest ago goes back to the
/// system. All sizes together have no more, since nobody accounts for what rests.
const STAYS: usize = 8 << 20;
/// And no more than this part of what the worker may hold in all, which is to be told apart from what rests beside it.
const PART_THAT_STAYS: usize = 16;
/// Blocks of one size that [`Pool::tidy`] gives back in one go: others may wait for its lock.
const TIDIED_AT_ONCE: usize = 64;

/// How many blocks of each size a pool has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Spans {
    counts: [u32; SIZES],
    stays: usize,
}

impl Spans {
    /// For a worker that may hold about `bytes` in all, and has up to `owners` connections.
    pub(crate) fn new(bytes: usize, owners: usize) -> Self {
        let counts = std::array::from_fn(|class| {
            let size = size_of_class(class);
            let plenty =
                if size <= PLENTY { bytes.saturating_mul(4).saturating_add(PLENTY) / size } else { 0 };
            let everyone = if size <= FOR_EVERYONE { owners.saturating_mul(2) } else { 0 };
            u32::try_from(plenty.max(everyone).max(FEW)).unwrap_or(u32::MAX)
        });
        Self { counts, stays: (bytes / PART_THAT_STAYS).min(STAYS) }
    }

    /// Bytes of address space for all of them; None where that is more than can be.
    pub(crate) fn bytes(&self) -> Option<usize> {
        let spans = self.counts.iter().enumerate();
        spans.map(|(class, count)| span(class, *count)).try_fold(0_usize, |sum, span| sum.checked_add(span?))
    }
}

fn size_of_class(class: usize) -> usize {
    SMALLEST << class
}

/// Bytes of a span, in whole pages.
fn span(class: usize, count: u32) -> Option<usize> {
    size_of_class(class).checked_mul(count as usize)?.checked_next_multiple_of(PAGE)
}

/// The blocks of one process.
pub(crate) struct Pool {
    mapping: Mapping,
    /// Where the pool begins in the memfd.
    base: usize,
    classes: [Class; SIZES],
    /// Freed blocks have memory that `tidy` could give back.
    rests: AtomicBool,
    /// Bytes of freed blocks that have memory, and how many there may be.
    resting: AtomicUsize,
    stays: usize,
}

/// The blocks of one size.
#[derive(Debug)]
struct Class {
    /// Where its span begins in the mapping.
    at: usize,
    count: u32,
    free: Mutex<Free>,
}

#[derive(Debug, Default)]
struct Free {
    /// Those that were given back, the last of them last.
    back: Vec<u32>,
    /// So many at the start of `back` have no memory any more.
    punched: usize,
    /// The first that was never taken.
    fresh: u32,
    /// Of those with memory so many at least have not been wanted since it was tidied last.
    unwanted: usize,
}

impl Pool {
    /// Makes a pool of a sealed memfd from `base` on, a multiple of the page size. There must be one for these bytes.
    ///
    /// It stays for the life of the process, as blocks may be held by threads that never come back.
    pub(crate) fn open(fd: BorrowedFd<'_>, base: usize, spans: &Spans) -> io::Result<&'static Self> {
        let too_large = || io::Error::new(io::ErrorKind::InvalidInput, "buffers: more than can be addressed");
        let bytes = spans.bytes().ok_or_else(too_large)?;
        let end = base.checked_add(bytes).ok_or_else(too_large)?;
        let mapping = Mapping::writable(fd, base..end)?;
        let mut next = 0;
        let classes = std::array::from_fn(|class| {
            let (at, count) = (next, spans.counts.get(class).copied().unwrap_or_default());
            next += span(class, count).unwrap_or_default();
            Class { at, count, free: Mutex::default() }
        });
        let (rests, resting) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok(Box::leak(Box::new(Self { mapping, base, classes, rests, resting, stays: spans.stays })))
    }

    /// A block with room for `at_least` bytes. Its bytes are whatever was there before. None when there is none left of
    /// that size.
    pub(crate) fn take(&'static self, at_least: usize) -> Option<Block> {
        let size = at_least.checked_add(HEAD)?.max(SMALLEST).checked_next_power_of_two()?;
        let class = (size.ilog2() - SMALLEST.ilog2()) as usize;
        let (number, rested) = self.classes.get(class)?.take()?;
        if rested && size >= PAGE {
            self.resting.fetch_sub(size, Ordering::Relaxed);
        }
        let offset = self.classes.get(class)?.at + number as usize * size;
        let start = self.mapping.bytes_at(offset, size)?;
        Some(Block { pool: self, start, offset, class, number })
    }

    /// Takes a block back.
    fn put(&self, block: &Block) {
        let Some(class) = self.classes.get(block.class) else {
            return;
        };
        let size = size_of_class(block.class);
        let mut free = class.free.lock();
        free.back.push(block.number);
        // What is smaller than a page shares it with others.
        if size < PAGE {
            return;
        }
        if self.resting.fetch_add(size, Ordering::Relaxed) + size > self.stays {
            self.give_back_oldest(class, size, &mut free);
        }
        // Looked at first, so that threads don't take its cache line from each other.
        if !self.rests.load(Ordering::Relaxed) {
            self.rests.store(true, Ordering::Relaxed);
        }
    }

    /// Under the lock: nobody can take it meanwhile.
    fn give_back_oldest(&self, class: &Class, size: usize, free: &mut Free) {
        if let Some(oldest) = free.back.get(free.punched) {
            let start = class.at + *oldest as usize * size;
            self.mapping.punch(start..start + size);
            self.resting.fetch_sub(size, Ordering::Relaxed);
            free.punched += 1;
        }
    }

    /// True when it is worth to [tidy](Self::tidy) some time later.
    pub(crate) fn rests(&self) -> bool {
        self.rests.load(Ordering::Relaxed)
    }

    /// Gives the memory of blocks that nobody has wanted since this was done last back to the system.
    pub(crate) fn tidy(&self) {
        // Before looking: what is freed meanwhile says so anew.
        self.rests.store(false, Ordering::Relaxed);
        let with_pages = self.classes.iter().enumerate().filter(|(class, _)| size_of_class(*class) >= PAGE);
        for (number, class) in with_pages {
            let mut free = class.free.lock();
            for _ in 0..free.unwanted.min(TIDIED_AT_ONCE) {
                self.give_back_oldest(class, size_of_class(number), &mut free);
            }
            free.unwanted = free.stay();
            if free.unwanted > 0 {
                self.rests.store(true, Ordering::Relaxed);
            }
        }
    }
}

impl Free {
    /// Those that have memory.
    fn stay(&self) -> usize {
        self.back.len() - self.punched
    }
}

impl Class {
    /// One that is free, and whether it is one of those that have memory.
    fn take(&self) -> Option<(u32, bool)> {
        let mut free = self.free.lock();
        // The one that was freed last is the likeliest to be in the caches.
        if let Some(number) = free.back.pop() {
            let rested = free.punched <= free.back.len();
            free.punched = free.punched.min(free.back.len());
            free.unwanted = free.unwanted.min(free.stay());
            return Some((number, rested));
        }
        let number = (free.fresh < self.count).then_some(free.fresh)?;
        free.fresh += 1;
        Some((number, false))
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").field("base", &self.base).finish_non_exhaustive()
    }
}

/// A piece of shared memory with one owner: eight words, and bytes behind them. It goes back to its pool on drop.
pub(crate) struct Block {
    pool: &'static Pool,
    start: NonNull<u8>,
    /// In the mapping.
    offset: usize,
    class: usize,
    number: u32,
}

// SAFETY: a block is memory of the process, reached by its owner alone, and belongs to no thread.
unsafe impl Send for Block {}
// SAFETY: through a shared reference its bytes are only read, and its words are atomic.
unsafe impl Sync for Block {}

impl Block {
    /// The words before its bytes. They are whatever was there before.
    pub(crate) fn words(&self) -> &[AtomicU64; HEAD_WORDS] {
        // SAFETY: the mapping and the span of each class begin at a page, and a size is a power of two of 512 at least, so every
        // block begins at a multiple of 512 and this is aligned; its first `HEAD` bytes lie inside the mapping, which is never undone, belong to this block alone, and are reached
        // in no other way than this. Any bits are valid words.
        unsafe { self.start.cast().as_ref() }
    }

    /// Where its first byte lies in the memfd.
    pub(crate) fn place(&self) -> u64 {
        (self.pool.base + self.offset + HEAD) as u64
    }

    /// Where its words lie in the memfd.
    pub(crate) fn head(&self) -> u64 {
        (self.pool.base + self.offset) as u64
    }

    /// Bytes it costs, with its words.
    pub(crate) fn size(&self) -> usize {
        size_of_class(self.class)
    }

    fn bytes(&self) -> (NonNull<u8>, usize) {
        // SAFETY: every block is larger than its head, so this stays inside it.
        (unsafe { self.start.add(HEAD) }, self.size() - HEAD)
    }
}

impl Deref for Block {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        let (start, length) = self.bytes();
        // SAFETY: these bytes lie inside a mapping that is never undone and were all zero or written. This process reaches
        // them through this block alone, since the pool has no other with the same number; other processes that have
        // the memfd only read.
        unsafe { std::slice::from_raw_parts(start.as_ptr(), length) }
    }
}

impl DerefMut for Block {
    fn deref_mut(&mut self) -> &mut [u8] {
        let (start, length) = self.bytes();
        // SAFETY: as above, and the exclusive borrow of the block is one of its bytes.
        unsafe { std::slice::from_raw_parts_mut(start.as_ptr(), length) }
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        self.pool.put(self);
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block").field("place", &self.place()).field("size", &self.size()).finish()
    }
}

/// Where a block lies in the memfd, with its words.
#[cfg(test)]
fn extent(block: &Block) -> std::ops::Range<u64> {
    block.head()..block.head() + block.size() as u64
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::sync::atomic::Ordering;

    use proptest::prelude::*;

    use super::*;
    use crate::sys::memory::{ReadableMemory, WORD, create_sealed};

    /// A pool behind a page of something else, and a reader of the whole file.
    fn pool(bytes: usize, owners: usize) -> (&'static Pool, ReadableMemory) {
        let spans = Spans::new(bytes, owners);
        let size = PAGE + spans.bytes().unwrap();
        let fd = create_sealed(c"test", size).unwrap();
        let reader = ReadableMemory::map(fd.as_fd(), size).unwrap();
        (Pool::open(fd.as_fd(), PAGE, &spans).unwrap(), reader)
    }

    #[test]
    fn a_block_has_the_room_that_was_asked_for_and_at_most_twice_that() {
        let (pool, _) = pool(PART_THAT_STAYS * STAYS, 1);
        for at_least in [0, 1, 448, 449, 4032, 4033, 65_000, 1 << 20, (4 << 20) - HEAD, 1 << 29] {
            let block = pool.take(at_least).unwrap();
            assert!(block.len() >= at_least, "{at_least}");
            assert!(block.size() <= 512.max(2 * (at_least + HEAD)), "{at_least}");
        }
        assert!(pool.take(1 << 30).is_none(), "with its words it would be larger than the largest");
        assert!(pool.take(usize::MAX).is_none());
    }

    #[test]
    fn what_is_written_to_a_block_is_found_at_its_place() {
        let (pool, reader) = pool(1 << 20, 1);
        let _other = pool.take(100).unwrap();
        let mut block = pool.take(100).unwrap();
        block[..8].copy_from_slice(&7_u64.to_ne_bytes());
        block.words()[1].store(9, Ordering::Release);
        let at = |place: u64| reader.load(usize::try_from(place).unwrap());
        assert_eq!((at(block.place()), at(block.head() + WORD as u64)), (Some(7), Some(9)));
        assert_eq!(block[0], 7, "the words lie before the bytes");
    }

    #[test]
    fn a_block_that_was_given_back_is_the_next_that_is_taken() {
        let (pool, _) = pool(1 << 20, 1);
        let first = pool.take(1000).unwrap();
        let second = pool.take(1000).unwrap();
        let place = first.place();
        drop(first);
        assert_eq!(pool.take(1000).unwrap().place(), place);
        assert_ne!(second.place(), place);
    }

    #[test]
    fn when_there_are_no_more_none_is_given_until_one_is_back() {
        let (pool, _) = pool(64 << 10, 0);
        let mut taken: Vec<Block> = std::iter::from_fn(|| pool.take(200 << 20)).collect();
        assert_eq!(taken.len(), 4);
        assert!(pool.take(100).is_some(), "other sizes have theirs");
        taken.pop();
        assert!(pool.take(200 << 20).is_some());
    }

    #[test]
    fn a_block_that_is_larger_than_what_stays_goes_back_to_the_system_and_reads_as_zero() {
        let (pool, reader) = pool(PART_THAT_STAYS * STAYS, 1);
        for (at_least, remains) in [(STAYS, 0), (STAYS - HEAD, u64::MAX)] {
            let mut block = pool.take(at_least).unwrap();
            block.fill(0xff);
            block.words()[0].store(u64::MAX, Ordering::Relaxed);
            let head = usize::try_from(block.head()).unwrap();
            let extent = extent(&block);
            drop(block);
            for at in [head, head + HEAD, usize::try_from(extent.end).unwrap() - WORD] {
                assert_eq!(reader.load(at), Some(remains), "{at_least} bytes");
            }
        }
    }

    #[test]
    fn of_many_smaller_ones_that_are_freed_few_keep_their_memory() {
        let (pool, reader) = pool(PART_THAT_STAYS * STAYS, 1);
        let mut blocks: Vec<Block> = std::iter::from_fn(|| pool.take(8_000)).take(2_000).collect();
        for block in &mut blocks {
            block.fill(0xff);
        }
        let places: Vec<usize> = blocks.iter().map(|block| usize::try_from(block.place()).unwrap()).collect();
        drop(blocks);
        let keep_theirs =
            |places: &[usize]| places.iter().filter(|place| reader.load(**place) != Some(0)).count();
        let stay = STAYS / (8 << 10);
        assert_eq!(keep_theirs(&places), stay);
        assert_eq!(keep_theirs(&places[places.len() - stay..]), stay, "those that were freed last");
        // And they are the next to be taken.
        let again: Vec<Block> = std::iter::from_fn(|| pool.take(8_000)).take(stay).collect();
        assert!(again.iter().all(|block| block[0] == 0xff));
    }

    #[test]
    fn what_nobody_has_wanted_since_it_was_tidied_last_goes_back_too() {
        let (pool, reader) = pool(PART_THAT_STAYS * STAYS, 1);
        assert!(!pool.rests());
        let mut blocks: Vec<Block> = std::iter::from_fn(|| pool.take(60_000)).take(3).collect();
        for block in &mut blocks {
            block.fill(0xff);
        }
        let places: Vec<usize> = blocks.iter().map(|block| usize::try_from(block.place()).unwrap()).collect();
        drop(blocks);
        let keep_theirs = || places.iter().filter(|place| reader.load(**place) != Some(0)).count();
        assert!(pool.rests());
        pool.tidy();
        assert_eq!(keep_theirs(), 3, "they have only just been freed");
        drop(pool.take(60_000));
        pool.tidy();
        assert_eq!(keep_theirs(), 1, "the one that was wanted stays");
        assert!(pool.rests());
        pool.tidy();
        assert_eq!(keep_theirs(), 0);
        assert!(!pool.rests(), "and nobody has to look again");
        drop(pool.take(60_000));
        assert!(pool.rests());
    }

    #[test]
    fn every_connection_can_have_a_little_however_little_the_worker_may_hold() {
        let spans = Spans::new(1 << 20, 10_000);
        for (class, count) in spans.counts.iter().enumerate() {
            let size = size_of_class(class);
            assert!(*count >= 4);
            assert_eq!(*count >= 20_000, size <= FOR_EVERYONE, "{size}");
        }
        assert!(Spans::new(usize::MAX, usize::MAX).bytes().is_some(), "however much is wanted");
    }

    proptest! {
        #[test]
        fn no_two_blocks_overlap_and_each_keeps_what_was_written(
            steps in prop::collection::vec((0_usize..20_000, any::<prop::sample::Index>(), any::<bool>()), 1..200),
        ) {
            let (pool, _) = pool(256 << 10, 1);
            let mut held: Vec<(Block, u8)> = Vec::new();
            for (round, (at_least, which, give_back)) in steps.into_iter().enumerate() {
                if give_back && !held.is_empty() {
                    held.swap_remove(which.index(held.len()));
                } else if let Some(mut block) = pool.take(at_least) {
                    let mark = u8::try_from(round % 251).unwrap();
                    block.fill(mark);
                    block.words().iter().for_each(|word| word.store(u64::from(mark), Ordering::Relaxed));
                    held.push((block, mark));
                }
                let mut extents: Vec<_> = held.iter().map(|(block, _)| extent(block)).collect();
                extents.sort_by_key(|extent| extent.start);
                prop_assert!(extents.windows(2).all(|pair| pair[0].end <= pair[1].start));
                prop_assert!(extents.iter().all(|extent| extent.start >= PAGE as u64));
            }
            for (block, mark) in &held {
                prop_assert!(block.iter().all(|byte| byte == mark));
                prop_assert!(block.words().iter().all(|word| word.load(Ordering::Relaxed) == u64::from(*mark)));
            }
        }
    }
}
