//! Connections that outlive their worker: what workers say about the keeping, and handing over what waits.
//!
//! Whose a connection is stands in `keeping`; here the messages go out and come in. Nothing waits for an answer: what can't
//! be sent now is tried again a little later, and as soon as anything else happens.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use super::Supervisor;
use super::balance::{self, Has};
use super::keeping::{Handing, Keeping};
use super::state::WorkerId;
use crate::arena::Key;
use crate::line::{Taken, ToWorker};
use crate::sys::limits;

/// When it is tried again to hand over what the kernel would not take.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// How soon after a change the workers' shares are looked at: what changes together is balanced together.
const SETTLE: Duration = Duration::from_millis(250);

/// For how long a worker that said that calls wait is taken to have them.
const CROWDED_FOR: Duration = Duration::from_millis(500);

/// Descriptors that the keeping leaves to everything else: for each worker its line, its arena and what its fork
/// takes.
const EACH_WORKER: u64 = 8;
const OTHERS: u64 = 64;

/// What the supervisor has of connections.
#[derive(Debug)]
pub(super) struct Keeper {
    pub(super) keeping: Keeping<OwnedFd, OwnedFd>,
    most: usize,
    try_again_at: Option<Instant>,
    /// When the workers' shares are looked at: only after something has changed.
    balance_at: Option<Instant>,
    /// Calls that wait, and since when that is known.
    crowded: BTreeMap<WorkerId, (Instant, usize)>,
    has_complained: bool,
}

impl Keeper {
    pub(super) fn new(processes: usize) -> Self {
        Self {
            keeping: Keeping::default(),
            most: most_kept(limits::descriptors(), processes),
            try_again_at: None,
            balance_at: None,
            crowded: BTreeMap::new(),
            has_complained: false,
        }
    }

    /// When there is something to do although nothing happens.
    pub(super) fn moments(&self) -> impl Iterator<Item = Instant> {
        self.try_again_at.into_iter().chain(self.balance_at)
    }

    /// Once, or a service without room would say nothing else.
    fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            tracing::warn!(
                kept = self.keeping.len(),
                "some connections can't be kept and would end with their worker (said once): {why}; raise the \
                 descriptor limit (ulimit -n, LimitNOFILE=) for more"
            );
        }
    }
}

/// Connections that may be kept where a process may have `descriptors` open.
fn most_kept(descriptors: u64, processes: usize) -> usize {
    let workers = u64::try_from(processes).unwrap_or(u64::MAX);
    let others = workers.saturating_mul(EACH_WORKER).saturating_add(OTHERS);
    // A low limit is shared: a keeping of some is better than none.
    usize::try_from(descriptors - others.min(descriptors / 2)).unwrap_or(usize::MAX)
}

impl Supervisor {
    pub(super) fn keep(&mut self, worker: WorkerId, connections: Vec<Key>, mut descriptors: Vec<OwnedFd>) {
        if descriptors.len() < connections.len() {
            self.keeper.complain("not all of their descriptors arrived");
        }
        let room = self.keeper.most.saturating_sub(self.keeper.keeping.len());
        if descriptors.len() > room {
            descriptors.truncate(room);
            self.keeper.complain("the supervisor may not have more descriptors open");
        }
        let not_kept = self.keeper.keeping.keep(worker, connections, descriptors);
        self.balance_soon();
        if !not_kept.is_empty() {
            self.tell(worker, &ToWorker::NotKept { connections: not_kept });
        }
    }

    pub(super) fn closed(&mut self, worker: WorkerId, connections: &[Key]) {
        self.keeper.keeping.closed(worker, connections);
        self.balance_soon();
    }

    pub(super) fn offered(&mut self, worker: WorkerId, connections: Vec<Key>) {
        let not_kept = self.keeper.keeping.offered(worker, connections);
        if !not_kept.is_empty() {
            // Nobody has another descriptor of them, and it offered them before it could know: it goes on with them.
            self.tell(worker, &ToWorker::NotKept { connections: not_kept });
        }
    }

    pub(super) fn adopted(&mut self, adopter: WorkerId, from: WorkerId, results: Vec<Taken>) {
        let moved = self.keeper.keeping.adopted(adopter, from, results);
        if moved.refused > 0 {
            tracing::warn!(
                connections = moved.refused,
                "connections of a worker are closed: nothing could be made of what it left of them"
            );
        }
        if moved.wait_again > 0 {
            self.keeper.complain("a worker has no room for connections of another's");
            self.try_again_later();
        }
        if !moved.released.is_empty() {
            self.tell(from, &ToWorker::Released { connections: moved.released });
        }
    }

    /// A worker has ended and its line was read dry.
    pub(super) fn bequeath(&mut self, worker: WorkerId, cause: String) {
        let connections = self.keeper.keeping.served_by(worker);
        if connections > 0 {
            tracing::info!(connections, "the connections of a worker that has ended go to others");
        }
        self.keeper.keeping.ended(worker, cause);
        self.keeper.crowded.remove(&worker);
    }

