//! How many instructions a worker spends on a call in user space, and whether each figure is within its budget.
//!
//!     cargo bench --bench instructions              every row
//!     cargo bench --bench instructions -- ROW…      some
//!
//! The real program serves under `valgrind --tool=callgrind`, which counts the instructions of each thread. Two runs of different
//! lengths are made for a row: their difference is that of the calls alone, because both start and end alike. Whatever else the
//! machine does, it is the same each time within a few instructions, so a row over its budget is an error.
//! README.md beside this file has the figures.

mod support;

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};

use support::cores::{Cores, Place};
use support::numbers::float;
use support::service::{self, Folder, Service};
use tine::BoxError;

/// How often a row is measured that is over its budget; the least counts. What disturbs a run only adds instructions: a connection's
/// turn that ends in the middle of a batch, because the program runs fifty times as slowly here.
const TRIES: usize = 4;

/// Bytes of params in the rows that are about bytes.
const LONG: usize = 64 * 1024;

/// One figure.
struct Row {
    name: &'static str,
    what: &'static str,
    /// The most instructions for each call, or for each byte of params.
    budget: f64,
    is_for_each_byte: bool,
    speech: Speech,
    params: fn() -> String,
    /// Calls that are sent at once.
    depth: usize,
}

/// How a call is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Speech {
    Native,
    JsonRpc,
    Http,
}

const ROWS: [Row; 8] = [
    Row { name: "native", what: "native ping, one at a time", budget: 4_776.0, ..Row::CALL },
    Row {
        name: "json-rpc",
        what: "JSON-RPC ping behind a length, one at a time",
        budget: 5_892.0,
        speech: Speech::JsonRpc,
        ..Row::CALL
    },
    Row {
        name: "http",
        what: "JSON-RPC ping over HTTP, one at a time",
        budget: 8_476.0,
        speech: Speech::Http,
        ..Row::CALL
    },
    Row { name: "native-16", what: "native ping, 16 deep", budget: 3_070.0, depth: 16, ..Row::CALL },
    Row {
        name: "json-rpc-16",
        what: "JSON-RPC ping behind a length, 16 deep",
        budget: 4_390.0,
        speech: Speech::JsonRpc,
        depth: 16,
        ..Row::CALL
    },
    Row { name: "text", what: "64 KB of text passed through ping", budget: 1.7, params: text, ..Row::BYTES },
    Row {
        name: "numbers",
        what: "64 KB of numbers passed through ping",
        budget: 8.3,
        params: numbers,
        ..Row::BYTES
    },
    Row {
        name: "objects",
        what: "64 KB of objects passed through ping",
        budget: 16.3,
        params: objects,
        ..Row::BYTES
    },
];

/// Rows of the short round.
const SHORT: [&str; 2] = ["native", "text"];

impl Row {
    const CALL: Row = Row {
        name: "",
        what: "",
        budget: 0.0,
        is_for_each_byte: false,
        speech: Speech::Native,
        params: || support::PING_PARAMS.to_owned(),
        depth: 1,
    };
    const BYTES: Row = Row { is_for_each_byte: true, ..Row::CALL };

    /// Calls of the two runs.
    fn lengths(&self, is_for_the_record: bool) -> (usize, usize) {
        match (is_for_the_record, self.is_for_each_byte) {
            (true, false) => (1_000, 6_000),
            (true, true) => (20, 120),
            (false, _) => (2, 4),
        }
    }
}

fn text() -> String {
    format!("[\"{}\"]", "x".repeat(LONG - 4))
}

/// Fractions as programs write them, with 16 digits.
fn numbers() -> String {
    const MODULUS: u64 = 10_000_000_000_000_000;
    list((1_u64..).map(|number| format!("0.{:016}", number.wrapping_mul(0x9e37_79b9_7f4a_7c15) % MODULUS)))
}

