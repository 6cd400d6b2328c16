//! Who is poller, and the watch that parks.

use std::sync::Arc;

use libtest_mimic::Trial;
use loom::thread;

use super::role::{Look, Role, Term, Watch};
use crate::sys::sync::{AtomicU64, Ordering};
use crate::{holds, holds_by_order};

pub(crate) fn trials() -> Vec<Trial> {
    [
        holds_by_order("relief_one_of_poller_and_watch_goes_on", 4, one_of_poller_and_watch_goes_on),
        holds_by_order(
            "relief_a_parked_watch_hears_of_the_next_run",
            5,
            a_parked_watch_hears_of_the_next_run,
        ),
        // No order takes anything from a swap, so this one holds in any.
        vec![holds("relief_one_thread_is_the_next_watch", 4, one_thread_is_the_next_watch)],
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// A worker of which one word is looked after by whoever is poller.
struct Worker {
    role: Role,
    /// As `inline_at`: stored by the poller before a run, loaded by who relieves it.
    note: AtomicU64,
}

fn worker() -> (Arc<Worker>, Term, Watch) {
    let worker = Arc::new(Worker { role: Role::new(), note: AtomicU64::new(0) });
    let term = worker.role.first_term();
    let watch = worker.role.begin_watch();
    (worker, term, watch)
}

/// The new poller, if the old one has blocked.
fn relieve(worker: &Worker, watch: &mut Watch) -> Option<Term> {
    match worker.role.look(watch) {
        Look::Blocked(term) => Some(term),
        Look::GoOn | Look::Running | Look::Nothing => None,
    }
}

/// The poller makes two runs, and the watch looks three times.
fn one_of_poller_and_watch_goes_on() {
    let (worker, mut term, mut watch) = worker();
    let poller = thread::spawn({
        let worker = Arc::clone(&worker);
        move || {
            for run in 1..=2 {
                worker.note.store(run, Ordering::Relaxed);
                worker.role.enter(&mut term);
                if !worker.role.leave(&term) {
                    return Some(run);
                }
            }
            None
        }
    });
    let looks = (0..3).find_map(|_| relieve(&worker, &mut watch));
    let found = looks.map(|mut term| {
        let found = worker.note.look(Ordering::Relaxed);
        // It is the poller now, and the old one's return can't end its runs.
        worker.role.enter(&mut term);
        assert!(worker.role.leave(&term));
        assert!(!worker.role.is_watched());
        found
    });
    let relieved = poller.join().unwrap();
    assert_eq!(
        relieved, found,
        "the run in which the old poller lost its role, and the one that the new one found"
    );
}

/// A wake-up that is lost shows as a model that never ends.
fn a_parked_watch_hears_of_the_next_run() {
    let (worker, mut term, watch) = worker();
    let parked = thread::spawn({
        let worker = Arc::clone(&worker);
        move || worker.role.park_after(&watch)
    });
    worker.role.enter(&mut term);
    assert!(worker.role.leave(&term));
    parked.join().unwrap();
}

fn one_thread_is_the_next_watch() {
    let (worker, mut term, mut watch) = worker();
    worker.role.enter(&mut term);
    assert!(worker.role.fills_vacancy(), "the first");
    assert!(relieve(&worker, &mut watch).is_none());
    let other = thread::spawn({
        let worker = Arc::clone(&worker);
        move || worker.role.fills_vacancy()
    });
    let took = relieve(&worker, &mut watch).is_some();
    let mine = worker.role.fills_vacancy();
    let others = other.join().unwrap();
    assert!(took);
    assert!(mine != others, "one of them");
}
