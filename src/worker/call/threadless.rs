//! A worker without threads and without a supervisor: whoever has it is its poller and its pool, and decides what happens next.
//!
//! For tests of this module and, through `hostile`, for the fuzz target of the whole connection.

use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollTimeout};

use crate::arena::{ArenaWriter, Room, create};
use crate::config::Config;
use crate::rpc::{BoxError, Handler, Hooks, RegistryBuilder, Service, WorkerInfo};
use crate::worker::context::WorkerContext;
use crate::worker::due::Due;
use crate::worker::handover::keep::Notes;
use crate::worker::shared::Shared;
use crate::worker::threads::duty::Task;
use crate::worker::threads::poller_state::Todo;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::WAKE;

/// Events taken from the kernel in one go; there are few connections.
const EVENTS: usize = 8;

pub(super) struct Threadless {
    pub(super) poller: WorkerThread,
    pub(super) pool: WorkerThread,
    /// What a worker holds for its whole life, and a fuzzer that looks for lost memory would otherwise find lost.
    _arena: ArenaWriter,
    /// Its arena.
    #[cfg_attr(not(test), allow(dead_code, reason = "tests read it as another worker would"))]
    pub(super) memory: OwnedFd,
}

impl Threadless {
    /// With the methods that every worker has, and `slow`, which the pool runs.
    pub(super) fn open(config: &Config) -> Result<Self, BoxError> {
        let room = Room { rows: 2, methods: 8, connections: 4, buffers: 32 << 20 };
        let memory = create(&room)?;
        let mut arena = ArenaWriter::open(memory.try_clone()?)?;
        let mut methods = RegistryBuilder::default();
        methods.add("slow".to_owned(), "slow".to_owned(), Handler::typed(|_, text: String| Ok(text)));
        let registry = methods.build().map_err(|mistakes| mistakes.0.join("; "))?;
        let service = Service::new(registry, Hooks::default());
        let info = WorkerInfo::new(0, std::process::id(), 1, Instant::now());
        let states = service.make_states(&info)?;
        let records = (arena.records(), arena.blocks()?);
        let context = WorkerContext::open(service, config);
        let shared =
            &*Box::leak(Box::new(Shared::new(context, Box::leak(Box::new(states)), config, info, records)?));
        let mut poller = WorkerThread::new(shared, arena.row(0)?, 0);
        poller.term = Some(shared.role.first_term());
        let pool = WorkerThread::new(shared, arena.row(1)?, 1);
        Ok(Self { poller, pool, _arena: arena, memory })
    }

    /// Does as poller what there is to do. False where there was nothing.
    pub(super) fn poll(&mut self) -> Result<bool, BoxError> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = self.poller.shared.epoll.wait(&mut events, EpollTimeout::ZERO)?;
        self.poller.look_at_the_clock();
        for event in events.iter().take(count) {
            self.poller.connection_event(event.data(), event.events());
        }
        // There is no supervisor that could keep them, and nobody to be told of their ends.
        for connection in self.poller.shared.take_unkept() {
            connection.kept.store(true, Ordering::Relaxed);
            self.poller.take_turn(connection.key);
            connection.kept.store(false, Ordering::Relaxed);
        }
        // As a poller that sleeps would: what nobody wakes it for does not happen.
        let is_woken = events.iter().take(count).any(|event| event.data() == WAKE);
        if is_woken {
            for key in self.poller.shared.buffers.feed() {
                self.poller.feed(key);
            }
            self.take_mail();
        }
        Ok(is_woken || count > 0)
    }

    /// Does what was put for the poller.
    pub(super) fn take_mail(&mut self) {
        for todo in self.poller.shared.for_poller.take() {
            match todo {
                Todo::Turn(key) => self.poller.take_turn(key),
                Todo::Displaced(job) => self.poller.displaced(&job),
                other => unreachable!("nobody puts {other:?}"),
            }
        }
    }

    /// Runs what waits for the pool, as one thread of it. False where nothing did.
    pub(super) fn run_all(&mut self) -> bool {
        let mut has_run = false;
        while let Some(task) = self.pool.shared.next_task_now() {
            if let Task::Run(job) = task {
                self.pool.run(&job);
            }
            has_run = true;
        }
        has_run
    }

    /// Has the next moment come at which time alone changes something. False where there is none.
    pub(super) fn pass_time(&mut self) -> bool {
        let next = self.poller.shared.deadlines.fall_asleep();
        self.poller.shared.deadlines.wake_up();
        let Some((at, due)) = next.and_then(|at| self.poller.shared.deadlines.next_due(at)) else {
            return false;
        };
        self.poller.now = at;
        if let Due::Connection(key) = due {
            self.poller.due(key, at);
        }
        true
    }

    /// Forgets what only a supervisor would be told, and nobody ever takes.
    pub(super) fn tell_nobody(&self) {
        *self.poller.shared.notes.lock() = Notes::new(Duration::MAX);
        self.poller.shared.outbox.take();
    }

    /// What connections have left behind that are gone, in words.
    pub(super) fn left_behind(&self) -> Option<String> {
        let shared = &self.poller.shared;
        let (connections, held) = (shared.table.lock().len(), shared.buffers.held());
        let waits = shared.deadlines.fall_asleep().is_some();
        shared.deadlines.wake_up();
        let (is_idle, tasks) = (shared.gate.is_idle(), shared.queue.len());
        let is_left = connections != 0 || held != 0 || waits || !is_idle || tasks != 0;
        is_left.then(|| {
            format!(
                "{connections} connections, {held} bytes, {tasks} tasks, a moment to wait for: {waits}, no call running: {is_idle}"
            )
        })
    }
}