    /// Hands over what waits, as far as there is somebody to take it.
    pub(super) fn hand_over(&mut self) {
        if self.keeper.keeping.waiting() == 0 {
            return;
        }
        if self.keeper.try_again_at.is_some_and(|at| Instant::now() < at) {
            return;
        }
        self.keeper.try_again_at = None;
        let adopters = self.state.adopters();
        if adopters.is_empty() {
            if self.state.is_ending() {
                self.give_up_waiting();
            }
            return;
        }
        // Where calls wait is no place for more, as long as there are others.
        let weight = |has: Has| (has.worker, has.connections + has.load);
        let adopters: Vec<(WorkerId, usize)> =
            adopters.into_iter().map(|worker| weight(self.has(worker))).collect();
        for handing in self.keeper.keeping.plan(&adopters) {
            match self.ask_to_adopt(handing) {
                Ok(()) => self.keeper.keeping.sent(handing),
                Err(error) => {
                    if !is_for_a_moment(&error) {
                        tracing::warn!(%error, "a worker can't be handed connections; tried again");
                    }
                    self.try_again_later();
                }
            }
        }
    }

    fn ask_to_adopt(&self, handing: Handing) -> io::Result<()> {
        let gone = || io::Error::from(Errno::EPIPE);
        let adopter = self.workers.get(handing.to).ok_or_else(gone)?;
        let parcel = self.keeper.keeping.parcel(handing.from, handing.count).ok_or_else(gone)?;
        let (from, cause, connections) = (handing.from, parcel.cause, parcel.connections);
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![parcel.arena.as_fd()];
        descriptors.extend(parcel.descriptors.into_iter().map(AsFd::as_fd));
        adopter.line.send_now(&ToWorker::Adopt { from, cause, connections }, &descriptors)
    }

    fn try_again_later(&mut self) {
        self.keeper.try_again_at = Some(Instant::now() + TRY_AGAIN);
    }

    fn give_up_waiting(&mut self) {
        for (worker, connections) in self.keeper.keeping.give_up_waiting() {
            self.tell(worker, &ToWorker::Released { connections });
        }
    }
}

/// Balance.
impl Supervisor {
    pub(super) fn crowded(&mut self, worker: WorkerId, waiting: usize) {
        self.keeper.crowded.insert(worker, (Instant::now(), waiting));
        self.balance_soon();
    }

    /// Something has changed that may leave a worker with too much.
    pub(super) fn balance_soon(&mut self) {
        let at = Instant::now() + SETTLE;
        self.keeper.balance_at.get_or_insert(at);
    }

    pub(super) fn balance(&mut self) {
        let now = Instant::now();
        if self.keeper.balance_at.is_none_or(|at| now < at) {
            return;
        }
        self.keeper.balance_at = None;
        self.keeper.crowded.retain(|_, (since, _)| now.saturating_duration_since(*since) < CROWDED_FOR);
        if self.state.is_ending() {
            return;
        }
        if self.keeper.keeping.is_moving() {
            return self.balance_soon();
        }
        let workers: Vec<Has> = self.state.adopters().into_iter().map(|worker| self.has(worker)).collect();
        for let_go in balance::plan(&workers) {
            tracing::debug!(
                worker = let_go.worker,
                connections = let_go.count,
                "a worker lets connections go to others"
            );
            self.tell(let_go.worker, &ToWorker::LetGo { count: let_go.count, busy: let_go.busy });
            self.balance_soon();
        }
    }

    fn has(&self, worker: WorkerId) -> Has {
        // Where no call waits anywhere it does not matter who runs how many.
        let load = if self.keeper.crowded.is_empty() {
            0
        } else {
            let running = self.workers.get(worker).map_or(0, |worker| worker.arena.running());
            running + self.keeper.crowded.get(&worker).map_or(0, |(_, waiting)| *waiting)
        };
        Has { worker, connections: self.keeper.keeping.served_by(worker), load }
    }
}

/// The line is full, or too many descriptors are under way: it passes as soon as others have read.
fn is_for_a_moment(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    error.kind() == io::ErrorKind::WouldBlock || matches!(errno, Some(Errno::ETOOMANYREFS | Errno::ENOBUFS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keeping_leaves_descriptors_to_everything_else() {
        for (descriptors, processes, kept) in [
            (1_048_576, 4, 1_048_480),
            (1024, 4, 928),
            (128, 4, 64),
            (100, 1024, 50),
            (0, 1, 0),
            (u64::MAX, usize::MAX, u64::MAX - u64::MAX / 2),
        ] {
            assert_eq!(
                most_kept(descriptors, processes) as u64,
                kept,
                "{descriptors} descriptors, {processes} processes"
            );
        }
    }
}
