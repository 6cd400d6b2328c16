//! Where a call is that is to be run by the pool: known to its connection, which may give it up, and to whoever holds its
//! job, who would then run it for nobody.
//!
//! One word decides between the two, so that the place which the call had is given back exactly once. Nothing outlives the
//! process, so a death at any point leaves nothing to be found.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use crate::rpc::MethodIndex;

/// Shared by a call's entry on its connection and its job.
#[derive(Debug)]
pub(in crate::worker) struct Ticket {
    place: AtomicU8,
    /// [`UNKNOWN`] until the message is parsed.
    method: AtomicUsize,
}

const UNKNOWN: usize = usize::MAX;

/// Where a call is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Place {
    /// In the queue. It counts at the gate, and among those of its method that run.
    Queued,
    /// In its method's list, until one of those that run has ended.
    Listed,
    /// A thread has it.
    Taken,
    /// Nobody waits for it.
    GivenUp,
}

/// Of a call in the queue.
impl Default for Ticket {
    fn default() -> Self {
        Self::new(Place::Queued, None)
    }
}

impl Ticket {
    pub(in crate::worker) fn new(place: Place, method: Option<MethodIndex>) -> Self {
        let method = method.map_or(UNKNOWN, |method| method.0);
        Self { place: AtomicU8::new(place.to_word()), method: AtomicUsize::new(method) }
    }

    /// Of a call that the poller ran when it was relieved.
    pub(in crate::worker) fn running(method: MethodIndex) -> Self {
        Self::new(Place::Taken, Some(method))
    }

    /// Known from when its message is parsed.
    pub(in crate::worker) fn method(&self) -> Option<MethodIndex> {
        let method = self.method.load(Ordering::Acquire);
        (method != UNKNOWN).then_some(MethodIndex(method))
    }

    pub(in crate::worker) fn is_for(&self, method: MethodIndex) {
        self.method.store(method.0, Ordering::Release);
    }

    /// A thread begins with it. False when it was given up.
    pub(in crate::worker) fn take(&self) -> bool {
        self.moves(Place::Queued, Place::Taken)
    }

    /// It leaves its method's list for the queue. False when it was given up.
    pub(in crate::worker) fn leave_list(&self) -> bool {
        self.moves(Place::Listed, Place::Queued)
    }

    /// The thread that has it, or makes it, puts it into its method's list.
    pub(in crate::worker) fn enter_list(&self) {
        self.place.store(Place::Listed.to_word(), Ordering::Release);
    }

    /// Nobody waits for it any more. Where it was is the caller's to tidy up.
    pub(in crate::worker) fn give_up(&self) -> Place {
        Place::from_word(self.place.swap(Place::GivenUp.to_word(), Ordering::AcqRel))
    }

    pub(in crate::worker) fn is_given_up(&self) -> bool {
        self.place.load(Ordering::Acquire) == Place::GivenUp.to_word()
    }

    fn moves(&self, from: Place, to: Place) -> bool {
        let (from, to) = (from.to_word(), to.to_word());
        self.place.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }
}

impl Place {
    fn to_word(self) -> u8 {
        match self {
            Self::Queued => 0,
            Self::Listed => 1,
            Self::Taken => 2,
            Self::GivenUp => 3,
        }
    }

    fn from_word(word: u8) -> Self {
        match word {
            0 => Self::Queued,
            1 => Self::Listed,
            2 => Self::Taken,
            _ => Self::GivenUp,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_that_was_given_up_is_neither_taken_nor_moved() {
        for place in [Place::Queued, Place::Listed, Place::Taken, Place::GivenUp] {
            let ticket = Ticket::new(place, None);
            assert_eq!(ticket.give_up(), place);
            assert!(!ticket.take() && !ticket.leave_list(), "{place:?}");
            assert_eq!(ticket.give_up(), Place::GivenUp, "its place is given back once");
        }
    }

    #[test]
    fn a_call_is_taken_from_the_queue_once() {
        let ticket = Ticket::new(Place::Listed, None);
        assert!(!ticket.take(), "it is still in the list");
        assert!(ticket.leave_list());
        assert!(ticket.take());
        assert!(!ticket.take());
        assert_eq!(ticket.give_up(), Place::Taken);
    }

    #[test]
    fn of_a_thread_that_takes_and_a_poller_that_gives_up_one_has_it() {
        for _ in 0..2_000 {
            let ticket = Ticket::new(Place::Queued, None);
            let (took, was) = std::thread::scope(|scope| {
                let thread = scope.spawn(|| ticket.take());
                let was = ticket.give_up();
                (thread.join().unwrap(), was)
            });
            assert_eq!(was, if took { Place::Taken } else { Place::Queued });
        }
    }

    #[test]
    fn the_method_is_known_once_somebody_has_read_it() {
        let ticket = Ticket::new(Place::Queued, None);
        assert_eq!(ticket.method(), None);
        ticket.is_for(MethodIndex(3));
        assert_eq!(ticket.method(), Some(MethodIndex(3)));
        assert_eq!(Ticket::new(Place::Taken, Some(MethodIndex(0))).method(), Some(MethodIndex(0)));
    }
}
