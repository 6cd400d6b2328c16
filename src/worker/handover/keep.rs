//! What the supervisor is to hear of connections: which are old enough to outlive this worker, which of those have ended,
//! which were let go.
//!
//! No handler runs on a connection before the supervisor was sent a duplicate of it: a call that would be its first waits until
//! the end of the poller's round, which has one message for all that are new in it. Nobody waits for an answer, because the
//! supervisor reads all that a dead worker has said before it decides anything, and because a worker sends no more than it was
//! granted beforehand: for so many the supervisor has room. `keep_after` is for connections on which no handler runs.
//!
//! Any thread leaves a note; the poller tells, many at a time, since each message costs the supervisor what ten connections
//! do. A connection that ends young, and has called nothing, costs its entry here and nothing else.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::mem;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::arena::Key;
use crate::channel::{FromWorker, MOST_DESCRIPTORS};
use crate::worker::connection::{Connection, Pause, Phase};
use crate::worker::due::Due;
use crate::worker::shared::Shared;
use crate::worker::threads::poller_state::{PollerState, Todo};
use crate::worker::threads::worker_thread::WorkerThread;

/// How long notes are gathered, at most.
const GATHER: Duration = Duration::from_millis(20);

/// For how long after a call that had to wait for its connection to be kept those that are accepted are kept at once: most
/// of them will call.
const CALLERS_COME: Duration = Duration::from_secs(1);

/// Keys in one message without descriptors: as text they are far shorter than a message may be.
const MOST_KEYS: usize = 2_000;

/// The notes. Who dies with some of them leaves the supervisor with connections that have ended, whose records say so.
#[derive(Debug)]
pub(in crate::worker) struct Notes {
    keep_after: Duration,
    /// Since when the worker has them; the oldest first.
    young: VecDeque<(Instant, Key)>,
    /// Those that wait for the end of the poller's round: to be kept, or for others that are about to be.
    asking: Vec<Key>,
    /// When a call had to wait for that last.
    called: Option<Instant>,
    /// Kept, and closed since.
    closed: Vec<Key>,
    offered: Vec<Key>,
    /// When the poller looks here next, if it does.
    timer: Option<Instant>,
}

/// The entry among the deadlines that should stand for the notes: at this moment, in place of that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Arm {
    at: Instant,
    instead_of: Option<Instant>,
}

impl Notes {
    pub(in crate::worker) fn new(keep_after: Duration) -> Self {
        let (young, asking) = (VecDeque::new(), Vec::new());
        let (closed, offered) = (Vec::new(), Vec::new());
        Self { keep_after, young, asking, called: None, closed, offered, timer: None }
    }

    /// There is a connection that is not kept, since `now`.
    pub(in crate::worker) fn began(&mut self, key: Key, now: Instant) -> Option<Arm> {
        self.young.push_back((now, key));
        self.arm(now.checked_add(self.keep_after)?)
    }

    /// Whether one that was accepted `now` is kept at once.
    fn keeps_at_once(&self, now: Instant) -> bool {
        let callers_come =
            self.called.is_some_and(|called| now.saturating_duration_since(called) < CALLERS_COME);
        callers_come || self.keep_after.is_zero()
    }

    /// A connection that was kept has ended.
    pub(in crate::worker) fn closed(&mut self, key: Key, now: Instant) -> Option<Arm> {
        self.closed.push(key);
        self.arm(now + GATHER)
    }

    /// A connection was let go.
    pub(in crate::worker) fn offered(&mut self, key: Key) {
        self.offered.push(key);
    }

    /// Takes the note back that a connection was let go. False where it has been told.
    pub(in crate::worker) fn takes_back(&mut self, key: Key) -> bool {
        let before = self.offered.len();
        self.offered.retain(|offered| *offered != key);
        self.offered.len() < before
    }

