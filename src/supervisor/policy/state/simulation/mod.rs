//! The policy against a model of the world that does what it is told, late, in any order, and fails at will.
//!
//! After every step the promises that matter are checked: see `promises`.

mod promises;

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use proptest::test_runner::TestRunner;

use super::generation::Slot;
use super::known::ServicePhase;
use super::{
    Action, Event, GenerationId, OperatorRequest, Settings, SupervisorState, Timer, WorkerEvent, WorkerId,
};
use crate::supervisor::policy::restart::RestartLimits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TemplateProcess {
    Booting,
    Ready,
    /// Said that it fails, or was killed: it can only end.
    Ending,
    /// It could not even be started; the state policy has not been told.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum WorldStage {
    /// The request waits in the template, or the fork goes on without it.
    Requested,
    Booting,
    Ready,
    Leaving,
    Draining,
    Killed,
}

#[derive(Debug, Clone, Copy)]
struct Process {
    generation: GenerationId,
    slot: usize,
    stage: WorldStage,
    doors_shut: bool,
    wedged: bool,
}

impl Process {
    fn is_open(&self) -> bool {
        self.stage == WorldStage::Ready && !self.doors_shut
    }
}

struct World {
    policy: SupervisorState,
    settings: Settings,
    now: Instant,
    timers: BTreeSet<Timer>,
    templates: BTreeMap<GenerationId, TemplateProcess>,
    processes: BTreeMap<WorkerId, Process>,
    serving: GenerationId,
    /// Workers that operators want; and those that the next generation is to have.
    wanted: usize,
    wanted_next: usize,
    /// A reload is under way; another was asked for.
    reloading: Option<GenerationId>,
    again: bool,
    switches: usize,
    /// The kernel refuses the next start of a template.
    refuses: bool,
    accepting: bool,
    /// A worker was ready at some time.
    was_ready: bool,
    /// The policy said that it gives up.
    failed: bool,
    finished: Option<i32>,
    history: Vec<Event>,
}

/// What is compared before and after an event.
struct Before {
    open: usize,
    slots: Vec<Slot>,
}

impl World {
    fn new(settings: Settings) -> Self {
        let (policy, actions) = SupervisorState::start(settings);
        let mut world = Self {
            policy,
            settings,
            now: Instant::now(),
            timers: BTreeSet::new(),
            templates: BTreeMap::new(),
            processes: BTreeMap::new(),
            serving: 1,
            wanted: settings.processes,
            wanted_next: 0,
            reloading: None,
            again: false,
            switches: 0,
            refuses: false,
            accepting: true,
            was_ready: false,
            failed: false,
            finished: None,
            history: Vec::new(),
        };
        world.perform(&actions);
        world
    }

    fn happens(&mut self, event: Event) {
        self.history.push(event.clone());
        let before = self.before();
        self.in_the_world(&event);
        let actions = self.policy.on(event.clone(), self.now);
        self.perform(&actions);
        self.compare(&before, &event, &actions);
        self.check();
    }

    fn before(&self) -> Before {
        Before { open: self.open(), slots: self.policy.serving.slots.clone() }
    }

    fn open(&self) -> usize {
        self.processes.values().filter(|process| process.is_open()).count()
    }

    /// What has changed outside by the time that the state policy is told.
    fn in_the_world(&mut self, event: &Event) {
        match event {
            Event::TemplateReady { generation, settings } => {
                if let Some(template @ TemplateProcess::Booting) = self.templates.get_mut(generation) {
                    *template = TemplateProcess::Ready;
                }
                if self.reloading == Some(*generation) {
                    self.wanted_next = settings.processes;
                }
            }
            Event::TemplateFailed { generation, .. } => {
                self.templates.insert(*generation, TemplateProcess::Ending);
            }
            Event::TemplateEnded { generation, .. } | Event::TemplateRefused { generation, .. } => {
                self.templates.remove(generation);
            }
            Event::Worker(worker, event) => self.of_worker(*worker, event),
            Event::Due(timer) => assert!(self.timers.remove(timer), "{timer:?} fired unarmed"),
            Event::Asked(OperatorRequest::OneMore) if self.accepting => self.wanted += 1,
            Event::Asked(OperatorRequest::OneFewer) if self.accepting => self.wanted = 1.max(self.wanted - 1),
            Event::Asked(OperatorRequest::Reload) if self.policy.service == ServicePhase::Running => {
                self.again = self.reloading.is_some();
            }
            Event::Asked(_) => {}
        }
    }

