//! The worker's side of its arena: the only code that writes there.
//!
//! The worker's poller holds the [`ArenaWriter`]; each thread that runs calls owns one [`Row`]. Nothing here
//! locks, allocates, waits or makes a system call once the rows are handed out. The caller brings the clock.

use std::os::fd::{AsFd, OwnedFd};

use super::State;
use super::called_by::{self, CalledBy};
use super::error::ArenaError;
use super::histogram::{BUCKETS, bucket_of};
use super::layout::{
    HEAD_WORDS, HEADER_WORDS, HeadWord, Layout, ROW_CALL, ROW_CALLED_BY, ROW_COUNTERS, ROW_METHOD,
    ROW_SINCE_NS, ROW_WORDS, WorkerWord,
};
use super::record::Records;
use super::totals::Counter;
use crate::sys::blocks::Pool;
use crate::sys::memory::{self, WORD, WritableMemory};
use crate::sys::peer::PeerAddress;
use crate::sys::sync::{AtomicU64, Ordering};

const _: () =
    assert!(ROW_COUNTERS + Counter::ALL.len() <= ROW_CALLED_BY, "a row has a word for every counter");
const _: () = assert!(ROW_CALLED_BY + called_by::WORDS <= ROW_WORDS, "a row has room for who called");

/// How a handler's run ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It returned a result.
    Ok,
    /// It returned an error.
    Error,
    /// It panicked.
    Panicked,
    /// It came back after its caller had been answered with a deadline error, so nobody got what it returned.
    /// The deadline error itself is counted by the thread that gave it: [`Row::deadline_exceeded`].
    Late,
}

/// The worker's writable arena; there must be one for each arena, in the worker alone.
#[derive(Debug)]
pub(crate) struct ArenaWriter {
    /// Until the blocks are mapped: afterwards the arena needs none.
    fd: Option<OwnedFd>,
    memory: &'static WritableMemory,
    layout: Layout,
    is_taken: Vec<bool>,
}

impl ArenaWriter {
    /// Maps a worker's own arena, but for the blocks.
    ///
    /// The mapping stays for the life of the process: a thread that is stuck in a handler may come back at any
    /// time and write to its row.
    pub(crate) fn open(fd: OwnedFd) -> Result<Self, ArenaError> {
        let memory = WritableMemory::map(fd.as_fd(), HEADER_WORDS * WORD)?;
        let header = std::array::from_fn(|index| {
            memory.word(index * WORD).map_or(0, |word| word.load(Ordering::Acquire))
        });
        drop(memory);
        let layout = Layout::read(&header, memory::sealed_size(fd.as_fd())?)?;
        let memory = Box::leak(Box::new(WritableMemory::map(fd.as_fd(), layout.words_end())?));
        Ok(Self { fd: Some(fd), memory, layout, is_taken: vec![false; layout.rows] })
    }

