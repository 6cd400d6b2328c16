//! One client: its connection, the calls on their way, what is half sent and half received.
//!
//! The engine (`mod.rs`) tells it when its socket is ready or its time has come. It knows nothing of epoll or of other clients.

use std::collections::VecDeque;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, Shutdown, SockFlag, SockType, SockaddrStorage, connect, getpeername, getsockopt,
    recv, send, setsockopt, shutdown, socket, sockopt,
};

use super::content::{self, Verdict};
use super::group::{Group, Life, Reading, Sending};
use super::speech::{Found, Speech};
use super::tally::Tally;

/// A connection that a worker has had for so long is in the keeping: `keep_after` is 100 ms, and some for the way there.
const KEPT_AFTER: Duration = Duration::from_millis(200);

/// Sizes of the pieces that `Sending::Odd` makes.
const ODD: [usize; 9] = [1, 3, 2, 5, 11, 1, 67, 4093, 70_001];

/// How many bursts of calls go by before one has a byte of urgent data.
const URGENT_EVERY: u64 = 5;

/// What is sent at once before more calls are written.
const ENOUGH_OUTPUT: usize = 256 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not there (yet).
    Away,
    Connecting,
    Open,
    /// Gone for good.
    Gone,
}

/// A message that is on its way, as one call or a few.
#[derive(Debug)]
struct Waiting {
    call: u64,
    sent: Instant,
}

/// Memory that all clients use in turn.
#[derive(Debug)]
pub(super) struct Scratch {
    pub(super) bytes: Vec<u8>,
    pub(super) expected: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct Client {
    pub(super) group: Group,
    speech: Speech,
    pub(super) state: State,
    pub(super) socket: Option<OwnedFd>,
    /// What epoll was last told to look for: input, output.
    pub(super) watched: Option<(bool, bool)>,
    /// When it should be looked at though its socket doesn't ask for it, and what the engine has a timer for.
    pub(super) due: Option<Instant>,
    pub(super) armed: Option<Instant>,
    number: u64,
    since: Instant,
    /// When its first answer came: by then some worker had it.
    first_heard: Option<Instant>,
    calls: u64,
    waiting: VecDeque<Waiting>,
    next_call: Instant,
    output: Vec<u8>,
    sent: usize,
    pieces: u64,
    next_piece: Instant,
    input: Vec<u8>,
    /// Bytes of the input in which the end of an answer was looked for.
    looked: usize,
    next_look: Instant,
    last_heard: Instant,
    has_finished_sending: bool,
    /// The service has said that no answer comes any more.
    is_over: bool,
}

impl Client {
    pub(super) fn new(group: Group, speech: Speech, now: Instant) -> Self {
        Self {
            group,
            speech,
            state: State::Away,
            socket: None,
            watched: None,
            due: Some(now),
            armed: None,
            number: 0,
            since: now,
            first_heard: None,
            calls: 0,
            waiting: VecDeque::new(),
            next_call: now,
            output: Vec::new(),
            sent: 0,
            pieces: 0,
            next_piece: now,
            input: Vec::new(),
            looked: 0,
            next_look: now,
            last_heard: now,
            has_finished_sending: false,
            is_over: false,
        }
    }

    pub(super) fn has_unanswered(&self) -> bool {
        self.state == State::Open && !self.waiting.is_empty()
    }

    /// True once something was answered, or when it waits for nothing.
    pub(super) fn has_begun(&self) -> bool {
        self.state == State::Gone
            || (self.state == State::Open && self.calls > self.waiting.len() as u64)
            || !matches!(self.group.life, Life::Long)
            || self.group.reading == Reading::Never
    }

    pub(super) fn wants(&self) -> (bool, bool) {
        match self.state {
            State::Connecting => (false, true),
            State::Open => {
                let is_paced = matches!(self.group.sending, Sending::Paced { .. });
                (self.group.reading == Reading::Eager, self.sent < self.output.len() && !is_paced)
            }
            State::Away | State::Gone => (false, false),
        }
    }

