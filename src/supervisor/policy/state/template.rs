//! The template's part of the state policy: when the serving generation's is started, killed and started again.

use std::time::Instant;

use super::event::{Action, GenerationId, Settings, Timer};
use super::generation::{SlotPhase, TemplatePhase};
use super::known::{DepartureStage, SupervisorState};
use crate::config::span;
use crate::supervisor::policy::restart::{RestartVerdict, Streak};

/// Whose template something is about.
enum Whose {
    Serving,
    Next,
    /// Of a generation that is gone: it can only end.
    NoMore,
}

impl SupervisorState {
    fn whose(&self, generation: GenerationId) -> Whose {
        if generation == self.serving.number {
            Whose::Serving
        } else if self.reload.as_ref().is_some_and(|next| next.generation.number == generation) {
            Whose::Next
        } else {
            Whose::NoMore
        }
    }

    pub(super) fn template_ready(
        &mut self,
        generation: GenerationId,
        settings: Settings,
        actions: &mut Vec<Action>,
    ) {
        match (self.whose(generation), self.serving.template) {
            (Whose::Next, _) => self.next_template_ready(settings, actions),
            // One that is started again has the settings it had.
            (Whose::Serving, TemplatePhase::Starting) => {
                actions.push(Action::Disarm(Timer::TemplateBoot(generation)));
                self.serving.template = TemplatePhase::Ready { proven: false };
                self.first_start = false;
                self.fill_slots(actions);
            }
            // It was killed while the message was on its way.
            (
                Whose::Serving,
                TemplatePhase::Killed { .. }
                | TemplatePhase::Ready { .. }
                | TemplatePhase::Waiting
                | TemplatePhase::Gone,
            )
            | (Whose::NoMore, _) => {}
        }
    }

    /// It has said why and would end by itself. Killed nevertheless: what it runs at its exit is user code, which
    /// may hang, and then neither a new start nor the end of the service would ever come.
    pub(super) fn template_failed(
        &mut self,
        generation: GenerationId,
        why: String,
        actions: &mut Vec<Action>,
    ) {
        match (self.whose(generation), self.serving.template) {
            (Whose::Next, _) => self.reload_failed(why, actions),
            (Whose::Serving, TemplatePhase::Starting | TemplatePhase::Ready { .. }) => {
                actions.push(Action::Complain(why.clone()));
                self.last_failure = Some(why);
                self.kill_template(actions);
                self.serving.template = TemplatePhase::Killed { proven: false };
                if self.first_start && self.is_serving() {
                    self.say_why_at_the_end(actions);
                    self.end(1, actions);
                }
            }
            (Whose::Serving, TemplatePhase::Killed { .. } | TemplatePhase::Waiting | TemplatePhase::Gone)
            | (Whose::NoMore, _) => {}
        }
    }

    pub(super) fn template_ended(
        &mut self,
        generation: GenerationId,
        cause: String,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.abandon_unborn(generation, actions);
        match self.whose(generation) {
            Whose::Next => self.next_template_ended(&cause, actions),
            Whose::Serving => self.serving_template_ended(&cause, now, actions),
            Whose::NoMore => {
                self.ending.remove(&generation);
            }
        }
    }

    fn serving_template_ended(&mut self, cause: &str, now: Instant, actions: &mut Vec<Action>) {
        // Reaped, whatever follows: giving up must not wait for its end once more.
        let before = std::mem::replace(&mut self.serving.template, TemplatePhase::Gone);
        if before == TemplatePhase::Starting {
            actions.push(Action::Disarm(Timer::TemplateBoot(self.serving.number)));
        }
        if !self.is_serving() {
            return;
        }
        match before {
            TemplatePhase::Ready { proven: true } | TemplatePhase::Killed { proven: true } => {
                actions
                    .push(Action::Warn("the template ended; another is started, its workers live on".into()));
                self.start_template(actions);
            }
            // One that becomes ready and ends again and again must not do so without pause.
            TemplatePhase::Starting
            | TemplatePhase::Ready { proven: false }
            | TemplatePhase::Killed { proven: false } => {
                // Why one was killed has been said.
                if before == TemplatePhase::Starting {
                    self.last_failure = Some(format!("the template ended before it was ready ({cause})"));
                } else if before == (TemplatePhase::Ready { proven: false }) {
                    self.last_failure =
                        Some(format!("the template ended before it had forked a worker ({cause})"));
                }
                let serving = &mut self.serving;
                match serving.restarts.boot_failed(&mut serving.template_streak, now) {
                    RestartVerdict::GiveUp => self.give_up(actions),
                    RestartVerdict::RetryAfter(wait) => {
                        self.serving.template = TemplatePhase::Waiting;
                        actions.push(Action::Arm(Timer::TemplateRetry, wait));
                        actions.push(Action::Warn(format!(
                            "the template is started again in {}",
                            span::show(wait)
                        )));
                    }
                }
            }
            // There was none to end.
            TemplatePhase::Waiting | TemplatePhase::Gone => self.serving.template = before,
        }
    }

