//! A worker's beginning: everything is built after the fork, and the supervisor hears that it is ready or why not.

use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::addresses::Addresses;
use crate::arena::{ArenaWriter, Row, State};
use crate::channel::{self, Channel, FromWorker, Quarantined};
use crate::config::{Config, counted};
use crate::log;
use crate::rpc::{Service, WorkerInfo};
use crate::sys::clock;
use crate::sys::culprit;
use crate::sys::descriptors;
use crate::sys::limits;
use crate::sys::oom;
use crate::sys::process;
use crate::sys::signals::{self, OnTerm};
use crate::sys::socket::Listener;
use crate::sys::title;
use crate::worker::accept::capacity::rows;
use crate::worker::accept::{accepting, capacity};
use crate::worker::context::WorkerContext;
use crate::worker::guard::recycle::Limits;
use crate::worker::guard::{panics, vitals};
use crate::worker::shared::Shared;
use crate::worker::threads::duty::{Duty, Task};
use crate::worker::threads::life::Life;
use crate::worker::threads::poller_state::PollerState;
use crate::worker::threads::pool;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::{CHANNEL, TERM};

/// What a worker is born with.
#[derive(Debug)]
pub(crate) struct Birth {
    pub(crate) slot: usize,
    pub(crate) generation: u32,
    /// It may ask to have so many connections kept and be sure of it; any number where nothing is said.
    pub(crate) may_keep: Option<usize>,
    /// It accepts nothing before it is told to open.
    pub(crate) doors_shut: bool,
    /// What it must refuse from the first call on.
    pub(crate) quarantine: Vec<Quarantined>,
    /// It counts its clients' addresses in that region of the memory which comes behind the bell.
    pub(crate) region: Option<usize>,
    /// Its channel, its arena, the bell, then the listeners in the order of the configuration.
    pub(crate) descriptors: Vec<OwnedFd>,
}

/// Lives a worker's life, in a process that was just forked and has one thread.
pub(crate) fn run(service: Service, config: Config, birth: Birth) -> ! {
    let life = AssertUnwindSafe(|| live(service, config, birth));
    match catch_unwind(life) {
        Ok(never) => never,
        // Our own mistake. It ends here: further up its channel would be closed while it still lives.
        Err(_) => std::process::abort(),
    }
}

fn live(service: Service, config: Config, birth: Birth) -> ! {
    let _ = nix::sys::prctl::set_name(c"tine-worker");
    let title = format!("tine: worker {} gen {} ({})", birth.slot, birth.generation, service.about().title);
    let _ = title::set(&title);
    // A worker is replaced; a service whose supervisor is killed ends. Where /proc can't be written the kernel chooses by size.
    let _ = oom::be_chosen_before_others();
    vitals::guard(birth.slot);
    let mut descriptors = birth.descriptors.into_iter().map(descriptors::control);
    let Some(channel) = descriptors.next() else {
        process::exit_now(1);
    };
    descriptors::make_room(&channel, capacity::share(&config, limits::descriptors()));
    let mut channel = Channel::from(channel);
    let info = WorkerInfo::new(birth.slot, std::process::id(), u64::from(birth.generation), Instant::now());
    let gathered = match Gathered::gather(service, &config, info, &mut channel, (birth.region, descriptors)) {
        Ok(gathered) => gathered,
        Err(reason) => fail(&mut channel, reason),
    };
    let Gathered { shared, arena, rows, term, bell, listeners } = gathered;
    for Quarantined { method, for_ms } in birth.quarantine {
        shared.shut_method(&method, Duration::from_millis(for_ms));
    }
    let poller = PollerState::new(channel, arena, bell, term, birth.may_keep, &config);
    let poller = Arc::new(Mutex::new(poller));
    match open(shared, &poller, rows, listeners, &config, birth.doors_shut) {
        Ok(mut thread) => {
            thread.on_duty(&poller, Duty::Poll(shared.role.first_term()));
            pool::serve(|| shared.next_task(), |task| thread.work(&poller, task))
        }
        Err(reason) => fail(&mut poller.lock().channel, reason),
    }
}

