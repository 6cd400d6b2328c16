//! What the supervisor consists of.
//!
//! The rooms beside this file add methods to [`Supervisor`], and the loop in `mod.rs` calls them. Nothing here decides anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::unistd::Pid;

use super::children::records::{TemplateRecord, WorkerRecords};
use super::children::regions::AddressRegions;
use super::handover::book::Handover;
use super::listeners::watches::LostListeners;
use super::policy::leftovers::Leftovers;
use super::policy::quarantine::QuarantinePolicy;
use super::policy::reaping::Reaping;
use super::policy::restart::Refusals;
use super::policy::signs_of_life::SignsOfLife;
use super::policy::state::{Event, GenerationId, SupervisorState, WorkerId};
use super::policy::timers::{Alarm, TimerQueue};
use super::reload::generation::{GenerationSettings, NextGeneration, Origin};
use super::reload::methods::AllMethods;
use super::tokens::SIGNALS;
use crate::arena::Scoreboard;
use crate::sys::process;
use crate::sys::signals::Signals;

pub(in crate::supervisor) struct Supervisor {
    pub(in crate::supervisor) epoll: Epoll,
    pub(in crate::supervisor) signals: Signals,
    pub(in crate::supervisor) state: SupervisorState,
    /// When each policy has something to decide.
    pub(in crate::supervisor) alarms: TimerQueue<Alarm>,
    /// Those that have not been reaped, by generation.
    pub(in crate::supervisor) templates: BTreeMap<GenerationId, TemplateRecord>,
    pub(in crate::supervisor) workers: WorkerRecords,
    pub(in crate::supervisor) handover: Handover,
    pub(in crate::supervisor) all_methods: AllMethods,
    pub(in crate::supervisor) scoreboard: Scoreboard<WorkerId>,
    /// The generation that serves.
    pub(in crate::supervisor) origin: Origin,
    pub(in crate::supervisor) settings: GenerationSettings,
    pub(in crate::supervisor) next: Option<NextGeneration>,
    pub(in crate::supervisor) config_path: Option<PathBuf>,
    /// What workers tell each other with that a connection waits.
    pub(in crate::supervisor) bell: OwnedFd,
    pub(in crate::supervisor) signs: SignsOfLife<WorkerId>,
    /// What happened and has not been decided about.
    pub(in crate::supervisor) events: VecDeque<Event>,
    pub(in crate::supervisor) quarantine: QuarantinePolicy,
    /// Another program is to take this one's place as soon as nothing is under way.
    pub(in crate::supervisor) successor_is_wanted: bool,
    pub(in crate::supervisor) forks: Refusals,
    /// What is said when everything has ended.
    pub(in crate::supervisor) last_word: Option<String>,
    pub(in crate::supervisor) lost: LostListeners,
    pub(in crate::supervisor) reaping: Reaping,
    /// Workers that were not reaped, and whose ends were taken in.
    pub(in crate::supervisor) taken_in: BTreeSet<Pid>,
    pub(in crate::supervisor) leftovers: Leftovers<WorkerId>,
    /// Where workers count their clients' addresses, once one of them does.
    pub(in crate::supervisor) addresses: Option<AddressRegions>,
    pub(in crate::supervisor) finished: Option<i32>,
}

impl Supervisor {
    /// Notes what happened. It is not decided about at once: actions report too, and what one event asks for must
    /// be done before the next is looked at.
    pub(in crate::supervisor) fn happened(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Where the template of a generation comes from.
    pub(in crate::supervisor) fn origin(&self, generation: GenerationId) -> Option<&Origin> {
        let next = self.next.as_ref().map(|next| &next.origin);
        [Some(&self.origin), next].into_iter().flatten().find(|origin| origin.number == generation)
    }

    pub(in crate::supervisor) fn settings(&self, generation: GenerationId) -> Option<&GenerationSettings> {
        if generation == self.origin.number {
            return Some(&self.settings);
        }
        let next = self.next.as_ref().filter(|next| next.origin.number == generation)?;
        next.settings.as_ref()
    }
}

/// What the loop stands on.
pub(in crate::supervisor) fn listen() -> io::Result<(Epoll, Signals)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    // Whoever started us may ignore SIGCHLD, which we inherit: the kernel would then reap without a word.
    process::keep_exit_statuses()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let signals = Signals::open()?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
    Ok((epoll, signals))
}
