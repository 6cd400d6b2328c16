//! A worker: one forked process that answers calls.
//!
//! ```text
//! listener → listening → connection → wire → rpc ─ quick ─→ handler → connection
//!                                             └─ slow ─→ dispatch → pool → handler → connection
//! ```
//!
//! This file wires the parts together and builds them after the fork. `duty` is what each thread does, `desk` what the
//! poller looks after, `flow` moves calls; the other parts know nothing of each other.

mod adopt;
mod answer_sizes;
mod buffers;
mod caller;
mod capacity;
mod chunk;
mod concurrency;
mod connection;
mod counted;
mod deadlines;
mod desk;
mod dispatch;
mod doors;
mod duty;
mod eviction;
mod flow;
mod health;
mod keep;
mod leave;
mod life;
mod listening;
mod mailbox;
mod overdue;
mod pace;
mod panics;
mod per_address;
mod poller;
mod pool;
mod quarantine;
mod queue;
mod recycle;
mod reserve;
mod role;
mod runs;
mod site;
mod start;
mod table;
mod ticket;
mod turns;
mod vitals;

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use crate::addresses::Addresses;
use crate::arena::{Key, Records, Room};
use crate::channel::FromWorker;
use crate::config::Config;
use crate::rpc::{MethodIndex, States, WorkerInfo};
use crate::sys::blocks::Pool;
use crate::sys::descriptors;
use site::Site;

use answer_sizes::AnswerSizes;
use buffers::Buffers;
pub(crate) use capacity::{connections, kept, share};
use concurrency::Concurrency;
use connection::{Bounds, Connection};
use deadlines::Deadlines;
use desk::Todo;
use dispatch::Gate;
use duty::Task;
use flow::Job;
#[cfg(fuzzing)]
pub(crate) use flow::hostile::hold;
use keep::Notes;
pub(crate) use leave::GIVE_UP_LETTING_GO;
pub(crate) use life::LOOKS;
use mailbox::Mailbox;
use overdue::Overdue;
use pace::Paces;
use quarantine::Quarantine;
use queue::Queue;
use role::Role;
use runs::Runs;
pub(crate) use start::{Birth, run};
use table::Table;

/// Tokens whose index is not a connection's: connections are numbered from 0 and never get this far.
const CHANNEL: u64 = u32::MAX as u64;
const WAKE: u64 = CHANNEL - 1;
const TERM: u64 = CHANNEL - 2;
const BELL: u64 = CHANNEL - 3;
/// Listener `n` has the token `FIRST_DOOR - n`.
const FIRST_DOOR: u64 = CHANNEL - 16;

/// What the arena of a worker has room for, but for its methods.
pub(crate) fn room(config: &Config) -> Room {
    Room {
        rows: rows(config.threads),
        methods: 0,
        connections: capacity::most(config),
        buffers: config.limits.buffers,
    }
}

/// Threads that may run calls in a worker with this many pool threads: these, the poller and the watch. Each has a row
/// of the arena.
fn rows(threads: usize) -> usize {
    threads + 2
}

/// Threads that such a worker starts: all of those but the main one.
pub(crate) fn threads_beside_main(threads: usize) -> usize {
    rows(threads) - 1
}

/// What every thread of the worker uses.
pub(crate) struct Shared {
    info: WorkerInfo,
    site: &'static Site,
    states: &'static States,
    bounds: Bounds,
    /// Each method's own time limit, by its number.
    timeouts: Vec<Duration>,
    request_timeout: Duration,
    slow: Duration,
    epoll: Arc<Epoll>,
    /// Always readable, and in epoll as a one-shot that is armed to wake the poller.
    wake: OwnedFd,
    table: Mutex<Table>,
    /// The longest message that is read, on whatever connection.
    max_message: usize,
    records: Records,
    /// How many connections each client address has in the service, where that is limited.
    addresses: Option<Addresses>,
    per_address: u64,
    pool: &'static Pool,
    deadlines: Arc<Deadlines<Due>>,
    role: Role,
    /// Where the call is that the poller runs, or ran last: a connection's token.
    inline_at: AtomicU64,
    /// That connection's place in the queue.
    inline_lane: AtomicU64,
    /// Connections that wait until the poller comes round to them, and calls that gave way to another caller's and are not answered
    /// yet.
    for_poller: Mailbox<Todo>,
    paces: Paces,
    answer_sizes: AnswerSizes,
    quarantine: Quarantine,
    /// What the supervisor is to hear; the poller has the channel.
    outbox: Mailbox<FromWorker>,
    gate: Gate,
    runs: Runs,
    concurrency: Concurrency<Box<Job>>,
    queue: Queue<Task>,
    /// What a thread gets beyond its call's deadline.
    stuck: Duration,
    overdue: Mutex<Overdue>,
    buffers: Buffers,
    /// This worker ends and the service goes on: connections go to others.
    leaving: AtomicBool,
    notes: Mutex<Notes>,
    /// There are connections that the supervisor was not sent at the end of the poller's last round.
    has_new: AtomicBool,
    /// The word that there is no watch lies in the queue.
    wants_watch: AtomicBool,
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
    /// There is something to tell the supervisor about connections.
    Notes,
    /// The supervisor is to be told what was adopted.
    Adoptions,
    /// The worker may have reached a limit of `[recycle]`.
    Limits,
    /// Memory that nobody has wanted for a while goes back.
    Tidying,
    /// Somebody may give way to a connection that has no place.
    Places,
    /// A connection that was to go to a worker with less to do could not go, and is served again.
    TakeBack(Key),
    /// A worker that leaves serves those connections on that could not go yet.
    LeaveLate,
    /// The time to drain is nearly up for a worker that leaves.
    LeaveLast,
    /// The time to drain is up for a worker that leaves.
    LeaveEnd,
    /// A thread has been in this call of a connection for too long.
    Stuck(Key, u64),
    /// The time to drain is nearly up for a worker of a service that ends.
    LastWords,
    /// The supervisor is gone and the time to drain is up.
    DrainEnd,
}