fn fail(channel: &mut Channel, reason: String) -> ! {
    // Where the supervisor is gone nobody is left to tell.
    let _ = channel.send(&FromWorker::BootFailed { reason }, Vec::new());
    process::exit_now(1)
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> String {
    move |error| format!("{what}: {error}")
}

/// What a worker has before it has threads.
struct Gathered {
    shared: &'static Shared,
    arena: ArenaWriter,
    rows: Vec<Row>,
    term: OnTerm,
    bell: OwnedFd,
    listeners: Vec<Listener>,
}

impl Gathered {
    /// The error says what failed.
    fn gather(
        service: Service,
        config: &Config,
        info: WorkerInfo,
        channel: &mut Channel,
        (region, mut descriptors): (Option<usize>, impl Iterator<Item = OwnedFd>),
    ) -> Result<Self, String> {
        process::reset_signals();
        signals::ignore_what_is_for_the_supervisor().map_err(failed("signals"))?;
        // Hooks and states may never return, and then nobody here would see that the supervisor is gone.
        channel.die_with_other_end().map_err(failed("channel"))?;
        let term = OnTerm::catch().map_err(failed("SIGTERM"))?;
        let pid = i32::try_from(info.pid()).unwrap_or_default();
        channel
            .send(&FromWorker::Born { version: channel::VERSION, pid }, Vec::new())
            .map_err(failed("channel"))?;
        crate::sys::allocator::give_back_large_buffers();
        log::init(&config.log);
        // From here on it stays for the life of the process: nothing of the program's is dropped by a boot that fails.
        let context = WorkerContext::open(service, config);
        panics::log_panics(context, info.slot());
        let memory = descriptors.next().ok_or("the arena is missing")?;
        let mut arena = ArenaWriter::open(memory).map_err(|error| format!("arena: {error}"))?;
        arena.identify(info.pid(), info.generation(), info.slot(), clock::monotonic_ns());
        // Before user code, whose own handlers then come before ours and can pass on to them.
        let word = arena.culprit().ok_or("the arena has no word for a culprit")?;
        culprit::record(word).map_err(failed("crash handlers"))?;
        let bell = descriptors.next().ok_or("the bell is missing")?;
        let addresses = match region {
            Some(region) => {
                let memory = descriptors.next().ok_or("the memory for addresses is missing")?;
                Some(Addresses::open(memory.as_fd(), region).map_err(failed("addresses"))?)
            }
            None => None,
        };
        let listeners = descriptors
            .map(Listener::inherited)
            .collect::<Result<Vec<_>, _>>()
            .map_err(failed("listener"))?;

        if listeners.len() < config.listeners.len() {
            let (expected, found) = (counted(config.listeners.len() as u64, "listener"), listeners.len());
            return Err(format!("expected {expected}, found {found}: the descriptor limit is too low"));
        }
        let states = &*Box::leak(Box::new(context.service.make_states(&info)?));
        context.service.worker_start(&info)?;
        let memory = (arena.records(), arena.blocks().map_err(|error| format!("arena: {error}"))?);
        let mut shared = Shared::new(context, states, config, info, memory).map_err(failed("epoll"))?;
        shared.addresses = addresses;
        let shared = &*Box::leak(Box::new(shared));
        let rows = (0..rows(config.threads)).map(|row| arena.row(row)).collect::<Result<_, _>>();
        let rows = rows.map_err(|error| format!("arena: {error}"))?;
        Ok(Self { shared, arena, rows, term, bell, listeners })
    }
}

/// Starts the threads, opens the acceptors and reports readiness; the main thread's part in the work. The error says what
/// failed.
fn open(
    shared: &'static Shared,
    poller: &Arc<Mutex<PollerState>>,
    rows: Vec<Row>,
    listeners: Vec<Listener>,
    config: &Config,
    doors_shut: bool,
) -> Result<WorkerThread, String> {
    let mut rows = rows.into_iter();
    let mut row = move || rows.next().ok_or("the arena has too few rows");
    is_to_blame_as(0)?;
    let thread = begin_thread(shared, row()?, 0)?;
    // One of them becomes the watch.
    let next = move || shared.next_task();
    pool::start(crate::worker::threads_beside_main(config.threads), next, |thread| {
        let (row, shared, poller) = (row()?, shared, Arc::clone(poller));
        Ok(move || {
            is_to_blame_as(thread)?;
            let mut thread = begin_thread(shared, row, thread)?;
            Ok(Box::new(move |task: Task| thread.work(&poller, task)) as Box<dyn FnMut(Task)>)
        })
    })?;
    shared.find_watch();

    let mut poller = poller.lock();
    shared.add(&poller.channel, CHANNEL).map_err(failed("channel"))?;
    poller.term.report_to(&shared.epoll, TERM).map_err(failed("SIGTERM"))?;
    shared.listen_for(&poller.bell).map_err(failed("bell"))?;
    poller.acceptors = accepting::make(listeners, config);
    poller.doors_shut = doors_shut;
    poller.arena.set_state(State::Ready);
    poller.channel.live_on().map_err(failed("channel"))?;
    // Without it the end of this worker lasts longer, and nothing else is different.
    let epoll = shared.epoll.0.try_clone();
    poller.channel.send(&FromWorker::Ready, epoll.into_iter().collect()).map_err(failed("channel"))?;
    Ok(thread)
}

/// What a thread does before its first call.
fn begin_thread(shared: &'static Shared, row: Row, thread: usize) -> Result<WorkerThread, String> {
    panics::this_thread_has(row.own());
    shared.context.service.thread_start(&shared.info, thread)?;
    Ok(WorkerThread::new(shared, row, thread))
}

/// Has this thread named by its row, plus 1, if it takes the process down.
fn is_to_blame_as(thread: usize) -> Result<(), String> {
    culprit::this_thread_is(thread as u64 + 1).map_err(failed("a stack for signals"))
}

impl PollerState {
    fn new(
        channel: Channel,
        arena: ArenaWriter,
        bell: OwnedFd,
        term: OnTerm,
        may_keep: Option<usize>,
        config: &Config,
    ) -> Self {
        Self {
            channel,
            arena,
            acceptors: Vec::new(),
            bell,
            most_connections: 0,
            doors_shut: false,
            service_has_room: false,
            may_keep: may_keep.unwrap_or(usize::MAX),
            most_kept_without_place: capacity::kept_without_place(config, limits::descriptors()),
            reserve: crate::worker::accept::reserve::Reserve::default(),
            has_siblings: config.processes > 1,
            lets_others_run: false,
            drain: config.timeouts.drain,
            groups_outlive: config.run.groups_outlive,
            is_orphaned: false,
            term,
            todo: std::collections::VecDeque::new(),
            log_lines_dropped: 0,
            poller_thread: 0,
            told_crowding: None,
            adoptions: std::collections::VecDeque::new(),
            asking_waits: false,
            lacks_credit: false,
            keeps_none_since: None,
            offers_wait: false,
            channel_is_full: false,
            has_complained: false,
            has_left: false,
            said_only_stuck: false,
            tidies: false,
            life: Life::new(config.timeouts.stuck),
            // The pid alone would do for those that live; the clock tells apart those that follow each other.
            recycle: Limits::new(
                &config.recycle,
                clock::monotonic_ns() ^ u64::from(std::process::id()),
                Instant::now(),
            ),
        }
    }
}
