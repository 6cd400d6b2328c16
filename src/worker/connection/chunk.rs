//! Bytes that arrived together, held by all who need a part of them.
//!
//! The poller receives into its [`Scratch`] and looks for messages in the [`Chunk`] that this makes. A call that runs
//! right there needs no copy: if the poller has to be relieved meanwhile, the connection still holds the chunk. All of it
//! lies in blocks of the arena, so that it outlives the worker.

use std::ops::{Deref, Range};
use std::sync::Arc;

use crate::arena::Place;
use crate::sys::blocks::{Block, HEAD, Pool};

/// Bytes received from a connection in one go, at most: what a block of 64 KiB has room for.
pub(in crate::worker) const SCRATCH: usize = 64 * 1024 - HEAD;

/// There is no block left of the size that is needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct NoBlock;

/// A part of a block that nobody changes any more.
#[derive(Debug, Clone)]
pub(in crate::worker) struct Chunk {
    block: Arc<Block>,
    part: Range<usize>,
}

impl Chunk {
    /// A copy in a block of its own, with room for `room` bytes or more. None where there is no block for it.
    pub(in crate::worker) fn copy_of(bytes: &[u8], room: usize, pool: &'static Pool) -> Option<Self> {
        let mut block = pool.take(room.max(bytes.len()))?;
        block.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self { block: Arc::new(block), part: 0..bytes.len() })
    }

    /// Without its first `count` bytes.
    pub(in crate::worker) fn skip(mut self, count: usize) -> Self {
        self.part.start = self.part.end.min(self.part.start.saturating_add(count));
        self
    }

    pub(in crate::worker) fn block(&self) -> &Block {
        &self.block
    }

    /// Where these of its bytes are.
    pub(in crate::worker) fn place_of(&self, bytes: Range<usize>) -> Place {
        let at = self.block.place() + (self.part.start + bytes.start) as u64;
        Place { at, length: bytes.len() as u64 }
    }

    /// Where what comes behind its first `consumed` bytes is, and goes: up to the end of the block. A chunk that is used
    /// up leaves all of its block.
    pub(in crate::worker) fn place_behind(&self, consumed: usize) -> Place {
        let start = self.part.start + consumed;
        let start = if start >= self.part.end { 0 } else { start };
        Place { at: self.block.place() + start as u64, length: (self.block.len() - start) as u64 }
    }

    /// Bytes that its block has room for.
    pub(in crate::worker) fn held(&self) -> usize {
        self.block.len()
    }

    /// Bytes that could be received behind it; none while others hold the block too, who count on it as it is.
    pub(in crate::worker) fn room(&mut self) -> &mut [u8] {
        let end = self.part.end;
        Arc::get_mut(&mut self.block).and_then(|block| block.get_mut(end..)).unwrap_or_default()
    }

    /// So many bytes of the room have been filled.
    pub(in crate::worker) fn grow(&mut self, count: usize) {
        self.part.end = self.block.len().min(self.part.end.saturating_add(count));
    }
}

impl Deref for Chunk {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.block.get(self.part.clone()).unwrap_or_default()
    }
}

/// A thread's memory to receive into, used again for as long as nobody holds on to what was received.
#[derive(Debug)]
pub(in crate::worker) struct Scratch {
    pool: &'static Pool,
    block: Option<Arc<Block>>,
}

impl Scratch {
    pub(in crate::worker) fn new(pool: &'static Pool) -> Self {
        Self { pool, block: None }
    }

    /// All of it. None where there is no block.
    pub(in crate::worker) fn block(&mut self) -> Option<&mut Block> {
        if self.block.as_mut().and_then(Arc::get_mut).is_none() {
            self.block = Some(Arc::new(self.pool.take(SCRATCH)?));
        }
        self.block.as_mut().and_then(Arc::get_mut)
    }

    /// The first `count` bytes of it. None where it has been given away.
    pub(in crate::worker) fn filled(&self, count: usize) -> Option<Chunk> {
        Some(Chunk { block: Arc::clone(self.block.as_ref()?), part: 0..count })
    }

    /// True for a part of this very memory, which the next receive overwrites.
    pub(in crate::worker) fn is_where(&self, chunk: &Chunk) -> bool {
        self.block.as_ref().is_some_and(|block| Arc::ptr_eq(block, &chunk.block))
    }
}
