//! The brain against a model of the world that does what it is told, late, in any order, and fails at will.
//!
//! After every step the promises that matter are checked: one process a slot, no fork without a ready template, no
//! timer without a cause, no slot forgotten, one end and nothing after it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::service::Service;
use super::{Action, Event, Request, Settings, State, Timer, WorkerEvent, WorkerId};
use crate::supervisor::restart::Limits;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TemplateProcess {
    Booting,
    Ready,
    /// Said that it fails, or was killed: it can only end.
    Ending,
    /// It could not even be started; the brain has not been told.
    Refused,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// The request waits in the template, or the fork goes on without it.
    Requested,
    Booting,
    Ready,
    Draining,
    Killed,
}

struct World {
    brain: State,
    now: Instant,
    timers: BTreeSet<Timer>,
    template: Option<TemplateProcess>,
    processes: BTreeMap<WorkerId, (usize, Stage)>,
    /// Workers that operators want.
    wanted: usize,
    /// The kernel refuses the next start of a template.
    refuses: bool,
    accepting: bool,
    /// The brain said that it gives up.
    failed: bool,
    finished: Option<i32>,
    history: Vec<Event>,
}

impl World {
    fn new(settings: Settings) -> Self {
        let (brain, actions) = State::start(settings);
        let mut world = Self {
            brain,
            now: Instant::now(),
            timers: BTreeSet::new(),
            template: None,
            processes: BTreeMap::new(),
            wanted: settings.processes,
            refuses: false,
            accepting: true,
            failed: false,
            finished: None,
            history: Vec::new(),
        };
        world.perform(actions);
        world
    }

    fn happens(&mut self, event: Event) {
        self.history.push(event.clone());
        self.in_the_world(&event);
        let actions = self.brain.on(event, self.now);
        self.perform(actions);
        self.check();
    }

    /// What has changed outside by the time that the brain is told.
    fn in_the_world(&mut self, event: &Event) {
        match *event {
            Event::TemplateReady if self.template == Some(TemplateProcess::Booting) => {
                self.template = Some(TemplateProcess::Ready);
            }
            Event::TemplateFailed => self.template = Some(TemplateProcess::Ending),
            Event::TemplateEnded | Event::TemplateRefused => self.template = None,
            Event::Worker(worker, event) => self.of_worker(worker, event),
            Event::Due(timer) => assert!(self.timers.remove(&timer), "{timer:?} fired unarmed"),
            Event::Asked(Request::OneMore) if self.accepting => self.wanted += 1,
            Event::Asked(Request::OneFewer) if self.accepting => self.wanted = 1.max(self.wanted - 1),
            Event::TemplateReady | Event::Asked(_) => {}
        }
    }

    fn of_worker(&mut self, worker: WorkerId, event: WorkerEvent) {
        match event {
            WorkerEvent::ForkRefused | WorkerEvent::Vanished | WorkerEvent::Ended { .. } => {
                self.processes.remove(&worker);
            }
            WorkerEvent::Born => self.move_on(worker, Stage::Requested, Stage::Booting),
            WorkerEvent::Ready => self.move_on(worker, Stage::Booting, Stage::Ready),
            WorkerEvent::Leaving => self.move_on(worker, Stage::Ready, Stage::Draining),
        }
    }

