//! Escrow: the supervisor's duplicates of the workers' connections, and whose each connection is.
//!
//! A connection in escrow is in one of three places. A living worker serves it; or it waits for a worker, because its own has died or released
//! it; or it is on its way to a worker that has not confirmed it yet. The escrow keeps the arena of a worker for as long as the record of a
//! connection may have to be read there, which is longer than the worker lives.
//!
//! Pure: `D` stands for a connection's descriptor and `A` for an arena, so tests need neither. `handover/` exchanges the messages.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::arena::Key;
use crate::channel::Taken;
use crate::supervisor::policy::state::WorkerId;

/// The most connections that one message hands over. An adopter serves these before it reads the next message, so callers wait for a few
/// milliseconds at most.
pub(crate) const MOST_AT_ONCE: usize = 64;

/// How often adopters may have no room for a connection before it is closed. It is tried again every 20 ms, so that takes seconds.
const MOST_PUT_OFF: u32 = 250;

/// Every connection that is kept, and all arenas that are needed.
#[derive(Debug)]
pub(crate) struct Escrow<D, A> {
    workers: BTreeMap<WorkerId, WorkerEscrow<D, A>>,
}

/// What is one worker's: its arena, and the connections whose records are there.
#[derive(Debug)]
struct WorkerEscrow<D, A> {
    arena: A,
    /// Its poller's epoll set, once it is ready. The kernel empties the set when nobody holds it any more, and that takes longer than
    /// anything else in the end of a worker with many connections.
    epoll: Option<D>,
    /// What it died of; None while it lives.
    cause: Option<String>,
    /// Those that it serves. None when it has died.
    served: HashMap<Key, D>,
    /// Those that nobody serves.
    waiting: Unserved<D>,
    /// Those that others were asked to go on with, in the order in which they were asked.
    on_the_way: Vec<Sent<D>>,
    /// How often adopters had no room for these.
    put_off: HashMap<Key, u32>,
    /// Who had none, while nobody else has taken any since.
    put_off_by: Option<WorkerId>,
}

/// Connections that wait for a worker, in the order in which they are handed over.
#[derive(Debug)]
struct Unserved<D> {
    /// Somebody waits for these.
    urgent: VecDeque<(Key, D)>,
    /// Nobody does.
    others: VecDeque<(Key, D)>,
    /// Nobody has checked yet which of the two these are.
    new: VecDeque<(Key, D)>,
}

#[derive(Debug)]
struct Sent<D> {
    to: WorkerId,
    connections: Vec<(Key, D)>,
}

/// What is to be handed over of all that waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    /// Those that somebody waits for, as far as that was checked.
    Urgent,
    All,
}

/// Connections that a worker should be asked to go on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HandOff {
    pub(crate) from: WorkerId,
    pub(crate) to: WorkerId,
    pub(crate) count: usize,
}

/// What a worker is sent with such a request.
#[derive(Debug)]
pub(crate) struct Parcel<'a, D, A> {
    pub(crate) arena: &'a A,
    pub(crate) cause: Option<String>,
    pub(crate) connections: Vec<Key>,
    pub(crate) descriptors: Vec<&'a D>,
}

/// What follows from a worker's word that it goes on with connections.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct AdoptionOutcome {
    /// For the worker they come from, if it lives: they are no longer its own.
    pub(crate) released: Vec<Key>,
    /// Records of which nothing could be made. Their connections are closed.
    pub(crate) refused: usize,
    /// Those that did not arrive, or for which there was no room, wait again.
    pub(crate) wait_again: usize,
}

impl<D, A> WorkerEscrow<D, A> {
    /// Whether one for which an adopter had no room is to wait for another; not for ever.
    fn may_be_put_off(&mut self, key: Key) -> bool {
        let times = self.put_off.entry(key).or_default();
        *times += 1;
        *times <= MOST_PUT_OFF
    }
}

impl<D> Default for Unserved<D> {
    fn default() -> Self {
        Self { urgent: VecDeque::new(), others: VecDeque::new(), new: VecDeque::new() }
    }
}

impl<D> Unserved<D> {
    fn len(&self) -> usize {
        self.urgent.len() + self.others.len() + self.new.len()
    }

    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn iter(&self) -> impl Iterator<Item = &(Key, D)> {
        self.urgent.iter().chain(&self.others).chain(&self.new)
    }

