//! The length-prefix framing: four bytes that say how long the message is, then that many bytes of JSON.
//!
//! The connection decodes with [`LengthFraming::decode`] and writes each answer between [`LengthFraming::begin_message`]
//! and [`LengthFraming::end_message`], straight into its output. Knows nothing of JSON.

use std::fmt;

use super::{ByteOrder, Decode, Progress, Step, WireError};

/// Bytes of the prefix.
pub(crate) const PREFIX: usize = 4;

/// The longest answer this framing carries: one byte less than what could be mistaken for another framing.
pub(crate) const MAX_ANSWER: usize = (16 << 20) - 1;

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct LengthFraming {
    pub(crate) order: ByteOrder,
    /// The most bytes a request may have, without its prefix.
    pub(crate) max_message: usize,
}

/// Where in the output a message begins; made by `begin_message`, used up by `end_message`.
#[derive(Debug)]
#[must_use = "a message that is begun and not ended has a length of 0"]
pub(crate) struct Mark(usize);

impl Mark {
    /// For a framing that writes nothing before a message.
    pub(super) fn at_end_of(out: &[u8]) -> Self {
        Self(out.len())
    }

    /// Where the message begins, its framing included.
    pub(super) fn start(&self) -> usize {
        self.0
    }
}

/// An answer is longer than the framing carries. The output is as it was before the message was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AnswerTooLong {
    pub(crate) length: usize,
}

impl Decode for LengthFraming {
    fn decode(&self, arrived: &[u8], _: &mut Progress) -> Step {
        let Some(&prefix) = arrived.first_chunk::<PREFIX>() else {
            return Step::NeedMore { at_least: PREFIX };
        };
        let length = match self.order {
            ByteOrder::Little => u32::from_le_bytes(prefix),
            ByteOrder::Big => u32::from_be_bytes(prefix),
        } as usize;
        if length == 0 {
            return Step::Wrong(WireError::Empty { prefix: PREFIX });
        }
        if length > self.max_message {
            return Step::Wrong(WireError::TooLarge { length, limit: self.max_message });
        }
        let end = PREFIX + length;
        if arrived.len() < end {
            return Step::NeedMore { at_least: end };
        }
        Step::Message { body: PREFIX..end, consumed: end }
    }
}

impl LengthFraming {
    /// Leaves room for the prefix; what is appended to `out` from here on is the message.
    pub(crate) fn begin_message(out: &mut Vec<u8>) -> Mark {
        let mark = Mark(out.len());
        out.extend_from_slice(&[0; PREFIX]);
        mark
    }

    /// Writes the prefix of the message begun at the mark.
    ///
    /// A message that is too long is taken back, so that the caller can answer with an error in its place.
    pub(crate) fn end_message(
        order: ByteOrder,
        out: &mut Vec<u8>,
        Mark(start): Mark,
    ) -> Result<(), AnswerTooLong> {
        let length = out.len().saturating_sub(start + PREFIX);
        let prefix = match u32::try_from(length) {
            Ok(length) if length as usize <= MAX_ANSWER => match order {
                ByteOrder::Little => length.to_le_bytes(),
                ByteOrder::Big => length.to_be_bytes(),
            },
            _ => {
                out.truncate(start);
                return Err(AnswerTooLong { length });
            }
        };
        if let Some(room) = out.get_mut(start..start + PREFIX) {
            room.copy_from_slice(&prefix);
        }
        Ok(())
    }
}

impl fmt::Display for AnswerTooLong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the answer has {} bytes; with length-prefix framing it can have at most {MAX_ANSWER}",
            self.length
        )
    }
}

impl std::error::Error for AnswerTooLong {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LITTLE: LengthFraming = LengthFraming { order: ByteOrder::Little, max_message: 1000 };
    const BIG: LengthFraming = LengthFraming { order: ByteOrder::Big, max_message: 1000 };

    fn decode(framing: LengthFraming, arrived: &[u8]) -> Step {
        framing.decode(arrived, &mut Progress::default())
    }

    fn encode(framing: LengthFraming, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        let mark = LengthFraming::begin_message(&mut out);
        out.extend_from_slice(body);
        LengthFraming::end_message(framing.order, &mut out, mark).unwrap();
        out
    }