fn objects() -> String {
    list((0..).map(|number| format!(r#"{{"id":{number},"name":"n{number}","ok":true}}"#)))
}

/// As many elements as fit.
fn list(elements: impl Iterator<Item = String>) -> String {
    let mut out = String::from("[0");
    for element in elements {
        if out.len() + element.len() + 2 > LONG {
            break;
        }
        out.push(',');
        out.push_str(&element);
    }
    out.push(']');
    out
}

fn main() -> Result<ExitCode, BoxError> {
    let is_for_the_record = support::is_for_the_record();
    if !is_installed() {
        eprintln!("valgrind is not installed (apt: valgrind): left out");
        return Ok(if is_for_the_record { ExitCode::FAILURE } else { ExitCode::SUCCESS });
    }
    let wanted = support::own_arguments();
    if let Some(unknown) = wanted.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let names = ROWS.map(|row| row.name).join(", ");
        eprintln!("expected names of rows ({names}), found {unknown:?}");
        return Ok(ExitCode::from(2));
    }
    let cores = Cores::find()?;
    println!("| row | what | instructions for each | at most | counted |\n|---|---|---|---|---|");
    let mut is_over = false;
    for row in ROWS.iter().filter(|row| match wanted.as_slice() {
        [] => is_for_the_record || SHORT.contains(&row.name),
        names => names.iter().any(|name| name == row.name),
    }) {
        let mut least = measure(row, is_for_the_record, &cores)?;
        for _ in 1..TRIES {
            if least > row.budget && is_for_the_record {
                least = least.min(measure(row, is_for_the_record, &cores)?);
            }
        }
        let each = if row.is_for_each_byte { "byte" } else { "call" };
        println!("| `{}` | {} | {each} | {:.2} | {least:.2} |", row.name, row.what, row.budget);
        if least > row.budget && is_for_the_record {
            eprintln!("{}: expected at most {:.2} instructions, counted {least:.2}", row.name, row.budget);
            is_over = true;
        }
    }
    Ok(if is_over { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn is_installed() -> bool {
    let tried =
        Command::new("valgrind").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    tried.is_ok_and(|status| status.success())
}

/// Instructions for each call of a row, or for each byte of its params.
fn measure(row: &Row, is_for_the_record: bool, cores: &Cores) -> Result<f64, BoxError> {
    let (few, many) = row.lengths(is_for_the_record);
    let (before, after) = (count(row, few, cores)?, count(row, many, cores)?);
    let mut growth: Vec<f64> = after
        .iter()
        .enumerate()
        .map(|(thread, &instructions)| float(instructions) - float(before.get(thread).copied().unwrap_or(0)))
        .collect();
    growth.sort_by(f64::total_cmp);
    // A call that the poller runs concerns no other thread, and the watch looks as often as time passes. Long params are for a
    // thread of the pool.
    let counted =
        if row.is_for_each_byte { growth.iter().sum() } else { growth.last().copied().unwrap_or(0.0) };
    let units = (many - few) * if row.is_for_each_byte { (row.params)().len() } else { 1 };
    Ok(counted / float(units as u64))
}

/// Instructions of each thread of a worker that has answered this many calls.
fn count(row: &Row, calls: usize, cores: &Cores) -> Result<Vec<u64>, BoxError> {
    let counts = Folder::new()?;
    let mut valgrind = Command::new("valgrind");
    valgrind
        // Above a length that depends on the processor libc copies with one instruction for all bytes, which valgrind counts once for each.
        .env("GLIBC_TUNABLES", "glibc.cpu.x86_rep_movsb_threshold=1000000000000")
        .args(["--quiet", "--tool=callgrind", "--trace-children=yes", "--separate-threads=yes"])
        .arg(format!("--callgrind-out-file={}/%p", counts.path().display()))
        .arg(service::tine());
    let service = Service::start_by(valgrind, 1, "", cores, Place::Anywhere)?;
    let worker = *service.workers().first().ok_or("one worker was asked for")?;
    call(row, calls, service.address())?;
    service.stop()?;
    read_counts(counts.path(), worker)
}

/// Reads what callgrind has written when the worker ended: a file for each thread, `PID-NUMBER`, with the sum in a line of its own.
fn read_counts(folder: &Path, worker: i32) -> Result<Vec<u64>, BoxError> {
    let mut counts = Vec::new();
    for thread in 1.. {
        let path = folder.join(format!("{worker}-{thread:02}"));
        if !path.exists() {
            break;
        }
        let text = fs::read_to_string(path)?;
        let sum =
            text.lines().find_map(|line| line.strip_prefix("totals: ")).ok_or("callgrind tells totals")?;
        counts.push(sum.trim().parse()?);
    }
    if counts.is_empty() {
        return Err(format!("expected counts of process {worker} in {}, found none", folder.display()).into());
    }
    Ok(counts)
}

/// Makes this many calls on one connection and checks each answer.
fn call(row: &Row, calls: usize, address: &str) -> Result<(), BoxError> {
    let params = (row.params)();
    // That version takes no bare text as params.
    let json_rpc = format!(r#"{{"jsonrpc":"2.0","method":"ping","params":[{params}],"id":1}}"#);
    let json_rpc_answer = format!(r#"{{"jsonrpc":"2.0","result":[{params}],"id":1}}"#);
    let (request, answer) = match row.speech {
        Speech::Native => (
            support::framed(&format!(r#"{{"in":"ping","params":{params}}}"#)),
            support::framed(&format!(r#"{{"out":"pong","result":{params}}}"#)),
        ),
        Speech::JsonRpc => (support::framed(&json_rpc), support::framed(&json_rpc_answer)),
        Speech::Http => {
            let head =
                "POST / HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: ";
            let request = format!("{head}{}\r\n\r\n{json_rpc}", json_rpc.len());
            (request.into_bytes(), json_rpc_answer.into_bytes())
        }
    };
    let mut stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    let (mut left, mut received) = (calls, Vec::new());
    while left > 0 {
        let at_once = left.min(row.depth);
        stream.write_all(&request.repeat(at_once))?;
        received.clear();
        for _ in 0..at_once {
            receive_head(row.speech, &mut stream)?;
            let start = received.len();
            received.resize(start + answer.len(), 0);
            stream.read_exact(&mut received[start..])?;
        }
        if received != answer.repeat(at_once) {
            let found = String::from_utf8_lossy(&received);
            return Err(format!("expected the params back, found {found}").into());
        }
        left -= at_once;
    }
    Ok(())
}

/// Passes the head of an HTTP answer, which has the time of day in it.
fn receive_head(speech: Speech, stream: &mut TcpStream) -> Result<(), BoxError> {
    let mut head = Vec::new();
    while speech == Speech::Http && !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    Ok(())
}
