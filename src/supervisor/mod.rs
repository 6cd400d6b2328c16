//! The supervisor: the parent process. It binds, has workers forked, reaps, restarts and ends them.
//!
//! One thread, one epoll loop over signals, lines and timers. The loop turns what the kernel and the lines report
//! into events for `state`, which decides, and performs the actions that come back. It runs no user code, never
//! blocks and never serves a call.

mod children;
mod listeners;
mod report;
mod restart;
mod state;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::arena::{self, ArenaReader, Scoreboard, Totals};
use crate::config::{Config, Source};
use crate::line::{self, FromTemplate, FromWorker, Line, Received, ToTemplate, ToWorker};
use crate::sys::clock;
use crate::sys::exec::Program;
use crate::sys::limits;
use crate::sys::process::{self, Ended, Reaped};
use crate::sys::signals::Signals;

use children::{Template, Worker, Workers};
pub(crate) use listeners::Listeners;
use state::{Action, Event, Request, Settings, State, Timer, WorkerEvent, WorkerId};

/// All that a supervisor starts from.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) program: Program,
    pub(crate) source: Source,
    pub(crate) config: Config,
    pub(crate) listeners: Listeners,
}

const SIGNALS: u64 = 0;
const TEMPLATE: u64 = 1;
/// Worker process `n` has the token `FIRST_WORKER + n`.
const FIRST_WORKER: u64 = 2;

/// The only generation there is until reload exists.
const GENERATION: u32 = 1;

/// Runs the service until it has ended; the result is the process's exit code.
///
/// # Errors
///
/// The kernel refuses what the loop itself stands on (epoll, signalfd).
pub(crate) fn run(setup: Setup) -> io::Result<i32> {
    nix::sys::prctl::set_child_subreaper(true)?;
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    let signals = Signals::open()?;
    epoll.add(&signals, EpollEvent::new(EpollFlags::EPOLLIN, SIGNALS))?;
    let config = &setup.config;
    let addresses: Vec<&str> = setup.listeners.addresses().collect();
    tracing::info!(
        pid = std::process::id(),
        processes = config.processes,
        threads = config.threads,
        listen = addresses.join(", "),
        "listening"
    );
    raise_descriptor_limit(config);
    let (state, actions) = State::start(settings(config));
    let mut supervisor = Supervisor {
        epoll,
        signals,
        state,
        timers: BTreeMap::new(),
        template: None,
        workers: Workers::default(),
        methods: Vec::new(),
        scoreboard: Scoreboard::new(Totals::default()),
        rows: crate::worker::rows(config.threads),
        program: setup.program,
        source: setup.source,
        bell: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
        listeners: Some(setup.listeners),
        finished: None,
    };
    supervisor.perform(actions);
    supervisor.serve()
}

/// For this process and, as they inherit it, for all that come from it.
fn raise_descriptor_limit(config: &Config) {
    let descriptors = limits::raise_descriptors().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit on open descriptors can't be raised");
        limits::descriptors()
    });
    let (wanted, allowed) = (config.limits.max_connections, crate::worker::connections(config, descriptors));
    if allowed < wanted {
        tracing::warn!(
            descriptors,
            "limits.max_connections is lowered from {wanted} to {allowed}: the descriptor limit allows no more; \
             raise the hard limit (ulimit -Hn, LimitNOFILE=) for the rest"
        );
    }
}

fn settings(config: &Config) -> Settings {
    Settings {
        processes: config.processes,
        restart: restart::Limits {
            max_restarts: config.restart.max_restarts,
            window: config.restart.window,
            backoff: config.restart.backoff,
            backoff_max: config.restart.backoff_max,
        },
        boot: config.timeouts.boot,
        drain: config.timeouts.drain,
        pre_stop: config.timeouts.pre_stop,
    }
}

struct Supervisor {
    epoll: Epoll,
    signals: Signals,
    state: State,
    timers: BTreeMap<Timer, Instant>,
    template: Option<Template>,
    workers: Workers,
    /// The template's methods, in the order of their numbers in an arena.
    methods: Vec<String>,
    scoreboard: Scoreboard<WorkerId>,
    /// Rows of a worker's arena.
    rows: usize,
    program: Program,
    source: Source,
    /// What workers tell each other with that a connection waits.
    bell: EventFd,
    /// None once accepting has ended.
    listeners: Option<Listeners>,
    finished: Option<i32>,
}

