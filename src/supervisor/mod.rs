//! The supervisor: the parent process. It binds listeners, has workers forked, restarts and ends them.
//!
//! One thread, one epoll loop over signals, channels and alarms. The loop turns what the kernel and the channels report into events, asks
//! the policies what follows, and does that. It runs no user code, never blocks and never serves a call.
//!
//! ```text
//! parts.rs     what the supervisor consists of          tokens.rs    what epoll calls the things that it waits for
//! report.rs    what the log says of the whole service   needs.rs     what the limits of the process must allow
//! policy/      decides: values in, decisions out
//! children/    templates and workers, and their ends    contract.rs  what fuzz targets hold this to
//! listeners/   the sockets that the service listens on
//! handover/    connections that move between workers
//! reload/      generations, and the exec hand-off
//! ```

mod children;
pub(crate) mod contract;
mod handover;
mod listeners;
mod needs;
mod parts;
mod policy;
mod reload;
mod report;
mod tokens;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::path::PathBuf;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use crate::arena::{Scoreboard, Totals};
use crate::channel::ToWorker;
use crate::config::{Config, Source};
use crate::log;
use crate::rpc::{About, TINE};
use crate::sys::exec::Program;

use children::blame;
use children::records::WorkerRecords;
use handover::book::Handover;
pub(crate) use listeners::bound::Listeners;
use listeners::watches::LostListeners;
pub(crate) use needs::check as check_limits;
use needs::raise_descriptor_limit;
use parts::{Supervisor, listen};
use policy::Policy;
use policy::leftovers::Leftovers;
use policy::quarantine::QuarantinePolicy;
use policy::reaping::Reaping;
use policy::restart::Refusals;
use policy::signs_of_life::SignsOfLife;
use policy::state::{Action, GenerationId, SupervisorState, WorkerId};
use policy::timers::{Alarm, TimerQueue};
use reload::exec_handoff::resume;
pub(crate) use reload::exec_handoff::{ExecHandoff, inherited};
use reload::generation::{GenerationSettings, Origin, state_settings};
use reload::methods::{AllMethods, Methods};
use tokens::{FIRST_TEMPLATE, FIRST_WORKER, LISTENER, SIGNALS, SOCKET_FILE};

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
    let (state, actions) = SupervisorState::start(state_settings(config));
    let origin = Origin { number: 1, program: setup.program, source: setup.source };
    let bell = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
    let quarantine = QuarantinePolicy::new(blame::limits(config));
    let mut supervisor = Supervisor {
        epoll,
        signals,
        state,
        alarms: TimerQueue::default(),
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
        reaping: Reaping::default(),
        taken_in: BTreeSet::new(),
        leftovers: Leftovers::new(),
        addresses: None,
        finished: None,
    };
    supervisor.spare_orphans();
    supervisor.begin(actions)
}

/// Goes on where the program before has stopped, until the service has ended; the result is the process's exit code.
///
/// # Errors
///
/// The kernel refuses what the loop itself stands on, or the hand-off is not what it says.
pub(crate) fn go_on(handoff: ExecHandoff, about: &About) -> io::Result<i32> {
    let (supervisor, actions) = resume(handoff, about)?;
    supervisor.begin(actions)
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
            let timeout = self.timeout();
            let arrived = match self.epoll.wait(&mut events, timeout) {
                Ok(arrived) => arrived,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.iter().take(arrived) {
                self.arrived(event.data(), event.events());
                self.decide();
            }
            self.ring_alarms();
            // Whoever adopts connections knows by then whether new ones may take their place.
            self.share_out();
            self.hand_over();
            self.reap_if_nobody_waits();
            self.clear_addresses();
            self.grant_credit();
            log::tell_of_counted(false);
            self.give_way_to_successor();
        }
    }

    /// Has the timer queue know when each policy has something to decide. Every policy is in this list.
    fn set_alarms(&mut self) {
        let alarms = &mut self.alarms;
        alarms.follow(Alarm::Quarantine, &self.quarantine);
        alarms.follow(Alarm::State, &self.state);
        alarms.follow(Alarm::LostListeners, &self.lost.rebinding);
        alarms.follow(Alarm::Leftovers, &self.leftovers);
        alarms.follow(Alarm::Balance, &self.handover.balance);
        alarms.follow(Alarm::HandOver, &self.handover.retry);
        alarms.follow(Alarm::Reaping, &self.reaping);
        alarms.follow(Alarm::SignsOfLife, &self.signs);
    }

    fn timeout(&mut self) -> EpollTimeout {
        self.set_alarms();
        let Some(next) = self.alarms.next() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, or the loop would spin through the last millisecond.
        let wait = next.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        EpollTimeout::try_from(wait.as_millis()).unwrap_or(EpollTimeout::MAX)
    }

    /// Each alarm rings once in a round at most.
    fn ring_alarms(&mut self) {
        self.set_alarms();
        let now = Instant::now();
        while let Some(alarm) = self.alarms.take_due(now) {
            match alarm {
                Alarm::Quarantine => self.quarantine_due(now),
                Alarm::State => self.fire_timers(now),
                Alarm::LostListeners => self.listen_again(),
                Alarm::Leftovers => self.end_leftovers(),
                Alarm::Balance => self.balance(),
                // Each round hands over and reaps: the alarm has woken the loop for it.
                Alarm::HandOver => drop(self.handover.retry.due(now, ())),
                Alarm::Reaping => {}
                Alarm::SignsOfLife => self.check_for_life(),
            }
            self.decide();
        }
    }

    fn fire_timers(&mut self, now: Instant) {
        // A worker may have said in time that it is ready, to a supervisor that was kept from reading.
        for worker in self.workers.not_ready() {
            self.read_worker(worker);
        }
        self.decide();
        while self.state.next_due().is_some_and(|at| at <= now) {
            let actions = self.state.due(now, ());
            self.perform(actions);
            self.decide();
        }
    }

    /// Checks the workers that are to be checked. An answer may wait to be read, and counts.
    fn check_for_life(&mut self) {
        for worker in self.signs.asked() {
            self.read_worker(worker);
        }
        self.decide();
        self.judge_signs_of_life();
    }

    /// Reaps who has ended, once those who waited for it have been handed over.
    fn reap_if_nobody_waits(&mut self) {
        let connections_wait = self.handover.escrow.waiting() > 0 && self.finished.is_none();
        if self.reaping.due(Instant::now(), connections_wait) {
            self.reap();
            // Some ends are only seen now.
            self.decide();
            self.hand_over();
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
                // A moment too far away to be told apart from never is never.
                Action::Arm(timer, wait) => self.state.arm(timer, Instant::now().checked_add(wait)),
                Action::Disarm(timer) => self.state.disarm(timer),
                Action::Tell(text) => tracing::info!("{text}"),
                Action::Warn(text) => tracing::warn!("{text}"),
                Action::Complain(text) => tracing::error!("{text}"),
                Action::LastWord(text) => self.last_word = Some(text),
                Action::Finish { code } => self.finished = Some(code),
            }
        }
    }
}
