//! The template's part of the brain: when one is started, killed and started again.

use std::time::Instant;

use super::slots::Phase;
use super::{Action, State, Timer};
use crate::supervisor::restart::{Streak, Verdict};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Template {
    Starting,
    /// It forks on request. `proven`: a worker that it forked was born.
    Ready {
        proven: bool,
    },
    /// Killed and not reaped.
    Killed {
        proven: bool,
    },
    /// None runs; a timer runs until the next one.
    Waiting,
    /// None runs, and none will.
    Gone,
}

impl State {
    pub(super) fn template_ready(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting => {
                actions.push(Action::Disarm(Timer::TemplateBoot));
                self.template = Template::Ready { proven: false };
                self.first_start = false;
                self.fill_slots(actions);
            }
            // It was killed while the message was on its way.
            Template::Killed { .. } | Template::Ready { .. } | Template::Waiting | Template::Gone => {}
        }
    }

    /// It has said why and would end by itself. Killed nevertheless: what it runs at its exit is user code, which
    /// may hang, and then neither a new start nor the end of the service would ever come.
    pub(super) fn template_failed(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting | Template::Ready { .. } => {
                self.kill_template(actions);
                self.template = Template::Killed { proven: false };
                if self.first_start && self.is_serving() {
                    actions.push(Action::Warn("the service can't start".into()));
                    self.end(1, actions);
                }
            }
            Template::Killed { .. } | Template::Waiting | Template::Gone => {}
        }
    }

    pub(super) fn template_ended(&mut self, now: Instant, actions: &mut Vec<Action>) {
        // Reaped, whatever follows: giving up must not wait for its end once more.
        let before = std::mem::replace(&mut self.template, Template::Gone);
        if before == Template::Starting {
            actions.push(Action::Disarm(Timer::TemplateBoot));
        }
        self.abandon_unborn(actions);
        if !self.is_serving() {
            return;
        }
        match before {
            Template::Ready { proven: true } | Template::Killed { proven: true } => {
                actions
                    .push(Action::Warn("the template ended; another is started, its workers live on".into()));
                self.start_template(actions);
            }
            // One that becomes ready and ends again and again must not do so without pause.
            Template::Starting | Template::Ready { proven: false } | Template::Killed { proven: false } => {
                match self.restarts.boot_failed(&mut self.template_streak, now) {
                    Verdict::GiveUp => self.give_up(actions),
                    Verdict::RetryAfter(wait) => {
                        self.template = Template::Waiting;
                        actions.push(Action::Arm(Timer::TemplateRetry, wait));
                        actions.push(Action::Warn(format!("the template is started again in {wait:?}")));
                    }
                }
            }
            // There was none to end.
            Template::Waiting | Template::Gone => self.template = before,
        }
    }

    pub(super) fn template_refused(&mut self, now: Instant, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting | Template::Killed { .. } => {
                if self.template == Template::Starting {
                    actions.push(Action::Disarm(Timer::TemplateBoot));
                }
                if self.is_serving() {
                    let wait = self.restarts.refused(&mut self.template_streak, now);
                    self.template = Template::Waiting;
                    actions.push(Action::Arm(Timer::TemplateRetry, wait));
                } else {
                    self.template = Template::Gone;
                }
            }
            Template::Ready { .. } | Template::Waiting | Template::Gone => {}
        }
    }

    /// A worker that the template forked is alive: its start was no failure.
    pub(super) fn template_has_proven_itself(&mut self) {
        if let Template::Ready { proven: proven @ false } | Template::Killed { proven: proven @ false } =
            &mut self.template
        {
            *proven = true;
            self.template_streak = Streak::default();
        }
    }

    pub(super) fn template_boot_timed_out(&mut self, actions: &mut Vec<Action>) {
        if self.template == Template::Starting {
            actions.push(Action::Warn(format!(
                "the template was not ready within timeouts.boot ({:?}) and is killed",
                self.settings.boot
            )));
            self.kill_template(actions);
        }
    }

    pub(super) fn retry_template(&mut self, actions: &mut Vec<Action>) {
        if self.template == Template::Waiting {
            self.start_template(actions);
        }
    }

    pub(super) fn kill_template(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting => {
                actions.push(Action::Disarm(Timer::TemplateBoot));
                self.template = Template::Killed { proven: false };
            }
            Template::Ready { proven } => self.template = Template::Killed { proven },
            Template::Killed { .. } | Template::Waiting | Template::Gone => return,
        }
        actions.push(Action::KillTemplate);
    }

    /// No template is needed any more.
    pub(super) fn end_template(&mut self, actions: &mut Vec<Action>) {
        if self.template == Template::Waiting {
            self.template = Template::Gone;
            actions.push(Action::Disarm(Timer::TemplateRetry));
        } else {
            self.kill_template(actions);
        }
    }

    fn start_template(&mut self, actions: &mut Vec<Action>) {
        self.template = Template::Starting;
        actions.push(Action::StartTemplate);
        actions.push(Action::Arm(Timer::TemplateBoot, self.settings.boot));
    }

    /// What the template was asked to fork and has not said a word by now is not waited for: the request may have
    /// died with the template.
    fn abandon_unborn(&mut self, actions: &mut Vec<Action>) {
        for index in 0..self.slots.len() {
            if let Some(Phase::Requested(worker)) = self.phase_of(index) {
                actions.push(Action::Abandon(worker));
                self.enter(index, Phase::Empty, actions);
            }
        }
        self.drop_removed_slots();
    }
}
