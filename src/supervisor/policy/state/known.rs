//! All that the state policy knows: the generation that serves, the one that is to follow, and who departs.
//!
//! The files beside this one decide what follows from an event.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Action, GenerationId, Timer, WorkerId};
use super::generation::{Generation, Marks, SlotPhase};
use crate::supervisor::policy::timers::TimerQueue;

/// All that the state policy knows.
#[derive(Debug)]
pub(crate) struct SupervisorState {
    pub(super) service: ServicePhase,
    pub(super) serving: Generation,
    pub(super) reload: Option<Reload>,
    /// A reload was asked for while one was under way: it may have missed what that was for.
    pub(super) reload_again: bool,
    pub(super) departing: BTreeMap<WorkerId, Departing>,
    /// Templates that were killed, of generations that are gone.
    pub(super) ending: BTreeSet<GenerationId>,
    /// No template was ever ready: a failure that is told now is the operator's to see at once.
    pub(super) first_start: bool,
    /// A worker was ready at some time, of whatever generation.
    pub(super) was_ready: bool,
    /// None was for so long that clients are turned away.
    pub(super) turns_away: bool,
    /// Why the last template or worker that failed to boot did.
    pub(super) last_failure: Option<String>,
    pub(super) next_worker: WorkerId,
    pub(super) last_generation: GenerationId,
    /// Workers that have said that they are wedged, to tell the oldest.
    pub(super) wedged_so_far: u64,
    pub(super) finished: bool,
    /// The moments that it waits for.
    pub(super) timers: TimerQueue<Timer>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ServicePhase {
    Running,
    /// Still accepting, but told to stop.
    PreStop,
    Draining {
        code: i32,
    },
    /// Everything was killed.
    Ending {
        code: i32,
    },
}

/// The generation that is to follow.
#[derive(Debug)]
pub(super) struct Reload {
    pub(super) generation: Generation,
    pub(super) progress: ReloadProgress,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ReloadProgress {
    /// Its template starts.
    Template,
    /// Its workers boot.
    Workers,
    /// All of them are ready.
    Probation,
}

impl Reload {
    pub(super) fn slot_of(&self, worker: WorkerId) -> Option<(usize, SlotPhase)> {
        self.generation.slot_of(worker)
    }
}

/// A worker that has no slot any more and has not been reaped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Departing {
    pub(super) generation: GenerationId,
    pub(super) stage: DepartureStage,
    pub(super) marks: Marks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum DepartureStage {
    /// Requested, and to be killed when it is born.
    Unborn,
    /// Told to leave; a timer runs.
    Leaving,
    /// Told to drain, with the whole service.
    Draining,
    Killed,
}

impl SupervisorState {
    /// The service has not begun to end.
    pub(super) fn is_serving(&self) -> bool {
        matches!(self.service, ServicePhase::Running | ServicePhase::PreStop)
    }

    /// A number that no process has. They come round again after some four thousand million.
    pub(super) fn number_worker(&mut self) -> WorkerId {
        while self.is_known(self.next_worker) {
            self.next_worker = self.next_worker.wrapping_add(1);
        }
        let number = self.next_worker;
        self.next_worker = number.wrapping_add(1);
        number
    }

    pub(super) fn is_known(&self, worker: WorkerId) -> bool {
        self.serving.slot_of(worker).is_some()
            || self.serving.slot_after(worker).is_some()
            || self.departing.contains_key(&worker)
            || self.reload.as_ref().is_some_and(|next| next.slot_of(worker).is_some())
    }

    /// Has a worker forked for a slot that has entered `SlotPhase::Requested` with it.
    pub(super) fn ask_for(
        generation: &Generation,
        worker: WorkerId,
        slot: usize,
        doors_shut: bool,
        actions: &mut Vec<Action>,
    ) {
        actions.push(Action::Fork { generation: generation.number, worker, slot, doors_shut });
        actions.push(Action::Arm(Timer::Boot(worker), generation.settings.boot));
    }
}