impl Supervisor {
    fn serve(mut self) -> io::Result<i32> {
        let mut events = [EpollEvent::empty(); 64];
        loop {
            if let Some(code) = self.finished {
                report::ended(self.scoreboard.ended(), &self.methods);
                return Ok(code);
            }
            let arrived = match self.epoll.wait(&mut events, self.timeout()) {
                Ok(arrived) => arrived,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(errno) => return Err(errno.into()),
            };
            for event in events.iter().take(arrived) {
                self.arrived(event.data(), event.events());
            }
            self.fire_timers();
        }
    }

    fn timeout(&self) -> EpollTimeout {
        let Some(next) = self.timers.values().min() else {
            return EpollTimeout::NONE;
        };
        // Rounded up, or the loop would spin through the last millisecond.
        let wait = next.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
        EpollTimeout::try_from(wait.as_millis()).unwrap_or(EpollTimeout::MAX)
    }

    fn fire_timers(&mut self) {
        let now = Instant::now();
        let due: Vec<Timer> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(timer, _)| *timer).collect();
        for timer in due {
            self.timers.remove(&timer);
            self.happened(Event::Due(timer));
        }
    }

    fn arrived(&mut self, token: u64, flags: EpollFlags) {
        match token {
            SIGNALS => self.read_signals(),
            TEMPLATE => self.template_line(flags),
            token => {
                if let Ok(worker) = WorkerId::try_from(token - FIRST_WORKER) {
                    self.worker_line(worker, flags);
                }
            }
        }
    }

    fn happened(&mut self, event: Event) {
        let actions = self.state.on(event, Instant::now());
        self.perform(actions);
    }

    fn perform(&mut self, actions: Vec<Action>) {
        for action in actions {
            match action {
                Action::StartTemplate => self.start_template(),
                Action::KillTemplate => self.kill_template(),
                Action::Fork { worker, slot } => self.request_fork(worker, slot),
                Action::Drain(worker) => self.tell_to_drain(worker),
                Action::Kill(worker) => {
                    if let Some(worker) = self.workers.get_mut(worker) {
                        worker.kill();
                    }
                }
                Action::Abandon(worker) => self.abandon(worker),
                Action::CloseListeners => {
                    self.listeners = None;
                    self.workers.observe(&mut self.scoreboard);
                    report::draining(&self.scoreboard.sum());
                }
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
                Action::Finish { code } => self.finished = Some(code),
            }
        }
    }
}

/// Signals and children that have ended.
impl Supervisor {
    fn read_signals(&mut self) {
        let mut child_ended = false;
        loop {
            match self.signals.next() {
                Ok(None) => break,
                Ok(Some(Signal::SIGCHLD)) => child_ended = true,
                Ok(Some(signal)) => self.signalled(signal),
                Err(error) => {
                    tracing::error!(%error, "signals can't be read");
                    break;
                }
            }
        }
        // Signals of one kind merge, so one SIGCHLD may stand for many children.
        if child_ended {
            self.reap();
        }
    }

    fn signalled(&mut self, signal: Signal) {
        tracing::info!(%signal, "signal");
        match signal {
            Signal::SIGTERM => self.happened(Event::Asked(Request::Stop)),
            Signal::SIGINT => self.happened(Event::Asked(Request::StopOrEnd)),
            Signal::SIGQUIT => self.happened(Event::Asked(Request::End)),
            Signal::SIGTTIN => self.happened(Event::Asked(Request::OneMore)),
            Signal::SIGTTOU => self.happened(Event::Asked(Request::OneFewer)),
            Signal::SIGHUP | Signal::SIGUSR2 => {
                tracing::warn!(
                    "this version can't reload; restart it to use a changed configuration or program"
                );
            }
            // There is no log file to open again.
            _ => {}
        }
    }

    fn reap(&mut self) {
        loop {
            match process::reap_any() {
                Ok(Reaped::Child(pid, ended)) => self.child_ended(pid, ended),
                Ok(Reaped::NoneYet | Reaped::NoChildren) => break,
                Err(error) => {
                    tracing::error!(%error, "children can't be reaped");
                    break;
                }
            }
        }
    }

    fn child_ended(&mut self, pid: Pid, ended: Ended) {
        if self.template.as_ref().is_some_and(|template| template.pid == pid) {
            self.template_ended(ended);
            return;
        }
        if self.workers.with_pid(pid).is_none() {
            // Its first message may still wait to be read.
            for worker in self.workers.unborn() {
                self.read_worker(worker);
            }
        }
        match self.workers.with_pid(pid) {
            Some(worker) => self.worker_ended(worker, ended),
            // A grandchild that came to us as its subreaper, or a process that died unborn.
            None => tracing::debug!(%pid, cause = %ended, "reaped a child of nobody"),
        }
    }

