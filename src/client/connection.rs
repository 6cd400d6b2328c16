//! One connection that many threads make calls on at the same time, without a thread of its own.
//!
//! `calls` gives it calls; `waiting` knows whose an answer is. Writing is by turns. Reading is a role: the
//! `input` in the state. A caller that waits and finds it there takes it, reads, and gives answers to whom they belong;
//! when its own are complete it puts the role back and wakes one that sleeps. So nobody sleeps while the role is free:
//! whoever stops waiting, for whatever reason, looks whether it must wake another.
//!
//! Nobody waits in the kernel for ever while others could go on: a deadline ends a wait, and what ends the connection
//! hangs up the socket, which wakes those in the kernel, and wakes those that sleep.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use nix::poll::PollFlags;
use parking_lot::{Condvar, Mutex, MutexGuard};

use super::answer::{self, Arrived};
use super::error::ClientError;
use super::input::{Input, TooLong};
use super::request::{Notification, Outgoing};
use super::stream::{Broken, Deadline, Stream};
use super::waiting::{Outcome, Settled, Waiting};

/// How long a writer that the socket has no room for leaves reading to another before it looks whether that one still does, and
/// a reader waits in the kernel while a caller that gives up could decide something for it.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What may still come after the server has refused the rest of a message: its reason, which it sent before.
const REASON_COMES_WITHIN: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(super) struct Connection {
    stream: Stream,
    /// Where it leads, for errors.
    addr: String,
    /// Bytes that one answer may have.
    max_answer: Arc<AtomicUsize>,
    /// Held while a message is written.
    turn: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// The role of the reader: whoever has taken this reads.
    input: Option<Input>,
    waiting: Waiting,
    ended: Option<End>,
    /// Calls on their way may still be answered, new ones go elsewhere.
    is_leaving: bool,
    last_arrival: Instant,
}

/// Why a connection is given up.
#[derive(Debug)]
enum End {
    Closed,
    Protocol(String),
    Io(io::Error),
}

/// Until when calls may be written and answers waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    pub(super) sending: Deadline,
    pub(super) waiting: Deadline,
    /// What the caller asked for, to tell it when it's over.
    pub(super) asked: Duration,
}

impl Times {
    fn up(&self) -> ClientError {
        ClientError::Timeout { after: self.asked }
    }
}

/// The server can't have run any of it: it hung up before it had the first message whole.
#[derive(Debug)]
pub(super) struct NotSent;

/// The messages that came, and why none can follow them.
struct Read {
    arrived: Vec<Arrived>,
    end: Option<End>,
}

/// How far writing got.
struct Written {
    bytes: usize,
    result: Result<(), Broken>,
}

impl Connection {
    pub(super) fn new(stream: Stream, addr: String, max_answer: Arc<AtomicUsize>) -> Self {
        let state = State {
            input: Some(Input::default()),
            waiting: Waiting::default(),
            ended: None,
            is_leaving: false,
            last_arrival: Instant::now(),
        };
        Self { stream, addr, max_answer, turn: Mutex::new(()), state: Mutex::new(state) }
    }

    /// Whether a call may be sent on it. Takes in what has arrived, so an end that the server has sent is noticed.
    pub(super) fn is_open(&self) -> bool {
        let mut state = self.state.lock();
        while state.takes_calls() && self.look(&mut state, None) {}
        state.hand_on();
        state.takes_calls()
    }

    /// Sends calls and waits for their outcomes, which come in the order of the calls.
    pub(super) fn exchange(&self, calls: &Outgoing, times: Times) -> Result<Vec<Outcome>, NotSent> {
        let wake = Arc::default();
        {
            let mut state = self.state.lock();
            if !state.takes_calls() {
                return Err(NotSent);
            }
            state.waiting.join(calls.first, &calls.places, calls.is_array, Arc::clone(&wake));
        }
        let began = Instant::now();
        let written = self.write_in_turn(&calls.bytes, times.sending, |waiting| waiting.goes(calls.first));
        let until = match written.result {
            Ok(()) => times.waiting,
            Err(Broken::Closed) if written.bytes > 0 => {
                times.waiting.or_sooner(Deadline::after(Some(REASON_COMES_WITHIN)))
            }
            // Nothing was sent, its own time is up, or the system fails: nothing to wait for.
            Err(_) => Deadline::after(Some(Duration::ZERO)),
        };
        let mut state = self.state.lock();
        self.await_answers(&mut state, calls.first, &wake, until);
        if !state.waiting.is_complete(calls.first) && written.bytes > 0 {
            state.doubt_since(began);
        }
        let outcomes = state.waiting.leave(calls.first, written.bytes > 0);
        let settled = state.waiting.look_again();
        state.follow(&settled);
        self.conclude(calls, outcomes, &written, &state, times)
    }

