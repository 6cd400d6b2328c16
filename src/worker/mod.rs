//! A worker: one forked process that answers calls.
//!
//! ```text
//! listener → listening → connection → wire → rpc → dispatch → pool → handler → connection
//!                └─────────── poller ───────┘                  └── a thread of the pool ──┘
//! ```
//!
//! This file wires the parts together: it builds them after the fork, runs the loop around the poller, and ends
//! the process. `flow` moves calls; the other parts know nothing of each other.

mod buffers;
mod capacity;
mod connection;
mod deadlines;
mod dispatch;
mod doors;
mod flow;
mod listening;
mod poller;
mod pool;
mod table;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::arena::{ArenaWriter, State};
use crate::config::Config;
use crate::line::{self, FromWorker, Line, Received, ToWorker};
use crate::log;
use crate::rpc::{MethodIndex, Service, States, WorkerInfo};
use crate::sys::clock;
use crate::sys::limits;
use crate::sys::process;
use crate::sys::signals;
use crate::sys::socket::Listener;

use buffers::Buffers;
pub(crate) use capacity::connections;
use connection::{Bounds, Connection, Key};
use deadlines::Deadlines;
use dispatch::Gate;
use flow::{Hand, Job};
use listening::Door;
use poller::Poller;
use table::Table;

/// Bytes read from a connection in one go.
const SCRATCH: usize = 64 * 1024;

/// What a worker without a supervisor gets beyond the time to drain, to say that it ends.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Tokens whose index is not a connection's: connections are numbered from 0 and never get this far.
const LINE: u64 = u32::MAX as u64;
const WAKE: u64 = LINE - 1;
const TERM: u64 = LINE - 2;
const BELL: u64 = LINE - 3;
/// Listener `n` has the token `FIRST_DOOR - n`.
const FIRST_DOOR: u64 = LINE - 16;

/// What a worker is born with.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
    /// Its line, its arena, the bell, then the listeners in the order of the configuration.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Rows that the arena of a worker with this many pool threads has: one for each, and the poller's.
pub(crate) fn rows(threads: usize) -> usize {
    threads + 1
}

/// Lives a worker's life, in a process that was just forked and has one thread.
pub(crate) fn run(service: Service, config: Config, birth: Birth) -> ! {
    let _ = nix::sys::prctl::set_name(c"tine-worker");
    let mut descriptors = birth.descriptors.into_iter();
    let Some(line) = descriptors.next() else {
        process::exit_now(1);
    };
    let mut line = Line::from(line);
    let info = WorkerInfo::new(birth.slot, std::process::id(), u64::from(birth.generation), Instant::now());
    let worker = Worker::start(service, &config, info, &mut line, descriptors);
    match worker {
        Ok(worker) => process::exit_now(worker.serve(line)),
        Err(reason) => {
            // Where the supervisor is gone nobody is left to tell.
            let _ = line.send(&FromWorker::BootFailed { reason }, Vec::new());
            process::exit_now(1)
        }
    }
}

/// What every thread of the worker uses.
pub(crate) struct Shared {
    info: WorkerInfo,
    service: Service,
    states: States,
    bounds: Bounds,
    /// Each method's own time limit, by its number.
    timeouts: Vec<Duration>,
    request_timeout: Duration,
    slow: Duration,
    epoll: Arc<Epoll>,
    wake: EventFd,
    table: Mutex<Table>,
    deadlines: Arc<Deadlines<Due>>,
    gate: Gate,
    queue: Sender<Job>,
    buffers: Buffers,
    draining: AtomicBool,
    /// A door is shut until a connection leaves: the poller wants to hear of it.
    wants_room: AtomicBool,
    /// A door is shut until a thread is free: the poller wants to hear of it.
    wants_thread: AtomicBool,
}

/// Whose moment it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Due {
    Connection(Key),
    Door(usize),
    /// The supervisor is gone and the time to drain is up.
    DrainEnd,
}

