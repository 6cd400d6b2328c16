//! The content-length header framing, as language servers use it: header lines, an empty line, then so many bytes of JSON.
//!
//! Strict about what ends a line and what is a length, indifferent to any other field. Answers have the one field.

use super::fields::{self, Line};
use super::length::Mark;
use super::{Decode, Known, Progress, Step, WireError};

/// The most bytes that the lines before a message may have.
const MAX_BLOCK: usize = 4 * 1024;

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderFraming {
    /// The most bytes a request may have, without its header.
    pub(crate) max_message: usize,
}

/// What is known of a message.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    /// Where the line begins that is not read yet; once the block has ended, where the message does.
    at: usize,
    /// Up to here that line has no end.
    looked_at: usize,
    length: Option<usize>,
    has_ended: bool,
}

impl Decode for HeaderFraming {
    fn decode(&self, arrived: &[u8], progress: &mut Progress) -> Step {
        let mut block = if let Known::Header(block) = progress.0 { block } else { Block::default() };
        *progress = Progress::default();
        match self.read(&mut block, arrived) {
            Ok(step) => {
                if let Step::NeedMore { .. } = step {
                    *progress = Progress(Known::Header(block));
                }
                step
            }
            Err(error) => Step::Wrong(error),
        }
    }
}

impl HeaderFraming {
    /// Puts the header before the message begun at the mark: only now its length is known.
    pub(super) fn end_message(out: &mut Vec<u8>, mark: Mark) {
        let start = mark.start().min(out.len());
        let header = format!("Content-Length: {}\r\n\r\n", out.len() - start);
        out.splice(start..start, header.bytes());
    }

    fn read(self, block: &mut Block, arrived: &[u8]) -> Result<Step, WireError> {
        while !block.has_ended {
            if !block.next_line(arrived)? {
                return Ok(Step::NeedMore { at_least: arrived.len() + 1 });
            }
        }
        let (start, limit) = (block.at, self.max_message);
        match block.length {
            None => Err(wrong("a Content-Length", "none")),
            Some(0) => Err(WireError::Empty { prefix: start }),
            Some(length) if length > limit => Err(WireError::TooLarge { length, limit }),
            Some(length) if arrived.len() < start + length => Ok(Step::NeedMore { at_least: start + length }),
            Some(length) => Ok(Step::Message { body: start..start + length, consumed: start + length }),
        }
    }
}

impl Block {
    /// Reads a line; false where it is not there yet.
    fn next_line(&mut self, arrived: &[u8]) -> Result<bool, WireError> {
        let within = arrived.get(..MAX_BLOCK).unwrap_or(arrived);
        match fields::line(within, self.at, self.looked_at) {
            Line::Whole { text, next } => {
                self.read_field(arrived.get(text).unwrap_or_default())?;
                (self.at, self.looked_at) = (next, next);
                Ok(true)
            }
            Line::BareLineFeed => Err(wrong("CR LF at the end of each line", "a line feed alone")),
            Line::NotYet if arrived.len() >= MAX_BLOCK => {
                Err(wrong("its end within 4096 bytes", "more than that"))
            }
            Line::NotYet => {
                self.looked_at = arrived.len();
                Ok(false)
            }
        }
    }

    fn read_field(&mut self, line: &[u8]) -> Result<(), WireError> {
        if line.is_empty() {
            self.has_ended = true;
            return Ok(());
        }
        let Some((name, value)) = fields::split(line) else {
            return Err(wrong("`Name: value` in each line", "a line without that"));
        };
        if name.eq_ignore_ascii_case(b"Content-Length") {
            let Some(length) = fields::decimal(value) else {
                return Err(wrong("a Content-Length in decimal digits", "another value"));
            };
            if self.length.replace(length).is_some() {
                return Err(wrong("one Content-Length", "several"));
            }
        }
        Ok(())
    }
}

