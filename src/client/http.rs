//! One call over HTTP/1.1: `POST /METHOD`, the params as its body, the bare result as the answer's.
//!
//! For `tine call --http`, on a connection of its own that ends with the call. No framing of the others, no envelope.

use std::thread;
use std::time::Duration;

use serde_json::value::RawValue;

use super::calls::{CONNECT_LIMIT, GRACE};
use super::connect;
use super::error::{ClientError, RemoteError};
use super::request::{Asked, whole_ms};
use super::stream::{Broken, Deadline, Stream};
use super::waiting::Outcome;
use crate::config::{AddressError, Endpoint};

mod answer;

use answer::{Answer, Reading};

/// Makes one call to a server at `addr` that speaks HTTP.
pub(crate) fn call(addr: &str, method: &str, params: Option<&RawValue>, timeout: Duration) -> Outcome {
    let target: Endpoint =
        addr.parse().map_err(|error: AddressError| ClientError::Address(error.to_string()))?;
    let sending = Deadline::after(Some(timeout));
    let waiting = Deadline::after(Some(timeout.saturating_add(GRACE)));
    let no_server = |source| ClientError::NoServer { addr: target.to_string(), source };
    let failure = |broken| match broken {
        Broken::TimedOut => ClientError::Timeout { after: timeout },
        Broken::Closed => ClientError::Closed,
        Broken::Io(error) => ClientError::Io(error),
    };
    let connecting = sending.or_sooner(Deadline::after(Some(timeout.min(CONNECT_LIMIT))));
    let stream = connect::connect(&target, connecting, thread::sleep).map_err(no_server)?;
    let left = sending.left().map_err(failure)?;
    let request = request(&target, &Asked { method, params }, left.unwrap_or(timeout));
    let sent = stream.send_all(&request, sending);
    if let Err(Broken::Io(error)) = sent {
        return Err(ClientError::Io(error));
    }
    // Who refuses a request need not read all of it, and may have said why, whether it hung up then or went on waiting.
    match (sent, receive(&stream, waiting)) {
        (_, Ok(answer)) => outcome(answer),
        (Err(Broken::Closed), Err(_)) => Err(no_server(std::io::ErrorKind::ConnectionReset.into())),
        (Err(broken), Err(_)) => Err(failure(broken)),
        (Ok(()), Err(error)) => Err(match error {
            Failed::Broken(broken) => failure(broken),
            Failed::Wrong(what) => ClientError::Protocol(what),
        }),
    }
}

enum Failed {
    Broken(Broken),
    Wrong(String),
}

fn receive(stream: &Stream, deadline: Deadline) -> Result<Answer, Failed> {
    let mut reading = Reading::default();
    let mut room = vec![0; 64 << 10];
    loop {
        let arrived = match stream.receive_some(&mut room, deadline) {
            Ok(count) => reading.arrived(room.get(..count).unwrap_or_default()),
            Err(Broken::Closed) => reading.ended().map(Some),
            Err(broken) => return Err(Failed::Broken(broken)),
        };
        match arrived {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) => {}
            Err(answer::Wrong::Closed) => return Err(Failed::Broken(Broken::Closed)),
            Err(answer::Wrong::Protocol(what)) => return Err(Failed::Wrong(what)),
        }
    }
}

fn request(target: &Endpoint, asked: &Asked<'_>, left: Duration) -> Vec<u8> {
    let path = encoded(asked.method);
    let host = if target.is_unix() { "localhost".to_owned() } else { target.to_string() };
    let body = asked.params.map_or("", RawValue::get);
    let (length, timeout_ms) = (body.len(), whole_ms(left));
    format!(
        "POST /{path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\
         Request-Timeout-Ms: {timeout_ms}\r\nConnection: close\r\n\r\n{body}"
    )
    .into_bytes()
}

/// A method's name as one segment of a path.
fn encoded(method: &str) -> String {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    let one = |byte| if is_plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
    method.bytes().map(one).collect()
}

fn outcome(answer: Answer) -> Outcome {
    let Answer { status, body } = answer;
    let wrong = |found: &dyn std::fmt::Display| {
        ClientError::Protocol(format!("expected JSON with HTTP status {status}, found {found}"))
    };
    let text = String::from_utf8(body).map_err(|error| wrong(&error))?;
    match status {
        204 => Ok(RawValue::NULL.to_owned()),
        200..=299 => RawValue::from_string(text).map_err(|error| wrong(&error)),
        _ => match serde_json::from_str::<RemoteError>(&text) {
            Ok(error) => Err(ClientError::Remote(error)),
            Err(_) => Err(ClientError::Protocol(format!(
                "expected an error with code and message, found HTTP status {status} without one"
            ))),
        },
    }
}

/// The status and body of an answer that arrives in pieces of so many bytes, and then the end; None where it is none.
pub(super) fn read_in_pieces(bytes: &[u8], piece: usize) -> Option<(u16, Vec<u8>)> {
    let answer = answer::read_in_pieces(bytes, piece).ok()?;
    Some((answer.status, answer.body))
}

#[cfg(test)]
mod tests;