    fn worker_ended(&mut self, id: WorkerId, ended: Ended) {
        // What it said last counts: its line is read dry before anything is decided.
        self.read_worker(id);
        let Some(worker) = self.workers.remove(id) else {
            return;
        };
        if worker.line_open {
            let _ = self.epoll.delete(&worker.line);
        }
        let last = worker.arena.snapshot(clock::monotonic_ns());
        worker.log_end(ended, &last, &self.methods);
        let answered = worker.arena.answered() > 0;
        self.scoreboard.end(&id, Some(&last));
        self.happened(Event::Worker(id, WorkerEvent::Ended { answered }));
    }

    fn template_ended(&mut self, ended: Ended) {
        self.read_template();
        if let Some(template) = self.template.take() {
            if template.line_open {
                let _ = self.epoll.delete(&template.line);
            }
            let uptime = format!("{:.1?}", template.started.elapsed());
            if template.end_expected {
                tracing::debug!(pid = %template.pid, uptime, cause = %ended, "template ended");
            } else {
                tracing::error!(pid = %template.pid, uptime, cause = %ended, "template died");
            }
        }
        self.happened(Event::TemplateEnded);
    }
}

/// The template: starting it and talking to it.
impl Supervisor {
    fn start_template(&mut self) {
        if let Err(error) = self.try_start_template() {
            tracing::warn!(%error, "a template can't be started");
            self.happened(Event::TemplateRefused);
        }
    }

    fn try_start_template(&mut self) -> io::Result<()> {
        let (mut line, far_end) = Line::pair()?;
        let config = children::text_in_memory(&self.source.text)?;
        let begin = ToTemplate::Begin {
            version: line::VERSION,
            generation: GENERATION,
            source: self.source.name.clone(),
        };
        line.send(&begin, vec![config])?;
        self.epoll.add(&line, EpollEvent::new(EpollFlags::EPOLLIN, TEMPLATE))?;
        let pid = self.program.start(line::TEMPLATE_VARIABLE, &far_end, |far_end, error| {
            let Ok(far_end) = far_end.try_clone() else { return };
            let reason = format!("the program can't be executed again: {error}");
            // The child that runs this ends right after: nothing is left to do if the line is broken too.
            let _ = Line::from(far_end).send(&FromTemplate::Failed { reason }, Vec::new());
        })?;
        tracing::debug!(%pid, generation = GENERATION, "template started");
        self.template =
            Some(Template { pid, line, line_open: true, end_expected: false, started: Instant::now() });
        Ok(())
    }

    fn kill_template(&mut self) {
        if let Some(template) = &mut self.template {
            template.end_expected = true;
            if let Err(error) = process::kill(template.pid, Signal::SIGKILL) {
                tracing::warn!(pid = %template.pid, %error, "the template can't be killed");
            }
        }
    }

    fn template_line(&mut self, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT)
            && let Some(template) = &mut self.template
        {
            let _ = template.line.flush();
            watch(&self.epoll, &template.line, TEMPLATE);
        }
        self.read_template();
    }

    fn read_template(&mut self) {
        while let Some(template) = self.template.as_mut().filter(|template| template.line_open) {
            match template.line.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    let _ = self.epoll.delete(&template.line);
                    template.line_open = false;
                }
                Ok(Received::Message(message, _)) => self.template_says(message),
                Err(error) => tracing::warn!(%error, "a message of the template is not understood"),
            }
        }
    }

    fn template_says(&mut self, message: FromTemplate) {
        match message {
            FromTemplate::Ready { version, methods } if version == line::VERSION => {
                self.methods = methods;
                self.happened(Event::TemplateReady);
            }
            FromTemplate::Ready { version, .. } => {
                tracing::error!(
                    expected = line::VERSION,
                    found = version,
                    "the template is of another version of this program"
                );
                self.kill_template();
                self.happened(Event::TemplateFailed);
            }
            FromTemplate::Failed { reason } => {
                tracing::error!("{reason}");
                if let Some(template) = &mut self.template {
                    template.end_expected = true;
                }
                self.happened(Event::TemplateFailed);
            }
            FromTemplate::ForkFailed { worker, reason } => {
                tracing::warn!(reason, "the kernel refused to fork a worker");
                self.forget_unborn(worker, WorkerEvent::ForkRefused);
            }
        }
    }

    fn request_fork(&mut self, worker: WorkerId, slot: usize) {
        if let Err(error) = self.try_request_fork(worker, slot) {
            tracing::warn!(slot, %error, "a worker can't be started");
            self.forget_unborn(worker, WorkerEvent::ForkRefused);
        }
    }

    fn try_request_fork(&mut self, id: WorkerId, slot: usize) -> io::Result<()> {
        let (Some(template), Some(listeners)) = (&mut self.template, &self.listeners) else {
            return Err(io::Error::other("there is no template"));
        };
        let (line, far_end) = Line::pair()?;
        let memory = arena::create(self.rows, self.methods.len())?;
        let arena = ArenaReader::open(&memory).map_err(io::Error::other)?;
        let mut descriptors: Vec<OwnedFd> = vec![far_end, memory, self.bell.as_fd().try_clone_to_owned()?];
        descriptors.extend(listeners.duplicates()?);
        self.epoll.add(&line, EpollEvent::new(EpollFlags::EPOLLIN, token(id)))?;
        let worker = Worker {
            slot,
            pid: None,
            line,
            line_open: true,
            arena,
            started: Instant::now(),
            end_expected: false,
        };
        self.workers.insert(id, worker);
        template.line.send(&ToTemplate::Fork { worker: id, slot }, descriptors)?;
        watch(&self.epoll, &template.line, TEMPLATE);
        Ok(())
    }

    fn forget_unborn(&mut self, id: WorkerId, event: WorkerEvent) {
        self.abandon(id);
        self.happened(Event::Worker(id, event));
    }

    fn abandon(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.remove(id)
            && worker.line_open
        {
            let _ = self.epoll.delete(&worker.line);
        }
    }
}

