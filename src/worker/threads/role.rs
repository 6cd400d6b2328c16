//! Who is the worker's poller: one word decides between a poller that comes back and a watch that has waited enough.
//!
//! The poller [enters](Role::enter) before it runs a handler and [leaves](Role::leave) after. The watch looks once in
//! a [`TICK`], and again soon after a look that has met a run: one that is still the same has blocked, and the watch takes
//! the role. Leaving and taking are a compare-and-swap on the same word, so exactly one of them happens. What poller and watch do with
//! their roles is not known here.
//!
//! Nothing outlives the process, so a death at any point leaves nothing to be found.

use std::time::Duration;

use crate::fail_points;
use crate::sys::sync::{AtomicBool, AtomicU64, Condvar, Mutex, Ordering};

/// How often the watch looks while there is traffic.
///
/// Each look costs the poller's core a wake-up, which in a virtual machine is 20 us: this is as often as one percent of the
/// core allows.
const TICK: Duration = Duration::from_micros(2_200);
/// After a look that has met a run, how long that may go on. A poller that blocks is relieved between this and a
/// [`TICK`] more after it began to.
const PATIENCE: Duration = Duration::from_micros(200);
/// Looks at which nothing has changed before the watch parks.
const QUIET_TICKS: u32 = 5;

/// In the word, from the lowest bit: whether a run is on, the number of the run (it comes round), the term.
const RUNNING: u64 = 1;
const RUN: u64 = 2;
const RUNS: u64 = u32::MAX as u64 * RUN;
const TERM: u64 = RUNS + RUN;

/// The role and those who contend for it.
#[derive(Debug)]
pub(crate) struct Role {
    word: AtomicU64,
    is_watched: AtomicBool,
    /// Nobody watches yet, or the watch has become poller.
    is_vacant: AtomicBool,
    is_parked: AtomicBool,
    park: Mutex<()>,
    unpark: Condvar,
}

/// Being the poller, from one change of the role to the next. Not to be copied: who has it is the poller until
/// [`Role::leave`] says otherwise.
#[derive(Debug)]
pub(crate) struct Term {
    /// The word while no run is on.
    word: u64,
}

/// What the watch has seen.
#[derive(Debug)]
pub(crate) struct Watch {
    /// The word, at its last look.
    seen: u64,
    /// Looks since then at which nothing had changed and nothing ran.
    quiet: u32,
    /// The last look met a run, and this one comes sooner for it.
    suspects: bool,
}

/// What the watch does after a look.
#[derive(Debug)]
pub(crate) enum Look {
    GoOn,
    /// A run is on that was not at the last look.
    Running,
    /// Nothing has run for some time.
    Nothing,
    /// The poller has blocked, and this is the new one's term.
    Blocked(Term),
}

impl Role {
    pub(crate) fn new() -> Self {
        Self {
            word: AtomicU64::new(0),
            is_watched: AtomicBool::new(false),
            is_vacant: AtomicBool::new(true),
            is_parked: AtomicBool::new(false),
            park: Mutex::new(()),
            unpark: Condvar::new(),
        }
    }

    /// The first poller's term; to be asked for once.
    pub(crate) fn first_term(&self) -> Term {
        Term { word: self.word.load(Ordering::SeqCst) }
    }

