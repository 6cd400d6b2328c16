//! The supervisor's brain: what is running, and what follows from each thing that happens.
//!
//! Pure: an event and the time go in, actions come out, and the loop in `mod.rs` performs them. Nothing here
//! knows of processes, descriptors or clocks. A worker process has a number that is never used again; a slot
//! outlives the processes that fill it.

use std::time::{Duration, Instant};

use super::restart::{Limits, Restarts, Streak, Verdict};

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

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Template {
    Starting,
    Ready,
    /// It said why it can't serve, or was killed; it has not been reaped.
    Failed,
    /// It waits for its next start.
    Waiting,
    Gone,
}

#[derive(Debug)]
struct Slot {
    phase: Phase,
    streak: Streak,
    /// Its process, if any, is the last: the slot goes when it has ended.
    removed: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// No process; one is wanted as soon as the template is ready.
    Empty,
    /// No process; a timer runs until the next one.
    BackingOff,
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

impl Phase {
    fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Empty | Self::BackingOff => None,
            Self::Requested(worker)
            | Self::Booting(worker)
            | Self::Ready(worker)
            | Self::Draining(worker)
            | Self::Killed { worker, .. } => Some(worker),
        }
    }
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
            Event::Due(timer) => self.due(timer, &mut actions),
            Event::Asked(request) => self.asked(request, &mut actions),
        }
        self.finish_if_empty(&mut actions);
        actions
    }

    fn template_ready(&mut self, actions: &mut Vec<Action>) {
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

    fn template_failed(&mut self, actions: &mut Vec<Action>) {
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

    fn template_ended(&mut self, now: Instant, actions: &mut Vec<Action>) {
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

    fn template_refused(&mut self, now: Instant, actions: &mut Vec<Action>) {
        actions.push(Action::Disarm(Timer::TemplateBoot));
        if !self.is_serving() {
            self.template = Template::Gone;
            return;
        }
        let wait = self.restarts.refused(&mut self.template_streak, now);
        self.template = Template::Waiting;
        actions.push(Action::Arm(Timer::TemplateRetry, wait));
    }

    fn start_template(&mut self, actions: &mut Vec<Action>) {
        self.template = Template::Starting;
        actions.push(Action::StartTemplate);
        actions.push(Action::Arm(Timer::TemplateBoot, self.settings.boot));
    }

    fn worker_event(
        &mut self,
        worker: WorkerId,
        event: WorkerEvent,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        let Some(index) = self.slots.iter().position(|slot| slot.phase.worker() == Some(worker)) else {
            return;
        };
        let phase = self.slots[index].phase;
        match (phase, event) {
            (Phase::Requested(_), WorkerEvent::ForkRefused | WorkerEvent::Vanished) => {
                actions.push(Action::Disarm(Timer::Boot(worker)));
                let wait = self.restarts.refused(&mut self.slots[index].streak, now);
                self.refill_after(index, wait, actions);
            }
            (Phase::Requested(_), WorkerEvent::Born) => {
                if self.is_wanted(index) {
                    self.slots[index].phase = Phase::Booting(worker);
                } else {
                    self.slots[index].phase = Phase::Killed { worker, boot: false };
                    actions.push(Action::Disarm(Timer::Boot(worker)));
                    actions.push(Action::Kill(worker));
                }
            }
            (Phase::Booting(_), WorkerEvent::Ready) => {
                actions.push(Action::Disarm(Timer::Boot(worker)));
                self.slots[index].phase = Phase::Ready(worker);
            }
            (Phase::Ready(_), WorkerEvent::Leaving) => {
                self.slots[index].phase = Phase::Draining(worker);
                actions.push(Action::Arm(Timer::Drain(worker), self.settings.drain));
            }
            (Phase::Ready(_), WorkerEvent::Ended { answered: true }) => {
                self.slots[index].streak = Streak::default();
                self.refill_after(index, Duration::ZERO, actions);
            }
            (
                Phase::Requested(_) | Phase::Booting(_) | Phase::Killed { boot: true, .. },
                WorkerEvent::Ended { .. },
            )
            | (Phase::Ready(_), WorkerEvent::Ended { answered: false }) => {
                actions.push(Action::Disarm(Timer::Boot(worker)));
                self.boot_failed(index, now, actions);
            }
            (Phase::Draining(_) | Phase::Killed { boot: false, .. }, WorkerEvent::Ended { .. }) => {
                actions.push(Action::Disarm(Timer::Drain(worker)));
                self.refill_after(index, Duration::ZERO, actions);
            }
            // A worker that asks to leave before it is ready has no calls: its end says the rest.
            (Phase::Requested(_) | Phase::Booting(_), WorkerEvent::Leaving)
            // Word that crossed with our own decision, or that comes twice.
            | (Phase::Requested(_), WorkerEvent::Ready)
            | (Phase::Booting(_), WorkerEvent::Born | WorkerEvent::ForkRefused | WorkerEvent::Vanished)
            | (
                Phase::Ready(_),
                WorkerEvent::Born | WorkerEvent::Ready | WorkerEvent::ForkRefused | WorkerEvent::Vanished,
            )
            | (
                Phase::Draining(_) | Phase::Killed { .. },
                WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::Leaving
                | WorkerEvent::ForkRefused
                | WorkerEvent::Vanished,
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

    fn due(&mut self, timer: Timer, actions: &mut Vec<Action>) {
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
            Timer::Boot(worker) => self.boot_timed_out(worker, actions),
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

    fn boot_timed_out(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.phase.worker() == Some(worker)) else {
            return;
        };
        match slot.phase {
            // The template did not even fork: it is stuck. Its end closes the worker's line, which says the rest.
            Phase::Requested(_) => {
                actions.push(Action::Warn("the template does not fork and is killed".into()));
                actions.push(Action::KillTemplate);
            }
            Phase::Booting(_) => {
                slot.phase = Phase::Killed { worker, boot: true };
                actions.push(Action::Warn(format!(
                    "a worker was not ready within timeouts.boot ({:?}) and is killed",
                    self.settings.boot
                )));
                actions.push(Action::Kill(worker));
            }
            Phase::Empty
            | Phase::BackingOff
            | Phase::Ready(_)
            | Phase::Draining(_)
            | Phase::Killed { .. } => {}
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

    /// Ends the process of a slot without losing a call.
    fn release(&mut self, index: usize, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index];
        match slot.phase {
            // A requested process has no pid yet; it is killed when it is born.
            Phase::Empty | Phase::Requested(_) | Phase::Draining(_) | Phase::Killed { .. } => {}
            Phase::BackingOff => {
                slot.phase = Phase::Empty;
                actions.push(Action::Disarm(Timer::Refill(index)));
            }
            Phase::Booting(worker) => {
                slot.phase = Phase::Killed { worker, boot: false };
                actions.push(Action::Disarm(Timer::Boot(worker)));
                actions.push(Action::Kill(worker));
            }
            Phase::Ready(worker) => {
                slot.phase = Phase::Draining(worker);
                actions.push(Action::Drain(worker));
                if self.service == Service::Running || self.service == Service::PreStop {
                    actions.push(Action::Arm(Timer::Drain(worker), self.settings.drain));
                }
            }
        }
    }

    fn boot_failed(&mut self, index: usize, now: Instant, actions: &mut Vec<Action>) {
        let slot = &mut self.slots[index];
        slot.phase = Phase::Empty;
        if !self.is_wanted(index) {
            self.drop_removed_slots();
            return;
        }
        match self.restarts.boot_failed(&mut self.slots[index].streak, now) {
            Verdict::GiveUp => self.give_up(actions),
            Verdict::RetryAfter(wait) => {
                actions.push(Action::Warn(format!(
                    "slot {index} is filled again in {wait:?} (boot failure {} of restart.max_restarts = {})",
                    self.restarts.counted(),
                    self.restarts.limits().max_restarts
                )));
                self.refill_after(index, wait, actions);
            }
        }
    }

    fn give_up(&mut self, actions: &mut Vec<Action>) {
        let limits = self.restarts.limits();
        actions.push(Action::Warn(format!(
            "giving up: more than restart.max_restarts = {} boot failures within restart.window ({:?})",
            limits.max_restarts, limits.window
        )));
        self.drain(1, actions);
    }

    fn refill_after(&mut self, index: usize, wait: Duration, actions: &mut Vec<Action>) {
        if !self.is_wanted(index) || wait.is_zero() {
            self.slots[index].phase = Phase::Empty;
            self.drop_removed_slots();
            self.fill_slots(actions);
        } else {
            self.slots[index].phase = Phase::BackingOff;
            actions.push(Action::Arm(Timer::Refill(index), wait));
        }
    }

    fn fill_slots(&mut self, actions: &mut Vec<Action>) {
        if self.template != Template::Ready {
            return;
        }
        for index in 0..self.slots.len() {
            if self.slots[index].phase == Phase::Empty && self.is_wanted(index) {
                let worker = self.next_worker;
                self.next_worker = self.next_worker.wrapping_add(1);
                self.slots[index].phase = Phase::Requested(worker);
                actions.push(Action::Fork { worker, slot: index });
                actions.push(Action::Arm(Timer::Boot(worker), self.settings.boot));
            }
        }
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

    fn end_template(&mut self, actions: &mut Vec<Action>) {
        match self.template {
            Template::Starting | Template::Ready => {
                self.template = Template::Failed;
                actions.push(Action::KillTemplate);
            }
            Template::Waiting => self.template = Template::Gone,
            Template::Failed | Template::Gone => {}
        }
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

    fn drop_removed_slots(&mut self) {
        while self.slots.last().is_some_and(|slot| slot.removed && slot.phase == Phase::Empty) {
            self.slots.pop();
        }
    }

    fn is_serving(&self) -> bool {
        matches!(self.service, Service::Running | Service::PreStop)
    }

    fn is_wanted(&self, index: usize) -> bool {
        self.is_serving() && self.slots.get(index).is_some_and(|slot| !slot.removed)
    }

    fn wanted_slots(&self) -> usize {
        self.slots.iter().filter(|slot| !slot.removed).count()
    }
}
