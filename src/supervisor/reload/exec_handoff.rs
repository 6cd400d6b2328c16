//! The exec hand-off: what a supervisor passes to the program that takes its place in the same process, and how that program goes on.
//!
//! After a reload to another program file, and as soon as nothing is under way, the supervisor executes that file in place: the same pid, the same
//! children, the same descriptors. What it knows goes along in a memfd. The form has a version, and the new program's template has said which one
//! it understands. Messages that arrive meanwhile stay in the channels, and signals stay pending behind the mask. If the exec fails, nothing has
//! changed. See docs/design/reload.md.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::generation::{GenerationSettings, Origin, state_settings};
use super::methods::AllMethods;
use crate::arena::{ArenaReader, Key, Scoreboard, Totals};
use crate::channel::{Channel, HANDOFF_VERSION};
use crate::config::{Config, Log, Source};
use crate::rpc::{About, TINE};
use crate::supervisor::children::blame;
use crate::supervisor::children::records::{TemplateRecord, WorkerRecord, WorkerRecords, session_of};
use crate::supervisor::children::regions::{AddressRegions, SavedRegions};
use crate::supervisor::handover::book::Handover;
use crate::supervisor::listeners::bound::{Listeners, SavedListener};
use crate::supervisor::listeners::watches::LostListeners;
use crate::supervisor::parts::{Supervisor, listen};
use crate::supervisor::policy::leftovers::{Leftovers, SavedLeftovers};
use crate::supervisor::policy::quarantine::{Blame, QuarantinePolicy, SavedQuarantine};
use crate::supervisor::policy::reaping::Reaping;
use crate::supervisor::policy::restart::Refusals;
use crate::supervisor::policy::shares::{Credit, Share};
use crate::supervisor::policy::signs_of_life::SignsOfLife;
use crate::supervisor::policy::state::{
    Action, Event, GenerationId, QuiescentSnapshot, SupervisorState, WorkerEvent, WorkerId,
};
use crate::supervisor::policy::timers::TimerQueue;
use crate::supervisor::tokens::{template_token, worker_token};
use crate::sys::exec::{self, LeftOpen, Program};
use crate::sys::limits;
use crate::sys::process;

/// The environment variable by which a process learns that it goes on as a supervisor, and which descriptor holds the
/// hand-off. Programs that run already set it by this name.
const VARIABLE: &str = "TINE_SUPERVISOR_LEGACY";

