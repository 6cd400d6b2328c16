//! One generation as the state policy sees it: its settings, its template and its slots.
//!
//! The files beside this one decide which generation serves, and what follows from an event.

use std::time::Instant;

use super::event::{Action, GenerationId, Settings, Timer, WorkerId};
use crate::supervisor::policy::restart::{EarlyDeaths, Restarts, Streak};

#[derive(Debug)]
pub(super) struct Generation {
    pub(super) number: GenerationId,
    pub(super) settings: Settings,
    pub(super) restarts: Restarts,
    pub(super) template: TemplatePhase,
    pub(super) template_streak: Streak,
    pub(super) slots: Vec<Slot>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) phase: SlotPhase,
    /// Its boot failures in a row, and forks that were refused.
    pub(super) streak: Streak,
    /// Since when its process is ready. None where another program's supervisor saw that.
    pub(super) ready_since: Option<Instant>,
    pub(super) early_deaths: EarlyDeaths,
    /// What the ready process has said of itself.
    pub(super) marks: Marks,
    /// It serves until the process of this slot is ready, and leaves then. A ready slot has none.
    pub(super) predecessor: Option<Predecessor>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) enum SlotPhase {
    /// No process; one is wanted as soon as the template is ready.
    #[default]
    Empty,
    /// No process; a timer runs until the next one.
    BackingOff,
    /// The template, which lives, was asked to fork it.
    Requested(WorkerId),
    Booting(WorkerId),
    Ready(WorkerId),
    /// Killed because it took too long to be ready, and not reaped.
    TooSlow(WorkerId),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TemplatePhase {
    Starting,
    /// It forks on request. `proven`: a worker that it forked was born.
    Ready {
        proven: bool,
    },
    /// Killed and not reaped.
    Killed {
        proven: bool,
    },
    /// None runs; a timer runs until the next one.
    Waiting,
    /// None runs, and none will.
    Gone,
}

/// What a worker has said of itself, for which it is to be replaced.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Threads of it are stuck; the lower the number, the longer ago it said so.
    pub(super) wedged: Option<u64>,
    pub(super) signalled: bool,
    /// It is to be recycled, which happens to one at a time.
    pub(super) retiring: bool,
}

/// A ready worker whose place another is about to take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Predecessor {
    pub(super) worker: WorkerId,
    pub(super) marks: Marks,
    /// The slot that it was forked for. Another one than it waits for, where its own was taken away.
    pub(super) home: usize,
}

impl Generation {
    /// Its template is being started; it has the slots that `settings` ask for.
    pub(super) fn new(number: GenerationId, settings: Settings) -> Self {
        Self {
            number,
            settings,
            restarts: Restarts::new(settings.restart),
            template: TemplatePhase::Starting,
            template_streak: Streak::default(),
            slots: std::iter::repeat_with(Slot::default).take(settings.processes).collect(),
        }
    }

    pub(super) fn phase_of(&self, index: usize) -> Option<SlotPhase> {
        self.slots.get(index).map(|slot| slot.phase)
    }

    /// The slot that a worker fills.
    pub(super) fn slot_of(&self, worker: WorkerId) -> Option<(usize, SlotPhase)> {
        let mut phases = self.slots.iter().map(|slot| slot.phase).enumerate();
        phases.find(|(_, phase)| phase.worker() == Some(worker))
    }

    /// The slot whose predecessor a worker is.
    pub(super) fn slot_after(&self, worker: WorkerId) -> Option<usize> {
        let is_it = |slot: &Slot| slot.predecessor.is_some_and(|before| before.worker == worker);
        self.slots.iter().position(is_it)
    }

    /// Moves a slot on. What timer its phase had is disarmed with it.
    pub(super) fn enter(&mut self, index: usize, phase: SlotPhase, actions: &mut Vec<Action>) {
        let Some(slot) = self.slots.get_mut(index) else {
            return;
        };
        let left = std::mem::replace(&mut slot.phase, phase);
        slot.marks = Marks::default();
        slot.ready_since = None;
        if let Some(timer) = left.timer(index)
            && phase.timer(index) != Some(timer)
        {
            actions.push(Action::Disarm(timer));
        }
    }

    /// The process of a slot has booted.
    pub(super) fn is_ready(
        &mut self,
        index: usize,
        worker: WorkerId,
        now: Instant,
        actions: &mut Vec<Action>,
    ) {
        self.enter(index, SlotPhase::Ready(worker), actions);
        self.restarts.booted();
        if let Some(slot) = self.slots.get_mut(index) {
            slot.ready_since = Some(now);
            slot.streak = Streak::default();
        }
    }

    pub(super) fn all_are_ready(&self) -> bool {
        self.slots.iter().all(|slot| matches!(slot.phase, SlotPhase::Ready(_)))
    }
}

impl Slot {
    /// Somebody of it takes connections.
    pub(super) fn serves(&self) -> bool {
        matches!(self.phase, SlotPhase::Ready(_)) || self.predecessor.is_some()
    }

    /// It waits, and nobody of it serves.
    pub(super) fn is_deserted(&self) -> bool {
        self.phase == SlotPhase::BackingOff && self.predecessor.is_none()
    }

    /// It waits because its workers die early, and not because none can be had.
    pub(super) fn is_slowed_down(&self) -> bool {
        self.phase == SlotPhase::BackingOff && self.streak == Streak::default()
    }
}

impl SlotPhase {
    pub(super) fn worker(self) -> Option<WorkerId> {
        match self {
            Self::Empty | Self::BackingOff => None,
            Self::Requested(worker) | Self::Booting(worker) | Self::Ready(worker) | Self::TooSlow(worker) => {
                Some(worker)
            }
        }
    }

    /// The timer that belongs to this phase of slot `index` and must not outlive it.
    pub(super) fn timer(self, index: usize) -> Option<Timer> {
        match self {
            Self::BackingOff => Some(Timer::Refill(index)),
            Self::Requested(worker) | Self::Booting(worker) => Some(Timer::Boot(worker)),
            Self::Empty | Self::Ready(_) | Self::TooSlow(_) => None,
        }
    }
}
