//! Succession: how a worker leaves while another takes its place, and what follows for workers that have no slot any more.
//!
//! A worker that is wedged, or asks to be replaced, goes on as its slot's *predecessor* until the next process of the slot is ready, so that the
//! service never has fewer workers. Then it *departs*: the supervisor tells it to leave, and kills it if that takes too long.

use std::time::Duration;

use super::event::{Action, Timer, WorkerEvent, WorkerId};
use super::generation::{Marks, Predecessor, Slot, SlotPhase};
use super::known::{Departing, DepartureStage, SupervisorState};

/// What a worker gets beyond the time to drain, to say that it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// How a worker that serves is ended when its slot goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parting {
    Leave,
    Drain,
    Kill,
}

/// Events.
impl SupervisorState {
    pub(super) fn event_of_predecessor(
        &mut self,
        index: usize,
        event: WorkerEvent,
        actions: &mut Vec<Action>,
    ) {
        let order = self.next_wedged();
        let Some(slot) = self.serving.slots.get_mut(index) else {
            return;
        };
        match event {
            // Whoever was to follow it is the slot's worker already, or waits for its time, which has come now: a worker that
            // was ready is replaced at once.
            WorkerEvent::Ended { .. } => {
                slot.predecessor = None;
                self.refill(index, actions);
            }
            WorkerEvent::Wedged => {
                if let Some(before) = &mut slot.predecessor {
                    before.marks.wedged.get_or_insert(order);
                }
            }
            // It will be told to leave as it is.
            WorkerEvent::Leaving
            | WorkerEvent::Retiring
            | WorkerEvent::OnlyStuckThreadsLeft
            // Word that comes twice, or of one whose pid is known.
            | WorkerEvent::Born
            | WorkerEvent::Ready
            | WorkerEvent::ForkRefused
            | WorkerEvent::Vanished => {}
        }
    }

    pub(super) fn event_of_departing(
        &mut self,
        worker: WorkerId,
        stage: DepartureStage,
        event: WorkerEvent,
        actions: &mut Vec<Action>,
    ) {
        match (stage, event) {
            (DepartureStage::Unborn, WorkerEvent::Born) => self.kill_departing(worker, actions),
            (DepartureStage::Leaving, WorkerEvent::OnlyStuckThreadsLeft) => self.kill_departing(worker, actions),
            (DepartureStage::Leaving, WorkerEvent::Wedged) => {
                let order = self.next_wedged();
                if let Some(departing) = self.departing.get_mut(&worker) {
                    departing.marks.wedged.get_or_insert(order);
                }
            }
            (DepartureStage::Unborn, WorkerEvent::ForkRefused | WorkerEvent::Vanished)
            | (
                DepartureStage::Unborn | DepartureStage::Leaving | DepartureStage::Draining | DepartureStage::Killed,
                WorkerEvent::Ended { .. },
            ) => {
                self.departing.remove(&worker);
                if stage == DepartureStage::Leaving {
                    actions.push(Action::Disarm(Timer::Depart(worker)));
                }
            }
            // It ends already; when all drain, the time of all is what counts.
            (DepartureStage::Leaving, WorkerEvent::Leaving | WorkerEvent::Retiring)
            | (
                DepartureStage::Draining | DepartureStage::Killed,
                WorkerEvent::Leaving
                | WorkerEvent::Retiring
                | WorkerEvent::Wedged
                | WorkerEvent::OnlyStuckThreadsLeft,
            )
            // Nothing before its first word, and that twice is a word too many.
            | (
                DepartureStage::Unborn,
                WorkerEvent::Ready
                | WorkerEvent::Leaving
                | WorkerEvent::Retiring
                | WorkerEvent::Wedged
                | WorkerEvent::OnlyStuckThreadsLeft,
            )
            | (
                DepartureStage::Leaving | DepartureStage::Draining | DepartureStage::Killed,
                WorkerEvent::Born
                | WorkerEvent::Ready
                | WorkerEvent::ForkRefused
                | WorkerEvent::Vanished,
            ) => {}
        }
    }

    pub(super) fn departure_timed_out(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if self.departing.get(&worker).is_some_and(|departing| departing.stage == DepartureStage::Leaving) {
            self.kill_departing(worker, actions);
        }
    }
}

/// Steps.
impl SupervisorState {
    pub(super) fn mark(&mut self, index: usize, mark: impl FnOnce(&mut Marks, u64)) {
        let order = self.next_wedged();
        if let Some(slot) = self.serving.slots.get_mut(index) {
            mark(&mut slot.marks, order);
        }
    }

    /// Has everybody who is marked replaced, as far as that may be now.
    pub(super) fn arrange_successions(&mut self, actions: &mut Vec<Action>) {
        self.bound_the_wedged(actions);
        let mut one_retires = self.one_retires();
        for index in 0..self.serving.slots.len() {
            let Some(slot) = self.serving.slots.get_mut(index) else { continue };
            let SlotPhase::Ready(worker) = slot.phase else { continue };
            let mut marks = slot.marks;
            let must = marks.signalled || marks.wedged.is_some();
            if must {
                marks.retiring = false;
            } else if !marks.retiring || one_retires {
                continue;
            }
            one_retires |= marks.retiring;
            slot.predecessor = Some(Predecessor { worker, marks, home: index });
            self.serving.enter(index, SlotPhase::Empty, actions);
        }
        self.fill_slots(actions);
    }