/// All that a supervisor knows while nothing is under way. Descriptors are named by their numbers.
///
/// Fields keep the names that they have in programs which run already: the program before may be one of these.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct ExecHandoff {
    version: u32,
    #[serde(rename = "brain")]
    state: QuiescentSnapshot,
    config: ReportedConfig,
    config_path: Option<PathBuf>,
    source: Source,
    program: RawFd,
    program_path: PathBuf,
    methods: Vec<String>,
    all_methods: Vec<String>,
    totals: Totals,
    quarantine: Vec<SavedQuarantine>,
    listeners: Vec<SavedListener>,
    bell: RawFd,
    /// The soft limit on descriptors that the service was started with. A program that doesn't know of it does without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    descriptors: Option<u64>,
    template: SavedTemplate,
    /// Where workers count their clients' addresses. A program that doesn't know of it does without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    addresses: Option<SavedRegions>,
    /// Whose is what handlers have started. A program that doesn't know of it leaves daemons alone that are there by then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    leftovers: Option<SavedLeftovers<WorkerId>>,
    workers: Vec<SavedWorker>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedTemplate {
    generation: GenerationId,
    pid: i32,
    #[serde(rename = "line")]
    channel: RawFd,
    age: Duration,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedWorker {
    id: WorkerId,
    slot: usize,
    pid: i32,
    #[serde(rename = "line")]
    channel: RawFd,
    arena: RawFd,
    /// What its poller waits in. A program that doesn't know of it does without.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    epoll: Option<RawFd>,
    age: Duration,
    /// So many connections; its part where nothing is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    may_hold: Option<usize>,
    /// So many connections it may yet ask to have kept; where nothing is said, it knows nothing of that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    may_keep: Option<usize>,
    /// Its connections that are kept.
    kept: Vec<(Key, RawFd)>,
}

impl ExecHandoff {
    /// How it is to be logged.
    pub(crate) fn log(&self) -> &Log {
        &self.config.understood.log
    }

    /// What it says to the state policy, and with which configuration.
    pub(in crate::supervisor) fn into_snapshot(self) -> (QuiescentSnapshot, Config) {
        (self.state, self.config.understood)
    }
}

/// A checked configuration as the serving generation's template told it. It goes along word for word: the program that
/// leaves may be older than that template, and keys that it doesn't know are still for the one that follows.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
struct ReportedConfig {
    understood: Config,
    words: Value,
}

impl TryFrom<Value> for ReportedConfig {
    type Error = serde_json::Error;
    fn try_from(words: Value) -> Result<Self, Self::Error> {
        Ok(Self { understood: Config::deserialize(&words)?, words })
    }
}

impl From<ReportedConfig> for Value {
    fn from(told: ReportedConfig) -> Self {
        told.words
    }
}

/// What the program that ran in this process before has left to this one. Call it before any thread is started.
pub(crate) fn inherited() -> Option<io::Result<ExecHandoff>> {
    let memory = exec::take_inherited(VARIABLE)?;
    Some(memory.and_then(|memory| {
        let mut text = String::new();
        let mut memory = File::from(memory);
        memory.rewind()?;
        memory.read_to_string(&mut text)?;
        let handoff: ExecHandoff = serde_json::from_str(&text)?;
        if handoff.version == HANDOFF_VERSION {
            return Ok(handoff);
        }
        let found = handoff.version;
        Err(io::Error::other(format!(
            "expected an exec hand-off of version {HANDOFF_VERSION}, found {found}"
        )))
    }))
}

/// Leaving.
impl Supervisor {
    /// Has the program that serves by now take this one's place, if it is another one and nothing is under way.
    pub(in crate::supervisor) fn give_way_to_successor(&mut self) {
        if !self.successor_is_wanted || !self.events.is_empty() || self.handover.escrow.is_moving() {
            return;
        }
        let Some(handoff) = self.state.quiescent().and_then(|state| self.handoff(state)) else {
            return;
        };
        self.successor_is_wanted = false;
        let error = match self.execute_successor(&handoff) {
            Ok(never) => match never {},
            Err(error) => error,
        };
        for descriptor in self.descriptors() {
            // It was open on exec a moment ago, by the same call.
            let _ = exec::stays_open(descriptor, false);
        }
        tracing::error!(%error, "the supervisor's program can't be replaced; it goes on as it was");
    }

    fn execute_successor(&self, handoff: &ExecHandoff) -> io::Result<std::convert::Infallible> {
        let memory = nix::sys::memfd::memfd_create(c"tine handoff", nix::sys::memfd::MFdFlags::empty())?;
        let mut memory = File::from(memory);
        memory.write_all(&serde_json::to_vec(handoff)?)?;
        for descriptor in self.descriptors() {
            exec::stays_open(descriptor, true)?;
        }
        tracing::debug!(program = %self.origin.program.path().display(), "the supervisor becomes another program");
        Err(self.origin.program.take_place(VARIABLE, memory.as_raw_fd()))
    }

    /// None when something is not as it is when nothing is under way.
    fn handoff(&self, state: QuiescentSnapshot) -> Option<ExecHandoff> {
        if self.leftovers.is_waiting() {
            return None;
        }
        let template = self.templates.get(&self.origin.number).filter(|template| template.channel_open)?;
        if self.templates.len() > 1 || template.channel.has_queued() {
            return None;
        }
        let mut workers = Vec::new();
        for (id, arena, kept) in self.handover.escrow.served() {
            let worker = self.workers.get(id)?;
            if !worker.channel_open || worker.channel.has_queued() {
                return None;
            }
            workers.push(SavedWorker {
                id,
                slot: worker.slot,
                pid: worker.pid?.as_raw(),
                channel: worker.channel.as_fd().as_raw_fd(),
                arena: arena.as_raw_fd(),
                epoll: self.handover.escrow.epoll_of(id).map(AsRawFd::as_raw_fd),
                age: worker.started.elapsed(),
                may_hold: Some(worker.share.may_hold()),
                may_keep: worker.credit.leave(),
                kept: kept.map(|(key, descriptor)| (key, descriptor.as_raw_fd())).collect(),
            });
        }
        // Those that live and those that have died count alike for whoever goes on.
        Some(ExecHandoff {
            version: HANDOFF_VERSION,
            state,
            config: ReportedConfig {
                understood: self.settings.config.clone(),
                words: self.settings.told.clone(),
            },
            config_path: self.config_path.clone(),
            source: self.origin.source.clone(),
            program: self.origin.program.as_fd().as_raw_fd(),
            program_path: self.origin.program.path().to_owned(),
            methods: self.settings.methods.names.clone(),
            all_methods: self.all_methods.names.clone(),
            totals: self.scoreboard.ended().clone(),
            quarantine: self.quarantine.leave(Instant::now()),
            listeners: self.settings.listeners.as_ref()?.leave(),
            bell: self.bell.as_fd().as_raw_fd(),
            descriptors: limits::started_with(),
            template: SavedTemplate {
                generation: self.origin.number,
                pid: template.pid.as_raw(),
                channel: template.channel.as_fd().as_raw_fd(),
                age: template.started.elapsed(),
            },
            addresses: self.addresses.as_ref().map(AddressRegions::leave),
            leftovers: Some(self.leftovers.leave()),
            workers,
        })
    }

    /// Every descriptor that a hand-off names.
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let own = [self.bell.as_fd(), self.origin.program.as_fd()].into_iter();
        let listeners = self.settings.listeners.iter().flat_map(Listeners::descriptors);
        let templates = self.templates.values().map(|template| template.channel.as_fd());
        let workers = self.workers.iter().map(|worker| worker.channel.as_fd());
        let kept = self.handover.escrow.served().flat_map(|(id, arena, kept)| {
            let epoll = self.handover.escrow.epoll_of(id);
            let descriptors = epoll.into_iter().chain(kept.map(|(_, descriptor)| descriptor));
            std::iter::once(arena).chain(descriptors).map(AsFd::as_fd)
        });
        let addresses = self.addresses.iter().map(AddressRegions::memory);
        own.chain(listeners).chain(templates).chain(workers).chain(kept).chain(addresses)
    }
}