    fn move_on(&mut self, worker: WorkerId, from: Stage, to: Stage) {
        if let Some((_, stage)) = self.processes.get_mut(&worker)
            && *stage == from
        {
            *stage = to;
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            let is_text = matches!(action, Action::Tell(_) | Action::Warn(_));
            assert!(self.finished.is_none() || is_text, "{action:?} after the end");
            match action {
                Action::StartTemplate => {
                    assert_eq!(self.template, None, "two templates");
                    let refused = std::mem::take(&mut self.refuses);
                    self.template =
                        Some(if refused { TemplateProcess::Refused } else { TemplateProcess::Booting });
                }
                Action::KillTemplate => match self.template {
                    Some(TemplateProcess::Refused) => {}
                    Some(_) => self.template = Some(TemplateProcess::Ending),
                    None => panic!("no template to kill"),
                },
                Action::Fork { worker, slot } => {
                    assert_eq!(self.template, Some(TemplateProcess::Ready), "forked without a template");
                    let taken = self.processes.values().any(|(other, _)| *other == slot);
                    assert!(!taken, "two processes in slot {slot}");
                    assert!(self.accepting, "forked while everything ends");
                    assert!(
                        self.processes.insert(worker, (slot, Stage::Requested)).is_none(),
                        "number reused"
                    );
                }
                Action::Drain(worker) => {
                    let (_, stage) = self.processes.get_mut(&worker).expect("a process to drain");
                    assert_eq!(*stage, Stage::Ready, "told to drain");
                    *stage = Stage::Draining;
                }
                Action::Kill(worker) => {
                    let (_, stage) = self.processes.get_mut(&worker).expect("a process to kill");
                    assert_ne!(*stage, Stage::Requested, "its pid is not known");
                    *stage = Stage::Killed;
                }
                Action::Abandon(worker) => {
                    let abandoned = self.processes.remove(&worker).map(|(_, stage)| stage);
                    assert_eq!(abandoned, Some(Stage::Requested), "abandoned");
                }
                Action::CloseListeners => {
                    assert!(self.accepting, "closed twice");
                    self.accepting = false;
                }
                Action::Arm(timer, _) => drop(self.timers.insert(timer)),
                Action::Disarm(timer) => drop(self.timers.remove(&timer)),
                Action::Tell(_) => {}
                Action::Warn(text) => {
                    self.failed |= text.starts_with("giving up") || text == "the service can't start";
                }
                Action::Finish { code } => self.finished = Some(code),
            }
        }
    }

    fn check(&self) {
        assert!(self.processes.len() <= self.brain.slots.len(), "more processes than slots");
        for timer in &self.timers {
            assert!(self.has_a_cause(*timer), "{timer:?} is armed for nothing");
        }
        let is_wanted = |slot: &usize| self.brain.is_serving() && !self.brain.slots[*slot].removed;
        for (worker, (slot, stage)) in &self.processes {
            let serves = matches!(stage, Stage::Booting | Stage::Ready);
            assert!(!serves || is_wanted(slot), "worker {worker} was not ended");
            assert!(
                *stage != Stage::Requested || self.template.is_some(),
                "worker {worker} is waited for in vain"
            );
        }
        if self.brain.is_serving() {
            assert_eq!(self.brain.wanted_slots(), self.wanted);
            for (index, slot) in self.brain.slots.iter().enumerate() {
                assert!(slot.removed || self.is_cared_for(index), "slot {index} is forgotten");
            }
        }
        if self.finished.is_some() {
            assert!(self.processes.is_empty() && self.template.is_none(), "ended with somebody alive");
        }
    }

    fn has_a_cause(&self, timer: Timer) -> bool {
        let stage_of = |worker| self.processes.get(&worker).map(|(_, stage)| *stage);
        match timer {
            Timer::TemplateBoot => {
                matches!(self.template, Some(TemplateProcess::Booting | TemplateProcess::Refused))
            }
            Timer::TemplateRetry => self.brain.is_serving() && self.template.is_none(),
            Timer::Boot(worker) => matches!(stage_of(worker), Some(Stage::Requested | Stage::Booting)),
            Timer::Refill(index) => {
                self.brain.is_serving() && self.processes.values().all(|(slot, _)| *slot != index)
            }
            Timer::Drain(worker) => stage_of(worker) == Some(Stage::Draining),
            Timer::PreStop => self.brain.service == Service::PreStop,
            Timer::DrainAll => matches!(self.brain.service, Service::Draining { .. }),
        }
    }

    fn is_cared_for(&self, index: usize) -> bool {
        let has_process = self.processes.values().any(|(slot, _)| *slot == index);
        let waits_for_template = match self.template {
            None => self.timers.contains(&Timer::TemplateRetry),
            Some(TemplateProcess::Booting) => self.timers.contains(&Timer::TemplateBoot),
            // Its end is news that will come.
            Some(TemplateProcess::Ending | TemplateProcess::Refused) => true,
            Some(TemplateProcess::Ready) => false,
        };
        has_process || waits_for_template || self.timers.contains(&Timer::Refill(index))
    }

