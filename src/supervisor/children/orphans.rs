//! Ends what handlers have left behind when their worker has ended. The leftovers policy decides what and when.

use std::collections::BTreeSet;
use std::time::Instant;

use nix::sys::signal::Signal;
use nix::unistd::{Pid, getsid};

use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::Policy;
use crate::supervisor::policy::leftovers::{EndOrder, Living};
use crate::supervisor::policy::state::WorkerId;
use crate::sys::family::{self, Child};
use crate::sys::process;

impl Supervisor {
    /// Looks at what is left, and ends what is to be ended. Only children of this process that have not been reaped are
    /// signalled, so no number can mean another process; what is below them comes to this process when they have ended.
    pub(in crate::supervisor) fn end_leftovers(&mut self) {
        if self.settings.config.run.groups_outlive {
            // A reload may have turned it on while some were about to be killed.
            self.leftovers.leave_alone();
            return;
        }
        let Some(orphans) = self.orphans() else { return };
        let living = self.living();
        for (orphan, order) in self.leftovers.due(Instant::now(), (&orphans, &living)) {
            let signal = match order {
                EndOrder::End => Signal::SIGTERM,
                EndOrder::Kill => Signal::SIGKILL,
            };
            tracing::debug!(pid = orphan.pid, %signal, "a process that a handler has left behind is ended");
            if let Err(error) = process::kill(Pid::from_raw(orphan.pid), signal) {
                tracing::warn!(pid = orphan.pid, %error, "a process that a handler has left behind can't be ended");
            }
        }
    }

    /// The service ends at once: nothing gets time to end by itself.
    pub(in crate::supervisor) fn hurry_leftovers(&mut self) {
        self.leftovers.hurry();
        self.end_leftovers();
    }

    /// Orphans that were not there before are none of a handler's.
    pub(in crate::supervisor) fn spare_orphans(&mut self) {
        if let Some(orphans) = self.orphans() {
            let living = self.living();
            let is_daemon = |orphan: &Child| {
                !living.others.contains(&orphan.session)
                    && !living.workers.values().any(|session| *session == Some(orphan.session))
            };
            let daemons: Vec<Child> = orphans.into_iter().filter(is_daemon).collect();
            self.leftovers.spare_new(&daemons);
        }
    }

    /// The children of this process that are neither workers nor templates.
    fn orphans(&self) -> Option<Vec<Child>> {
        let workers = self.workers.iter().filter_map(|worker| worker.pid);
        let templates = self.templates.values().map(|template| template.pid);
        let known: BTreeSet<i32> = workers.chain(templates).map(Pid::as_raw).collect();
        match family::children(|pid| known.contains(&pid)) {
            Ok(children) => Some(children),
            Err(error) => {
                tracing::debug!(%error, "children can't be listed");
                None
            }
        }
    }

    fn living(&self) -> Living<WorkerId> {
        let session = |id: &WorkerId| self.workers.get(*id).and_then(|worker| worker.session);
        let workers = self.workers.ids().into_iter().map(|id| (id, session(&id))).collect();
        let own = getsid(None).ok().map(Pid::as_raw);
        // Each template leads its session.
        let templates = self.templates.values().map(|template| template.pid.as_raw());
        Living { workers, others: own.into_iter().chain(templates).collect() }
    }
}