    /// From now on connections are kept as soon as they are there, and so are these, whatever was said of them before.
    pub(in crate::worker) fn keep_at_once(&mut self, not_kept: &[Key], now: Instant) -> Option<Arm> {
        self.keep_after = Duration::ZERO;
        let young: HashSet<Key> = self.young.iter().map(|(_, key)| *key).collect();
        self.young.extend(not_kept.iter().filter(|key| !young.contains(key)).map(|key| (now, *key)));
        self.arm(now)
    }

    /// Connections that are not kept yet are old enough by now.
    pub(in crate::worker) fn keep_young(&mut self, now: Instant) -> Option<Arm> {
        let long_ago = now.checked_sub(self.keep_after)?;
        let younger = self.young.partition_point(|(since, _)| *since <= long_ago);
        for (since, _) in self.young.range_mut(younger..) {
            *since = long_ago;
        }
        // Those that could not be kept just now have a moment of their own.
        if younger < self.young.len() { self.arm(now) } else { None }
    }

    fn arm(&mut self, at: Instant) -> Option<Arm> {
        if self.timer.is_some_and(|timer| timer <= at) {
            return None;
        }
        Some(Arm { at, instead_of: self.timer.replace(at) })
    }

    /// The moment has come: those that are old enough to be kept, `most` of them. With them come those that would be before the
    /// next look.
    fn old(&mut self, now: Instant, most: usize) -> Vec<Key> {
        self.timer = None;
        let ahead = if self.keep_after.is_zero() { Duration::ZERO } else { GATHER };
        let is_old = |since: Instant| since.checked_add(self.keep_after).is_some_and(|at| at <= now + ahead);
        let count = self.young.iter().take(most).take_while(|(since, _)| is_old(*since)).count();
        self.young.drain(..count).map(|(_, key)| key).collect()
    }

    /// These could not be kept just now. They are as old as those that come next, or would have these wait once more.
    fn keep_later(&mut self, keys: Vec<Key>, now: Instant) {
        let long_ago = now.checked_sub(self.keep_after).unwrap_or(now);
        let since = self.young.front().map_or(long_ago, |(since, _)| long_ago.min(*since));
        for key in keys.into_iter().rev() {
            self.young.push_front((since, key));
        }
    }

    /// When to look again.
    fn look_again(&mut self, now: Instant) -> Option<Arm> {
        let oldest = self.young.front().and_then(|(since, _)| since.checked_add(self.keep_after));
        self.arm(oldest?.max(now + GATHER))
    }
}

impl Shared {
    /// Leaves a note of what happened to a connection.
    pub(in crate::worker) fn note(&self, note: impl FnOnce(&mut Notes) -> Option<Arm>) {
        let arm = note(&mut self.notes.lock());
        if let Some(Arm { at, instead_of }) = arm {
            self.remind_instead(at, Due::Notes, instead_of);
        }
    }

    /// A connection was accepted `now`. Where handlers run it is kept at once, because one of them may end this process.
    pub(in crate::worker) fn began(&self, key: Key, now: Instant) {
        self.has_new.store(true, Ordering::Relaxed);
        self.note(|notes| {
            if self.gate.is_idle() && !notes.keeps_at_once(now) {
                return notes.began(key, now);
            }
            notes.asking.push(key);
            None
        });
    }

    /// A call has come `now` that may not begin yet. Has the poller send the supervisor its connection at the end of the round, and
    /// all that are new, and then go on with it.
    pub(in crate::worker) fn ask_to_keep(&self, key: Key, now: Instant) {
        let mut notes = self.notes.lock();
        notes.asking.push(key);
        notes.called = Some(now);
        self.has_new.store(true, Ordering::Relaxed);
    }

    /// The round is over: those that ask, and if there are any all others that are not kept.
    pub(in crate::worker) fn take_unkept(&self) -> Vec<Arc<Connection>> {
        let mut notes = self.notes.lock();
        if notes.asking.is_empty() {
            return Vec::new();
        }
        self.has_new.store(false, Ordering::Relaxed);
        let mut keys = mem::take(&mut notes.asking);
        keys.extend(notes.young.drain(..).map(|(_, key)| key));
        drop(notes);
        keys.sort_unstable();
        keys.dedup();
        let table = self.table.lock();
        keys.into_iter().filter_map(|key| table.get(key)).collect()
    }

