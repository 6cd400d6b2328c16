//! The supervisor's brain: what is running, and what follows from each thing that happens.
//!
//! Pure: an event and the time go in, actions come out, and the loop in `mod.rs` performs them. Nothing here
//! knows of processes, descriptors or clocks. A worker process has a number that is never used again; a slot
//! outlives the processes that fill it.

mod slots;
mod template;

use std::time::{Duration, Instant};

use super::restart::{Limits, Restarts, Streak};

use slots::{Phase, Slot};
use template::Template;

/// The number of a worker process.
pub(crate) type WorkerId = u32;

/// The most slots TTIN can ask for.
const MOST_SLOTS: usize = 1024;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    TemplateReady,
    /// The template says why it can't serve; it will end.
    TemplateFailed,
    TemplateEnded,
    /// The kernel refused to fork a template.
    TemplateRefused,
    /// Something about one worker process.
    Worker(WorkerId, WorkerEvent),
    Due(Timer),
    Asked(Request),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WorkerEvent {
    ForkRefused,
    Born,
    Ready,
    Leaving,
    /// Nobody holds the other end of its line and it has no known pid: it was never forked, or died unborn.
    Vanished,
    /// It was reaped. `answered`: it had answered a call.
    Ended {
        answered: bool,
    },
}

/// What an operator can ask for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Request {
    /// Drain, then exit 0.
    Stop,
    /// Drain; asked for again, end at once.
    StopOrEnd,
    End,
    OneMore,
    OneFewer,
}

/// A moment that the brain waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// The template takes too long to be ready.
    TemplateBoot,
    /// A template is to be started again.
    TemplateRetry,
    /// A worker takes too long to be ready.
    Boot(WorkerId),
    /// A slot is to be filled again.
    Refill(usize),
    /// A worker of a removed slot takes too long to drain.
    Drain(WorkerId),
    /// The time between the request to stop and the end of accepting.
    PreStop,
    /// The whole service takes too long to drain.
    DrainAll,
}

/// Something the loop must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    StartTemplate,
    KillTemplate,
    Fork {
        worker: WorkerId,
        slot: usize,
    },
    /// Tell a worker to drain.
    Drain(WorkerId),
    Kill(WorkerId),
    /// Forget a worker that was never born: its closed line ends it, should it still come to be.
    Abandon(WorkerId),
    CloseListeners,
    Arm(Timer, Duration),
    Disarm(Timer),
    Tell(String),
    Warn(String),
    /// Everything is gone; end with this exit code.
    Finish {
        code: i32,
    },
}

/// The settings the brain works with.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Settings {
    pub(crate) processes: usize,
    pub(crate) restart: Limits,
    pub(crate) boot: Duration,
    pub(crate) drain: Duration,
    pub(crate) pre_stop: Duration,
}

