use std::os::fd::OwnedFd;

use proptest::prelude::*;

use super::*;
use crate::arena::record::{self, CORE_WORDS, Record};
use crate::arena::{ArenaWriter, Room, create};
use crate::sys::blocks::{Block, Pool};

const KEY: Key = Key { index: 2, generation: 9 };

/// A worker's arena with one connection, as its worker and as somebody else sees it.
struct Arena {
    pool: &'static Pool,
    record: Record,
    core: Core,
    memory: OwnedFd,
    /// What the connection holds.
    blocks: Vec<Block>,
}

impl Arena {
    fn new() -> Self {
        let fd = create(&Room { rows: 1, methods: 1, connections: 4, buffers: 1 << 20 }).unwrap();
        let memory = fd.try_clone().unwrap();
        let mut writer = ArenaWriter::open(fd).unwrap();
        let core = Core::default();
        let record = writer.records().open(KEY, &core).unwrap();
        Self { pool: writer.blocks().unwrap(), record, core, memory, blocks: Vec::new() }
    }

    fn block(&mut self, bytes: &[u8]) -> Place {
        let mut block = self.pool.take(bytes.len()).unwrap();
        block[..bytes.len()].copy_from_slice(bytes);
        let place = Place { at: block.place(), length: bytes.len() as u64 };
        self.blocks.push(block);
        place
    }

    /// Puts a call in front of the list.
    fn call(&mut self, number: u64, message: &[u8]) -> usize {
        self.block(message);
        let block = self.blocks.last().unwrap();
        record::write_call(block.words(), number, self.core.calls, 77, message.len());
        self.core.calls = block.head();
        self.blocks.len() - 1
    }

    fn read(&mut self, taken: u64, sent: u64) -> Result<KeptConnection, Refusal> {
        self.record.commit(&self.core);
        self.kept().kept(KEY, Moved::Counted { taken, sent })
    }

    /// As it is now, for somebody else.
    fn kept(&self) -> KeptArena {
        KeptArena::open(&self.memory).unwrap()
    }
}

fn messages(kept: &KeptConnection) -> Vec<&[u8]> {
    kept.ran.iter().map(|ran| ran.message.as_slice()).collect()
}

#[test]
fn a_connection_without_anything_is_only_what_it_is() {
    let kept = Arena::new().read(500, 300);
    assert_eq!(kept, Err(Refusal::Senseless("input")), "bytes were taken that are nowhere");
    let mut arena = Arena::new();
    (arena.core.begun, arena.core.out_from) = (500, 300);
    arena.core.flags.set(Flags::RECOGNISED, true);
    let kept = arena.read(500, 300).unwrap();
    assert_eq!((kept.taken, kept.sent), (500, 300));
    assert!(kept.flags.contains(Flags::RECOGNISED) && !kept.flags.contains(Flags::FINISHING));
    assert!(kept.input.is_empty() && kept.output.is_empty() && kept.ran.is_empty() && kept.waited.is_empty());
}

#[test]
fn input_is_what_was_taken_and_had_not_begun() {
    let mut arena = Arena::new();
    arena.core.begun = 1_000;
    arena.core.input = arena.block(b"abcdefgh");
    for taken in 0..=8 {
        let kept = arena.read(1_000 + taken, 0).unwrap();
        assert_eq!(kept.input, &b"abcdefgh"[..usize::try_from(taken).unwrap()]);
    }
    for taken in [999, 1_009, u64::MAX] {
        assert_eq!(arena.read(taken, 0), Err(Refusal::Senseless("input")), "{taken} taken");
    }
}

#[test]
fn input_of_a_connection_that_ends_is_nothing_to_anybody() {
    for flag in [Flags::FINISHING, Flags::LINGERING] {
        let mut arena = Arena::new();
        arena.core.flags.set(flag, true);
        assert!(arena.read(1_000_000, 0).unwrap().input.is_empty());
    }
}

