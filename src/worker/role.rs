//! Who is the worker's poller: one word decides between a poller that comes back and a watch that has waited enough.
//!
//! The poller [enters](Role::enter) before it runs a handler and [leaves](Role::leave) after. The watch looks once in
//! a [`TICK`]: a run that is still the same one as at its last look has blocked, and the watch takes the role. Leaving and
//! taking are a compare-and-swap on the same word, so exactly one of them happens. What poller and watch do with
//! their roles is not known here.
//!
//! Nothing outlives the process, so a death at any point leaves nothing to be found.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Condvar, Mutex};

/// How often the watch looks while there is traffic. A poller that blocks is relieved between one and two of these
/// after it began to.
pub(super) const TICK: Duration = Duration::from_millis(1);
/// Looks at which nothing has changed before the watch parks.
const QUIET_TICKS: u32 = 10;

/// In the word, from the lowest bit: whether a run is on, the number of the run (it comes round), the term.
const RUNNING: u64 = 1;
const RUN: u64 = 2;
const RUNS: u64 = u32::MAX as u64 * RUN;
const TERM: u64 = RUNS + RUN;

/// The role and those who contend for it.
#[derive(Debug)]
pub(super) struct Role {
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
pub(super) struct Term {
    /// The word while no run is on.
    word: u64,
}

impl Role {
    pub(super) fn new() -> Self {
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
    pub(super) fn first_term(&self) -> Term {
        Term { word: self.word.load(Ordering::SeqCst) }
    }

    /// True when somebody relieves the poller if it blocks.
    pub(super) fn is_watched(&self) -> bool {
        self.is_watched.load(Ordering::Acquire)
    }

    /// The poller is about to run a handler. What it stored before is seen by whoever takes the role from it.
    pub(super) fn enter(&self, term: &mut Term) {
        term.word = term.word & !RUNS | term.word.wrapping_add(RUN) & RUNS;
        // Sequentially consistent, as is what the watch does before it parks: one of the two sees the other's store.
        self.word.store(term.word | RUNNING, Ordering::SeqCst);
        if self.is_parked.load(Ordering::SeqCst) {
            self.wake_watch();
        }
    }

    /// The handler has returned. False when the caller has been relieved meanwhile: it is not the poller any more.
    pub(super) fn leave(&self, term: &Term) -> bool {
        let (running, done) = (term.word | RUNNING, term.word);
        self.word.compare_exchange(running, done, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Watches until the poller has blocked; the caller is the poller then, and nobody watches. There must be no other
    /// watch.
    pub(super) fn watch(&self) -> Term {
        self.is_watched.store(true, Ordering::Release);
        let (mut seen, mut quiet) = (self.word.load(Ordering::SeqCst), 0);
        loop {
            std::thread::sleep(TICK);
            let word = self.word.load(Ordering::SeqCst);
            if word != seen {
                (seen, quiet) = (word, 0);
            } else if word & RUNNING != 0 {
                if let Some(term) = self.take(word) {
                    return term;
                }
            } else if quiet < QUIET_TICKS {
                quiet += 1;
            } else {
                self.park_after(seen);
                quiet = 0;
            }
        }
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
    pub(super) fn fills_vacancy(&self) -> bool {
        self.is_vacant.load(Ordering::Acquire) && self.is_vacant.swap(false, Ordering::AcqRel)
    }

    /// Sleeps until the next run is entered; not at all where one has been since `seen`.
    fn park_after(&self, seen: u64) {
        let mut park = self.park.lock();
        self.is_parked.store(true, Ordering::SeqCst);
        if self.word.load(Ordering::SeqCst) != seen {
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
