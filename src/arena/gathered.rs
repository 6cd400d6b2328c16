//! The answers of a batch's calls, kept until the last of them is there: in a block of the arena that the batch's own
//! block names, so that they outlive the worker.
//!
//! An answer is written behind those that are there, and one store of the block's word for how much of it is filled makes
//! it true. Where it doesn't fit, a larger block is filled with all of them first, and one store of the word that names the
//! block makes it the one that counts. Whenever the writer dies, a reader finds whole answers, all that were there before
//! and perhaps the new one. The writer holds the connection's lock; the reader is `kept`.

use std::ops::Range;

use super::record::{call_word, store};
use crate::sys::blocks::{Block, HEAD_WORDS, Pool};
use crate::sys::sync::AtomicU64;

/// Word in the head of a block of answers: how many of its bytes are filled.
pub(super) const FILLED: usize = 0;

/// Bytes before each answer: the number of its call in the batch and its length, both little-endian.
const ENTRY_HEAD: usize = 8;

/// The answers that there are so far.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    block: Option<Block>,
    filled: usize,
}

/// There is no block left of the size that is needed, or the answer is longer than can be said. Nothing has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct NotGathered;

impl Gathered {
    /// Adds the answer of call `member` of the batch whose block has this `head`.
    pub(crate) fn add(
        &mut self,
        head: &[AtomicU64; HEAD_WORDS],
        member: u32,
        answer: &[u8],
        pool: &'static Pool,
    ) -> Result<(), NotGathered> {
        let length = u32::try_from(answer.len()).map_err(|_| NotGathered)?;
        let end = self.filled + ENTRY_HEAD + answer.len();
        let mut larger = None;
        if self.block.as_ref().is_none_or(|block| block.len() < end) {
            let mut block = pool.take(end.saturating_mul(2)).or_else(|| pool.take(end)).ok_or(NotGathered)?;
            let so_far = self.block.as_ref().and_then(|block| block.get(..self.filled)).unwrap_or_default();
            block.get_mut(..so_far.len()).ok_or(NotGathered)?.copy_from_slice(so_far);
            larger = Some(block);
        }
        let block = larger.as_mut().or(self.block.as_mut()).ok_or(NotGathered)?;
        let entry = block.get_mut(self.filled..end).ok_or(NotGathered)?;
        let (about, text) = entry.split_at_mut_checked(ENTRY_HEAD).ok_or(NotGathered)?;
        let both = u64::from(length) << 32 | u64::from(member);
        about.copy_from_slice(&both.to_le_bytes());
        text.copy_from_slice(answer);
        store(&block.words()[FILLED], end as u64);
        if let Some(block) = larger {
            store(&head[call_word::GATHERED], block.place());
            self.block = Some(block);
        }
        self.filled = end;
        Ok(())
    }

    /// The answers, in the order in which they came.
    pub(crate) fn answers(&self) -> impl Iterator<Item = (u32, &[u8])> {
        let filled = self.block.as_ref().and_then(|block| block.get(..self.filled)).unwrap_or_default();
        entries(filled).flatten().map(|(member, answer)| (member, filled.get(answer).unwrap_or_default()))
    }

    /// Bytes of them.
    pub(crate) fn filled(&self) -> usize {
        self.filled
    }

    /// Bytes that they take up.
    pub(crate) fn held(&self) -> usize {
        self.block.as_ref().map_or(0, |block| block.len())
    }
}

/// The answers in what is filled of a block; None for what makes no sense.
pub(super) fn entries(filled: &[u8]) -> impl Iterator<Item = Option<(u32, Range<usize>)>> {
    let mut at = 0;
    std::iter::from_fn(move || {
        let rest = filled.get(at..).filter(|rest| !rest.is_empty())?;
        let entry = rest.first_chunk().and_then(|about| {
            let both = u64::from_le_bytes(*about);
            let start = at + ENTRY_HEAD;
            let end = start.checked_add(usize::try_from(both >> 32).ok()?)?;
            let member = u32::try_from(both & u64::from(u32::MAX)).ok()?;
            (end <= filled.len()).then_some((member, start..end))
        });
        at = entry.as_ref().map_or(filled.len(), |(_, answer)| answer.end);
        Some(entry)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head() -> [AtomicU64; HEAD_WORDS] {
        std::array::from_fn(|_| AtomicU64::default())
    }

    #[test]
    fn answers_come_back_in_the_order_in_which_they_came_through_every_larger_block() {
        let (_, _, pool) = crate::arena::of_connections(1);
        let (mut gathered, head) = (Gathered::default(), head());
        let answers: Vec<Vec<u8>> = (0..100_usize).map(|index| vec![b'a'; index * 37 % 1_000]).collect();
        for (index, answer) in answers.iter().enumerate() {
            gathered.add(&head, 99 - u32::try_from(index).unwrap(), answer, pool).unwrap();
            let there: Vec<_> = gathered.answers().collect();
            assert_eq!(there.len(), index + 1);
            assert_eq!(there[index], (99 - u32::try_from(index).unwrap(), answer.as_slice()));
            let block = gathered.block.as_ref().unwrap();
            assert_eq!(head[call_word::GATHERED].load(crate::sys::sync::Ordering::Relaxed), block.place());
        }
        assert!(gathered.answers().map(|(_, answer)| answer.to_vec()).eq(answers));
    }

    #[test]
    fn an_answer_for_which_there_is_no_block_changes_nothing() {
        let (_, _, pool) = crate::arena::of_connections(1);
        let (mut gathered, head) = (Gathered::default(), head());
        gathered.add(&head, 3, b"three", pool).unwrap();
        let all: Vec<Block> = std::iter::from_fn(|| pool.take(1 << 29)).collect();
        assert!(!all.is_empty());
        assert_eq!(gathered.add(&head, 4, &vec![0; 1 << 29], pool), Err(NotGathered));
        assert!(gathered.answers().eq([(3, b"three".as_slice())]));
    }

    #[test]
    fn what_makes_no_sense_is_told_and_nothing_behind_it_is_read() {
        for garbage in [&[0xff; 8][..], &[1, 0, 0, 0, 1, 0, 0, 0], &[1, 2, 3]] {
            assert!(entries(garbage).eq([None]), "{garbage:?}");
        }
        assert!(entries(&[]).next().is_none());
        let sound = [7, 0, 0, 0, 1, 0, 0, 0, b'x', 9];
        assert!(entries(&sound).eq([Some((7, 8..9)), None]));
    }
}
