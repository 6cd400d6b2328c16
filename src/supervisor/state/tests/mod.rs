//! The brain's answers, event by event: tables for slot and template, and whole courses of events.

mod courses;
mod tables;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::slots::Phase;
use super::{Action, Event, Request, Settings, State, Timer, WorkerEvent, WorkerId};
use crate::supervisor::restart::Limits;

const BOOT: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(20);
const PRE_STOP: Duration = Duration::from_secs(30);
const BACKOFF: Duration = Duration::from_millis(100);

const ANSWERED: WorkerEvent = WorkerEvent::Ended { answered: true };
const UNANSWERED: WorkerEvent = WorkerEvent::Ended { answered: false };

fn settings(processes: usize) -> Settings {
    let restart = Limits {
        max_restarts: 3,
        window: Duration::from_secs(60),
        backoff: BACKOFF,
        backoff_max: Duration::from_secs(1),
    };
    Settings { processes, restart, boot: BOOT, drain: DRAIN, pre_stop: Duration::ZERO }
}

/// A brain at one moment, and the timers it has armed.
struct Brain {
    state: State,
    now: Instant,
    armed: BTreeSet<Timer>,
}

impl Brain {
    fn new(settings: Settings) -> Self {
        let (state, actions) = State::start(settings);
        let mut brain = Self { state, now: Instant::now(), armed: BTreeSet::new() };
        brain.follow(actions);
        brain
    }

    /// With these processes, all serving; worker n in slot n.
    fn serving(processes: usize) -> Self {
        let mut brain = Self::new(settings(processes));
        brain.on(Event::TemplateReady);
        for worker in 0..WorkerId::try_from(processes).unwrap() {
            brain.worker(worker, WorkerEvent::Born);
            brain.worker(worker, WorkerEvent::Ready);
        }
        brain
    }

    fn on(&mut self, event: Event) -> Vec<Action> {
        if let Event::Due(timer) = event {
            self.armed.remove(&timer);
        }
        let actions = self.state.on(event, self.now);
        self.follow(actions)
    }

    /// What it does, without what it only says and what changes nothing.
    fn follow(&mut self, mut actions: Vec<Action>) -> Vec<Action> {
        actions.retain(|action| match action {
            Action::Tell(_) | Action::Warn(_) => false,
            Action::Arm(timer, _) => {
                self.armed.insert(*timer);
                true
            }
            Action::Disarm(timer) => self.armed.remove(timer),
            _ => true,
        });
        actions
    }

    fn worker(&mut self, worker: WorkerId, event: WorkerEvent) -> Vec<Action> {
        self.on(Event::Worker(worker, event))
    }

    fn asked(&mut self, request: Request) -> Vec<Action> {
        self.on(Event::Asked(request))
    }

    fn due(&mut self, timer: Timer) -> Vec<Action> {
        self.on(Event::Due(timer))
    }

    fn phases(&self) -> Vec<Phase> {
        self.state.slots.iter().map(|slot| slot.phase).collect()
    }

    /// One slot, brought to `phase` by the shortest way; its worker, if any, is number 0.
    fn in_phase(phase: Phase) -> Self {
        let mut brain = Self::new(settings(1));
        if phase == Phase::Empty {
            return brain;
        }
        brain.on(Event::TemplateReady);
        let way: &[Event] = &match phase {
            Phase::Empty | Phase::Requested(_) => vec![],
            Phase::BackingOff => vec![of(WorkerEvent::ForkRefused)],
            Phase::Booting(_) => vec![of(WorkerEvent::Born)],
            Phase::Ready(_) => vec![of(WorkerEvent::Born), of(WorkerEvent::Ready)],
            Phase::Draining(_) => {
                vec![of(WorkerEvent::Born), of(WorkerEvent::Ready), of(WorkerEvent::Leaving)]
            }
            Phase::Killed { boot: true, .. } => vec![of(WorkerEvent::Born), Event::Due(Timer::Boot(0))],
            Phase::Killed { boot: false, .. } => vec![
                of(WorkerEvent::Born),
                of(WorkerEvent::Ready),
                of(WorkerEvent::Leaving),
                Event::Due(Timer::Drain(0)),
            ],
        };
        for event in way {
            brain.on(event.clone());
        }
        assert_eq!(brain.phases(), [phase], "the way there");
        brain
    }
}

/// Of worker 0.
fn of(event: WorkerEvent) -> Event {
    Event::Worker(0, event)
}

fn fork(worker: WorkerId, slot: usize) -> [Action; 2] {
    [Action::Fork { worker, slot }, Action::Arm(Timer::Boot(worker), BOOT)]
}
