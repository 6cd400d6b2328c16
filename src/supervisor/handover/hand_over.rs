//! Connections that outlive their worker: what workers say about them, and handing over what waits.
//!
//! Whose a connection is stands in `escrow`; here the messages go out and come in. Nothing waits for an answer: what can't
//! be sent now is tried again a little later, and as soon as anything else happens.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::arena::{KeptArena, Key};
use crate::channel::{Taken, ToWorker};
use crate::config::Config;
use crate::supervisor::Supervisor;
use crate::supervisor::children::records::WorkerRecord;
use crate::supervisor::policy::balance::{self, WorkerLoad};
use crate::supervisor::policy::escrow::{Escrow, HandOff, Which};
use crate::supervisor::policy::shares::{self, Share};
use crate::supervisor::policy::state::WorkerId;
use crate::sys::limits;
use crate::worker;

/// The most connections that a worker may ask to have kept before it hears of more.
const WINDOW: usize = 1024;

/// Keys in one message: a tenth of what a channel takes.
const MOST_RELEASED: usize = 512;

/// Of so many connections it is looked who waits for something, before those are handed over.
const LOOK_AT_ONCE: usize = 512;

/// When it is tried again to hand over what the kernel would not take.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// For how long a worker that the kernel sends nothing to is left out.
const LEFT_OUT: Duration = Duration::from_secs(1);

/// How soon after a change the workers' shares are looked at: what changes together is balanced together.
const SETTLE: Duration = Duration::from_millis(250);

/// For how long a worker that said that calls wait is taken to have them.
const CROWDED_FOR: Duration = Duration::from_millis(500);

/// More waiting calls than that are as bad as that many.
const MOST_WAITING: usize = 1 << 20;

/// What the supervisor has of connections.
#[derive(Debug)]
pub(in crate::supervisor) struct Handover {
    pub(in crate::supervisor) escrow: Escrow<OwnedFd, OwnedFd>,
    /// So many may be kept.
    most: usize,
    /// So many may the workers hold.
    connections: usize,
    /// Something may have changed in how many each worker may hold.
    shares_may_change: bool,
    /// Something may have changed in how many each may yet ask to have kept.
    credit_may_change: bool,
    try_again_at: Option<Instant>,
    /// When the workers' shares are looked at: only after something has changed.
    balance_at: Option<Instant>,
    /// Calls that wait, and since when that is known.
    crowded: BTreeMap<WorkerId, (Instant, usize)>,
    /// Workers that could not be asked to adopt, and until when they are not asked again.
    refuse_until: BTreeMap<WorkerId, Instant>,
    has_complained: bool,
}

impl Handover {
    pub(in crate::supervisor) fn new(config: &Config) -> Self {
        let mut handover = Self {
            escrow: Escrow::default(),
            most: 0,
            connections: 0,
            shares_may_change: false,
            credit_may_change: false,
            try_again_at: None,
            balance_at: None,
            crowded: BTreeMap::new(),
            refuse_until: BTreeMap::new(),
            has_complained: false,
        };
        handover.resize(config);
        handover
    }

    /// The descriptor limit, or the configuration, is another one.
    pub(in crate::supervisor) fn resize(&mut self, config: &Config) {
        let descriptors = limits::descriptors();
        self.most = worker::kept(config, descriptors);
        self.connections = worker::connections(config, descriptors);
        self.shares_changed();
    }

    /// How many connections each worker may hold is computed anew in this round.
    pub(in crate::supervisor) fn shares_changed(&mut self) {
        (self.shares_may_change, self.credit_may_change) = (true, true);
    }

    /// Connections of each of `workers` that are kept beyond what it may hold: it has not told of their end yet.
    fn slack(&self, workers: usize) -> usize {
        self.most.saturating_sub(self.connections) / workers.max(1)
    }

    /// How many connections each of `workers` may ask to have kept in one go. With as many granted to all of them there is
    /// room for all that they may hold.
    fn window(&self, workers: usize) -> usize {
        self.slack(workers).clamp(1, WINDOW)
    }

    /// When there is something to do although nothing happens.
    pub(in crate::supervisor) fn moments(&self) -> impl Iterator<Item = Instant> {
        self.try_again_at.into_iter().chain(self.balance_at)
    }