/// The supervisor that goes on where the program before has stopped, and its first actions.
///
/// # Errors
///
/// The kernel refuses what the loop itself stands on, or the hand-off is not what it says.
pub(in crate::supervisor) fn resume(
    handoff: ExecHandoff,
    about: &About,
) -> io::Result<(Supervisor, Vec<Action>)> {
    let (epoll, signals) = listen()?;
    if let Some(limit) = handoff.descriptors {
        limits::was_started_with(limit);
    }
    let lost = LostListeners::new(&epoll);
    let mut descriptors = LeftOpen::default();
    let now = Instant::now();
    let generation = handoff.template.generation;
    let ReportedConfig { understood: config, words: told } = handoff.config;
    let program = Program::inherited(descriptors.take(handoff.program)?, handoff.program_path)?;
    // The kernel has given it the number of a descriptor as its name.
    if let Some(name) = program.name() {
        let _ = nix::sys::prctl::set_name(&name);
    }
    let mut all_methods = AllMethods { names: handoff.all_methods };
    let methods = Rc::new(all_methods.number(handoff.methods));
    let listeners = Listeners::inherit(handoff.listeners, &mut descriptors)?;
    let settings = GenerationSettings { config, told, methods, listeners: Some(listeners) };
    let addresses = handoff.addresses.and_then(|left| AddressRegions::inherit(left, &mut descriptors));
    let mut restored = RestoredWorkers {
        workers: WorkerRecords::default(),
        handover: Handover::new(&settings.config),
        signs: SignsOfLife::new(crate::worker::LOOKS),
        unreadable: Vec::new(),
    };
    for left in handoff.workers {
        restored.restore(left, generation, &settings, &epoll, &mut descriptors)?;
    }
    let RestoredWorkers { workers, handover, signs, unreadable } = restored;
    let channel = Channel::from(descriptors.take(handoff.template.channel)?);
    epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, template_token(generation)))?;
    let template = TemplateRecord {
        pid: Pid::from_raw(handoff.template.pid),
        channel,
        channel_open: true,
        end_expected: false,
        started: ago(handoff.template.age),
    };
    let limits = blame::limits(&settings.config);
    let (mut quarantine, mut orders) = QuarantinePolicy::restored(limits, handoff.quarantine, now);
    for (worker, _) in &unreadable {
        orders.extend(quarantine.ended(*worker, &Blame::Nobody, Vec::new(), now, now));
    }
    let (state, actions) = SupervisorState::go_on(handoff.state, state_settings(&settings.config));
    let bell = descriptors.take(handoff.bell)?;
    tracing::info!(
        program = about.title,
        version = about.version,
        tine = TINE,
        pid = std::process::id(),
        config = handoff.source.name,
        generation,
        kept = handover.escrow.len(),
        "the supervisor runs the new program"
    );
    let (leftovers, knows_whose) = match handoff.leftovers {
        Some(left) => (Leftovers::inherit(left), true),
        None => (Leftovers::new(), false),
    };
    let mut supervisor = Supervisor {
        epoll,
        signals,
        state,
        alarms: TimerQueue::default(),
        templates: BTreeMap::from([(generation, template)]),
        workers,
        handover,
        all_methods,
        scoreboard: Scoreboard::new(handoff.totals),
        origin: Origin { number: generation, program, source: handoff.source },
        settings,
        next: None,
        config_path: handoff.config_path,
        bell,
        signs,
        quarantine,
        events: VecDeque::new(),
        successor_is_wanted: false,
        forks: Refusals::default(),
        last_word: None,
        lost,
        reaping: Reaping::default(),
        taken_in: BTreeSet::new(),
        leftovers,
        addresses,
        finished: None,
    };
    if !knows_whose {
        supervisor.spare_orphans();
    }
    supervisor.balance_soon();
    supervisor.carry_out(orders);
    for (worker, session) in unreadable {
        if let Some(session) = session {
            supervisor.leftovers.worker_ended(session);
        }
        let cause = "its arena can't be read".to_owned();
        supervisor.happened(Event::Worker(worker, WorkerEvent::Ended { called: true, cause }));
    }
    Ok((supervisor, actions))
}

