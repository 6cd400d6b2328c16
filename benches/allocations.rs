//! How many allocations a quick call costs a worker in the steady state: none is wanted.
//!
//!     cargo bench --bench allocations
//!
//! This program is the server too: its allocator counts, and its method `allocations` tells how often it was called in
//! this process, by all threads together. Connections are open all the time, so that only calls are counted; what the
//! counting calls cost is measured and taken off.

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use support::children;
use support::cores::{Cores, Place};
use support::numbers::{Spread, float};
use support::service::Service;
use tine::{BoxError, Server};

const CONNECTIONS: usize = 8;
const WARM_UP: usize = 10_000;
const CALLS: usize = 100_000;
/// Of the short round.
const FEW: usize = 400;
/// How often each kind of call is counted.
const RUNS: usize = 3;

#[global_allocator]
static COUNTING: Counting = Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);

/// Without functions of its own for growing and zeroing memory, which then count as the allocation that they are.
struct Counting;

#[allow(unsafe_code)] // the trait is unsafe to implement; nothing else in the benches is
// SAFETY: both functions pass on to `System` what they are given, so all that is promised is what System promises;
// counting is an atomic addition, which neither allocates nor unwinds.
unsafe impl GlobalAlloc for Counting {
    // SAFETY: asks of its caller what the trait asks, and no more.
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller keeps the promises of `alloc`, which are the same there.
        unsafe { System.alloc(layout) }
    }

    // SAFETY: asks of its caller what the trait asks, and no more.
    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: `memory` came from `System`, through `alloc`, with this layout; the caller promises the rest.
        unsafe { System.dealloc(memory, layout) }
    }
}

fn main() -> Result<ExitCode, BoxError> {
    // The template is this program again, with the same arguments.
    if std::env::args().nth(1).as_deref() == Some("serve") {
        return Ok(Server::new()
            .method("allocations", |_call, (): ()| Ok(ALLOCATIONS.load(Ordering::Relaxed)))
            .run());
    }
    let (warm_up, calls, runs) =
        if support::is_for_the_record() { (WARM_UP, CALLS, RUNS) } else { (FEW, FEW, 1) };
    let cores = Cores::find()?;
    cores.pin(Place::Load)?;
    let service = Service::start(&children::this_program()?, 1, "", &cores, Place::Server)?;
    println!("allocations for each call, wanted 0.00 ({runs} × {calls} calls on {CONNECTIONS} connections)");
    for kind in KINDS {
        let mut clients = Clients::connect(service.address(), kind)?;
        clients.call(warm_up)?;
        let mut each = Vec::new();
        for _ in 0..runs {
            each.push(clients.count(calls)? / float(calls as u64));
        }
        let Spread { least, median, most } = Spread::of(each).ok_or("at least one run is made")?;
        println!("{:<45} {median:.2} ({least:.2} to {most:.2})", kind.name);
    }
    Ok(ExitCode::SUCCESS)
}

/// A kind of call.
#[derive(Clone, Copy)]
struct Kind {
    name: &'static str,
    id: Option<u32>,
    /// Calls that are sent at once on a connection.
    at_once: usize,
}

const KINDS: [Kind; 4] = [
    Kind { name: "ping, 300 bytes, without id", id: None, at_once: 1 },
    Kind { name: "ping, 300 bytes, with id", id: Some(1_000_000), at_once: 1 },
    Kind { name: "ping, 300 bytes, without id, 16 at once", id: None, at_once: 16 },
    Kind { name: "ping, 300 bytes, with id, 16 at once", id: Some(1_000_000), at_once: 16 },
];

/// Connections that each send a request and then wait for its answer.
struct Clients {
    streams: Vec<TcpStream>,
    /// For the counting calls, so that these leave the others' connections alone.
    counter: TcpStream,
    at_once: usize,
    request: Vec<u8>,
    answer: Vec<u8>,
    received: Vec<u8>,
}

impl Clients {
    fn connect(address: &str, kind: Kind) -> Result<Self, BoxError> {
        let connect = || {
            let stream = TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            Ok::<_, BoxError>(stream)
        };
        let params = "x".repeat(256);
        let id = kind.id.map_or_else(String::new, |id| format!(r#","id":{id}"#));
        let request = framed(&format!(r#"{{"in":"ping","params":"{params}"{id}}}"#))?;
        let answer = framed(&format!(r#"{{"out":"pong","result":"{params}"{id}}}"#))?;
        Ok(Self {
            streams: (0..CONNECTIONS).map(|_| connect()).collect::<Result<_, _>>()?,
            counter: connect()?,
            at_once: kind.at_once,
            request: request.repeat(kind.at_once),
            received: vec![0; answer.len() * kind.at_once],
            answer: answer.repeat(kind.at_once),
        })
    }

    /// Allocations of the worker during this many calls, without those of counting itself.
    fn count(&mut self, calls: usize) -> Result<f64, BoxError> {
        let before = self.allocations()?;
        let counting = self.allocations()? - before;
        self.call(calls)?;
        Ok(float(self.allocations()?) - float(before) - 2.0 * float(counting))
    }

    /// Makes at least this many calls, all connections by turns.
    fn call(&mut self, calls: usize) -> Result<(), BoxError> {
        for _ in 0..calls.div_ceil(self.streams.len() * self.at_once) {
            for stream in &mut self.streams {
                stream.write_all(&self.request)?;
            }
            for stream in &mut self.streams {
                stream.read_exact(&mut self.received)?;
                if self.received != self.answer {
                    let found = String::from_utf8_lossy(&self.received);
                    return Err(format!("expected the params back, found {found}").into());
                }
            }
        }
        Ok(())
    }

    /// How often the worker has allocated so far.
    fn allocations(&mut self) -> Result<u64, BoxError> {
        self.counter.write_all(&framed(r#"{"in":"allocations"}"#)?)?;
        let mut length = [0; 4];
        self.counter.read_exact(&mut length)?;
        let mut answer = vec![0; u32::from_le_bytes(length) as usize];
        self.counter.read_exact(&mut answer)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        answer["result"].as_u64().ok_or_else(|| format!("expected a count, found {answer}").into())
    }
}

fn framed(body: &str) -> Result<Vec<u8>, BoxError> {
    Ok([&u32::try_from(body.len())?.to_le_bytes(), body.as_bytes()].concat())
}
