//! How many connections each client address has in the whole service, for `limits.per_address`.
//!
//! One memfd for all workers. Each worker process has a region of it, which nobody else writes to while that process lives, and
//! reads the others'. So a count is one word with one writing process, and what a process has counted goes with it: the supervisor
//! clears the region when that process has been reaped and others have what it left.
//!
//! **What a reader finds if the writer dies** between any two stores: a connection that counts although the writer never took it in,
//! or still counts although it was closed. Both end when the region is cleared. There is no other state, because each change is one
//! word's.
//!
//! A word holds a count and a tag, 44 bits of the address's hash under a key that is this service's own; two of 4,096 buckets of eight
//! words may have it. Two addresses count as one only where the hash does not tell them apart, one chance in 2⁴³ for each pair. Where
//! both buckets are full, which takes more than 15,000 addresses in one worker, a connection is not counted: nobody is refused for it.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::ops::Range;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering, fence};

use crate::sys::memory::{self, PAGE, ReadableMemory, WORD, WritableMemory};
use crate::sys::peer::AddressKey;

/// Worker processes that can be counted at once: those that serve, those that follow them, and those that leave.
pub(crate) const REGIONS: usize = 256;

/// The whole of it, most of which is never touched.
pub(crate) const BYTES: u64 = (PAGE + REGIONS * REGION) as u64;

const IN_BUCKET: usize = 8;
const BUCKETS: usize = 4096;
const REGION: usize = BUCKETS * IN_BUCKET * WORD;

/// Words of the header, which has a page of its own: the two halves of the key, and how many regions were ever used.
const KEYS: [usize; 2] = [0, WORD];
const USED: usize = 2 * WORD;

const COUNT_BITS: u32 = 20;
const COUNT: u64 = (1 << COUNT_BITS) - 1;

/// The whole memfd, as whoever made it or has taken it over has it.
#[derive(Debug)]
pub(crate) struct AllAddresses {
    memory: OwnedFd,
    header: WritableMemory,
}

/// A worker's view.
#[derive(Debug)]
pub(crate) struct Addresses {
    own: WritableMemory,
    all: ReadableMemory,
    keys: [u64; 2],
}

impl AllAddresses {
    pub(crate) fn create() -> io::Result<Self> {
        let made = Self::open(memory::create_sealed(c"tine addresses", PAGE + REGIONS * REGION)?)?;
        for offset in KEYS {
            // It is as random as a hash map's own key.
            made.store(offset, RandomState::new().hash_one(offset));
        }
        Ok(made)
    }

    /// What another program of this service has made.
    pub(crate) fn open(memory: OwnedFd) -> io::Result<Self> {
        if memory::sealed_size(memory.as_fd())? != PAGE + REGIONS * REGION {
            return Err(io::Error::other("the counts of addresses have another form"));
        }
        let header = WritableMemory::map(memory.as_fd(), PAGE)?;
        Ok(Self { memory, header })
    }

    pub(crate) fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_fd()
    }

    /// The regions up to this one are read from now on.
    pub(crate) fn is_used(&self, region: usize) {
        let used = self.header.word(USED).map_or(0, |word| word.load(Ordering::Relaxed));
        self.store(USED, used.max(region as u64 + 1));
    }

    /// Nothing in this region counts any more. Its writer must be dead.
    pub(crate) fn clear(&self, region: usize) -> io::Result<()> {
        memory::give_back(self.memory.as_fd(), part(region))
    }

    fn store(&self, offset: usize, value: u64) {
        if let Some(word) = self.header.word(offset) {
            word.store(value, Ordering::Release);
        }
    }
}

impl Addresses {
    pub(crate) fn open(memory: BorrowedFd<'_>, region: usize) -> io::Result<Self> {
        let own = WritableMemory::map_part(memory, part(region))?;
        let all = ReadableMemory::map(memory, PAGE + REGIONS * REGION)?;
        let keys = KEYS.map(|offset| all.load(offset).unwrap_or_default());
        Ok(Self { own, all, keys })
    }