#[test]
fn output_is_what_was_published_and_not_handed_over() {
    let mut arena = Arena::new();
    arena.core.out_from = 1_000;
    arena.core.output = arena.block(b"abcdefgh");
    for sent in 0..=8 {
        let kept = arena.read(0, 1_000 + sent).unwrap();
        assert_eq!(kept.output, &b"abcdefgh"[usize::try_from(sent).unwrap()..]);
    }
    for sent in [999, 1_009, u64::MAX] {
        assert_eq!(arena.read(0, sent), Err(Refusal::Senseless("output")), "{sent} sent");
    }
}

#[test]
fn calls_that_ran_are_told_from_calls_that_waited_and_from_one_that_is_done() {
    let mut arena = Arena::new();
    for (number, message) in [(5, b"five."), (6, b"six.."), (7, b"seven"), (8, b"eight")] {
        let index = arena.call(number, message);
        if number % 2 == 1 {
            record::call_runs(arena.blocks[index].words());
        }
    }
    let waits = |message: &[u8]| Waited { message: message.to_vec(), gathered: Vec::new(), arrived_ns: 77 };
    let kept = arena.read(0, 0).unwrap();
    assert_eq!(messages(&kept), [b"five.", b"seven"]);
    assert_eq!(kept.waited, [waits(b"six.."), waits(b"eight")]);

    arena.core.answered = 7;
    assert_eq!(messages(&arena.read(0, 0).unwrap()), [b"five."], "its answer is published");
    // Unlinked after that: the one before it in the list passes it over.
    let five = arena.blocks[0].head();
    record::unlink_next(arena.blocks[3].words(), arena.blocks[1].head());
    assert_eq!(arena.read(0, 0).unwrap().waited, [waits(b"six.."), waits(b"eight")]);
    record::unlink_next(arena.blocks[3].words(), five);
    assert_eq!(arena.read(0, 0).unwrap().waited, [waits(b"eight")]);
}

#[test]
fn a_batch_keeps_the_answers_of_its_calls_that_were_there() {
    let mut arena = Arena::new();
    let index = arena.call(1, b"batch");
    let mut gathered = crate::arena::Gathered::default();
    record::call_runs(arena.blocks[index].words());
    let given = [(2, b"two".to_vec()), (0, vec![b'0'; 600]), (1, b"one".to_vec())];
    for (count, (member, answer)) in given.iter().enumerate() {
        gathered.add(arena.blocks[index].words(), *member, answer, arena.pool).unwrap();
        assert_eq!(arena.read(0, 0).unwrap().ran[0].gathered, given[..=count]);
    }
    let head = arena.blocks[index].words();
    for nonsense in [1, arena.core.calls + 3, u64::MAX] {
        head[record::call_word::GATHERED].store(nonsense, std::sync::atomic::Ordering::Relaxed);
        let read = arena.kept().kept(KEY, Moved::Counted { taken: 0, sent: 0 });
        assert_eq!(read, Err(Refusal::Senseless("batch")), "{nonsense}");
    }
}

#[test]
fn the_call_that_the_poller_ran_is_one_that_ran() {
    let mut arena = Arena::new();
    arena.core.inline = arena.block(b"inline");
    assert_eq!(messages(&arena.read(0, 0).unwrap()), [b"inline"]);
}

#[test]
fn a_list_that_is_a_circle_is_refused() {
    let mut arena = Arena::new();
    for number in 1..=5 {
        arena.call(number, b"x");
    }
    assert!(arena.read(0, 0).is_ok());
    let last = arena.core.calls;
    record::unlink_next(arena.blocks[0].words(), last);
    assert_eq!(arena.read(0, 0), Err(Refusal::Senseless("calls")));
}

// It was bounded by the limits of who reads: one long answer, more calls or larger messages than those, and the connection was
// closed.
#[test]
fn whatever_its_worker_had_memory_for_is_gone_on_with() {
    let mut arena = Arena::new();
    let long = vec![b'x'; 30 << 20];
    arena.core.output = arena.block(&long);
    arena.core.out_from = 0;
    for number in 1..=1_000 {
        arena.call(number, &long[..20_000]);
    }
    let kept = arena.read(0, 0).unwrap();
    assert_eq!((kept.output.len(), kept.waited.len()), (long.len(), 1_000));
}

