//! The slots' part of the brain: what follows for a slot from each event of the process that fills it.

use std::time::{Duration, Instant};

use super::template::Template;
use super::{Action, State, Timer, WorkerEvent, WorkerId};
use crate::supervisor::restart::{Streak, Verdict};

#[derive(Debug)]
pub(super) struct Slot {
    pub(super) phase: Phase,
    pub(super) streak: Streak,
    /// Its process, if any, is the last: the slot goes when it has ended.
    pub(super) removed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// No process; one is wanted as soon as the template is ready.
    Empty,
    /// No process; a timer runs until the next one.
    BackingOff,
    /// The template, which lives, was asked to fork it.
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

impl Slot {
    pub(super) fn new() -> Self {
        Self { phase: Phase::Empty, streak: Streak::default(), removed: false }
    }
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

    /// The timer that belongs to this phase of slot `index` and must not outlive it.
    fn timer(self, index: usize) -> Option<Timer> {
        match self {
            Self::BackingOff => Some(Timer::Refill(index)),
            Self::Requested(worker) | Self::Booting(worker) => Some(Timer::Boot(worker)),
            Self::Draining(worker) => Some(Timer::Drain(worker)),
            Self::Empty | Self::Ready(_) | Self::Killed { .. } => None,
        }
    }
}

/// Events.
impl State {
    pub(super) fn worker_event(
        &mut self,
        worker: WorkerId,
        event: WorkerEvent,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some((index, phase)) = self.slot_of(worker) else {
            return;
        };
        match (phase, event) {
            (Phase::Requested(_), WorkerEvent::ForkRefused | WorkerEvent::Vanished) => {
                self.fork_refused(index, now, actions);
            }
            (Phase::Requested(_), WorkerEvent::Born) => {
                self.template_has_proven_itself();
                if self.is_wanted(index) {
                    self.enter(index, Phase::Booting(worker), actions);
                } else {
                    self.kill(index, worker, actions);
                }
            }
            (Phase::Booting(_), WorkerEvent::Ready) => self.enter(index, Phase::Ready(worker), actions),
            (Phase::Ready(_), WorkerEvent::Leaving) => self.await_end(index, worker, actions),
            (
                Phase::Requested(_) | Phase::Booting(_) | Phase::Killed { boot: true, .. },
                WorkerEvent::Ended { .. },
            )
            | (Phase::Ready(_), WorkerEvent::Ended { answered: false }) => {
                self.boot_failed(index, now, actions);
            }
            (Phase::Ready(_) | Phase::Draining(_), WorkerEvent::Ended { answered: true }) => {
                self.forget_failures(index);
                self.vacate(index, actions);
            }
            (Phase::Draining(_), WorkerEvent::Ended { answered: false })
            | (Phase::Killed { boot: false, .. }, WorkerEvent::Ended { .. }) => self.vacate(index, actions),
            // A worker that asks to leave before it is ready has no calls: its end says the rest.
            (Phase::Requested(_) | Phase::Booting(_), WorkerEvent::Leaving)
            // Word that crossed with our own decision, or that comes twice.
            | (Phase::Requested(_), WorkerEvent::Ready)
            | (Phase::Booting(_), WorkerEvent::Born)
            | (Phase::Ready(_), WorkerEvent::Born | WorkerEvent::Ready)
            | (
                Phase::Draining(_) | Phase::Killed { .. },
                WorkerEvent::Born | WorkerEvent::Ready | WorkerEvent::Leaving,
            )
            // Its pid is known, so it will be reaped, and that is its end.
            | (
                Phase::Booting(_) | Phase::Ready(_) | Phase::Draining(_) | Phase::Killed { .. },
                WorkerEvent::ForkRefused | WorkerEvent::Vanished,
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
        let Some((index, phase)) = self.slot_of(worker) else {
            return;
        };
        match phase {
            // It was not forked, or stopped before its first word: either way there is no pid to kill.
            Phase::Requested(_) => {
                actions.push(Action::Warn("the template does not fork and is killed".into()));
                self.kill_template(actions);
                actions.push(Action::Abandon(worker));
                self.fork_refused(index, now, actions);
            }
            Phase::Booting(_) => {
                actions.push(Action::Warn(format!(
                    "a worker was not ready within timeouts.boot ({:?}) and is killed",
                    self.settings.boot
                )));
                self.enter(index, Phase::Killed { worker, boot: true }, actions);
                actions.push(Action::Kill(worker));
            }
            Phase::Empty
            | Phase::BackingOff
            | Phase::Ready(_)
            | Phase::Draining(_)
            | Phase::Killed { .. } => {}
        }
    }

    pub(super) fn drain_timed_out(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if let Some((index, Phase::Draining(_))) = self.slot_of(worker) {
            self.kill(index, worker, actions);
        }
    }

    pub(super) fn refill(&mut self, index: usize, actions: &mut Vec<Action>) {
        if self.phase_of(index) == Some(Phase::BackingOff) {
            self.vacate(index, actions);
        }
    }
}

/// Steps.
impl State {
    /// Ends the process of a slot without losing a call.
    pub(super) fn release(&mut self, index: usize, actions: &mut Vec<Action>) {
        match self.phase_of(index) {
            // A requested process has no pid yet; it is killed when it is born.
            None | Some(Phase::Empty | Phase::Requested(_) | Phase::Draining(_) | Phase::Killed { .. }) => {}
            Some(Phase::BackingOff) => self.enter(index, Phase::Empty, actions),
            Some(Phase::Booting(worker)) => self.kill(index, worker, actions),
            Some(Phase::Ready(worker)) => {
                actions.push(Action::Drain(worker));
                self.await_end(index, worker, actions);
            }
        }
    }

    pub(super) fn kill(&mut self, index: usize, worker: WorkerId, actions: &mut Vec<Action>) {
        self.enter(index, Phase::Killed { worker, boot: false }, actions);
        actions.push(Action::Kill(worker));
    }

    /// Every slot without a process that should have one gets one.
    pub(super) fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        if !matches!(self.template, Template::Ready { .. }) {
            return;
        }
        for index in 0..self.slots.len() {
            if self.phase_of(index) == Some(Phase::Empty) && self.is_wanted(index) {
                let worker = self.number_worker();
                self.enter(index, Phase::Requested(worker), actions);
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

    pub(super) fn phase_of(&self, index: usize) -> Option<Phase> {
        self.slots.get(index).map(|slot| slot.phase)
    }

    /// Moves a slot on. What timer its phase had is disarmed with it.
    pub(super) fn enter(&mut self, index: usize, phase: Phase, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let left = std::mem::replace(&mut slot.phase, phase);
        if let Some(timer) = left.timer(index)
            && phase.timer(index) != Some(timer)
        {
            actions.push(Action::Disarm(timer));
        }
    }

    fn await_end(&mut self, index: usize, worker: WorkerId, actions: &mut Vec<Action>) {
        self.enter(index, Phase::Draining(worker), actions);
        // When everything drains, one timer counts for all.
        if self.is_serving() {
            actions.push(Action::Arm(Timer::Drain(worker), self.settings.drain));
        }
    }

    fn vacate(&mut self, index: usize, actions: &mut Vec<Action>) {
        self.enter(index, Phase::Empty, actions);
        self.drop_removed_slots();
        self.fill_slots(actions);
    }

    fn back_off(&mut self, index: usize, wait: Duration, actions: &mut Vec<Action>) {
        self.enter(index, Phase::BackingOff, actions);
        actions.push(Action::Arm(Timer::Refill(index), wait));
    }

    fn fork_refused(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        if !self.is_wanted(index) {
            return self.vacate(index, actions);
        }
        if let Some(slot) = self.slots.get_mut(index) {
            let wait = self.restarts.refused(&mut slot.streak, now);
            self.back_off(index, wait, actions);
        }
    }

    fn boot_failed(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        if !self.is_wanted(index) {
            return self.vacate(index, actions);
        }
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        match self.restarts.boot_failed(&mut slot.streak, now) {
            Verdict::GiveUp => {
                self.enter(index, Phase::Empty, actions);
                self.give_up(actions);
            }
            Verdict::RetryAfter(wait) => {
                let bound = match self.restarts.limits().max_restarts {
                    0 => String::new(),
                    most => format!(" {} of restart.max_restarts = {most}", self.restarts.counted()),
                };
                actions.push(Action::Warn(format!(
                    "slot {index} is filled again in {wait:?} (boot failure{bound})"
                )));
                self.back_off(index, wait, actions);
            }
        }
    }

    fn forget_failures(&mut self, index: usize) {
        if let Some(slot) = self.slots.get_mut(index) {
            slot.streak = Streak::default();
        }
    }

    /// A number that no process has. They come round again after some four thousand million.
    fn number_worker(&mut self) -> WorkerId {
        while self.slot_of(self.next_worker).is_some() {
            self.next_worker = self.next_worker.wrapping_add(1);
        }
        let number = self.next_worker;
        self.next_worker = number.wrapping_add(1);
        number
    }

    fn slot_of(&self, worker: WorkerId) -> Option<(usize, Phase)> {
        let mut phases = self.slots.iter().map(|slot| slot.phase).enumerate();
        phases.find(|(_, phase)| phase.worker() == Some(worker))
    }

    fn is_wanted(&self, index: usize) -> bool {
        self.is_serving() && self.slots.get(index).is_some_and(|slot| !slot.removed)
    }
}