    fn of_worker(&mut self, worker: WorkerId, event: &WorkerEvent) {
        let move_on = |process: &mut Process, from, to| {
            if process.stage == from {
                process.stage = to;
            }
        };
        let Some(process) = self.processes.get_mut(&worker) else { return };
        match event {
            WorkerEvent::ForkRefused | WorkerEvent::Vanished | WorkerEvent::Ended { .. } => {
                self.processes.remove(&worker);
            }
            WorkerEvent::Born => move_on(process, WorldStage::Requested, WorldStage::Booting),
            WorkerEvent::Ready => {
                move_on(process, WorldStage::Booting, WorldStage::Ready);
                self.was_ready |= process.stage == WorldStage::Ready;
            }
            WorkerEvent::Wedged => process.wedged = true,
            WorkerEvent::Leaving | WorkerEvent::Retiring | WorkerEvent::OnlyStuckThreadsLeft => {}
        }
    }

    fn process(&mut self, worker: WorkerId) -> &mut Process {
        self.processes.get_mut(&worker).expect("a process")
    }

    fn perform(&mut self, actions: &[Action]) {
        let mut gives_up = false;
        for action in actions {
            let is_text = matches!(
                action,
                Action::Tell(_) | Action::Warn(_) | Action::Complain(_) | Action::LastWord(_)
            );
            assert!(self.finished.is_none() || is_text, "{action:?} after the end");
            match *action {
                Action::StartTemplate { generation } => {
                    if generation != self.serving {
                        assert_eq!(self.reloading, None, "two reloads");
                        self.reloading = Some(generation);
                    }
                    let refused = std::mem::take(&mut self.refuses);
                    let started = if refused { TemplateProcess::Refused } else { TemplateProcess::Booting };
                    assert_eq!(self.templates.insert(generation, started), None, "two templates");
                }
                Action::KillTemplate { generation } => {
                    let template = self.templates.get_mut(&generation).expect("a template to kill");
                    if *template != TemplateProcess::Refused {
                        *template = TemplateProcess::Ending;
                    }
                }
                Action::Fork { generation, worker, slot, doors_shut } => {
                    let template = self.templates.get(&generation);
                    assert_eq!(template, Some(&TemplateProcess::Ready), "forked without a template");
                    assert_eq!(doors_shut, generation != self.serving, "the doors");
                    assert!(self.accepting, "forked while everything ends");
                    let stage = WorldStage::Requested;
                    let process = Process { generation, slot, stage, doors_shut, wedged: false };
                    assert!(self.processes.insert(worker, process).is_none(), "number reused");
                }
                // Whether they are asked is nobody's business here.
                Action::MarkNotReady(_) => {}
                Action::Open(worker) => {
                    let serving = self.serving;
                    let process = self.process(worker);
                    assert!(process.doors_shut && process.stage == WorldStage::Ready, "opened");
                    assert_eq!(process.generation, serving, "opened before the switch");
                    process.doors_shut = false;
                }
                Action::Leave(worker) => {
                    let process = self.process(worker);
                    assert!(process.is_open(), "told to leave: {process:?}");
                    process.stage = WorldStage::Leaving;
                }
                Action::Drain(worker) => {
                    let process = self.process(worker);
                    assert!(
                        matches!(process.stage, WorldStage::Ready | WorldStage::Leaving),
                        "told to drain"
                    );
                    process.stage = WorldStage::Draining;
                }
                Action::Kill(worker) => {
                    let process = self.process(worker);
                    assert_ne!(process.stage, WorldStage::Requested, "its pid is not known");
                    process.stage = WorldStage::Killed;
                }
                Action::Abandon(worker) => {
                    let abandoned = self.processes.remove(&worker).map(|process| process.stage);
                    assert_eq!(abandoned, Some(WorldStage::Requested), "abandoned");
                }
                Action::Switch { generation } => {
                    assert_eq!(self.reloading.take(), Some(generation), "switched");
                    self.switches += 1;
                    self.serving = generation;
                    self.wanted = self.wanted_next;
                }
                Action::ReloadFailed { generation, .. } => {
                    assert_eq!(self.reloading.take(), Some(generation), "failed");
                }
                Action::CloseListeners => {
                    assert!(self.accepting, "closed twice");
                    self.accepting = false;
                }
                Action::TurnAway => assert!(self.accepting && !self.was_ready, "turned away"),
                Action::Arm(timer, _) => drop(self.timers.insert(timer)),
                Action::Disarm(timer) => drop(self.timers.remove(&timer)),
                Action::Tell(_) | Action::Complain(_) => {}
                Action::Warn(ref text) => gives_up |= text.starts_with("giving up"),
                Action::LastWord(_) => self.failed = true,
                Action::Finish { code } => self.finished = Some(code),
            }
        }
        assert!(self.failed || !gives_up, "it gives up and won't say why");
    }

