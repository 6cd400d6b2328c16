//! Where each word of an arena lies: pure arithmetic, no memory.
//!
//! The supervisor lays an arena out ([`Layout::new`]); who opens one reads the layout back from its header
//! ([`Layout::read`]) and treats that as untrusted, for a handler may have scribbled over all of it.
//!
//! ```text
//! header   16 words   magic, version, sizes, offsets: written once, before the worker exists
//! worker    8 words   pid, generation, slot, state, start: written by whoever is the poller; who took it down
//! row 0 … row T+1     one for each thread that may run calls, each written by that thread alone
//!   row    24 words     what it runs, counters, and who called
//!   heads   4 words     for each method: ok, errors, time
//!   histograms 128 words for each method
//! records  64 words for each connection that the worker may have
//! data     from a whole page on: the blocks of `sys::blocks`, whose places the records name
//! ```
//!
//! The supervisor maps what comes before the records. Every section starts on a cache line, and a row's size is a whole number of them, so two threads never write
//! to the same one. The offsets stand in the header although this version could compute them: a later version
//! may put sections after, between or inside these, and an older reader finds
//! its words all the same. [`VERSION`] changes only when words that exist get another meaning or place in their
//! section.

use std::ops::RangeInclusive;

use super::error::ArenaError;
use super::histogram::BUCKETS;
use crate::sys::blocks::Spans;
use crate::sys::memory::{PAGE, WORD};

/// The most rows an arena may have.
pub(super) const MAX_ROWS: usize = 16_384;
/// The most methods an arena may count; it also bounds what a reader allocates for a snapshot.
pub(super) const MAX_METHODS: usize = 16_384;
/// The most bytes that all rows may take together.
pub(super) const MAX_ROWS_BYTES: usize = 1 << 30;

/// The most connections an arena may have records for.
pub(super) const MAX_RECORDS: usize = 1 << 24;

/// Words of a connection's record.
pub(super) const RECORD_WORDS: usize = 64;

/// Words of the header.
pub(super) const HEADER_WORDS: usize = 16;
/// Words of the worker section, in the order of [`WorkerWord`].
pub(super) const WORKER_WORDS: usize = 8;
/// Words of a row before its methods' words: the call words, one word for each counter, who called, then spare ones.
pub(super) const ROW_WORDS: usize = 24;
/// Words of a method's head in a row, in the order of [`HeadWord`]; the last is spare.
pub(super) const HEAD_WORDS: usize = 4;

/// Row word: call number × 2, plus 1 while that call runs.
pub(super) const ROW_CALL: usize = 0;
/// Row word: the method of the call that the call word speaks of.
pub(super) const ROW_METHOD: usize = 1;
/// Row word: when that call began, in nanoseconds of the monotonic clock.
pub(super) const ROW_SINCE_NS: usize = 2;
/// Row words: the counters, in the order of `Counter`.
pub(super) const ROW_COUNTERS: usize = 3;
/// Row words: who made the call that the call word speaks of, as `called_by` has it.
pub(super) const ROW_CALLED_BY: usize = 12;

/// The words of the worker section.
#[derive(Debug, Clone, Copy)]
pub(super) enum WorkerWord {
    Pid,
    Generation,
    Slot,
    StartedNs,
    /// 0 until the worker has introduced itself; stored after the others.
    State,
    /// 0, or the row of the thread that takes the process down, plus 1, with a bit for how: the one word that is written by
    /// any thread.
    Culprit,
}

/// The words of a method's head.
#[derive(Debug, Clone, Copy)]
pub(super) enum HeadWord {
    Ok,
    Errors,
    RunNs,
}

const _: () = assert!((WorkerWord::Culprit as usize) < WORKER_WORDS, "the worker's words have room");

const MAGIC: u64 = u64::from_le_bytes(*b"tinearen");
const VERSION: u64 = 1;
const LINE: usize = 64;

/// What an arena has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Room {
    /// Threads that may run calls.
    pub(crate) rows: usize,
    pub(crate) methods: usize,
    pub(crate) connections: usize,
    /// Bytes that connections may hold, about.
    pub(crate) buffers: usize,
}

/// Offsets of an arena's parts in bytes, all within [`size`](Self::size) and aligned to words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout {
    pub(super) size: usize,
    pub(super) rows: usize,
    pub(super) methods: usize,
    worker: usize,
    rows_at: usize,
    row_stride: usize,
    heads_in_row: usize,
    histograms_in_row: usize,
    records_at: usize,
    records: usize,
    /// Where the blocks begin, and how many bytes are theirs. Both are 0 in an arena without connections.
    pub(super) data_at: usize,
    pub(super) data: usize,
    /// What the blocks were laid out for, beside the number of records.
    buffers: usize,
}