    /// A connection that may outlive this worker.
    fn to_be_kept(&self, key: Key) -> Option<Arc<Connection>> {
        let connection = self.find(key)?;
        let state = connection.lock();
        let may_be_kept = state.phase != Phase::Closed && !state.stays;
        drop(state);
        (may_be_kept && !connection.kept.load(Ordering::Relaxed)).then_some(connection)
    }

    /// The supervisor has been sent a duplicate of it. Not before, or another thread might offer what is kept nowhere. True
    /// where a call waits for nothing else.
    fn is_kept(&self, connection: &Arc<Connection>, now: Instant) -> bool {
        let state = connection.lock();
        let has_ended = state.phase == Phase::Closed;
        let waits = state.paused == Some(Pause::Unkept) && state.has_place();
        connection.kept.store(!has_ended, Ordering::Relaxed);
        drop(state);
        if has_ended {
            self.note(|notes| notes.closed(connection.key, now));
        }
        waits && !has_ended
    }
}

impl PollerState {
    /// It is time to tell what was gathered.
    pub(in crate::worker) fn tell_notes(&mut self, thread: &mut WorkerThread) {
        let (shared, now) = (thread.shared, thread.now());
        let mut old = shared.notes.lock().old(now, self.may_keep);
        // One that had no place may be there twice.
        old.sort_unstable();
        old.dedup();
        let (old, without_place): (Vec<Arc<Connection>>, _) = old
            .into_iter()
            .filter_map(|key| shared.to_be_kept(key))
            .partition(|connection| connection.lock().has_place());
        let later: Vec<Key> = self.keep(thread, &old).into_iter().map(|connection| connection.key).collect();
        if !old.is_empty() && later.is_empty() {
            self.keeps_all(thread);
        }
        self.keep_without_place(thread, &without_place);
        self.tell_closed(shared);
        let may_keep_any = self.may_keep > 0;
        shared.note(|notes| {
            notes.keep_later(later, now);
            // Else the supervisor says when.
            if may_keep_any { notes.look_again(now) } else { None }
        });
    }

    /// Keeps those that are too young for it, as far as it may: until then nobody else counts them.
    pub(in crate::worker) fn keep_young(&mut self, thread: &mut WorkerThread) {
        thread.shared.note(|notes| notes.keep_young(thread.now()));
        self.tell_notes(thread);
    }

    fn tell_closed(&mut self, shared: &Shared) {
        let closed = mem::take(&mut shared.notes.lock().closed);
        for keys in closed.chunks(MOST_KEYS) {
            // Counted behind that, or one that has ended meanwhile would be taken off twice.
            let without_place = self.reserve.are_kept(shared);
            self.tell(&FromWorker::Closed { connections: keys.to_vec(), without_place });
        }
    }

    /// The round is over: keeps those that ask for it, and has those go on that wait for that.
    pub(in crate::worker) fn keep_who_ask(&mut self, thread: &mut WorkerThread) {
        self.asking_waits = false;
        let asked = thread.shared.take_unkept();
        if asked.is_empty() {
            return;
        }
        let (shared, mut unkept, mut others) = (thread.shared, Vec::new(), Vec::new());
        let mut without_place = Vec::new();
        for connection in asked {
            let mut state = connection.lock();
            // What was offered in vain can be kept nowhere.
            state.refuses_unkept |= state.stays;
            let goes_on = state.stays || connection.kept.load(Ordering::Relaxed);
            let waits = state.paused == Some(Pause::Unkept);
            let has_place = state.has_place();
            drop(state);
            if !has_place {
                // What waits for a place goes on when there is one.
                without_place.extend((!goes_on).then_some((!waits, connection)));
            } else if goes_on {
                self.todo.push_back(Todo::Turn(connection.key));
            } else if waits {
                unkept.push(connection);
            } else {
                others.push(connection);
            }
        }
        // Those on which calls wait are first, where not all can be kept.
        unkept.append(&mut others);
        if unkept.len() > self.may_keep {
            // There is room again where others have ended.
            self.tell_closed(shared);
        }
        let later = self.keep(thread, &unkept);
        if later.is_empty() {
            self.keeps_all(thread);
        } else {
            self.keeps_none_since.get_or_insert(thread.now());
            self.wait_until_kept(thread, later);
        }
        without_place.sort_by_key(|(says_nothing, _)| *says_nothing);
        let without_place: Vec<_> = without_place.into_iter().map(|(_, connection)| connection).collect();
        self.keep_without_place(thread, &without_place);
    }

