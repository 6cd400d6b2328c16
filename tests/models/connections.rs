//! The record of a connection, read by another process while its worker lives.

use libtest_mimic::Trial;
use loom::thread;

use crate::arena::{ArenaWriter, Core, KeptArena, Key, Moved, Place, Record, Room, create};
use crate::{fails, holds_by_order};

const KEY: Key = Key { index: 0, generation: 7 };

pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = vec![fails("connections_two_commits_while_one_reads_may_be_mixed", two_commits)];
    trials.extend(holds_by_order("connections_one_commit_while_one_reads_is_seen_or_is_not", 4, one_commit));
    trials.extend(holds_by_order("connections_a_record_is_whole_once_it_is_there", 4, opening));
    trials
}

/// The arena of a worker with room for one connection, as the worker has it and as another one sees it.
fn arena() -> (ArenaWriter, KeptArena) {
    let fd = create(&Room { rows: 1, methods: 0, connections: 1, buffers: 0 }).unwrap();
    let kept = KeptArena::open(&fd).unwrap();
    (ArenaWriter::open(fd).unwrap(), kept)
}

/// Every word says `number`, but for those that lead to bytes or calls.
fn core(number: u64) -> Core {
    Core {
        begun: number,
        input: Place { at: number, length: number },
        out_from: number,
        output: Place { at: number, length: 0 },
        inline: Place { at: number, length: 0 },
        answered: number,
        taken: number,
        sent: number,
        ..Core::default()
    }
}

/// Which core was found. One that is mixed is refused or has two numbers.
fn read(kept: &KeptArena) -> Option<u64> {
    match kept.kept(KEY, Moved::Recorded) {
        Err(refusal) if refusal.to_string() == "its record is not there" => None,
        Err(refusal) => panic!("mixed: {refusal}"),
        Ok(found) => {
            assert_eq!(found.sent, found.taken, "mixed");
            Some(found.taken)
        }
    }
}

fn open(arena: &ArenaWriter) -> Record {
    arena.records().open(KEY, &core(1)).unwrap()
}

fn one_commit() {
    let (arena, kept) = arena();
    let mut record = open(&arena);
    let worker = thread::spawn(move || record.commit(&core(2)));
    let found = read(&kept);
    assert!(matches!(found, Some(1 | 2)), "{found:?}");
    worker.join().unwrap();
    assert_eq!(read(&kept), Some(2));
}

/// The second commit writes the version that the reader has begun to read. This is why a worker never commits what it has
/// let go of.
fn two_commits() {
    let (arena, kept) = arena();
    let mut record = open(&arena);
    let worker = thread::spawn(move || {
        record.commit(&core(2));
        record.commit(&core(3));
    });
    read(&kept);
    worker.join().unwrap();
}

fn opening() {
    let (arena, kept) = arena();
    let worker = thread::spawn(move || open(&arena));
    let found = read(&kept);
    assert!(matches!(found, None | Some(1)), "{found:?}");
    worker.join().unwrap();
}
