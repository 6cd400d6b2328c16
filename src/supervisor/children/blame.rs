//! From a worker's death to methods in quarantine: this file tells the quarantine policy what happened, and carries its orders out.

use std::time::{Duration, Instant};

use crate::arena::Snapshot;
use crate::channel::{Quarantined, ToWorker};
use crate::config::{Config, span};
use crate::rpc;
use crate::supervisor::children::records::WorkerRecord;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::Policy;
use crate::supervisor::policy::quarantine::{
    Blame, QuarantineLimits, QuarantineOrder, QuarantinePolicy, Released, Suspect,
};
use crate::supervisor::policy::state::WorkerId;
use crate::supervisor::reload::generation::GenerationSettings;
use crate::sys::process::Ended;

pub(in crate::supervisor) fn limits(config: &Config) -> QuarantineLimits {
    let quarantine = &config.quarantine;
    QuarantineLimits {
        crashes: quarantine.crashes,
        window: quarantine.window,
        cool_down: quarantine.cool_down,
    }
}

/// What a worker that is forked now must refuse.
pub(in crate::supervisor) fn in_force(quarantine: &QuarantinePolicy) -> Vec<Quarantined> {
    let in_force = quarantine.in_force(Instant::now());
    in_force.into_iter().map(|(method, wait)| Quarantined { method, for_ms: whole_ms(wait) }).collect()
}

