//! The slots: which process fills each, and what follows from the news of one.

use std::time::{Duration, Instant};

use super::super::restart::{Streak, Verdict};
use super::template::Template;
use super::{Action, Service, State, Timer, WorkerEvent, WorkerId};

/// A place for one worker process at a time.
#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) streak: Streak,
    /// Its process, if any, is the last: the slot goes when it has ended.
    pub(super) removed: bool,
}

/// How far the process of a slot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No process; one is wanted as soon as the template is ready.
    Empty,
    /// No process; a timer runs until the next one.
    BackingOff,
    Requested(WorkerId),
    Booting(WorkerId),
    Ready(WorkerId),
    Draining(WorkerId),
    /// Killed and not reaped; `boot`: because it took too long to be ready.
    Killed {
        worker: WorkerId,
        boot: bool,
    },
}

impl Phase {
    pub(super) fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Empty | Self::BackingOff => None,
            Self::Requested(worker)
            | Self::Booting(worker)
            | Self::Ready(worker)
            | Self::Draining(worker)
            | Self::Killed { worker, .. } => Some(worker),
        }
    }
}

impl State {
    pub(super) fn worker_event(
        &mut self,
        worker: WorkerId,
        event: WorkerEvent,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(index) = self.slots.iter().position(|slot| slot.phase.worker() == Some(worker)) else {
            return;
        };
        let phase = self.slots[index].phase;
        match (phase, event) {
            (Phase::Requested(_), WorkerEvent::ForkRefused | WorkerEvent::Vanished) => {
                actions.push(Action::Disarm(Timer::Boot(worker)));
                let wait = self.restarts.refused(&mut self.slots[index].streak, now);
                self.refill_after(index, wait, actions);
            }
            (Phase::Requested(_), WorkerEvent::Born) => {
                if self.is_wanted(index) {
                    self.slots[index].phase = Phase::Booting(worker);
                } else {
                    self.slots[index].phase = Phase::Killed { worker, boot: false };
                    actions.push(Action::Disarm(Timer::Boot(worker)));
                    actions.push(Action::Kill(worker));
                }
            }
            (Phase::Booting(_), WorkerEvent::Ready) => {
                actions.push(Action::Disarm(Timer::Boot(worker)));
                self.slots[index].phase = Phase::Ready(worker);
            }
            (Phase::Ready(_), WorkerEvent::Leaving) => {
                self.slots[index].phase = Phase::Draining(worker);
                actions.push(Action::Arm(Timer::Drain(worker), self.settings.drain));
            }
            (Phase::Ready(_), WorkerEvent::Ended { answered: true }) => {
                self.slots[index].streak = Streak::default();
                self.refill_after(index, Duration::ZERO, actions);
            }
            (
                Phase::Requested(_) | Phase::Booting(_) | Phase::Killed { boot: true, .. },
                WorkerEvent::Ended { .. },
            )
            | (Phase::Ready(_), WorkerEvent::Ended { answered: false }) => {
                actions.push(Action::Disarm(Timer::Boot(worker)));
                self.boot_failed(index, now, actions);
            }
            (Phase::Draining(_) | Phase::Killed { boot: false, .. }, WorkerEvent::Ended { .. }) => {
                actions.push(Action::Disarm(Timer::Drain(worker)));
                self.refill_after(index, Duration::ZERO, actions);
            }
            // A worker that asks to leave before it is ready has no calls: its end says the rest.
            (Phase::Requested(_) | Phase::Booting(_), WorkerEvent::Leaving)
            // Word that crossed with our own decision, or that comes twice.
            | (Phase::Requested(_), WorkerEvent::Ready)
            | (Phase::Booting(_), WorkerEvent::Born | WorkerEvent::ForkRefused | WorkerEvent::Vanished)
            | (
                Phase::Ready(_),
                WorkerEvent::Born | WorkerEvent::Ready | WorkerEvent::ForkRefused | WorkerEvent::Vanished,
            )
            | (
                Phase::Draining(_) | Phase::Killed { .. },
                WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::Leaving
                | WorkerEvent::ForkRefused
                | WorkerEvent::Vanished,
            )
            // No process, so no event finds its way here.
            | (
                Phase::Empty | Phase::BackingOff,
                WorkerEvent::ForkRefused
                | WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::Leaving
                | WorkerEvent::Vanished
                | WorkerEvent::Ended { .. },
            ) => {}
        }
    }

