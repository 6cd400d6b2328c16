//! Records that others can cause at will: so many a second are written, and the others counted.
//!
//! Strangers on the port, callers whose calls fail, and workers' own messages decide how many of these there are; unbounded
//! they would fill the disk and hide everything else. Each kind is a static [`Counted`] beside the place that writes it. Each
//! process counts for itself.
//!
//! What was counted is told by the next record of its kind, or by a line of its own once no more of them come. Nobody is woken
//! for that: [`tell_of_counted`] is called where a process is awake anyway, and when it ends.

use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;

use crate::sys::clock;
use crate::sys::peer::AddressKey;

const SECOND_NS: u64 = 1_000_000_000;
/// What was counted has a line of its own only when no further record has come to tell of it: while they come, that would be a second
/// line in each second.
const QUIET_NS: u64 = 2 * SECOND_NS;

/// The kinds of which something is counted that nobody has told yet. A process that is forked begins with its parent's, which
/// has one thread and told its own.
static UNTOLD: Mutex<Vec<&'static Counted>> = Mutex::new(Vec::new());
/// Its length, to be looked at without the lock.
static HOW_MANY: AtomicUsize = AtomicUsize::new(0);

/// A kind of record.
#[derive(Debug)]
pub(crate) struct Counted {
    /// What a record of it says, for the line that tells how many more there were.
    what: &'static str,
    rate: Mutex<Rate>,
}

/// How many records of a kind were not written since the last one that was.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct More {
    /// None where there were none.
    pub(crate) count: Option<u64>,
    /// Whether one address or several caused them.
    pub(crate) from: Option<&'static str>,
}

impl Counted {
    /// `a_second`: how many are written.
    pub(crate) const fn new(what: &'static str, a_second: u32) -> Self {
        Self { what, rate: Mutex::new(Rate::new(a_second)) }
    }

    /// Whether a record is to be written, and what it has to say of those that were not. `from`: who caused it, where
    /// that is known.
    pub(crate) fn admit(&'static self, from: impl Into<Option<AddressKey>>) -> Option<More> {
        let mut rate = self.rate.lock();
        let admitted = rate.admit(clock::monotonic_ns(), from.into());
        if admitted.is_none() && rate.unwritten == 1 {
            let mut untold = UNTOLD.lock();
            // It is still there where the record that told of the ones before was written since.
            if !untold.iter().any(|kind| std::ptr::eq(*kind, self)) {
                untold.push(self);
            }
            HOW_MANY.store(untold.len(), Ordering::Relaxed);
        }
        admitted
    }
}

/// Tells what was counted of kinds that have become quiet, and all of it where the process ends.
pub(crate) fn tell_of_counted(ends: bool) {
    if HOW_MANY.load(Ordering::Relaxed) == 0 {
        return;
    }
    let now = clock::monotonic_ns();
    // Not under this lock: whoever is admitted takes them in the other order.
    let untold = std::mem::take(&mut *UNTOLD.lock());
    let (mut later, mut lines) = (Vec::new(), Vec::new());
    for kind in untold {
        let mut rate = kind.rate.lock();
        if ends || rate.is_quiet(now) {
            lines.push((kind.what, rate.take_unwritten()));
        } else {
            later.push(kind);
        }
    }
    let mut untold = UNTOLD.lock();
    untold.append(&mut later);
    HOW_MANY.store(untold.len(), Ordering::Relaxed);
    drop(untold);
    for (what, More { count, from }) in lines {
        if let Some(count) = count {
            tracing::warn!(from, "{}: {what}", not_written(count));
        }
    }
}

fn not_written(count: u64) -> String {
    match count {
        1 => "1 more record was not written".to_owned(),
        count => format!("{count} more records were not written"),
    }
}

/// So many a second, and a count of the others.
#[derive(Debug)]
struct Rate {
    a_second: u32,
    /// When the second began that is counted now, by the monotonic clock.
    began_ns: Option<u64>,
    written: u32,
    unwritten: u64,
    /// Who caused the first of those.
    from: Option<AddressKey>,
    from_several: bool,
}

impl Rate {
    const fn new(a_second: u32) -> Self {
        Self { a_second, began_ns: None, written: 0, unwritten: 0, from: None, from_several: false }
    }

