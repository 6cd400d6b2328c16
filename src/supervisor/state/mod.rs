//! The supervisor's brain: what is running, and what follows from each thing that happens.
//!
//! Pure: an event and the time go in, actions come out, and the loop in `mod.rs` performs them. Nothing here
//! knows of processes, descriptors or clocks. A worker process has a number that is never used again; a slot
//! outlives the processes that fill it.

mod service;
mod slots;
mod template;

use std::time::{Duration, Instant};

use super::restart::{Limits, Restarts, Streak};
use service::Service;
use slots::{Phase, Slot};
use template::Template;

/// The number of a worker process.
pub(crate) type WorkerId = u32;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    TemplateReady,
    /// The template says why it can't serve; it will end.
    TemplateFailed,
    TemplateEnded,
    /// The template that was to be started can't be: the kernel refuses.
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
    /// The timer may not be armed.
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

impl State {
    /// The state before anything runs, and the first actions.
    pub(crate) fn start(settings: Settings) -> (Self, Vec<Action>) {
        let state = Self {
            settings,
            restarts: Restarts::new(settings.restart),
            service: Service::Running,
            template: Template::Starting,
            template_streak: Streak::default(),
            first_start: true,
            slots: std::iter::repeat_with(Slot::new).take(settings.processes).collect(),
            next_worker: 0,
            finished: false,
        };
        (state, vec![Action::StartTemplate, Action::Arm(Timer::TemplateBoot, settings.boot)])
    }

    /// Takes in what happened at `now` and says what to do, in order.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
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

    /// Workers that can take connections of others. When the service ends, those that drain: what has arrived on a
    /// connection is still to be answered.
    pub(crate) fn adopters(&self) -> Vec<WorkerId> {
        let phases = self.slots.iter().map(|slot| slot.phase);
        let adopters = phases.filter_map(|phase| match phase {
            Phase::Ready(worker) => Some(worker),
            Phase::Draining(worker) if self.is_ending() => Some(worker),
            Phase::Empty
            | Phase::BackingOff
            | Phase::Requested(_)
            | Phase::Booting(_)
            | Phase::Draining(_)
            | Phase::Killed { .. } => None,
        });
        adopters.collect()
    }

    /// The service ends: no worker will ever be ready again.
    pub(crate) fn is_ending(&self) -> bool {
        !self.is_serving()
    }

    fn due(&mut self, timer: Timer, now: Instant, actions: &mut Vec<Action>) {
        match timer {
            Timer::TemplateBoot => self.template_boot_timed_out(actions),
            Timer::TemplateRetry => self.retry_template(actions),
            Timer::Boot(worker) => self.boot_timed_out(worker, now, actions),
            Timer::Refill(index) => self.refill(index, actions),
            Timer::Drain(worker) => self.drain_timed_out(worker, actions),
            Timer::PreStop => self.pre_stop_is_over(actions),
            Timer::DrainAll => self.drain_is_over(actions),
        }
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
