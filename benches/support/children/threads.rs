//! A blocking thread for each connection, which speaks the native envelope: what one writes first, written well.
//!
//! Reads are buffered, an answer is one write, the request is parsed by serde without copies, and nobody waits for
//! Nagle's algorithm. It bounds nothing and watches over nothing.

use std::io::{self, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// Longest message.
const LIMIT: usize = 1024 * 1024;

#[derive(Deserialize)]
struct Request<'a> {
    #[serde(rename = "in")]
    method: &'a str,
    #[serde(borrow)]
    params: &'a RawValue,
}

#[derive(Serialize)]
struct Answer<'a> {
    out: &'a str,
    result: &'a RawValue,
}

/// Serves for ever.
pub fn serve(listener: &TcpListener) -> io::Result<()> {
    for stream in listener.incoming() {
        let stream = stream?;
        thread::spawn(move || converse(&stream));
    }
    Ok(())
}

/// Answers what comes until the connection ends, or something comes that is no `ping`.
fn converse(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut input = BufReader::with_capacity(16 * 1024, stream);
    let mut output = stream;
    let (mut message, mut answers) = (Vec::new(), Vec::new());
    loop {
        let mut prefix = [0; 4];
        input.read_exact(&mut prefix)?;
        let length = u32::from_le_bytes(prefix) as usize;
        if length > LIMIT {
            return Err(io::ErrorKind::InvalidData.into());
        }
        message.resize(length, 0);
        input.read_exact(&mut message)?;
        let request: Request<'_> = serde_json::from_slice(&message)?;
        if request.method != "ping" {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let start = answers.len();
        answers.extend_from_slice(&[0; 4]);
        serde_json::to_writer(&mut answers, &Answer { out: "pong", result: request.params })?;
        let length = u32::try_from(answers.len() - start - 4).map_err(io::Error::other)?;
        answers[start..start + 4].copy_from_slice(&length.to_le_bytes());
        // Of a pipeline, what has arrived together is answered together.
        if !holds_a_message(input.buffer()) {
            output.write_all(&answers)?;
            answers.clear();
        }
    }
}

/// True when the next message can be had without waiting.
fn holds_a_message(waiting: &[u8]) -> bool {
    waiting.first_chunk::<4>().is_some_and(|prefix| waiting.len() >= 4 + u32::from_le_bytes(*prefix) as usize)
}