fn wrong(expected: &'static str, found: &'static str) -> WireError {
    WireError::Header { expected, found }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Framing;
    use crate::wire::pieces::{Outcome, check};

    const FRAMING: Framing = Framing::Header(HeaderFraming { max_message: 100 });

    fn decoded(bytes: &[u8]) -> Outcome {
        check(FRAMING, bytes, 5).unwrap()
    }

    #[test]
    fn a_language_server_s_client_is_understood() {
        for head in [
            "Content-Length: 2\r\n\r\n",
            "content-length:2\r\n\r\n",
            "CONTENT-LENGTH: \t2 \r\n\r\n",
            "Content-Length: 2\r\nContent-Type: application/vscode-jsonrpc; charset=utf-8\r\n\r\n",
            "Content-Type: application/vscode-jsonrpc; charset=utf8\r\nContent-Length: 002\r\nX-More: 1\r\n\r\n",
        ] {
            let bytes = format!("{head}{{}}{head}[]");
            let outcome = decoded(bytes.as_bytes());
            assert_eq!(outcome.messages, [b"{}", b"[]"], "{head}");
            assert_eq!(outcome.consumed, bytes.len());
        }
    }

    #[test]
    fn a_header_that_says_no_length_is_wrong_and_ends_the_connection() {
        let long = format!("Content-Length: 2\r\nX: {}", "x".repeat(MAX_BLOCK));
        for (bytes, error) in [
            ("\r\n{}", "expected a Content-Length, found none"),
            ("Content-Type: x\r\n\r\n{}", "expected a Content-Length, found none"),
            (
                "Content-Length: 2\r\nContent-Length: 2\r\n\r\n{}",
                "expected one Content-Length, found several",
            ),
            ("Content-Length: +2\r\n\r\n{}", "decimal digits"),
            ("Content-Length: 0x2\r\n\r\n{}", "decimal digits"),
            ("Content-Length: -2\r\n\r\n{}", "decimal digits"),
            ("Content-Length: 2, 2\r\n\r\n{}", "decimal digits"),
            ("Content-Length:\r\n\r\n{}", "decimal digits"),
            ("Content-Length: 18446744073709551618\r\n\r\n{}", "decimal digits"),
            ("Content-Length: 2\n\n{}", "expected CR LF at the end of each line, found a line feed alone"),
            ("Content-Length: 2\r\n\n{}", "expected CR LF at the end of each line, found a line feed alone"),
            ("Content-Length : 2\r\n\r\n{}", "expected `Name: value` in each line"),
            ("Content-Length: 2\r\n folded: 1\r\n\r\n{}", "expected `Name: value` in each line"),
            ("Content-Length\r\n\r\n{}", "expected `Name: value` in each line"),
            ("Content-Length: 2\r\r\n\r\n{}", "expected `Name: value` in each line"),
            (&long, "expected its end within 4096 bytes, found more than that"),
        ] {
            let outcome = decoded(bytes.as_bytes());
            let [(0, wrong)] = outcome.errors[..] else { panic!("{bytes:?}: {outcome:?}") };
            assert!(wrong.to_string().contains(error), "{bytes:?}: {wrong}");
            assert!(outcome.is_closed, "{bytes:?}");
        }
    }

    #[test]
    fn a_length_of_zero_is_answered_and_the_next_message_found() {
        let outcome = decoded(b"Content-Length: 0\r\n\r\nContent-Length: 2\r\n\r\n{}");
        assert_eq!(outcome.errors, [(0, WireError::Empty { prefix: 21 })]);
        assert_eq!(outcome.messages, [b"{}"]);
    }

    #[test]
    fn a_length_over_the_limit_is_known_from_the_header_alone() {
        let outcome = decoded(b"Content-Length: 101\r\n\r\n");
        assert_eq!(outcome.errors, [(0, WireError::TooLarge { length: 101, limit: 100 })]);
        assert!(outcome.is_closed);
        assert!(decoded(b"Content-Length: 100\r\n\r\n").errors.is_empty());
    }

    #[test]
    fn the_rest_of_a_message_is_asked_for_at_once() {
        let step = FRAMING.decode(b"Content-Length: 50\r\n\r\n{", &mut Progress::default());
        assert_eq!(step, Step::NeedMore { at_least: 72 });
    }

    #[test]
    fn an_answer_has_its_length_before_it() {
        let mut out = b"earlier".to_vec();
        let mark = FRAMING.dialect().begin_message(&mut out);
        out.extend_from_slice(br#"{"result":1}"#);
        FRAMING.dialect().end_message(&mut out, mark).unwrap();
        assert_eq!(out, b"earlierContent-Length: 12\r\n\r\n{\"result\":1}");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..90), 0..5)) {
            let mut bytes = Vec::new();
            for body in &bodies {
                let mark = FRAMING.dialect().begin_message(&mut bytes);
                bytes.extend_from_slice(body);
                FRAMING.dialect().end_message(&mut bytes, mark).unwrap();
            }
            prop_assert_eq!(decoded(&bytes).messages, bodies);
        }

        #[test]
        fn garbage_never_panics_and_never_points_outside(bytes in "((content-length|x): ?|[0-9]{1,3}|\r|\n|\r\n|\\PC){0,20}") {
            decoded(bytes.as_bytes());
        }
    }
}