    /// A connection of this address comes in, unless the service has `most` of it. Whoever is refused is not counted.
    ///
    /// It counts first and looks then, as everybody does: of two that come at the same time at least one sees both, so there are
    /// never more than `most`; both may be refused where only one had to be.
    pub(crate) fn admit(&self, address: AddressKey, most: u64) -> bool {
        if !self.add(address) {
            return true;
        }
        fence(Ordering::SeqCst);
        let is_admitted = self.total(address) <= most;
        if !is_admitted {
            self.remove(address);
        }
        is_admitted
    }

    /// Counts a connection that this worker has, whoever had it before. The poller alone does this. False where there is no room
    /// to count it.
    pub(crate) fn add(&self, address: AddressKey) -> bool {
        let places = Places::of(address, self.keys);
        let words = || places.buckets().filter_map(|at| self.own.words(at, IN_BUCKET)).flatten();
        if let Some(word) = words().find(|word| places.has(word)) {
            // Where more are counted than fit, one that is not would be taken off later.
            let fits = count(word) < COUNT;
            if fits {
                word.fetch_add(1, Ordering::SeqCst);
            }
            return fits;
        }
        // What counts nothing is nobody's: its last connection has gone, and only the poller gives it to another address. Of the
        // bucket with more of these: otherwise both would be full for some while most words are free.
        let free = |at| self.own.words(at, IN_BUCKET).into_iter().flatten().filter(|word| count(word) == 0);
        let roomier = places.buckets().max_by_key(|at| free(*at).count());
        let Some(free) = roomier.and_then(|at| free(at).next()) else {
            return false;
        };
        free.store(places.tag | 1, Ordering::SeqCst);
        true
    }

    /// A connection that was counted is closed, or another worker's. Any thread does this.
    pub(crate) fn remove(&self, address: AddressKey) {
        let places = Places::of(address, self.keys);
        let mut words = places.buckets().filter_map(|at| self.own.words(at, IN_BUCKET)).flatten();
        if let Some(word) = words.find(|word| places.has(word)) {
            // Less than one is left by whoever was not counted for want of room, or by a handler that has written here.
            let less = |word: u64| (word & COUNT > 0).then(|| word - 1);
            let _ = word.fetch_update(Ordering::SeqCst, Ordering::SeqCst, less);
        }
    }

    fn total(&self, address: AddressKey) -> u64 {
        let places = Places::of(address, self.keys);
        let used = self.all.load(USED).unwrap_or_default().min(REGIONS as u64);
        let mut total = 0;
        for region in 0..usize::try_from(used).unwrap_or_default() {
            let start = part(region).start;
            for at in places.buckets().flat_map(|at| (at..).step_by(WORD).take(IN_BUCKET)) {
                let word = self.all.load(start + at).unwrap_or_default();
                total += if word & !COUNT == places.tag { word & COUNT } else { 0 };
            }
        }
        total
    }
}

/// Where a region is in the memfd.
fn part(region: usize) -> Range<usize> {
    let start = PAGE + region.min(REGIONS - 1) * REGION;
    start..start + REGION
}

fn count(word: &AtomicU64) -> u64 {
    word.load(Ordering::SeqCst) & COUNT
}

/// Where in a region an address may be counted.
#[derive(Debug, Clone, Copy)]
struct Places {
    tag: u64,
    buckets: [usize; 2],
}

impl Places {
    fn of(address: AddressKey, [one, other]: [u64; 2]) -> Self {
        let (bits, kind) = match address {
            AddressKey::V4(octets) => (u64::from(u32::from_be_bytes(octets)), 4),
            AddressKey::V6(network) => (network, 6),
            AddressKey::Unix(uid) => (u64::from(uid), 1),
        };
        let first = mixed(bits ^ one, other ^ kind);
        let tag = mixed(first ^ other, one | 1);
        let second = mixed(tag ^ one, first | 1);
        // A tag is never zero, which is what a word has that was never used.
        let tag = (tag & !COUNT) | 1 << COUNT_BITS;
        Self {
            tag,
            buckets: [first, second].map(|hash| usize::try_from(hash >> 40).unwrap_or_default() % BUCKETS),
        }
    }

    /// Their offsets; one where both are the same.
    fn buckets(self) -> impl Iterator<Item = usize> {
        let [first, second] = self.buckets;
        let second = Some(second).filter(|second| *second != first);
        std::iter::once(first).chain(second).map(|bucket| bucket * IN_BUCKET * WORD)
    }

