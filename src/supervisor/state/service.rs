//! The service's part of the brain: what operators ask for, and how everything ends.

use super::slots::{Phase, Slot};
use super::template::Template;
use super::{Action, Request, State, Timer};

/// The most slots TTIN can ask for.
const MOST_SLOTS: usize = 1024;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    Running,
    /// Still accepting, but told to stop.
    PreStop,
    Draining {
        code: i32,
    },
    /// Everything was killed.
    Ending {
        code: i32,
    },
}

impl State {
    pub(super) fn asked(&mut self, request: Request, actions: &mut Vec<Action>) {
        match (self.service, request) {
            (Service::Running, Request::Stop | Request::StopOrEnd) => {
                if self.settings.pre_stop.is_zero() {
                    self.drain(0, actions);
                } else {
                    self.service = Service::PreStop;
                    actions.push(Action::Tell(format!(
                        "stopping; accepting goes on for timeouts.pre_stop ({:?})",
                        self.settings.pre_stop
                    )));
                    actions.push(Action::Arm(Timer::PreStop, self.settings.pre_stop));
                }
            }
            (Service::Running | Service::PreStop, Request::End) => self.end(0, actions),
            (Service::PreStop, Request::StopOrEnd) => self.end(0, actions),
            (Service::Draining { code }, Request::StopOrEnd | Request::End) => self.end(code, actions),
            (Service::Running | Service::PreStop, Request::OneMore) => self.one_more(actions),
            (Service::Running | Service::PreStop, Request::OneFewer) => self.one_fewer(actions),
            // Stopping has begun already.
            (Service::PreStop | Service::Draining { .. }, Request::Stop)
            | (Service::Draining { .. }, Request::OneMore | Request::OneFewer)
            | (
                Service::Ending { .. },
                Request::Stop | Request::StopOrEnd | Request::End | Request::OneMore | Request::OneFewer,
            ) => {}
        }
    }

    pub(super) fn pre_stop_is_over(&mut self, actions: &mut Vec<Action>) {
        if self.service == Service::PreStop {
            self.drain(0, actions);
        }
    }

    pub(super) fn drain_is_over(&mut self, actions: &mut Vec<Action>) {
        if let Service::Draining { code } = self.service {
            actions.push(Action::Warn(format!(
                "not everything had ended within timeouts.drain ({:?}); what is left is killed",
                self.settings.drain
            )));
            self.end(code, actions);
        }
    }

    pub(super) fn give_up(&mut self, actions: &mut Vec<Action>) {
        let limits = self.restarts.limits();
        actions.push(Action::Warn(format!(
            "giving up: more than restart.max_restarts = {} boot failures within restart.window ({:?})",
            limits.max_restarts, limits.window
        )));
        self.drain(1, actions);
    }

    /// Kills everything; what has no pid yet goes with the template, or is killed when it is born.
    pub(super) fn end(&mut self, code: i32, actions: &mut Vec<Action>) {
        match self.service {
            Service::Running => actions.push(Action::CloseListeners),
            Service::PreStop => {
                actions.push(Action::Disarm(Timer::PreStop));
                actions.push(Action::CloseListeners);
            }
            Service::Draining { .. } => actions.push(Action::Disarm(Timer::DrainAll)),
            Service::Ending { .. } => {}
        }
        self.service = Service::Ending { code };
        for index in 0..self.slots.len() {
            match self.phase_of(index) {
                None | Some(Phase::Empty | Phase::Requested(_) | Phase::Killed { .. }) => {}
                Some(Phase::BackingOff) => self.enter(index, Phase::Empty, actions),
                Some(Phase::Booting(worker) | Phase::Ready(worker) | Phase::Draining(worker)) => {
                    self.kill(index, worker, actions);
                }
            }
        }
        self.end_template(actions);
    }

    pub(super) fn finish_if_empty(&mut self, actions: &mut Vec<Action>) {
        let (Service::Draining { code } | Service::Ending { code }) = self.service else {
            return;
        };
        let empty = self.slots.iter().all(|slot| slot.phase.worker().is_none());
        if empty && self.template == Template::Gone && !self.finished {
            self.finished = true;
            actions.push(Action::Finish { code });
        }
    }

    pub(super) fn is_serving(&self) -> bool {
        matches!(self.service, Service::Running | Service::PreStop)
    }

    fn one_more(&mut self, actions: &mut Vec<Action>) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.removed) {
            slot.removed = false;
        } else if self.slots.len() < MOST_SLOTS {
            self.slots.push(Slot::new());
        } else {
            actions.push(Action::Warn(format!("no more than {MOST_SLOTS} workers can be asked for")));
            return;
        }
        actions.push(Action::Tell(format!("one worker more: {}", self.wanted_slots())));
        self.fill_slots(actions);
    }

    fn one_fewer(&mut self, actions: &mut Vec<Action>) {
        if self.wanted_slots() <= 1 {
            actions.push(Action::Warn("the last worker stays".into()));
            return;
        }
        let last = self.slots.iter_mut().enumerate().rfind(|(_, slot)| !slot.removed);
        if let Some((index, slot)) = last {
            slot.removed = true;
            actions.push(Action::Tell(format!("one worker fewer: {}", self.wanted_slots())));
            self.release(index, actions);
        }
        self.drop_removed_slots();
    }

    fn drain(&mut self, code: i32, actions: &mut Vec<Action>) {
        if self.service == Service::PreStop {
            actions.push(Action::Disarm(Timer::PreStop));
        }
        self.service = Service::Draining { code };
        actions.push(Action::CloseListeners);
        actions.push(Action::Arm(Timer::DrainAll, self.settings.drain));
        for index in 0..self.slots.len() {
            self.release(index, actions);
        }
        self.end_template(actions);
    }

    pub(super) fn wanted_slots(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.removed).count()
    }
}