    pub(super) fn template_refused(
        &mut self,
        generation: GenerationId,
        why: String,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        match (self.whose(generation), self.serving.template) {
            (Whose::Next, _) => self.next_template_refused(why, actions),
            (Whose::Serving, TemplatePhase::Starting | TemplatePhase::Killed { .. }) => {
                if self.serving.template == TemplatePhase::Starting {
                    actions.push(Action::Disarm(Timer::TemplateBoot(generation)));
                }
                if self.is_serving() {
                    let why = format!("a template can't be started: {why}");
                    actions.push(Action::Warn(why.clone()));
                    self.last_failure = Some(why);
                    let serving = &mut self.serving;
                    let wait = serving.restarts.refused(&mut serving.template_streak, now);
                    serving.template = TemplatePhase::Waiting;
                    actions.push(Action::Arm(Timer::TemplateRetry, wait));
                } else {
                    self.serving.template = TemplatePhase::Gone;
                }
            }
            (Whose::Serving, TemplatePhase::Ready { .. } | TemplatePhase::Waiting | TemplatePhase::Gone) => {}
            (Whose::NoMore, _) => {
                self.ending.remove(&generation);
            }
        }
    }

    /// A worker that the template forked is alive: its start was no failure.
    pub(super) fn template_has_proven_itself(&mut self) {
        if let TemplatePhase::Ready { proven: proven @ false }
        | TemplatePhase::Killed { proven: proven @ false } = &mut self.serving.template
        {
            *proven = true;
            self.serving.template_streak = Streak::default();
        }
    }

    pub(super) fn template_boot_timed_out(&mut self, generation: GenerationId, actions: &mut Vec<Action>) {
        match (self.whose(generation), self.serving.template) {
            (Whose::Next, _) => self.next_template_timed_out(actions),
            (Whose::Serving, TemplatePhase::Starting) => {
                let why = format!(
                    "the template was not ready within timeouts.boot ({})",
                    span::show(self.serving.settings.boot)
                );
                actions.push(Action::Warn(format!("{why} and is killed")));
                self.last_failure = Some(why);
                self.kill_template(actions);
            }
            (
                Whose::Serving,
                TemplatePhase::Ready { .. }
                | TemplatePhase::Killed { .. }
                | TemplatePhase::Waiting
                | TemplatePhase::Gone,
            )
            | (Whose::NoMore, _) => {}
        }
    }

    pub(super) fn retry_template(&mut self, actions: &mut Vec<Action>) {
        if self.serving.template == TemplatePhase::Waiting {
            self.start_template(actions);
        }
    }

    pub(super) fn kill_template(&mut self, actions: &mut Vec<Action>) {
        let generation = self.serving.number;
        match self.serving.template {
            TemplatePhase::Starting => {
                actions.push(Action::Disarm(Timer::TemplateBoot(generation)));
                self.serving.template = TemplatePhase::Killed { proven: false };
            }
            TemplatePhase::Ready { proven } => self.serving.template = TemplatePhase::Killed { proven },
            TemplatePhase::Killed { .. } | TemplatePhase::Waiting | TemplatePhase::Gone => return,
        }
        actions.push(Action::KillTemplate { generation });
    }

    /// No template of the serving generation is needed any more.
    pub(super) fn end_template(&mut self, actions: &mut Vec<Action>) {
        if self.serving.template == TemplatePhase::Waiting {
            self.serving.template = TemplatePhase::Gone;
            actions.push(Action::Disarm(Timer::TemplateRetry));
        } else {
            self.kill_template(actions);
        }
    }

    fn start_template(&mut self, actions: &mut Vec<Action>) {
        let generation = self.serving.number;
        self.serving.template = TemplatePhase::Starting;
        actions.push(Action::StartTemplate { generation });
        actions.push(Action::Arm(Timer::TemplateBoot(generation), self.serving.settings.boot));
    }

    /// What the template was asked to fork and has not said a word by now is not waited for: the request may have
    /// died with the template.
    fn abandon_unborn(&mut self, generation: GenerationId, actions: &mut Vec<Action>) {
        if generation == self.serving.number {
            for index in 0..self.serving.slots.len() {
                if let Some(SlotPhase::Requested(worker)) = self.serving.phase_of(index) {
                    actions.push(Action::Abandon(worker));
                    self.serving.enter(index, SlotPhase::Empty, actions);
                }
            }
        }
        self.departing.retain(|worker, departing| {
            let lost = departing.generation == generation && departing.stage == DepartureStage::Unborn;
            if lost {
                actions.push(Action::Abandon(*worker));
            }
            !lost
        });
    }
}
