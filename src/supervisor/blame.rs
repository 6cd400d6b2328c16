//! From a worker's death to methods in quarantine: the loop's part around `quarantine`, which decides.

use std::time::{Duration, Instant};

use super::children::Worker;
use super::quarantine::{Blame, Limits, Order, Quarantine, Suspect};
use super::state::WorkerId;
use super::worker_lines::token;
use super::{Supervisor, watch};
use crate::arena::Snapshot;
use crate::config::Config;
use crate::line::{Quarantined, ToWorker};
use crate::rpc;

pub(super) fn limits(config: &Config) -> Limits {
    let quarantine = &config.quarantine;
    Limits { crashes: quarantine.crashes, window: quarantine.window, cool_down: quarantine.cool_down }
}

/// What a worker that is forked now must refuse.
pub(super) fn in_force(quarantine: &Quarantine) -> Vec<Quarantined> {
    let in_force = quarantine.in_force(Instant::now());
    in_force.into_iter().map(|(method, wait)| Quarantined { method, for_ms: whole_ms(wait) }).collect()
}

/// Rounded up: no worker asks before the time has come.
fn whole_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

impl Supervisor {
    /// A worker has ended, and its totals are with those of the ended ones.
    pub(super) fn blame_for(&mut self, id: WorkerId, worker: &Worker, last: &Snapshot) {
        let blame = match worker.culprit(last, &self.methods) {
            Some(method) => Blame::On(method.to_owned()),
            // One that dies while it boots runs no calls, and says nothing about those that do.
            None if worker.end_expected || !worker.is_ready => Blame::Nobody,
            None => Blame::Unclear,
        };
        let suspects = self.suspects(&blame, last);
        let now = Instant::now();
        let orders = self.quarantine.ended(id, &blame, suspects, now);
        self.carry_out(orders);
        self.quarantine_due(now);
    }

    /// What it ran. The built-in methods can't be at fault, so they are none unless one is the culprit.
    fn suspects(&mut self, blame: &Blame, last: &Snapshot) -> Vec<Suspect> {
        let mut ran: Vec<usize> = last.running.iter().map(|call| call.method).collect();
        ran.sort_unstable();
        ran.dedup();
        ran.retain(|method| self.methods.get(*method).is_some_and(|name| !rpc::is_builtin(name)));
        // Everybody's arena is read, so only where it matters.
        let answered = if *blame == Blame::Unclear && !ran.is_empty() {
            self.workers.observe(&mut self.scoreboard);
            self.scoreboard.sum().methods
        } else {
            Vec::new()
        };
        let suspect = |method: usize| {
            let of = answered.get(method);
            let answered = of.map_or(0, |of| of.ok.saturating_add(of.errors));
            Some(Suspect { method: self.methods.get(method)?.clone(), answered })
        };
        ran.into_iter().filter_map(suspect).collect()
    }

    /// A worker is ready: what began or ended while it booted is new to it.
    pub(super) fn catch_up(&mut self, id: WorkerId) {
        let in_force = in_force(&self.quarantine);
        let Some(worker) = self.workers.get_mut(id) else { return };
        worker.is_ready = true;
        let mut news: Vec<ToWorker> = std::mem::take(&mut worker.born_refusing)
            .into_iter()
            .filter(|born| !in_force.iter().any(|now| now.method == *born))
            .map(|method| ToWorker::Release { method })
            .collect();
        let shut = |Quarantined { method, for_ms }| ToWorker::Quarantine { method, for_ms };
        news.extend(in_force.into_iter().map(shut));
        for message in news {
            self.tell(id, &message);
        }
    }

    pub(super) fn trial_wanted(&mut self, id: WorkerId, method: &str) {
        let orders = self.quarantine.asked(id, method);
        self.carry_out(orders);
        self.quarantine_due(Instant::now());
    }

    pub(super) fn trial_ended(&mut self, id: WorkerId, method: &str, ok: bool) {
        let orders = self.quarantine.trial_ended(id, method, ok);
        self.carry_out(orders);
        self.quarantine_due(Instant::now());
    }

    pub(super) fn quarantine_due(&mut self, now: Instant) {
        let orders = self.quarantine.due(now);
        self.carry_out(orders);
    }

    fn carry_out(&mut self, orders: Vec<Order>) {
        for order in orders {
            match order {
                Order::Shut { method, wait } => {
                    tracing::warn!(
                        method,
                        "method in quarantine for {wait:?}: it has crashed too many workers"
                    );
                    self.tell_all(&ToWorker::Quarantine { method, for_ms: whole_ms(wait) });
                }
                Order::Try { method, worker } => {
                    let slot = self.workers.get_mut(worker).map(|worker| worker.slot);
                    tracing::info!(method, slot, "one call of a method in quarantine may be tried");
                    self.tell(worker, &ToWorker::Trial { method });
                }
                Order::TakeBack { method, worker } => {
                    self.tell(worker, &ToWorker::Quarantine { method, for_ms: 0 });
                }
                Order::Release { method } => {
                    tracing::info!(method, "method released from quarantine");
                    self.tell_all(&ToWorker::Release { method });
                }
            }
        }
    }

    fn tell_all(&mut self, message: &ToWorker) {
        for id in self.workers.ids() {
            self.tell(id, message);
        }
    }

    /// Tells a worker that is ready; one that boots must not be sent anything, and catches up.
    fn tell(&mut self, id: WorkerId, message: &ToWorker) {
        let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.is_ready && worker.line_open)
        else {
            return;
        };
        if let Err(error) = worker.line.send(message, Vec::new()) {
            tracing::warn!(slot = worker.slot, %error, "a worker can't be told anything and is killed");
            worker.kill();
        } else {
            watch(&self.epoll, &worker.line, token(id));
        }
    }
}