    /// The pool of the arena's blocks; to be asked for once.
    pub(crate) fn blocks(&mut self) -> Result<&'static Pool, ArenaError> {
        let spans = self.layout.spans();
        let expected = spans.bytes().unwrap_or(usize::MAX);
        let Layout { data_at, data, .. } = self.layout;
        // No mapping that is written to may overlap another one.
        let fits = data >= expected && data_at >= self.layout.words_end();
        let fd = self.fd.take().filter(|_| fits).ok_or(ArenaError::NoBlocks { found: data, expected })?;
        Ok(Pool::open(fd.as_fd(), data_at, &spans)?)
    }

    /// Introduces the worker, as booting since `now_ns` (monotonic clock). To be called once.
    ///
    /// A reader takes the words for an identity only once there is a state, and that is stored last: a worker that
    /// dies in here leaves an arena of nobody.
    pub(crate) fn identify(&mut self, pid: u32, generation: u64, slot: usize, now_ns: u64) {
        self.store(WorkerWord::Pid, u64::from(pid));
        self.store(WorkerWord::Generation, generation);
        self.store(WorkerWord::Slot, slot as u64);
        self.store(WorkerWord::StartedNs, now_ns);
        self.set_state(State::Booting);
    }

    /// The records of connections.
    pub(crate) fn records(&self) -> Records {
        let (at, count) = self.layout.records();
        Records::new(self.memory.words(at, count).unwrap_or_default())
    }

    /// Says how far the worker has come: a single store.
    pub(crate) fn set_state(&mut self, state: State) {
        self.store(WorkerWord::State, state.to_word());
    }

    /// Calls that all threads have begun.
    pub(crate) fn begun(&self) -> u64 {
        let rows =
            (0..self.layout.rows).filter_map(|row| self.memory.word(self.layout.row(row)? + ROW_CALL * WORD));
        rows.fold(0, |sum: u64, word| sum.wrapping_add(word.load(Ordering::Relaxed) >> 1))
    }

    /// Where whoever takes the process down stores its row, plus 1, if there is 0: a single compare-and-swap, possible in a
    /// signal handler. A reader finds nobody before it, and one thread for ever after it.
    pub(crate) fn culprit(&self) -> Option<&'static AtomicU64> {
        self.memory.word(self.layout.worker_word(WorkerWord::Culprit))
    }

    /// Hands out a row, to be owned by one thread. Its number is the thread's.
    ///
    /// Each row is handed out once, so it has one writer.
    pub(crate) fn row(&mut self, row: usize) -> Result<Row, ArenaError> {
        let rows = self.layout.rows;
        let no_such_row = || ArenaError::NoSuchRow { row, rows };
        let is_taken = self.is_taken.get_mut(row).ok_or_else(no_such_row)?;
        if *is_taken {
            return Err(ArenaError::RowTaken { row });
        }
        let methods = self.layout.methods;
        let words = |offset: Option<usize>, count| self.memory.words(offset?, count);
        let taken = Row {
            words: words(self.layout.row(row), ROW_WORDS)
                .and_then(|words| words.first_chunk())
                .ok_or_else(no_such_row)?,
            heads: words(self.layout.heads(row), methods * HEAD_WORDS).ok_or_else(no_such_row)?.as_chunks().0,
            histograms: words(self.layout.histograms(row), methods * BUCKETS)
                .ok_or_else(no_such_row)?
                .as_chunks()
                .0,
            begun: 0,
        };
        *is_taken = true;
        Ok(taken)
    }

    fn store(&self, word: WorkerWord, value: u64) {
        if let Some(word) = self.memory.word(self.layout.worker_word(word)) {
            word.store(value, Ordering::Release);
        }
    }
}

/// One thread's part of the arena. Its thread is the only one that writes there.
///
/// Every store releases, so a reader that sees one sees all that were made before it; the order of the stores is
/// what makes a snapshot consistent.
#[derive(Debug)]
pub(crate) struct Row {
    words: &'static [AtomicU64; ROW_WORDS],
    heads: &'static [[AtomicU64; HEAD_WORDS]],
    histograms: &'static [[AtomicU64; BUCKETS]],
    /// Kept here and not read back, so that a scribbled word is right again with the next call.
    begun: u64,
}

/// A thread's own look at its row: what it runs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OwnRow(&'static [AtomicU64; ROW_WORDS]);

impl OwnRow {
    /// The method's number, when the call began (monotonic clock) and who made it; None while none runs.
    pub(crate) fn running(self) -> Option<(usize, u64, CalledBy)> {
        let word = |index: usize| self.0.get(index).map_or(0, |word| word.load(Ordering::Relaxed));
        if word(ROW_CALL).is_multiple_of(2) {
            return None;
        }
        let method = usize::try_from(word(ROW_METHOD)).ok()?;
        Some((method, word(ROW_SINCE_NS), CalledBy::read(|index| word(ROW_CALLED_BY + index))))
    }
}

impl Row {
    /// For the thread whose row it is.
    pub(crate) fn own(&self) -> OwnRow {
        OwnRow(self.words)
    }

    /// Says who makes the call that begins next, by the text of its id.
    ///
    /// The stores come before those of [`begin`](Self::begin), and while no call runs: dying between two of them leaves
    /// words that nobody reads.
    pub(crate) fn called_by(&mut self, peer: PeerAddress, id: Option<&[u8]>) {
        CalledBy::write(peer, id, |index, value| {
            if let Some(word) = self.words.get(ROW_CALLED_BY + index) {
                release(word, value);
            }
        });
    }

    /// Says that a call of `method` begins to run, at `now_ns` of the monotonic clock. The one before is finished.
    pub(crate) fn begin(&mut self, method: usize, now_ns: u64) {
        self.begin_with(method, now_ns, &mut release);
    }

