//! Whatever bytes come, in whatever pieces, from whatever client: nothing panics, what comes back is well formed and no more than
//! was asked for, and a client that has ended its side is answered all that there is to answer and let go, with nothing
//! left behind.
//!
//! For tests and, through `internals`, for the fuzz target of the whole connection, which is why a breach is an error here and no
//! panic. Both sides are one thread and nobody waits: where nothing moves any more, something is stuck.

mod answers;

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use parking_lot::Mutex;

use super::threadless::Threadless;
use crate::config::Config;
use crate::rpc::BoxError;
use crate::sys::socket::Socket;
use crate::wire::{Accepts, ByteOrder, Framing, Kinds};
use crate::worker::connection::{Connection, Phase};
use answers::Asked;

/// Bytes at the end of an input that say how the client goes about it. At the end, so that the rest is what any client says.
const MANNER: usize = 3;

/// Pieces that a client cuts what it says into, at most: more take time and show nothing new.
const MOST_PIECES: usize = 512;

/// How often time passes for a client that says no more, at most.
const MOMENTS: usize = 8;

/// How a client goes about it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    /// What its listener takes.
    pub(crate) accepts: Accepts,
    /// Bytes that it writes at a time.
    pub(crate) piece: usize,
    pub(crate) ending: Ending,
    /// It reads nothing before it has ended its side.
    pub(crate) reads_late: bool,
    /// The pool runs nothing before everything else is done.
    pub(crate) is_pool_late: bool,
    /// The worker has little room for calls, answers and input.
    pub(crate) is_tight: bool,
}

/// How a client ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ending {
    /// Its own side, as soon as it has said everything; then it reads to the end.
    HalfClose,
    /// The same when it has said nothing for long.
    Patient,
    /// It is gone as soon as it has said everything.
    Gone,
}

impl Default for Manner {
    fn default() -> Self {
        Self {
            accepts: Accepts { kinds: Kinds::default(), order: ByteOrder::Little, max_message: 1 << 20 },
            piece: usize::MAX,
            ending: Ending::HalfClose,
            reads_late: false,
            is_pool_late: false,
            is_tight: false,
        }
    }
}

impl Manner {
    fn of([listener, piece, client]: [u8; MANNER]) -> Self {
        let kinds = Kinds::from_bits(listener);
        let has = |bits: u8, bit: u32| bits >> bit & 1 == 1;
        Self {
            accepts: Accepts {
                kinds: if kinds.bits() == 0 { Kinds::default() } else { kinds },
                order: if has(listener, 4) { ByteOrder::Big } else { ByteOrder::Little },
                max_message: if has(listener, 5) { 512 } else { 1 << 20 },
            },
            piece: if piece == 0 { usize::MAX } else { usize::from(piece) },
            ending: match client & 0b11 {
                0 | 1 => Ending::HalfClose,
                2 => Ending::Patient,
                _ => Ending::Gone,
            },
            reads_late: has(client, 2),
            is_pool_late: has(client, 3),
            is_tight: has(client, 4),
        }
    }
}

/// An input of the fuzz target: what a client says, and behind that how.
///
/// How many answers came.
///
/// # Errors
///
/// Something that must never be was found.
pub(crate) fn hold(input: &[u8]) -> Result<usize, String> {
    let (said, manner) = input.split_last_chunk().unwrap_or((input, &[0; MANNER]));
    serve(said, Manner::of(*manner))
}

/// Serves a client that says this in this manner. How many answers came.
///
/// # Errors
///
/// Something that must never be was found.
pub(crate) fn serve(said: &[u8], manner: Manner) -> Result<usize, String> {
    // One after the other with the same workers: what one connection leaves behind the next would find.
    static WORKERS: Mutex<[Option<Threadless>; 2]> = Mutex::new([None, None]);
    let mut workers = WORKERS.lock();
    let [roomy, tight] = &mut *workers;
    let place = if manner.is_tight { tight } else { roomy };
    let mut worker = match place.take() {
        Some(worker) => worker,
        None => Threadless::open(&config(manner.is_tight)).map_err(|error| error.to_string())?,
    };
    let heard = Visit::begin(&mut worker, said, manner).and_then(Visit::play);
    let heard = heard.map_err(|error| format!("{manner:?}: {error}"))?;
    *place = Some(worker);
    Ok(heard)
}

fn config(is_tight: bool) -> Config {
    let mut config = Config::default();
    if is_tight {
        let limits = &mut config.limits;
        (limits.queue, limits.in_flight_per_connection) = (4, 3);
        (limits.output, limits.buffers) = (1 << 10, 16 << 10);
    }
    config
}

/// One client's connection, from its first byte to the end.
struct Visit<'a> {
    worker: &'a mut Threadless,
    connection: Arc<Connection>,
    /// None once it is gone.
    client: Option<Socket>,
    manner: Manner,
    said: &'a [u8],
    /// Bytes of it that were written.
    written: usize,
    /// Nothing more is.
    has_written: bool,
    has_ended: bool,
    heard: Vec<u8>,
    /// The worker has ended its side.
    heard_all: bool,
    moments: usize,
}

