//! Deaths without a culprit: no thread of the worker is known to have caused them. Which methods do they speak against?
//!
//! The kernel may have killed a worker for what it ran, as when one call takes all the memory, or for nothing that it did. One such death tells
//! nothing. A method is the cause if it ran at each of the last deaths and answered hardly a call between them.
//!
//! One thing can kill several workers at once: a control group that is out of memory, or `pkill`. So workers that lived before and are killed
//! within a moment of each other are one event. A worker that was forked after the first of them is a new event when it dies, however soon. A
//! worker that ended by itself (`_exit`) is an event of its own.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, Instant};

/// A method that ran when a worker died.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Suspect {
    pub(crate) method: String,
    /// Calls of it that the whole service has answered so far.
    pub(crate) answered: u64,
}

/// How long after the first worker of an event another one can be part of it.
const MOMENT: Duration = Duration::from_secs(1);

/// A method that answers more calls than this between two deaths is worth more than it costs, as long as nobody knows that
/// the deaths are its doing. A method that kills whenever it is called answers none.
const WORTH: u64 = 3;

/// A worker that died, and nobody knows why.
#[derive(Debug)]
pub(super) struct Death {
    /// A signal ended it, from outside of what its handlers did as far as is known.
    pub(super) was_killed: bool,
    /// When it was asked for.
    pub(super) born: Instant,
    pub(super) at: Instant,
    /// What it ran.
    pub(super) suspects: Vec<Suspect>,
}

/// The last events, oldest first.
#[derive(Debug, Default)]
pub(super) struct UnclearDeaths {
    events: VecDeque<Incident>,
}

#[derive(Debug)]
struct Incident {
    by_signal: bool,
    begun: Instant,
    /// What ran in any of its workers; where one call had all of them killed, it ran in one alone.
    suspects: Vec<Suspect>,
}

impl UnclearDeaths {
    /// One more. The methods that are to be taken for the cause, if `enough` events within `window` speak against them.
    pub(super) fn died(&mut self, death: Death, enough: usize, window: Duration) -> BTreeSet<String> {
        let now = death.at;
        match self.events.back_mut() {
            Some(event) if event.includes(&death) => event.join(death.suspects),
            Some(_) | None => self.events.push_back(Incident {
                by_signal: death.was_killed,
                begun: now,
                suspects: death.suspects,
            }),
        }
        self.events.retain(|event| now.saturating_duration_since(event.begun) <= window);
        while self.events.len() > enough {
            self.events.pop_front();
        }
        if self.events.len() < enough {
            return BTreeSet::new();
        }
        let found = self.common();
        if !found.is_empty() {
            // Explained now.
            self.events.clear();
        }
        found
    }

    pub(super) fn forget(&mut self, is_forgiven: impl Fn(&str) -> bool) {
        for event in &mut self.events {
            event.suspects.retain(|suspect| !is_forgiven(&suspect.method));
        }
    }

    pub(super) fn clear(&mut self) {
        self.events.clear();
    }

    /// The methods that ran in each of the events and answered hardly a call between the first and the last.
    fn common(&self) -> BTreeSet<String> {
        let (Some(first), Some(last)) = (self.events.front(), self.events.back()) else {
            return BTreeSet::new();
        };
        let worth = WORTH.saturating_mul(self.events.len() as u64 - 1);
        let ran_in_all = |method: &str| self.events.iter().all(|event| event.answered(method).is_some());
        let since = |one: &Suspect| one.answered.saturating_sub(first.answered(&one.method).unwrap_or(0));
        let candidates = || last.suspects.iter().filter(|one| ran_in_all(&one.method) && since(one) <= worth);
        // What answers while another method does not is more likely to have been beside it.
        let least = candidates().map(since).min();
        candidates().filter(|one| Some(since(one)) == least).map(|one| one.method.clone()).collect()
    }
}

impl Incident {
    fn includes(&self, death: &Death) -> bool {
        let at_once = death.at.saturating_duration_since(self.begun) < MOMENT;
        self.by_signal && death.was_killed && at_once && death.born < self.begun
    }

    fn join(&mut self, suspects: Vec<Suspect>) {
        for suspect in suspects {
            match self.suspects.iter_mut().find(|one| one.method == suspect.method) {
                Some(known) => known.answered = known.answered.max(suspect.answered),
                None => self.suspects.push(suspect),
            }
        }
    }

    /// How many calls of the method had been answered by then, if it ran.
    fn answered(&self, method: &str) -> Option<u64> {
        self.suspects.iter().find(|one| one.method == method).map(|one| one.answered)
    }
}
