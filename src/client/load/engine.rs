//! Drives the connections of a load from one thread: one epoll, one timer, no other waiting.
//!
//! `Load::run` makes it. What bytes mean is the exchange's, what counts is the tally's, what is due the schedule's; here is
//! decided who is read, who sends, and when it is over.

mod connecting;

use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};

use super::connection::{Connection, Scratch, State};
use super::schedule::Schedule;
use super::tally::{Tally, later};
use super::targets::Targets;
use super::{Exchange, Load, LoadError, Phase, Progress, Report};
use crate::config::Endpoint;
use crate::sys::clock::monotonic_ns;

/// Epoll's name for the timer; connections have their index.
const TIMER: u64 = u64::MAX;
/// All connections have to be made within this time, a name's look-up before it.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// Events taken from the kernel in one go.
const BATCH: usize = 256;

/// How often what has no event of its own is looked at: `stop`, connections to be made again.
const TICK: Duration = Duration::from_millis(10);
const PROGRESS: Duration = Duration::from_millis(100);

/// After the end: for how long calls that were due are still sent, and answers are waited for.
const SENDING_GRACE: Duration = Duration::from_secs(1);
const GRACE: Duration = Duration::from_secs(5);

pub(super) struct Engine<'a, E> {
    load: &'a Load,
    targets: Targets,
    exchange: &'a E,
    epoll: Epoll,
    timer: TimerFd,
    /// When the timer fires next.
    armed: u64,
    connections: Vec<Connection<E>>,
    open: usize,
    /// Connections that have to be made again.
    away: usize,
    /// Calls that have been sent and not answered, on all connections.
    in_flight: usize,
    schedule: Option<Schedule>,
    /// Connections with room for a call, in an open loop; each once, in turn.
    line: VecDeque<usize>,
    /// Connections with calls to be written.
    touched: Vec<usize>,
    is_sending: bool,
    scratch: Scratch,
    tally: Tally,
    /// How long answers are waited for after the end.
    pub(super) grace: Duration,
    /// Why a connection could not be made, the last time.
    failure: Option<io::Error>,
}