/// The poller's side of the worker.
struct Worker {
    hand: Hand,
    poller: Poller<Due>,
    arena: ArenaWriter,
    doors: Vec<Option<Door>>,
    /// Rung by a worker that was woken for a connection it can't take; every worker hears it. The kernel wakes one
    /// worker for each connection, and that one was it.
    bell: OwnedFd,
    /// Connections this worker may hold.
    most_connections: usize,
    /// Other workers may have a free thread when this one has none.
    has_siblings: bool,
    drain: Duration,
    term: EventFd,
    log_lines_dropped: u64,
}

impl Worker {
    /// Sets everything up and reports readiness. The error says why that failed.
    fn start(
        service: Service,
        config: &Config,
        info: WorkerInfo,
        line: &mut Line,
        mut descriptors: impl Iterator<Item = OwnedFd>,
    ) -> Result<Self, String> {
        let failed = |what: &'static str| move |error: std::io::Error| format!("{what}: {error}");
        process::reset_signals();
        signals::ignore_what_is_for_the_supervisor().map_err(failed("signals"))?;
        // Hooks and states may never return, and then nobody here would see that the supervisor is gone.
        line.die_with_other_end().map_err(failed("line"))?;
        let term = signals::wake_on_term().map_err(failed("SIGTERM"))?;
        let pid = i32::try_from(info.pid()).unwrap_or_default();
        line.send(&FromWorker::Born { version: line::VERSION, pid }, Vec::new()).map_err(failed("line"))?;
        crate::sys::allocator::give_back_large_buffers();
        log::init(&config.log);
        log_panics(info.slot());
        let memory = descriptors.next().ok_or("the arena is missing")?;
        let mut arena = ArenaWriter::open(memory).map_err(|error| format!("arena: {error}"))?;
        arena.identify(info.pid(), info.generation(), info.slot(), clock::monotonic_ns());
        let bell = descriptors.next().ok_or("the bell is missing")?;
        let listeners = descriptors
            .map(Listener::inherited)
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed("listener"))?;

        let states = service.make_states(&info)?;
        service.worker_start(&info)?;
        // The gate bounds what waits; this is room for that and for what threads are about to take.
        let (queue, jobs) = crossbeam_channel::bounded(config.limits.queue + config.threads);
        let shared = Arc::new(Shared::new(service, states, config, info, queue).map_err(failed("epoll"))?);
        let row = arena.row(0).map_err(|error| format!("arena: {error}"))?;
        start_pool(&shared, &mut arena, config.threads, &jobs)?;