    /// Once, or a service without room would say nothing else.
    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            tracing::warn!(
                kept = self.escrow.len(),
                "some connections can't be kept and would end with their worker (said once): {why}; raise the \
                 descriptor limit (ulimit -n, LimitNOFILE=) for more"
            );
        }
    }
}

impl Supervisor {
    pub(in crate::supervisor) fn keep(
        &mut self,
        worker: WorkerId,
        connections: Vec<Key>,
        mut descriptors: Vec<OwnedFd>,
    ) {
        if descriptors.len() < connections.len() {
            self.handover.complain("not all of their descriptors arrived");
        }
        let beyond = self.room_beyond_credit(worker);
        let sure = self.workers.get_mut(worker).map_or(0, |worker| worker.credit.uses(connections.len()));
        let room = sure.saturating_add(beyond);
        self.handover.credit_may_change = true;
        if descriptors.len() > room {
            descriptors.truncate(room);
            self.handover.complain("the supervisor may not have more descriptors open");
        }
        let not_kept = self.handover.escrow.keep(worker, connections, descriptors);
        let kept = self.with_place(worker);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.share.keeps(kept);
            if worker.share.may_hold() <= kept {
                // It may wait to hear that the service has no room.
                self.handover.shares_changed();
            }
        }
        self.balance_soon();
        if !not_kept.is_empty() {
            self.tell(worker, &ToWorker::NotKept { connections: not_kept });
        }
    }

    pub(in crate::supervisor) fn closed(&mut self, worker: WorkerId, connections: &[Key]) {
        self.handover.escrow.closed(worker, connections);
        self.handover.credit_may_change = true;
        self.gave_up(worker);
        self.balance_soon();
    }

    /// Some connections of a worker have ended or are others'. Shares are looked at with the balance: this happens often.
    fn gave_up(&mut self, worker: WorkerId) {
        let kept = self.with_place(worker);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.share.gave_up(kept);
        }
    }

    /// Connections that are kept of a worker, without those that it holds beyond its part until they have a place: nobody else is
    /// to accept fewer because of them.
    fn with_place(&self, worker: WorkerId) -> usize {
        let without_place = self.workers.get(worker).map_or(0, |worker| worker.without_place);
        self.handover.escrow.served_by(worker).saturating_sub(without_place)
    }

    pub(in crate::supervisor) fn offered(&mut self, worker: WorkerId, connections: Vec<Key>) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.share.offered(connections.len());
        }
        let not_kept = self.handover.escrow.offered(worker, connections);
        self.gave_up(worker);
        if !not_kept.is_empty() {
            // Nobody has another descriptor of them, and it offered them before it could know: it goes on with them.
            self.tell(worker, &ToWorker::NotKept { connections: not_kept });
        }
    }

    pub(in crate::supervisor) fn adopted(&mut self, adopter: WorkerId, from: WorkerId, results: Vec<Taken>) {
        let moved = self.handover.escrow.adopted(adopter, from, results);
        let kept = self.with_place(adopter);
        if let Some(worker) = self.workers.get_mut(adopter) {
            worker.share.adopted(kept);
        }
        self.handover.shares_changed();
        if moved.refused > 0 {
            // Their clients may have gone at that moment. Where that is not why, the adopter has said so.
            tracing::debug!(connections = moved.refused, "connections of a worker are not gone on with");
        }
        if moved.wait_again > 0 {
            self.handover.complain("a worker has no room for connections of another's");
            self.try_again_later();
        }
        if !moved.released.is_empty() {
            self.release(from, &moved.released);
        }
    }

    /// A worker has ended and its channel was read dry.
    pub(in crate::supervisor) fn bequeath(&mut self, worker: WorkerId, cause: String) {
        let connections = self.handover.escrow.served_by(worker);
        if connections > 0 {
            tracing::info!(connections, "the connections of a worker that has ended go to others");
        }
        self.handover.escrow.ended(worker, cause);
        self.handover.crowded.remove(&worker);
        self.handover.refuse_until.remove(&worker);
        self.handover.shares_changed();
    }

    /// Connections that no worker holds or may accept.
    pub(in crate::supervisor) fn unclaimed(&self) -> usize {
        let moving = self.handover.escrow.moving();
        let living = self.workers.iter().filter(|worker| !worker.has_ended);
        shares::unclaimed(self.handover.connections, moving, living.map(|worker| worker.share))
    }

    /// Workers that accept connections.
    fn serving(&self) -> impl Iterator<Item = &WorkerRecord> {
        self.workers.iter().filter(|worker| worker.hears() && !worker.share.has_ended())
    }

    /// Each worker's part of the connections.
    fn part(&self) -> usize {
        let serving = self.serving().filter(|worker| worker.generation == self.origin.number);
        let slots: BTreeSet<usize> = serving.map(|worker| worker.slot).collect();
        self.handover.connections.div_ceil(slots.len().max(1))
    }

    /// More connections may be held than are.
    fn has_room(&self) -> bool {
        let held: usize = self.workers.ids().into_iter().map(|id| self.with_place(id)).sum();
        shares::has_room(self.handover.connections, held + self.handover.escrow.moving())
    }

    /// Tells workers how many connections they may hold, and whether the service has room for more, where that has changed.
    pub(in crate::supervisor) fn share_out(&mut self) {
        if !std::mem::take(&mut self.handover.shares_may_change) {
            return;
        }
        let (part, now) = (self.part(), Instant::now());
        let mut told = BTreeSet::new();
        for id in self.workers.ids() {
            let kept = self.with_place(id);
            let ready = self.workers.get_mut(id).filter(|worker| worker.hears());
            if ready.is_some_and(|worker| worker.share.has_part(part, kept, now)) {
                told.insert(id);
            }
        }
        let unclaimed = self.unclaimed();
        let hear = self.workers.iter_mut().filter(|(_, worker)| worker.hears());
        let mut shares: Vec<_> = hear.map(|(id, worker)| (id, &mut worker.share)).collect();
        told.extend(shares::give_out(unclaimed, &mut shares).into_iter().map(|(id, _)| id));
        let has_room = self.has_room();
        let hear = self.workers.iter_mut().filter(|(_, worker)| worker.hears());
        told.extend(hear.filter_map(|(id, worker)| worker.share.hears_of_room(has_room).then_some(id)));
        for id in told {
            let Some(share) = self.workers.get(id).map(|worker| worker.share) else { continue };
            let (connections, service_has_room) = (share.may_hold(), share.service_has_room());
            self.tell(id, &ToWorker::MayHold { connections, service_has_room });
        }
        if let Some(at) = self.workers.iter().filter_map(|worker| worker.share.moment()).min() {
            self.handover.balance_at = Some(self.handover.balance_at.map_or(at, |balance| balance.min(at)));
        }
    }

    /// A worker has heard that it may hold fewer: the others are given what it does not hold.
    pub(in crate::supervisor) fn holds_fewer(&mut self, worker: WorkerId) {
        let kept = self.with_place(worker);
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.share.has_heard(kept);
        }
        self.handover.shares_changed();
    }

    /// What may be kept beyond what is, and beyond what workers were granted.
    fn unpromised(&self) -> usize {
        let promised: usize = self.workers.iter().map(|worker| worker.credit.open()).sum();
        self.handover.most.saturating_sub(self.handover.escrow.descriptors().saturating_add(promised))
    }

    /// What may be kept of this worker's beyond what is, and beyond what it was granted.
    fn room_beyond_credit(&self, id: WorkerId) -> usize {
        let Some(worker) = self.workers.get(id) else {
            return 0;
        };
        let has = self.handover.escrow.served_by(id).saturating_add(worker.credit.open());
        let slack = self.handover.slack(self.workers.ids().len());
        worker.share.may_keep(slack).saturating_sub(has).min(self.unpromised())
    }

    /// What a worker is granted at its birth.
    pub(in crate::supervisor) fn first_credit(&self, share: Share) -> usize {
        // Those that are about to be born are to have as much.
        let workers = (self.workers.ids().len() + 1).max(self.settings.config.processes);
        let may_keep = share.may_keep(self.handover.slack(workers));
        self.handover.window(workers).min(may_keep).min(self.unpromised())
    }

    /// Grants workers that have asked to have connections kept that they may ask again, as far as there is room.
    pub(in crate::supervisor) fn grant_credit(&mut self) {
        if !std::mem::take(&mut self.handover.credit_may_change) {
            return;
        }
        let window = self.handover.window(self.workers.ids().len());
        for id in self.workers.ids() {
            let room = self.room_beyond_credit(id);
            let low =
                self.workers.get_mut(id).filter(|worker| worker.hears() && worker.credit.is_low(window));
            let Some(worker) = low else {
                continue;
            };
            if let Some(more) = worker.credit.grant(window, room) {
                self.tell(id, &ToWorker::MayKeep { more });
            } else if worker.credit.open() == 0 && self.unpromised() == 0 {
                self.handover.complain("the supervisor may not have more descriptors open");
            }
        }
    }

    /// Hands over what waits, as far as there is somebody to take it.
    pub(in crate::supervisor) fn hand_over(&mut self) {
        if self.handover.escrow.waiting() == 0 {
            return;
        }
        if self.handover.try_again_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.handover.try_again_at = None;
        let adopters = self.state.adopters();
        if adopters.is_empty() {
            if self.state.is_ending() {
                self.give_up_waiting();
            }
            return;
        }
        let now = Instant::now();
        // Where calls wait is no place for more, as long as there are others.
        let weight = |has: WorkerLoad| (has.worker, has.connections + has.load);
        let can_take = |worker: &WorkerId| {
            let refuses = self.handover.refuse_until.get(worker).is_some_and(|until| now < *until);
            !refuses && self.workers.get(*worker).is_some_and(|worker| worker.channel_open)
        };
        let mut adopters: Vec<(WorkerId, usize)> =
            adopters.into_iter().filter(can_take).map(|worker| weight(self.has(worker))).collect();
        loop {
            // Who is found first is handed over first: an adopter answers them while the others are looked at.
            let are_more = self.handover.escrow.look_at_some(LOOK_AT_ONCE, are_urgent);
            let which = if are_more { Which::Urgent } else { Which::All };
            // One that can't take anything is left out and the rest planned anew: the next plan would else be the same again.
            while let Some((adopter, error)) = self.hand_over_to(&adopters, which) {
                self.try_again_later();
                match NotSent::by(&error) {
                    NotSent::Everybody => return,
                    NotSent::ThisOne => {}
                    NotSent::ForLong => self.leave_out(adopter, &error),
                }
                adopters.retain(|(worker, _)| *worker != adopter);
            }
            if !are_more {
                break;
            }
        }
        if self.handover.escrow.waiting() > 0 {
            self.try_again_later();
        }
    }

    /// Hands over what waits, up to the first worker that can't be asked.
    fn hand_over_to(
        &mut self,
        adopters: &[(WorkerId, usize)],
        which: Which,
    ) -> Option<(WorkerId, io::Error)> {
        for hand_off in self.handover.escrow.plan(adopters, which) {
            if let Err(error) = self.ask_to_adopt(hand_off) {
                return Some((hand_off.to, error));
            }
            self.handover.escrow.sent(hand_off);
            self.watch_adopter(hand_off.to);
        }
        None
    }

    /// Said once for each worker.
    fn leave_out(&mut self, adopter: WorkerId, error: &io::Error) {
        if self.handover.refuse_until.insert(adopter, Instant::now() + LEFT_OUT).is_none() {
            let slot = self.workers.get(adopter).map(|worker| worker.slot);
            tracing::warn!(slot, %error, "a worker can't be handed connections, which go to others while there are any");
        }
    }

    fn ask_to_adopt(&self, hand_off: HandOff) -> io::Result<()> {
        let gone = || io::Error::from(Errno::EPIPE);
        let adopter = self.workers.get(hand_off.to).ok_or_else(gone)?;
        let parcel = self.handover.escrow.parcel(hand_off.from, hand_off.count).ok_or_else(gone)?;
        let (from, cause, connections) = (hand_off.from, parcel.cause, parcel.connections);
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![parcel.arena.as_fd()];
        descriptors.extend(parcel.descriptors.into_iter().map(AsFd::as_fd));
        adopter.channel.send_now(&ToWorker::Adopt { from, cause, connections }, &descriptors)
    }

    /// One that had no connection was not watched, and may be stopped or deadlocked: nobody else would answer these.
    fn watch_adopter(&mut self, adopter: WorkerId) {
        if let Some(worker) = self.workers.get(adopter) {
            self.signs.watch(adopter, worker.stuck, Instant::now());
        }
    }

    fn try_again_later(&mut self) {
        self.handover.try_again_at = Some(Instant::now() + TRY_AGAIN);
    }

    fn give_up_waiting(&mut self) {
        for (worker, connections) in self.handover.escrow.give_up_waiting() {
            self.release(worker, &connections);
        }
    }

    /// In messages that a channel takes, however many there are.
    fn release(&mut self, worker: WorkerId, connections: &[Key]) {
        for some in connections.chunks(MOST_RELEASED) {
            self.tell(worker, &ToWorker::Released { connections: some.to_vec() });
        }
    }
}

