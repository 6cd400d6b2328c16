//! Everybody else's side of a worker's arena: read-only, and suspicious.
//!
//! The supervisor and the admin process read here while the worker writes, or after it has died. Where the words lie
//! was checked against the size of the memory when the arena was opened, and is remembered; the words
//! themselves are taken as numbers that may be anything.

use std::os::fd::AsFd;
use std::time::Duration;

use super::State;
use super::called_by::CalledBy;
use super::error::ArenaError;
use super::histogram::{BUCKETS, Histogram};
use super::layout::{
    HEAD_WORDS, HEADER_WORDS, HeadWord, Layout, ROW_CALL, ROW_CALLED_BY, ROW_COUNTERS, ROW_METHOD,
    ROW_SINCE_NS, WorkerWord,
};
use super::snapshot::{Culprit, Identity, Running, Snapshot};
use super::totals::{Counter, MethodTotals, Totals};
use crate::sys::culprit::{STACK_OVERFLOW, STRANGER};
use crate::sys::memory::{self, ReadableMemory, WORD};

/// How often a reader tries again to catch a row between two calls.
const ATTEMPTS: usize = 8;

/// A worker's arena, mapped read-only.
#[derive(Debug)]
pub(crate) struct ArenaReader {
    memory: ReadableMemory,
    layout: Layout,
}

impl ArenaReader {
    /// Maps the counters of an arena; the descriptor is needed no longer then.
    pub(crate) fn open(fd: impl AsFd) -> Result<Self, ArenaError> {
        let memory = ReadableMemory::map(fd.as_fd(), HEADER_WORDS * WORD)?;
        let header = std::array::from_fn(|index| memory.load(index * WORD).unwrap_or(0));
        let layout = Layout::read(&header, memory::sealed_size(fd.as_fd())?)?;
        // Not what connections hold: that may be a thousand times as much.
        let memory = ReadableMemory::map(fd.as_fd(), layout.counters_end())?;
        Ok(Self { memory, layout })
    }

    /// Everything the arena says, at `now_ns` of the monotonic clock.
    ///
    /// Loads are made in the opposite order of the writer's stores; that is what makes the sums agree.
    pub(crate) fn snapshot(&self, now_ns: u64) -> Snapshot {
        let mut totals = Totals::of_methods(self.methods());
        for counter in Counter::ALL {
            totals.count(counter, self.sum(counter));
        }
        let mut running = Vec::new();
        for row in 0..self.layout.rows {
            let (begun, runs) = self.call(row);
            totals.begun = totals.begun.saturating_add(begun);
            running.extend(runs);
        }
        Snapshot { identity: self.identity(now_ns), totals, running }
    }

    /// True while the worker has connections or runs calls, and has not come to its end.
    pub(crate) fn is_busy(&self) -> bool {
        let has_ended = self.load(self.layout.worker_word(WorkerWord::State)) == State::Ended.to_word();
        // In this order, as in a snapshot: whatever was accepted last is seen.
        let closed = self.sum(Counter::Closed);
        let has_connections = self.sum(Counter::Accepted) > closed;
        !has_ended && (has_connections || self.running() > 0)
    }

    /// How many calls run at this moment.
    pub(crate) fn running(&self) -> usize {
        let rows = (0..self.layout.rows).filter_map(|row| self.layout.row(row));
        rows.filter(|row| !self.load(row + ROW_CALL * WORD).is_multiple_of(2)).count()
    }

    /// The thread that took the process down, by its own word: the number of its row, if there is such a row.
    ///
    /// None if nobody has: the process lives, was killed, or died before it could be stored.
    pub(crate) fn culprit(&self) -> Option<Culprit> {
        match self.load(self.layout.worker_word(WorkerWord::Culprit)) {
            0 => None,
            STRANGER => Some(Culprit::Stranger),
            number => {
                let row = usize::try_from((number & !STACK_OVERFLOW).wrapping_sub(1)).ok();
                let stack_overflow = number & STACK_OVERFLOW != 0;
                let row = row.filter(|row| *row < self.layout.rows);
                Some(row.map_or(Culprit::Stranger, |row| Culprit::Row { row, stack_overflow }))
            }
        }
    }

    fn identity(&self, now_ns: u64) -> Option<Identity> {
        let word = |word| self.load(self.layout.worker_word(word));
        let state = State::from_word(word(WorkerWord::State))?;
        Some(Identity {
            pid: word(WorkerWord::Pid).try_into().ok()?,
            generation: word(WorkerWord::Generation),
            slot: word(WorkerWord::Slot).try_into().ok()?,
            state,
            uptime: Duration::from_nanos(now_ns.saturating_sub(word(WorkerWord::StartedNs))),
        })
    }