    /// Begins to connect, as client `number`.
    pub(super) fn connect(&mut self, to: SocketAddr, number: u64, now: Instant) -> nix::Result<()> {
        let family = if to.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let socket = socket(family, SockType::Stream, flags, None)?;
        setsockopt(&socket, sockopt::TcpNoDelay, &true)?;
        if self.group.reading != Reading::Eager {
            setsockopt(&socket, sockopt::RcvBuf, &(32 << 10))?;
        }
        match connect(socket.as_raw_fd(), &SockaddrStorage::from(to)) {
            Ok(()) | Err(Errno::EINPROGRESS) => {}
            Err(error) => return Err(error),
        }
        let fresh = Self::new(self.group, self.speech, now);
        *self = Self { socket: Some(socket), number, state: State::Connecting, armed: self.armed, ..fresh };
        self.due = None;
        Ok(())
    }

    /// The socket of a connecting client became writable: it is connected or refused.
    pub(super) fn connected(&mut self, now: Instant) -> bool {
        let Some(socket) = &self.socket else { return false };
        let is_there = getpeername::<SockaddrStorage>(socket.as_raw_fd()).is_ok();
        if !is_there || getsockopt(socket, sockopt::SocketError) != Ok(0) {
            return false;
        }
        self.state = State::Open;
        self.next_call = now + self.group.after;
        self.since = now;
        self.last_heard = now;
        true
    }

    /// The kernel says that the connection is dead, and this client would never read it.
    pub(super) fn hung_up(&mut self, now: Instant, tally: &mut Tally) {
        if self.state == State::Open && self.group.reading == Reading::Never {
            self.closed(tally, now, "hung up");
        }
    }

    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Writes the calls there is room for and time has come for, unless no more are wanted, and sends.
    pub(super) fn go_on(&mut self, now: Instant, may_call: bool, tally: &mut Tally) {
        if self.state != State::Open {
            return;
        }
        let most = match self.group.life {
            Life::HalfClosing { calls } | Life::Visit { calls } => calls,
            Life::Long | Life::Nuisance => u64::MAX,
        };
        while may_call
            && self.waiting.len() < self.group.depth
            && self.calls < most
            && self.next_call <= now
            && self.output.len() - self.sent < ENOUGH_OUTPUT
        {
            self.reclaim();
            self.speech.write_message(&mut self.output, self.group.work, self.number, self.calls);
            self.waiting.push_back(Waiting { call: self.calls, sent: now });
            self.calls += 1;
            // Late calls are not made up for: they would come all at once.
            self.next_call = (self.next_call + self.group.pace).max(now);
        }
        if self.send(now).is_err() {
            return self.closed(tally, now, "sending failed");
        }
        let is_all_sent = self.sent == self.output.len();
        match self.group.life {
            Life::HalfClosing { .. }
                if !self.has_finished_sending && is_all_sent && (self.calls == most || !may_call) =>
            {
                self.has_finished_sending = true;
                if let Some(socket) = &self.socket {
                    let _ = shutdown(socket.as_raw_fd(), Shutdown::Write);
                }
            }
            Life::Visit { calls } if self.calls == calls && self.waiting.is_empty() => {
                self.leave(Some(now.max(self.next_call)));
            }
            _ => {}
        }
        self.plan(may_call, most);
    }

    /// When it should be looked at again without its socket saying so.
    fn plan(&mut self, may_call: bool, most: u64) {
        if self.state != State::Open {
            return;
        }
        let mut due: Option<Instant> = None;
        let mut consider = |at: Instant| due = Some(due.map_or(at, |due| due.min(at)));
        if may_call && self.waiting.len() < self.group.depth && self.calls < most {
            consider(self.next_call);
        }
        if self.sent < self.output.len() && matches!(self.group.sending, Sending::Paced { .. }) {
            consider(self.next_piece);
        }
        if matches!(self.group.reading, Reading::Paced { .. }) {
            consider(self.next_look);
        }
        self.due = due;
    }

    fn reclaim(&mut self) {
        if self.sent == self.output.len() {
            self.output.clear();
            self.sent = 0;
        }
    }

