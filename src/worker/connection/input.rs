//! Bytes of a connection that have arrived and have not been begun.

use crate::sys::blocks::{HEAD, Pool};
use crate::worker::connection::chunk::{Chunk, NoBlock};

/// What a message that has only begun to arrive gets room for, if it says that it is longer: what a client announces
/// costs it nothing.
const FIRST: usize = 4 * 1024 - HEAD;

/// Room that is not worth a receive of its own.
const SCANT: usize = 512;

/// None waits in a connection that is idle, and then it holds no memory.
#[derive(Debug, Default)]
pub(in crate::worker) struct Input {
    /// Never an empty one.
    chunk: Option<Chunk>,
    /// Bytes that the message at its start has in all, as far as is known.
    needs: usize,
}

impl Input {
    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.chunk.is_none()
    }

    /// All of it, to begin calls from; the input is empty then.
    pub(in crate::worker) fn take(&mut self) -> Option<Chunk> {
        self.needs = 0;
        self.chunk.take()
    }

    /// What was not begun of a chunk.
    pub(super) fn put(&mut self, rest: Chunk, needs: usize) {
        (self.chunk, self.needs) = ((!rest.is_empty()).then_some(rest), needs);
    }

    /// Bytes it holds.
    pub(super) fn held(&self) -> usize {
        self.chunk.as_ref().map_or(0, Chunk::held)
    }

    /// Where what waits is and more of it is to be received.
    pub(super) fn room(&mut self) -> &mut [u8] {
        self.chunk.as_mut().map_or(&mut [], Chunk::room)
    }

    /// So many bytes were received into the room.
    pub(super) fn grow(&mut self, count: usize) {
        if let Some(chunk) = &mut self.chunk {
            chunk.grow(count);
        }
    }

    /// What waits, in a larger block, where the room behind it is used up or isn't its own.
    pub(super) fn moved(&mut self, pool: &'static Pool) -> Result<Option<Chunk>, NoBlock> {
        let room = self.room().len();
        let Some(waiting) = &self.chunk else {
            return Ok(None);
        };
        if room >= SCANT.min(self.needs.saturating_sub(waiting.len())).max(1) {
            return Ok(None);
        }
        Chunk::copy_of(waiting, room_for(waiting.len() + 1, self.needs), pool).ok_or(NoBlock).map(Some)
    }

    pub(super) fn needs(&self) -> usize {
        self.needs
    }

    /// What is there.
    pub(super) fn waiting(&self) -> &[u8] {
        self.chunk.as_deref().unwrap_or_default()
    }
}

/// The room for an incomplete message of which `arrived` bytes are there and which needs so many: never much more than
/// has arrived, so that it is half full at least before it is moved to a larger one.
pub(super) fn room_for(arrived: usize, needs: usize) -> usize {
    needs.min((2 * arrived).max(FIRST)).max(arrived)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(bytes: &[u8], room: usize, needs: usize) -> (Input, &'static Pool) {
        let (_, _, pool) = crate::arena::of_connections(1);
        let mut input = Input::default();
        input.put(Chunk::copy_of(bytes, room, pool).unwrap(), needs);
        (input, pool)
    }

    #[test]
    fn it_keeps_what_was_not_begun_and_no_memory_once_it_is_empty() {
        let (mut input, _) = input(b"one two", 0, 0);
        let chunk = input.take().unwrap();
        assert!(input.is_empty());
        input.put(chunk.clone().skip(4), 0);
        assert_eq!((input.waiting(), &*chunk), (&b"two"[..], &b"one two"[..]), "others may hold it still");
        assert!(input.room().is_empty(), "nothing is written behind what others hold");
        input.put(chunk.clone().skip(7), 0);
        assert!(input.is_empty());
        assert_eq!(input.held(), 0);
        assert!(chunk.skip(8).is_empty(), "more than there was is all there was");
    }

    #[test]
    fn what_nobody_else_holds_stays_where_it_is_while_there_is_room() {
        let (mut input, pool) = input(b"one two", FIRST, 1 << 20);
        assert!(input.moved(pool).unwrap().is_none());
        input.room()[..6].copy_from_slice(b" three");
        input.grow(6);
        assert_eq!(input.waiting(), b"one two three");
        let all = input.room().len();
        input.grow(all - 10);
        let moved = input.moved(pool).unwrap().unwrap();
        assert!(moved.starts_with(b"one two three"));
        assert!(input.moved(pool).unwrap().is_some(), "it is for the caller to put it in");
        input.put(moved, 1 << 20);
        assert!(input.moved(pool).unwrap().is_none());
    }

    #[test]
    fn what_others_hold_is_copied_before_more_is_received() {
        let (mut input, pool) = input(b"one", 0, 8);
        let chunk = input.take().unwrap();
        input.put(chunk.clone(), 8);
        let moved = input.moved(pool).unwrap().unwrap();
        input.put(moved, 8);
        input.room()[..4].copy_from_slice(b" two");
        input.grow(4);
        assert_eq!((input.waiting(), &*chunk), (&b"one two"[..], &b"one"[..]));
    }

    #[test]
    fn room_grows_with_what_has_arrived_and_not_with_what_is_announced() {
        let mib = 1 << 20;
        for (arrived, needs, room) in [
            (1, 0, 1),
            (1, 300, 300),
            (100, mib, FIRST),
            (FIRST, mib, 2 * FIRST),
            (mib / 2, mib, mib),
            (mib - 1, mib, mib),
            (70_000, 0, 70_000),
            (5, 4, 5),
        ] {
            assert_eq!(room_for(arrived, needs), room, "{arrived} of {needs} bytes");
        }
    }
}
