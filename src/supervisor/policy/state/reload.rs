//! Reload's part of the state policy: the next generation, from its template's start until it serves or has failed.
//!
//! Its workers are forked with their doors shut. So the policy undoes any failure before the switch by killing them: no client has met
//! one, and the serving generation was not touched.

use std::time::{Duration, Instant};

use super::event::{Action, Settings, Timer, WorkerEvent, WorkerId};
use super::generation::{Generation, Marks, SlotPhase, TemplatePhase};
use super::known::{Departing, DepartureStage, Reload, ReloadProgress, ServicePhase, SupervisorState};
use super::succession::Parting;
use crate::config::span;

/// How long the workers of a generation must live before clients meet them.
const PROBATION: Duration = Duration::from_secs(1);

/// Events.
impl SupervisorState {
    pub(super) fn next_template_ready(&mut self, settings: Settings, actions: &mut Vec<Action>) {
        let Some(next) = &mut self.reload else { return };
        match next.progress {
            ReloadProgress::Template => {
                let number = next.generation.number;
                actions.push(Action::Disarm(Timer::TemplateBoot(number)));
                next.generation = Generation::new(number, settings);
                next.generation.template = TemplatePhase::Ready { proven: false };
                next.progress = ReloadProgress::Workers;
                for slot in 0..settings.processes {
                    let worker = self.number_worker();
                    let Some(next) = &mut self.reload else { return };
                    next.generation.enter(slot, SlotPhase::Requested(worker), actions);
                    Self::ask_for(&next.generation, worker, slot, true, actions);
                }
            }
            // It says so once.
            ReloadProgress::Workers | ReloadProgress::Probation => {}
        }
    }

    pub(super) fn next_template_ended(&mut self, cause: &str, actions: &mut Vec<Action>) {
        let Some(next) = &mut self.reload else { return };
        let why = match next.progress {
            ReloadProgress::Template => format!("the template ended before it was ready ({cause})"),
            ReloadProgress::Workers | ReloadProgress::Probation => format!("the template ended ({cause})"),
        };
        self.next_template_gone(why, actions);
    }

    pub(super) fn next_template_refused(&mut self, why: String, actions: &mut Vec<Action>) {
        self.next_template_gone(why, actions);
    }

    pub(super) fn next_template_timed_out(&mut self, actions: &mut Vec<Action>) {
        let Some(next) = &self.reload else { return };
        match next.progress {
            ReloadProgress::Template => {
                let boot = next.generation.settings.boot;
                self.reload_failed(
                    format!("the template was not ready within timeouts.boot ({})", span::show(boot)),
                    actions,
                );
            }
            ReloadProgress::Workers | ReloadProgress::Probation => {}
        }
    }

