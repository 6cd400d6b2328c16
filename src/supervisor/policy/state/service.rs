//! The service's part of the state policy: what operators ask for, and how everything ends.

use std::time::Duration;

use super::event::{Action, OperatorRequest, Timer};
use super::generation::{Marks, Predecessor, Slot, SlotPhase, TemplatePhase};
use super::known::{ServicePhase, SupervisorState};
use super::succession::Parting;
use crate::config::span;
use crate::supervisor::policy::restart::patience;

/// The most slots TTIN can ask for.
const MOST_SLOTS: usize = 1024;

/// How often those are turned away who connect to a service that has never been ready and never gives up.
const BETWEEN_TURNS: Duration = Duration::from_secs(1);

impl SupervisorState {
    pub(super) fn asked(&mut self, request: OperatorRequest, actions: &mut Vec<Action>) {
        match (self.service, request) {
            (ServicePhase::Running, OperatorRequest::Stop | OperatorRequest::StopOrEnd) => {
                let pre_stop = self.serving.settings.pre_stop;
                self.give_up_reload("the service is to stop".into(), actions);
                if pre_stop.is_zero() {
                    self.drain(0, actions);
                } else {
                    self.service = ServicePhase::PreStop;
                    actions.push(Action::Tell(format!(
                        "stopping; accepting goes on for timeouts.pre_stop ({})",
                        span::show(pre_stop)
                    )));
                    actions.push(Action::Arm(Timer::PreStop, pre_stop));
                    for slot in &self.serving.slots {
                        let before = slot.predecessor.as_ref().map(|before| before.worker);
                        let ready =
                            if let SlotPhase::Ready(worker) = slot.phase { Some(worker) } else { None };
                        actions.extend(before.into_iter().chain(ready).map(Action::MarkNotReady));
                    }
                }
            }
            (ServicePhase::Running | ServicePhase::PreStop, OperatorRequest::End) => self.end(0, actions),
            (ServicePhase::PreStop, OperatorRequest::StopOrEnd) => self.end(0, actions),
            (ServicePhase::Draining { code }, OperatorRequest::StopOrEnd | OperatorRequest::End) => {
                self.end(code, actions);
            }
            (ServicePhase::Running, OperatorRequest::Reload) => self.reload(actions),
            (ServicePhase::Running | ServicePhase::PreStop, OperatorRequest::OneMore) => {
                self.one_more(actions);
            }
            (ServicePhase::Running | ServicePhase::PreStop, OperatorRequest::OneFewer) => {
                self.one_fewer(actions);
            }
            // Stopping has begun already.
            (
                ServicePhase::PreStop | ServicePhase::Draining { .. },
                OperatorRequest::Stop | OperatorRequest::Reload,
            )
            | (ServicePhase::Draining { .. }, OperatorRequest::OneMore | OperatorRequest::OneFewer)
            | (
                ServicePhase::Ending { .. },
                OperatorRequest::Stop
                | OperatorRequest::StopOrEnd
                | OperatorRequest::End
                | OperatorRequest::OneMore
                | OperatorRequest::OneFewer
                | OperatorRequest::Reload,
            ) => {}
        }
    }

    pub(super) fn pre_stop_is_over(&mut self, actions: &mut Vec<Action>) {
        if self.service == ServicePhase::PreStop {
            self.drain(0, actions);
        }
    }

    pub(super) fn drain_is_over(&mut self, actions: &mut Vec<Action>) {
        if let ServicePhase::Draining { code } = self.service {
            actions.push(Action::Warn(format!(
                "not everything had ended within timeouts.drain ({}); what is left is killed",
                span::show(self.serving.settings.drain)
            )));
            self.end(code, actions);
        }
    }

    pub(super) fn give_up(&mut self, actions: &mut Vec<Action>) {
        let most = self.serving.restarts.limits().max_restarts;
        actions.push(Action::Warn(format!(
            "giving up: more than restart.max_restarts = {most} boot failures, and no worker was ready between them"
        )));
        self.say_why_at_the_end(actions);
        self.drain(1, actions);
    }

    /// The time begins in which some worker must get ready, if none ever was.
    pub(super) fn begin_patience(&self, actions: &mut Vec<Action>) {
        if !self.was_ready {
            actions.push(Action::Arm(Timer::NeverReady, patience(self.serving.settings.boot)));
        }
    }

    pub(super) fn one_was_ready(&mut self, actions: &mut Vec<Action>) {
        if !std::mem::replace(&mut self.was_ready, true) {
            actions.push(Action::Disarm(Timer::NeverReady));
        }
    }

    pub(super) fn was_never_ready(&mut self, actions: &mut Vec<Action>) {
        if self.was_ready || !self.is_serving() {
            return;
        }
        let settings = &self.serving.settings;
        let patience = patience(settings.boot);
        let waited = span::show(patience);
        if !settings.restart.gives_up() {
            if !std::mem::replace(&mut self.turns_away, true) {
                actions.push(Action::Warn(format!(
                    "no worker was ready within {waited}: who connects is turned away until one is, since \
                     restart.max_restarts = 0 never gives up"
                )));
            }
            actions.push(Action::TurnAway);
            actions.push(Action::Arm(Timer::NeverReady, BETWEEN_TURNS));
            return;
        }
        actions.push(Action::Warn(format!("giving up: no worker was ready within {waited}")));
        self.say_why_at_the_end(actions);
        self.drain(1, actions);
    }

