//! Leftovers: what handlers have started and is still there when their worker has ended. Whose is it, and when is it ended?
//!
//! A process whose parent ends becomes the supervisor's child. Each worker has a session of its own, and what its handlers start is in it. So the
//! session says whose an orphan is, even while the worker lives. A daemon has made itself a session, which says nothing. It may be of any worker
//! that lived when the daemon was first seen, so it is ended with the last of these workers.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use super::Policy;
use crate::sys::family::Child;

/// From the request to end to the kill, for all that is in one session; and from there until a process that is not to be killed
/// is waited for no longer.
const GRACE: Duration = Duration::from_secs(1);

/// What is to be sent to an orphan.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EndOrder {
    End,
    Kill,
}

/// Who lives by now.
#[derive(Debug, Default)]
pub(crate) struct Living<W> {
    /// Each worker's session; none while it is not known.
    pub(crate) workers: BTreeMap<W, Option<i32>>,
    /// Sessions of the supervisor and of the templates: what is in them is no handler's.
    pub(crate) others: BTreeSet<i32>,
}

/// How far an orphan is on its way out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum EndStep {
    /// It is killed then.
    Asked(Instant),
    /// It should be gone by then; what it had started comes to light with its end.
    Killed(Instant),
    /// It can't be killed, as one that waits for a disk.
    GivenUp,
}

impl EndStep {
    fn until(self) -> Option<Instant> {
        match self {
            Self::Asked(until) | Self::Killed(until) => Some(until),
            Self::GivenUp => None,
        }
    }
}

/// What is left of the workers that have ended.
#[derive(Debug)]
pub(crate) struct Leftovers<W> {
    /// Sessions of workers that have ended.
    ended: BTreeSet<i32>,
    /// Sessions of templates that have ended: what preload has started is left alone.
    spared: BTreeSet<i32>,
    /// Orphans in sessions of their own, and the workers that each may be of. None for those that are left alone.
    daemons: BTreeMap<Child, Option<BTreeSet<W>>>,
    /// Those that are to end, and how far they are.
    ending: BTreeMap<Child, EndStep>,
    /// When what is to end in a session is asked no longer, and killed.
    patience: BTreeMap<i32, Instant>,
    in_haste: bool,
}

/// What is left of it to another program: whose everything is. What was given up is asked to end once more by that.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedLeftovers<W: Ord> {
    ended: BTreeSet<i32>,
    spared: BTreeSet<i32>,
    daemons: Vec<SavedDaemon<W>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct SavedDaemon<W: Ord> {
    pid: i32,
    started: u64,
    session: i32,
    may_be_of: Option<BTreeSet<W>>,
}

impl<W: Copy + Ord + 'static> Leftovers<W> {
    pub(crate) fn new() -> Self {
        Self {
            ended: BTreeSet::new(),
            spared: BTreeSet::new(),
            daemons: BTreeMap::new(),
            ending: BTreeMap::new(),
            patience: BTreeMap::new(),
            in_haste: false,
        }
    }

    pub(crate) fn leave(&self) -> SavedLeftovers<W> {
        let daemons = self.daemons.iter().map(|(daemon, may_be_of)| SavedDaemon {
            pid: daemon.pid,
            started: daemon.started,
            session: daemon.session,
            may_be_of: may_be_of.clone(),
        });
        SavedLeftovers { ended: self.ended.clone(), spared: self.spared.clone(), daemons: daemons.collect() }
    }

    pub(crate) fn inherit(left: SavedLeftovers<W>) -> Self {
        let daemons = left.daemons.into_iter().map(|SavedDaemon { pid, started, session, may_be_of }| {
            (Child { pid, started, session }, may_be_of)
        });
        Self { ended: left.ended, spared: left.spared, daemons: daemons.collect(), ..Self::new() }
    }

    pub(crate) fn worker_ended(&mut self, session: i32) {
        self.ended.insert(session);
    }

    pub(crate) fn template_ended(&mut self, session: i32) {
        self.spared.insert(session);
    }

    /// Nothing gets any time to end by itself from now on.
    pub(crate) fn hurry(&mut self) {
        self.in_haste = true;
    }

    /// Daemons that were never seen before are no handler's: the service has just begun, or preload has just run.
    pub(crate) fn spare_new(&mut self, orphans: &[Child]) {
        for orphan in orphans {
            self.daemons.entry(*orphan).or_insert(None);
        }
    }

    /// Nothing is ended any more, so nothing is waited for.
    pub(crate) fn leave_alone(&mut self) {
        self.ending.clear();
        self.patience.clear();
    }

    /// Some were asked to end or killed, and are waited for.
    pub(crate) fn is_waiting(&self) -> bool {
        self.next_due().is_some()
    }

    fn is_to_end(&mut self, orphan: &Child, living: &Living<W>, alive: &BTreeSet<i32>) -> bool {
        let session = orphan.session;
        if alive.contains(&session) || living.others.contains(&session) || self.spared.contains(&session) {
            return false;
        }
        if self.ended.contains(&session) {
            return true;
        }
        let first = || Some(living.workers.keys().copied().collect());
        match self.daemons.entry(*orphan).or_insert_with(first) {
            None => false,
            Some(may_be_of) => {
                may_be_of.retain(|worker| living.workers.contains_key(worker));
                may_be_of.is_empty()
            }
        }
    }

    fn order(&mut self, orphan: Child, now: Instant) -> Option<EndOrder> {
        let ends = *self.patience.entry(orphan.session).or_insert(now + GRACE);
        let is_over = self.in_haste || ends <= now;
        let (step, order) = match self.ending.get(&orphan) {
            None if !is_over => (EndStep::Asked(ends), Some(EndOrder::End)),
            Some(EndStep::Asked(_)) if !is_over => return None,
            None | Some(EndStep::Asked(_)) => (EndStep::Killed(now + GRACE), Some(EndOrder::Kill)),
            Some(EndStep::Killed(until)) if *until <= now => (EndStep::GivenUp, None),
            Some(EndStep::Killed(_) | EndStep::GivenUp) => return None,
        };
        self.ending.insert(orphan, step);
        order
    }
}

