//! What each thread of a worker does.
//!
//! All of them can do everything. One begins as poller, one as watch, the others are the pool. When the poller blocks
//! in a handler the watch becomes poller, some thread of the pool the watch, and the one that blocked one of the pool
//! when it comes back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::epoll::EpollFlags;
use parking_lot::Mutex;

use crate::fail_points;
use crate::log;
use crate::sys::{allocator, descriptors, process};
use crate::worker::accept::accepting::is_listener;
use crate::worker::call::Job;
use crate::worker::call::turns::Lane;
use crate::worker::due::Due;
use crate::worker::threads::poller::Poller;
use crate::worker::threads::poller_state::{PollerState, Todo};
use crate::worker::threads::role::Term;
use crate::worker::threads::worker_thread::WorkerThread;
use crate::worker::tokens::{BELL, CHANNEL, FIRST_LISTENER, TERM, WAKE, key_of};

/// Deadlines are looked at this often in a round that lasts: with many connections that all have much to say, a round
/// may take as long as all their turns.
const LATE: Duration = Duration::from_millis(1);

/// What a thread of the pool is asked to do.
#[derive(Debug)]
pub(in crate::worker) enum Task {
    /// Apart, so that it stays where it is while it waits and changes hands.
    Run(Box<Job>),
    /// Somebody should be the watch: threads look whether there is one after each task, this wakes one that has none.
    Watch,
}

impl Task {
    /// A thread has it from now on. False for a call that was given up.
    pub(in crate::worker) fn is_wanted(&self) -> bool {
        match self {
            Self::Run(job) => job.is_taken(),
            Self::Watch => true,
        }
    }
}

/// What a thread does before it is one of the pool.
#[derive(Debug)]
pub(in crate::worker) enum Duty {
    Poll(Term),
    Watch,
}

impl WorkerThread {
    /// One task of the pool.
    pub(in crate::worker) fn work(&mut self, poller: &Mutex<PollerState>, task: Task) {
        match task {
            // Gone before this thread has a duty, which may last for ever: a job holds a connection's socket.
            Task::Run(job) => self.run(&job),
            Task::Watch => self.shared.watch_was_asked_for(),
        }
        if self.shared.role.fills_vacancy() {
            self.on_duty(poller, Duty::Watch);
        }
    }

    /// Is poller or watch until it is one of the pool.
    pub(in crate::worker) fn on_duty(&mut self, poller: &Mutex<PollerState>, mut duty: Duty) {
        loop {
            duty = match duty {
                Duty::Watch => {
                    self.is_called(c"watch");
                    let term = self.shared.role.watch();
                    self.relieve(poller);
                    Duty::Poll(term)
                }
                Duty::Poll(term) => {
                    self.is_called(c"poller");
                    self.poll(poller, term);
                    if !self.shared.role.fills_vacancy() {
                        self.is_called(c"pool");
                        return;
                    }
                    Duty::Watch
                }
            };
        }
    }

    /// The first that a new poller does: whatever the one before had before it lies in the poller's state, but for the connection
    /// at whose call it has blocked.
    fn relieve(&mut self, poller: &Mutex<PollerState>) {
        let shared = &self.shared;
        fail_points::delay();
        let blocked = key_of(shared.inline_at.load(Ordering::Relaxed));
        // It counts as one of the pool from now on, with a call that is running.
        shared.gate.began_unasked();
        shared.queue.began(Lane::from_word(shared.inline_lane.load(Ordering::Relaxed)));
        shared.find_watch();
        tracing::debug!(
            slot = shared.info.slot(),
            "the poller has blocked in a handler; another thread goes on"
        );
        let mut poller = poller.lock();
        poller.taken_by(self);
        poller.put_first(Todo::TakeOver(blocked));
    }

    /// Polls until it has been relieved, or the worker ends.
    fn poll(&mut self, poller: &Mutex<PollerState>, term: Term) {
        self.term = Some(term);
        let mut events = Poller::new(self.shared.epoll.clone(), self.shared.deadlines.clone());
        while self.play_round(poller).is_some() {
            poller.lock().end_round(self);
            // What a deadline or the round's end has asked for would otherwise wait for the next event.
            if poller.lock().has_more_to_do() {
                continue;
            }
            match events.wait() {
                Ok(events) => poller.lock().put(events),
                Err(error) => {
                    descriptors::lost_by("epoll", &error);
                    tracing::error!(slot = self.shared.info.slot(), %error, "epoll failed");
                    process::exit_now(1);
                }
            }
        }
    }