        shared.add(&*line, LINE).map_err(failed("line"))?;
        shared.add(&shared.wake, WAKE).map_err(failed("eventfd"))?;
        shared.add(&term, TERM).map_err(failed("eventfd"))?;
        shared.listen_for(&bell).map_err(failed("bell"))?;
        let doors = doors::open_all(&shared.epoll, listeners, config).map_err(failed("listener"))?;
        arena.set_state(State::Ready);
        line.live_on().map_err(failed("line"))?;
        line.send(&FromWorker::Ready, Vec::new()).map_err(failed("line"))?;
        Ok(Self {
            poller: Poller::new(Arc::clone(&shared.epoll), Arc::clone(&shared.deadlines)),
            hand: Hand::new(shared, row, 0),
            arena,
            doors,
            bell,
            most_connections: capacity::share(config, limits::descriptors()),
            has_siblings: config.processes > 1,
            drain: config.timeouts.drain,
            term,
            log_lines_dropped: 0,
        })
    }

    /// Serves until it is told to end and the last call is answered; the result is the exit code.
    fn serve(mut self, mut line: Line) -> i32 {
        let mut scratch = vec![0; SCRATCH];
        loop {
            let events: Vec<(u64, EpollFlags)> = match self.poller.wait() {
                Ok(events) => events.iter().map(|event| (event.data(), event.events())).collect(),
                Err(error) => {
                    tracing::error!(slot = self.slot(), %error, "epoll failed");
                    return 1;
                }
            };
            for (token, flags) in events {
                match token {
                    LINE => self.read_line(&mut line, &mut scratch),
                    TERM => self.leave(&mut line, &mut scratch),
                    WAKE => self.woken(),
                    BELL => self.rung(),
                    token if token & u64::from(u32::MAX) > FIRST_DOOR - 65_536 => {
                        self.visit(usize::try_from(FIRST_DOOR - token).unwrap_or(usize::MAX));
                    }
                    token => self.connection_event(key_of(token), flags, &mut scratch),
                }
            }
            if !self.fire_deadlines() {
                return 1;
            }
            if self.is_done() {
                break;
            }
            self.count_dropped_log_lines();
        }
        self.arena.set_state(State::Ended);
        self.bound_by_the_kernel();
        self.hand.shared.service.worker_stop(&self.hand.shared.info);
        0
    }

    fn connection_event(&mut self, key: Key, flags: EpollFlags, scratch: &mut [u8]) {
        let Some(connection) = self.hand.shared.find(key) else {
            return;
        };
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.hand.hung_up(&connection);
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.hand.writable(&connection);
        }
        let input =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if flags.intersects(input) {
            self.hand.readable(&connection, scratch);
        }
    }

    fn read_line(&mut self, line: &mut Line, scratch: &mut [u8]) {
        loop {
            match line.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Message(ToWorker::Drain, _)) => self.begin_draining(scratch),
                Ok(Received::Closed) => {
                    let _ = self.hand.shared.epoll.delete(line);
                    tracing::warn!(slot = self.slot(), "the supervisor is gone; finishing what has begun");
                    self.begin_draining(scratch);
                    self.bound_draining();
                    break;
                }
                Err(error) => tracing::warn!(slot = self.slot(), %error, "a message is not understood"),
            }
        }
    }

    /// Without a supervisor nobody else ends this process when the time to drain is up.
    fn bound_draining(&mut self) {
        if let Some(end) = Instant::now().checked_add(self.drain) {
            self.hand.shared.remind(end, Due::DrainEnd);
        }
        self.bound_by_the_kernel();
    }

    /// For a stop hook that never returns: its thread can't see that the supervisor is gone, be it already or only then.
    fn bound_by_the_kernel(&self) {
        if let Err(error) = process::kill_this_after(self.drain.saturating_add(LAST_WORDS)) {
            tracing::warn!(slot = self.slot(), %error, "there is no timer to end this process");
        }
    }

    /// SIGTERM to this process alone: it drains, and the supervisor replaces it.
    fn leave(&mut self, line: &mut Line, scratch: &mut [u8]) {
        let _ = self.term.read();
        // Where the supervisor is gone its line says so too.
        let _ = line.send(&FromWorker::Leaving, Vec::new());
        self.begin_draining(scratch);
    }

    fn begin_draining(&mut self, scratch: &mut [u8]) {
        if self.hand.shared.draining.swap(true, Ordering::SeqCst) {
            return;
        }
        self.arena.set_state(State::Draining);
        let epoll = Arc::clone(&self.hand.shared.epoll);
        for door in self.doors.iter_mut().filter_map(Option::take) {
            door.close(&epoll, |socket, peer, framing| self.hand.accepted(socket, peer, framing));
        }
        for connection in self.hand.shared.all_connections() {
            self.hand.drain(&connection, scratch);
        }
    }

    fn woken(&mut self) {
        let _ = self.hand.shared.wake.read();
        for key in self.hand.shared.buffers.feed() {
            self.hand.feed(key);
        }
        self.open_doors();
    }

    /// False when it is time to end whatever still runs.
    fn fire_deadlines(&mut self) -> bool {
        let shared = Arc::clone(&self.hand.shared);
        while let Some((at, due)) = shared.deadlines.next_due(Instant::now()) {
            match due {
                Due::Connection(key) => self.hand.due(key, at),
                Due::Door(number) => self.look_again(number),
                Due::DrainEnd => {
                    tracing::warn!(slot = shared.info.slot(), "calls still run after timeouts.drain; ended");
                    return false;
                }
            }
        }
        true
    }

    fn is_done(&self) -> bool {
        self.hand.shared.draining.load(Ordering::SeqCst) && self.hand.shared.table.lock().len() == 0
    }

    fn count_dropped_log_lines(&mut self) {
        let dropped = log::dropped_lines();
        if dropped != self.log_lines_dropped {
            self.hand.row.log_dropped(dropped.wrapping_sub(self.log_lines_dropped));
            self.log_lines_dropped = dropped;
        }
    }

    fn slot(&self) -> usize {
        self.hand.shared.info.slot()
    }
}

