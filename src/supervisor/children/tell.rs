//! Messages to workers, and the end of a worker that can't hear them.

use std::io;

use nix::sys::epoll::Epoll;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use super::records::WorkerRecord;
use crate::channel::ToWorker;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::state::WorkerId;
use crate::supervisor::tokens::{watch, worker_token};
use crate::sys::process;

impl Supervisor {
    pub(in crate::supervisor) fn tell_to_end(&mut self, id: WorkerId, how: &ToWorker) {
        let kept = self.handover.escrow.served_by(id);
        if let Some(worker) = self.workers.get_mut(id) {
            worker.end_expected = true;
            worker.share.ends(kept);
        }
        self.handover.shares_changed();
        self.tell(id, how);
    }

    /// Sends a worker a message that it must not miss: one that does not hear is of no use.
    pub(in crate::supervisor) fn tell(&mut self, id: WorkerId, message: &ToWorker) {
        let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.channel_open) else {
            return;
        };
        if let Err(error) = worker.channel.send(message, Vec::new()) {
            tracing::debug!(slot = worker.slot, ?message, "not delivered");
            // A reset is a closed end too: something that was sent before was never read.
            let is_closed =
                matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);
            if let (true, Some(pid)) = (is_closed, worker.pid) {
                // Nobody holds the other end: it ends, or can't hear.
                return self.end_deaf(id, pid);
            }
            tracing::warn!(slot = worker.slot, %error, "a worker does not hear the supervisor any more and is killed");
            worker.kill();
        } else if worker.channel.has_queued() {
            watch(&self.epoll, &worker.channel, worker_token(id));
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
}

/// As [`watch`], for a worker.
pub(in crate::supervisor) fn watch_worker(epoll: &Epoll, worker: &WorkerRecord, id: WorkerId) {
    watch(epoll, &worker.channel, worker_token(id));
}
