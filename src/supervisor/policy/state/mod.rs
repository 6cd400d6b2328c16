//! The state policy: what is running, and what follows from each thing that happens.
//!
//! Pure: an event and the time go in, actions come out, and the loop in `supervisor/mod.rs` performs them. Nothing here
//! knows of processes, descriptors or clocks. A worker process has a number that is never used again; a slot
//! outlives the processes that fill it.
//!
//! ```text
//! serving   the generation that serves: its template, its slots     template.rs, slots.rs
//! reload    the generation that is to follow, doors shut            reload.rs
//! departing what has no slot any more and has not been reaped       succession.rs
//! ```

mod generation;
mod quiescent;
mod reload;
mod service;
mod slots;
mod succession;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use crate::supervisor::policy::restart::RestartLimits;
use generation::{Generation, SlotPhase};
pub(crate) use quiescent::QuiescentSnapshot;
use reload::Reload;
use service::ServicePhase;
use succession::{Departing, DepartureStage};

/// The number of a worker process.
pub(crate) type WorkerId = u32;
/// The number of a generation. One whose reload failed is not used again.
pub(crate) type GenerationId = u32;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Preload is done, the generation's listeners are bound; these are its settings.
    TemplateReady {
        generation: GenerationId,
        settings: Settings,
    },
    /// The template says why it can't serve, or what it needs can't be had; it will end.
    TemplateFailed {
        generation: GenerationId,
        why: String,
    },
    TemplateEnded {
        generation: GenerationId,
        cause: String,
    },
    /// The template that was to be started can't be.
    TemplateRefused {
        generation: GenerationId,
        why: String,
    },
    /// Something about one worker process.
    Worker(WorkerId, WorkerEvent),
    Due(Timer),
    Asked(OperatorRequest),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum WorkerEvent {
    ForkRefused,
    Born,
    Ready,
    /// It was signalled to end, and goes on until it is told to leave.
    Leaving,
    /// A thread is stuck in a call that nobody waits for any more.
    Wedged,
    /// It has grown or served as much as it may, and goes on until it is told to leave.
    Retiring,
    /// It has let everything go; only calls that are stuck still run.
    OnlyStuckThreadsLeft,
    /// Nobody holds the other end of its channel and it has no known pid: it was never forked, or died unborn.
    Vanished,
    /// It was reaped. `called`: a call had begun in it.
    Ended {
        called: bool,
        cause: String,
    },
}

/// What an operator can ask for by a signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperatorRequest {
    /// Drain, then exit 0.
    Stop,
    /// Drain; asked for again, end at once.
    StopOrEnd,
    End,
    OneMore,
    OneFewer,
    Reload,
}

/// A moment that the state policy waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Timer {
    /// A generation's template takes too long to be ready.
    TemplateBoot(GenerationId),
    /// The serving generation's template is to be started again.
    TemplateRetry,
    /// A worker takes too long to be ready.
    Boot(WorkerId),
    /// A slot is to be filled again.
    Refill(usize),
    /// The service was started, or a reload was asked for, long ago, and no worker was ever ready.
    NeverReady,
    /// The workers of the next generation have lived long enough.
    Probation,
    /// A worker that was told to leave takes too long.
    Depart(WorkerId),
    /// The time between the request to stop and the end of accepting.
    PreStop,
    /// The whole service takes too long to drain.
    DrainAll,
}