    pub(super) fn event_in_next(
        &mut self,
        index: usize,
        phase: SlotPhase,
        worker: WorkerId,
        event: WorkerEvent,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match (phase, event) {
            (SlotPhase::Requested(_), WorkerEvent::Born) => {
                self.next_enters(index, SlotPhase::Booting(worker), actions);
            }
            (SlotPhase::Booting(_), WorkerEvent::Ready) => {
                if let Some(next) = &mut self.reload {
                    next.generation.is_ready(index, worker, now, actions);
                }
                self.one_was_ready(actions);
                self.try_probation(actions);
            }
            (SlotPhase::Requested(_), WorkerEvent::ForkRefused | WorkerEvent::Vanished) => {
                self.next_enters(index, SlotPhase::Empty, actions);
                self.reload_failed(format!("the worker of slot {index} can't be forked"), actions);
            }
            (SlotPhase::Requested(_) | SlotPhase::Booting(_), WorkerEvent::Ended { cause, .. }) => {
                self.next_enters(index, SlotPhase::Empty, actions);
                self.reload_failed(
                    format!("the worker of slot {index} ended before it was ready ({cause})"),
                    actions,
                );
            }
            (SlotPhase::Ready(_), WorkerEvent::Ended { cause, .. }) => {
                self.next_enters(index, SlotPhase::Empty, actions);
                self.reload_failed(
                    format!("the worker of slot {index} ended within {} ({cause})", span::show(PROBATION)),
                    actions,
                );
            }
            // It waits until it is told to leave, which will be when it has served, and has been followed.
            (SlotPhase::Ready(_), WorkerEvent::Leaving) => self.mark_next(index, |marks, _| marks.signalled = true),
            (SlotPhase::Ready(_), WorkerEvent::Retiring) => self.mark_next(index, |marks, _| marks.retiring = true),
            (SlotPhase::Ready(_), WorkerEvent::Wedged) => {
                self.mark_next(index, |marks, order| marks.wedged = Some(order));
            }
            // Its end says the rest.
            (
                SlotPhase::Requested(_) | SlotPhase::Booting(_),
                WorkerEvent::Leaving
                | WorkerEvent::Wedged
                | WorkerEvent::Retiring
                | WorkerEvent::OnlyStuckThreadsLeft,
            )
            // Word that comes twice or out of its turn, or of one that will be reaped.
            | (SlotPhase::Requested(_), WorkerEvent::Ready)
            | (SlotPhase::Booting(_), WorkerEvent::Born | WorkerEvent::ForkRefused | WorkerEvent::Vanished)
            | (
                SlotPhase::Ready(_),
                WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::OnlyStuckThreadsLeft
                | WorkerEvent::ForkRefused
                | WorkerEvent::Vanished,
            )
            // Phases that no slot of a generation on trial is in with a process: it fails as a whole.
            | (
                SlotPhase::Empty | SlotPhase::BackingOff | SlotPhase::TooSlow(_),
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

    pub(super) fn next_boot_timed_out(&mut self, actions: &mut Vec<Action>) {
        let Some(next) = &self.reload else { return };
        let boot = next.generation.settings.boot;
        self.reload_failed(
            format!("a worker was not ready within timeouts.boot ({})", span::show(boot)),
            actions,
        );
    }

    pub(super) fn probation_is_over(&mut self, actions: &mut Vec<Action>) {
        let Some(next) = self.reload.take_if(|next| next.progress == ReloadProgress::Probation) else {
            return;
        };
        actions.push(Action::Switch { generation: next.generation.number });
        for slot in &next.generation.slots {
            if let SlotPhase::Ready(worker) = slot.phase {
                actions.push(Action::Open(worker));
            }
        }
        let slots = std::mem::take(&mut self.serving.slots);
        for (index, slot) in slots.into_iter().enumerate() {
            self.part_with(index, slot, Parting::Leave, actions);
        }
        self.end_template(actions);
        let last = std::mem::replace(&mut self.serving, next.generation);
        if matches!(last.template, TemplatePhase::Killed { .. }) {
            self.ending.insert(last.number);
        }
        // Its workers are alive.
        self.template_has_proven_itself();
        self.first_start = false;
        self.reload_once_more(actions);
    }
}

/// Steps.
impl SupervisorState {
    pub(super) fn reload(&mut self, actions: &mut Vec<Action>) {
        if self.reload.is_some() {
            actions.push(Action::Tell("a reload is under way; another follows it".into()));
            self.reload_again = true;
            return;
        }
        let mut number = self.last_generation.wrapping_add(1);
        while number == self.serving.number || self.ending.contains(&number) {
            number = number.wrapping_add(1);
        }
        self.last_generation = number;
        let settings = self.serving.settings;
        actions.push(Action::StartTemplate { generation: number });
        actions.push(Action::Arm(Timer::TemplateBoot(number), settings.boot));
        // It has no slots before its template has said how many it wants.
        let generation = Generation::new(number, Settings { processes: 0, ..settings });
        self.reload = Some(Reload { generation, progress: ReloadProgress::Template });
        // What could not start may be mended by it.
        self.begin_patience(actions);
    }

    /// Undoes all that was done for the next generation.
    pub(super) fn reload_failed(&mut self, why: String, actions: &mut Vec<Action>) {
        self.give_up_reload(why, actions);
        self.reload_once_more(actions);
    }

    pub(super) fn give_up_reload(&mut self, why: String, actions: &mut Vec<Action>) {
        let Some(next) = self.reload.take() else { return };
        let generation = next.generation.number;
        match next.progress {
            ReloadProgress::Template => actions.push(Action::Disarm(Timer::TemplateBoot(generation))),
            ReloadProgress::Workers => {}
            ReloadProgress::Probation => actions.push(Action::Disarm(Timer::Probation)),
        }
        for (index, slot) in next.generation.slots.iter().enumerate() {
            if let Some(timer) = slot.phase.timer(index) {
                actions.push(Action::Disarm(timer));
            }
            let (worker, stage) = match slot.phase {
                SlotPhase::Empty | SlotPhase::BackingOff => continue,
                SlotPhase::Requested(worker) => (worker, DepartureStage::Unborn),
                SlotPhase::Booting(worker) | SlotPhase::Ready(worker) => {
                    actions.push(Action::Kill(worker));
                    (worker, DepartureStage::Killed)
                }
                SlotPhase::TooSlow(worker) => (worker, DepartureStage::Killed),
            };
            self.departing.insert(worker, Departing { generation, stage, marks: Marks::default() });
        }
        match next.generation.template {
            TemplatePhase::Starting | TemplatePhase::Ready { .. } => {
                actions.push(Action::KillTemplate { generation });
                self.ending.insert(generation);
            }
            TemplatePhase::Killed { .. } | TemplatePhase::Waiting | TemplatePhase::Gone => {}
        }
        actions.push(Action::ReloadFailed { generation, why });
    }

    /// What was asked for in the meantime may concern what the one that is over had read already.
    fn reload_once_more(&mut self, actions: &mut Vec<Action>) {
        if std::mem::take(&mut self.reload_again) && self.service == ServicePhase::Running {
            self.reload(actions);
        }
    }

    /// There is no template, and so no fork that has not happened.
    fn next_template_gone(&mut self, why: String, actions: &mut Vec<Action>) {
        let Some(next) = &mut self.reload else { return };
        next.generation.template = TemplatePhase::Gone;
        for index in 0..next.generation.slots.len() {
            if let Some(SlotPhase::Requested(worker)) = next.generation.phase_of(index) {
                actions.push(Action::Abandon(worker));
                next.generation.enter(index, SlotPhase::Empty, actions);
            }
        }
        self.reload_failed(why, actions);
    }

    fn next_enters(&mut self, index: usize, phase: SlotPhase, actions: &mut Vec<Action>) {
        if let Some(next) = &mut self.reload {
            next.generation.enter(index, phase, actions);
        }
    }

    fn mark_next(&mut self, index: usize, mark: impl FnOnce(&mut Marks, u64)) {
        let order = self.next_wedged();
        if let Some(slot) = self.reload.as_mut().and_then(|next| next.generation.slots.get_mut(index)) {
            mark(&mut slot.marks, order);
        }
    }

    fn try_probation(&mut self, actions: &mut Vec<Action>) {
        if let Some(next) = &mut self.reload
            && next.generation.all_are_ready()
        {
            next.progress = ReloadProgress::Probation;
            actions.push(Action::Arm(Timer::Probation, PROBATION));
        }
    }
}
