//! What the brain knows while nothing is under way: so little that it can be left to another program.

use serde::{Deserialize, Serialize};

use super::generation::{Generation, Phase, Slot};
use super::service::Service;
use super::succession::Marks;
use super::template::Template;
use super::{Action, GenerationId, Settings, State, WorkerId};

/// A brain in which nobody comes, leaves or is awaited. Failures of the past are not in it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Calm {
    generation: GenerationId,
    last_generation: GenerationId,
    next_worker: WorkerId,
    /// Who is ready in each slot; None where the next process has to wait for its time.
    slots: Vec<Option<WorkerId>>,
}

impl State {
    /// What there is to know, if nothing is under way.
    pub(crate) fn calm(&self) -> Option<Calm> {
        let nobody_leaves = self.departing.is_empty() && self.ending.is_empty();
        let template = matches!(self.serving.template, Template::Ready { .. });
        if self.service != Service::Running || self.reload.is_some() || !nobody_leaves || !template {
            return None;
        }
        let in_slot = |slot: &Slot| match (slot.phase, slot.predecessor) {
            (Phase::Ready(worker), None) if slot.marks == Marks::default() => Some(Some(worker)),
            (Phase::BackingOff, None) => Some(None),
            (
                Phase::Empty
                | Phase::BackingOff
                | Phase::Requested(_)
                | Phase::Booting(_)
                | Phase::Ready(_)
                | Phase::TooSlow(_),
                _,
            ) => None,
        };
        Some(Calm {
            generation: self.serving.number,
            last_generation: self.last_generation,
            next_worker: self.next_worker,
            slots: self.serving.slots.iter().map(in_slot).collect::<Option<_>>()?,
        })
    }

    /// The brain that another one was, and its first actions: slots that waited are filled.
    pub(crate) fn go_on(calm: Calm, settings: Settings) -> (Self, Vec<Action>) {
        let (mut state, _) = Self::start(settings);
        state.serving = Generation::new(calm.generation, settings);
        state.serving.template = Template::Ready { proven: true };
        let slot = |worker: Option<WorkerId>| Slot {
            phase: worker.map_or(Phase::Empty, Phase::Ready),
            ..Slot::default()
        };
        state.serving.slots = calm.slots.into_iter().map(slot).collect();
        state.last_generation = calm.last_generation;
        state.next_worker = calm.next_worker;
        state.first_start = false;
        state.was_ready = true;
        let mut actions = Vec::new();
        state.fill_slots(&mut actions);
        (state, actions)
    }
}
