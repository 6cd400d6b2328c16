//! Sums: what one worker, or many, have counted.
//!
//! Plain values. All additions saturate, because what is added may be garbage out of a scribbled arena.

use super::histogram::Histogram;

/// What each thread of a worker counts, besides the calls it begins.
///
/// The order is the order of the words in a row, and that in which a reader loads them: `Closed` before
/// `Accepted`, so that no snapshot has closed more connections than were accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Counter {
    /// Connections closed.
    Closed,
    /// Connections accepted.
    Accepted,
    /// Calls whose handler returned a result.
    Ok,
    /// Calls whose handler returned an error.
    Errors,
    /// Calls whose handler panicked.
    Panics,
    /// Calls whose handler came back after its caller had been answered with a deadline error.
    Late,
    /// Calls refused as overloaded; none of them was begun.
    Refused,
    /// Calls answered with a deadline error, begun or not.
    DeadlineExceeded,
    /// Log lines dropped because nobody read them fast enough.
    LogDropped,
}

impl Counter {
    /// All of them, in order.
    pub(crate) const ALL: [Self; 9] = [
        Self::Closed,
        Self::Accepted,
        Self::Ok,
        Self::Errors,
        Self::Panics,
        Self::Late,
        Self::Refused,
        Self::DeadlineExceeded,
        Self::LogDropped,
    ];
}

/// What has been counted for one method.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct MethodTotals {
    /// Calls whose handler returned a result.
    pub(crate) ok: u64,
    /// Calls that ended in any other way: an error, a panic, too late.
    pub(crate) errors: u64,
    /// The time that all these calls ran, in nanoseconds.
    pub(crate) run_ns: u64,
    /// How long they ran, each.
    pub(crate) histogram: Histogram,
}

/// Sums that only ever grow.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    /// Calls begun. Each is running, or counted once as `Ok`, `Errors`, `Panics` or `Late`; a call whose
    /// worker died while it ran, or just then ended, stays counted here alone.
    pub(crate) begun: u64,
    /// By method, in the order in which they were registered; or numbered anew, where workers have different ones.
    pub(crate) methods: Vec<MethodTotals>,
    counts: [u64; Counter::ALL.len()],
}

impl Totals {
    /// Sums of nothing yet, but for these methods.
    pub(super) fn of_methods(methods: Vec<MethodTotals>) -> Self {
        Self { methods, ..Self::default() }
    }

    /// The sum of one counter.
    pub(crate) fn get(&self, counter: Counter) -> u64 {
        self.counts[counter as usize]
    }

    /// Calls that a handler answered, with a result or an error of its own.
    pub(crate) fn answered(&self) -> u64 {
        self.get(Counter::Ok).saturating_add(self.get(Counter::Errors))
    }

    /// Connections that are open now.
    pub(crate) fn connections_open(&self) -> u64 {
        self.get(Counter::Accepted).saturating_sub(self.get(Counter::Closed))
    }

    /// Adds what a worker that has ended had counted last.
    ///
    /// Its connections are gone with it: they count as closed.
    pub(super) fn fold_ended(&mut self, ended: &Self) {
        self.add(ended);
        self.count(Counter::Closed, ended.connections_open());
    }

    /// Adds other sums. Methods are paired by index, so both sides must come from one registration.
    pub(super) fn add(&mut self, other: &Self) {
        self.begun = self.begun.saturating_add(other.begun);
        for counter in Counter::ALL {
            self.count(counter, other.get(counter));
        }
        self.make_room(other.methods.len());
        for (method, more) in self.methods.iter_mut().zip(&other.methods) {
            method.ok = method.ok.saturating_add(more.ok);
            method.errors = method.errors.saturating_add(more.errors);
            method.run_ns = method.run_ns.saturating_add(more.run_ns);
            method.histogram.add(&more.histogram);
        }
    }

    /// Lets no sum be less than in `other`.
    pub(super) fn raise_to(&mut self, other: &Self) {
        self.begun = self.begun.max(other.begun);
        for (count, least) in self.counts.iter_mut().zip(&other.counts) {
            *count = (*count).max(*least);
        }
        self.make_room(other.methods.len());
        for (method, least) in self.methods.iter_mut().zip(&other.methods) {
            method.ok = method.ok.max(least.ok);
            method.errors = method.errors.max(least.errors);
            method.run_ns = method.run_ns.max(least.run_ns);
            method.histogram.raise_to(&least.histogram);
        }
    }

    /// Adds to one counter.
    pub(super) fn count(&mut self, counter: Counter, more: u64) {
        let count = &mut self.counts[counter as usize];
        *count = count.saturating_add(more);
    }

    /// Gives each method another number: `numbers` has the new one of each, and no number twice. Methods beyond it are
    /// nobody's, out of a scribbled arena, and are dropped.
    pub(super) fn renumber(&mut self, numbers: &[usize]) {
        let methods = std::mem::take(&mut self.methods);
        for (method, number) in methods.into_iter().zip(numbers) {
            self.make_room(number.saturating_add(1));
            if let Some(place) = self.methods.get_mut(*number) {
                *place = method;
            }
        }
    }

    fn make_room(&mut self, methods: usize) {
        if self.methods.len() < methods {
            self.methods.resize_with(methods, MethodTotals::default);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_counters_is_that_of_their_words() {
        for (index, counter) in Counter::ALL.into_iter().enumerate() {
            assert_eq!(counter as usize, index);
        }
    }

    #[test]
    fn connections_of_an_ended_worker_count_as_closed() {
        let mut worker = Totals::default();
        worker.count(Counter::Accepted, 5);
        worker.count(Counter::Closed, 2);
        let mut ended = Totals::default();
        ended.fold_ended(&worker);
        assert_eq!((worker.connections_open(), ended.connections_open()), (3, 0));
        assert_eq!(ended.get(Counter::Accepted), 5);
    }

    #[test]
    fn methods_get_other_numbers() {
        let of = |ok| MethodTotals { ok, ..MethodTotals::default() };
        let mut totals = Totals::of_methods(vec![of(10), of(11), of(12)]);
        totals.renumber(&[3, 0]);
        let ok: Vec<u64> = totals.methods.iter().map(|method| method.ok).collect();
        assert_eq!(ok, [11, 0, 0, 10]);
    }

    #[test]
    fn sums_of_more_methods_make_room_for_them() {
        let one = MethodTotals { ok: 1, errors: 2, run_ns: 3, histogram: Histogram::default() };
        let mut few = Totals::of_methods(vec![one.clone()]);
        let many = Totals::of_methods(vec![one.clone(), one.clone()]);
        few.add(&many);
        assert_eq!((few.methods[0].ok, few.methods[1].ok), (2, 1));
        few.raise_to(&Totals::of_methods(vec![one; 3]));
        assert_eq!((few.methods.len(), few.methods[0].errors), (3, 4));
    }
}
