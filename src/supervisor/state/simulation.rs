//! The brain in a world that does what it is told, late and in any order: what must hold after every step.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::tests::settings;
use super::*;

/// What the world knows of one worker process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Process {
    /// The template has been asked for it.
    Asked,
    Booting,
    Ready,
}

/// Everything outside the brain.
struct World {
    state: State,
    now: Instant,
    timers: BTreeSet<Timer>,
    processes: BTreeMap<WorkerId, (usize, Process)>,
    template_runs: bool,
    template_ready: bool,
    /// It was killed, or has said that it will end: whatever it said before, its end will come.
    template_doomed: bool,
    listening: bool,
    finished: Vec<i32>,
}

impl World {
    fn new(processes: usize, max_restarts: u32) -> Self {
        let (state, actions) = State::start(settings(processes, max_restarts));
        let mut world = Self {
            state,
            now: Instant::now(),
            timers: BTreeSet::new(),
            processes: BTreeMap::new(),
            template_runs: false,
            template_ready: false,
            template_doomed: false,
            listening: true,
            finished: Vec::new(),
        };
        world.perform(actions);
        world
    }

    fn happens(&mut self, event: Event) {
        self.now += Duration::from_millis(50);
        let actions = self.state.on(event, self.now);
        self.perform(actions);
        self.check();
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            assert!(self.finished.is_empty(), "nothing follows the end, found {action:?}");
            match action {
                Action::StartTemplate => {
                    assert!(self.listening && !self.template_runs, "one template at a time");
                    self.template_runs = true;
                    self.template_ready = false;
                    self.template_doomed = false;
                }
                Action::Fork { worker, slot } => {
                    assert!(self.listening && self.template_ready, "only a ready template can fork");
                    let taken = self.processes.values().any(|(other, _)| *other == slot);
                    assert!(!taken, "two processes in slot {slot}");
                    assert!(
                        self.processes.insert(worker, (slot, Process::Asked)).is_none(),
                        "a number twice"
                    );
                }
                Action::Arm(timer, _) => {
                    self.timers.insert(timer);
                }
                Action::Disarm(timer) => {
                    self.timers.remove(&timer);
                }
                Action::CloseListeners => self.listening = false,
                Action::Finish { code } => {
                    assert!(self.processes.is_empty() && !self.template_runs, "somebody is left behind");
                    self.finished.push(code);
                }
                Action::KillTemplate => {
                    assert!(self.template_runs, "no template to kill");
                    self.template_doomed = true;
                }
                Action::Drain(worker) => assert_eq!(self.processes[&worker].1, Process::Ready),
                Action::Kill(worker) => {
                    let (_, process) = self.processes[&worker];
                    assert_ne!(process, Process::Asked, "its pid is not known");
                }
                Action::Abandon(worker) => {
                    assert_eq!(
                        self.processes.remove(&worker).map(|(_, process)| process),
                        Some(Process::Asked)
                    );
                }
                Action::Tell(_) | Action::Warn(_) => {}
            }
        }
    }

    /// No slot is forgotten: each has a process, or something that will bring one.
    fn check(&self) {
        if !self.state.is_serving() {
            return;
        }
        let a_template_comes = self.template_runs || self.timers.contains(&Timer::TemplateRetry);
        assert!(a_template_comes, "no template, and none will come");
        for (index, slot) in self.state.slots.iter().enumerate() {
            let has_process = self.processes.values().any(|(filled, _)| *filled == index);
            let waits = self.timers.contains(&Timer::Refill(index));
            let waits = waits || !self.template_ready || self.template_doomed;
            assert!(slot.removed || has_process || waits, "slot {index} is forgotten");
        }
    }

    /// Lets something happen that could happen now; `choice` picks what.
    fn step(&mut self, choice: u32) {
        if !self.finished.is_empty() {
            return;
        }
        let mut possible: Vec<Event> = self.timers.iter().map(|timer| Event::Due(*timer)).collect();
        for (worker, (_, process)) in &self.processes {
            let events: &[WorkerEvent] = match process {
                Process::Asked => &[WorkerEvent::Born, WorkerEvent::Born, WorkerEvent::ForkRefused],
                Process::Booting => &[WorkerEvent::Ready, WorkerEvent::Ended { answered: false }],
                Process::Ready => &[
                    WorkerEvent::Ended { answered: true },
                    WorkerEvent::Ended { answered: false },
                    WorkerEvent::Leaving,
                ],
            };
            possible.extend(events.iter().map(|event| Event::Worker(*worker, *event)));
            if *process == Process::Asked && !self.template_runs {
                possible.push(Event::Worker(*worker, WorkerEvent::Vanished));
            }
        }
        match (self.template_runs, self.template_ready) {
            (true, false) => {
                possible.extend([Event::TemplateReady, Event::TemplateReady, Event::TemplateReady]);
                possible.extend([Event::TemplateFailed, Event::TemplateEnded]);
                // Until it was forked, the kernel may still refuse it.
                possible.push(Event::TemplateRefused);
            }
            (true, true) => possible.push(Event::TemplateEnded),
            (false, _) => {}
        }
        if choice.is_multiple_of(7) {
            possible.extend([Request::OneMore, Request::OneFewer].map(Event::Asked));
        }
        if choice.is_multiple_of(101) {
            possible.extend([Request::Stop, Request::StopOrEnd, Request::End].map(Event::Asked));
        }
        let count = u32::try_from(possible.len()).unwrap();
        if count > 0 {
            let event = possible.swap_remove((choice % count) as usize);
            self.apply(event);
        }
    }

    fn apply(&mut self, event: Event) {
        match &event {
            Event::Worker(worker, news) => match news {
                WorkerEvent::Born => self.set(*worker, Process::Booting),
                WorkerEvent::Ready => self.set(*worker, Process::Ready),
                WorkerEvent::Leaving => {}
                WorkerEvent::ForkRefused | WorkerEvent::Vanished | WorkerEvent::Ended { .. } => {
                    self.processes.remove(worker);
                }
            },
            Event::TemplateReady => self.template_ready = true,
            Event::TemplateEnded | Event::TemplateRefused => {
                self.template_runs = false;
                self.template_ready = false;
            }
            Event::Due(timer) => {
                self.timers.remove(timer);
            }
            Event::TemplateFailed => self.template_doomed = true,
            Event::Asked(_) => {}
        }
        self.happens(event);
    }

    fn set(&mut self, worker: WorkerId, process: Process) {
        if let Some(entry) = self.processes.get_mut(&worker) {
            entry.1 = process;
        }
    }

    /// Asks for the end and lets everything end.
    fn wind_up(&mut self) {
        if self.finished.is_empty() {
            self.apply(Event::Asked(Request::End));
        }
        while self.finished.is_empty() {
            let first = self.processes.iter().next().map(|(worker, (_, process))| (*worker, *process));
            match first {
                Some((worker, Process::Asked)) => {
                    self.apply(Event::Worker(worker, WorkerEvent::Vanished));
                }
                Some((worker, _)) => {
                    self.apply(Event::Worker(worker, WorkerEvent::Ended { answered: true }));
                }
                None => {
                    assert!(self.template_runs, "everything has ended and nobody says so");
                    self.apply(Event::TemplateEnded);
                }
            }
        }
        assert_eq!(self.finished.len(), 1);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn whatever_happens_no_slot_is_forgotten_and_the_end_comes_once(
        processes in 1_usize..6,
        max_restarts in prop_oneof![Just(0_u32), 1_u32..50],
        choices in prop::collection::vec(any::<u32>(), 0..400),
    ) {
        let mut world = World::new(processes, max_restarts);
        for choice in choices {
            world.step(choice);
        }
        world.wind_up();
    }
}