    /// All that can happen next without anybody asking. What only `chance` brings can also never happen.
    fn possible(&self, chance: bool) -> Vec<Event> {
        let mut events: Vec<Event> = self.timers.iter().copied().map(Event::Due).collect();
        for (generation, template) in &self.templates {
            let generation = *generation;
            let processes = 1 + self.history.len() % 4;
            let ready =
                Event::TemplateReady { generation, settings: Settings { processes, ..self.settings } };
            let (why, cause) = (String::new(), String::new());
            let ended = Event::TemplateEnded { generation, cause };
            match template {
                TemplateProcess::Refused => events.push(Event::TemplateRefused { generation, why }),
                TemplateProcess::Ending => {
                    events.push(ended);
                    if chance {
                        events.push(ready); // it crossed with the kill
                    }
                }
                TemplateProcess::Booting => {
                    events.push(ready);
                    if chance {
                        events.extend([Event::TemplateFailed { generation, why }, ended]);
                    }
                }
                TemplateProcess::Ready if chance => events.push(ended),
                TemplateProcess::Ready => {}
            }
        }
        for (worker, process) in &self.processes {
            let template = self.templates.get(&process.generation);
            let (due, unlucky) = of_process(process.stage, template == Some(&TemplateProcess::Ready));
            let unlucky = unlucky.into_iter().filter(|_| chance);
            events.extend(due.into_iter().chain(unlucky).map(|event| Event::Worker(*worker, event)));
        }
        events
    }

    fn step(&mut self, random: u32) {
        self.now += Duration::from_millis(u64::from(random >> 24));
        self.refuses = (random >> 16).is_multiple_of(8);
        let event = match (random >> 6) & 0x3fff {
            0..160 => Event::Asked(OperatorRequest::OneMore),
            160..320 => Event::Asked(OperatorRequest::OneFewer),
            320..720 => Event::Asked(OperatorRequest::Reload),
            720 => Event::Asked(OperatorRequest::Stop),
            721 => Event::Asked(OperatorRequest::StopOrEnd),
            kind => {
                let chance = kind % 16 == 0;
                let mut possible = self.possible(chance);
                if !chance && possible.iter().any(|event| !is_timeout(event)) {
                    possible.retain(|event| !is_timeout(event));
                }
                if possible.is_empty() {
                    possible = self.possible(true);
                }
                let Some(event) = possible.get(random as usize % possible.len().max(1)) else { return };
                event.clone()
            }
        };
        self.happens(event);
    }

    /// Stops and lets everything end that can, in an order that `random` picks.
    fn finish(&mut self, how: OperatorRequest, mut random: u32) {
        self.happens(Event::Asked(how));
        for _ in 0..1_000 {
            let possible = self.possible(false);
            random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let Some(event) = possible.get((random >> 8) as usize % possible.len().max(1)) else { break };
            if self.finished.is_some() {
                break;
            }
            self.happens(event.clone());
        }
        let code = self.finished.expect("everything ended, and still no end of the service");
        assert_eq!(code, i32::from(self.failed));
        for request in [
            OperatorRequest::Stop,
            OperatorRequest::End,
            OperatorRequest::OneMore,
            OperatorRequest::StopOrEnd,
            OperatorRequest::Reload,
        ] {
            self.happens(Event::Asked(request));
        }
    }
}