    /// How many calls a row has begun, and the one that runs.
    fn call(&self, row: usize) -> (u64, Option<Running>) {
        let Some(at) = self.layout.row(row) else { return (0, None) };
        let (number, pair) = call_of(|index| self.load(at + index * WORD));
        let running = pair.and_then(|(method, since_ns)| {
            let method = usize::try_from(method).ok().filter(|method| *method < self.layout.methods)?;
            Some(Running { row, method, number, since_ns, by: self.called_by(at, number) })
        });
        (number, running)
    }

    /// Who made a call; unknown where it has ended since, or in an arena that doesn't say.
    fn called_by(&self, row: usize, number: u64) -> CalledBy {
        if !self.layout.has_callers() {
            return CalledBy::UNKNOWN;
        }
        let by = CalledBy::read(|index| self.load(row + (ROW_CALLED_BY + index) * WORD));
        if self.load(row + ROW_CALL * WORD) == number << 1 | 1 { by } else { CalledBy::UNKNOWN }
    }

    /// A counter, over all rows.
    fn sum(&self, counter: Counter) -> u64 {
        let rows = (0..self.layout.rows).filter_map(|row| self.layout.row(row));
        rows.fold(0, |sum, row| sum.saturating_add(self.load(row + (ROW_COUNTERS + counter as usize) * WORD)))
    }

    /// What has been counted for each method, over all rows.
    fn methods(&self) -> Vec<MethodTotals> {
        let mut methods = vec![MethodTotals::default(); self.layout.methods];
        for row in 0..self.layout.rows {
            let (Some(heads), Some(histograms)) = (self.layout.heads(row), self.layout.histograms(row))
            else {
                continue;
            };
            for (index, method) in methods.iter_mut().enumerate() {
                self.add_method(
                    method,
                    heads + index * HEAD_WORDS * WORD,
                    histograms + index * BUCKETS * WORD,
                );
            }
        }
        methods
    }

    fn add_method(&self, method: &mut MethodTotals, head: usize, histogram: usize) {
        let word = |word: HeadWord| self.load(head + word as usize * WORD);
        // Looking at a page of shared memory allocates it, so histograms that nobody has touched are left alone.
        if word(HeadWord::Ok) == 0 && word(HeadWord::Errors) == 0 {
            return;
        }
        let buckets = std::array::from_fn(|bucket| self.load(histogram + bucket * WORD));
        method.histogram.add(&Histogram { buckets });
        method.run_ns = method.run_ns.saturating_add(word(HeadWord::RunNs));
        method.ok = method.ok.saturating_add(word(HeadWord::Ok));
        method.errors = method.errors.saturating_add(word(HeadWord::Errors));
    }

    /// The word at an offset that the layout gave; it lies inside, as the layout was checked against the size.
    fn load(&self, offset: usize) -> u64 {
        self.memory.load(offset).unwrap_or(0)
    }
}

