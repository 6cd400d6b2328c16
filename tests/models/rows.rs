//! What threads do, read by another process meanwhile: arena rows.

use std::sync::Arc;

use libtest_mimic::Trial;
use loom::thread;

use crate::arena::{ArenaReader, ArenaWriter, Counter, Outcome, Room, Snapshot, State, create};
use crate::holds_by_order;

pub(crate) fn trials() -> Vec<Trial> {
    [
        holds_by_order(
            "rows_a_call_that_is_seen_running_is_one_call",
            2,
            a_call_that_is_seen_running_is_one_call,
        ),
        holds_by_order(
            "rows_no_sum_is_ahead_of_what_it_is_part_of",
            2,
            no_sum_is_ahead_of_what_it_is_part_of,
        ),
        holds_by_order(
            "rows_no_more_connections_are_closed_than_accepted",
            3,
            no_more_connections_are_closed_than_accepted,
        ),
        holds_by_order(
            "rows_a_worker_with_a_state_has_introduced_itself",
            3,
            a_worker_with_a_state_has_introduced_itself,
        ),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn arena(rows: usize, methods: usize) -> (ArenaWriter, ArenaReader) {
    let fd = create(&Room { rows, methods, connections: 0, buffers: 0 }).unwrap();
    let reader = ArenaReader::open(&fd).unwrap();
    (ArenaWriter::open(fd).unwrap(), reader)
}

/// Call `n` is of method `n % 2` and began at `n`.
fn a_call_that_is_seen_running_is_one_call() {
    let (mut arena, reader) = arena(1, 2);
    let mut row = arena.row(0).unwrap();
    let worker = thread::spawn(move || {
        for call in 1..=2 {
            row.begin(usize::try_from(call % 2).unwrap(), call);
            // The histograms have a model of their own, and a method that the arena doesn't know has none.
            row.finish(usize::MAX, Outcome::Ok, 1);
        }
    });
    for runs in reader.snapshot(0).running {
        assert_eq!((runs.method as u64, runs.since_ns), (runs.number % 2, runs.number));
    }
    worker.join().unwrap();
}

fn no_sum_is_ahead_of_what_it_is_part_of() {
    let (mut arena, reader) = arena(1, 1);
    let mut row = arena.row(0).unwrap();
    let worker = thread::spawn(move || {
        row.begin(0, 1);
        row.finish(0, Outcome::Ok, 1);
    });
    let Snapshot { totals, running, .. } = reader.snapshot(0);
    let [method] = &totals.methods[..] else { panic!("one method") };
    let in_histogram: u64 = method.histogram.buckets.iter().sum();
    assert!(in_histogram <= method.run_ns, "each took 1 ns");
    assert!(method.run_ns <= method.ok);
    assert!(method.ok <= totals.answered());
    assert!(totals.answered() + running.len() as u64 <= totals.begun);
    worker.join().unwrap();
}

/// One thread accepts it, and another closes it.
fn no_more_connections_are_closed_than_accepted() {
    let (mut arena, reader) = arena(2, 0);
    let (mut accepting, mut closing) = (arena.row(0).unwrap(), arena.row(1).unwrap());
    let reader = Arc::new(reader);
    let supervisor = thread::spawn({
        let reader = Arc::clone(&reader);
        move || {
            let totals = reader.snapshot(0).totals;
            assert!(totals.get(Counter::Closed) <= totals.get(Counter::Accepted));
        }
    });
    accepting.connection_opened();
    // Whoever closes it has it from who accepted it.
    let pool = thread::spawn(move || closing.connection_closed());
    pool.join().unwrap();
    supervisor.join().unwrap();
}

fn a_worker_with_a_state_has_introduced_itself() {
    let (mut arena, reader) = arena(1, 0);
    let worker = thread::spawn(move || {
        arena.identify(4711, 3, 1, 5);
        arena.set_state(State::Ready);
    });
    if let Some(found) = reader.snapshot(5).identity {
        assert_eq!((found.pid, found.generation, found.slot), (4711, 3, 1));
    }
    worker.join().unwrap();
}
