//! A load that checks everything: plain TCP clients of any framing that never connect again, each of whose calls must
//! get exactly one answer, its own.
//!
//! For the fault command, the soak and the fault tests. `tine::load` measures speed and reconnects; this one is for what
//! must hold while things break, so it knows nothing of how the service works, not even that it has workers.
//! One thread and one epoll for each load, however many clients.

pub mod client;
pub mod content;
pub mod group;
pub mod speech;
pub mod tally;
pub mod times;

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use client::{Client, Scratch, State};
use group::Group;
use tally::Tally;

/// How soon a wish to stop is heard.
const TICK: Duration = Duration::from_millis(10);

/// A connect that takes longer counts as refused.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);

/// A running load; ended, without a word, when it is dropped.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<io::Result<()>>>,
    begun: Instant,
}

#[derive(Debug)]
struct Shared {
    tallies: Mutex<Vec<Tally>>,
    stop: AtomicBool,
    abandon: AtomicBool,
    begun: AtomicBool,
    patience: Mutex<Duration>,
}

impl Shared {
    fn tallies(&self) -> MutexGuard<'_, Vec<Tally>> {
        self.tallies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Load {
    /// Connects all clients and begins. Client numbers are unique in this process.
    pub fn start(to: SocketAddr, groups: &[Group]) -> io::Result<Self> {
        let begun = Instant::now();
        let tally = |group: &Group| {
            let spoken = group.speeches.iter().take(group.clients).map(|speech| (*speech, 0)).collect();
            Tally { group: group.name, spoken, ..Tally::default() }
        };
        let tallies = groups.iter().map(tally).collect();
        let shared = Arc::new(Shared {
            tallies: Mutex::new(tallies),
            stop: AtomicBool::new(false),
            abandon: AtomicBool::new(false),
            begun: AtomicBool::new(false),
            patience: Mutex::new(Duration::from_secs(10)),
        });
        let mut engine = Engine::new(to, groups, begun, Arc::clone(&shared))?;
        let thread = std::thread::Builder::new().name("load".into()).spawn(move || engine.run())?;
        Ok(Self { shared, thread: Some(thread), begun })
    }

    /// Waits until every client that stays has had its first answer; false when that takes too long.
    pub fn await_begun(&self, patience: Duration) -> bool {
        let until = Instant::now() + patience;
        while !self.shared.begun.load(Ordering::SeqCst) {
            if Instant::now() > until {
                return false;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        true
    }

    /// Time since the beginning, which the tallies' times count from.
    pub fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }

    /// Looks at what there is so far.
    pub fn look<T>(&self, at: impl FnOnce(&[Tally]) -> T) -> T {
        at(&self.shared.tallies())
    }

    /// Calls that were answered rightly so far.
    pub fn right(&self) -> u64 {
        self.look(|tallies| tallies.iter().map(|tally| tally.right).sum())
    }

    /// Begins no further call, gives those on their way up to `patience`, and tells what came of all.
    pub fn finish(mut self, patience: Duration) -> io::Result<Vec<Tally>> {
        *self.shared.patience.lock().unwrap_or_else(PoisonError::into_inner) = patience;
        self.shared.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| io::Error::other("the load's thread panicked"))??;
        }
        Ok(std::mem::take(&mut *self.shared.tallies()))
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.shared.abandon.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

struct Engine {
    to: SocketAddr,
    epoll: Epoll,
    clients: Vec<Client>,
    /// Which tally a client's is.
    groups: Vec<usize>,
    timers: BinaryHeap<Reverse<(Instant, usize)>>,
    scratch: Scratch,
    begun: Instant,
    shared: Arc<Shared>,
}

impl Engine {
    fn new(to: SocketAddr, groups: &[Group], begun: Instant, shared: Arc<Shared>) -> io::Result<Self> {
        let mut clients = Vec::new();
        let mut of = Vec::new();
        for (index, group) in groups.iter().enumerate() {
            let count = u32::try_from(group.clients).unwrap_or(u32::MAX).max(1);
            let (apart, calls_apart) = (group.over / count, group.first_calls_over / count);
            let speeches = group.speeches.iter().cycle();
            clients.extend((0_u32..).zip(speeches).take(group.clients).map(|(nth, speech)| {
                let group = Group { after: group.after + calls_apart * nth, ..*group };
                Client::new(group, *speech, begun + apart * nth)
            }));
            of.resize(clients.len(), index);
        }
        let mut timers = BinaryHeap::new();
        for (index, client) in clients.iter_mut().enumerate() {
            client.armed = client.due;
            timers.extend(client.due.map(|at| Reverse((at, index))));
        }
        Ok(Self {
            to,
            epoll: Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?,
            clients,
            groups: of,
            timers,
            scratch: Scratch { bytes: vec![0; 256 << 10], expected: Vec::new() },
            begun,
            shared,
        })
    }

    fn run(&mut self) -> io::Result<()> {
        let mut events = vec![EpollEvent::empty(); 512];
        let mut give_up_at: Option<Instant> = None;
        while !self.shared.abandon.load(Ordering::Relaxed) {
            let now = Instant::now();
            if give_up_at.is_none() && self.shared.stop.load(Ordering::Relaxed) {
                let patience = *self.shared.patience.lock().unwrap_or_else(PoisonError::into_inner);
                give_up_at = Some(now + patience);
            }
            if let Some(until) = give_up_at
                && (now >= until || !self.clients.iter().any(Client::has_unanswered))
            {
                break;
            }
            let next = self.timers.peek().map_or(TICK, |Reverse((at, _))| at.saturating_duration_since(now));
            // Rounded up, or it would spin through the last millisecond.
            let wait = if next.is_zero() { 0 } else { next.min(TICK).as_millis().max(1) };
            let timeout = EpollTimeout::from(u8::try_from(wait).unwrap_or(10));
            let count = match self.epoll.wait(&mut events, timeout) {
                Ok(count) => count,
                Err(nix::errno::Errno::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            let shared = Arc::clone(&self.shared);
            let mut tallies = shared.tallies();
            for event in &events[..count] {
                let index = usize::try_from(event.data()).unwrap_or(usize::MAX);
                if event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                    self.clients[index].hung_up(Instant::now(), &mut tallies[self.groups[index]]);
                }
                self.ready(index, give_up_at.is_none(), &mut tallies);
            }
            self.run_timers(give_up_at.is_none(), &mut tallies);
            drop(tallies);
            if !self.shared.begun.load(Ordering::Relaxed) && self.clients.iter().all(Client::has_begun) {
                self.shared.begun.store(true, Ordering::SeqCst);
            }
        }
        let shared = Arc::clone(&self.shared);
        let mut tallies = shared.tallies();
        for (client, group) in self.clients.iter_mut().zip(&self.groups) {
            client.give_up(&mut tallies[*group]);
        }
        Ok(())
    }

    fn run_timers(&mut self, may_call: bool, tallies: &mut [Tally]) {
        let now = Instant::now();
        while let Some(Reverse((at, index))) = self.timers.peek().copied()
            && at <= now
        {
            self.timers.pop();
            // An entry that was overtaken is no longer its client's.
            if self.clients[index].armed == Some(at) {
                self.clients[index].armed = None;
                self.ready(index, may_call, tallies);
            }
        }
    }

    /// A client's socket is ready or its time has come.
    fn ready(&mut self, index: usize, may_call: bool, tallies: &mut [Tally]) {
        let now = Instant::now();
        let (client, tally) = (&mut self.clients[index], &mut tallies[self.groups[index]]);
        match client.state {
            State::Gone => return,
            State::Away if !may_call => return,
            State::Away => {
                static NUMBER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
                if client.connect(self.to, NUMBER.fetch_add(1, Ordering::Relaxed), now).is_err() {
                    tally.refused += 1;
                    client.leave(Some(now + Duration::from_millis(50)));
                } else {
                    client.due = Some(now + CONNECT_PATIENCE);
                }
            }
            State::Connecting => {
                if client.connected(now) {
                    tally.connects += 1;
                    client.go_on(now, may_call, tally);
                } else {
                    tally.refused += 1;
                    client.leave(Some(now + Duration::from_millis(50)));
                }
            }
            State::Open => {
                client.read(now, self.begun, &mut self.scratch, tally);
                client.go_on(now, may_call, tally);
            }
        }
        self.watch(index);
    }

    fn watch(&mut self, index: usize) {
        let client = &mut self.clients[index];
        if client.due != client.armed {
            client.armed = client.due;
            self.timers.extend(client.due.map(|at| Reverse((at, index))));
        }
        let wanted = client.wants();
        let Some(fd) = client.fd() else { return };
        if client.watched == Some(wanted) {
            return;
        }
        let mut flags = EpollFlags::empty();
        flags.set(EpollFlags::EPOLLIN, wanted.0);
        flags.set(EpollFlags::EPOLLOUT, wanted.1);
        let mut event = EpollEvent::new(flags, index as u64);
        let told = if client.watched.is_some() {
            self.epoll.modify(fd, &mut event)
        } else {
            self.epoll.add(fd, event)
        };
        if told.is_ok() {
            client.watched = Some(wanted);
        }
    }
}
