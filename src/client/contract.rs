//! Holds what reads a server's bytes to its contract: the same answers whole and in pieces, and no harm from any bytes.
//!
//! Fuzz targets come here through `internals`, and the corpus in `cargo test`; so a breach is an error and no panic.

use std::sync::Arc;

use parking_lot::Condvar;

use super::answer;
use super::http;
use super::input::Input;
use super::load::{Answer, Exchange, Native};
use super::request::Place;
use super::waiting::Waiting;

/// Small, so that fuzzed lengths reach it.
const LONGEST_ANSWER: usize = 4096;

/// The first ids of the groups of calls that wait, each with how many calls it has: two alone and one array.
const GROUPS: [(u64, usize); 3] = [(1, 1), (2, 1), (3, 3)];

/// A server's answers as [`Client`](super::Client) reads them. How many of its calls were answered.
///
/// # Errors
///
/// They are not the same whole and in pieces, or an answer reached more calls than there are.
pub(crate) fn hold_answers(bytes: &[u8]) -> Result<usize, String> {
    let whole = messages(bytes, bytes.len().max(1));
    let in_pieces = messages(bytes, piece_of(bytes));
    if whole != in_pieces {
        return Err(format!("whole: {whole:?}\nin pieces: {in_pieces:?}"));
    }
    let mut waiting = Waiting::default();
    for (first, count) in GROUPS {
        let places = vec![Place { end: 100, length: 96, is_readable: true }; count];
        waiting.join(first, &places, count > 1, Arc::new(Condvar::new()));
        waiting.goes(first);
    }
    for message in whole.0 {
        // In words what is wrong ends the connection, as it does in a client.
        let Ok(arrived) = answer::read(&message) else { break };
        if waiting.settle(arrived).is_err() {
            break;
        }
    }
    let mut answered = 0;
    for (first, count) in GROUPS {
        let outcomes = waiting.leave(first, true);
        if outcomes.len() != count {
            return Err(format!(
                "expected {count} outcomes of the group at {first}, found {}",
                outcomes.len()
            ));
        }
        answered += outcomes.iter().flatten().count();
    }
    Ok(answered)
}

/// The messages in these bytes as they arrive in pieces, and whether one was too long.
fn messages(bytes: &[u8], piece: usize) -> (Vec<Vec<u8>>, bool) {
    let (mut input, mut messages) = (Input::default(), Vec::new());
    for mut bytes in bytes.chunks(piece) {
        while !bytes.is_empty() {
            let room = input.room();
            let (now, later) = bytes.split_at(room.len().min(bytes.len()));
            room.iter_mut().zip(now).for_each(|(room, byte)| *room = *byte);
            input.filled(now.len());
            bytes = later;
        }
        loop {
            match input.next(LONGEST_ANSWER) {
                Ok(Some(message)) => messages.push(message.to_vec()),
                Ok(None) => break,
                Err(_) => return (messages, true),
            }
        }
    }
    (messages, false)
}

/// An HTTP answer as `tine call --http` reads it. 1 where there is one.
///
/// # Errors
///
/// It is not the same whole and in pieces.
pub(crate) fn hold_http(bytes: &[u8]) -> Result<usize, String> {
    let whole = http::read_in_pieces(bytes, bytes.len().max(1));
    let in_pieces = http::read_in_pieces(bytes, piece_of(bytes));
    if whole == in_pieces {
        Ok(usize::from(whole.is_some()))
    } else {
        Err(format!("whole: {whole:?}\nin pieces: {in_pieces:?}"))
    }
}

/// Answers as the load generator judges them. How many were right or errors.
///
/// # Errors
///
/// A judgement changes when more bytes arrive, or takes bytes that are not there.
pub(crate) fn hold_load(bytes: &[u8]) -> Result<usize, String> {
    let mut judged = 0;
    for (method, params) in [("ping", Some("1")), ("other", None)] {
        let mut exchange = Native::new(method, params).map_err(|error| error.to_string())?;
        let mut rest = bytes;
        while !rest.is_empty() {
            let whole = exchange.clone().answer(rest);
            let first = (1..=rest.len())
                .map(|end| exchange.clone().answer(rest.get(..end).unwrap_or_default()))
                .find(|answer| *answer != Answer::NeedMore);
            if !agree(first.as_ref().unwrap_or(&Answer::NeedMore), &whole) {
                return Err(format!("whole: {whole:?}\nbyte by byte: {first:?}"));
            }
            match exchange.answer(rest) {
                Answer::Right { consumed } | Answer::Error { consumed } => {
                    let behind = rest.get(consumed..).filter(|_| consumed > 0);
                    rest = behind.ok_or_else(|| format!("{consumed} bytes taken of {}", rest.len()))?;
                    judged += 1;
                }
                Answer::NeedMore | Answer::Wrong { .. } => break,
            }
        }
    }
    Ok(judged)
}

/// The words of a wrong answer quote what had arrived of it.
fn agree(one: &Answer, other: &Answer) -> bool {
    one == other || matches!((one, other), (Answer::Wrong { .. }, Answer::Wrong { .. }))
}

fn piece_of(bytes: &[u8]) -> usize {
    1 + bytes.first().map_or(0, |byte| usize::from(byte % 32))
}
