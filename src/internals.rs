//! Parts of the inside, for this project's own benches and fuzz targets: **no promise** is made about any of it, and a
//! release may change or remove it without a word.
//!
//! Thin functions over what a worker does with a call; who wants to serve or call wants the rest of this crate.

use std::process;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use crate::arena::{self, ArenaReader, ArenaWriter, Outcome, Room, Row, Scoreboard, Totals};
use crate::rpc::{
    BoxError, Call, CallParts, Error, Form, Hooks, Message, Peer, RegistryBuilder, Request, Service, States,
    WorkerInfo, envelope, parse,
};
use crate::sys::clock;
use crate::wire::length::LengthFraming;
use crate::wire::{Accepts, ByteOrder, Decode, Framing, Kind, Kinds, Progress, Step, pieces};
use crate::{client, config, supervisor};

pub use crate::fail_points::Kind as FailPoint;

/// Has this process die, as by `kill -9`, at the `steps`-th step of this kind from now on, counted from 1. Does nothing
/// in a build without debug assertions.
pub fn die_after(kind: FailPoint, steps: u64) {
    crate::fail_points::die_after(kind, steps);
}

/// The default of `limits.max_message`.
const FRAMING: Framing = Framing::Length(LengthFraming { order: ByteOrder::Little, max_message: 1 << 20 });

/// What stands at the start of bytes that have arrived.
#[derive(Debug)]
pub enum Decoded<'a> {
    /// Not a whole message yet.
    NeedMore,
    /// A call.
    Call(DecodedCall<'a>),
    /// A message that is no call, and is answered with an error.
    Refused,
    /// No message.
    Wrong,
}

/// A call as it was read: places in its message.
#[derive(Debug)]
pub struct DecodedCall<'a> {
    request: Request<'a>,
    body: &'a [u8],
    /// The bytes that it took.
    pub consumed: usize,
}

/// Takes one length-prefixed message of the native envelope from the start of `arrived`.
pub fn decode(arrived: &[u8]) -> Decoded<'_> {
    match FRAMING.decode(arrived, &mut Progress::default()) {
        Step::NeedMore { .. } | Step::Invite { .. } => Decoded::NeedMore,
        Step::Wrong(_) | Step::Skip { .. } | Step::Assembled { .. } => Decoded::Wrong,
        Step::Message { body, consumed } => {
            let body = arrived.get(body).unwrap_or_default();
            match parse(body, Form::Native).and_then(Message::single) {
                Ok(request) => Decoded::Call(DecodedCall { request, body, consumed }),
                Err(_) => Decoded::Refused,
            }
        }
    }
}

/// A worker's methods without its threads and sockets.
#[derive(Debug)]
pub struct Dispatcher {
    service: Service,
    worker: WorkerInfo,
    states: States,
    peer: Peer,
    gone: AtomicBool,
    deadline: Instant,
}

impl Dispatcher {
    /// The built-in methods alone.
    ///
    /// # Errors
    ///
    /// None that is known; a registry can have mistakes.
    pub fn new() -> Result<Self, BoxError> {
        let registry = RegistryBuilder::default().build().map_err(|mistakes| mistakes.0.join("; "))?;
        let service = Service::new(registry, Hooks::default());
        let worker = WorkerInfo::new(0, process::id(), 0, Instant::now());
        let states = service.make_states(&worker)?;
        Ok(Self {
            service,
            worker,
            states,
            peer: Peer::Unix { uid: nix::unistd::getuid().as_raw(), pid: 0 },
            gone: AtomicBool::new(false),
            deadline: Instant::now() + Duration::from_secs(3600),
        })
    }

    /// Looks the method up, runs its handler and appends the framed answer to `out`.
    ///
    /// # Errors
    ///
    /// There is no such method, or it returned an error; what was appended is that error's answer.
    pub fn answer(&self, call: &DecodedCall<'_>, out: &mut Vec<u8>) -> Result<(), Error> {
        let request = &call.request;
        let (_, method) = self.service.registry().resolve(&request.method)?;
        let mark = FRAMING.dialect().begin_message(out);
        let parts = CallParts {
            method: method.name(),
            id: request.id(),
            peer: &self.peer,
            worker: &self.worker,
            states: &self.states,
            gone: &self.gone,
            deadline: self.deadline,
            thread: 0,
        };
        let params = request.params.and_then(|span| span.in_message(call.body));
        let answered = envelope::answer(out, request.form, method, &Call::new(parts), params);
        FRAMING.dialect().end_message(out, mark).map_err(|too_long| Error::answer_too_long(&too_long))?;
        answered
    }
}

/// Appends an answer without a handler: frame, envelope and error.
pub fn encode_error(error: &Error, out: &mut Vec<u8>) {
    let mark = FRAMING.dialect().begin_message(out);
    envelope::answer_error(out, Form::Native, error, None);
    // The error is the caller's; if it is too long nothing is appended.
    let _ = FRAMING.dialect().end_message(out, mark);
}