    #[test]
    fn a_plain_client_gets_four_little_endian_bytes_and_the_body() {
        assert_eq!(encode(LITTLE, b"{}"), b"\x02\0\0\0{}");
        assert_eq!(encode(BIG, b"{}"), b"\0\0\0\x02{}");
    }

    #[test]
    fn a_message_split_at_every_byte_is_incomplete_until_its_last_byte() {
        for framing in [LITTLE, BIG] {
            let mut bytes = encode(framing, br#"{"in":"ping","params":"ireader 0"}"#);
            let whole = bytes.len();
            bytes.extend_from_slice(b"the next message");
            for cut in 0..bytes.len() {
                let step = decode(framing, &bytes[..cut]);
                if cut < PREFIX {
                    assert_eq!(step, Step::NeedMore { at_least: PREFIX });
                } else if cut < whole {
                    assert_eq!(step, Step::NeedMore { at_least: whole });
                } else {
                    assert_eq!(step, Step::Message { body: PREFIX..whole, consumed: whole });
                }
            }
        }
    }

    #[test]
    fn a_length_of_zero_is_wrong_and_the_next_message_is_found_behind_it() {
        let Step::Wrong(error) = decode(LITTLE, b"\0\0\0\0\x02\0\0\0{}") else { panic!("0 is a length") };
        let next = error.consumed().expect("the connection goes on");
        assert_eq!(
            decode(LITTLE, &b"\0\0\0\0\x02\0\0\0{}"[next..]),
            Step::Message { body: 4..6, consumed: 6 }
        );
    }

    #[test]
    fn a_length_over_the_limit_is_wrong_before_any_of_its_bytes_are_there_and_ends_the_connection() {
        let step = decode(LITTLE, &1001_u32.to_le_bytes());
        assert_eq!(step, Step::Wrong(WireError::TooLarge { length: 1001, limit: 1000 }));
        assert_eq!(WireError::TooLarge { length: 1001, limit: 1000 }.consumed(), None);
        assert_eq!(decode(LITTLE, &1000_u32.to_le_bytes()), Step::NeedMore { at_least: 1004 });
        assert!(matches!(decode(LITTLE, &[0xff; 4]), Step::Wrong(WireError::TooLarge { .. })));
    }

    #[test]
    fn an_answer_that_is_too_long_is_taken_back() {
        let mut out = b"an earlier answer".to_vec();
        let mark = LengthFraming::begin_message(&mut out);
        out.resize(out.len() + MAX_ANSWER + 1, b' ');
        assert_eq!(
            LengthFraming::end_message(ByteOrder::Little, &mut out, mark),
            Err(AnswerTooLong { length: MAX_ANSWER + 1 })
        );
        assert_eq!(out, b"an earlier answer");
        let mark = LengthFraming::begin_message(&mut out);
        out.resize(out.len() + MAX_ANSWER, b' ');
        assert_eq!(LengthFraming::end_message(ByteOrder::Little, &mut out, mark), Ok(()));
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(
            bodies in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..200), 0..8),
            big in any::<bool>(),
        ) {
            let framing = if big { BIG } else { LITTLE };
            let mut bytes = Vec::new();
            for body in &bodies {
                bytes.extend(encode(framing, body));
            }
            let mut rest = bytes.as_slice();
            for sent in &bodies {
                let Step::Message { body, consumed } = decode(framing, rest) else { panic!("a message was sent") };
                prop_assert_eq!(&rest[body], sent.as_slice());
                rest = &rest[consumed..];
            }
            prop_assert!(rest.is_empty());
        }

        #[test]
        fn garbage_never_panics_and_never_points_outside(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            match decode(LITTLE, &bytes) {
                Step::NeedMore { at_least } => prop_assert!(at_least > bytes.len()),
                Step::Message { body, consumed } => {
                    prop_assert!(body.end <= consumed && consumed <= bytes.len());
                }
                Step::Wrong(error) => prop_assert!(error.consumed().unwrap_or(0) <= bytes.len()),
                step => prop_assert!(false, "{step:?} in length-prefix framing"),
            }
        }
    }
}
