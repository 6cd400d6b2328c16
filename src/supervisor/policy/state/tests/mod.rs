//! The policy's answers, event by event: tables for slot, template and those that leave, and whole courses of events.

mod courses;
mod quiescent;
mod reloads;
mod starts;
mod successions;
mod tables;

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use super::generation::SlotPhase;
use super::known::DepartureStage;
use super::{
    Action, Event, GenerationId, OperatorRequest, Settings, SupervisorState, Timer, WorkerEvent, WorkerId,
};
use crate::supervisor::policy::restart::RestartLimits;

const BOOT: Duration = Duration::from_secs(10);
const DRAIN: Duration = Duration::from_secs(20);
const DEPART: Duration = Duration::from_secs(21);
const PRE_STOP: Duration = Duration::from_secs(30);
const BACKOFF: Duration = Duration::from_millis(100);

const CALLED: WorkerEvent = WorkerEvent::Ended { called: true, cause: String::new() };
const UNCALLED: WorkerEvent = WorkerEvent::Ended { called: false, cause: String::new() };

fn settings(processes: usize) -> Settings {
    let restart = RestartLimits {
        max_restarts: 3,
        window: Duration::from_secs(60),
        backoff: BACKOFF,
        backoff_max: Duration::from_secs(1),
    };
    Settings { processes, restart, boot: BOOT, drain: DRAIN, pre_stop: Duration::ZERO }
}

/// A policy at one moment, and the timers it has armed.
struct Harness {
    state: SupervisorState,
    now: Instant,
    armed: BTreeSet<Timer>,
}

impl Harness {
    fn new(settings: Settings) -> Self {
        let (state, actions) = SupervisorState::start(settings);
        let mut policy = Self { state, now: Instant::now(), armed: BTreeSet::new() };
        policy.follow(actions);
        policy
    }

    /// With these processes, all serving; worker n in slot n.
    fn serving(processes: usize) -> Self {
        let mut policy = Self::new(settings(processes));
        policy.template_ready(1);
        for worker in 0..WorkerId::try_from(processes).unwrap() {
            policy.boots(worker);
        }
        policy
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
            Action::Tell(_) | Action::Warn(_) | Action::Complain(_) | Action::LastWord(_) => false,
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

    /// It is born and gets ready; what follows from that.
    fn boots(&mut self, worker: WorkerId) -> Vec<Action> {
        self.worker(worker, WorkerEvent::Born);
        self.worker(worker, WorkerEvent::Ready)
    }

    fn template_ready(&mut self, generation: GenerationId) -> Vec<Action> {
        let settings = self.state.serving.settings;
        self.on(Event::TemplateReady { generation, settings })
    }

    fn template_ended(&mut self, generation: GenerationId) -> Vec<Action> {
        self.on(ended(generation))
    }

    fn asked(&mut self, request: OperatorRequest) -> Vec<Action> {
        self.on(Event::Asked(request))
    }

    fn due(&mut self, timer: Timer) -> Vec<Action> {
        self.on(Event::Due(timer))
    }

    fn phases(&self) -> Vec<SlotPhase> {
        self.state.serving.slots.iter().map(|slot| slot.phase).collect()
    }

    /// Who waits to leave, by slot.
    fn predecessors(&self) -> Vec<Option<WorkerId>> {
        let slots = self.state.serving.slots.iter();
        slots.map(|slot| slot.predecessor.map(|before| before.worker)).collect()
    }

    fn departing(&self) -> Vec<(WorkerId, DepartureStage)> {
        self.state.departing.iter().map(|(worker, departing)| (*worker, departing.stage)).collect()
    }

    /// One slot, brought to `phase` by the shortest way; its worker, if any, is number 0.
    fn in_phase(phase: SlotPhase) -> Self {
        let mut policy = Self::new(settings(1));
        if phase == SlotPhase::Empty {
            return policy;
        }
        policy.template_ready(1);
        let way: &[Event] = &match phase {
            SlotPhase::Empty | SlotPhase::Requested(_) => vec![],
            SlotPhase::BackingOff => vec![of(WorkerEvent::ForkRefused)],
            SlotPhase::Booting(_) => vec![of(WorkerEvent::Born)],
            SlotPhase::Ready(_) => vec![of(WorkerEvent::Born), of(WorkerEvent::Ready)],
            SlotPhase::TooSlow(_) => vec![of(WorkerEvent::Born), Event::Due(Timer::Boot(0))],
        };
        for event in way {
            policy.on(event.clone());
        }
        assert_eq!(policy.phases(), [phase], "the way there");
        policy
    }

    /// Worker 0 departs and has come to `stage`; worker 1 serves in its place, if there is a service.
    fn departing_at(stage: DepartureStage) -> Self {
        let mut policy = Self::serving(1);
        match stage {
            DepartureStage::Unborn => {
                policy = Self::new(settings(1));
                policy.template_ready(1);
                policy.asked(OperatorRequest::Stop);
            }
            DepartureStage::Leaving => {
                policy.worker(0, WorkerEvent::Leaving);
                policy.boots(1);
            }
            DepartureStage::Draining => drop(policy.asked(OperatorRequest::Stop)),
            DepartureStage::Killed => {
                policy.worker(0, WorkerEvent::Leaving);
                policy.boots(1);
                policy.due(Timer::Depart(0));
            }
        }
        assert_eq!(policy.departing(), [(0, stage)], "the way there");
        policy
    }
}

/// Of worker 0.
fn of(event: WorkerEvent) -> Event {
    Event::Worker(0, event)
}

fn failed(generation: GenerationId) -> Event {
    Event::TemplateFailed { generation, why: "why".into() }
}

fn ended(generation: GenerationId) -> Event {
    Event::TemplateEnded { generation, cause: "exit 1".into() }
}

fn refused(generation: GenerationId) -> Event {
    Event::TemplateRefused { generation, why: "why".into() }
}

fn fork(worker: WorkerId, slot: usize) -> [Action; 2] {
    let fork = Action::Fork { generation: 1, worker, slot, doors_shut: false };
    [fork, Action::Arm(Timer::Boot(worker), BOOT)]
}

fn kill_template(generation: GenerationId) -> Action {
    Action::KillTemplate { generation }
}

fn leave(worker: WorkerId) -> [Action; 2] {
    [Action::Leave(worker), Action::Arm(Timer::Depart(worker), DEPART)]
}

/// Everything that can be said of worker 0.
fn all() -> Vec<Event> {
    use WorkerEvent::{Born, ForkRefused, Leaving, OnlyStuckThreadsLeft, Ready, Retiring, Vanished, Wedged};
    let said = [
        ForkRefused,
        Born,
        Ready,
        Leaving,
        Wedged,
        Retiring,
        OnlyStuckThreadsLeft,
        Vanished,
        CALLED,
        UNCALLED,
    ];
    said.map(of).to_vec()
}
