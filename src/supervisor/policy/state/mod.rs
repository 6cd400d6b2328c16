//! The state policy: what is running, and what follows from each thing that happens.
//!
//! Pure: an event and the time go in, actions come out, and the loop in `supervisor/mod.rs` performs them. Nothing here
//! knows of processes, descriptors or clocks. A worker process has a number that is never used again; a slot
//! outlives the processes that fill it.
//!
//! ```text
//! all that it knows                                                 known.rs, generation.rs
//! what it is told and what it asks for                              event.rs
//! serving   the generation that serves: its template, its slots     template.rs, slots.rs
//! reload    the generation that is to follow, doors shut            reload.rs
//! departing what has no slot any more and has not been reaped       succession.rs
//! ```

mod event;
mod generation;
mod known;
mod quiescent;
mod reload;
mod service;
mod slots;
mod succession;
mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::Policy;
use super::timers::TimerQueue;
pub(crate) use event::{
    Action, Event, GenerationId, OperatorRequest, Settings, Timer, WorkerEvent, WorkerId,
};
use generation::{Generation, SlotPhase};
pub(crate) use known::SupervisorState;
use known::{DepartureStage, ServicePhase};
pub(crate) use quiescent::QuiescentSnapshot;

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
            timers: TimerQueue::default(),
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
            Event::Due(timer) => self.fired(timer, now, &mut actions),
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

    fn fired(&mut self, timer: Timer, now: Instant, actions: &mut Vec<Action>) {
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
}

/// Timers. The loop has the clock, so it turns [`Action::Arm`] into a moment.
impl SupervisorState {
    pub(crate) fn arm(&mut self, timer: Timer, at: Option<Instant>) {
        self.timers.set(timer, at);
    }

    pub(crate) fn disarm(&mut self, timer: Timer) {
        self.timers.set(timer, None);
    }
}

/// One timer fires at a time, because what follows from one may disarm the next.
impl Policy for SupervisorState {
    type Seen<'a> = ();
    type Decision = Vec<Action>;

    fn next_due(&self) -> Option<Instant> {
        self.timers.next()
    }

    fn due(&mut self, now: Instant, (): ()) -> Vec<Action> {
        self.timers.take_due(now).map_or_else(Vec::new, |timer| self.on(Event::Due(timer), now))
    }
}

#[cfg(test)]
mod simulation;
#[cfg(test)]
mod tests;