    /// The first `count`, which wait no longer.
    fn take(&mut self, count: usize) -> Vec<(Key, D)> {
        let mut taken = Vec::with_capacity(count.min(self.len()));
        for queue in [&mut self.urgent, &mut self.others, &mut self.new] {
            let missing = count - taken.len();
            taken.extend(queue.drain(..missing.min(queue.len())));
        }
        taken
    }

    /// Checks `most` of those that were not checked, and sorts them by urgency.
    fn look_at(&mut self, most: usize, are_urgent: impl Fn(&[(Key, D)]) -> Vec<bool>) {
        let some: Vec<(Key, D)> = self.new.drain(..most.min(self.new.len())).collect();
        let are_urgent = are_urgent(&some).into_iter().chain(std::iter::repeat(false));
        for (connection, is_urgent) in some.into_iter().zip(are_urgent) {
            if is_urgent { &mut self.urgent } else { &mut self.others }.push_back(connection);
        }
    }
}

impl<D, A> Default for Escrow<D, A> {
    fn default() -> Self {
        Self { workers: BTreeMap::new() }
    }
}

/// What workers say, and their end.
impl<D, A> Escrow<D, A> {
    /// A worker that is about to be forked has this arena.
    pub(crate) fn begin(&mut self, worker: WorkerId, arena: A) {
        let (served, waiting, on_the_way) = (HashMap::new(), Unserved::default(), Vec::new());
        let escrow = WorkerEscrow {
            arena,
            epoll: None,
            cause: None,
            served,
            waiting,
            on_the_way,
            put_off: HashMap::new(),
            put_off_by: None,
        };
        self.workers.insert(worker, escrow);
    }

    /// A worker is ready, and this is its poller's epoll set. Only the first one counts.
    pub(crate) fn hold_epoll(&mut self, worker: WorkerId, epoll: D) {
        if let Some(escrow) = self.workers.get_mut(&worker) {
            escrow.epoll.get_or_insert(epoll);
        }
    }

    /// A worker asks to have connections kept. Those for which no descriptor arrived are returned.
    pub(crate) fn keep(&mut self, worker: WorkerId, connections: Vec<Key>, descriptors: Vec<D>) -> Vec<Key> {
        let Some(escrow) = self.workers.get_mut(&worker) else {
            return connections;
        };
        let mut connections = connections.into_iter();
        escrow.served.extend(connections.by_ref().take(descriptors.len()).zip(descriptors));
        connections.collect()
    }

    /// Connections of a worker have ended. One that is on its way is its adopter's to find ended.
    pub(crate) fn closed(&mut self, worker: WorkerId, connections: &[Key]) {
        if let Some(escrow) = self.workers.get_mut(&worker) {
            for key in connections {
                escrow.served.remove(key);
            }
        }
    }

    /// A worker has released connections. Those that are not in escrow are returned, because nobody else can have them.
    pub(crate) fn offered(&mut self, worker: WorkerId, connections: Vec<Key>) -> Vec<Key> {
        let Some(escrow) = self.workers.get_mut(&worker) else {
            return connections;
        };
        let mut not_kept = Vec::new();
        for key in connections {
            match escrow.served.remove(&key) {
                Some(descriptor) => escrow.waiting.new.push_back((key, descriptor)),
                None => not_kept.push(key),
            }
        }
        not_kept
    }

    /// `adopter` says what became of the connections of `from` that it was asked about first.
    pub(crate) fn adopted(
        &mut self,
        adopter: WorkerId,
        from: WorkerId,
        results: Vec<Taken>,
    ) -> AdoptionOutcome {
        let mut moved = AdoptionOutcome::default();
        let mut adopted = Vec::new();
        if let Some(escrow) = self.workers.get_mut(&from)
            && let Some(index) = escrow.on_the_way.iter().position(|sent| sent.to == adopter)
        {
            let sent = escrow.on_the_way.remove(index);
            let mut results = results.into_iter();
            for (key, descriptor) in sent.connections {
                match results.next() {
                    Some(Taken::As(new)) => {
                        escrow.put_off.remove(&key);
                        escrow.put_off_by = None;
                        adopted.push((new, descriptor));
                        moved.released.push(key);
                    }
                    Some(Taken::NotNow) if escrow.may_be_put_off(key) => {
                        escrow.put_off_by = Some(adopter);
                        moved.wait_again += 1;
                        escrow.waiting.new.push_back((key, descriptor));
                    }
                    Some(Taken::Refused | Taken::NotNow) => {
                        moved.refused += 1;
                        moved.released.push(key);
                    }
                    None => {
                        moved.wait_again += 1;
                        escrow.waiting.new.push_back((key, descriptor));
                    }
                }
            }
            if escrow.cause.is_some() {
                moved.released.clear();
            }
        }
        if let Some(escrow) = self.workers.get_mut(&adopter) {
            escrow.served.extend(adopted);
        }
        self.tidy();
        moved
    }