impl<'a> Visit<'a> {
    fn begin(worker: &'a mut Threadless, said: &'a [u8], manner: Manner) -> Result<Self, BoxError> {
        worker.tell_nobody();
        let manner = Manner { piece: manner.piece.max(said.len() / MOST_PIECES), ..manner };
        let (here, there) = UnixStream::pair()?;
        let (socket, peer) = Socket::handed_over(here.into())?;
        let (client, _) = Socket::handed_over(there.into())?;
        worker.poller.look_at_the_clock();
        worker.poller.accepted(socket, peer, manner.accepts);
        let mut connections = worker.poller.shared.all_connections();
        let connection = connections.pop().ok_or("the connection was not taken")?;
        Ok(Self {
            worker,
            connection,
            client: Some(client),
            manner,
            said,
            written: 0,
            has_written: false,
            has_ended: false,
            heard: Vec::new(),
            heard_all: false,
            moments: 0,
        })
    }

    fn play(mut self) -> Result<usize, BoxError> {
        // Each round something moves: a piece, an answer, a call, a moment.
        let most = 1_000 + 8 * self.said.len();
        for _ in 0..most {
            let mut moves = self.write();
            moves |= self.worker.poll()?;
            if !self.manner.is_pool_late {
                moves |= self.worker.run_all();
            }
            if !self.manner.reads_late || self.has_ended {
                moves |= self.read();
            }
            // In this order: whoever is late is so for as long as it can be.
            let moves = moves || self.worker.run_all() || self.stands_still() || self.read();
            if !moves {
                return self.end();
            }
        }
        Err(format!("goes on after {most} rounds: {:?}", self.connection.lock().phase).into())
    }

    /// The next piece. True where something was written, or nothing more will be.
    fn write(&mut self) -> bool {
        let rest = self.said.get(self.written..).unwrap_or_default();
        let is_done = rest.is_empty() || self.has_written || self.has_ended;
        let Some(client) = self.client.as_ref().filter(|_| !is_done) else { return false };
        let piece = rest.get(..self.manner.piece).unwrap_or(rest);
        match client.send(piece) {
            Ok(sent) => self.written += sent,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.has_written = true,
        }
        true
    }

    fn read(&mut self) -> bool {
        let Some(client) = self.client.as_ref().filter(|_| !self.heard_all) else { return false };
        let mut room = [0; 16 << 10];
        match client.receive(&mut room) {
            Ok(0) => self.heard_all = true,
            Ok(count) => self.heard.extend(room.iter().take(count)),
            Err(error) if error.kind() == ErrorKind::WouldBlock => return false,
            Err(_) => self.heard_all = true,
        }
        true
    }

    /// Nothing moves: the client waits, or ends. False where it has ended.
    fn stands_still(&mut self) -> bool {
        if self.has_ended {
            return false;
        }
        let waits = self.manner.ending == Ending::Patient && self.moments < MOMENTS;
        if waits && self.worker.pass_time() {
            self.moments += 1;
            return true;
        }
        self.has_ended = true;
        match self.manner.ending {
            Ending::Gone => self.client = None,
            Ending::HalfClose | Ending::Patient => {
                self.client.iter().for_each(Socket::shut_down_sending);
            }
        }
        true
    }

    fn end(self) -> Result<usize, BoxError> {
        let state = self.connection.lock();
        let (phase, framing, held) = (state.phase, state.framing, state.held());
        drop(state);
        if phase != Phase::Closed {
            return Err(format!("is not let go of: {phase:?}, {held} bytes held").into());
        }
        if let Some(left) = self.worker.left_behind().or((held != 0).then(|| format!("{held} bytes"))) {
            return Err(format!("leaves behind {left}").into());
        }
        if self.manner.ending == Ending::Gone {
            return Ok(0);
        }
        if !self.heard_all {
            return Err("the client is not told that it was let go".into());
        }
        self.heard(framing).map_err(|error| {
            let heard = String::from_utf8_lossy(&self.heard);
            format!("{error}; {framing:?} heard {heard:?}").into()
        })
    }

    /// Holds what was heard against what was said.
    fn heard(&self, framing: Option<Framing>) -> Result<usize, String> {
        // The time that a client may take for a message may have been up.
        let late = usize::from(self.moments > 0);
        let Some(framing) = framing else {
            let answers = answers::of_length(&self.heard, self.manner.accepts.order)?;
            return if answers <= late { Ok(answers) } else { Err("answers in no framing".to_owned()) };
        };
        let said = self.said.get(..self.written).unwrap_or_default();
        let asked = Asked::of(framing, said)?;
        let answers = asked.answers_in(&self.heard, self.manner.accepts.order)?;
        if answers < asked.least || answers > asked.most + late {
            let Asked { least, most, .. } = asked;
            return Err(format!("expected {least} to {most} answers, found {answers}"));
        }
        Ok(answers)
    }
}

#[cfg(test)]
mod tests;