    /// Sends a message that nothing comes back for.
    pub(super) fn tell(
        &self,
        notification: &Notification,
        times: Times,
    ) -> Result<Result<(), ClientError>, NotSent> {
        let Notification { bytes, place } = notification;
        match self.write_in_turn(bytes, times.sending, |waiting| waiting.tells(*place)).result {
            Ok(()) => Ok(Ok(())),
            Err(Broken::Closed) => Err(NotSent),
            Err(Broken::TimedOut) => Ok(Err(times.up())),
            Err(Broken::Io(error)) => Ok(Err(ClientError::Io(error))),
        }
    }

    /// Writes when it is this caller's turn, of which `waiting` hears. Whatever leaves a message half written ends the
    /// connection.
    fn write_in_turn(&self, bytes: &[u8], deadline: Deadline, goes: impl FnOnce(&mut Waiting)) -> Written {
        let turn = match deadline.moment() {
            None => Some(self.turn.lock()),
            Some(moment) => self.turn.try_lock_until(moment),
        };
        if turn.is_none() {
            return Written { bytes: 0, result: Err(Broken::TimedOut) };
        }
        {
            let mut state = self.state.lock();
            if !state.takes_calls() {
                return Written { bytes: 0, result: Err(Broken::Closed) };
            }
            goes(&mut state.waiting);
        }
        let mut count = 0;
        let began = Instant::now();
        let result = self.write(bytes, &mut count, deadline);
        match &result {
            Ok(()) => {}
            // The reason may still be read.
            Err(Broken::Closed) => self.state.lock().is_leaving = true,
            Err(Broken::TimedOut) if count == 0 => self.state.lock().doubt_since(began),
            Err(Broken::TimedOut) => self.end(&mut self.state.lock(), End::Closed),
            Err(Broken::Io(error)) => {
                self.end(&mut self.state.lock(), End::Io(ClientError::like(error)));
            }
        }
        Written { bytes: count, result }
    }

    fn write(&self, bytes: &[u8], count: &mut usize, deadline: Deadline) -> Result<(), Broken> {
        loop {
            match self.stream.send(bytes.get(*count..).unwrap_or_default())? {
                0 => self.await_room(deadline)?,
                sent => *count = count.saturating_add(sent),
            }
            if *count >= bytes.len() {
                return Ok(());
            }
            deadline.left()?;
        }
    }

    /// Waits until the socket takes more. The server stops reading when its answers aren't read, so somebody must read them
    /// meanwhile: this caller, unless another does.
    fn await_room(&self, deadline: Deadline) -> Result<(), Broken> {
        let is_read = self.state.lock().input.is_none();
        if is_read {
            return match self
                .stream
                .wait(PollFlags::POLLOUT, deadline.or_sooner(Deadline::after(Some(LOOK_AGAIN))))
            {
                Err(Broken::TimedOut) => deadline.left().map(|_| ()),
                waited => waited,
            };
        }
        self.stream.wait(PollFlags::POLLOUT | PollFlags::POLLIN, deadline)?;
        let mut state = self.state.lock();
        self.look(&mut state, None);
        state.hand_on();
        if state.ended.is_some() { Err(Broken::Closed) } else { Ok(()) }
    }

    /// Reads, or sleeps while another reads, until the group is complete, the connection has ended or the time is up.
    fn await_answers(
        &self,
        state: &mut MutexGuard<'_, State>,
        first: u64,
        wake: &Condvar,
        deadline: Deadline,
    ) {
        while state.ended.is_none() && !state.waiting.is_complete(first) && deadline.left().is_ok() {
            if state.input.is_some() {
                let until = if state.waiting.is_in_doubt() {
                    // Another who gives up may decide it, and could not wake who waits in the kernel.
                    deadline.or_sooner(Deadline::after(Some(LOOK_AGAIN)))
                } else {
                    deadline
                };
                self.look(state, Some(until));
                continue;
            }
            state.waiting.sleeps(first, true);
            match deadline.moment() {
                None => wake.wait(state),
                Some(moment) => {
                    wake.wait_until(state, moment);
                }
            }
            state.waiting.sleeps(first, false);
        }
        state.hand_on();
    }