impl Layout {
    /// Lays out an arena.
    pub(super) fn new(room: &Room) -> Result<Self, ArenaError> {
        let counters = Self::of_counters(room.rows, room.methods)?;
        if room.connections == 0 {
            return Ok(counters);
        }
        let refused = || ArenaError::Connections { connections: room.connections, buffers: room.buffers };
        if room.connections > MAX_RECORDS {
            return Err(refused());
        }
        let records_at = counters.size;
        let records_end = records_at + room.connections * RECORD_WORDS * WORD;
        let data_at = records_end.next_multiple_of(PAGE);
        let data = Spans::new(room.buffers, room.connections).bytes().ok_or_else(refused)?;
        // The kernel counts a file's bytes with a sign.
        let size =
            data_at.checked_add(data).filter(|size| i64::try_from(*size).is_ok()).ok_or_else(refused)?;
        let (records, buffers) = (room.connections, room.buffers);
        Ok(Self { size, records_at, records, data_at, data, buffers, ..counters })
    }

    fn of_counters(rows: usize, methods: usize) -> Result<Self, ArenaError> {
        if rows == 0 || rows > MAX_ROWS || methods > MAX_METHODS {
            return Err(ArenaError::Size { rows, methods });
        }
        let worker = HEADER_WORDS * WORD;
        let rows_at = (worker + WORKER_WORDS * WORD).next_multiple_of(LINE);
        let heads_in_row = ROW_WORDS * WORD;
        let histograms_in_row = (heads_in_row + methods * HEAD_WORDS * WORD).next_multiple_of(LINE);
        let row_stride = (histograms_in_row + methods * BUCKETS * WORD).next_multiple_of(LINE);
        match row_stride.checked_mul(rows) {
            Some(bytes) if bytes <= MAX_ROWS_BYTES => {
                let size = rows_at + bytes;
                let (records_at, records, data_at, data) = (0, 0, 0, 0);
                Ok(Self {
                    size,
                    rows,
                    methods,
                    worker,
                    rows_at,
                    row_stride,
                    heads_in_row,
                    histograms_in_row,
                    records_at,
                    records,
                    data_at,
                    data,
                    buffers: 0,
                })
            }
            _ => Err(ArenaError::Size { rows, methods }),
        }
    }

    /// The header words that describe this layout; those that no version uses yet are 0.
    pub(super) fn header(&self) -> [u64; HEADER_WORDS] {
        let mut words = [0; HEADER_WORDS];
        let fields = [
            self.size,
            self.rows,
            self.methods,
            self.worker,
            self.rows_at,
            self.row_stride,
            self.heads_in_row,
            self.histograms_in_row,
            self.records_at,
            self.records,
            self.data_at,
            self.data,
            self.buffers,
        ];
        words[0] = MAGIC;
        words[1] = VERSION;
        for (word, field) in words.iter_mut().skip(2).zip(fields) {
            *word = field as u64;
        }
        words
    }

    /// Reads the layout that `header` describes in a file of `file_size` bytes.
    ///
    /// Nothing in the header is believed: what is returned lies within `file_size`, whatever the words say.
    pub(super) fn read(header: &[u64; HEADER_WORDS], file_size: usize) -> Result<Self, ArenaError> {
        let [magic, version, size, rows, methods, worker, rows_at, row_stride, heads, histograms, ..] =
            *header;
        let [.., records_at, records, data_at, data, buffers, _] = *header;
        if magic != MAGIC {
            return Err(ArenaError::NotAnArena { found: magic });
        }
        if version != VERSION {
            return Err(ArenaError::Version { found: version, expected: VERSION });
        }
        let size = within("size", size, 0..=file_size)?;
        let rows = within("rows", rows, 1..=MAX_ROWS)?;
        let methods = within("methods", methods, 0..=MAX_METHODS)?;
        let worker = room("worker", worker, WORKER_WORDS * WORD, size)?;
        let rows_at = room("rows_at", rows_at, 0, size)?;
        let row_stride = room("row_stride", row_stride, 0, (size - rows_at) / rows)?;
        within("row_stride", row_stride as u64, ROW_WORDS * WORD..=row_stride)?;
        let heads_in_row = room("heads_in_row", heads, methods * HEAD_WORDS * WORD, row_stride)?;
        let histograms_in_row = room("histograms_in_row", histograms, methods * BUCKETS * WORD, row_stride)?;
        let records = within("records", records, 0..=MAX_RECORDS)?;
        let records_at = room("records_at", records_at, records * RECORD_WORDS * WORD, size)?;
        let data_at = room("data_at", data_at, 0, size)?;
        let data = within("data", data, 0..=size - data_at)?;
        Ok(Self {
            size,
            rows,
            methods,
            worker,
            rows_at,
            row_stride,
            heads_in_row,
            histograms_in_row,
            records_at,
            records,
            data_at,
            data,
            buffers: within("buffers", buffers, 0..=usize::MAX)?,
        })
    }