    /// The process of a slot is ready: who went before it has done its duty.
    pub(super) fn predecessor_may_leave(&mut self, index: usize, actions: &mut Vec<Action>) {
        let before = self.serving.slots.get_mut(index).and_then(|slot| slot.predecessor.take());
        if let Some(before) = before {
            self.part_with_ready(before.worker, before.marks, Parting::Leave, actions);
        }
    }

    /// Ends whatever a slot of the serving generation had, which is gone.
    pub(super) fn part_with(&mut self, index: usize, slot: Slot, how: Parting, actions: &mut Vec<Action>) {
        if let Some(timer) = slot.phase.timer(index) {
            actions.push(Action::Disarm(timer));
        }
        if let Some(before) = slot.predecessor {
            self.part_with_ready(before.worker, before.marks, how, actions);
        }
        match slot.phase {
            SlotPhase::Empty | SlotPhase::BackingOff => {}
            // It has no pid yet.
            SlotPhase::Requested(worker) => self.depart(worker, DepartureStage::Unborn, Marks::default()),
            SlotPhase::Booting(worker) => {
                self.part_with_ready(worker, Marks::default(), Parting::Kill, actions);
            }
            SlotPhase::Ready(worker) => {
                // Of those that wait for their turn to retire several may leave at once.
                let marks = Marks { retiring: false, ..slot.marks };
                self.part_with_ready(worker, marks, how, actions);
            }
            SlotPhase::TooSlow(worker) => self.depart(worker, DepartureStage::Killed, Marks::default()),
        }
    }

    pub(super) fn part_with_ready(
        &mut self,
        worker: WorkerId,
        marks: Marks,
        how: Parting,
        actions: &mut Vec<Action>,
    ) {
        match how {
            Parting::Leave => {
                actions.push(Action::Leave(worker));
                let time = self.serving.settings.drain.saturating_add(LAST_WORDS);
                actions.push(Action::Arm(Timer::Depart(worker), time));
                self.depart(worker, DepartureStage::Leaving, marks);
            }
            Parting::Drain => {
                actions.push(Action::Drain(worker));
                self.depart(worker, DepartureStage::Draining, marks);
            }
            Parting::Kill => {
                actions.push(Action::Kill(worker));
                self.depart(worker, DepartureStage::Killed, marks);
            }
        }
    }

    /// The whole service drains or ends: so do those that had been told to leave, and nobody is left to take over
    /// their connections.
    pub(super) fn all_that_leave(&mut self, how: Parting, actions: &mut Vec<Action>) {
        for (worker, departing) in &mut self.departing {
            match (how, departing.stage) {
                (Parting::Drain, DepartureStage::Leaving) => {
                    departing.stage = DepartureStage::Draining;
                    actions.push(Action::Disarm(Timer::Depart(*worker)));
                    actions.push(Action::Drain(*worker));
                }
                (Parting::Kill, DepartureStage::Leaving | DepartureStage::Draining) => {
                    if departing.stage == DepartureStage::Leaving {
                        actions.push(Action::Disarm(Timer::Depart(*worker)));
                    }
                    departing.stage = DepartureStage::Killed;
                    actions.push(Action::Kill(*worker));
                }
                (Parting::Drain, DepartureStage::Draining)
                | (Parting::Leave, DepartureStage::Leaving | DepartureStage::Draining)
                | (
                    Parting::Leave | Parting::Drain | Parting::Kill,
                    DepartureStage::Unborn | DepartureStage::Killed,
                ) => {}
            }
        }
    }

    /// At most as many workers are wedged as there are slots: what wedges them wedges their successors too.
    fn bound_the_wedged(&mut self, actions: &mut Vec<Action>) {
        let most = self.serving.slots.len();
        if most == 0 {
            return;
        }
        let in_slots = |slot: &Slot| {
            let before = slot.predecessor.map(|before| before.marks);
            slot.marks.wedged.is_some() || before.is_some_and(|marks| marks.wedged.is_some())
        };
        let in_slots = self.serving.slots.iter().filter(|slot| in_slots(slot)).count();
        let mut departing: Vec<(u64, WorkerId)> = self
            .departing
            .iter()
            .filter(|(_, departing)| departing.stage == DepartureStage::Leaving)
            .filter_map(|(worker, departing)| Some((departing.marks.wedged?, *worker)))
            .collect();
        departing.sort_unstable();
        // In each slot is one at most, so that those who depart are enough.
        let too_many = (in_slots + departing.len()).saturating_sub(most);
        for (_, worker) in departing.into_iter().take(too_many) {
            actions.push(Action::Warn(format!(
                "more than {most} workers are wedged; the one that was first is killed"
            )));
            self.kill_departing(worker, actions);
        }
    }

    fn one_retires(&self) -> bool {
        self.serving.slots.iter().any(|slot| slot.predecessor.is_some_and(|before| before.marks.retiring))
            || self.departing.values().any(|departing| departing.marks.retiring)
    }

    fn kill_departing(&mut self, worker: WorkerId, actions: &mut Vec<Action>) {
        if let Some(departing) = self.departing.get_mut(&worker) {
            if departing.stage == DepartureStage::Leaving {
                actions.push(Action::Disarm(Timer::Depart(worker)));
            }
            departing.stage = DepartureStage::Killed;
            actions.push(Action::Kill(worker));
        }
    }

    fn depart(&mut self, worker: WorkerId, stage: DepartureStage, marks: Marks) {
        let generation = self.serving.number;
        self.departing.insert(worker, Departing { generation, stage, marks });
    }

    pub(super) fn next_wedged(&mut self) -> u64 {
        self.wedged_so_far = self.wedged_so_far.wrapping_add(1);
        self.wedged_so_far
    }
}
