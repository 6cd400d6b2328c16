//! The slots' part of the state policy: what follows for a slot of the serving generation from each event of the process that
//! fills it.

use std::time::{Duration, Instant};

use super::event::{Action, Timer, WorkerEvent, WorkerId};
use super::generation::{Slot, SlotPhase, TemplatePhase};
use super::known::{ServicePhase, SupervisorState};
use crate::config::span;
use crate::supervisor::policy::restart::RestartVerdict;

/// Events.
impl SupervisorState {
    pub(super) fn event_in_slot(
        &mut self,
        index: usize,
        phase: SlotPhase,
        worker: WorkerId,
        event: WorkerEvent,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match (phase, event) {
            (SlotPhase::Requested(_), WorkerEvent::ForkRefused) => {
                self.last_failure = Some("a worker can't be forked".into());
                self.fork_refused(index, now, actions);
            }
            (SlotPhase::Requested(_), WorkerEvent::Vanished) => {
                self.last_failure = Some("a worker ended before its first word".into());
                self.fork_refused(index, now, actions);
            }
            (SlotPhase::Requested(_), WorkerEvent::Born) => {
                self.template_has_proven_itself();
                self.serving.enter(index, SlotPhase::Booting(worker), actions);
            }
            (SlotPhase::Booting(_), WorkerEvent::Ready) => {
                self.serving.is_ready(index, worker, now, actions);
                self.one_was_ready(actions);
                if self.service == ServicePhase::PreStop {
                    actions.push(Action::MarkNotReady(worker));
                }
                self.predecessor_may_leave(index, actions);
            }
            (SlotPhase::Ready(_), WorkerEvent::Leaving) => self.mark(index, |marks, _| marks.signalled = true),
            (SlotPhase::Ready(_), WorkerEvent::Retiring) => self.mark(index, |marks, _| marks.retiring = true),
            (SlotPhase::Ready(_), WorkerEvent::Wedged) => {
                self.mark(index, |marks, order| marks.wedged = Some(order));
            }
            (SlotPhase::Requested(_) | SlotPhase::Booting(_), WorkerEvent::Ended { cause, .. }) => {
                self.boot_failed(index, format!("a worker ended before it was ready ({cause})"), now, actions);
            }
            (SlotPhase::TooSlow(_), WorkerEvent::Ended { .. }) => {
                let boot = self.serving.settings.boot;
                let why = format!("a worker was not ready within timeouts.boot ({})", span::show(boot));
                self.boot_failed(index, why, now, actions);
            }
            (SlotPhase::Ready(_), WorkerEvent::Ended { called, .. }) => {
                self.ready_one_died(index, called, now, actions);
            }
            // A worker that asks to leave before it is ready has no calls: its end says the rest.
            (
                SlotPhase::Requested(_) | SlotPhase::Booting(_),
                WorkerEvent::Leaving
                | WorkerEvent::Wedged
                | WorkerEvent::Retiring
                | WorkerEvent::OnlyStuckThreadsLeft,
            )
            // Word that crossed with our own decision, or that comes twice.
            | (SlotPhase::Requested(_), WorkerEvent::Ready)
            | (SlotPhase::Booting(_), WorkerEvent::Born)
            | (SlotPhase::Ready(_), WorkerEvent::Born | WorkerEvent::Ready | WorkerEvent::OnlyStuckThreadsLeft)
            | (
                SlotPhase::TooSlow(_),
                WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::Leaving
                | WorkerEvent::Wedged
                | WorkerEvent::Retiring
                | WorkerEvent::OnlyStuckThreadsLeft,
            )
            // Its pid is known, so it will be reaped, and that is its end.
            | (
                SlotPhase::Booting(_) | SlotPhase::Ready(_) | SlotPhase::TooSlow(_),
                WorkerEvent::ForkRefused | WorkerEvent::Vanished,
            )
            // No process, so no event finds its way here.
            | (
                SlotPhase::Empty | SlotPhase::BackingOff,
                WorkerEvent::ForkRefused
                | WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::Leaving
                | WorkerEvent::Wedged
                | WorkerEvent::Retiring
                | WorkerEvent::OnlyStuckThreadsLeft
                | WorkerEvent::Vanished
                | WorkerEvent::Ended { .. },
            ) => {}
        }
    }