impl Shared {
    fn new(
        site: &'static Site,
        states: &'static States,
        config: &Config,
        info: WorkerInfo,
        (records, pool): (Records, &'static Pool),
    ) -> std::io::Result<Self> {
        let limits = &config.limits;
        let registry = site.service.registry();
        let names = registry.names();
        let concurrency_of = |name| config.methods.get(name).and_then(|method| method.concurrency);
        let concurrency =
            Concurrency::new(names.map(concurrency_of).collect(), limits.queue, limits.queue_wait);
        let timeout_of = |name: &str| config.methods.get(name).and_then(|method| method.timeout);
        let request_timeout = config.timeouts.request;
        let timeouts = registry.names().map(|name| timeout_of(name).unwrap_or(request_timeout)).collect();
        let epoll = Epoll(descriptors::control(Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?.0));
        let wake = EventFd::from_value_and_flags(1, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let wake = descriptors::control(wake.into());
        epoll.add(&wake, EpollEvent::new(EpollFlags::EPOLLONESHOT, WAKE))?;
        Ok(Self {
            info,
            states,
            bounds: Bounds {
                in_flight: limits.in_flight_per_connection,
                in_batch: config.threads,
                output: limits.output,
                message: config.timeouts.message,
                idle: config.timeouts.idle,
                first_byte: config.timeouts.first_byte,
                queue_wait: limits.queue_wait,
            },
            timeouts,
            request_timeout,
            slow: config.log.slow,
            epoll: Arc::new(epoll),
            wake,
            table: Mutex::default(),
            max_message: limits.max_message,
            records,
            addresses: None,
            per_address: limits.per_address as u64,
            pool,
            deadlines: Arc::new(Deadlines::new()),
            role: Role::new(),
            inline_at: AtomicU64::new(0),
            inline_lane: AtomicU64::new(0),
            for_poller: Mailbox::default(),
            paces: Paces::new(registry),
            answer_sizes: AnswerSizes::new(registry.names().count()),
            quarantine: Quarantine::new(registry),
            outbox: Mailbox::default(),
            gate: Gate::new(config.threads, limits.queue, limits.queue_wait),
            runs: Runs::new(rows(config.threads), registry.names().len()),
            concurrency,
            // The gates bound what waits; this is room for that and for what was adopted.
            queue: Queue::new(limits.queue.saturating_mul(2) + rows(config.threads), config.threads),
            stuck: config.timeouts.stuck,
            overdue: Mutex::default(),
            buffers: Buffers::new(limits.buffers),
            leaving: AtomicBool::new(false),
            notes: Mutex::new(Notes::new(config.timeouts.keep_after)),
            has_new: AtomicBool::new(false),
            wants_watch: AtomicBool::new(false),
            wants_room: AtomicBool::new(false),
            wants_thread: AtomicBool::new(false),
            site,
        })
    }

    fn add(&self, fd: impl std::os::fd::AsFd, token: u64) -> std::io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Accepts nothing any more, and ends when its connections have gone, wherever to.
    fn is_ending(&self) -> bool {
        self.site.is_closing() || self.leaving.load(Ordering::SeqCst)
    }

    /// Connections are to go to other workers.
    fn lets_go(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) && !self.site.is_closing()
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

    /// A call of the connection occupies its thread no longer, since `now_ns`.
    fn call_ended(&self, connection: &Connection, now_ns: u64) {
        self.gate.ended(now_ns);
        self.queue.ended(connection.who.lane);
        if self.wants_thread.load(Ordering::SeqCst) || self.leaving.load(Ordering::SeqCst) {
            self.wake_poller();
        }
    }

    /// Asks for a watch where there is none.
    fn find_watch(&self) {
        // Once at a time: a pool that hangs takes nothing out of the queue.
        if !self.wants_watch.swap(true, Ordering::SeqCst) {
            self.queue.put_first(Task::Watch);
        }
    }

    fn watch_was_asked_for(&self) {
        self.wants_watch.store(false, Ordering::SeqCst);
    }

    /// Has the poller go on with a connection when it comes round.
    fn turn_for(&self, key: Key) {
        self.for_poller.put(Todo::Turn(key));
        self.wake_poller();
    }

    /// Has the poller tell the supervisor something.
    fn tell(&self, message: FromWorker) {
        self.outbox.put(message);
        self.wake_poller();
    }

    fn method_name(&self, method: MethodIndex) -> &str {
        self.site.service.registry().get(method).map_or("?", crate::rpc::Method::name)
    }
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
