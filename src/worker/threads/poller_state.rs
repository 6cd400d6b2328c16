//! What the poller looks after beside connections: what it has yet to do, the channel, the acceptors, the worker's end.
//!
//! Whoever is poller locks it, and nobody else does. It is never locked while a handler may run, so a poller that
//! blocks leaves it free, with all that it had not come to.

use std::collections::VecDeque;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::arena::{ArenaWriter, Key, State};
use crate::channel::{Channel, FromWorker, Received, ToWorker};
use crate::log;
use crate::sys::signals::OnTerm;
use crate::sys::{descriptors, last_moment, process};
use crate::worker::accept::accepting::is_listener;
use crate::worker::accept::acceptor::Acceptor;
use crate::worker::accept::reserve::Reserve;
use crate::worker::call::Job;
use crate::worker::connection::Connection;
use crate::worker::due::Due;
use crate::worker::guard::recycle::Limits;
use crate::worker::handover::adopt::Adoption;
use crate::worker::shared::Shared;
use crate::worker::threads::life::Life;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::CHANNEL;

/// What a worker without a supervisor gets beyond the time to drain, to say that it ends.
const GRACE: Duration = Duration::from_secs(1);

/// How long before that time is up callers that still wait are told, or a tenth of it.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// How often the supervisor is told that calls wait, at most.
const TELL_CROWDING: Duration = Duration::from_millis(250);

/// Memory of freed blocks that nobody wants for so long goes back to the system.
const TIDY: Duration = Duration::from_secs(1);

/// One thing for the poller to do.
#[derive(Debug)]
pub(in crate::worker) enum Todo {
    Event(u64, EpollFlags),
    /// The poller before has blocked at a call of this connection.
    TakeOver(Key),
    /// Calls of this connection wait until the poller comes round to them.
    Turn(Key),
    /// There is room again for this connection's input.
    Feed(Key),
    LetGo(Arc<Connection>),
    /// Nobody else can have it.
    Stay(Arc<Connection>),
    /// Nobody will go on with it: it takes what has arrived, answers that and closes.
    Finish(Arc<Connection>),
    /// Another worker has it.
    Release(Key),
    /// Another worker had it.
    TakeUp(Key),
    /// It gave way in the queue to another caller's.
    Displaced(Box<Job>),
}

/// The poller's side of the worker.
#[derive(Debug)]
pub(in crate::worker) struct PollerState {
    pub(in crate::worker) channel: Channel,
    pub(in crate::worker) arena: ArenaWriter,
    pub(in crate::worker) acceptors: Vec<Option<Acceptor>>,
    /// Rung by a worker that was woken for a connection it can't take; every worker hears it. The kernel wakes one
    /// worker for each connection, and that one was it.
    pub(in crate::worker) bell: OwnedFd,
    /// It is not to accept anybody yet.
    pub(in crate::worker) doors_shut: bool,
    /// Connections this worker may hold. Its acceptors stay shut until it has heard that.
    pub(in crate::worker) most_connections: usize,
    /// The service may hold more than it does: no connection gives way to a new one.
    pub(in crate::worker) service_has_room: bool,
    /// Connections that this worker may yet ask to have kept, and be sure that they are.
    pub(in crate::worker) may_keep: usize,
    /// Of those without a place it asks to have so many kept.
    pub(in crate::worker) most_kept_without_place: usize,
    /// Those that came when it held as many.
    pub(in crate::worker) reserve: Reserve,
    /// Other workers may have a free thread when this one has none.
    pub(in crate::worker) has_siblings: bool,
    /// Somebody was accepted in this round, and the next ones are for other workers.
    pub(in crate::worker) lets_others_run: bool,
    pub(in crate::worker) drain: Duration,
    /// What handlers have started is left alone.
    pub(in crate::worker) groups_outlive: bool,
    /// The supervisor is gone, and with it who ends what handlers have started.
    pub(in crate::worker) is_orphaned: bool,
    pub(in crate::worker) term: OnTerm,
    pub(in crate::worker) todo: VecDeque<Todo>,
    pub(in crate::worker) log_lines_dropped: u64,
    /// The number of the thread that is the poller.
    pub(in crate::worker) poller_thread: usize,
    pub(in crate::worker) adoptions: VecDeque<Adoption>,
    /// The channel did not take connections, and calls on them wait for that.
    pub(in crate::worker) asking_waits: bool,
    /// Calls wait until this worker may have more kept.
    pub(in crate::worker) lacks_credit: bool,
    /// Since when there are connections that can't be kept, for the one reason or the other.
    pub(in crate::worker) keeps_none_since: Option<Instant>,
    /// Connections were let go, and the channel does not take the word of it.
    pub(in crate::worker) offers_wait: bool,
    /// Epoll is to say when the channel takes messages again.
    pub(in crate::worker) channel_is_full: bool,
    /// When the supervisor was told last that calls wait.
    pub(in crate::worker) told_crowding: Option<Instant>,
    /// It was said that connections can't be kept.
    pub(in crate::worker) has_complained: bool,
    /// The time to drain is up for a worker that leaves: what still runs was answered and is cut off.
    pub(in crate::worker) has_left: bool,
    pub(in crate::worker) said_only_stuck: bool,
    pub(in crate::worker) life: Life,
    pub(in crate::worker) recycle: Limits,
    /// A moment is set to give memory back.
    pub(in crate::worker) tidies: bool,
}