/// On which of these somebody waits for the next worker: there is something to read, or a call waited or ran.
fn are_urgent(arena: &OwnedFd, waiting: &[(Key, OwnedFd)]) -> Vec<bool> {
    let mut sockets: Vec<PollFd<'_>> =
        waiting.iter().map(|(_, socket)| PollFd::new(socket.as_fd(), PollFlags::POLLIN)).collect();
    // Where the one or the other can't be looked at, the order is another one and nothing is lost.
    let _ = poll(&mut sockets, PollTimeout::ZERO);
    let records = KeptArena::open_records(arena).ok();
    let is_busy = |key: Key| records.as_ref().is_some_and(|records| records.is_busy(key));
    let is_readable = |socket: &PollFd<'_>| socket.any() == Some(true);
    waiting.iter().zip(&sockets).map(|((key, _), socket)| is_readable(socket) || is_busy(*key)).collect()
}

/// Balance.
impl Supervisor {
    pub(in crate::supervisor) fn crowded(&mut self, worker: WorkerId, waiting: usize) {
        // Its word is a stranger's: sums of it must stay numbers.
        self.handover.crowded.insert(worker, (Instant::now(), waiting.min(MOST_WAITING)));
        self.balance_soon();
    }

    /// Something has changed that may leave a worker with too much.
    pub(in crate::supervisor) fn balance_soon(&mut self) {
        let at = Instant::now() + SETTLE;
        self.handover.balance_at.get_or_insert(at);
    }