    /// How the blocks lie in their part.
    pub(super) fn spans(&self) -> Spans {
        Spans::new(self.buffers, self.records)
    }

    /// The bytes, from the start, in which all counters lie.
    pub(super) fn counters_end(&self) -> usize {
        let rows = self.rows_at + self.rows * self.row_stride;
        rows.max(self.worker + WORKER_WORDS * WORD).max(HEADER_WORDS * WORD)
    }

    /// The bytes, from the start, in which everything lies but the blocks.
    pub(super) fn words_end(&self) -> usize {
        let (records, count) = self.records();
        self.counters_end().max(records + count * WORD)
    }

    /// Offset of the first record, and the words of all of them.
    pub(super) fn records(&self) -> (usize, usize) {
        (self.records_at, self.records * RECORD_WORDS)
    }

    /// Offset of a word of the worker section.
    pub(super) fn worker_word(&self, word: WorkerWord) -> usize {
        self.worker + word as usize * WORD
    }

    /// Offset of a row; none if the arena has no such row.
    pub(super) fn row(&self, row: usize) -> Option<usize> {
        (row < self.rows).then(|| self.rows_at + row * self.row_stride)
    }

    /// Whether rows say who called: those of an older program's arena, with which this one may go on, don't.
    pub(super) fn has_callers(&self) -> bool {
        self.heads_in_row >= ROW_WORDS * WORD
    }

    /// Offset of the first method's head, in a row.
    pub(super) fn heads(&self, row: usize) -> Option<usize> {
        self.row(row).map(|row| row + self.heads_in_row)
    }

    /// Offset of the first method's histogram, in a row.
    pub(super) fn histograms(&self, row: usize) -> Option<usize> {
        self.row(row).map(|row| row + self.histograms_in_row)
    }
}

/// `found` as a size, if it is in `range`.
fn within(field: &'static str, found: u64, range: RangeInclusive<usize>) -> Result<usize, ArenaError> {
    let (least, most) = (*range.start() as u64, *range.end() as u64);
    let size = usize::try_from(found).ok().filter(|found| range.contains(found));
    size.ok_or(ArenaError::Header { field, found, least, most })
}