    /// Keeps those that have no place behind those that have one, and no more than there is room for beside them. The others are
    /// noted again when they have a place, and those on which calls wait when the supervisor has more room.
    fn keep_without_place(&mut self, thread: &mut WorkerThread, connections: &[Arc<Connection>]) {
        if connections.is_empty() {
            return;
        }
        let room = self.most_kept_without_place.saturating_sub(self.reserve.are_kept(thread.shared));
        let some = &connections[..connections.len().min(room).min(self.may_keep)];
        let later = self.keep(thread, some);
        if !later.is_empty() {
            thread.shared.note(|notes| {
                notes.asking.extend(later.iter().map(|connection| connection.key));
                notes.arm(thread.now() + GATHER)
            });
        }
    }

    /// Those that were to be kept are. Where no others wait for that, who is accepted can be kept too.
    fn keeps_all(&mut self, thread: &WorkerThread) {
        if !self.lacks_credit && self.keeps_none_since.take().is_some() {
            self.open_acceptors(thread);
        }
    }

    /// Calls on these wait until they can be kept. Calls on kept ones don't wait for that.
    fn wait_until_kept(&mut self, thread: &mut WorkerThread, later: Vec<Arc<Connection>>) {
        let shared = thread.shared;
        let (mut asking, mut others) = (Vec::new(), Vec::new());
        for connection in later {
            let waits = thread.can_not_be_kept_yet(&connection);
            if waits { &mut asking } else { &mut others }.push(connection.key);
        }
        if self.may_keep == 0 {
            // The supervisor says when there may be more.
            self.lacks_credit |= !asking.is_empty();
            return shared.notes.lock().keep_later(others, thread.now());
        }
        // The kernel does not say when it takes more descriptors, and a channel that is full may have been read by then.
        asking.append(&mut others);
        shared.note(|notes| {
            notes.asking.append(&mut asking);
            notes.arm(thread.now() + GATHER)
        });
    }

    /// The supervisor has room for so many more. Calls that wait for that ask again.
    pub(in crate::worker) fn may_keep_more(&mut self, thread: &WorkerThread, more: usize) {
        let shared = &thread.shared;
        self.may_keep = self.may_keep.saturating_add(more);
        let mut asking = self.reserve.ask(shared);
        if mem::take(&mut self.lacks_credit) {
            let waits = |connection: &Arc<Connection>| connection.lock().paused == Some(Pause::Unkept);
            asking.extend(shared.all_connections().iter().filter(|one| waits(one)).map(|one| one.key));
        }
        shared.note(|notes| {
            notes.asking.append(&mut asking);
            // Those that say nothing could not be kept either.
            notes.look_again(thread.now())
        });
    }