impl PollerState {
    /// This thread is the poller from now on.
    pub(in crate::worker) fn taken_by(&mut self, thread: &WorkerThread) {
        self.poller_thread = thread.thread();
    }

    pub(in crate::worker) fn next(&mut self, thread: &WorkerThread) -> Option<Todo> {
        debug_assert_eq!(self.poller_thread, thread.thread(), "there is one poller");
        self.todo.pop_front()
    }

    pub(in crate::worker) fn has_more_to_do(&self) -> bool {
        !self.todo.is_empty()
    }

    pub(in crate::worker) fn put_first(&mut self, todo: Todo) {
        self.todo.push_front(todo);
    }

    pub(in crate::worker) fn put(&mut self, events: &[EpollEvent]) {
        // Whoever is accepted is served or kept before the round ends, so nothing else comes in between.
        for acceptors in [false, true] {
            let these = events.iter().filter(|event| is_listener(event.data()) == acceptors);
            self.todo.extend(these.map(|event| Todo::Event(event.data(), event.events())));
        }
    }

    /// All that was to do is done: the last call may have been answered.
    pub(in crate::worker) fn end_round(&mut self, thread: &mut WorkerThread) {
        self.keep_who_ask(thread);
        last_moment::put_down();
        if !self.reserve.is_empty() {
            self.give_places(thread);
        }
        if std::mem::take(&mut self.lets_others_run) {
            // Another worker that was woken by the next connection of a burst may wait for this very core. Only now: who was
            // accepted would be lost if this process died meanwhile, until they are kept.
            std::thread::yield_now();
        }
        self.tell_offers(thread.shared);
        if thread.shared.table.lock().len() == 0 {
            self.end_without_connections(thread);
        }
        let shared = &thread.shared;
        if self.recycle.is_time(thread.now()) {
            self.look_at_limits(thread.now());
        } else if let Some(at) = self.recycle.look_later(thread.now()) {
            shared.remind(at, Due::Limits);
        }
        self.tell_crowding(thread);
        if shared.pool.rests() && !std::mem::replace(&mut self.tidies, true) {
            thread.shared.remind(thread.now() + TIDY, Due::Tidying);
        }
        self.watch_channel(thread.shared);
        log::tell_of_counted(false);
        let dropped = log::dropped_lines();
        if dropped != self.log_lines_dropped {
            thread.row.log_dropped(dropped.wrapping_sub(self.log_lines_dropped));
            self.log_lines_dropped = dropped;
        }
    }

    fn end_without_connections(&mut self, thread: &mut WorkerThread) {
        let shared = thread.shared;
        let is_leaving = shared.leaving.load(Ordering::SeqCst);
        let nothing_runs = shared.gate.is_idle();
        // What outlives the time to drain in a service that ends is the supervisor's to kill, and to tell of.
        let may_close = shared.context.is_closing() && (nothing_runs || !self.has_left);
        if may_close || (is_leaving && (nothing_runs || self.has_left)) {
            self.tell_notes(thread);
            // What still runs after the time to drain may never end, and hold the very lock that a stop hook waits for.
            self.end(shared, nothing_runs || !self.has_left);
        }
        if is_leaving && shared.overdue.lock().has_stuck() {
            self.say_only_stuck();
        }
    }