    fn send(&mut self, now: Instant) -> io::Result<()> {
        let Some(socket) = &self.socket else { return Ok(()) };
        let mut flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
        while self.sent < self.output.len() {
            let rest = &self.output[self.sent..];
            let mut is_last = false;
            let piece = match self.group.sending {
                Sending::Whole => rest.len(),
                Sending::Odd => {
                    is_last = true;
                    self.pieces += 1;
                    ODD[usize::try_from(self.pieces).unwrap_or(0) % ODD.len()].min(rest.len())
                }
                Sending::Urgent => {
                    self.pieces += 1;
                    let is_urgent = self.pieces.is_multiple_of(URGENT_EVERY);
                    flags.set(MsgFlags::MSG_OOB, is_urgent);
                    if is_urgent { 1 } else { rest.len().min(29) }
                }
                Sending::Paced { .. } if now < self.next_piece => return Ok(()),
                Sending::Paced { bytes, every } => {
                    is_last = true;
                    self.next_piece = now + every;
                    bytes.min(rest.len())
                }
            };
            match send(socket.as_raw_fd(), &rest[..piece], flags) {
                Ok(count) => self.sent += count,
                Err(Errno::EAGAIN) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            if is_last {
                break;
            }
        }
        Ok(())
    }

    /// Reads what is there, if it is time to, and judges the answers.
    pub(super) fn read(&mut self, now: Instant, begun: Instant, scratch: &mut Scratch, tally: &mut Tally) {
        let most = match self.group.reading {
            Reading::Never => return,
            Reading::Paced { .. } if now < self.next_look => return,
            Reading::Paced { bytes, every } => {
                self.next_look = now + every;
                bytes
            }
            Reading::Eager => scratch.bytes.len(),
        };
        if self.state != State::Open {
            return;
        }
        let Some(socket) = &self.socket else { return };
        match recv(socket.as_raw_fd(), &mut scratch.bytes[..most], MsgFlags::MSG_DONTWAIT) {
            Ok(0) => self.ended(tally, now),
            Ok(count) => {
                self.arrived(count, now, begun, scratch, tally);
                self.last_heard = now;
                self.first_heard.get_or_insert(now);
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Err(error) => {
                let kind = io::Error::from(error).kind();
                let what = if kind == ErrorKind::ConnectionReset { "reset" } else { "receiving failed" };
                self.closed(tally, now, what);
            }
        }
    }

    fn arrived(
        &mut self,
        count: usize,
        now: Instant,
        begun: Instant,
        scratch: &mut Scratch,
        tally: &mut Tally,
    ) {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(&scratch.bytes[..count]);
        let mut at = 0;
        loop {
            match self.speech.find_answer(&input[at..], self.looked) {
                Ok(Some(Found { body, end, status, is_goodbye })) => {
                    self.looked = 0;
                    if std::mem::replace(&mut self.is_over, is_goodbye) {
                        return self.wrong(tally, "an answer behind the one that was to be the last");
                    }
                    tally.goodbyes += u64::from(is_goodbye);
                    let answer = &input[at + body.start..at + body.end];
                    if !self.answered((answer, status), now, begun, scratch, tally) {
                        return;
                    }
                    at += end;
                }
                Ok(None) => break,
                Err(why) => return self.was_not_understood(tally, &why),
            }
        }
        input.drain(..at);
        self.looked = input.len();
        if input.is_empty() {
            input.shrink_to(64 << 10);
        }
        self.input = input;
    }

    /// False when the connection can't be trusted any more, which is then gone.
    fn answered(
        &mut self,
        (answer, status): (&[u8], u16),
        now: Instant,
        begun: Instant,
        scratch: &mut Scratch,
        tally: &mut Tally,
    ) -> bool {
        let place = if self.speech.is_ordered() {
            (!self.waiting.is_empty()).then_some(0)
        } else {
            let message = self.speech.message_of(answer);
            message.and_then(|message| self.waiting.iter().position(|waiting| waiting.call == message))
        };
        let Some(waiting) = place.and_then(|place| self.waiting.remove(place)) else {
            let head = String::from_utf8_lossy(&answer[..answer.len().min(120)]).into_owned();
            let why = format!("an answer to no call of its own: {head}");
            if content::is_nobodys(answer) {
                self.was_not_understood(tally, &why);
            } else {
                self.wrong(tally, &why);
            }
            return false;
        };
        let took = now.saturating_duration_since(waiting.sent);
        let silent = now.saturating_duration_since(self.last_heard.max(waiting.sent));
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        let at = now.saturating_duration_since(begun);
        tally.silences.add(at, ns(silent));
        let whose = (self.number, waiting.call);
        *tally.spoken.entry(self.speech).or_default() += 1;
        let mut has_failed = false;
        for verdict in self.speech.judge(&mut scratch.expected, (answer, status), self.group.work, whose) {
            match verdict {
                Verdict::Right => {
                    tally.right += 1;
                    tally.latencies.add(at, ns(took));
                }
                Verdict::Error(failure) => {
                    has_failed = true;
                    *tally.errors.entry(failure).or_default() += 1;
                    tally.error_latencies.add(at, ns(took));
                }
                Verdict::Wrong(why) if content::is_nobodys(answer) => {
                    self.was_not_understood(tally, &format!("message {}: {why}", waiting.call));
                    return false;
                }
                Verdict::Wrong(why) => {
                    self.wrong(tally, &format!("message {}: {why}", waiting.call));
                    return false;
                }
            }
        }
        if has_failed {
            *tally.failed_messages.entry(self.speech).or_default() += 1;
        }
        true
    }

    /// Something came that nobody can take for an answer to a call: who knows what else is amiss?
    fn was_not_understood(&mut self, tally: &mut Tally, why: &str) {
        tally.anonymous += 1;
        tally.first_anonymous.get_or_insert_with(|| self.says(why));
        self.drop_off(tally);
    }

    fn wrong(&mut self, tally: &mut Tally, why: &str) {
        tally.wrong += 1;
        tally.first_wrong.get_or_insert_with(|| self.says(why));
        self.drop_off(tally);
    }

    fn says(&self, why: &str) -> String {
        format!("client {}, {}, {why}", self.number, self.speech.name())
    }

    fn drop_off(&mut self, tally: &mut Tally) {
        tally.lost += self.waiting.len() as u64;
        self.leave(None);
    }

    /// The service's FIN.
    fn ended(&mut self, tally: &mut Tally, now: Instant) {
        if self.has_finished_sending && self.waiting.is_empty() && self.input.is_empty() {
            return self.leave(Some(now));
        }
        self.closed(tally, now, "FIN");
    }

    fn closed(&mut self, tally: &mut Tally, now: Instant, how: &str) {
        if self.group.life == Life::Nuisance {
            return self.leave(Some(now + Duration::from_millis(100)));
        }
        let age = now.saturating_duration_since(self.since);
        tally.lost += self.waiting.len() as u64;
        // Its worker lived when it was last heard of; one that was stopped before could not have it kept.
        let had_for = self.first_heard.map(|first| self.last_heard.saturating_duration_since(first));
        if had_for.is_some_and(|had_for| had_for > KEPT_AFTER) {
            tally.closed += 1;
            let (waiting, half) = (self.waiting.len(), self.input.len());
            tally.first_closed.get_or_insert_with(|| {
                let at = std::time::SystemTime::now()
                    .duration_since(std::time::UNIX_EPOCH)
                    .map(|since| since.as_millis())
                    .unwrap_or_default();
                format!(
                    "{how}, {}, port {}, {age:.1?} old, {} calls begun, {waiting} on their way, {half} bytes of an answer here, \
                     at {at} ms",
                    self.speech.name(),
                    self.port(),
                    self.calls
                )
            });
        } else {
            tally.closed_young += 1;
        }
        // A visitor or a half-closing client is followed by others; a long one is gone.
        let next = (self.group.life != Life::Long).then_some(now + Duration::from_millis(10));
        self.leave(next);
    }

    fn port(&self) -> u16 {
        use nix::sys::socket::{SockaddrIn, getsockname};
        let name = self.socket.as_ref().and_then(|socket| getsockname::<SockaddrIn>(socket.as_raw_fd()).ok());
        name.map_or(0, |name| name.port())
    }

    /// Closes its side; another client comes at `next`.
    pub(super) fn leave(&mut self, next: Option<Instant>) {
        self.socket = None;
        self.watched = None;
        self.waiting.clear();
        self.output = Vec::new();
        self.input = Vec::new();
        self.looked = 0;
        self.sent = 0;
        self.state = if next.is_some() { State::Away } else { State::Gone };
        self.due = next;
    }

    /// Counts what never came.
    pub(super) fn give_up(&mut self, tally: &mut Tally) {
        if self.has_unanswered() && self.group.life != Life::Nuisance && self.group.reading != Reading::Never
        {
            tally.missing += self.waiting.len() as u64;
            let first = self.waiting.front().map_or(0, |waiting| waiting.call);
            let (unsent, half) = (self.output.len() - self.sent, self.input.len());
            let (client, port, speech) = (self.number, self.port(), self.speech.name());
            tally.first_missing.get_or_insert_with(|| {
                format!(
                    "client {client}, {speech}, port {port}, from call {first} on; {unsent} bytes not sent, {half} of an answer here"
                )
            });
        }
        self.leave(None);
    }
}