impl<'a, E: Exchange> Engine<'a, E> {
    pub(super) fn new(load: &'a Load, target: Endpoint, exchange: &'a E) -> Result<Self, LoadError> {
        let to = target.to_string();
        let targets = Targets::look_up(target, monotonic_ns(), CONNECTED_WITHIN)
            .map_err(|source| LoadError::NoServer { to, source })?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let timer =
            TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK | TimerFlags::TFD_CLOEXEC)?;
        // By edges: a timer that has fired is silent until it is set again, and need not be read.
        epoll.add(&timer, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLET, TIMER))?;
        let connections = (0..load.connections).map(|_| Connection::new(exchange, load.pipeline)).collect();
        Ok(Self {
            load,
            targets,
            exchange,
            epoll,
            timer,
            armed: 0,
            connections,
            open: 0,
            away: load.connections,
            in_flight: 0,
            schedule: None,
            line: VecDeque::with_capacity(load.connections),
            touched: Vec::with_capacity(load.connections),
            is_sending: false,
            scratch: Scratch::new(),
            tally: Tally::new(),
            grace: GRACE,
            failure: None,
        })
    }

    pub(super) fn run(
        mut self,
        stop: &AtomicBool,
        on_progress: &mut dyn FnMut(&Progress),
    ) -> Result<Report, LoadError> {
        self.connect_all(stop)?;
        let begin = monotonic_ns();
        let from = later(begin, self.load.warm_up);
        let end = later(from, self.load.duration);
        self.tally.measure(from, end);
        self.begin(begin);

        let mut events = [EpollEvent::empty(); BATCH];
        let mut next_tick = begin;
        let mut next_progress = begin;
        let mut phase = Phase::WarmUp;
        let mut cpu = CpuTime::default();
        loop {
            let now = monotonic_ns();
            if stop.load(Ordering::Relaxed) {
                cpu.end();
                return Ok(self.tally.finish(now, cpu.used()));
            }
            let progress = self.tally.progress(begin, now, self.open);
            if progress.phase != phase {
                phase = progress.phase;
                next_progress = now;
                if phase == Phase::Measuring { cpu.begin() } else { cpu.end() }
            }
            if now >= next_progress {
                on_progress(&progress);
                next_progress = later(now, PROGRESS);
            }
            self.send_due(now);
            if now >= end && self.is_over(now) {
                self.give_up_the_rest();
                return Ok(self.tally.finish(now, cpu.used()));
            }
            if now >= next_tick {
                self.reopen(now);
                next_tick = later(now, TICK);
            }
            self.set_timer(now, next_tick)?;
            self.turn(&mut events, EpollTimeout::NONE)?;
        }
    }

    /// The first calls.
    fn begin(&mut self, now: u64) {
        self.is_sending = true;
        self.schedule = self.load.rate.map(|rate| Schedule::new(now, rate));
        for index in 0..self.connections.len() {
            // Each at its own moment: to send to thousands takes a while.
            self.welcome(index, monotonic_ns());
        }
    }

    /// Waits for events and handles them.
    fn turn(&mut self, events: &mut [EpollEvent], timeout: EpollTimeout) -> Result<(), LoadError> {
        let arrived = match self.epoll.wait(events, timeout) {
            Ok(count) => count,
            Err(Errno::EINTR) => 0,
            Err(error) => return Err(error.into()),
        };
        for event in events.iter().take(arrived) {
            match usize::try_from(event.data()) {
                Ok(index) if event.data() != TIMER => self.handle(index, event.events()),
                _ => self.armed = 0,
            }
        }
        Ok(())
    }

    fn handle(&mut self, index: usize, what: EpollFlags) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        match connection.state {
            State::Away { .. } => {}
            State::Connecting { .. } => self.connected(index),
            State::Open => {
                let ended = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                if what.intersects(EpollFlags::EPOLLIN | ended) {
                    let (answers, now, end) =
                        connection.read(&mut self.scratch, what.intersects(ended), &mut self.tally);
                    self.in_flight -= answers;
                    match end {
                        Some(end) => self.part(index, now, &end),
                        None if answers > 0 => self.replace(index, answers, now),
                        None => {}
                    }
                }
                self.resume_sending(index);
            }
        }
    }

    /// Room for `answers` more calls: a closed loop sends them at once, in an open loop the connection stands in line.
    fn replace(&mut self, index: usize, answers: usize, now: u64) {
        if self.schedule.is_some() {
            self.stand_in_line(index);
        } else if now < self.tally.end() {
            self.issue(index, now, answers);
            self.send(index, now);
        }
    }

    fn welcome(&mut self, index: usize, now: u64) {
        if self.is_sending && self.connections.get(index).is_some_and(|one| one.state == State::Open) {
            self.replace(index, self.load.pipeline, now);
        }
    }

    fn issue(&mut self, index: usize, start: u64, calls: usize) {
        if let Some(connection) = self.connections.get_mut(index) {
            connection.flight.issue(start, calls);
            connection.unsent += calls;
            self.in_flight += calls;
        }
    }

    fn send(&mut self, index: usize, now: u64) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if let Err(end) = connection.send(&mut self.scratch) {
            self.part(index, now, &end);
        }
    }

    fn resume_sending(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        if connection.state == State::Open
            && let Err(end) = connection.resume_sending()
        {
            self.part(index, monotonic_ns(), &end);
        }
    }

    fn stand_in_line(&mut self, index: usize) {
        let Some(connection) = self.connections.get_mut(index) else { return };
        let has_room = connection.state == State::Open && connection.flight.len() < self.load.pipeline;
        if has_room && !connection.is_in_line {
            connection.is_in_line = true;
            self.line.push_back(index);
        }
    }

    /// In an open loop: gives the calls that are due to connections with room, in turn, and writes each connection's
    /// calls at once.
    fn send_due(&mut self, now: u64) {
        let end = self.tally.end();
        if now >= later(end, SENDING_GRACE) {
            return;
        }
        while let Some(index) = self.line.front().copied() {
            let is_open = self.connections.get(index).is_some_and(|one| one.state == State::Open);
            if is_open {
                let Some(due) = self.schedule.as_mut().and_then(|schedule| schedule.take(now, end)) else {
                    break;
                };
                self.issue(index, due, 1);
                if self.connections.get(index).is_some_and(|one| one.unsent == 1) {
                    self.touched.push(index);
                }
            }
            self.line.pop_front();
            if let Some(connection) = self.connections.get_mut(index) {
                connection.is_in_line = false;
            }
            self.stand_in_line(index);
        }
        while let Some(index) = self.touched.pop() {
            self.send(index, now);
        }
    }

    /// Wakes the next wait when something is to be done that no socket tells.
    fn set_timer(&mut self, now: u64, next_tick: u64) -> Result<(), LoadError> {
        let end = self.tally.end();
        let changes = [self.tally.from(), end].into_iter().filter(|moment| now < *moment);
        let mut moment = changes.fold(next_tick, u64::min);
        if let Some(schedule) = &self.schedule
            && !self.line.is_empty()
            && schedule.next_due() < end
        {
            moment = moment.min(schedule.next_due());
        }
        if moment != self.armed {
            // 0 would switch the timer off.
            let moment_of_clock = TimeSpec::from_duration(Duration::from_nanos(moment.max(1)));
            self.timer.set(Expiration::OneShot(moment_of_clock), TimerSetTimeFlags::TFD_TIMER_ABSTIME)?;
            self.armed = moment;
        }
        Ok(())
    }

    /// After the end: whether there is nothing more to wait for.
    fn is_over(&self, now: u64) -> bool {
        let end = self.tally.end();
        let may_send = now < later(end, SENDING_GRACE)
            && self.schedule.as_ref().is_some_and(|schedule| schedule.next_due() < end);
        now >= later(end, self.grace) || (self.in_flight == 0 && !may_send)
    }

    fn give_up_the_rest(&mut self) {
        let from = self.tally.from();
        for connection in &mut self.connections {
            // Those from the warm-up too: a server that hangs must not pass for one that had nothing to do.
            let calls = connection.flight.abandon(0);
            self.tally.unanswered(calls);
        }
        if let Some(schedule) = &self.schedule {
            self.tally.unanswered(schedule.left_between(from, self.tally.end()));
        }
    }
}

/// CPU time of this thread over a time.
#[derive(Debug, Default)]
struct CpuTime {
    begin: Option<Duration>,
    end: Option<Duration>,
}

impl CpuTime {
    fn begin(&mut self) {
        self.begin = Some(thread_cpu());
    }

    /// The first end counts.
    fn end(&mut self) {
        self.end.get_or_insert_with(thread_cpu);
    }

    fn used(&self) -> Duration {
        self.begin.zip(self.end).map_or(Duration::ZERO, |(begin, end)| end.saturating_sub(begin))
    }
}

fn thread_cpu() -> Duration {
    // The call can't fail: the clock exists on every Linux.
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .map_or(Duration::ZERO, Duration::from)
}