    /// All that can happen next without anybody asking. What only `chance` brings can also never happen.
    fn possible(&self, chance: bool) -> Vec<Event> {
        let mut events: Vec<Event> = self.timers.iter().copied().map(Event::Due).collect();
        match self.template {
            None => {}
            Some(TemplateProcess::Refused) => events.push(Event::TemplateRefused),
            Some(TemplateProcess::Ending) => {
                events.push(Event::TemplateEnded);
                if chance {
                    events.push(Event::TemplateReady); // it crossed with the kill
                }
            }
            Some(TemplateProcess::Booting) => {
                events.push(Event::TemplateReady);
                if chance {
                    events.extend([Event::TemplateFailed, Event::TemplateEnded]);
                }
            }
            Some(TemplateProcess::Ready) if chance => events.push(Event::TemplateEnded),
            Some(TemplateProcess::Ready) => {}
        }
        for (worker, (_, stage)) in &self.processes {
            let ended = [WorkerEvent::Ended { answered: true }, WorkerEvent::Ended { answered: false }];
            let (due, unlucky): (&[_], &[_]) = match stage {
                Stage::Requested if self.template == Some(TemplateProcess::Ready) => {
                    (&[WorkerEvent::Born], &[WorkerEvent::ForkRefused, WorkerEvent::Vanished])
                }
                Stage::Requested => {
                    (&[WorkerEvent::Vanished], &[WorkerEvent::Born, WorkerEvent::ForkRefused])
                }
                Stage::Booting => (&[WorkerEvent::Ready], &ended[1..]),
                Stage::Ready => (&[], &[ended[0], ended[1], WorkerEvent::Leaving]),
                Stage::Draining => (&ended, &[WorkerEvent::Leaving]),
                Stage::Killed => (&ended, &[WorkerEvent::Ready, WorkerEvent::Leaving]),
            };
            let unlucky = if chance { unlucky } else { &[] };
            events.extend(due.iter().chain(unlucky).map(|event| Event::Worker(*worker, *event)));
        }
        events
    }

    fn step(&mut self, random: u32) {
        self.now += Duration::from_millis(u64::from(random >> 24));
        self.refuses = (random >> 16).is_multiple_of(8);
        let event = match (random >> 6) & 0x3ff {
            0..12 => Event::Asked(Request::OneMore),
            12..24 => Event::Asked(Request::OneFewer),
            24 => Event::Asked(Request::Stop),
            25 => Event::Asked(Request::StopOrEnd),
            26 => Event::Asked(Request::End),
            kind => {
                let possible = self.possible(kind % 4 == 0);
                let Some(event) = possible.get(random as usize % possible.len().max(1)) else { return };
                event.clone()
            }
        };
        self.happens(event);
    }

    /// Stops and lets everything end that can, in an order that `random` picks.
    fn finish(&mut self, how: Request, mut random: u32) {
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
        for request in [Request::Stop, Request::End, Request::OneMore, Request::StopOrEnd] {
            self.happens(Event::Asked(request));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_in_whatever_order_no_promise_is_broken(
        processes in 1..5_usize,
        max_restarts in prop_oneof![Just(0_u32), Just(4), Just(100)],
        pre_stop in prop_oneof![Just(0_u64), Just(1)],
        steps in prop::collection::vec(any::<u32>(), 0..1_500),
        order in any::<u32>(),
        stop in prop_oneof![Just(Request::Stop), Just(Request::StopOrEnd), Just(Request::End)],
    ) {
        let restart = Limits {
            max_restarts,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(1),
            backoff_max: Duration::from_secs(1),
        };
        let (boot, drain) = (Duration::from_secs(10), Duration::from_secs(20));
        let pre_stop = Duration::from_secs(pre_stop);
        let mut world = World::new(Settings { processes, restart, boot, drain, pre_stop });
        let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            for random in &steps {
                if world.finished.is_some() {
                    break;
                }
                world.step(*random);
            }
            world.finish(stop, order);
        }));
        prop_assert!(run.is_ok(), "last events: {:?}", &world.history[world.history.len().saturating_sub(12)..]);
    }
}
