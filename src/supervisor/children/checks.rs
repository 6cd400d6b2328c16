//! The loop's part in `signs_of_life`: the questions, and the end of a worker that does not answer.

use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::channel::ToWorker;
use crate::config::span;
use crate::supervisor::Supervisor;
use crate::supervisor::children::records::WorkerRecord;
use crate::supervisor::children::worker_channels::watch_worker;
use crate::supervisor::policy::signs_of_life::{Activity, LifeVerdict};
use crate::supervisor::policy::state::WorkerId;
use crate::sys::process;

impl Supervisor {
    /// Asks those that are to be asked, where it is time for that.
    pub(in crate::supervisor) fn check_for_life(&mut self) {
        if self.signs.next_check().is_none_or(|next| next > Instant::now()) {
            return;
        }
        // An answer may wait to be read by a supervisor that was kept from it.
        for worker in self.signs.asked() {
            self.read_worker(worker);
        }
        self.decide();
        let (workers, escrow) = (&self.workers, &self.handover.escrow);
        let verdicts = self.signs.check(Instant::now(), |id| match workers.get(id) {
            Some(worker) if worker.arena.is_busy() || escrow.on_the_way_to(id) > 0 => Activity::Busy,
            Some(_) => Activity::Idle,
            None => Activity::Gone,
        });
        for verdict in verdicts {
            match verdict {
                LifeVerdict::Ask(id) => self.ask_for_life(id),
                LifeVerdict::Kill(id) => self.end_silent(id),
            }
        }
    }

    fn ask_for_life(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            // Where that fails it is gone, which its end will say.
            let _ = worker.channel.send(&ToWorker::AreYouThere, Vec::new());
            watch_worker(&self.epoll, worker, id);
        }
    }

    /// Its channel has been closed at its end. One that ends does that, and is left alone: the kernel takes its memory before its
    /// descriptors. In one that has memory a handler has closed a descriptor that was not its own, and it will hear and say
    /// nothing any more. It is killed at once, and accused only when it has been reaped: one that ended by itself meanwhile
    /// has another status.
    pub(in crate::supervisor) fn end_deaf(&mut self, id: WorkerId, pid: Pid) {
        // The pid of one that has ended may be anybody's; one that has said why it can't start ends.
        let lives = |worker: &&mut WorkerRecord| !worker.has_ended && worker.boot_failure.is_none();
        let Some(worker) = self.workers.get_mut(id).filter(lives) else { return };
        if worker.is_deaf || !process::is_alive(pid).unwrap_or(false) {
            return;
        }
        worker.is_deaf = true;
        let slot = worker.slot;
        if let Err(error) = process::kill(pid, Signal::SIGKILL) {
            tracing::warn!(slot, %pid, %error, "a worker can't be killed");
        }
    }

    /// The log reports its end like any other death, with the calls that it ran.
    fn end_silent(&mut self, id: WorkerId) {
        let Some((worker, pid)) = self.workers.get(id).and_then(|worker| Some((worker, worker.pid?))) else {
            return;
        };
        let (slot, stuck) = (worker.slot, worker.stuck);
        tracing::error!(
            slot,
            pid = pid.as_raw(),
            "a worker has connections or calls and gave no sign of life for timeouts.stuck ({}): it is stopped or \
             deadlocked, and is killed",
            span::show(stuck)
        );
        if let Err(error) = process::kill(pid, Signal::SIGKILL) {
            tracing::warn!(slot, %pid, %error, "a worker can't be killed");
        }
    }
}