    pub(super) fn slot_boot_timed_out(
        &mut self,
        index: usize,
        phase: SlotPhase,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match phase {
            // It was not forked, or stopped before its first word: either way there is no pid to kill.
            SlotPhase::Requested(worker) => {
                actions.push(Action::Warn("the template does not fork and is killed".into()));
                self.last_failure = Some("the template does not fork".into());
                self.kill_template(actions);
                actions.push(Action::Abandon(worker));
                self.fork_refused(index, now, actions);
            }
            SlotPhase::Booting(worker) => {
                actions.push(Action::Warn(format!(
                    "a worker was not ready within timeouts.boot ({}) and is killed",
                    span::show(self.serving.settings.boot)
                )));
                self.serving.enter(index, SlotPhase::TooSlow(worker), actions);
                actions.push(Action::Kill(worker));
            }
            SlotPhase::Empty | SlotPhase::BackingOff | SlotPhase::Ready(_) | SlotPhase::TooSlow(_) => {}
        }
    }

    pub(super) fn refill(&mut self, index: usize, actions: &mut Vec<Action>) {
        if self.serving.phase_of(index) == Some(SlotPhase::BackingOff) {
            self.vacate(index, actions);
        }
    }
}

/// Steps.
impl SupervisorState {
    /// Every slot without a process gets one. There are slots only while the service goes on.
    pub(super) fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        if !matches!(self.serving.template, TemplatePhase::Ready { .. }) {
            return;
        }
        for index in 0..self.serving.slots.len() {
            if self.serving.phase_of(index) == Some(SlotPhase::Empty) {
                let worker = self.number_worker();
                self.serving.enter(index, SlotPhase::Requested(worker), actions);
                Self::ask_for(&self.serving, worker, index, false, actions);
            }
        }
    }

    pub(super) fn vacate(&mut self, index: usize, actions: &mut Vec<Action>) {
        self.serving.enter(index, SlotPhase::Empty, actions);
        self.fill_slots(actions);
    }

    fn back_off(&mut self, index: usize, wait: Duration, actions: &mut Vec<Action>) {
        self.serving.enter(index, SlotPhase::BackingOff, actions);
        actions.push(Action::Arm(Timer::Refill(index), wait));
    }

    fn fork_refused(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        if let Some(slot) = self.serving.slots.get_mut(index) {
            let wait = self.serving.restarts.refused(&mut slot.streak, now);
            self.back_off(index, wait, actions);
        }
    }

    /// It is replaced at once, whatever it died of; but where nothing else is seen of a slot it slows down.
    fn ready_one_died(&mut self, index: usize, called: bool, now: Instant, actions: &mut Vec<Action>) {
        let Some(slot) = self.serving.slots.get_mut(index) else { return };
        let lived = slot.ready_since.map(|since| now.saturating_duration_since(since));
        let wait = slot.early_deaths.died(lived, called, self.serving.restarts.limits());
        if wait.is_zero() {
            return self.vacate(index, actions);
        }
        self.back_off(index, wait, actions);
        self.let_one_come(actions);
        // Otherwise it is the one that does not wait.
        if self.serving.phase_of(index) == Some(SlotPhase::BackingOff) {
            actions.push(Action::Warn(format!(
                "slot {index} is filled again in {}: its workers die as soon as they are ready, without a call",
                span::show(wait)
            )));
        }
    }

    /// Slots that slow down never wait all at once: one is always about to serve, or nobody would be.
    pub(super) fn let_one_come(&mut self, actions: &mut Vec<Action>) {
        let slots = &self.serving.slots;
        if slots.iter().all(Slot::is_deserted)
            && let Some(index) = slots.iter().position(Slot::is_slowed_down)
        {
            self.vacate(index, actions);
        }
    }

    fn boot_failed(&mut self, index: usize, why: String, now: Instant, actions: &mut Vec<Action>) {
        self.last_failure = Some(why);
        let Some(slot) = self.serving.slots.get_mut(index) else {
            return;
        };
        match self.serving.restarts.boot_failed(&mut slot.streak, now) {
            RestartVerdict::GiveUp => {
                self.serving.enter(index, SlotPhase::Empty, actions);
                self.give_up(actions);
            }
            RestartVerdict::RetryAfter(wait) => {
                let bound = match self.serving.restarts.limits().max_restarts {
                    0 => String::new(),
                    most => format!(" {} of restart.max_restarts = {most}", self.serving.restarts.counted()),
                };
                actions.push(Action::Warn(format!(
                    "slot {index} is filled again in {} (boot failure{bound})",
                    span::show(wait)
                )));
                self.back_off(index, wait, actions);
            }
        }
    }
}
