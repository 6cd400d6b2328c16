//! Holds a decoder to its contract: bytes are decoded whole and in pieces, and must give the same messages.
//!
//! For tests and, through `internals`, for fuzz targets, which is why a breach is an error here and no panic.

use super::detect::{Recognised, recognise};
use super::http::{self, Body};
use super::{ByteOrder, Framing, Kind, Kinds, Progress, Step, WireError};

/// The most first bytes that a decision takes.
const MOST_TO_DECIDE: usize = 21;

/// What came of some bytes.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub(crate) struct Outcome {
    pub(crate) messages: Vec<Vec<u8>>,
    /// What was wrong, and behind how many messages. The connection goes on behind an error that says so.
    pub(crate) errors: Vec<(usize, WireError)>,
    /// Where reading stopped: all before was consumed.
    pub(crate) consumed: usize,
    pub(crate) is_closed: bool,
}

/// Decodes the bytes whole and in pieces: byte by byte, and in pieces of up to so many bytes.
pub(crate) fn check(framing: Framing, bytes: &[u8], longest_piece: usize) -> Result<Outcome, String> {
    let whole = decode(framing, bytes, bytes.len().max(1))?;
    for piece in [1, longest_piece.max(1)] {
        let pieces = decode(framing, bytes, piece)?;
        if !agree(framing.kind(), &whole, &pieces) {
            return Err(format!("whole: {whole:?}\nin pieces of {piece}: {pieces:?}"));
        }
    }
    Ok(whole)
}

/// Decodes the bytes as they would come in pieces of `piece` bytes each.
pub(crate) fn decode(framing: Framing, bytes: &[u8], piece: usize) -> Result<Outcome, String> {
    let mut outcome = Outcome::default();
    let mut progress = Progress::default();
    let mut is_invited = false;
    let mut arrived = piece.min(bytes.len());
    loop {
        let input = bytes.get(outcome.consumed..arrived).unwrap_or_default();
        let mut opened = None;
        let step = framing.decode_and_open(input, &mut progress, &mut opened);
        keeps_contract(&step, input.len()).map_err(|breach| format!("{breach}: {step:?}"))?;
        match step {
            Step::NeedMore { .. } if arrived == bytes.len() => return Ok(outcome),
            Step::Invite { .. } if is_invited => return Err("invited twice".to_owned()),
            Step::Invite { .. } => is_invited = true,
            Step::NeedMore { .. } => arrived = (arrived + piece).min(bytes.len()),
            Step::Skip { consumed } => outcome.consumed += consumed,
            Step::Message { body, consumed } => {
                let message = input.get(body).unwrap_or_default().to_vec();
                if opened.is_some() && http::open(&message).ok() != opened {
                    return Err(format!("opened as {opened:?} when it was found"));
                }
                outcome.take(framing, message, consumed)?;
                is_invited = false;
            }
            Step::Assembled { message, consumed } => {
                outcome.take(framing, message, consumed)?;
                is_invited = false;
            }
            Step::Wrong(error) => {
                outcome.errors.push((outcome.messages.len(), error));
                match error.consumed() {
                    Some(consumed) => outcome.consumed += consumed,
                    None => {
                        outcome.is_closed = true;
                        return Ok(outcome);
                    }
                }
            }
        }
    }
}

/// Recognises the bytes as they would come one at a time: what is decided stays decided, and is decided by then.
pub(crate) fn check_detection(bytes: &[u8], order: ByteOrder, kinds: Kinds) -> Result<(), String> {
    let mut decided: Option<Option<Kind>> = None;
    for (cut, first) in (0..=bytes.len()).filter_map(|cut| Some((cut, bytes.get(..cut)?))) {
        let recognised = recognise(first, order, kinds);
        let is_in_order = match recognised {
            Recognised::NeedMore { at_least, .. } => {
                decided.is_none() && at_least > cut && at_least <= MOST_TO_DECIDE
            }
            Recognised::Framing(kind) => {
                kinds.contains(kind) && *decided.get_or_insert(Some(kind)) == Some(kind)
            }
            Recognised::Unknown { .. } => decided.get_or_insert(None).is_none(),
        };
        if !is_in_order {
            return Err(format!(
                "{recognised:?} from {cut} bytes, {order:?} {kinds:?}, decided before: {decided:?}"
            ));
        }
    }
    let in_time = decided.is_some() || bytes.len() < MOST_TO_DECIDE;
    if in_time { Ok(()) } else { Err(format!("undecided, {order:?} {kinds:?}")) }
}

impl Outcome {
    fn take(&mut self, framing: Framing, message: Vec<u8>, consumed: usize) -> Result<(), String> {
        if framing.kind() == Kind::Http {
            let again = http::open(&message).map_err(|error| format!("not opened again: {error}"))?;
            let length = message.len().checked_sub(again.body_at);
            let fits = match again.head.body {
                Body::None => length == Some(0),
                Body::Length(announced) => length == Some(announced),
                Body::Chunked => length.is_some(),
            };
            if !fits {
                return Err(format!("of {} bytes, opened as {again:?}", message.len()));
            }
        }
        self.messages.push(message);
        self.consumed += consumed;
        Ok(())
    }
}

fn keeps_contract(step: &Step, given: usize) -> Result<(), &'static str> {
    let moves_on = |consumed: usize| {
        if (1..=given).contains(&consumed) { Ok(()) } else { Err("consumes nothing, or more than there is") }
    };
    match step {
        Step::NeedMore { at_least } | Step::Invite { at_least } if *at_least > given => Ok(()),
        Step::NeedMore { .. } | Step::Invite { .. } => Err("asks for bytes that are there"),
        Step::Message { body, .. } if body.start > body.end || body.end > given => Err("points outside"),
        Step::Skip { consumed } | Step::Message { consumed, .. } | Step::Assembled { consumed, .. } => {
            moves_on(*consumed)
        }
        Step::Wrong(error) => error.consumed().map_or(Ok(()), moves_on),
    }
}

/// HTTP heads that come in pieces are parsed once they are whole, so that what is wrong with one may show later, or
/// another thing that is wrong with it first.
fn agree(kind: Kind, whole: &Outcome, pieces: &Outcome) -> bool {
    match kind {
        Kind::Http => whole.messages == pieces.messages && (whole.is_closed || !pieces.is_closed),
        // White space behind a value is consumed with it where it has come already; all of it is in the end.
        Kind::Length | Kind::Stream | Kind::Header => whole == pieces,
    }
}