    /// Does all there is to do. None when this thread is not the poller any more.
    fn play_round(&mut self, poller: &Mutex<PollerState>) -> Option<()> {
        let mut begun = None;
        loop {
            let todo = poller.lock().next(self);
            let Some(todo) = todo else { break };
            let now = self.look_at_the_clock();
            self.attend(poller, todo);
            self.term.as_ref()?;
            // With nothing in hand: this thread may be relieved here too.
            if now - *begun.get_or_insert(now) > LATE {
                self.fire_deadlines(poller)?;
                begun = Some(now);
            }
        }
        if begun.is_none() {
            // It was woken by time alone.
            self.look_at_the_clock();
        }
        self.fire_deadlines(poller)
    }

    fn attend(&mut self, poller: &Mutex<PollerState>, todo: Todo) {
        match todo {
            Todo::Event(CHANNEL, flags) => {
                let mut poller = poller.lock();
                if flags.contains(EpollFlags::EPOLLOUT) {
                    poller.flush_channel();
                }
                poller.read_channel(self);
            }
            Todo::Event(TERM, _) => poller.lock().ask_to_leave(),
            Todo::Event(WAKE, _) => poller.lock().woken(self),
            Todo::Event(BELL, _) => poller.lock().rung(self),
            Todo::Event(token, _) if is_listener(token) => {
                poller.lock().visit(usize::try_from(FIRST_LISTENER - token).unwrap_or(usize::MAX), self);
            }
            Todo::Event(token, flags) => self.connection_event(token, flags),
            Todo::TakeOver(key) => self.take_over(key),
            Todo::Turn(key) => self.take_turn(key),
            Todo::Feed(key) => self.feed(key),
            Todo::LetGo(connection) => self.let_connection_go(&connection),
            Todo::Stay(connection) => self.stay(&connection),
            Todo::Finish(connection) => self.finish(&connection),
            Todo::Release(key) => self.release(key),
            Todo::TakeUp(key) => self.take_up(key),
            Todo::Displaced(job) => self.displaced(&job),
        }
    }

    pub(in crate::worker) fn connection_event(&mut self, token: u64, flags: EpollFlags) {
        let Some(connection) = self.shared.find(key_of(token)) else {
            return;
        };
        if flags.intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
            self.hung_up(&connection);
        }
        if flags.contains(EpollFlags::EPOLLOUT) {
            self.writable(&connection);
        }
        let input =
            EpollFlags::EPOLLIN | EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
        if flags.intersects(input) && self.term.is_some() {
            self.readable(&connection);
        }
    }

    /// None when this thread is not the poller any more.
    fn fire_deadlines(&mut self, poller: &Mutex<PollerState>) -> Option<()> {
        while let Some((at, due)) = self.shared.deadlines.next_due(self.now()) {
            match due {
                Due::Connection(key) => self.due(key, at),
                Due::Listener(number) => poller.lock().look_again(number, self),
                Due::Places => poller.lock().look_for_places(self),
                Due::Notes => poller.lock().tell_notes(self),
                Due::TakeBack(key) => self.take_back(key),
                Due::Adoptions => poller.lock().tell_adoptions(self),
                // The end of every round looks.
                Due::Limits => {}
                Due::Tidying => {
                    self.shared.pool.tidy();
                    if !self.shared.pool.rests() {
                        allocator::give_back_the_rest();
                    }
                    poller.lock().tidies = false;
                }
                Due::LeaveLate => self.serve_late_ones(),
                Due::LeaveLast => self.begin_no_more(),
                Due::LeaveEnd => {
                    poller.lock().has_left = true;
                    self.end_leaving();
                }
                Due::LastWords => {
                    poller.lock().has_left = true;
                    self.end_all_calls();
                }
                Due::Stuck(key, number) => poller.lock().has_stuck(key, number, self.shared),
                Due::DrainEnd => {
                    let slot = self.shared.info.slot();
                    tracing::warn!(slot, "calls still run after timeouts.drain; ended");
                    log::tell_of_counted(true);
                    poller.lock().exit(1);
                }
            }
            self.term.as_ref()?;
            self.look_at_the_clock();
        }
        Some(())
    }

    /// The kernel's name of this thread. The main thread's is the process's, and stays.
    fn is_called(&self, name: &std::ffi::CStr) {
        if self.thread() != 0 {
            let _ = nix::sys::prctl::set_name(name);
        }
    }
}