impl Shared {
    fn new(
        service: Service,
        states: States,
        config: &Config,
        info: WorkerInfo,
        queue: Sender<Job>,
    ) -> std::io::Result<Self> {
        let limits = &config.limits;
        let timeout_of = |name: &str| config.methods.get(name).and_then(|method| method.timeout);
        let request_timeout = config.timeouts.request;
        let timeouts =
            service.registry().names().map(|name| timeout_of(name).unwrap_or(request_timeout)).collect();
        Ok(Self {
            info,
            states,
            bounds: Bounds {
                in_flight: limits.in_flight_per_connection,
                output: limits.output,
                message: config.timeouts.message,
                idle: config.timeouts.idle,
                queue_wait: limits.queue_wait,
            },
            timeouts,
            request_timeout,
            slow: config.log.slow,
            epoll: Arc::new(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?),
            wake: EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?,
            table: Mutex::default(),
            deadlines: Arc::new(Deadlines::new()),
            gate: Gate::new(config.threads, limits.queue, limits.queue_wait),
            queue,
            buffers: Buffers::new(limits.buffers),
            draining: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            wants_thread: AtomicBool::new(false),
            service,
        })
    }

    fn add(&self, fd: impl std::os::fd::AsFd, token: u64) -> std::io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    fn find(&self, key: Key) -> Option<Arc<Connection>> {
        self.table.lock().get(key)
    }

    fn all_connections(&self) -> Vec<Arc<Connection>> {
        self.table.lock().all()
    }

    /// Has something looked at when its moment comes.
    fn remind(&self, at: Instant, due: Due) {
        self.remind_instead(at, due, None);
    }

    /// As `remind`, in place of the moment `before`.
    fn remind_instead(&self, at: Instant, due: Due, before: Option<Instant>) {
        if self.deadlines.add(at, due, before) {
            self.wake_poller();
        }
    }

    /// A call occupies its thread no longer.
    fn call_ended(&self) {
        self.gate.ended(clock::monotonic_ns());
        if self.wants_thread.load(Ordering::SeqCst) {
            self.wake_poller();
        }
    }

    fn wake_poller(&self) {
        // It fails only when the counter is full, and then the poller is awake enough.
        let _ = self.wake.write(1);
    }

    fn method_name(&self, method: MethodIndex) -> &str {
        self.service.registry().get(method).map_or("?", crate::rpc::Method::name)
    }
}

fn start_pool(
    shared: &Arc<Shared>,
    arena: &mut ArenaWriter,
    threads: usize,
    jobs: &Receiver<Job>,
) -> Result<(), String> {
    pool::start(threads, jobs, |thread| {
        let row = arena.row(thread).map_err(|error| format!("arena: {error}"))?;
        let shared = Arc::clone(shared);
        Ok(move || {
            shared.service.thread_start(&shared.info, thread)?;
            let mut hand = Hand::new(shared, row, thread);
            Ok(Box::new(move |job: Job| hand.run(&job)) as Box<dyn FnMut(Job)>)
        })
    })
}

/// A handler's panic goes to the log, with its place; the caller only learns that there was one.
fn log_panics(slot: usize) {
    std::panic::set_hook(Box::new(move |panic| {
        let place = panic.location().map_or_else(|| "an unknown place".to_string(), ToString::to_string);
        let payload = panic.payload();
        let text = payload.downcast_ref::<&str>().copied();
        let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
        let text = text.unwrap_or("a value that is not text");
        tracing::error!(slot, place, "a handler panicked: {text}");
    }));
}

fn token_of(key: Key) -> u64 {
    u64::from(key.generation) << 32 | u64::from(key.index)
}

fn key_of(token: u64) -> Key {
    Key {
        index: u32::try_from(token & u64::from(u32::MAX)).unwrap_or_default(),
        generation: (token >> 32) as u32,
    }
}