    fn admit(&mut self, now_ns: u64, from: Option<AddressKey>) -> Option<More> {
        if self.is_over(now_ns) {
            (self.began_ns, self.written) = (Some(now_ns), 0);
        }
        if self.written < self.a_second {
            self.written += 1;
            return Some(self.take_unwritten());
        }
        if self.unwritten == 0 {
            self.from = from;
        }
        self.from_several |= from != self.from;
        self.unwritten = self.unwritten.saturating_add(1);
        None
    }

    fn is_over(&self, now_ns: u64) -> bool {
        self.began_ns.is_none_or(|began| now_ns.saturating_sub(began) >= SECOND_NS)
    }

    /// A second has passed in which nothing of the kind has come.
    fn is_quiet(&self, now_ns: u64) -> bool {
        self.began_ns.is_none_or(|began| now_ns.saturating_sub(began) >= QUIET_NS)
    }

    fn take_unwritten(&mut self) -> More {
        let count = Some(std::mem::take(&mut self.unwritten)).filter(|count| *count > 0);
        let several = std::mem::take(&mut self.from_several);
        let from = match (several, self.from) {
            (true, _) => "several addresses",
            (false, None) => return More { count, from: None },
            (false, Some(_)) => "one address",
        };
        More { count, from: count.map(|_| from) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const ONE: AddressKey = AddressKey::Unix(1);
    const OTHER: AddressKey = AddressKey::Unix(2);

    #[test]
    fn one_is_not_told_as_several() {
        assert_eq!(not_written(1), "1 more record was not written");
        assert_eq!(not_written(2), "2 more records were not written");
    }

    #[test]
    fn so_many_a_second_are_written_and_the_next_one_tells_of_the_others() {
        let mut rate = Rate::new(2);
        // When, who, and what is said of those before; None where it is counted.
        let table = [
            (0, Some(ONE), Some((None, None))),
            (10, Some(ONE), Some((None, None))),
            (20, Some(ONE), None),
            (30, Some(ONE), None),
            (999, Some(ONE), None),
            (1_000, Some(OTHER), Some((Some(3), Some("one address")))),
            (1_001, Some(OTHER), Some((None, None))),
            (1_002, Some(OTHER), None),
            (1_003, Some(ONE), None),
            // Long after: the second begins with what comes.
            (60_000, Some(ONE), Some((Some(2), Some("several addresses")))),
            (60_001, Some(ONE), Some((None, None))),
            (60_002, None, None),
            (61_000, None, Some((Some(1), None))),
        ];
        for (ms, from, expected) in table {
            let admitted = rate.admit(ms * MS, from);
            assert_eq!(admitted, expected.map(|(count, from)| More { count, from }), "after {ms} ms");
        }
    }

    #[test]
    fn what_was_counted_waits_for_the_next_record_while_they_come() {
        let mut rate = Rate::new(1);
        for ms in 0..5_000 {
            rate.admit(ms * MS, Some(ONE));
            assert!(!rate.is_quiet(ms * MS), "after {ms} ms");
        }
        assert!(rate.is_quiet(6_000 * MS) && rate.unwritten == 999);
    }

    #[test]
    fn a_clock_that_goes_back_opens_nothing_and_shuts_nothing() {
        let mut rate = Rate::new(1);
        assert!(rate.admit(5_000 * MS, Some(ONE)).is_some());
        assert!(rate.admit(4_000 * MS, Some(ONE)).is_none());
        assert!(rate.admit(6_000 * MS, Some(ONE)).is_some());
    }

    #[test]
    fn what_was_counted_is_told_once() {
        static KIND: Counted = Counted::new("a test", 1);
        assert_eq!(KIND.admit(ONE), Some(More::default()));
        for _ in 0..3 {
            assert_eq!(KIND.admit(ONE), None);
        }
        let is_untold = || UNTOLD.lock().iter().filter(|kind| std::ptr::eq(**kind, &raw const KIND)).count();
        assert_eq!(is_untold(), 1);
        KIND.rate.lock().take_unwritten();
        assert_eq!(KIND.admit(ONE), None);
        assert_eq!(is_untold(), 1, "the record that told of them leaves no second entry");
        tell_of_counted(true);
        assert_eq!((is_untold(), KIND.rate.lock().unwritten), (0, 0));
    }
}
