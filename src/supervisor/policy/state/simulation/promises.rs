//! What must hold whatever happens: after each event, and from before it to after it.

use std::collections::BTreeSet;

use super::super::generation::Slot;
use super::super::known::ServicePhase;
use super::super::{Action, Event, Timer, WorkerEvent, WorkerId};
use super::{Before, Process, TemplateProcess, World, WorldStage};

impl World {
    /// What one event may change.
    pub(super) fn compare(&mut self, before: &Before, event: &Event, actions: &[Action]) {
        let over = |action: &Action| matches!(action, Action::Switch { .. } | Action::ReloadFailed { .. });
        if actions.iter().any(over) {
            let again = std::mem::take(&mut self.again) && self.policy.service == ServicePhase::Running;
            assert_eq!(self.reloading.is_some(), again, "reloads fold into one more");
        }
        if !self.policy.is_serving() {
            return;
        }
        let worker_ended = matches!(event, Event::Worker(_, WorkerEvent::Ended { .. }));
        let least = before.open.saturating_sub(usize::from(worker_ended)).min(self.wanted);
        assert!(self.open() >= least, "fewer workers serve than could: {} of {}", self.open(), before.open);
        let failed = actions.iter().find_map(|action| match action {
            Action::ReloadFailed { generation, .. } => Some(*generation),
            _ => None,
        });
        if let Some(failed) = failed {
            assert_eq!(self.policy.serving.slots, before.slots, "touched by a failed reload");
            let alive =
                |process: &&Process| process.generation == failed && process.stage != WorldStage::Killed;
            let unborn = |process: &Process| process.stage == WorldStage::Requested;
            assert!(self.processes.values().filter(alive).all(unborn), "a worker of a failed reload lives");
            assert!(!matches!(
                self.templates.get(&failed),
                Some(TemplateProcess::Booting | TemplateProcess::Ready)
            ));
        }
    }

    /// What must hold at any time.
    pub(super) fn check(&self) {
        for timer in &self.timers {
            assert!(self.has_a_cause(*timer), "{timer:?} is armed for nothing");
        }
        let mut open = BTreeSet::new();
        for (worker, process) in &self.processes {
            assert!(self.policy.is_known(*worker), "worker {worker} is forgotten: {process:?}");
            let once = !process.is_open() || open.insert((process.generation, process.slot));
            assert!(once, "two open workers in slot {} of {}", process.slot, process.generation);
            assert!(!process.is_open() || process.generation == self.serving, "open before the switch");
            let waits = process.stage == WorldStage::Requested;
            assert!(!waits || self.templates.contains_key(&process.generation), "{worker} is waited for");
        }
        let policy = &self.policy;
        let retiring = policy.serving.slots.iter().filter_map(|slot| slot.predecessor);
        let retiring = retiring.map(|before| before.marks).filter(|marks| marks.retiring).count()
            + policy.departing.values().filter(|departing| departing.marks.retiring).count();
        assert!(retiring <= 1, "{retiring} retire at once");
        if policy.is_serving() {
            assert_eq!(policy.serving.slots.len(), self.wanted);
            assert_eq!(policy.serving.number, self.serving);
            let wedged = self.processes.values().filter(|process| {
                let alive = matches!(process.stage, WorldStage::Ready | WorldStage::Leaving);
                process.wedged && alive && Some(process.generation) != self.reloading
            });
            assert!(wedged.count() <= self.wanted, "too many are wedged");
            for index in 0..policy.serving.slots.len() {
                assert!(self.is_cared_for(index), "slot {index} is forgotten");
            }
            let slots = &policy.serving.slots;
            let all_wait = slots.iter().all(Slot::is_deserted);
            assert!(!all_wait || !slots.iter().any(Slot::is_slowed_down), "all slots slow down at once");
            assert_eq!(self.timers.contains(&Timer::NeverReady), !self.was_ready, "the time to start");
        } else {
            assert_eq!(self.reloading, None);
            assert_eq!(self.open(), 0, "{:?}", policy.service);
        }
        if self.finished.is_some() {
            assert!(self.processes.is_empty() && self.templates.is_empty(), "ended with somebody alive");
        }
    }

    fn has_a_cause(&self, timer: Timer) -> bool {
        let stage_of = |worker| self.processes.get(&worker).map(|process: &Process| process.stage);
        match timer {
            Timer::TemplateBoot(generation) => matches!(
                self.templates.get(&generation),
                Some(TemplateProcess::Booting | TemplateProcess::Refused)
            ),
            Timer::TemplateRetry => self.policy.is_serving() && !self.templates.contains_key(&self.serving),
            Timer::Boot(worker) => {
                matches!(stage_of(worker), Some(WorldStage::Requested | WorldStage::Booting))
            }
            Timer::Refill(index) => {
                let boots = |(worker, process): (&WorkerId, &Process)| {
                    let here = (process.generation, process.slot) == (self.serving, index);
                    let boots = matches!(process.stage, WorldStage::Requested | WorldStage::Booting);
                    here && boots && !self.policy.departing.contains_key(worker)
                };
                self.policy.is_serving() && !self.processes.iter().any(boots)
            }
            Timer::Probation => self.reloading.is_some_and(|generation| {
                let of_it = |process: &&Process| process.generation == generation;
                self.processes.values().filter(of_it).all(|process| process.stage == WorldStage::Ready)
            }),
            Timer::Depart(worker) => stage_of(worker) == Some(WorldStage::Leaving),
            Timer::NeverReady => !self.was_ready && self.accepting,
            Timer::PreStop => self.policy.service == ServicePhase::PreStop,
            Timer::DrainAll => matches!(self.policy.service, ServicePhase::Draining { .. }),
        }
    }

    fn is_cared_for(&self, index: usize) -> bool {
        let worker = self.policy.serving.slots[index].phase.worker();
        let waits_for_template = match self.templates.get(&self.serving) {
            None => self.timers.contains(&Timer::TemplateRetry),
            Some(TemplateProcess::Booting) => self.timers.contains(&Timer::TemplateBoot(self.serving)),
            // Its end will be reported.
            Some(TemplateProcess::Ending | TemplateProcess::Refused) => true,
            Some(TemplateProcess::Ready) => false,
        };
        worker.is_some_and(|worker| self.processes.contains_key(&worker))
            || waits_for_template
            || self.timers.contains(&Timer::Refill(index))
    }
}