/// Rounded up: no worker asks before the time has come.
fn whole_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Supervisor {
    /// A worker has ended, and its totals are with those of the ended ones.
    pub(in crate::supervisor) fn blame_for(
        &mut self,
        id: WorkerId,
        worker: &WorkerRecord,
        ended: Ended,
        last: &Snapshot,
    ) {
        let blame = match (worker.culprit(last), ended) {
            // What it ran may be another program than the one that serves by now.
            _ if worker.generation != self.origin.number => Blame::Nobody,
            (Some(method), _) => Blame::On(method.to_owned()),
            // One that dies while it boots runs no calls, and says nothing about those that do.
            (None, _) if worker.end_expected || !worker.is_ready => Blame::Nobody,
            (None, Ended::Signalled { .. }) => Blame::Killed,
            (None, Ended::Exited(_)) => Blame::Unclear,
        };
        let suspects = self.suspects(&blame, worker, last);
        let now = Instant::now();
        let orders = self.quarantine.ended(id, &blame, suspects, worker.started, now);
        self.carry_out(orders);
        self.quarantine_due(now);
    }

    /// What it ran. The built-in methods can't be at fault, so they are none unless one is the culprit.
    fn suspects(&mut self, blame: &Blame, worker: &WorkerRecord, last: &Snapshot) -> Vec<Suspect> {
        let mut ran: Vec<usize> = last.running.iter().map(|call| call.method).collect();
        ran.sort_unstable();
        ran.dedup();
        let names = &worker.methods.names;
        ran.retain(|method| names.get(*method).is_some_and(|name| !rpc::is_builtin(name)));
        // Everybody's arena is read, so only where it matters.
        let answered = if matches!(blame, Blame::Killed | Blame::Unclear) && !ran.is_empty() {
            self.workers.observe(&mut self.scoreboard);
            self.scoreboard.sum().methods
        } else {
            Vec::new()
        };
        let suspect = |method: usize| {
            let of = worker.methods.numbers.get(method).and_then(|number| answered.get(*number));
            let answered = of.map_or(0, |of| of.ok.saturating_add(of.errors));
            Some(Suspect { method: names.get(method)?.clone(), answered })
        };
        ran.into_iter().filter_map(suspect).collect()
    }

    /// A worker is ready: what began or ended while it booted is new to it.
    pub(in crate::supervisor) fn catch_up(&mut self, id: WorkerId) {
        let in_force = in_force(&self.quarantine);
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.is_ready = true;
        let mut messages: Vec<ToWorker> = std::mem::take(&mut worker.born_refusing)
            .into_iter()
            .filter(|born| !in_force.iter().any(|now| now.method == *born))
            .map(|method| ToWorker::Release { method })
            .collect();
        let shut = |Quarantined { method, for_ms }| ToWorker::Quarantine { method, for_ms };
        messages.extend(in_force.into_iter().map(shut));
        for message in messages {
            self.tell_if_ready(id, &message);
        }
    }

    pub(in crate::supervisor) fn trial_wanted(&mut self, id: WorkerId, method: &str) {
        if !self.serves(id) {
            return;
        }
        let orders = self.quarantine.asked(id, method);
        self.carry_out(orders);
        self.quarantine_due(Instant::now());
    }

    pub(in crate::supervisor) fn trial_ended(&mut self, id: WorkerId, method: &str, ok: bool) {
        let orders = self.quarantine.trial_ended(id, method, ok);
        self.carry_out(orders);
        self.quarantine_due(Instant::now());
    }

    /// Another generation serves. What is known of a method holds for one program and the method's settings in it.
    pub(in crate::supervisor) fn change_quarantine(
        &mut self,
        is_new_program: bool,
        before: &GenerationSettings,
    ) {
        let mut orders = self.quarantine.change(limits(&self.settings.config));
        let settings = &self.settings;
        orders.extend(self.quarantine.forgive(|method| match (is_new_program, before.table_of(method)) {
            (true, _) => Some(Released::NewProgram),
            (false, table) => (table != settings.table_of(method)).then_some(Released::NewTable),
        }));
        self.carry_out(orders);
    }

    pub(in crate::supervisor) fn quarantine_due(&mut self, now: Instant) {
        let orders = self.quarantine.due(now, ());
        self.carry_out(orders);
    }

    pub(in crate::supervisor) fn carry_out(&mut self, orders: Vec<QuarantineOrder>) {
        for order in orders {
            match order {
                QuarantineOrder::Shut { method, wait } => {
                    tracing::warn!(
                        method,
                        "method in quarantine for {}: it has crashed too many workers",
                        span::show(wait)
                    );
                    self.tell_all(&ToWorker::Quarantine { method, for_ms: whole_ms(wait) });
                }
                QuarantineOrder::Try { method, worker } => {
                    let slot = self.workers.get_mut(worker).map(|worker| worker.slot);
                    tracing::info!(method, slot, "one call of a method in quarantine may be tried");
                    self.tell_if_ready(worker, &ToWorker::Trial { method });
                }
                QuarantineOrder::TakeBack { method, worker } => {
                    self.tell_if_ready(worker, &ToWorker::Quarantine { method, for_ms: 0 });
                }
                QuarantineOrder::Release { method, why } => {
                    tracing::info!(method, "method released from quarantine: {why}");
                    let message = ToWorker::Release { method };
                    match why {
                        Released::CameBack | Released::TurnedOff => self.tell_all(&message),
                        // The others may still run what crashes.
                        Released::NewProgram | Released::NewTable => {
                            for id in self.workers.ids() {
                                if self.serves(id) {
                                    self.tell_if_ready(id, &message);
                                }
                            }
                        }
                    }
                }
                QuarantineOrder::Remind { method, worker } => {
                    self.tell_if_ready(worker, &ToWorker::Release { method });
                }
            }
        }
    }

    fn tell_all(&mut self, message: &ToWorker) {
        for id in self.workers.ids() {
            self.tell_if_ready(id, message);
        }
    }

    fn serves(&self, id: WorkerId) -> bool {
        self.workers.get(id).is_some_and(|worker| worker.generation == self.origin.number)
    }

    /// One that boots must not be sent anything, and catches up.
    fn tell_if_ready(&mut self, id: WorkerId, message: &ToWorker) {
        if self.workers.get_mut(id).is_some_and(|worker| worker.hears()) {
            self.tell(id, message);
        }
    }
}
