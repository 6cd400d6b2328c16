//! The content-length header framing, as language servers use it: header lines, an empty line, then so many bytes of JSON.

use super::length::Mark;
use super::{Decode, Progress, Step};

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HeaderFraming {
    /// The most bytes a request may have, without its header.
    pub(crate) max_message: usize,
}

/// What is known of a header block.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    looked_at: usize,
}

impl HeaderFraming {
    pub(super) fn begin_message(out: &mut Vec<u8>) -> Mark {
        Mark::at_end_of(out)
    }

    pub(super) fn end_message(_out: &mut Vec<u8>, _mark: Mark) {}
}

impl Decode for HeaderFraming {
    fn decode(&self, arrived: &[u8], _progress: &mut Progress) -> Step {
        Step::NeedMore { at_least: arrived.len() + 1 }
    }
}