/// How many calls a row has begun, with method and start of the last one if it runs; `word` loads a row's word.
///
/// If calls come and go so fast that none can be caught, none is said to run: none of them is worth a mention.
fn call_of(mut word: impl FnMut(usize) -> u64) -> (u64, Option<(u64, u64)>) {
    let mut number = 0;
    for _ in 0..ATTEMPTS {
        let call = word(ROW_CALL);
        number = call >> 1;
        if call.is_multiple_of(2) {
            return (number, None);
        }
        let pair = (word(ROW_METHOD), word(ROW_SINCE_NS));
        if word(ROW_CALL) == call {
            return (number, Some(pair));
        }
    }
    (number, None)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::OwnedFd;
    use std::os::unix::fs::FileExt;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
    use std::thread;

    use proptest::prelude::*;

    use super::*;
    use crate::arena::{Outcome, Room, counters, writer_and_reader};

    #[test]
    fn a_fresh_arena_says_nothing() {
        let (_arena, reader) = writer_and_reader(3, 2);
        let expected = Totals::of_methods(vec![MethodTotals::default(); 2]);
        assert_eq!(reader.snapshot(1), Snapshot { identity: None, totals: expected, running: vec![] });
    }

    #[test]
    fn a_snapshot_adds_up_what_all_threads_did() {
        let (mut arena, reader) = writer_and_reader(3, 2);
        arena.identify(4711, 3, 1, 1_000);
        arena.set_state(State::Ready);
        let mut poller = arena.row(0).unwrap();
        let mut pool = [arena.row(1).unwrap(), arena.row(2).unwrap()];
        for _ in 0..3 {
            poller.connection_opened();
        }
        pool[0].connection_closed();
        poller.refused();
        poller.deadline_exceeded();
        poller.log_dropped(40);
        for row in &mut pool {
            row.begin(0, 2_000);
            row.finish(0, Outcome::Ok, 5_000);
            row.begin(1, 3_000);
        }
        pool[1].finish(1, Outcome::Error, 6_000);

        let snapshot = reader.snapshot(2_001_000);
        let identity = Identity {
            pid: 4711,
            generation: 3,
            slot: 1,
            state: State::Ready,
            uptime: Duration::from_millis(2),
        };
        assert_eq!(snapshot.identity, Some(identity));
        assert_eq!(
            snapshot.running,
            [Running { row: 1, method: 1, number: 2, since_ns: 3_000, by: CalledBy::UNKNOWN }]
        );
        assert_eq!(snapshot.running[0].elapsed(2_001_000), Duration::from_micros(1_998));
        let totals = &snapshot.totals;
        assert_eq!((totals.begun, totals.answered(), totals.connections_open()), (4, 3, 2));
        // Closed, accepted, ok, errors, panics, late, refused, deadline exceeded, log dropped.
        assert_eq!(Counter::ALL.map(|counter| totals.get(counter)), [1, 3, 2, 1, 0, 0, 1, 1, 40]);
        let [first, second] = &totals.methods[..] else { panic!("two methods") };
        assert_eq!((first.ok, first.errors, first.run_ns, first.histogram.count()), (2, 0, 10_000, 2));
        assert_eq!((second.ok, second.errors, second.run_ns, second.histogram.count()), (0, 1, 6_000, 1));
    }

    #[test]
    fn whatever_the_writer_stores_between_two_loads_the_pair_is_of_one_call() {
        let calls = 1..=20_u64;
        let stores: Vec<_> = calls
            .flat_map(|call| {
                [(ROW_METHOD, call), (ROW_SINCE_NS, call), (ROW_CALL, call * 2 + 1), (ROW_CALL, call * 2)]
            })
            .collect();
        let (mut caught, mut missed) = (0, 0);
        // How many stores are made before the first four loads, and before each one that follows.
        for case in 0..8_usize.pow(5) {
            let mut words = [0; ROW_COUNTERS];
            let mut left = stores.iter();
            let mut loads = 0;
            let (number, pair) = call_of(|index| {
                for (stored, value) in left.by_ref().take(case >> (3 * loads.min(4)) & 7) {
                    words[*stored] = *value;
                }
                loads += 1;
                words[index]
            });
            match pair {
                Some(pair) => assert_eq!(pair, (number, number), "case {case:o}"),
                None => missed += 1,
            }
            caught += usize::from(pair.is_some());
        }
        assert!(caught > 100 && missed > 100, "{caught} caught, {missed} missed");
    }

    /// Checks what holds in every snapshot while calls come and go; returns how many were caught running.
    fn check_agreement(snapshot: &Snapshot) -> u64 {
        for runs in &snapshot.running {
            assert_eq!(runs.since_ns, runs.number * 1_000, "{runs:?}");
            assert_eq!(runs.method as u64, runs.number % 7, "{runs:?}");
        }
        let totals = &snapshot.totals;
        let running = snapshot.running.len() as u64;
        let by_method: u64 = totals.methods.iter().map(|method| method.ok).sum();
        let in_histograms: u64 = totals.methods.iter().map(|method| method.histogram.count()).sum();
        assert!(in_histograms <= by_method, "{in_histograms} in histograms, {by_method} by method");
        assert!(by_method <= totals.answered(), "{by_method} by method, {} answered", totals.answered());
        assert!(
            totals.answered() + running <= totals.begun,
            "{} answered, {running} running",
            totals.answered()
        );
        running
    }

    #[test]
    fn no_reader_ever_sees_half_of_one_call_and_half_of_another() {
        const ENOUGH_SEEN: u64 = 2_000;
        const MOST_CALLS: u64 = 10_000_000;
        let (mut arena, reader) = writer_and_reader(1, 7);
        let mut row = arena.row(0).unwrap();
        let (is_over, seen) = (AtomicBool::new(false), AtomicU64::new(0));
        let calls = thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !is_over.load(Ordering::Acquire) {
                        seen.fetch_add(check_agreement(&reader.snapshot(0)), Ordering::Relaxed);
                    }
                });
            }
            let mut number = 0;
            while number < MOST_CALLS && seen.load(Ordering::Relaxed) < ENOUGH_SEEN {
                number += 1;
                let method = usize::try_from(number % 7).unwrap();
                row.begin(method, number * 1_000);
                // Calls of many lengths, so that readers come in at every point of one.
                for _ in 0..number % 64 {
                    std::hint::spin_loop();
                }
                row.finish(method, Outcome::Ok, number);
            }
            is_over.store(true, Ordering::Release);
            number
        });
        let totals = reader.snapshot(0).totals;
        assert_eq!((totals.begun, totals.answered()), (calls, calls));
        assert!(seen.into_inner() > 0, "no call was caught running: the test has shown nothing");
    }

    #[test]
    fn connections_that_one_thread_accepts_and_another_closes_never_go_below_none() {
        const CONNECTIONS: u64 = 100_000;
        let (mut arena, reader) = writer_and_reader(2, 0);
        let (mut poller, mut pool) = (arena.row(0).unwrap(), arena.row(1).unwrap());
        let (accepted, to_close) = std::sync::mpsc::sync_channel(16);
        thread::scope(|threads| {
            threads.spawn(move || {
                for _ in 0..CONNECTIONS {
                    poller.connection_opened();
                    accepted.send(()).unwrap();
                }
            });
            let closing = threads.spawn(move || {
                for () in to_close {
                    pool.connection_closed();
                }
            });
            while !closing.is_finished() {
                let totals = reader.snapshot(0).totals;
                assert!(totals.get(Counter::Closed) <= totals.get(Counter::Accepted), "{totals:?}");
            }
        });
        assert_eq!(reader.snapshot(0).totals.get(Counter::Closed), CONNECTIONS);
    }

    /// That of `counters(3, 2)`.
    fn layout() -> Layout {
        Layout::new(&Room { rows: 3, methods: 2, connections: 0, buffers: 0 }).unwrap()
    }

    /// Overwrites words of an arena, by index.
    fn scribble(fd: OwnedFd, changes: &[(usize, u64)], words: usize) -> OwnedFd {
        let file = File::from(fd);
        for (index, value) in changes {
            file.write_all_at(&value.to_le_bytes(), ((index % words) * WORD) as u64).unwrap();
        }
        file.into()
    }

    fn is_bounded(reader: &ArenaReader, rows: usize, methods: usize) -> bool {
        let snapshot = reader.snapshot(u64::MAX);
        snapshot.running.len() <= rows
            && snapshot.totals.methods.len() <= methods
            && snapshot.running.iter().all(|runs| runs.row < rows && runs.method < methods)
    }

    #[test]
    fn an_arena_filled_with_one_value_gives_a_bounded_snapshot() {
        for value in [1, 0x7f, u64::MAX, u64::MAX - 1, 1 << 63, 0x0101_0101_0101_0101] {
            let size = layout().size / WORD;
            let all: Vec<_> = (HEADER_WORDS..size).map(|index| (index, value)).collect();
            let reader = ArenaReader::open(scribble(counters(3, 2).unwrap(), &all, size)).unwrap();
            assert!(is_bounded(&reader, 3, 2), "{value:#x}");
        }
    }

    #[test]
    fn an_arena_scribbled_on_after_it_was_opened_is_still_read_where_it_was() {
        let size = layout().size / WORD;
        let fd = counters(3, 2).unwrap();
        let reader = ArenaReader::open(&fd).unwrap();
        let all: Vec<_> = (0..size).map(|index| (index, u64::MAX)).collect();
        scribble(fd, &all, size);
        assert!(is_bounded(&reader, 3, 2));
        assert_eq!(reader.snapshot(1).totals.answered(), u64::MAX);
    }

    proptest! {
        #[test]
        fn whatever_an_arena_holds_it_gives_an_error_or_a_bounded_snapshot(
            header in prop::collection::vec((0..HEADER_WORDS, prop_oneof![0_u64..4096, any::<u64>()]), 0..3),
            content in prop::collection::vec((any::<usize>(), prop_oneof![0_u64..8, any::<u64>()]), 0..200),
        ) {
            let size = layout().size / WORD;
            let fd = scribble(scribble(counters(3, 2).unwrap(), &content, size), &header, size);
            if let Ok(reader) = ArenaReader::open(fd) {
                let (rows, methods) = (reader.layout.rows, reader.layout.methods);
                prop_assert!(rows * 128 <= size * WORD && methods * 1024 <= size * WORD);
                prop_assert!(is_bounded(&reader, rows, methods));
            }
        }

        #[test]
        fn pure_noise_is_no_arena(noise in prop::collection::vec(any::<u64>(), 16..600)) {
            let fd = crate::sys::memory::create_sealed(c"test", noise.len() * WORD).unwrap();
            let words: Vec<_> = noise.iter().copied().enumerate().collect();
            prop_assert!(ArenaReader::open(scribble(fd, &words, noise.len())).is_err());
        }
    }
}
