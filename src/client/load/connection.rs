//! One connection of a load: its socket, the calls on their way, and bytes that are only half here or half gone.
//!
//! The engine says when to read and what to send; nothing here knows of epoll, rates or other connections.

use std::io;

use super::exchange::{Answer, Exchange};
use super::flight::Flight;
use super::socket::Socket;
use super::tally::Tally;
use crate::sys::clock::monotonic_ns;

/// What one read takes at most, in bytes.
const READ: usize = 256 << 10;

/// Room for what one write mostly holds, in bytes.
const WRITE: usize = 64 << 10;

/// Memory that all connections use in turn.
#[derive(Debug)]
pub(super) struct Scratch {
    input: Vec<u8>,
    output: Vec<u8>,
}

impl Scratch {
    pub(super) fn new() -> Self {
        Self { input: vec![0; READ], output: Vec::with_capacity(WRITE) }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    /// Not there; to be opened at that moment.
    Away {
        until: u64,
    },
    /// `until`: when the address has had its time.
    Connecting {
        until: u64,
    },
    Open,
}

/// Why a connection ends.
#[derive(Debug)]
pub(super) enum End {
    Closed,
    /// What it brings can't be trusted any more; counted already.
    Wrong,
}

#[derive(Debug)]
pub(super) struct Connection<E> {
    pub(super) state: State,
    /// Addresses that this connection was tried at in vain, since it was last open or all were tried.
    pub(super) tried: usize,
    /// What one of them said, while others are still to be tried.
    pub(super) failed: Option<io::Error>,
    pub(super) socket: Option<Socket>,
    pub(super) flight: Flight,
    /// Calls that are in flight and not yet written.
    pub(super) unsent: usize,
    /// True while it stands in the engine's line of connections that have room.
    pub(super) is_in_line: bool,
    exchange: E,
    /// The part of an answer that has arrived, when it came in several.
    input: Vec<u8>,
    /// What the socket has not taken.
    output: Vec<u8>,
}

/// Whether trying again can help.
pub(super) fn passes_by_itself(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::ConnectionRefused | Kind::NotFound | Kind::WouldBlock | Kind::TimedOut | Kind::ConnectionReset
    )
}

impl<E: Exchange> Connection<E> {
    pub(super) fn new(exchange: &E, pipeline: usize) -> Self {
        Self {
            state: State::Away { until: 0 },
            tried: 0,
            failed: None,
            socket: None,
            flight: Flight::with_capacity(pipeline),
            unsent: 0,
            is_in_line: false,
            exchange: exchange.clone(),
            input: Vec::new(),
            output: Vec::new(),
        }
    }

    /// An address does not take the connection. What may pass is told before what won't: where one can't be reached at all, the
    /// other counts.
    pub(super) fn not_taken(&mut self, error: io::Error) {
        self.socket = None;
        self.tried += 1;
        if self.failed.as_ref().is_none_or(|known| !passes_by_itself(known)) {
            self.failed = Some(error);
        }
    }

    /// Forgets what belonged to the last connection.
    pub(super) fn renew(&mut self, exchange: &E) {
        self.exchange.clone_from(exchange);
        self.input.clear();
        self.output.clear();
        self.unsent = 0;
    }

    /// Reads what is there and judges it. The number of answers, and when they were read; `Err` when the connection
    /// must end, what was read before that being counted. `to_the_end`: the server is known to send no more.
    pub(super) fn read(
        &mut self,
        scratch: &mut Scratch,
        to_the_end: bool,
        tally: &mut Tally,
    ) -> (usize, u64, Option<End>) {
        let before = self.flight.len();
        let (now, end) = loop {
            let Some(socket) = &self.socket else { break (monotonic_ns(), Some(End::Closed)) };
            let received = socket.receive(&mut scratch.input);
            let now = monotonic_ns();
            let bytes = match received {
                Ok(Some(0)) | Err(_) => break (now, Some(End::Closed)),
                Ok(None) => break (now, None),
                Ok(Some(count)) => scratch.input.get(..count).unwrap_or_default(),
            };
            if let Err(end) = self.take(bytes, now, tally) {
                break (now, Some(end));
            }
            // Epoll reports new bytes by their arrival: a read that did not fill its buffer has had them all.
            if bytes.len() < READ && !to_the_end {
                break (now, None);
            }
        };
        (before - self.flight.len(), now, end)
    }

    fn take(&mut self, bytes: &[u8], now: u64, tally: &mut Tally) -> Result<(), End> {
        if self.input.is_empty() {
            let consumed = judge(&mut self.exchange, &mut self.flight, bytes, now, tally)?;
            self.input.extend_from_slice(bytes.get(consumed..).unwrap_or_default());
        } else {
            self.input.extend_from_slice(bytes);
            let consumed = judge(&mut self.exchange, &mut self.flight, &self.input, now, tally)?;
            self.input.drain(..consumed);
        }
        Ok(())
    }

    /// Writes the calls that are unsent, all at once.
    pub(super) fn send(&mut self, scratch: &mut Scratch) -> Result<(), End> {
        let calls = std::mem::take(&mut self.unsent);
        if !self.output.is_empty() {
            // They go behind what the socket has not taken yet.
            (0..calls).for_each(|_| self.exchange.request(&mut self.output));
            return Ok(());
        }
        scratch.output.clear();
        (0..calls).for_each(|_| self.exchange.request(&mut scratch.output));
        let sent = written(self.socket.as_ref(), &scratch.output).map_err(|_| End::Closed)?;
        self.output.extend_from_slice(scratch.output.get(sent..).unwrap_or_default());
        Ok(())
    }

    /// Goes on with what the socket had not taken.
    pub(super) fn resume_sending(&mut self) -> Result<(), End> {
        if self.output.is_empty() {
            return Ok(());
        }
        let sent = written(self.socket.as_ref(), &self.output).map_err(|_| End::Closed)?;
        self.output.drain(..sent);
        Ok(())
    }
}

fn written(socket: Option<&Socket>, bytes: &[u8]) -> io::Result<usize> {
    let socket = socket.ok_or(io::ErrorKind::NotConnected)?;
    if bytes.is_empty() { Ok(0) } else { socket.send(bytes) }
}

/// Judges the whole answers in `bytes`; how many bytes those are.
fn judge<E: Exchange>(
    exchange: &mut E,
    flight: &mut Flight,
    bytes: &[u8],
    now: u64,
    tally: &mut Tally,
) -> Result<usize, End> {
    let mut rest = bytes;
    let found = loop {
        if rest.is_empty() {
            break Ok(());
        }
        let (consumed, is_error) = match exchange.answer(rest) {
            Answer::NeedMore => break Ok(()),
            Answer::Right { consumed } => (consumed, false),
            Answer::Error { consumed } => (consumed, true),
            Answer::Wrong { why } => break Err(why),
        };
        let Some((answer, after)) = rest.split_at_checked(consumed).filter(|(answer, _)| !answer.is_empty())
        else {
            break Err(format!("expected an answer within {} bytes, found one of {consumed}", rest.len()));
        };
        let Some(start) = flight.finish() else {
            break Err("expected nothing, as every call is answered, found one more answer".to_owned());
        };
        if is_error {
            tally.error(start, answer);
        } else {
            tally.right(start, now);
        }
        rest = after;
    };
    tally.read_at(now);
    match found {
        Ok(()) => Ok(bytes.len() - rest.len()),
        Err(why) => {
            // The bytes are the oldest call's; without one they count by when they came.
            tally.wrong(flight.finish().unwrap_or(now), why);
            Err(End::Wrong)
        }
    }
}