    /// Says that the call which was begun last has ended after `run_ns` nanoseconds, and that its answer, if one is wanted, is in the
    /// record of its connection or with those of its batch.
    pub(crate) fn finish(&mut self, method: usize, outcome: Outcome, run_ns: u64) {
        self.finish_with(method, outcome, run_ns, &mut release);
    }

    /// Counts a connection that this thread has accepted.
    pub(crate) fn connection_opened(&mut self) {
        self.count(Counter::Accepted, 1);
    }

    /// Counts a connection that this thread has closed, whoever accepted it.
    pub(crate) fn connection_closed(&mut self) {
        self.count(Counter::Closed, 1);
    }

    /// Counts a call that was refused as overloaded.
    pub(crate) fn refused(&mut self) {
        self.count(Counter::Refused, 1);
    }

    /// Counts a deadline error that this thread has answered with, whether or not the call was begun.
    pub(crate) fn deadline_exceeded(&mut self) {
        self.count(Counter::DeadlineExceeded, 1);
    }

    /// Counts log lines that were dropped.
    pub(crate) fn log_dropped(&mut self, lines: u64) {
        self.count(Counter::LogDropped, lines);
    }

    /// Three stores. The call word holds the number of calls begun and whether the last one runs, and is stored
    /// last. Dying before that leaves it on the call before, which runs no more: this call was never begun.
    /// (Its handler was not entered, so that is the truth.) Dying after it leaves the call running; that its connection's record
    /// says so too comes after that.
    ///
    /// A reader that finds the call word unchanged after it has read method and start has read a true pair: they
    /// are written again only after [`finish`](Self::finish) has moved the call word on.
    fn begin_with(&mut self, method: usize, now_ns: u64, store: &mut impl FnMut(&AtomicU64, u64)) {
        self.begun = self.begun.wrapping_add(1);
        store(&self.words[ROW_METHOD], method as u64);
        store(&self.words[ROW_SINCE_NS], now_ns);
        store(&self.words[ROW_CALL], self.begun << 1 | 1);
    }

    /// Five stores. The first takes the call from what runs, because its answer is where a death that comes now can't take it. Before
    /// that its caller would be told that it is lost, so it is named then. Dying after it, before the second, leaves a call that was begun, doesn't run
    /// and isn't counted by outcome; before the third, fourth or fifth, one that is missing in its method's
    /// count, time or histogram. So at any moment histogram ≤ method's counts, their sum ≤ outcomes,
    /// and outcomes + running ≤ begun; a count can miss the last call, and never counts one twice.
    fn finish_with(
        &mut self,
        method: usize,
        outcome: Outcome,
        run_ns: u64,
        store: &mut impl FnMut(&AtomicU64, u64),
    ) {
        let (counter, head_word) = match outcome {
            Outcome::Ok => (Counter::Ok, HeadWord::Ok),
            Outcome::Error => (Counter::Errors, HeadWord::Errors),
            Outcome::Panicked => (Counter::Panics, HeadWord::Errors),
            Outcome::Late => (Counter::Late, HeadWord::Errors),
        };
        store(&self.words[ROW_CALL], self.begun << 1);
        let mut add = |word: &AtomicU64, more| store(word, word.load(Ordering::Relaxed).wrapping_add(more));
        add(&self.words[ROW_COUNTERS + counter as usize], 1);
        if let (Some(head), Some(histogram)) = (self.heads.get(method), self.histograms.get(method)) {
            add(&head[head_word as usize], 1);
            add(&head[HeadWord::RunNs as usize], run_ns);
            add(&histogram[bucket_of(run_ns)], 1);
        }
    }

    /// One store: it is counted, or it isn't.
    fn count(&mut self, counter: Counter, more: u64) {
        let word = &self.words[ROW_COUNTERS + counter as usize];
        release(word, word.load(Ordering::Relaxed).wrapping_add(more));
    }
}

