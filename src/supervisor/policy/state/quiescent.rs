//! The quiescent snapshot: what the state policy knows while nothing is under way. It is so little that another program can go on with it.

use serde::{Deserialize, Serialize};

use super::event::{Action, GenerationId, Settings, WorkerId};
use super::generation::{Generation, Marks, Slot, SlotPhase, TemplatePhase};
use super::known::{ServicePhase, SupervisorState};

/// A policy in which nobody comes, leaves or is awaited. Failures of the past are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct QuiescentSnapshot {
    generation: GenerationId,
    last_generation: GenerationId,
    next_worker: WorkerId,
    /// Who is ready in each slot; None where the next process has to wait for its time.
    slots: Vec<Option<WorkerId>>,
}

impl SupervisorState {
    /// What there is to know, if nothing is under way.
    pub(crate) fn quiescent(&self) -> Option<QuiescentSnapshot> {
        let nobody_leaves = self.departing.is_empty() && self.ending.is_empty();
        let template = matches!(self.serving.template, TemplatePhase::Ready { .. });
        if self.service != ServicePhase::Running || self.reload.is_some() || !nobody_leaves || !template {
            return None;
        }
        let in_slot = |slot: &Slot| match (slot.phase, slot.predecessor) {
            (SlotPhase::Ready(worker), None) if slot.marks == Marks::default() => Some(Some(worker)),
            (SlotPhase::BackingOff, None) => Some(None),
            (
                SlotPhase::Empty
                | SlotPhase::BackingOff
                | SlotPhase::Requested(_)
                | SlotPhase::Booting(_)
                | SlotPhase::Ready(_)
                | SlotPhase::TooSlow(_),
                _,
            ) => None,
        };
        Some(QuiescentSnapshot {
            generation: self.serving.number,
            last_generation: self.last_generation,
            next_worker: self.next_worker,
            slots: self.serving.slots.iter().map(in_slot).collect::<Option<_>>()?,
        })
    }

    /// The policy that another one was, and its first actions: slots that waited are filled.
    pub(crate) fn go_on(quiescent: QuiescentSnapshot, settings: Settings) -> (Self, Vec<Action>) {
        let (mut state, _) = Self::start(settings);
        state.serving = Generation::new(quiescent.generation, settings);
        state.serving.template = TemplatePhase::Ready { proven: true };
        let slot = |worker: Option<WorkerId>| Slot {
            phase: worker.map_or(SlotPhase::Empty, SlotPhase::Ready),
            ..Slot::default()
        };
        state.serving.slots = quiescent.slots.into_iter().map(slot).collect();
        state.last_generation = quiescent.last_generation;
        state.next_worker = quiescent.next_worker;
        state.first_start = false;
        state.was_ready = true;
        let mut actions = Vec::new();
        state.fill_slots(&mut actions);
        (state, actions)
    }
}