/// All that the brain knows.
#[derive(Debug)]
pub(crate) struct State {
    settings: Settings,
    restarts: Restarts,
    service: Service,
    template: Template,
    template_streak: Streak,
    /// No template was ever ready: a failure that is told now is the operator's to see at once.
    first_start: bool,
    slots: Vec<Slot>,
    next_worker: WorkerId,
    finished: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Service {
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
    /// The state before anything runs, and the first actions.
    pub(crate) fn start(settings: Settings) -> (Self, Vec<Action>) {
        let slot = || Slot { phase: Phase::Empty, streak: Streak::default(), removed: false };
        let state = Self {
            settings,
            restarts: Restarts::new(settings.restart),
            service: Service::Running,
            template: Template::Starting,
            template_streak: Streak::default(),
            first_start: true,
            slots: std::iter::repeat_with(slot).take(settings.processes).collect(),
            next_worker: 0,
            finished: false,
        };
        (state, vec![Action::StartTemplate, Action::Arm(Timer::TemplateBoot, settings.boot)])
    }

    /// Takes in what happened at `now` and says what to do, in order.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        match event {
            Event::TemplateReady => self.template_ready(&mut actions),
            Event::TemplateFailed => self.template_failed(&mut actions),
            Event::TemplateEnded => self.template_ended(now, &mut actions),
            Event::TemplateRefused => self.template_refused(now, &mut actions),
            Event::Worker(worker, event) => self.worker_event(worker, event, now, &mut actions),
            Event::Due(timer) => self.due(timer, now, &mut actions),
            Event::Asked(request) => self.asked(request, &mut actions),
        }
        self.finish_if_empty(&mut actions);
        actions
    }

    fn due(&mut self, timer: Timer, now: Instant, actions: &mut Vec<Action>) {
        match timer {
            Timer::TemplateBoot => {
                if self.template == Template::Starting {
                    self.template = Template::Failed;
                    actions.push(Action::Warn(format!(
                        "the template was not ready within timeouts.boot ({:?}) and is killed",
                        self.settings.boot
                    )));
                    actions.push(Action::KillTemplate);
                }
            }
            Timer::TemplateRetry => {
                if self.template == Template::Waiting && self.is_serving() {
                    self.start_template(actions);
                }
            }
            Timer::Boot(worker) => self.boot_timed_out(worker, now, actions),
            Timer::Refill(index) => {
                if let Some(slot) = self.slots.get_mut(index).filter(|slot| slot.phase == Phase::BackingOff) {
                    slot.phase = Phase::Empty;
                    self.fill_slots(actions);
                }
            }
            Timer::Drain(worker) => {
                let slot = self.slots.iter_mut().find(|slot| slot.phase == Phase::Draining(worker));
                if let Some(slot) = slot {
                    slot.phase = Phase::Killed { worker, boot: false };
                    actions.push(Action::Kill(worker));
                }
            }
            Timer::PreStop => {
                if self.service == Service::PreStop {
                    self.drain(0, actions);
                }
            }
            Timer::DrainAll => {
                if let Service::Draining { code } = self.service {
                    actions.push(Action::Warn(format!(
                        "calls still run after timeouts.drain ({:?}); their workers are killed",
                        self.settings.drain
                    )));
                    self.end(code, actions);
                }
            }
        }
    }

    fn asked(&mut self, request: Request, actions: &mut Vec<Action>) {
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

    fn one_more(&mut self, actions: &mut Vec<Action>) {
        if let Some(slot) = self.slots.iter_mut().find(|slot| slot.removed) {
            slot.removed = false;
        } else if self.slots.len() < MOST_SLOTS {
            self.slots.push(Slot { phase: Phase::Empty, streak: Streak::default(), removed: false });
        }
        actions.push(Action::Tell(format!("one worker more: {}", self.wanted_slots())));
        self.fill_slots(actions);
    }

    fn one_fewer(&mut self, actions: &mut Vec<Action>) {
        if self.wanted_slots() <= 1 {
            actions.push(Action::Warn("the last worker stays".into()));
            return;
        }
        if let Some(index) = self.slots.iter().rposition(|slot| !slot.removed) {
            self.slots[index].removed = true;
            actions.push(Action::Tell(format!("one worker fewer: {}", self.wanted_slots())));
            self.release(index, actions);
        }
        self.drop_removed_slots();
    }

    fn give_up(&mut self, actions: &mut Vec<Action>) {
        let limits = self.restarts.limits();
        actions.push(Action::Warn(format!(
            "giving up: more than restart.max_restarts = {} boot failures within restart.window ({:?})",
            limits.max_restarts, limits.window
        )));
        self.drain(1, actions);
    }

    fn drain(&mut self, code: i32, actions: &mut Vec<Action>) {
        self.service = Service::Draining { code };
        actions.push(Action::Disarm(Timer::PreStop));
        actions.push(Action::CloseListeners);
        actions.push(Action::Arm(Timer::DrainAll, self.settings.drain));
        for index in 0..self.slots.len() {
            self.release(index, actions);
        }
        self.end_template(actions);
    }

    fn end(&mut self, code: i32, actions: &mut Vec<Action>) {
        self.service = Service::Ending { code };
        actions.push(Action::CloseListeners);
        for slot in &mut self.slots {
            match slot.phase {
                Phase::Empty | Phase::Requested(_) | Phase::Killed { .. } => {}
                Phase::BackingOff => slot.phase = Phase::Empty,
                Phase::Booting(worker) | Phase::Ready(worker) | Phase::Draining(worker) => {
                    slot.phase = Phase::Killed { worker, boot: false };
                    actions.push(Action::Kill(worker));
                }
            }
        }
        self.end_template(actions);
    }

    fn finish_if_empty(&mut self, actions: &mut Vec<Action>) {
        let (Service::Draining { code } | Service::Ending { code }) = self.service else {
            return;
        };
        let empty = self.slots.iter().all(|slot| slot.phase.worker().is_none());
        if empty && self.template == Template::Gone && !self.finished {
            self.finished = true;
            actions.push(Action::Finish { code });
        }
    }

    fn is_serving(&self) -> bool {
        matches!(self.service, Service::Running | Service::PreStop)
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