    pub(in crate::supervisor) fn balance(&mut self) {
        let now = Instant::now();
        if self.handover.balance_at.is_none_or(|at| now < at) {
            return;
        }
        self.handover.balance_at = None;
        self.handover.shares_changed();
        self.handover.crowded.retain(|_, (since, _)| now.saturating_duration_since(*since) < CROWDED_FOR);
        if self.state.is_ending() {
            return;
        }
        if self.handover.escrow.is_moving() {
            return self.balance_soon();
        }
        let workers: Vec<WorkerLoad> =
            self.state.adopters().into_iter().map(|worker| self.has(worker)).collect();
        let plan = balance::plan(&workers);
        for release in &plan {
            if let Some(worker) = self.workers.get_mut(release.worker) {
                worker.share.releases(release.count, now);
            }
        }
        self.share_out();
        for release in plan {
            tracing::debug!(
                worker = release.worker,
                connections = release.count,
                "a worker lets connections go to others"
            );
            self.tell(release.worker, &ToWorker::ReleaseSome { count: release.count, busy: release.busy });
            self.balance_soon();
        }
    }

    fn has(&self, worker: WorkerId) -> WorkerLoad {
        // Where no call waits anywhere it does not matter who runs how many.
        let load = if self.handover.crowded.is_empty() {
            0
        } else {
            let running = self.workers.get(worker).map_or(0, |worker| worker.arena.running());
            running + self.handover.crowded.get(&worker).map_or(0, |(_, waiting)| *waiting)
        };
        WorkerLoad { worker, connections: self.with_place(worker), load }
    }
}

/// Who is not asked further when a worker could not be asked to adopt.
#[derive(Debug, PartialEq, Eq)]
enum NotSent {
    /// Too many descriptors are under way: it passes as soon as anybody has read.
    Everybody,
    /// Its channel is full: it may have read some a moment later.
    ThisOne,
    /// Its channel is closed, or something is wrong that does not pass.
    ForLong,
}

impl NotSent {
    fn by(error: &io::Error) -> Self {
        match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ETOOMANYREFS | Errno::ENOBUFS | Errno::ENOMEM) => Self::Everybody,
            _ if error.kind() == io::ErrorKind::WouldBlock => Self::ThisOne,
            _ => Self::ForLong,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_left_out_when_one_cannot_be_asked() {
        let of = |errno: Errno| NotSent::by(&io::Error::from(errno));
        assert_eq!(of(Errno::ETOOMANYREFS), NotSent::Everybody);
        assert_eq!((of(Errno::EAGAIN), of(Errno::EPIPE)), (NotSent::ThisOne, NotSent::ForLong));
        assert_eq!(NotSent::by(&io::ErrorKind::WouldBlock.into()), NotSent::ThisOne, "messages are queued");
    }
}
