//! Bytes that arrived together, held by all who need a part of them.
//!
//! The poller reads into its [`Scratch`] and looks for messages in the [`Chunk`] that this makes. A call that runs right
//! there needs no copy: if the poller has to be relieved meanwhile, the connection still holds the chunk.

use std::ops::{Deref, Range};
use std::sync::Arc;

/// Bytes read from a connection in one go.
pub(super) const SCRATCH: usize = 64 * 1024;

/// A part of some bytes that nobody changes any more.
#[derive(Debug, Clone, Default)]
pub(super) struct Chunk {
    bytes: Arc<Vec<u8>>,
    part: Range<usize>,
}

impl Chunk {
    pub(super) fn new(bytes: Vec<u8>) -> Self {
        let part = 0..bytes.len();
        Self { bytes: Arc::new(bytes), part }
    }

    pub(super) fn copy_of(bytes: &[u8]) -> Self {
        Self::new(bytes.to_vec())
    }

    /// Without its first `count` bytes.
    pub(super) fn skip(mut self, count: usize) -> Self {
        self.part.start = self.part.end.min(self.part.start.saturating_add(count));
        self
    }

    /// The bytes themselves, copied only where others hold them too. They begin where the second value says.
    pub(super) fn into_bytes(self) -> (Vec<u8>, usize) {
        match Arc::try_unwrap(self.bytes) {
            Ok(mut bytes) => {
                bytes.truncate(self.part.end);
                (bytes, self.part.start)
            }
            Err(shared) => (shared.get(self.part).unwrap_or_default().to_vec(), 0),
        }
    }
}

impl Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(self.part.clone()).unwrap_or_default()
    }
}

/// Memory to read into, used again for as long as nobody holds on to what was read.
#[derive(Debug, Default)]
pub(super) struct Scratch(Arc<Vec<u8>>);

impl Scratch {
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.0.is_empty() || Arc::get_mut(&mut self.0).is_none() {
            self.0 = Arc::new(vec![0; SCRATCH]);
        }
        Arc::get_mut(&mut self.0).map_or(&mut [], Vec::as_mut_slice)
    }

    /// The first `count` bytes of it.
    pub(super) fn filled(&self, count: usize) -> Chunk {
        Chunk { bytes: Arc::clone(&self.0), part: 0..count }
    }
}