/// Stores as the only writer of a word; what was stored before is seen by whoever sees this.
fn release(word: &AtomicU64, value: u64) {
    word.store(value, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::snapshot::Running;
    use crate::arena::{ArenaReader, Culprit, Room, Snapshot, counters, create, writer_and_reader};
    use crate::sys::culprit::{STACK_OVERFLOW, STRANGER};

    /// Performs the first `left` stores and loses the others, as a death does.
    fn dying_after(mut left: usize) -> impl FnMut(&AtomicU64, u64) {
        move |word, value| {
            if let Some(rest) = left.checked_sub(1) {
                left = rest;
                release(word, value);
            }
        }
    }

    fn outcomes(snapshot: &Snapshot) -> u64 {
        [Counter::Ok, Counter::Errors, Counter::Panics, Counter::Late]
            .map(|counter| snapshot.totals.get(counter))
            .iter()
            .sum()
    }

    #[test]
    fn a_worker_that_dies_while_it_begins_a_call_has_begun_it_or_has_not() {
        for stores in 0..=3 {
            for calls_before in 0..4 {
                let (mut arena, reader) = writer_and_reader(2, 3);
                let mut row = arena.row(1).unwrap();
                for call in 0..calls_before {
                    row.begin(2, call);
                    row.finish(2, Outcome::Ok, 1);
                }
                row.begin_with(1, 500, &mut dying_after(stores));
                let snapshot = reader.snapshot(0);
                let begun = calls_before + u64::from(stores == 3);
                let runs = Running { row: 1, method: 1, number: begun, since_ns: 500, by: CalledBy::UNKNOWN };
                let expected = if stores == 3 { vec![runs] } else { vec![] };
                assert_eq!(snapshot.running, expected, "after {stores} stores, {calls_before} calls before");
                assert_eq!(
                    snapshot.totals.begun, begun,
                    "after {stores} stores, {calls_before} calls before"
                );
                assert_eq!(outcomes(&snapshot), calls_before);
            }
        }
    }

    #[test]
    fn a_worker_that_dies_while_it_finishes_a_call_never_counts_it_twice() {
        // After so many stores: running, outcome counted, method counted, time added, in the histogram.
        let table = [
            (0, (1, 0, 0, 0, 0)),
            (1, (0, 0, 0, 0, 0)),
            (2, (0, 1, 0, 0, 0)),
            (3, (0, 1, 1, 0, 0)),
            (4, (0, 1, 1, 7_000, 0)),
            (5, (0, 1, 1, 7_000, 1)),
        ];
        for outcome in [Outcome::Ok, Outcome::Error, Outcome::Panicked, Outcome::Late] {
            for (stores, expected) in table {
                let (mut arena, reader) = writer_and_reader(2, 3);
                let mut row = arena.row(0).unwrap();
                row.begin(2, 500);
                row.finish_with(2, outcome, 7_000, &mut dying_after(stores));
                let snapshot = reader.snapshot(0);
                let method = &snapshot.totals.methods[2];
                let found = (
                    snapshot.running.len(),
                    outcomes(&snapshot),
                    method.ok + method.errors,
                    method.run_ns,
                    method.histogram.count(),
                );
                assert_eq!(found, expected, "{outcome:?} after {stores} stores");
                assert_eq!(snapshot.totals.begun, 1);
            }
        }
    }

    #[test]
    fn a_worker_that_dies_before_it_has_a_state_is_nobody() {
        let (mut arena, reader) = writer_and_reader(1, 0);
        for word in [WorkerWord::Pid, WorkerWord::Generation, WorkerWord::Slot, WorkerWord::StartedNs] {
            assert_eq!(reader.snapshot(0).identity, None);
            arena.store(word, 3);
        }
        assert_eq!(reader.snapshot(0).identity, None);
        arena.set_state(State::Booting);
        assert!(reader.snapshot(0).identity.is_some());
    }

    #[test]
    fn a_worker_that_is_taken_down_names_nobody_before_its_one_store_and_the_culprit_after_it() {
        let (mut arena, reader) = writer_and_reader(3, 1);
        let mut row = arena.row(2).unwrap();
        row.begin(0, 1);
        assert_eq!(reader.culprit(), None);
        arena.culprit().unwrap().store(3, Ordering::Release);
        assert_eq!(reader.culprit(), Some(Culprit::Row { row: 2, stack_overflow: false }));
        // What the thread ran is told as for any other death.
        assert_eq!(
            reader.snapshot(0).running,
            [Running { row: 2, method: 0, number: 1, since_ns: 1, by: CalledBy::UNKNOWN }]
        );
        arena.culprit().unwrap().store(3 | STACK_OVERFLOW, Ordering::Release);
        assert_eq!(reader.culprit(), Some(Culprit::Row { row: 2, stack_overflow: true }));
        for no_row in [4, STACK_OVERFLOW, STACK_OVERFLOW | 4, STRANGER - 1, STRANGER] {
            arena.culprit().unwrap().store(no_row, Ordering::Release);
            assert_eq!(reader.culprit(), Some(Culprit::Stranger), "{no_row}");
        }
    }

    #[test]
    fn each_outcome_is_counted_once_and_only_its_own_way() {
        let table = [
            (Outcome::Ok, Counter::Ok, (1, 0), 1),
            (Outcome::Error, Counter::Errors, (0, 1), 1),
            (Outcome::Panicked, Counter::Panics, (0, 1), 0),
            (Outcome::Late, Counter::Late, (0, 1), 0),
        ];
        for (outcome, counter, of_method, answered) in table {
            let (mut arena, reader) = writer_and_reader(1, 1);
            let mut row = arena.row(0).unwrap();
            row.begin(0, 1);
            row.finish(0, outcome, 1_000);
            let totals = reader.snapshot(0).totals;
            let counted: Vec<_> =
                Counter::ALL.into_iter().filter(|counter| totals.get(*counter) > 0).collect();
            assert_eq!(counted, [counter]);
            assert_eq!((totals.methods[0].ok, totals.methods[0].errors), of_method, "{outcome:?}");
            assert_eq!(totals.answered(), answered, "{outcome:?}");
        }
    }

    #[test]
    fn a_row_is_given_to_one_thread_only() {
        let (mut arena, _reader) = writer_and_reader(2, 1);
        arena.row(1).unwrap();
        assert!(matches!(arena.row(1), Err(ArenaError::RowTaken { row: 1 })));
        assert!(matches!(arena.row(2), Err(ArenaError::NoSuchRow { row: 2, rows: 2 })));
        assert!(arena.row(0).is_ok());
    }

    #[test]
    fn a_method_that_the_arena_does_not_know_harms_nothing() {
        let (mut arena, reader) = writer_and_reader(1, 1);
        let mut row = arena.row(0).unwrap();
        row.begin(usize::MAX, 1);
        assert_eq!(reader.snapshot(0).running, []);
        row.finish(usize::MAX, Outcome::Ok, 1);
        let totals = reader.snapshot(0).totals;
        assert_eq!((totals.begun, totals.answered()), (1, 1));
    }

    #[test]
    fn a_descriptor_that_holds_no_arena_is_refused() {
        let blank = crate::sys::memory::create_sealed(c"test", 4096).unwrap();
        assert!(matches!(ArenaReader::open(&blank), Err(ArenaError::NotAnArena { found: 0 })));
        assert!(matches!(ArenaWriter::open(blank), Err(ArenaError::NotAnArena { found: 0 })));
        let short = crate::sys::memory::create_sealed(c"test", 64).unwrap();
        assert!(matches!(ArenaWriter::open(short), Err(ArenaError::Memory(_))));
        assert!(ArenaWriter::open(counters(1, 1).unwrap()).is_ok());
    }

    #[test]
    fn an_arena_has_one_pool_of_blocks_of_the_size_it_was_made_for() {
        let room = Room { rows: 1, methods: 1, connections: 10, buffers: 1 << 20 };
        let fd = create(&room).unwrap();
        let reader = ArenaReader::open(&fd).unwrap();
        let mut arena = ArenaWriter::open(fd).unwrap();
        let mut row = arena.row(0).unwrap();
        let mut block = arena.blocks().unwrap().take(1 << 20).unwrap();
        assert!(matches!(arena.blocks(), Err(ArenaError::NoBlocks { .. })), "twice");
        block.fill(0xff);
        assert_eq!(reader.snapshot(0).totals.begun, 0, "blocks are apart from counters");
        row.begin(0, 1);
        assert_eq!(reader.snapshot(0).totals.begun, 1);
        let mut arena = ArenaWriter::open(counters(1, 1).unwrap()).unwrap();
        assert!(matches!(arena.blocks(), Err(ArenaError::NoBlocks { found: 0, .. })));
    }
}
