//! Answers of a connection that the socket has not taken yet.

use crate::arena::Place;
use crate::sys::blocks::{Block, HEAD, Pool};
use crate::worker::connection::chunk::NoBlock;

/// Memory that a thread lends to the connection whose answers it writes and gets back once they are sent, the same again
/// and again. One large answer must not keep its memory for ever, so it is never larger than this.
pub(in crate::worker) const SPARE: usize = 16 * 1024 - HEAD;

/// A connection that has nothing to send holds no memory.
#[derive(Debug, Default)]
pub(in crate::worker) struct Output {
    block: Option<Block>,
    /// What waits begins here in the block.
    start: usize,
    end: usize,
    /// Bytes handed to the kernel since the connection began.
    sent: u64,
}

impl Output {
    /// Of a connection that has been sent so many bytes.
    pub(super) fn after(sent: u64) -> Self {
        Self { sent, ..Self::default() }
    }

    pub(in crate::worker) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(in crate::worker) fn len(&self) -> usize {
        self.end - self.start
    }

    /// Bytes it holds.
    pub(super) fn held(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len())
    }

    pub(super) fn sent_so_far(&self) -> u64 {
        self.sent
    }

    /// Where what waits is.
    pub(super) fn place(&self) -> Place {
        let start = self.block.as_ref().map_or(0, Block::place);
        Place { at: start + self.start as u64, length: self.len() as u64 }
    }

    /// Adds an answer. One that finds nothing waiting borrows the memory of `spare`. What the record names may have been
    /// left in another block: that is returned, to be held until the record names this one. Where there is no block for it
    /// nothing is added.
    pub(super) fn append(
        &mut self,
        answer: &[u8],
        spare: &mut Option<Block>,
        pool: &'static Pool,
    ) -> Result<Option<Block>, NoBlock> {
        if answer.is_empty() {
            return Ok(None);
        }
        let left = if self.has_room(answer.len()) { None } else { self.move_to(answer.len(), spare, pool)? };
        let end = self.end + answer.len();
        let room = self.block.as_mut().and_then(|block| block.get_mut(self.end..end)).ok_or(NoBlock)?;
        room.copy_from_slice(answer);
        self.end = end;
        Ok(left)
    }

    fn has_room(&self, more: usize) -> bool {
        self.block.as_ref().is_some_and(|block| block.len() - self.end >= more)
    }

    /// Moves what waits to a block with room for so many bytes more. It is not moved to the start of the same one: a
    /// worker that died meanwhile would leave neither the one nor the other.
    fn move_to(
        &mut self,
        more: usize,
        spare: &mut Option<Block>,
        pool: &'static Pool,
    ) -> Result<Option<Block>, NoBlock> {
        let waits = self.len();
        let fits = |block: &mut Block| waits + more <= block.len();
        let mut block = match spare.take_if(fits) {
            Some(block) => block,
            // Half as much again as waits: where little is sent at a time, little has to be moved for it.
            None => pool.take((waits + waits / 2 + more).max(SPARE)).ok_or(NoBlock)?,
        };
        block.get_mut(..waits).ok_or(NoBlock)?.copy_from_slice(self.waiting());
        (self.start, self.end) = (0, waits);
        Ok(self.block.replace(block))
    }

    pub(super) fn waiting(&self) -> &[u8] {
        self.block.as_ref().and_then(|block| block.get(self.start..self.end)).unwrap_or_default()
    }

    pub(super) fn sent(&mut self, count: usize) {
        let count = count.min(self.len());
        self.start += count;
        self.sent += count as u64;
    }

    /// Gives the memory back once nothing waits; `spare` keeps it where it has none.
    pub(super) fn give_back(&mut self, spare: &mut Option<Block>) {
        if self.is_empty()
            && let Some(block) = self.block.take()
        {
            (self.start, self.end) = (0, 0);
            if block.len() <= SPARE && spare.is_none() {
                *spare = Some(block);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_keeps_its_order_and_gives_its_memory_back_once_it_is_sent() {
        let (_, _, pool) = crate::arena::of_connections(1);
        let (mut output, mut taken, mut given) = (Output::after(70), Vec::new(), Vec::new());
        let mut spare = pool.take(77);
        let lent = spare.as_ref().map(Block::place);
        for round in 0..200_u8 {
            let answer = vec![round; 7];
            let held = output.place();
            let left = output.append(&answer, &mut spare, pool).unwrap();
            assert_eq!(
                left.is_some(),
                held.length > 0 && output.place().at != held.at,
                "what is left is held"
            );
            assert!(output.held() <= SPARE, "what was sent must not pile up");
            given.extend(answer);
            let count = usize::from(round % 12).min(output.len());
            taken.extend_from_slice(&output.waiting()[..count]);
            output.sent(count);
            assert_eq!(output.len(), given.len() - taken.len());
            assert_eq!(output.sent_so_far(), 70 + taken.len() as u64);
            output.give_back(&mut spare);
            assert_eq!(output.is_empty(), output.held() == 0);
        }
        taken.extend_from_slice(output.waiting());
        output.sent(output.len());
        assert_eq!(taken, given);
        output.give_back(&mut spare);
        assert_eq!((output.held(), output.place().length), (0, 0));
        output.give_back(&mut spare);
        assert!(spare.is_some() && lent.is_some(), "an output that has no memory takes none away");
    }

    #[test]
    fn a_connection_that_always_has_something_waiting_holds_no_more_than_twice_that() {
        let (_, _, pool) = crate::arena::of_connections(1);
        let (mut output, mut spare) = (Output::default(), None);
        for _ in 0..100 {
            output.append(&[1; 1000], &mut spare, pool).unwrap();
        }
        for _ in 0..1_000 {
            output.append(&[1; 1000], &mut spare, pool).unwrap();
            output.sent(1_000);
            assert!(output.held() <= 4 * 100_000, "{}", output.held());
        }
        assert_eq!(output.len(), 100_000);
    }

    #[test]
    fn one_large_answer_does_not_keep_its_memory() {
        let (_, _, pool) = crate::arena::of_connections(1);
        let (mut output, mut spare) = (Output::default(), None);
        output.append(&vec![0; SPARE + 1], &mut spare, pool).unwrap();
        output.sent(SPARE + 1);
        output.give_back(&mut spare);
        assert!(spare.is_none());
    }

    #[test]
    fn an_answer_for_which_there_is_no_block_changes_nothing() {
        let (_, _, pool) = crate::arena::of_connections(1);
        let mut output = Output::default();
        output.append(b"answer", &mut None, pool).unwrap();
        let all: Vec<Block> = std::iter::from_fn(|| pool.take(1 << 29)).collect();
        assert!(!all.is_empty());
        let huge = vec![0; 1 << 29];
        assert!(output.append(&huge, &mut None, pool).is_err());
        assert_eq!(output.waiting(), b"answer");
    }
}