/// Something took too long.
fn is_timeout(event: &Event) -> bool {
    let Event::Due(timer) = event else { return false };
    match timer {
        Timer::TemplateBoot(_) | Timer::Boot(_) | Timer::Depart(_) | Timer::DrainAll | Timer::NeverReady => {
            true
        }
        Timer::TemplateRetry | Timer::Refill(_) | Timer::Probation | Timer::PreStop => false,
    }
}

/// What a process does by itself, and what it may do besides.
fn of_process(stage: WorldStage, template_forks: bool) -> (Vec<WorkerEvent>, Vec<WorkerEvent>) {
    use WorkerEvent::{Born, ForkRefused, Leaving, OnlyStuckThreadsLeft, Ready, Retiring, Vanished, Wedged};
    let ended = |called| WorkerEvent::Ended { called, cause: String::new() };
    let ends = || vec![ended(true), ended(false)];
    match stage {
        WorldStage::Requested if template_forks => (vec![Born], vec![ForkRefused, Vanished]),
        WorldStage::Requested => (vec![Vanished], vec![Born, ForkRefused]),
        WorldStage::Booting => (vec![Ready], vec![ended(false)]),
        WorldStage::Ready => {
            (vec![], vec![ended(true), ended(false), Leaving, Wedged, Retiring, OnlyStuckThreadsLeft])
        }
        WorldStage::Leaving | WorldStage::Draining => {
            (ends(), vec![Leaving, Wedged, Retiring, OnlyStuckThreadsLeft])
        }
        WorldStage::Killed => (ends(), vec![Ready, Leaving, Wedged, OnlyStuckThreadsLeft]),
    }
}

/// The service at its start, what happens to it step by step, and how it is told to end.
fn any_life() -> impl Strategy<Value = (Settings, Vec<u32>, OperatorRequest, u32)> {
    let restart = RestartLimits {
        max_restarts: 0,
        window: Duration::from_secs(10),
        backoff: Duration::from_millis(1),
        backoff_max: Duration::from_secs(1),
    };
    let (boot, drain) = (Duration::from_secs(10), Duration::from_secs(20));
    let max_restarts = prop_oneof![3 => Just(0_u32), 1 => Just(100)];
    let settings =
        (1..5_usize, max_restarts, 0..2_u64).prop_map(move |(processes, max_restarts, pre_stop)| {
            let restart = RestartLimits { max_restarts, ..restart };
            Settings { processes, restart, boot, drain, pre_stop: Duration::from_secs(pre_stop) }
        });
    let steps = prop::collection::vec(any::<u32>(), 2_000..2_500);
    let stop = prop_oneof![
        Just(OperatorRequest::Stop),
        Just(OperatorRequest::StopOrEnd),
        Just(OperatorRequest::End)
    ];
    (settings, steps, stop, any::<u32>())
}

#[test]
fn whatever_happens_in_whatever_order_no_promise_is_broken() {
    let config = ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() };
    let (steps_in_all, switches) = (Cell::new(0), Cell::new(0));
    let run = TestRunner::new(config).run(&any_life(), |(settings, steps, stop, order)| {
        let mut world = World::new(settings);
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for random in &steps {
                if world.finished.is_some() {
                    break;
                }
                world.step(*random);
            }
            world.finish(stop, order);
        }));
        let last = world.history.len().saturating_sub(12);
        prop_assert!(run.is_ok(), "last events: {:?}", &world.history[last..]);
        steps_in_all.set(steps_in_all.get() + world.history.len());
        switches.set(switches.get() + world.switches);
        Ok(())
    });
    run.unwrap_or_else(|failure| panic!("{failure}"));
    assert!(steps_in_all.get() > 1_000_000, "{steps_in_all:?} steps");
    assert!(switches.get() > 1_000, "{switches:?} generations came to serve");
}
