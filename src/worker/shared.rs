//! What every thread of a worker uses, and what any of them may do with it.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags};
use nix::sys::eventfd::{EfdFlags, EventFd};
use parking_lot::Mutex;

use super::accept::capacity::rows;
use super::call::Job;
use super::call::concurrency::Concurrency;
use super::call::dispatch::Gate;
use super::call::queue::Queue;
use super::connection::answer_sizes::AnswerSizes;
use super::connection::table::Table;
use super::connection::{Bounds, Connection};
use super::context::WorkerContext;
use super::due::Due;
use super::guard::buffers::Buffers;
use super::guard::overdue::Overdue;
use super::guard::quarantine::Quarantine;
use super::handover::keep::Notes;
use super::threads::deadlines::Deadlines;
use super::threads::duty::Task;
use super::threads::mailbox::Mailbox;
use super::threads::pace::Paces;
use super::threads::poller_state::Todo;
use super::threads::role::Role;
use super::threads::runs::Runs;
use super::tokens::WAKE;
use crate::addresses::Addresses;
use crate::arena::{Key, Records};
use crate::channel::FromWorker;
use crate::config::Config;
use crate::rpc::{MethodIndex, States, WorkerInfo};
use crate::sys::blocks::Pool;
use crate::sys::descriptors;

/// What every thread of the worker uses.
pub(crate) struct Shared {
    pub(in crate::worker) info: WorkerInfo,
    pub(in crate::worker) context: &'static WorkerContext,
    pub(in crate::worker) states: &'static States,
    pub(in crate::worker) bounds: Bounds,
    /// Each method's own time limit, by its number.
    pub(in crate::worker) timeouts: Vec<Duration>,
    pub(in crate::worker) request_timeout: Duration,
    pub(in crate::worker) slow: Duration,
    pub(in crate::worker) epoll: Arc<Epoll>,
    /// Always readable, and in epoll as a one-shot that is armed to wake the poller.
    pub(in crate::worker) wake: OwnedFd,
    pub(in crate::worker) table: Mutex<Table>,
    /// The longest message that is read, on whatever connection.
    pub(in crate::worker) max_message: usize,
    pub(in crate::worker) records: Records,
    /// How many connections each client address has in the service, where that is limited.
    pub(in crate::worker) addresses: Option<Addresses>,
    pub(in crate::worker) per_address: u64,
    pub(in crate::worker) pool: &'static Pool,
    pub(in crate::worker) deadlines: Arc<Deadlines<Due>>,
    pub(in crate::worker) role: Role,
    /// Where the call is that the poller runs, or ran last: a connection's token.
    pub(in crate::worker) inline_at: AtomicU64,
    /// That connection's place in the queue.
    pub(in crate::worker) inline_lane: AtomicU64,
    /// Connections that wait until the poller comes round to them, and calls that gave way to another caller's and are not answered
    /// yet.
    pub(in crate::worker) for_poller: Mailbox<Todo>,
    pub(in crate::worker) paces: Paces,
    pub(in crate::worker) answer_sizes: AnswerSizes,
    pub(in crate::worker) quarantine: Quarantine,
    /// What the supervisor is to hear; the poller has the channel.
    pub(in crate::worker) outbox: Mailbox<FromWorker>,
    pub(in crate::worker) gate: Gate,
    pub(in crate::worker) runs: Runs,
    pub(in crate::worker) concurrency: Concurrency<Box<Job>>,
    pub(in crate::worker) queue: Queue<Task>,
    /// What a thread gets beyond its call's deadline.
    pub(in crate::worker) stuck: Duration,
    pub(in crate::worker) overdue: Mutex<Overdue>,
    pub(in crate::worker) buffers: Buffers,
    /// This worker ends and the service goes on: connections go to others.
    pub(in crate::worker) leaving: AtomicBool,
    pub(in crate::worker) notes: Mutex<Notes>,
    /// There are connections that the supervisor was not sent at the end of the poller's last round.
    pub(in crate::worker) has_new: AtomicBool,
    /// The word that there is no watch lies in the queue.
    pub(in crate::worker) wants_watch: AtomicBool,
    /// An acceptor is shut until a connection leaves: the poller wants to hear of it.
    pub(in crate::worker) wants_room: AtomicBool,
    /// An acceptor is shut until a thread is free: the poller wants to hear of it.
    pub(in crate::worker) wants_thread: AtomicBool,
}

impl Shared {
    pub(in crate::worker) fn new(
        context: &'static WorkerContext,
        states: &'static States,
        config: &Config,
        info: WorkerInfo,
        (records, pool): (Records, &'static Pool),
    ) -> std::io::Result<Self> {
        let limits = &config.limits;
        let registry = context.service.registry();
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
            context,
        })
    }

    pub(in crate::worker) fn add(&self, fd: impl std::os::fd::AsFd, token: u64) -> std::io::Result<()> {
        Ok(self.epoll.add(fd, EpollEvent::new(EpollFlags::EPOLLIN, token))?)
    }

    /// Accepts nothing any more, and ends when its connections have gone, wherever to.
    pub(in crate::worker) fn is_ending(&self) -> bool {
        self.context.is_closing() || self.leaving.load(Ordering::SeqCst)
    }

    /// Connections are to go to other workers.
    pub(in crate::worker) fn lets_go(&self) -> bool {
        self.leaving.load(Ordering::SeqCst) && !self.context.is_closing()
    }

    pub(in crate::worker) fn find(&self, key: Key) -> Option<Arc<Connection>> {
        self.table.lock().get(key)
    }

    pub(in crate::worker) fn all_connections(&self) -> Vec<Arc<Connection>> {
        self.table.lock().all()
    }

    /// Has something looked at when its moment comes.
    pub(in crate::worker) fn remind(&self, at: Instant, due: Due) {
        self.remind_instead(at, due, None);
    }

    /// As `remind`, in place of the moment `before`.
    pub(in crate::worker) fn remind_instead(&self, at: Instant, due: Due, before: Option<Instant>) {
        if self.deadlines.add(at, due, before) {
            self.wake_poller();
        }
    }

    /// A call of the connection occupies its thread no longer, since `now_ns`.
    pub(in crate::worker) fn call_ended(&self, connection: &Connection, now_ns: u64) {
        self.gate.ended(now_ns);
        self.queue.ended(connection.who.lane);
        if self.wants_thread.load(Ordering::SeqCst) || self.leaving.load(Ordering::SeqCst) {
            self.wake_poller();
        }
    }

    /// Asks for a watch where there is none.
    pub(in crate::worker) fn find_watch(&self) {
        // Once at a time: a pool that hangs takes nothing out of the queue.
        if !self.wants_watch.swap(true, Ordering::SeqCst) {
            self.queue.put_first(Task::Watch);
        }
    }

    pub(in crate::worker) fn watch_was_asked_for(&self) {
        self.wants_watch.store(false, Ordering::SeqCst);
    }

    /// Has the poller go on with a connection when it comes round.
    pub(in crate::worker) fn turn_for(&self, key: Key) {
        self.for_poller.put(Todo::Turn(key));
        self.wake_poller();
    }

    /// Has the poller tell the supervisor something.
    pub(in crate::worker) fn tell(&self, message: FromWorker) {
        self.outbox.put(message);
        self.wake_poller();
    }

    pub(in crate::worker) fn method_name(&self, method: MethodIndex) -> &str {
        self.context.service.registry().get(method).map_or("?", crate::rpc::Method::name)
    }
}
