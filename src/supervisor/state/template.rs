//! How far the template is, and what follows from its news.

use std::time::Instant;

use super::super::restart::{Streak, Verdict};
use super::{Action, State, Timer};

/// How far the template is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Template {
    Starting,
    Ready,
    /// It said why it can't serve, or was killed; it has not been reaped.
    Failed,
    /// It waits for its next start.
    Waiting,
    Gone,
}

impl State {
    pub(super) fn template_ready(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting => {
                actions.push(Action::Disarm(Timer::TemplateBoot));
                self.template = Template::Ready;
                self.template_streak = Streak::default();
                self.first_start = false;
                self.fill_slots(actions);
            }
            // It was killed while the message was on its way.
            Template::Failed | Template::Ready | Template::Waiting | Template::Gone => {}
        }
    }

    pub(super) fn template_failed(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting | Template::Ready => {
                actions.push(Action::Disarm(Timer::TemplateBoot));
                self.template = Template::Failed;
                if self.first_start && self.is_serving() {
                    actions.push(Action::Warn("the service can't start".into()));
                    self.end(1, actions);
                }
            }
            Template::Failed | Template::Waiting | Template::Gone => {}
        }
    }

    pub(super) fn template_ended(&mut self, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::Disarm(Timer::TemplateBoot));
        // Reaped, whatever follows: giving up must not wait for its end once more.
        let before = std::mem::replace(&mut self.template, Template::Gone);
        if !self.is_serving() {
            return;
        }
        if before == Template::Ready {
            actions.push(Action::Warn("the template ended; another is started, its workers live on".into()));
            self.start_template(actions);
            return;
        }
        match self.restarts.boot_failed(&mut self.template_streak, now) {
            Verdict::GiveUp => self.give_up(actions),
            Verdict::RetryAfter(wait) => {
                self.template = Template::Waiting;
                actions.push(Action::Arm(Timer::TemplateRetry, wait));
                actions.push(Action::Warn(format!("the template is started again in {wait:?}")));
            }
        }
    }

    pub(super) fn template_refused(&mut self, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::Disarm(Timer::TemplateBoot));
        if !self.is_serving() {
            self.template = Template::Gone;
            return;
        }
        let wait = self.restarts.refused(&mut self.template_streak, now);
        self.template = Template::Waiting;
        actions.push(Action::Arm(Timer::TemplateRetry, wait));
    }

    pub(super) fn start_template(&mut self, actions: &mut Vec<Action>) {
        self.template = Template::Starting;
        actions.push(Action::StartTemplate);
        actions.push(Action::Arm(Timer::TemplateBoot, self.settings.boot));
    }

    pub(super) fn end_template(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting | Template::Ready => {
                self.template = Template::Failed;
                actions.push(Action::KillTemplate);
            }
            Template::Waiting => self.template = Template::Gone,
            Template::Failed | Template::Gone => {}
        }
    }
}