    /// Says now and then that calls wait while other workers may have free threads.
    fn tell_crowding(&mut self, thread: &WorkerThread) {
        let shared = &thread.shared;
        if !self.has_siblings || shared.gate.waiting() == 0 || shared.is_ending() {
            return;
        }
        let now = thread.now();
        if self.told_crowding.is_none_or(|told| now.saturating_duration_since(told) >= TELL_CROWDING) {
            self.told_crowding = Some(now);
            self.say(&FromWorker::Crowded { waiting: shared.gate.waiting() });
        }
    }

    /// Ends the process, and what handlers have started where nobody else is left to.
    pub(in crate::worker) fn exit(&self, code: i32) -> ! {
        if self.is_orphaned && !self.groups_outlive {
            process::kill_own_group();
        }
        process::exit_now(code)
    }

    fn end(&mut self, shared: &Shared, with_hooks: bool) -> ! {
        self.arena.set_state(State::Ended);
        if with_hooks {
            self.bound_by_the_kernel(shared);
            shared.context.service.worker_stop(&shared.info);
        }
        log::tell_of_counted(true);
        self.exit(0)
    }

    pub(in crate::worker) fn read_channel(&mut self, thread: &mut WorkerThread) {
        loop {
            match self.channel.receive() {
                Ok(Received::Nothing) => break,
                Ok(Received::Message(message, descriptors)) => {
                    let adopts = matches!(message, ToWorker::Adopt { .. });
                    self.told(thread, message, descriptors);
                    if adopts {
                        // Those are served before the next ones are looked at, and so is everybody else: epoll reports the
                        // channel again.
                        break;
                    }
                }
                Ok(Received::Closed) => {
                    let shared = &thread.shared;
                    if let Err(errno) = shared.epoll.delete(&self.channel) {
                        // What ended was something else.
                        descriptors::lost_by("the channel to the supervisor", &errno.into());
                    }
                    tracing::warn!(
                        slot = shared.info.slot(),
                        "the supervisor is gone; finishing what has begun"
                    );
                    self.is_orphaned = true;
                    thread.release_all();
                    self.begin_draining(thread);
                    self.bound_draining(thread.shared);
                    break;
                }
                Err(error) => {
                    tracing::warn!(slot = thread.shared.info.slot(), %error, "a message is not understood");
                    // The channel's own error would be met again; epoll says when there is more.
                    if error.raw_os_error().is_some() {
                        break;
                    }
                }
            }
        }
    }

    /// The channel takes messages again.
    pub(in crate::worker) fn flush_channel(&mut self) {
        // What the kernel refuses is lost, as it would be when it was said.
        let _ = self.channel.flush();
    }

    /// Has the poller woken when the channel takes messages again, if some wait for that.
    fn watch_channel(&mut self, shared: &Shared) {
        let waits = self.channel.has_queued() || self.offers_wait || self.asking_waits;
        if waits == self.channel_is_full {
            return;
        }
        self.channel_is_full = waits;
        let mut flags = EpollFlags::EPOLLIN;
        flags.set(EpollFlags::EPOLLOUT, waits);
        // A channel that was closed is not in there any more.
        let _ = shared.epoll.modify(&self.channel, &mut EpollEvent::new(flags, CHANNEL));
    }

