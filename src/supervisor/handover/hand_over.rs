//! Hand-over: messages about connections in escrow, and giving connections that wait to workers.
//!
//! The escrow policy decides whose a connection is; this file sends and receives the messages. It waits for no answer: what can't be sent now is
//! tried again 20 ms later, and as soon as anything else happens.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::arena::{KeptArena, Key};
use crate::channel::{Taken, ToWorker};
use crate::supervisor::children::records::WorkerRecord;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::Policy;
use crate::supervisor::policy::balance::{Release, Spread, WorkerLoad};
use crate::supervisor::policy::escrow::{HandOff, Which};
use crate::supervisor::policy::shares::{self, Share};
use crate::supervisor::policy::state::WorkerId;

/// Keys in one message: a tenth of what a channel takes.
const MOST_RELEASED: usize = 512;

/// So many connections are checked for urgency before the urgent ones are handed over.
const LOOK_AT_ONCE: usize = 512;

/// For how long a worker that the kernel sends nothing to is left out.
const LEFT_OUT: Duration = Duration::from_secs(1);

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
        self.handover.balance.ended(worker);
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
            self.handover.balance.at_the_latest(at);
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
        if !self.handover.retry.due(Instant::now(), ()) {
            return;
        }
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
            // One that can't take anything is left out and the rest planned anew: the next plan would otherwise repeat.
            while let Some((adopter, error)) = self.hand_over_to(&adopters, which) {
                self.try_again_later();
                match AskFailure::by(&error) {
                    AskFailure::Everybody => return,
                    AskFailure::ThisOne => {}
                    AskFailure::ForLong => self.leave_out(adopter, &error),
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
        self.handover.retry.later(Instant::now());
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
    // If the sockets or the records can't be read, only the order is another one.
    let _ = poll(&mut sockets, PollTimeout::ZERO);
    let records = KeptArena::open_records(arena).ok();
    let is_busy = |key: Key| records.as_ref().is_some_and(|records| records.is_busy(key));
    let is_readable = |socket: &PollFd<'_>| socket.any() == Some(true);
    waiting.iter().zip(&sockets).map(|((key, _), socket)| is_readable(socket) || is_busy(*key)).collect()
}

/// Balance.
impl Supervisor {
    /// Something has changed that may leave a worker with too much.
    pub(in crate::supervisor) fn balance_soon(&mut self) {
        self.handover.balance.soon(Instant::now());
    }

    pub(in crate::supervisor) fn balance(&mut self) {
        let now = Instant::now();
        self.handover.shares_changed();
        // Nobody is to have fewer when the service ends.
        let workers = if self.state.is_ending() { Vec::new() } else { self.state.adopters() };
        let loads: Vec<WorkerLoad> = workers.into_iter().map(|worker| self.has(worker)).collect();
        let spread = Spread { is_moving: self.handover.escrow.is_moving(), loads: &loads };
        let plan = self.handover.balance.due(now, spread);
        for release in &plan {
            if let Some(worker) = self.workers.get_mut(release.worker) {
                worker.share.releases(release.count, now);
            }
        }
        self.share_out();
        for Release { worker, count, busy } in plan {
            tracing::debug!(worker, connections = count, "a worker releases connections to others");
            self.tell(worker, &ToWorker::ReleaseSome { count, busy });
        }
    }

    fn has(&self, worker: WorkerId) -> WorkerLoad {
        let running = || self.workers.get(worker).map_or(0, |worker| worker.arena.running());
        let load = self.handover.balance.load(worker, running);
        WorkerLoad { worker, connections: self.with_place(worker), load }
    }
}

/// Who is not asked further when a worker could not be asked to adopt.
#[derive(Debug, PartialEq, Eq)]
enum AskFailure {
    /// Too many descriptors are under way: it passes as soon as anybody has read.
    Everybody,
    /// Its channel is full: it may have read some a moment later.
    ThisOne,
    /// Its channel is closed, or something is wrong that does not pass.
    ForLong,
}

impl AskFailure {
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
        let of = |errno: Errno| AskFailure::by(&io::Error::from(errno));
        assert_eq!(of(Errno::ETOOMANYREFS), AskFailure::Everybody);
        assert_eq!((of(Errno::EAGAIN), of(Errno::EPIPE)), (AskFailure::ThisOne, AskFailure::ForLong));
        assert_eq!(
            AskFailure::by(&io::ErrorKind::WouldBlock.into()),
            AskFailure::ThisOne,
            "messages are queued"
        );
    }
}