/// Something the loop must do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Start a template of the serving generation from what it was started from before; of a later one from what the
    /// program's path and the configuration's path lead to now.
    StartTemplate {
        generation: GenerationId,
    },
    KillTemplate {
        generation: GenerationId,
    },
    Fork {
        generation: GenerationId,
        worker: WorkerId,
        slot: usize,
        /// It accepts nothing before it is told to open.
        doors_shut: bool,
    },
    /// Tell a worker that was forked with its doors shut to open them.
    Open(WorkerId),
    /// Tell a worker to say that it is not ready, and go on: the service is to stop soon.
    MarkNotReady(WorkerId),
    /// Tell a worker to end while the service goes on: it lets its connections go to others.
    Leave(WorkerId),
    /// Tell a worker to end because the service does: it answers what has begun and closes.
    Drain(WorkerId),
    Kill(WorkerId),
    /// Forget a worker that was never born: its closed channel ends it, should it still come to be.
    Abandon(WorkerId),
    /// From now on this generation serves: its config, its listeners, its methods.
    Switch {
        generation: GenerationId,
    },
    /// The generation that was to follow will not; the one that serves is as it was.
    ReloadFailed {
        generation: GenerationId,
        why: String,
    },
    CloseListeners,
    /// Close the connections that wait to be accepted: nobody will for a while.
    TurnAway,
    Arm(Timer, Duration),
    /// The timer may not be armed.
    Disarm(Timer),
    Tell(String),
    Warn(String),
    Complain(String),
    /// Complain of this when everything is gone: why the service has given up is the last that it says.
    LastWord(String),
    /// Everything is gone; end with this exit code.
    Finish {
        code: i32,
    },
}

/// The settings the state policy works with. Each generation has its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Settings {
    pub(crate) processes: usize,
    pub(crate) restart: RestartLimits,
    pub(crate) boot: Duration,
    pub(crate) drain: Duration,
    pub(crate) pre_stop: Duration,
}

/// All that the state policy knows.
#[derive(Debug)]
pub(crate) struct SupervisorState {
    service: ServicePhase,
    serving: Generation,
    reload: Option<Reload>,
    /// A reload was asked for while one was under way: it may have missed what that was for.
    reload_again: bool,
    departing: BTreeMap<WorkerId, Departing>,
    /// Templates that were killed, of generations that are gone.
    ending: BTreeSet<GenerationId>,
    /// No template was ever ready: a failure that is told now is the operator's to see at once.
    first_start: bool,
    /// A worker was ready at some time, of whatever generation.
    was_ready: bool,
    /// None was for so long that clients are turned away.
    turns_away: bool,
    /// Why the last template or worker that failed to boot did.
    last_failure: Option<String>,
    next_worker: WorkerId,
    last_generation: GenerationId,
    /// Workers that have said that they are wedged, to tell the oldest.
    wedged_so_far: u64,
    finished: bool,
}

impl SupervisorState {
    /// The state before anything runs, and the first actions.
    pub(crate) fn start(settings: Settings) -> (Self, Vec<Action>) {
        let generation = 1;
        let state = Self {
            service: ServicePhase::Running,
            serving: Generation::new(generation, settings),
            reload: None,
            reload_again: false,
            departing: BTreeMap::new(),
            ending: BTreeSet::new(),
            first_start: true,
            was_ready: false,
            turns_away: false,
            last_failure: None,
            next_worker: 0,
            last_generation: generation,
            wedged_so_far: 0,
            finished: false,
        };
        let boot = Action::Arm(Timer::TemplateBoot(generation), settings.boot);
        let mut actions = vec![Action::StartTemplate { generation }, boot];
        state.begin_patience(&mut actions);
        (state, actions)
    }

    /// Takes in what happened at `now` and says what to do, in order.
    pub(crate) fn on(&mut self, event: Event, now: Instant) -> Vec<Action> {
        let mut actions = Vec::new();
        if self.finished {
            return actions;
        }
        match event {
            Event::TemplateReady { generation, settings } => {
                self.template_ready(generation, settings, &mut actions);
            }
            Event::TemplateFailed { generation, why } => self.template_failed(generation, why, &mut actions),
            Event::TemplateEnded { generation, cause } => {
                self.template_ended(generation, cause, now, &mut actions);
            }
            Event::TemplateRefused { generation, why } => {
                self.template_refused(generation, why, now, &mut actions);
            }
            Event::Worker(worker, event) => self.worker_event(worker, event, now, &mut actions),
            Event::Due(timer) => self.due(timer, now, &mut actions),
            Event::Asked(request) => self.asked(request, &mut actions),
        }
        self.let_one_come(&mut actions);
        self.arrange_successions(&mut actions);
        self.finish_if_empty(&mut actions);
        actions
    }