    /// Sends the supervisor duplicates of connections, which are kept from then on, and has those go on that wait for that.
    /// Returns those that could not be sent.
    fn keep(&mut self, thread: &mut WorkerThread, connections: &[Arc<Connection>]) -> Vec<Arc<Connection>> {
        let (sure, unsure) = connections.split_at(connections.len().min(self.may_keep));
        let mut later = unsure.to_vec();
        for batch in sure.chunks(MOST_DESCRIPTORS) {
            match self.send_duplicates(thread.shared, batch) {
                Ok(()) => self.may_keep -= batch.len(),
                Err(error) if error.raw_os_error().map(Errno::from_raw) == Some(Errno::EBADF) => {
                    later.extend(self.keep_each(thread, batch));
                    continue;
                }
                // There is no supervisor any more, and so nobody who could go on with them.
                Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
                Err(error) => {
                    self.complain(thread.shared, &error);
                    // Then the channel says when it takes more. What else there may be passes without a word, and is tried again.
                    self.asking_waits |= error.kind() == io::ErrorKind::WouldBlock;
                    later.extend_from_slice(batch);
                    continue;
                }
            }
            for connection in batch {
                if thread.shared.is_kept(connection, thread.now()) {
                    self.todo.push_back(Todo::Turn(connection.key));
                }
            }
            if thread.shared.lets_go() {
                self.todo.extend(batch.iter().cloned().map(Todo::LetGo));
            }
        }
        later
    }

    /// A handler has closed the descriptor of one of these, which must not be everybody's loss; or that of the channel, and then the
    /// supervisor ends this worker.
    fn keep_each(&mut self, thread: &mut WorkerThread, batch: &[Arc<Connection>]) -> Vec<Arc<Connection>> {
        if let [connection] = batch {
            if fcntl(connection.socket.as_fd(), FcntlArg::F_GETFD).is_ok() {
                return vec![Arc::clone(connection)];
            }
            tracing::error!(peer = %connection.peer, "the descriptor of a connection was closed, as by a handler; it is given up");
            thread.close(&mut connection.lock());
            return Vec::new();
        }
        batch.iter().flat_map(|connection| self.keep(thread, std::slice::from_ref(connection))).collect()
    }

    fn send_duplicates(&self, shared: &Shared, batch: &[Arc<Connection>]) -> io::Result<()> {
        let connections = batch.iter().map(|connection| connection.key).collect();
        let are_new = batch.iter().filter(|connection| !connection.lock().has_place()).count();
        let without_place = self.reserve.are_kept(shared) + are_new;
        let descriptors: Vec<BorrowedFd<'_>> =
            batch.iter().map(|connection| connection.socket.as_fd()).collect();
        self.channel.send_now(&FromWorker::Keep { connections, without_place }, &descriptors)
    }

    /// Tells what was let go. Its clients wait, so this is not gathered for longer than a round lasts.
    pub(in crate::worker) fn tell_offers(&mut self, shared: &Shared) {
        let offered = mem::take(&mut shared.notes.lock().offered);
        self.offers_wait = false;
        for keys in offered.chunks(MOST_KEYS) {
            // At once or not at all: said twice, it would be about connections that others have by then.
            let (connections, without_place) = (keys.to_vec(), self.reserve.are_kept(shared));
            if let Err(error) =
                self.channel.send_now(&FromWorker::Offered { connections, without_place }, &[])
            {
                self.offers_wait |= error.kind() == io::ErrorKind::WouldBlock;
                shared.notes.lock().offered.extend(keys);
            }
        }
    }

    /// Where the supervisor is gone its channel says so too.
    fn tell(&mut self, message: &FromWorker) {
        let _ = self.channel.send(message, Vec::new());
    }

    fn complain(&mut self, shared: &Shared, error: &io::Error) {
        if error.kind() != io::ErrorKind::WouldBlock && !mem::replace(&mut self.has_complained, true) {
            tracing::warn!(
                slot = shared.info.slot(),
                %error,
                "connections can't be kept for now, and calls on new ones wait for that (said once)"
            );
        }
    }
}

