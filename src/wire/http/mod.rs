//! HTTP/1.1 and 1.0 requests.

use super::{Decode, Progress, Step};

/// The framing as one listener has it configured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HttpFraming {
    /// The most bytes a request's body may have.
    pub(crate) max_message: usize,
}

/// What is known of a request.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Request {
    looked_at: usize,
}

impl Decode for HttpFraming {
    fn decode(&self, arrived: &[u8], _progress: &mut Progress) -> Step {
        Step::NeedMore { at_least: arrived.len() + 1 }
    }
}