    fn told(&mut self, thread: &mut WorkerThread, message: ToWorker, descriptors: Vec<OwnedFd>) {
        match message {
            ToWorker::Drain => self.begin_draining(thread),
            ToWorker::Leave { gone } => self.begin_leaving(thread, &gone),
            ToWorker::ListenAnew { number } => self.listen_anew(number, descriptors, thread),
            ToWorker::Open => {
                self.doors_shut = false;
                self.open_first(thread.shared);
            }
            ToWorker::MarkNotReady => thread.shared.context.turn_red(),
            ToWorker::AreYouThere => self.say(&FromWorker::HereIAm),
            ToWorker::MayHold { connections, service_has_room } => {
                let holds_fewer = connections < self.most_connections;
                (self.most_connections, self.service_has_room) = (connections, service_has_room);
                if holds_fewer {
                    // What it has beyond that others don't get.
                    self.keep_young(thread);
                    self.say(&FromWorker::HoldsFewer);
                }
                self.give_places(thread);
                if !self.doors_shut {
                    self.open_first(thread.shared);
                }
                self.open_acceptors(thread);
            }
            ToWorker::MayKeep { more } => self.may_keep_more(thread, more),
            ToWorker::ReleaseSome { count, busy } => self.let_some_go(thread.shared, count, busy),
            ToWorker::Released { connections } => {
                self.todo.extend(connections.into_iter().map(Todo::Release));
            }
            ToWorker::NotKept { connections } => self.not_kept(thread.shared, &connections),
            ToWorker::Adopt { from, cause, connections } => {
                self.adopt(thread, from, cause.as_deref(), &connections, descriptors);
            }
            ToWorker::Quarantine { method, for_ms } => {
                thread.shared.shut_method(&method, Duration::from_millis(for_ms));
            }
            ToWorker::Trial { method } => thread.shared.grant_trial(&method),
            ToWorker::Release { method } => thread.shared.release_method(&method),
        }
    }

    /// Without a supervisor nobody else ends this process when the time to drain is up.
    fn bound_draining(&self, shared: &Shared) {
        if let Some(end) = Instant::now().checked_add(self.drain) {
            shared.remind(end, Due::DrainEnd);
        }
        self.bound_by_the_kernel(shared);
    }

    /// For a stop hook that never returns: its thread can't see that the supervisor is gone, be it already or only then.
    fn bound_by_the_kernel(&self, shared: &Shared) {
        if let Err(error) = process::kill_this_after(self.drain.saturating_add(GRACE)) {
            tracing::warn!(slot = shared.info.slot(), %error, "there is no timer to end this process");
        }
    }

    /// SIGTERM to this process alone: the supervisor has it leave as soon as another has taken its place.
    pub(in crate::worker) fn ask_to_leave(&mut self) {
        self.say(&FromWorker::Leaving);
    }

    /// Where the supervisor is gone its channel says so too.
    pub(in crate::worker) fn say(&mut self, word: &FromWorker) {
        let _ = self.channel.send(word, Vec::new());
    }

    fn begin_draining(&mut self, thread: &mut WorkerThread) {
        if thread.shared.context.close() {
            return;
        }
        self.arena.set_state(State::Draining);
        // The service ends, also where its supervisor is gone: nobody must be able to connect any more, although a process that
        // a handler has forked may hold the sockets.
        self.close_doors(thread, |_| true);
        self.todo.extend(thread.shared.all_connections().into_iter().map(Todo::Finish));
        let words = LAST_WORDS.min(self.drain / 10);
        if let Some(end) = Instant::now().checked_add(self.drain.saturating_sub(words)) {
            thread.shared.remind(end, Due::LastWords);
        }
    }

    /// Accepts who waits, and nobody after. The listeners that `are_gone`, by number, are shut down then: who waits at the
    /// others is for other workers.
    pub(in crate::worker) fn close_doors(
        &mut self,
        thread: &mut WorkerThread,
        are_gone: impl Fn(usize) -> bool,
    ) {
        let epoll = Arc::clone(&thread.shared.epoll);
        for (number, acceptor) in self.acceptors.iter_mut().enumerate() {
            if let Some(acceptor) = acceptor.take() {
                acceptor.close(&epoll, are_gone(number), |socket, peer, accepts| {
                    thread.accepted(socket, peer, accepts);
                });
            }
        }
        self.give_places_to_all(thread);
    }

    pub(in crate::worker) fn woken(&mut self, thread: &mut WorkerThread) {
        let shared = thread.shared;
        for message in shared.outbox.take() {
            // Where the supervisor is gone its channel says so too.
            let _ = self.channel.send(&message, Vec::new());
        }
        self.todo.extend(shared.buffers.feed().into_iter().map(Todo::Feed));
        self.todo.extend(shared.for_poller.take());
        self.give_places(thread);
        self.open_acceptors(thread);
    }
}