    /// A worker has ended, and all its messages were read. What it served waits for another worker, and so does what was on its way to it: it
    /// had not confirmed that, so it has not touched it.
    pub(crate) fn ended(&mut self, worker: WorkerId, cause: String) {
        for escrow in self.workers.values_mut() {
            let (lost, on_the_way) =
                std::mem::take(&mut escrow.on_the_way).into_iter().partition(|sent| sent.to == worker);
            escrow.on_the_way = on_the_way;
            escrow.waiting.new.extend(Vec::into_iter(lost).flat_map(|sent: Sent<D>| sent.connections));
        }
        if let Some(escrow) = self.workers.get_mut(&worker) {
            escrow.cause = Some(cause);
            let mut served: Vec<(Key, D)> = escrow.served.drain().collect();
            // Records that lie together are read together.
            served.sort_unstable_by_key(|(key, _)| *key);
            escrow.waiting.new.extend(served);
        }
        self.tidy();
    }

    /// Arenas of dead workers go when no connection needs them, and what their pollers waited in when nobody waits.
    fn tidy(&mut self) {
        self.workers.retain(|_, escrow| {
            escrow.cause.is_none() || !escrow.waiting.is_empty() || !escrow.on_the_way.is_empty()
        });
    }
}

/// Handing over.
impl<D, A> Escrow<D, A> {
    /// Checks `most` connections that wait: those that somebody waits for are urgent. `are_urgent` is asked once about each. True while more are
    /// to be checked.
    pub(crate) fn look_at_some(
        &mut self,
        most: usize,
        are_urgent: impl Fn(&A, &[(Key, D)]) -> Vec<bool>,
    ) -> bool {
        let is_new = |escrow: &WorkerEscrow<D, A>| !escrow.waiting.new.is_empty();
        if let Some(escrow) = self.workers.values_mut().find(|escrow| is_new(escrow)) {
            let arena = &escrow.arena;
            escrow.waiting.look_at(most, |some| are_urgent(arena, some));
        }
        self.workers.values().any(is_new)
    }

    /// Who should go on with `which` of what waits, so that those with the fewest connections get them. `adopters` are the
    /// workers that take connections, each with the number that it has beside those on their way to it. None of them
    /// gets back what it has released itself unless it is the only one, nor what it just had no room for.
    pub(crate) fn plan(&self, adopters: &[(WorkerId, usize)], which: Which) -> Vec<HandOff> {
        let mut loads: Vec<(usize, WorkerId)> =
            adopters.iter().map(|(worker, has)| (has + self.on_the_way_to(*worker), *worker)).collect();
        let mut plan = Vec::new();
        for (from, escrow) in &self.workers {
            let mut counts: BTreeMap<WorkerId, usize> = BTreeMap::new();
            let mut urgent = escrow.waiting.urgent.len();
            let all = if which == Which::Urgent { urgent } else { escrow.waiting.len() };
            for _ in 0..all {
                let shunned = |worker: WorkerId| (worker == *from, Some(worker) == escrow.put_off_by);
                let least = loads.iter_mut().min_by_key(|(load, worker)| (shunned(*worker), *load, *worker));
                let Some((load, worker)) = least else {
                    break;
                };
                *load += 1;
                *counts.entry(*worker).or_default() += 1;
            }
            // By turns, as the first that wait are the most urgent; and these by themselves, so that they wait for no others.
            while !counts.is_empty() {
                counts.retain(|to, count| {
                    let most = if urgent == 0 { MOST_AT_ONCE } else { urgent.min(MOST_AT_ONCE) };
                    let batch = (*count).min(most);
                    urgent -= batch.min(urgent);
                    plan.push(HandOff { from: *from, to: *to, count: batch });
                    *count -= batch;
                    *count > 0
                });
            }
        }
        plan
    }