/// Workers: talking to them.
impl Supervisor {
    fn tell_to_drain(&mut self, id: WorkerId) {
        if let Some(worker) = self.workers.get_mut(id) {
            worker.end_expected = true;
            if let Err(error) = worker.line.send(&ToWorker::Drain, Vec::new()) {
                tracing::warn!(slot = worker.slot, %error, "a worker can't be told to drain and is killed");
                worker.kill();
            } else {
                watch(&self.epoll, &worker.line, token(id));
            }
        }
    }

    fn worker_line(&mut self, id: WorkerId, flags: EpollFlags) {
        if flags.contains(EpollFlags::EPOLLOUT)
            && let Some(worker) = self.workers.get_mut(id)
        {
            let _ = worker.line.flush();
            watch(&self.epoll, &worker.line, token(id));
        }
        self.read_worker(id);
        // An unborn process whose line is closed will never say its pid.
        if self.workers.get_mut(id).is_some_and(|worker| !worker.line_open && worker.pid.is_none()) {
            self.forget_unborn(id, WorkerEvent::Vanished);
        }
    }

    fn read_worker(&mut self, id: WorkerId) {
        while let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.line_open) {
            match worker.line.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Closed) => {
                    let _ = self.epoll.delete(&worker.line);
                    worker.line_open = false;
                }
                Ok(Received::Message(message, _)) => self.worker_says(id, message),
                Err(error) => {
                    tracing::warn!(slot = worker.slot, %error, "a message of a worker is not understood");
                }
            }
        }
    }

    fn worker_says(&mut self, id: WorkerId, message: FromWorker) {
        let Some(worker) = self.workers.get_mut(id) else {
            return;
        };
        let slot = worker.slot;
        let event = match message {
            FromWorker::Born { pid, .. } => {
                worker.pid = Some(Pid::from_raw(pid));
                WorkerEvent::Born
            }
            FromWorker::Ready => {
                let pid = worker.pid.map_or(0, Pid::as_raw);
                let after = format!("{:.1?}", worker.started.elapsed());
                tracing::info!(slot, pid, generation = GENERATION, after, "worker ready");
                WorkerEvent::Ready
            }
            FromWorker::BootFailed { reason } => {
                tracing::error!(slot, "a worker can't start: {reason}");
                return;
            }
            FromWorker::Leaving => {
                worker.end_expected = true;
                tracing::info!(slot, "a worker was signalled to end; it drains and is replaced");
                WorkerEvent::Leaving
            }
        };
        self.happened(Event::Worker(id, event));
    }
}

fn token(worker: WorkerId) -> u64 {
    FIRST_WORKER + u64::from(worker)
}

/// Asks to be woken for the line's input, and for room in it while messages are queued.
fn watch(epoll: &Epoll, line: &Line, token: u64) {
    let mut flags = EpollFlags::EPOLLIN;
    flags.set(EpollFlags::EPOLLOUT, line.has_queued());
    // A line that has been closed is no longer in the set; then there is nothing to watch.
    let _ = epoll.modify(line, &mut EpollEvent::new(flags, token));
}