    /// Takes the role if it is free, reads once and deals out what came. Waits for that until the deadline, or without one
    /// takes only what is there. False when there was nothing.
    fn look(&self, state: &mut MutexGuard<'_, State>, until: Option<Deadline>) -> bool {
        let Some(mut input) = state.input.take() else { return false };
        let read = MutexGuard::unlocked(state, || self.read(&mut input, until));
        state.input = Some(input);
        let (arrived, mut end) = match read {
            Ok(None) | Err(Broken::TimedOut) => return false,
            Ok(Some(Read { arrived, end })) => (arrived, end),
            Err(Broken::Closed) => (Vec::new(), Some(End::Closed)),
            Err(Broken::Io(error)) => (Vec::new(), Some(End::Io(error))),
        };
        state.last_arrival = Instant::now();
        for message in arrived {
            match state.waiting.settle(message) {
                Ok(settled) => state.follow(&settled),
                Err(why) => {
                    end = Some(End::Protocol(why));
                    break;
                }
            }
        }
        if let Some(end) = end {
            self.end(state, end);
        }
        true
    }

    /// `None` when nothing has arrived.
    fn read(&self, input: &mut Input, until: Option<Deadline>) -> Result<Option<Read>, Broken> {
        if let Some(deadline) = until {
            self.stream.wait(PollFlags::POLLIN, deadline)?;
        }
        let Some(count) = self.stream.receive(input.room())? else { return Ok(None) };
        input.filled(count);
        let most = self.max_answer.load(Ordering::Relaxed);
        let mut arrived = Vec::new();
        let end = loop {
            match input.next(most).map(|message| message.map(answer::read)) {
                Ok(None) => break None,
                Ok(Some(Ok(message))) => arrived.push(message),
                Ok(Some(Err(why))) => break Some(End::Protocol(why)),
                Err(TooLong { found }) => {
                    let why = format!("expected an answer of at most {most} bytes, found one of {found}");
                    break Some(End::Protocol(why));
                }
            }
        };
        Ok(Some(Read { arrived, end }))
    }

    fn end(&self, state: &mut State, end: End) {
        state.ended.get_or_insert(end);
        self.stream.hang_up();
        state.waiting.sleepers().for_each(|sleeper| {
            sleeper.notify_one();
        });
    }

    /// What each call came to when no more answers are waited for.
    fn conclude(
        &self,
        calls: &Outgoing,
        outcomes: Vec<Option<Outcome>>,
        written: &Written,
        state: &State,
        times: Times,
    ) -> Result<Vec<Outcome>, NotSent> {
        let is_whole = |end: usize| end <= written.bytes;
        let none_is_whole = !calls.places.first().is_some_and(|place| is_whole(place.end));
        if none_is_whole
            && matches!(written.result, Err(Broken::Closed))
            && outcomes.iter().all(Option::is_none)
        {
            return Err(NotSent);
        }
        let without_answer = |end: usize| match (&written.result, &state.ended) {
            (Err(Broken::TimedOut), _) => times.up(),
            (Err(Broken::Io(error)), _) => ClientError::Io(ClientError::like(error)),
            (Err(Broken::Closed), _) if !is_whole(end) => self.not_taken(),
            (Err(Broken::Closed), None) | (_, Some(End::Closed)) => ClientError::Closed,
            (_, Some(End::Protocol(why))) => ClientError::Protocol(why.clone()),
            (_, Some(End::Io(error))) => ClientError::Io(ClientError::like(error)),
            (Ok(()), None) => times.up(),
        };
        let outcomes = calls.places.iter().zip(outcomes);
        Ok(outcomes
            .map(|(place, outcome)| outcome.unwrap_or_else(|| Err(without_answer(place.end))))
            .collect())
    }

    fn not_taken(&self) -> ClientError {
        let source = io::ErrorKind::ConnectionReset.into();
        ClientError::NoServer { addr: self.addr.clone(), source }
    }
}

impl State {
    /// Wakes one that sleeps, if nobody reads.
    fn hand_on(&self) {
        if self.input.is_some()
            && self.ended.is_none()
            && let Some(sleeper) = self.waiting.a_sleeper()
        {
            sleeper.notify_one();
        }
    }

    fn follow(&mut self, settled: &Settled) {
        self.is_leaving |= settled.is_leaving;
        settled.wake.iter().for_each(|wake| {
            wake.notify_one();
        });
    }

    fn takes_calls(&self) -> bool {
        self.ended.is_none() && !self.is_leaving
    }

    /// A call's time is up, and since that moment nothing has arrived, not even the server's word that it is: the server may be
    /// stuck, and on another connection another worker may not be.
    fn doubt_since(&mut self, moment: Instant) {
        self.is_leaving |= self.last_arrival < moment;
    }
}