    pub(super) fn boot_timed_out(&mut self, worker: WorkerId, now: Instant, actions: &mut Vec<Action>) {
        let Some(index) = self.slots.iter().position(|slot| slot.phase.worker() == Some(worker)) else {
            return;
        };
        let slot = &mut self.slots[index];
        match slot.phase {
            // It was not forked, or stopped before its first word: either way there is no pid to kill.
            Phase::Requested(_) => {
                actions.push(Action::Abandon(worker));
                if self.template == Template::Ready {
                    actions.push(Action::Warn("the template does not fork and is killed".into()));
                    actions.push(Action::KillTemplate);
                }
                let wait = self.restarts.refused(&mut self.slots[index].streak, now);
                self.refill_after(index, wait, actions);
            }
            Phase::Booting(_) => {
                slot.phase = Phase::Killed { worker, boot: true };
                actions.push(Action::Warn(format!(
                    "a worker was not ready within timeouts.boot ({:?}) and is killed",
                    self.settings.boot
                )));
                actions.push(Action::Kill(worker));
            }
            Phase::Empty
            | Phase::BackingOff
            | Phase::Ready(_)
            | Phase::Draining(_)
            | Phase::Killed { .. } => {}
        }
    }

    /// Ends the process of a slot without losing a call.
    pub(super) fn release(&mut self, index: usize, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index];
        match slot.phase {
            // A requested process has no pid yet; it is killed when it is born.
            Phase::Empty | Phase::Requested(_) | Phase::Draining(_) | Phase::Killed { .. } => {}
            Phase::BackingOff => {
                slot.phase = Phase::Empty;
                actions.push(Action::Disarm(Timer::Refill(index)));
            }
            Phase::Booting(worker) => {
                slot.phase = Phase::Killed { worker, boot: false };
                actions.push(Action::Disarm(Timer::Boot(worker)));
                actions.push(Action::Kill(worker));
            }
            Phase::Ready(worker) => {
                slot.phase = Phase::Draining(worker);
                actions.push(Action::Drain(worker));
                if self.service == Service::Running || self.service == Service::PreStop {
                    actions.push(Action::Arm(Timer::Drain(worker), self.settings.drain));
                }
            }
        }
    }

    pub(super) fn boot_failed(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Empty;
        if !self.is_wanted(index) {
            self.drop_removed_slots();
            return;
        }
        match self.restarts.boot_failed(&mut self.slots[index].streak, now) {
            Verdict::GiveUp => self.give_up(actions),
            Verdict::RetryAfter(wait) => {
                actions.push(Action::Warn(format!(
                    "slot {index} is filled again in {wait:?} (boot failure {} of restart.max_restarts = {})",
                    self.restarts.counted(),
                    self.restarts.limits().max_restarts
                )));
                self.refill_after(index, wait, actions);
            }
        }
    }

    pub(super) fn refill_after(&mut self, index: usize, wait: Duration, actions: &mut Vec<Action>) {
        if !self.is_wanted(index) || wait.is_zero() {
            self.slots[index].phase = Phase::Empty;
            self.drop_removed_slots();
            self.fill_slots(actions);
        } else {
            self.slots[index].phase = Phase::BackingOff;
            actions.push(Action::Arm(Timer::Refill(index), wait));
        }
    }

    pub(super) fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        if self.template != Template::Ready {
            return;
        }
        for index in 0..self.slots.len() {
            if self.slots[index].phase == Phase::Empty && self.is_wanted(index) {
                let worker = self.next_worker;
                self.next_worker = self.next_worker.wrapping_add(1);
                self.slots[index].phase = Phase::Requested(worker);
                actions.push(Action::Fork { worker, slot: index });
                actions.push(Action::Arm(Timer::Boot(worker), self.settings.boot));
            }
        }
    }

    pub(super) fn drop_removed_slots(&mut self) {
        while self.slots.last().is_some_and(|slot| slot.removed && slot.phase == Phase::Empty) {
            self.slots.pop();
        }
    }

    pub(super) fn is_wanted(&self, index: usize) -> bool {
        self.is_serving() && self.slots.get(index).is_some_and(|slot| !slot.removed)
    }

    pub(super) fn wanted_slots(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.removed).count()
    }
}