fn ago(age: Duration) -> Instant {
    let now = Instant::now();
    now.checked_sub(age).unwrap_or(now)
}

/// The workers that were left, and what there is of each.
struct RestoredWorkers {
    workers: WorkerRecords,
    handover: Handover,
    signs: SignsOfLife<WorkerId>,
    /// Those that are killed, since nothing can be read of what they run and hold, with their sessions.
    unreadable: Vec<(WorkerId, Option<i32>)>,
}

impl RestoredWorkers {
    fn restore(
        &mut self,
        left: SavedWorker,
        generation: GenerationId,
        settings: &GenerationSettings,
        epoll: &Epoll,
        descriptors: &mut LeftOpen,
    ) -> io::Result<()> {
        let channel = Channel::from(descriptors.take(left.channel)?);
        let memory = descriptors.take(left.arena)?;
        let polled = left.epoll.map(|epoll| descriptors.take(epoll)).transpose()?;
        let (keys, kept): (Vec<Key>, Vec<RawFd>) = left.kept.into_iter().unzip();
        let kept: Vec<OwnedFd> =
            kept.into_iter().map(|fd| descriptors.take(fd)).collect::<io::Result<_>>()?;
        let pid = Pid::from_raw(left.pid);
        let arena = match ArenaReader::open(&memory) {
            Ok(arena) => arena,
            Err(error) => {
                // A handler has written there: that costs its worker and what that serves, and not the service.
                self.unreadable.push((left.id, session_of(pid)));
                end_unreadable(left.slot, pid, &error);
                return Ok(());
            }
        };
        epoll.add(&channel, EpollEvent::new(EpollFlags::EPOLLIN, worker_token(left.id)))?;
        self.handover.escrow.begin(left.id, memory);
        if let Some(polled) = polled {
            self.handover.escrow.hold_epoll(left.id, polled);
        }
        self.handover.escrow.keep(left.id, keys, kept);
        let stuck = settings.config.timeouts.stuck;
        let part = || crate::worker::share(&settings.config, limits::descriptors());
        let mut share = Share::left(left.may_hold.unwrap_or_else(part));
        share.adopted(self.handover.escrow.served_by(left.id));
        let worker = WorkerRecord {
            generation,
            share,
            credit: Credit::new(left.may_keep),
            // It says so with the next that it has to say of connections.
            without_place: 0,
            slot: left.slot,
            methods: Rc::clone(&settings.methods),
            pid: Some(pid),
            channel,
            channel_open: true,
            arena,
            started: ago(left.age),
            stuck,
            end_expected: false,
            is_deaf: false,
            has_ended: false,
            boot_failure: None,
            is_ready: true,
            born_refusing: Vec::new(),
            listeners: settings.listeners.as_ref().map(Listeners::sockets).unwrap_or_default(),
            session: session_of(pid),
        };
        self.workers.insert(left.id, worker);
        // Whether it was asked is not known any more; it is, if it has anything to do.
        self.signs.heard(left.id, stuck, Instant::now());
        Ok(())
    }
}

fn end_unreadable(slot: usize, pid: Pid, error: &impl std::fmt::Display) {
    tracing::error!(slot, pid = pid.as_raw(), %error, "a worker can't be gone on with, and is killed");
    if let Err(error) = process::kill(pid, Signal::SIGKILL) {
        tracing::warn!(%pid, %error, "a worker can't be killed");
    }
}

#[cfg(test)]
mod tests;