    fn has(self, word: &AtomicU64) -> bool {
        word.load(Ordering::SeqCst) & !COUNT == self.tag
    }
}

/// Each bit depends on all of both.
fn mixed(one: u64, other: u64) -> u64 {
    let (one, other) = (one ^ 0x9e37_79b9_7f4a_7c15, other ^ 0xd1b5_4a32_d192_ed03);
    let high = ((u128::from(one) * u128::from(other)) >> 64) as u64;
    one.wrapping_mul(other) ^ high
}

#[cfg(test)]
mod tests {
    use super::*;

    fn v4(number: u32) -> AddressKey {
        AddressKey::V4(number.to_be_bytes())
    }

    /// The counts of a service, and those of its workers in these regions.
    fn service<const N: usize>(regions: [usize; N]) -> (AllAddresses, [Addresses; N]) {
        let all = AllAddresses::create().unwrap();
        let workers = regions.map(|region| {
            all.is_used(region);
            Addresses::open(all.memory(), region).unwrap()
        });
        (all, workers)
    }

    #[test]
    fn an_address_counts_in_all_workers_together_and_no_other_does() {
        let (_all, [one, other]) = service([0, 7]);
        assert!(one.admit(v4(1), 2) && other.admit(v4(1), 2));
        assert!(!one.admit(v4(1), 2) && !other.admit(v4(1), 2), "and whoever is refused does not count");
        assert!(one.admit(v4(2), 1) && one.admit(AddressKey::V6(1), 1));
        other.remove(v4(1));
        assert!(one.admit(v4(1), 2));
        assert_eq!((one.total(v4(1)), other.total(v4(1))), (2, 2));
    }

    /// A worker that dies leaves what it has counted; who is between two stores has counted one that it never took in.
    #[test]
    fn what_a_dead_worker_has_counted_goes_when_its_region_is_cleared() {
        let (all, [dies, lives]) = service([0, 1]);
        assert!(dies.add(v4(1)) && dies.add(v4(1)) && lives.add(v4(1)));
        drop(dies);
        assert!(!lives.admit(v4(1), 3), "they may be others' by now, which count them too");
        all.clear(0).unwrap();
        assert_eq!(lives.total(v4(1)), 1);
        let next = Addresses::open(all.memory(), 0).unwrap();
        assert!(next.admit(v4(1), 2) && !lives.admit(v4(1), 2));
    }

    #[test]
    fn thousands_of_addresses_are_counted_exactly_and_their_words_used_again() {
        let (_all, [worker]) = service([0]);
        for round in 0..3_u32 {
            let addresses = || (0..15_000).map(move |number| v4(round * 1_000_000 + number));
            assert!(addresses().all(|address| worker.add(address) && worker.add(address)));
            assert!(addresses().all(|address| worker.total(address) == 2));
            for address in addresses() {
                worker.remove(address);
                worker.remove(address);
            }
            assert!(addresses().all(|address| worker.total(address) == 0));
        }
    }

    #[test]
    fn where_there_is_no_room_nobody_is_refused() {
        let (_all, [worker]) = service([0]);
        let counted = (0..100_000).filter(|number| worker.add(v4(*number))).count();
        assert!((30_000..=BUCKETS * IN_BUCKET).contains(&counted), "{counted}");
        assert!((0..100_000).all(|number| worker.admit(v4(number), 9)));
        worker.remove(v4(1_000_000));
    }

    #[test]
    fn of_those_that_come_at_once_no_more_are_let_in_than_may_be() {
        let (_all, workers) = service([0, 1, 2, 3]);
        for round in 0..200 {
            let admitted: usize = std::thread::scope(|scope| {
                let threads: Vec<_> = workers
                    .iter()
                    .map(|worker| scope.spawn(move || usize::from(worker.admit(v4(round), 2))))
                    .collect();
                threads.into_iter().map(|thread| thread.join().unwrap()).sum()
            });
            assert!(admitted <= 2, "{admitted}");
        }
    }

    #[test]
    fn what_has_another_form_is_refused() {
        let other = memory::create_sealed(c"test", PAGE).unwrap();
        assert!(AllAddresses::open(other).is_err());
    }
}