    /// Workers that can take connections of others. When the service ends, those that drain: what has arrived on a
    /// connection is still to be answered.
    pub(crate) fn adopters(&self) -> Vec<WorkerId> {
        let slots = || self.serving.slots.iter();
        let ready = slots().filter_map(|slot| match slot.phase {
            SlotPhase::Ready(worker) => Some(worker),
            SlotPhase::Empty
            | SlotPhase::BackingOff
            | SlotPhase::Requested(_)
            | SlotPhase::Booting(_)
            | SlotPhase::TooSlow(_) => None,
        });
        let draining =
            self.departing.iter().filter(|(_, departing)| departing.stage == DepartureStage::Draining);
        let adopters: Vec<WorkerId> = ready.chain(draining.map(|(worker, _)| *worker)).collect();
        if adopters.is_empty() {
            // A predecessor may be wedged, and its threads run nothing; but there is nobody else.
            return slots().filter_map(|slot| slot.predecessor.map(|before| before.worker)).collect();
        }
        adopters
    }

    /// The service ends: no worker will ever be ready again.
    pub(crate) fn is_ending(&self) -> bool {
        !self.is_serving()
    }

    fn due(&mut self, timer: Timer, now: Instant, actions: &mut Vec<Action>) {
        match timer {
            Timer::TemplateBoot(generation) => self.template_boot_timed_out(generation, actions),
            Timer::TemplateRetry => self.retry_template(actions),
            Timer::Boot(worker) => self.boot_timed_out(worker, now, actions),
            Timer::Refill(index) => self.refill(index, actions),
            Timer::NeverReady => self.was_never_ready(actions),
            Timer::Probation => self.probation_is_over(actions),
            Timer::Depart(worker) => self.departure_timed_out(worker, actions),
            Timer::PreStop => self.pre_stop_is_over(actions),
            Timer::DrainAll => self.drain_is_over(actions),
        }
    }

    /// Where a worker stands decides what its words mean.
    fn worker_event(
        &mut self,
        worker: WorkerId,
        event: WorkerEvent,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        if let Some((index, phase)) = self.serving.slot_of(worker) {
            self.event_in_slot(index, phase, worker, event, now, actions);
        } else if let Some(index) = self.serving.slot_after(worker) {
            self.event_of_predecessor(index, event, actions);
        } else if let Some(departing) = self.departing.get(&worker) {
            self.event_of_departing(worker, departing.stage, event, actions);
        } else if let Some((index, phase)) = self.reload.as_ref().and_then(|next| next.slot_of(worker)) {
            self.event_in_next(index, phase, worker, event, now, actions);
        }
    }

    fn boot_timed_out(&mut self, worker: WorkerId, now: Instant, actions: &mut Vec<Action>) {
        if let Some((index, phase)) = self.serving.slot_of(worker) {
            self.slot_boot_timed_out(index, phase, now, actions);
        } else if self.reload.as_ref().is_some_and(|next| next.slot_of(worker).is_some()) {
            self.next_boot_timed_out(actions);
        }
    }

    /// A number that no process has. They come round again after some four thousand million.
    fn number_worker(&mut self) -> WorkerId {
        while self.is_known(self.next_worker) {
            self.next_worker = self.next_worker.wrapping_add(1);
        }
        let number = self.next_worker;
        self.next_worker = number.wrapping_add(1);
        number
    }

    fn is_known(&self, worker: WorkerId) -> bool {
        self.serving.slot_of(worker).is_some()
            || self.serving.slot_after(worker).is_some()
            || self.departing.contains_key(&worker)
            || self.reload.as_ref().is_some_and(|next| next.slot_of(worker).is_some())
    }

    /// Has a worker forked for a slot that has entered `SlotPhase::Requested` with it.
    fn ask_for(
        generation: &Generation,
        worker: WorkerId,
        slot: usize,
        doors_shut: bool,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Fork { generation: generation.number, worker, slot, doors_shut });
        actions.push(Action::Arm(Timer::Boot(worker), generation.settings.boot));
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