impl Shared {
    pub(in crate::worker) fn are_not_kept(&self, keys: &[Key]) {
        for connection in keys.iter().filter_map(|key| self.find(*key)) {
            connection.kept.store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    #[test]
    fn connections_are_kept_in_batches_and_none_later_than_it_should_be() {
        let (mut notes, start) = (Notes::new(MS(100)), Instant::now());
        assert_eq!(notes.began(key(0), start), Some(Arm { at: start + MS(100), instead_of: None }));
        assert_eq!(notes.began(key(1), start + MS(19)), None, "one timer stands for all");
        assert_eq!(notes.began(key(2), start + MS(21)), None);
        assert_eq!(notes.old(start + MS(100), usize::MAX), [key(0), key(1)]);
        let again = notes.look_again(start + MS(100));
        assert_eq!(again, Some(Arm { at: start + MS(121), instead_of: None }));
        assert_eq!(notes.old(start + MS(121), usize::MAX), [key(2)]);
        assert_eq!(notes.look_again(start + MS(121)), None, "nothing to look for, no wake-up");
    }

    #[test]
    fn ends_are_gathered_for_a_while_and_never_wait_for_connections_that_grow_old() {
        let (mut notes, start) = (Notes::new(MS(5_000)), Instant::now());
        notes.began(key(0), start);
        let arm = notes.closed(key(9), start + MS(1));
        assert_eq!(arm, Some(Arm { at: start + MS(21), instead_of: Some(start + MS(5_000)) }));
        assert_eq!(notes.old(start + MS(21), usize::MAX), []);
        assert_eq!(notes.look_again(start + MS(21)), Some(Arm { at: start + MS(5_000), instead_of: None }));
    }

    #[test]
    fn what_could_not_be_kept_is_tried_again_a_little_later() {
        let (mut notes, start) = (Notes::new(MS(0)), Instant::now());
        assert_eq!(notes.began(key(0), start).unwrap().at, start);
        let old = notes.old(start, usize::MAX);
        notes.keep_later(old, start);
        assert_eq!(notes.look_again(start).unwrap().at, start + GATHER);
        assert_eq!(notes.old(start + GATHER, usize::MAX), [key(0)]);
    }

    #[test]
    fn what_could_not_be_kept_has_nobody_wait_for_another_keep_after() {
        let (mut notes, start) = (Notes::new(MS(500)), Instant::now());
        notes.began(key(0), start);
        notes.began(key(1), start + MS(100));
        let now = start + MS(500);
        let old = notes.old(now, usize::MAX);
        notes.keep_later(old, now);
        assert_eq!(notes.look_again(now).unwrap().at, now + GATHER);
        assert_eq!(notes.old(now + GATHER, usize::MAX), [key(0)]);
        assert_eq!(notes.look_again(now + GATHER).unwrap().at, start + MS(600));
    }

    #[test]
    fn an_offer_can_be_taken_back_until_it_is_told() {
        let mut notes = Notes::new(MS(0));
        notes.offered(key(0));
        assert!(notes.takes_back(key(0)));
        assert!(!notes.takes_back(key(0)) && notes.offered.is_empty());
    }

    #[test]
    fn a_worker_that_leaves_has_all_kept_at_once() {
        let (mut notes, start) = (Notes::new(MS(100)), Instant::now());
        notes.began(key(0), start);
        let arm = notes.keep_at_once(&[key(0), key(7)], start);
        assert_eq!(arm, Some(Arm { at: start, instead_of: Some(start + MS(100)) }));
        assert_eq!(
            notes.old(start, usize::MAX),
            [key(0), key(7)],
            "once each, and those that were refused before"
        );
    }

    #[test]
    fn where_callers_come_connections_are_kept_at_once() {
        let (mut notes, start) = (Notes::new(MS(100)), Instant::now());
        assert!(!notes.keeps_at_once(start));
        notes.called = Some(start);
        assert!(notes.keeps_at_once(start + MS(999)) && !notes.keeps_at_once(start + MS(1_000)));
        assert!(Notes::new(MS(0)).keeps_at_once(start));
    }

    #[test]
    fn a_time_that_never_comes_keeps_nothing() {
        let mut notes = Notes::new(Duration::MAX);
        assert_eq!(notes.began(key(0), Instant::now()), None);
        assert_eq!(notes.old(Instant::now(), usize::MAX), []);
    }
}