impl<W: Copy + Ord + 'static> Policy for Leftovers<W> {
    /// All children of the supervisor that are neither workers nor templates, and who lives by now.
    type Seen<'a> = (&'a [Child], &'a Living<W>);
    type Decision = Vec<(Child, EndOrder)>;

    fn next_due(&self) -> Option<Instant> {
        self.ending.values().filter_map(|step| step.until()).min()
    }

    /// Decides about all children of the supervisor that are neither workers nor templates.
    fn due(&mut self, now: Instant, (orphans, living): Self::Seen<'_>) -> Vec<(Child, EndOrder)> {
        let there: BTreeSet<Child> = orphans.iter().copied().collect();
        let sessions: BTreeSet<i32> = orphans.iter().map(|orphan| orphan.session).collect();
        let alive: BTreeSet<i32> = living.workers.values().copied().flatten().collect();
        // The kernel gives a session's number again when nobody is in it any more.
        self.ended.retain(|session| sessions.contains(session) && !alive.contains(session));
        self.spared.retain(|session| sessions.contains(session) && !alive.contains(session));
        self.daemons.retain(|daemon, _| there.contains(daemon));
        self.ending.retain(|orphan, _| there.contains(orphan));
        self.patience.retain(|session, _| sessions.contains(session) && !alive.contains(session));
        let mut orders = Vec::new();
        for orphan in orphans {
            if self.is_to_end(orphan, living, &alive) {
                orders.extend(self.order(*orphan, now).map(|order| (*orphan, order)));
            }
        }
        orders
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SUPERVISORS: i32 = 10;

    fn child(pid: i32, session: i32) -> Child {
        Child { pid, started: 7, session }
    }

    fn living(workers: &[(u32, i32)]) -> Living<u32> {
        Living {
            workers: workers.iter().map(|(worker, session)| (*worker, Some(*session))).collect(),
            others: [SUPERVISORS].into(),
        }
    }

    #[test]
    fn what_a_worker_leaves_is_asked_to_end_and_then_killed() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        let orphans = [child(1, 100), child(2, 200), child(3, SUPERVISORS)];
        assert_eq!(leftovers.due(now, (&orphans, &living(&[(0, 100), (1, 200)]))), []);
        leftovers.worker_ended(100);
        let rest = living(&[(1, 200)]);
        assert_eq!(leftovers.due(now, (&orphans, &rest)), [(orphans[0], EndOrder::End)]);
        assert_eq!(leftovers.due(now, (&orphans, &rest)), [], "once");
        assert_eq!(leftovers.next_due(), Some(now + GRACE));
        // What the first one had started comes to the supervisor when that has ended.
        let next = [child(4, 100), orphans[1], orphans[2]];
        assert_eq!(leftovers.due(now, (&next, &rest)), [(next[0], EndOrder::End)]);
        let late = now + GRACE;
        assert_eq!(leftovers.due(late, (&next, &rest)), [(next[0], EndOrder::Kill)]);
        assert!(leftovers.is_waiting(), "something may have been started by it");
        let last = [child(5, 100), orphans[1]];
        assert_eq!(
            leftovers.due(late, (&last, &rest)),
            [(last[0], EndOrder::Kill)],
            "the session had its time"
        );
        assert_eq!(leftovers.due(late + GRACE, (&last, &rest)), []);
        assert!(!leftovers.is_waiting(), "one that can't be killed is not waited for");
        assert_eq!(leftovers.due(late, (&orphans[1..], &rest)), []);
    }

    #[test]
    fn a_daemon_ends_with_the_last_worker_that_may_have_started_it() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        let old = child(1, 1);
        leftovers.spare_new(&[old]);
        let daemon = child(2, 2);
        leftovers.worker_ended(100);
        assert_eq!(leftovers.due(now, (&[old, daemon], &living(&[(1, 200)]))), [], "it may be of worker 1");
        let newer = living(&[(1, 200), (2, 300)]);
        assert_eq!(leftovers.due(now, (&[old, daemon], &newer)), []);
        leftovers.worker_ended(200);
        let orders = leftovers.due(now, (&[old, daemon], &living(&[(2, 300)])));
        assert_eq!(orders, [(daemon, EndOrder::End)], "worker 2 was born later");
        // With one worker there is no doubt.
        let another = child(3, 3);
        assert_eq!(leftovers.due(now, (&[old, another], &living(&[]))), [(another, EndOrder::End)]);
    }

    #[test]
    fn whoever_goes_on_knows_whose_everything_is() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        let [preloads, daemon, spared, left] = [child(1, 1), child(2, 2), child(3, 50), child(4, 100)];
        leftovers.spare_new(&[preloads]);
        leftovers.template_ended(50);
        let orphans = [preloads, daemon, spared, left];
        assert_eq!(leftovers.due(now, (&orphans, &living(&[(0, 100), (1, 200)]))), []);
        leftovers.worker_ended(100);
        let told = serde_json::to_string(&leftovers.leave()).unwrap();
        let mut leftovers = Leftovers::inherit(serde_json::from_str(&told).unwrap());
        let newer = living(&[(1, 200), (2, 300)]);
        assert_eq!(leftovers.due(now, (&orphans, &newer)), [(left, EndOrder::End)]);
        assert_eq!(leftovers.due(now, (&orphans[..3], &living(&[(2, 300)]))), [(daemon, EndOrder::End)]);
    }

    #[test]
    fn numbers_that_come_again_are_of_who_has_them_now() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        leftovers.worker_ended(100);
        let orphan = child(1, 100);
        assert_eq!(leftovers.due(now, (&[orphan], &living(&[(5, 100)]))), [], "a living worker's session");
        leftovers.worker_ended(200);
        assert_eq!(leftovers.due(now, (&[], &living(&[]))), []);
        let other = child(2, 200);
        assert_eq!(leftovers.due(now, (&[other], &living(&[(6, 300)]))), [], "nobody was left in it");
    }

    #[test]
    fn what_preload_has_started_is_left_alone() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        leftovers.template_ended(50);
        assert_eq!(leftovers.due(now, (&[child(1, 50)], &living(&[]))), []);
        assert_eq!(leftovers.due(now, (&[child(1, 50)], &living(&[]))), []);
    }

    #[test]
    fn what_is_left_alone_is_not_waited_for() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        leftovers.worker_ended(100);
        let orphan = child(1, 100);
        assert_eq!(leftovers.due(now, (&[orphan], &living(&[]))), [(orphan, EndOrder::End)]);
        assert!(leftovers.is_waiting());
        leftovers.leave_alone();
        assert_eq!((leftovers.is_waiting(), leftovers.next_due()), (false, None));
    }

    #[test]
    fn in_haste_everything_is_killed_at_once() {
        let (mut leftovers, now) = (Leftovers::new(), Instant::now());
        leftovers.worker_ended(100);
        let orphans = [child(1, 100), child(2, 100)];
        assert_eq!(leftovers.due(now, (&orphans[..1], &living(&[]))), [(orphans[0], EndOrder::End)]);
        leftovers.hurry();
        let killed = [(orphans[0], EndOrder::Kill), (orphans[1], EndOrder::Kill)];
        assert_eq!(leftovers.due(now, (&orphans, &living(&[]))), killed);
        assert!(leftovers.is_waiting());
        assert_eq!(leftovers.due(now, (&[], &living(&[]))), []);
        assert!(!leftovers.is_waiting());
    }
}