    /// True when somebody relieves the poller if it blocks.
    pub(crate) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Acquire)
    }

    /// The poller is about to run a handler. What it stored before is seen by whoever takes the role from it.
    pub(crate) fn enter(&self, term: &mut Term) {
        term.word = term.word & !RUNS | term.word.wrapping_add(RUN) & RUNS;
        // Sequentially consistent, as is what the watch does before it parks: one of the two sees the other's store.
        self.word.store(term.word | RUNNING, Ordering::SeqCst);
        if self.is_parked.load(Ordering::SeqCst) {
            self.wake_watch();
        }
    }

    /// The handler has returned. False when the caller has been relieved meanwhile: it is not the poller any more.
    pub(crate) fn leave(&self, term: &Term) -> bool {
        let (running, done) = (term.word | RUNNING, term.word);
        self.word.compare_exchange(running, done, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Watches until the poller has blocked; the caller is the poller then, and nobody watches. There must be no other
    /// watch.
    pub(crate) fn watch(&self) -> Term {
        let mut watch = self.begin_watch();
        let mut wait = TICK;
        loop {
            std::thread::sleep(wait);
            wait = TICK;
            match self.look(&mut watch) {
                Look::GoOn => {}
                Look::Running => wait = PATIENCE,
                Look::Nothing => self.park_after(&watch),
                Look::Blocked(term) => return term,
            }
        }
    }

    pub(crate) fn begin_watch(&self) -> Watch {
        self.is_watched.store(true, Ordering::Release);
        Watch { seen: self.word.load(Ordering::SeqCst), quiet: 0, suspects: false }
    }

    /// One look at the poller.
    pub(crate) fn look(&self, watch: &mut Watch) -> Look {
        let word = self.word.load(Ordering::SeqCst);
        if word != watch.seen {
            // Where handlers run most of the time every look would meet a run; so not after each.
            let suspects = word & RUNNING != 0 && !watch.suspects;
            *watch = Watch { seen: word, quiet: 0, suspects };
            if suspects {
                return Look::Running;
            }
        } else if word & RUNNING != 0 {
            fail_points::delay();
            return self.take(word).map_or(Look::GoOn, Look::Blocked);
        } else if watch.quiet < QUIET_TICKS {
            watch.quiet += 1;
        } else {
            watch.quiet = 0;
            return Look::Nothing;
        }
        Look::GoOn
    }

    /// Takes the role from a poller whose run has lasted since `seen`.
    fn take(&self, seen: u64) -> Option<Term> {
        // Before the role changes hands, so that the new poller never believes in a watch that it was itself. Until
        // then the old one at worst doesn't run something inline.
        self.is_watched.store(false, Ordering::Release);
        let word = seen.wrapping_add(TERM) & !RUNNING;
        let took = self.word.compare_exchange(seen, word, Ordering::AcqRel, Ordering::Acquire).is_ok();
        if took {
            self.is_vacant.store(true, Ordering::Release);
        } else {
            self.is_watched.store(true, Ordering::Release);
        }
        took.then_some(Term { word })
    }

    /// True for one caller after each change of the role: it is the watch from now on.
    pub(crate) fn fills_vacancy(&self) -> bool {
        self.is_vacant.load(Ordering::Acquire) && self.is_vacant.swap(false, Ordering::AcqRel)
    }

    /// Sleeps until the next run is entered; not at all where one has been since the last look.
    pub(crate) fn park_after(&self, watch: &Watch) {
        let mut park = self.park.lock();
        self.is_parked.store(true, Ordering::SeqCst);
        if self.word.load(Ordering::SeqCst) != watch.seen {
            self.is_parked.store(false, Ordering::SeqCst);
        }
        while self.is_parked.load(Ordering::SeqCst) {
            self.unpark.wait(&mut park);
        }
    }

    #[cold]
    fn wake_watch(&self) {
        let _park = self.park.lock();
        self.is_parked.store(false, Ordering::SeqCst);
        self.unpark.notify_one();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;

    use super::*;

    /// A role whose poller has entered its first run, and a watch that has not looked since.
    fn running() -> (Role, Term, Watch) {
        let role = Role::new();
        let mut term = role.first_term();
        let watch = role.begin_watch();
        role.enter(&mut term);
        (role, term, watch)
    }

    fn blocked(look: Look) -> Option<Term> {
        match look {
            Look::Blocked(term) => Some(term),
            Look::GoOn | Look::Running | Look::Nothing => None,
        }
    }

    #[test]
    fn a_run_that_two_looks_see_has_blocked_and_its_poller_hears_so_when_it_comes_back() {
        let (role, term, mut watch) = running();
        assert!(blocked(role.look(&mut watch)).is_none(), "it has only just begun");
        assert!(role.is_watched());
        let next = blocked(role.look(&mut watch)).expect("it runs still");
        assert!(!role.is_watched());
        assert!(!role.leave(&term));
        assert!(role.fills_vacancy() && !role.fills_vacancy(), "one thread is the next watch");
        // The new poller is not troubled by the old one's return.
        let (mut next, mut watch) = (next, role.begin_watch());
        role.enter(&mut next);
        assert!(!role.leave(&term));
        assert!(role.leave(&next));
        assert!(blocked(role.look(&mut watch)).is_none());
    }

    #[test]
    fn a_poller_that_comes_back_in_time_stays_poller() {
        let (role, mut term, mut watch) = running();
        for _ in 0..100 {
            assert!(blocked(role.look(&mut watch)).is_none());
            assert!(role.leave(&term));
            assert!(blocked(role.look(&mut watch)).is_none());
            role.enter(&mut term);
        }
        assert!(role.is_watched());
    }

    #[test]
    fn many_short_runs_are_not_one_long_one() {
        let (role, mut term, mut watch) = running();
        for _ in 0..100 {
            assert!(role.leave(&term));
            role.enter(&mut term);
            assert!(blocked(role.look(&mut watch)).is_none());
        }
    }

    #[test]
    fn the_number_of_a_run_comes_round_without_touching_the_term() {
        let role = Role::new();
        let mut term = Term { word: (7 * TERM) | RUNS };
        role.word.store(term.word, Ordering::SeqCst);
        role.enter(&mut term);
        assert_eq!(term.word, 7 * TERM);
        assert!(role.leave(&term));
    }

    #[test]
    fn a_watch_with_nothing_to_see_parks_until_the_next_run() {
        let role = Arc::new(Role::new());
        let mut term = role.first_term();
        let mut watch = role.begin_watch();
        for _ in 0..QUIET_TICKS {
            assert!(matches!(role.look(&mut watch), Look::GoOn));
        }
        assert!(matches!(role.look(&mut watch), Look::Nothing));
        let parked = std::thread::spawn({
            let role = Arc::clone(&role);
            move || role.park_after(&watch)
        });
        role.enter(&mut term);
        // Whichever came first, it comes back.
        parked.join().unwrap();
    }

    /// Four threads pass the two roles among them as fast as they can: no tick lies between two looks here.
    #[test]
    fn there_is_never_a_second_poller_nor_none() {
        const RUNS: usize = 20_000;
        let role = Arc::new(Role::new());
        let (pollers, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let first = Arc::new(Mutex::new(Some(role.first_term())));
        let threads: Vec<_> = (0..4)
            .map(|_| {
                let (role, pollers, runs, first) =
                    (Arc::clone(&role), Arc::clone(&pollers), Arc::clone(&runs), Arc::clone(&first));
                std::thread::spawn(move || {
                    let mut reliefs = 0;
                    while runs.load(Ordering::SeqCst) < RUNS {
                        let mut term = first.lock().take();
                        if term.is_none() && role.fills_vacancy() {
                            let mut watch = role.begin_watch();
                            while term.is_none() && runs.load(Ordering::SeqCst) < RUNS {
                                term = blocked(role.look(&mut watch));
                                std::thread::yield_now();
                            }
                            reliefs += usize::from(term.is_some());
                        }
                        let Some(mut term) = term else {
                            std::thread::yield_now();
                            continue;
                        };
                        // It is the poller: between runs nobody else may be.
                        while runs.fetch_add(1, Ordering::SeqCst) < RUNS {
                            assert_eq!(pollers.fetch_add(1, Ordering::SeqCst), 0);
                            assert_eq!(pollers.fetch_sub(1, Ordering::SeqCst), 1);
                            role.enter(&mut term);
                            std::thread::yield_now();
                            if !role.leave(&term) {
                                break;
                            }
                        }
                    }
                    reliefs
                })
            })
            .collect();
        let reliefs: usize = threads.into_iter().map(|thread| thread.join().unwrap()).sum();
        assert!(runs.load(Ordering::SeqCst) >= RUNS, "somebody was poller to the end");
        assert!(reliefs > 0, "the test is about reliefs");
    }
}
