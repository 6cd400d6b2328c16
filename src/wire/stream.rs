//! The JSON stream: complete JSON values one after another, with nothing or white space between them.
//!
//! Finds where a value ends, by its brackets and quotes; whether it is JSON is for `rpc` to say. Each answer ends with a
//! line break.

use super::{Decode, Known, Progress, Step, WireError};

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StreamFraming {
    /// The most bytes a request may have.
    pub(crate) max_message: usize,
}

/// How far into a value the bytes have been looked at, and what they are in the middle of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Scan {
    at: usize,
    inside: Inside,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inside {
    /// A number, or a word such as `true`.
    Scalar,
    /// So many brackets are open; zero in a string that is a value of its own.
    Brackets {
        open: usize,
    },
    Text {
        open: usize,
    },
    /// Behind a backslash.
    Escape {
        open: usize,
    },
}

impl Decode for StreamFraming {
    fn decode(&self, arrived: &[u8], progress: &mut Progress) -> Step {
        let scan = match progress.0 {
            Known::Stream(scan) => scan,
            _ => match begin(arrived) {
                Ok(scan) => scan,
                Err(step) => return step,
            },
        };
        *progress = Progress::default();
        // One byte more than a message may have shows that it is too long.
        let within = arrived.get(..self.max_message.saturating_add(1)).unwrap_or(arrived);
        match scan.go_on(within) {
            Ok(end) if end <= self.max_message => {
                let behind = arrived.get(end..).unwrap_or_default();
                Step::Message { body: 0..end, consumed: end + white_space(behind) }
            }
            Err(scan) if arrived.len() <= self.max_message => {
                *progress = Progress(Known::Stream(scan));
                Step::NeedMore { at_least: arrived.len() + 1 }
            }
            Ok(_) | Err(_) => Step::Wrong(WireError::Endless { limit: self.max_message }),
        }
    }
}

/// Ends an answer, which is the last thing in `out`.
pub(super) fn end_message(out: &mut Vec<u8>) {
    out.push(b'\n');
}

/// What the first byte begins, or the step that it is where it begins nothing.
fn begin(arrived: &[u8]) -> Result<Scan, Step> {
    let inside = match arrived.first() {
        None => return Err(Step::NeedMore { at_least: 1 }),
        Some(b' ' | b'\t' | b'\n' | b'\r') => return Err(Step::Skip { consumed: white_space(arrived) }),
        Some(b'{' | b'[') => Inside::Brackets { open: 1 },
        Some(b'"') => Inside::Text { open: 0 },
        Some(b'-' | b'0'..=b'9' | b't' | b'f' | b'n') => Inside::Scalar,
        Some(&found) => return Err(Step::Wrong(WireError::Stray { found })),
    };
    Ok(Scan { at: 1, inside })
}

fn white_space(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|byte| matches!(byte, b' ' | b'\t' | b'\n' | b'\r')).count()
}

impl Scan {
    /// Where the value ends, or how far it is known now.
    fn go_on(mut self, bytes: &[u8]) -> Result<usize, Scan> {
        let mut rest = bytes.get(self.at..).unwrap_or_default().iter();
        let end_at = |rest: &std::slice::Iter<'_, u8>| bytes.len() - rest.as_slice().len();
        while let Some(&byte) = rest.next() {
            self.inside = match (self.inside, byte) {
                (Inside::Scalar, b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'A'..=b'Z') => continue,
                // The byte belongs to what follows.
                (Inside::Scalar, _) => return Ok(end_at(&rest) - 1),
                (Inside::Brackets { open }, b'"') => Inside::Text { open },
                (Inside::Brackets { open }, b'{' | b'[') => Inside::Brackets { open: open + 1 },
                (Inside::Brackets { open: 1 }, b'}' | b']') => return Ok(end_at(&rest)),
                (Inside::Brackets { open }, b'}' | b']') => Inside::Brackets { open: open - 1 },
                (Inside::Brackets { .. }, _) => continue,
                (Inside::Text { open: 0 }, b'"') => return Ok(end_at(&rest)),
                (Inside::Text { open }, b'"') => Inside::Brackets { open },
                (Inside::Text { open }, b'\\') => Inside::Escape { open },
                (Inside::Text { .. }, _) => continue,
                (Inside::Escape { open }, _) => Inside::Text { open },
            };
        }
        Err(Scan { at: bytes.len(), ..self })
    }
}