    pub(super) fn say_why_at_the_end(&mut self, actions: &mut Vec<Action>) {
        let what = if self.was_ready { "the service has given up" } else { "the service can't start" };
        let why = self.last_failure.as_deref().unwrap_or("no worker was ready in time");
        actions.push(Action::LastWord(format!("{what}: {why}")));
    }

    /// Kills everything; what has no pid yet goes with the template, or is killed when it is born.
    pub(super) fn end(&mut self, code: i32, actions: &mut Vec<Action>) {
        match self.service {
            ServicePhase::Running => actions.push(Action::CloseListeners),
            ServicePhase::PreStop => {
                actions.push(Action::Disarm(Timer::PreStop));
                actions.push(Action::CloseListeners);
            }
            ServicePhase::Draining { .. } => actions.push(Action::Disarm(Timer::DrainAll)),
            ServicePhase::Ending { .. } => {}
        }
        self.forget_patience(actions);
        self.service = ServicePhase::Ending { code };
        self.give_up_reload("the service ends".into(), actions);
        self.empty_slots(Parting::Kill, actions);
        self.all_that_leave(Parting::Kill, actions);
        self.end_template(actions);
    }

    pub(super) fn finish_if_empty(&mut self, actions: &mut Vec<Action>) {
        let (ServicePhase::Draining { code } | ServicePhase::Ending { code }) = self.service else {
            return;
        };
        let no_template = self.serving.template == TemplatePhase::Gone && self.ending.is_empty();
        if self.departing.is_empty() && no_template && !self.finished {
            self.finished = true;
            actions.push(Action::Finish { code });
        }
    }

    fn one_more(&mut self, actions: &mut Vec<Action>) {
        let index = self.serving.slots.len();
        if index >= MOST_SLOTS {
            actions.push(Action::Warn(format!("no more than {MOST_SLOTS} workers can be asked for")));
            return;
        }
        let slot = self.come_home(index);
        self.serving.slots.push(slot);
        actions.push(Action::Tell(format!("one worker more: {}", self.serving.slots.len())));
        self.fill_slots(actions);
    }

    /// The slot `index`, with the worker that was forked for it, if that still waits for another one to be ready.
    fn come_home(&mut self, index: usize) -> Slot {
        let before = self.serving.slots.iter_mut().map(|slot| &mut slot.predecessor);
        let mut at_home = before.filter_map(|before| before.take_if(|before| before.home == index));
        match at_home.next() {
            Some(Predecessor { worker, marks, .. }) => {
                Slot { phase: SlotPhase::Ready(worker), marks, ..Slot::default() }
            }
            None => Slot::default(),
        }
    }

    fn one_fewer(&mut self, actions: &mut Vec<Action>) {
        let Some(index) = self.serving.slots.len().checked_sub(1).filter(|index| *index > 0) else {
            actions.push(Action::Warn("the last worker stays".into()));
            return;
        };
        let Some(mut slot) = self.serving.slots.pop() else { return };
        actions.push(Action::Tell(format!("one worker fewer: {index}")));
        let idle = self.serving.slots.iter().position(|other| !other.serves());
        if let Some(idle) = idle {
            self.stand_in(idle, index, &mut slot);
        }
        self.part_with(index, slot, Parting::Leave, actions);
    }

    /// The ready worker of a slot that goes away serves on until the one of slot `idle` is ready.
    fn stand_in(&mut self, idle: usize, home: usize, slot: &mut Slot) {
        let before = match (slot.phase, slot.predecessor.take()) {
            (_, Some(before)) => before,
            (SlotPhase::Ready(worker), None) => {
                slot.phase = SlotPhase::Empty;
                Predecessor { worker, marks: Marks { retiring: false, ..slot.marks }, home }
            }
            (
                SlotPhase::Empty
                | SlotPhase::BackingOff
                | SlotPhase::Requested(_)
                | SlotPhase::Booting(_)
                | SlotPhase::TooSlow(_),
                None,
            ) => return,
        };
        if let Some(other) = self.serving.slots.get_mut(idle) {
            other.predecessor = Some(before);
        }
    }

    fn drain(&mut self, code: i32, actions: &mut Vec<Action>) {
        if self.service == ServicePhase::PreStop {
            actions.push(Action::Disarm(Timer::PreStop));
        }
        self.forget_patience(actions);
        self.service = ServicePhase::Draining { code };
        self.give_up_reload("the service ends".into(), actions);
        actions.push(Action::CloseListeners);
        actions.push(Action::Arm(Timer::DrainAll, self.serving.settings.drain));
        self.all_that_leave(Parting::Drain, actions);
        self.empty_slots(Parting::Drain, actions);
        self.end_template(actions);
    }

    /// Nobody is waited for any more.
    fn forget_patience(&self, actions: &mut Vec<Action>) {
        if !self.was_ready {
            actions.push(Action::Disarm(Timer::NeverReady));
        }
    }

    fn empty_slots(&mut self, how: Parting, actions: &mut Vec<Action>) {
        let slots = std::mem::take(&mut self.serving.slots);
        for (index, slot) in slots.into_iter().enumerate() {
            self.part_with(index, slot, how, actions);
        }
    }
}