    /// What belongs to a request to adopt the first `count` connections that wait.
    pub(crate) fn parcel(&self, from: WorkerId, count: usize) -> Option<Parcel<'_, D, A>> {
        let escrow = self.workers.get(&from)?;
        let waiting = || escrow.waiting.iter().take(count);
        Some(Parcel {
            arena: &escrow.arena,
            cause: escrow.cause.clone(),
            connections: waiting().map(|(key, _)| *key).collect(),
            descriptors: waiting().map(|(_, descriptor)| descriptor).collect(),
        })
    }

    /// The request is on its way.
    pub(crate) fn sent(&mut self, hand_off: HandOff) {
        if let Some(escrow) = self.workers.get_mut(&hand_off.from) {
            let connections = escrow.waiting.take(hand_off.count);
            escrow.on_the_way.push(Sent { to: hand_off.to, connections });
        }
    }

    /// Gives up what waits, because no worker will ever take it. Returns the living workers that have released it.
    pub(crate) fn give_up_waiting(&mut self) -> Vec<(WorkerId, Vec<Key>)> {
        let mut released = Vec::new();
        for (worker, escrow) in &mut self.workers {
            let waiting = std::mem::take(&mut escrow.waiting);
            if escrow.cause.is_none() && !waiting.is_empty() {
                released.push((*worker, waiting.iter().map(|(key, _)| *key).collect()));
            }
        }
        self.tidy();
        released
    }

    /// The epoll set of a worker's poller, if the worker has sent it.
    pub(crate) fn epoll_of(&self, worker: WorkerId) -> Option<&D> {
        self.workers.get(&worker)?.epoll.as_ref()
    }

    /// Each living worker's arena and the connections it serves: all there is, unless something [`Self::is_moving`].
    pub(crate) fn served(&self) -> impl Iterator<Item = (WorkerId, &A, impl Iterator<Item = (Key, &D)>)> {
        let living = self.workers.iter().filter(|(_, escrow)| escrow.cause.is_none());
        living.map(|(worker, escrow)| {
            (*worker, &escrow.arena, escrow.served.iter().map(|(key, descriptor)| (*key, descriptor)))
        })
    }

    /// Descriptors that this takes: the connections', and for workers that have died their arenas and what their pollers waited in.
    pub(crate) fn descriptors(&self) -> usize {
        let dead = self.workers.values().filter(|escrow| escrow.cause.is_some());
        self.len() + dead.map(|escrow| 1 + usize::from(escrow.epoll.is_some())).sum::<usize>()
    }

    /// Those that wait for a worker or are on their way to one.
    pub(crate) fn moving(&self) -> usize {
        self.len() - self.workers.values().map(|escrow| escrow.served.len()).sum::<usize>()
    }

    /// All that are kept, whoever has them.
    pub(crate) fn len(&self) -> usize {
        let on_the_way = |escrow: &WorkerEscrow<D, A>| {
            escrow.on_the_way.iter().map(|sent| sent.connections.len()).sum::<usize>()
        };
        self.workers
            .values()
            .map(|escrow| escrow.served.len() + escrow.waiting.len() + on_the_way(escrow))
            .sum()
    }

    pub(crate) fn waiting(&self) -> usize {
        self.workers.values().map(|escrow| escrow.waiting.len()).sum()
    }

    /// Connections that this worker serves and that are kept.
    pub(crate) fn served_by(&self, worker: WorkerId) -> usize {
        self.workers.get(&worker).map_or(0, |escrow| escrow.served.len())
    }

    /// True of a worker that lives, and of one that has left connections which are not all others' yet.
    pub(crate) fn knows(&self, worker: WorkerId) -> bool {
        self.workers.contains_key(&worker)
    }

    /// True while something of this worker's is nobody's yet: a balance struck now would count it wrong.
    pub(crate) fn is_moving(&self) -> bool {
        self.workers.values().any(|escrow| !escrow.waiting.is_empty() || !escrow.on_the_way.is_empty())
    }

    /// Connections that this worker was asked to adopt, and has not confirmed.
    pub(crate) fn on_the_way_to(&self, worker: WorkerId) -> usize {
        let sent = self.workers.values().flat_map(|escrow| &escrow.on_the_way);
        sent.filter(|sent| sent.to == worker).map(|sent| sent.connections.len()).sum()
    }
}

#[cfg(test)]
mod tests;
