//! The supervisor: the parent process. It binds, has workers forked, reaps, restarts and ends them.
//!
//! One thread, one epoll loop over signals, channels and timers. The loop turns what the kernel and the channels report
//! into events for `state`, which decides, and performs the actions that come back. It runs no user code, never
//! blocks and never serves a call.

mod children;
pub(crate) mod contract;
mod handover;
mod listeners;
mod needs;
mod policy;
mod reload;
mod report;

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::arena::{Scoreboard, Totals};
use crate::channel::{Channel, ToWorker};
use crate::config::{Config, Source};
use crate::log;
use crate::rpc::{About, TINE};
use crate::sys::descriptors;
use crate::sys::exec::Program;
use crate::sys::limits;
use crate::sys::process;
use crate::sys::signals::Signals;

use children::addresses::AddressRegions;
use children::blame;
use children::ends::ToReap;
use children::records::{TemplateRecord, WorkerRecords};
use handover::hand_over::Handover;
pub(crate) use listeners::bound::Listeners;
use listeners::lost::LostListeners;
pub(crate) use needs::check as check_limits;
use policy::leftovers::Leftovers;
use policy::quarantine::QuarantinePolicy;
use policy::restart::Refusals;
use policy::signs_of_life::SignsOfLife;
use policy::state::{Action, Event, GenerationId, SupervisorState, Timer, WorkerId};
pub(crate) use reload::exec_handoff::{ExecHandoff, go_on, inherited};
use reload::generations::{self, GenerationSettings, NextGeneration, Origin};
use reload::methods::{AllMethods, Methods};

/// All that a supervisor starts from.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) program: Program,
    /// The file that was named for the configuration, to be read again.
    pub(crate) config_path: Option<PathBuf>,
    pub(crate) source: Source,
    pub(crate) config: Config,
    pub(crate) listeners: Listeners,
}

const SIGNALS: u64 = 0;
/// A listener was shut down.
const LISTENER: u64 = 1;
/// Something has happened to a socket file.
const SOCKET_FILE: u64 = 2;
/// Worker process `n` has the token `FIRST_WORKER + n`, and the template of generation `n` `FIRST_TEMPLATE + n`.
const FIRST_WORKER: u64 = 1 << 32;
const FIRST_TEMPLATE: u64 = 2 << 32;

/// Messages taken from one channel in one go, so that a child which writes without end holds up nobody. A dead child's
/// channel never holds as many: the kernel lets about 280 wait.
const MOST_MESSAGES: usize = 1024;

/// Runs the service until it has ended; the result is the process's exit code.
///
/// # Errors
///
/// The kernel refuses what the loop itself stands on (epoll, signalfd).
pub(crate) fn run(setup: Setup, about: &About) -> io::Result<i32> {
    let (epoll, signals) = listen()?;
    let lost = LostListeners::new(&epoll);
    let config = &setup.config;
    let addresses: Vec<&str> = setup.listeners.addresses().collect();
    tracing::info!(
        program = about.title,
        version = about.version,
        tine = TINE,
        pid = std::process::id(),
        config = setup.source.name,
        processes = config.processes,
        threads = config.threads,
        listen = addresses.join(", "),
        "listening"
    );
    raise_descriptor_limit(config);
    let (state, actions) = SupervisorState::start(generations::state_settings(config));
    let origin = Origin { number: 1, program: setup.program, source: setup.source };
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let quarantine = QuarantinePolicy::new(blame::limits(config));
    let mut supervisor = Supervisor {
        epoll,
        signals,
        state,
        timers: BTreeMap::new(),
        templates: BTreeMap::new(),
        workers: WorkerRecords::default(),
        handover: Handover::new(config),
        all_methods: AllMethods::default(),
        scoreboard: Scoreboard::new(Totals::default()),
        origin,
        settings: GenerationSettings {
            config: setup.config,
            told: serde_json::Value::Null,
            methods: Rc::new(Methods::default()),
            listeners: Some(setup.listeners),
        },
        next: None,
        config_path: setup.config_path,
        bell: bell.into(),
        signs: SignsOfLife::new(crate::worker::LOOKS),
        events: VecDeque::new(),
        quarantine,
        successor_is_wanted: false,
        forks: Refusals::default(),
        last_word: None,
        lost,
        to_reap: ToReap::default(),
        leftovers: Leftovers::new(),
        addresses: None,
        finished: None,
    };
    supervisor.spare_orphans();
    supervisor.begin(actions)
}