/// `found` as a word's offset, if it leaves room for `bytes` before `end`.
fn room(field: &'static str, found: u64, bytes: usize, end: usize) -> Result<usize, ArenaError> {
    let refused = |most| ArenaError::Header { field, found, least: 0, most };
    let most = end.checked_sub(bytes).ok_or_else(|| refused(0))?;
    let offset = within(field, found, 0..=most)?;
    if offset.is_multiple_of(WORD) { Ok(offset) } else { Err(refused(most as u64)) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counters(rows: usize, methods: usize) -> Result<Layout, ArenaError> {
        Layout::new(&Room { rows, methods, connections: 0, buffers: 0 })
    }

    /// Every word that the layout leads to lies inside the arena.
    fn is_bounded(layout: &Layout, file_size: usize) -> bool {
        let last = layout.rows - 1;
        let ends = [
            layout.worker_word(WorkerWord::Culprit) + WORD,
            layout.row(last).unwrap() + ROW_WORDS * WORD,
            layout.heads(last).unwrap() + layout.methods * HEAD_WORDS * WORD,
            layout.histograms(last).unwrap() + layout.methods * BUCKETS * WORD,
            layout.counters_end(),
            layout.words_end(),
        ];
        let blocks_fit = layout.data_at + layout.data <= layout.size;
        ends.iter().all(|end| *end <= layout.size && end.is_multiple_of(WORD))
            && blocks_fit
            && layout.size <= file_size
    }

    #[test]
    fn a_layout_survives_the_way_through_its_header() {
        for (rows, methods) in [(1, 0), (1, 1), (9, 5), (65, 300), (MAX_ROWS, 1), (1, MAX_METHODS)] {
            let layout = counters(rows, methods).unwrap();
            assert!(is_bounded(&layout, layout.size), "{layout:?}");
            assert_eq!(Layout::read(&layout.header(), layout.size).unwrap(), layout);
        }
    }

    #[test]
    fn records_and_blocks_come_after_all_counters() {
        for (connections, buffers) in [(1, 0), (10_000, 256 << 20), (100_000, 1 << 40)] {
            let room = Room { rows: 9, methods: 5, connections, buffers };
            let layout = Layout::new(&room).unwrap();
            assert_eq!(Layout::read(&layout.header(), layout.size).unwrap(), layout);
            assert!(is_bounded(&layout, layout.size), "{layout:?}");
            let (records, words) = layout.records();
            assert_eq!(layout.counters_end(), counters(9, 5).unwrap().size);
            assert!(layout.counters_end() <= records && words == connections * RECORD_WORDS);
            assert!(layout.words_end() <= layout.data_at && layout.data_at.is_multiple_of(PAGE));
            assert_eq!(Some(layout.data), layout.spans().bytes());
        }
    }

    #[test]
    fn more_connections_than_an_arena_can_have_are_refused() {
        let room = Room { rows: 1, methods: 1, connections: MAX_RECORDS + 1, buffers: 0 };
        let error = Layout::new(&room).unwrap_err();
        assert!(matches!(error, ArenaError::Connections { .. }), "{error}");
    }

    #[test]
    fn two_rows_share_no_cache_line() {
        for methods in 0..20 {
            let layout = counters(3, methods).unwrap();
            for row in 0..3 {
                assert!(layout.row(row).unwrap().is_multiple_of(LINE), "row {row}, {methods} methods");
            }
            assert!(layout.row(0).unwrap() >= layout.worker_word(WorkerWord::Culprit) + WORD);
        }
    }

    #[test]
    fn an_arena_that_is_empty_or_too_large_is_refused() {
        for (rows, methods) in [
            (0, 1),
            (MAX_ROWS + 1, 1),
            (1, MAX_METHODS + 1),
            (MAX_ROWS, MAX_METHODS),
            (usize::MAX, usize::MAX),
        ] {
            let error = counters(rows, methods).unwrap_err();
            assert!(matches!(error, ArenaError::Size { .. }), "{rows} rows, {methods} methods: {error}");
        }
    }

    #[test]
    fn a_damaged_header_field_is_named() {
        let layout = counters(3, 2).unwrap();
        let size = layout.size as u64;
        let table = [
            (2, size + 1, "size"),
            (2, 8, "worker"),
            (3, 0, "rows"),
            (3, u64::MAX, "rows"),
            (3, 4, "row_stride"),
            (4, u64::MAX, "methods"),
            (4, 3, "histograms_in_row"),
            (5, size - 56, "worker"),
            (5, 4, "worker"),
            (6, size + 8, "rows_at"),
            (6, size, "row_stride"),
            (7, 0, "row_stride"),
            (7, u64::MAX, "row_stride"),
            (7, 129, "row_stride"),
            (8, u64::MAX, "heads_in_row"),
            (8, 12, "heads_in_row"),
            (9, u64::MAX - 7, "histograms_in_row"),
            (10, size + 8, "records_at"),
            (11, u64::MAX, "records"),
            (11, size, "records_at"),
            (12, size + 8, "data_at"),
            (12, 4, "data_at"),
            (13, size + 1, "data"),
        ];
        for (index, value, name) in table {
            let mut header = layout.header();
            header[index] = value;
            let error = Layout::read(&header, layout.size).unwrap_err();
            let ArenaError::Header { field, .. } = error else { panic!("{value} in word {index}: {error}") };
            assert_eq!(field, name, "{value} in word {index}");
        }
    }

    #[test]
    fn another_magic_or_version_is_told_apart_from_damage() {
        let layout = counters(3, 2).unwrap();
        let mut header = layout.header();
        header[1] = VERSION + 1;
        assert!(matches!(
            Layout::read(&header, layout.size),
            Err(ArenaError::Version { found: 2, expected: 1 })
        ));
        header[0] = 0;
        assert!(matches!(Layout::read(&header, layout.size), Err(ArenaError::NotAnArena { found: 0 })));
    }

    #[test]
    fn sections_may_move_and_grow_without_a_new_version() {
        let layout = counters(3, 2).unwrap();
        let mut header = layout.header();
        header[2] += 4096;
        header[5] += 2048;
        header[6] += 4096;
        header[15] = 77;
        let moved = Layout::read(&header, layout.size + 4096).unwrap();
        assert_eq!(moved.row(1).unwrap(), layout.row(1).unwrap() + 4096);
        assert!(is_bounded(&moved, layout.size + 4096));
    }

    proptest! {
        #[test]
        fn no_header_leads_out_of_the_file(
            changes in prop::collection::vec((2_usize..15, prop_oneof![0_u64..8192, any::<u64>()]), 0..6),
            file_size in 0_usize..20_000,
        ) {
            let mut header = counters(3, 2).unwrap().header();
            for (index, value) in changes {
                header[index] = value;
            }
            if let Ok(layout) = Layout::read(&header, file_size) {
                prop_assert!(is_bounded(&layout, file_size));
            }
        }
    }
}
