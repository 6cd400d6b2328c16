//! Signs of life: the supervisor asks workers whether they live, and kills those that do not answer. The policy decides which.

use std::time::Instant;

use nix::sys::signal::Signal;

use crate::channel::ToWorker;
use crate::config::span;
use crate::supervisor::children::tell::watch_worker;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::Policy;
use crate::supervisor::policy::signs_of_life::{Activity, LifeVerdict};
use crate::supervisor::policy::state::WorkerId;
use crate::sys::process;

impl Supervisor {
    /// Asks the workers that the policy wants to ask, and kills those that have not answered.
    pub(in crate::supervisor) fn judge_signs_of_life(&mut self) {
        let (workers, escrow) = (&self.workers, &self.handover.escrow);
        let verdicts = self.signs.due(Instant::now(), &|id| match workers.get(id) {
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