/// What the loop stands on.
fn listen() -> io::Result<(Epoll, Signals)> {
    nix::sys::prctl::set_child_subreaper(true)?;
    // Whoever started us may ignore SIGCHLD, which we inherit: the kernel would then reap without a word.
    process::keep_exit_statuses()?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let signals = Signals::open()?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
    Ok((epoll, signals))
}

/// For this process and, as they inherit it, for all that come from it.
fn raise_descriptor_limit(config: &Config) {
    let limit = limits::raise_descriptors().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit on open descriptors can't be raised");
        limits::descriptors()
    });
    let (wanted, allowed) = (config.limits.max_connections, crate::worker::connections(config, limit));
    if allowed < wanted {
        tracing::warn!(
            descriptors = limit,
            "limits.max_connections is lowered from {wanted} to {allowed}: the descriptor limit allows no more; \
             raise the hard limit (ulimit -Hn, LimitNOFILE=) for the rest"
        );
    }
    if descriptors::crowd_out_select(limit, allowed as u64) {
        tracing::warn!(
            descriptors = limit,
            "the descriptor limit leaves too few numbers above 1,023 for all connections: with many of them handlers get \
             numbers that `select` can't wait for; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
}

struct Supervisor {
    epoll: Epoll,
    signals: Signals,
    state: SupervisorState,
    timers: BTreeMap<Timer, Instant>,
    /// Those that have not been reaped, by generation.
    templates: BTreeMap<GenerationId, TemplateRecord>,
    workers: WorkerRecords,
    handover: Handover,
    all_methods: AllMethods,
    scoreboard: Scoreboard<WorkerId>,
    /// The generation that serves.
    origin: Origin,
    settings: GenerationSettings,
    next: Option<NextGeneration>,
    config_path: Option<PathBuf>,
    /// What workers tell each other with that a connection waits.
    bell: OwnedFd,
    signs: SignsOfLife<WorkerId>,
    /// What happened and has not been decided about.
    events: VecDeque<Event>,
    quarantine: QuarantinePolicy,
    /// Another program is to take this one's place as soon as nothing is under way.
    successor_is_wanted: bool,
    forks: Refusals,
    /// What is said when everything has ended.
    last_word: Option<String>,
    lost: LostListeners,
    to_reap: ToReap,
    leftovers: Leftovers<WorkerId>,
    /// Where workers count their clients' addresses, once one of them does.
    addresses: Option<AddressRegions>,
    finished: Option<i32>,
}

impl Supervisor {
    fn begin(mut self, actions: Vec<Action>) -> io::Result<i32> {
        self.watch_listeners();
        // Children of whatever this process was before may have ended before their signal was listened to.
        self.reap();
        self.perform(actions);
        self.decide();
        self.serve()
    }

    fn serve(mut self) -> io::Result<i32> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            if let Some(code) = self.finished
                && !self.leftovers.is_waiting()
            {
                report::ended(self.scoreboard.ended(), &self.all_methods.names);
                if let Some(why) = &self.last_word {
                    tracing::error!("{why}");
                }
                return Ok(code);
            }
            let arrived = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(arrived) => arrived,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.iter().take(arrived) {
                self.arrived(event.data(), event.events());
                self.decide();
            }
            self.fire_timers();
            self.listen_again();
            self.end_leftovers_if_due();
            // Before the shares that it has looked at anew. Whoever goes on with others' connections knows by then whether new ones may
            // take their place.
            self.balance();
            self.share_out();
            self.hand_over();
            self.reap_if_nobody_waits();
            self.clear_addresses();
            self.grant_credit();
            self.check_for_life();
            log::tell_of_counted(false);
            self.give_way_to_successor();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let timers = self.timers.values().copied();
        let others = self
            .handover
            .moments()
            .chain(self.signs.next_check())
            .chain(self.quarantine.next_due())
            .chain(self.lost.next_try())
            .chain(self.leftovers.next_due())
            .chain(self.to_reap.latest);
        let Some(next) = timers.chain(others).min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, or the loop would spin through the last millisecond.
        let wait = next.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        EpollTimeout::try_from(wait.as_millis()).unwrap_or(EpollTimeout::MAX)
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        self.quarantine_due(now);
        let due: Vec<Timer> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            if let Timer::Boot(worker) = timer {
                // It may have said in time that it is ready, to a supervisor that was kept from reading.
                self.read_worker(worker);
                self.decide();
            }
            // One that fired before may have disarmed this one, or armed it anew.
            if self.timers.get(&timer).is_some_and(|at| *at <= now) {
                self.timers.remove(&timer);
                self.happened(Event::Due(timer));
                self.decide();
            }
        }
    }

    fn arrived(&mut self, token: u64, flags: EpollFlags) {
        match token {
            SIGNALS => self.read_signals(),
            LISTENER => self.look_at_listeners(),
            SOCKET_FILE => self.socket_file_event(),
            FIRST_TEMPLATE.. => {
                if let Ok(generation) = GenerationId::try_from(token - FIRST_TEMPLATE) {
                    self.template_channel(generation, flags);
                }
            }
            token => {
                if let Some(Ok(worker)) = token.checked_sub(FIRST_WORKER).map(WorkerId::try_from) {
                    self.worker_channel(worker, flags);
                }
            }
        }
    }

    /// Notes what happened. It is not decided about at once: actions report too, and what one event asks for must
    /// be done before the next is looked at.
    fn happened(&mut self, event: Event) {
        self.events.push_back(event);
    }

    fn decide(&mut self) {
        while let Some(event) = self.events.pop_front() {
            let actions = self.state.on(event, Instant::now());
            self.perform(actions);
        }
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::StartTemplate { generation } => {
                    // What is there by now is not what its preload is about to start.
                    self.end_leftovers();
                    self.start_template(generation);
                }
                Action::KillTemplate { generation } => self.kill_template(generation),
                Action::Fork { generation, worker, slot, doors_shut } => {
                    self.request_fork(generation, worker, slot, doors_shut);
                }
                Action::Open(worker) => self.tell(worker, &ToWorker::Open),
                Action::MarkNotReady(worker) => self.tell(worker, &ToWorker::MarkNotReady),
                Action::Leave(worker) => {
                    let gone = self.listeners_that_end_with(worker);
                    self.tell_to_end(worker, &ToWorker::Leave { gone });
                }
                Action::Drain(worker) => self.tell_to_end(worker, &ToWorker::Drain),
                Action::Kill(worker) => {
                    if let Some(worker) = self.workers.get_mut(worker) {
                        worker.kill();
                    }
                }
                Action::Abandon(worker) => self.abandon(worker),
                Action::Switch { generation } => self.switch(generation),
                Action::ReloadFailed { generation, why } => self.reload_failed(generation, &why),
                Action::CloseListeners => {
                    if let Some(listeners) = self.settings.listeners.take() {
                        listeners.retire(None);
                    }
                    self.workers.observe(&mut self.scoreboard);
                    report::draining(&self.scoreboard.sum());
                }
                Action::TurnAway => self.settings.listeners.iter().for_each(Listeners::turn_away),
                Action::Arm(timer, wait) => {
                    // A moment too far away to be told apart from never is never.
                    if let Some(at) = Instant::now().checked_add(wait) {
                        self.timers.insert(timer, at);
                    }
                }
                Action::Disarm(timer) => {
                    self.timers.remove(&timer);
                }
                Action::Tell(text) => tracing::info!("{text}"),
                Action::Warn(text) => tracing::warn!("{text}"),
                Action::Complain(text) => tracing::error!("{text}"),
                Action::LastWord(text) => self.last_word = Some(text),
                Action::Finish { code } => self.finished = Some(code),
            }
        }
    }
}

/// Asks to be woken for the channel's input, and for room in it while messages are queued.
fn watch(epoll: &Epoll, channel: &Channel, token: u64) {
    let mut flags = EpollFlags::EPOLLIN;
    flags.set(EpollFlags::EPOLLOUT, channel.has_queued());
    // A channel that has been closed is no longer in the set; then there is nothing to watch.
    let _ = epoll.modify(channel, &mut EpollEvent::new(flags, token));
}