/// One worker's arena, with a row for each of its threads, and who reads it.
#[derive(Debug)]
pub struct Counters {
    rows: Vec<Row>,
    reader: ArenaReader,
    scoreboard: Scoreboard<u32>,
}

impl Counters {
    /// An arena for this many threads and methods.
    ///
    /// # Errors
    ///
    /// There is no memory for it, or it would be too large.
    pub fn new(threads: usize, methods: usize) -> Result<Self, BoxError> {
        let fd = arena::create(&Room { rows: threads, methods, connections: 0, buffers: 0 })?;
        let reader = ArenaReader::open(&fd)?;
        let mut writer = ArenaWriter::open(fd)?;
        writer.identify(process::id(), 1, 0, clock::monotonic_ns());
        let rows = (0..threads).map(|row| writer.row(row)).collect::<Result<_, _>>()?;
        Ok(Self { rows, reader, scoreboard: Scoreboard::new(Totals::default()) })
    }

    /// A thread begins a call and finishes it.
    pub fn count(&mut self, thread: usize, method: usize, now_ns: u64, run_ns: u64) {
        if let Some(row) = self.rows.get_mut(thread) {
            row.begin(method, now_ns);
            row.finish(method, Outcome::Ok, run_ns);
        }
    }

    /// What a reader finds, taken into the sums; how many calls there were.
    pub fn read(&mut self) -> u64 {
        let snapshot = self.reader.snapshot(clock::monotonic_ns());
        self.scoreboard.observe(0, &snapshot);
        self.scoreboard.sum().answered()
    }
}

/// Holds one reader of hostile bytes to its contract, and says how much of what it reads was there.
type Contract = fn(&[u8]) -> Result<usize, String>;

/// What each reader of hostile bytes is called by its fuzz target and its corpus.
const CONTRACTS: [(&str, Contract); 12] = [
    ("length", |bytes| hold_framing(Kind::Length, bytes)),
    ("stream", |bytes| hold_framing(Kind::Stream, bytes)),
    ("header", |bytes| hold_framing(Kind::Header, bytes)),
    ("http", |bytes| hold_framing(Kind::Http, bytes)),
    ("detect", hold_detection),
    ("config", config::contract::hold),
    ("messages", supervisor::contract::hold_messages),
    ("exec_handoff", supervisor::contract::hold_exec_handoff),
    ("record", arena::contract::hold),
    ("answers", client::contract::hold_answers),
    ("answers_http", client::contract::hold_http),
    ("answers_load", client::contract::hold_load),
];

/// The names of all targets of [`hold_to_contract`].
pub fn fuzz_targets() -> impl Iterator<Item = &'static str> {
    CONTRACTS.iter().map(|(name, _)| *name)
}

/// Has hostile bytes read by what `target` names, and says whether it kept its contract, which stands where that reader is. The
/// result tells how much of what it reads was in them, such as whole messages.
///
/// # Errors
///
/// It did not, or `target` is none of [`fuzz_targets`].
pub fn hold_to_contract(target: &str, bytes: &[u8]) -> Result<usize, String> {
    let contract = CONTRACTS.iter().find(|(name, _)| *name == target);
    let (_, hold) =
        contract.ok_or_else(|| format!("expected the name of a fuzz target, found {target:?}"))?;
    hold(bytes)
}

/// The same messages whole and in pieces, never a place outside of the bytes, never fewer bytes asked for than are there.
fn hold_framing(kind: Kind, bytes: &[u8]) -> Result<usize, String> {
    // Small, so that the limit is come upon.
    const MAX_MESSAGE: usize = 512;
    let piece = 2 + bytes.first().map_or(0, |&byte| usize::from(byte % 32));
    let orders = if kind == Kind::Length { &ORDERS[..] } else { &ORDERS[..1] };
    let mut messages = 0;
    for &order in orders {
        let accepts = Accepts { kinds: Kinds::default(), order, max_message: MAX_MESSAGE };
        messages += pieces::check(Framing::new(kind, accepts), bytes, piece)?.messages.len();
    }
    Ok(messages)
}

/// The same decision whole and in pieces, whatever a listener takes.
fn hold_detection(bytes: &[u8]) -> Result<usize, String> {
    let sets = (1_usize..16)
        .map(|set| Kinds::of(Kind::ALL.into_iter().filter(|&kind| set >> kind as usize & 1 == 1)));
    for kinds in sets {
        for order in ORDERS {
            pieces::check_detection(bytes, order, kinds)?;
        }
    }
    Ok(0)
}

const ORDERS: [ByteOrder; 2] = [ByteOrder::Little, ByteOrder::Big];

/// Serves a client of the whole connection that says whatever the fuzzer says, and holds what it hears against that. Only
/// in a build for fuzzing.
///
/// # Errors
///
/// The connection was not let go of, or left something behind, or its answers are not whole, not well formed or not as many as
/// there should be.
#[cfg(fuzzing)]
pub fn hold_connection_to_contract(bytes: &[u8]) -> Result<usize, String> {
    crate::worker::hold(bytes)
}