#[test]
fn more_than_its_worker_had_memory_for_is_refused() {
    let mut arena = Arena::new();
    arena.core.output = arena.block(b"short");
    arena.call(1, b"x");
    arena.call(2, b"y");
    arena.read(0, 0).unwrap();
    let held = arena.kept().held as u64;
    assert!(held < 1 << 20, "{held} bytes: the file is sparse");
    let short = arena.core.output.length;
    arena.core.output.length = held + 1;
    assert_eq!(arena.read(0, 0), Err(Refusal::Senseless("output")));
    arena.core.output.length = short;
    // Each of them may be as long, and both can't.
    for block in &arena.blocks[1..] {
        block.words()[record::call_word::LENGTH].store(held / 3 * 2, std::sync::atomic::Ordering::Relaxed);
    }
    assert_eq!(arena.read(0, 0), Err(Refusal::Senseless("calls")));
}

#[test]
fn one_block_is_one_call_and_each_call_has_its_own_number() {
    let mut arena = Arena::new();
    arena.call(1, b"x");
    let first = arena.core.calls;
    record::unlink_next(arena.blocks[0].words(), first);
    assert_eq!(arena.read(0, 0), Err(Refusal::Senseless("calls")), "a circle of one");

    let mut arena = Arena::new();
    arena.call(1, b"x");
    arena.call(1, b"y");
    assert_eq!(arena.read(0, 0), Err(Refusal::Senseless("calls")), "one number twice");
}

#[test]
fn a_record_of_another_connection_is_not_there() {
    let mut arena = Arena::new();
    arena.read(0, 0).unwrap();
    let moved = Moved::Counted { taken: 0, sent: 0 };
    for key in [
        Key { generation: 8, ..KEY },
        Key { index: 1, ..KEY },
        Key { index: 4, ..KEY },
        Key { index: u32::MAX, ..KEY },
    ] {
        assert_eq!(arena.kept().kept(key, moved), Err(Refusal::NotThere), "{key:?}");
    }
    arena.record.close();
    assert_eq!(arena.kept().kept(KEY, moved), Err(Refusal::NotThere));
}

#[test]
fn for_a_socket_that_nobody_counts_the_record_must_know() {
    let mut arena = Arena::new();
    arena.core = Core { begun: 5, taken: 5, sent: 3, out_from: 3, ..Core::default() };
    arena.record.commit(&arena.core);
    let kept = arena.kept().kept(KEY, Moved::Recorded).unwrap();
    assert_eq!((kept.taken, kept.sent), (5, 3));
    arena.core.flags.set(Flags::IN_IO, true);
    arena.record.commit(&arena.core);
    assert_eq!(arena.kept().kept(KEY, Moved::Recorded), Err(Refusal::InTheMiddle));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    /// Whatever stands in a record and in the heads of its calls: an answer within the bounds, or a refusal.
    #[test]
    fn garbage_is_refused_or_bounded(
        words in prop::collection::vec(prop_oneof![0_u64..64, any::<u64>()], CORE_WORDS),
        head in prop::collection::vec(prop_oneof![0_u64..64, any::<u64>()], 8),
        names_blocks in prop::collection::vec(any::<bool>(), CORE_WORDS),
        taken in prop_oneof![0_u64..128, any::<u64>()],
        sent in prop_oneof![0_u64..128, any::<u64>()],
    ) {
        let mut arena = Arena::new();
        arena.call(1, b"x");
        for (word, value) in arena.blocks[0].words().iter().zip(&head) {
            word.store(*value, std::sync::atomic::Ordering::Relaxed);
        }
        // Often enough a number has to be a place that exists, or nothing is looked at.
        let block = arena.blocks[0].head();
        let mut core: [u64; CORE_WORDS] = words.try_into().unwrap();
        for (word, names) in core.iter_mut().zip(names_blocks) {
            *word = if names { block } else { *word };
        }
        arena.core = Core::from_words(core);
        if let Ok(kept) = arena.read(taken, sent) {
            let held = arena.kept().held;
            prop_assert!(kept.input.len() <= held && kept.output.len() <= held);
            let waited = kept.waited.iter().map(|call| &call.message);
            let all = kept.ran.iter().map(|ran| &ran.message).chain(waited);
            // One that the poller ran is counted apart.
            prop_assert!(all.map(Vec::len).sum::<usize>() <= 2 * held);
        }
    }
}
