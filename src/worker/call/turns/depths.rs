//! Which of many queues is the longest, in constant time: queues of equal length form a list, and a queue that grows or
//! shrinks by one moves to the next list.

const NONE: u32 = u32::MAX;

/// The lists, by length. The links of their members are kept by whoever keeps the queues.
#[derive(Debug, Default)]
pub(super) struct Depths {
    /// By length; that of length 0 is not kept.
    heads: Vec<u32>,
    deepest: usize,
}

/// A queue's place in the list of its length.
#[derive(Debug, Clone, Copy)]
pub(super) struct Link {
    before: u32,
    after: u32,
    depth: usize,
}

impl Default for Link {
    fn default() -> Self {
        Self { before: NONE, after: NONE, depth: 0 }
    }
}

impl Depths {
    /// Queue `id` has this length from now on.
    pub(super) fn set(&mut self, links: &mut [Link], id: u32, depth: usize) {
        if depth == 0 && links[id as usize].depth == 0 {
            return;
        }
        self.unlink(links, id);
        if depth >= self.heads.len() {
            self.heads.resize(depth + 1, NONE);
        }
        let head = if depth == 0 { NONE } else { std::mem::replace(&mut self.heads[depth], id) };
        links[id as usize] = Link { before: NONE, after: head, depth };
        if head != NONE {
            links[head as usize].before = id;
        }
        self.deepest = self.deepest.max(depth);
        while self.heads.get(self.deepest).is_some_and(|head| *head == NONE) && self.deepest > 0 {
            self.deepest -= 1;
        }
    }

    /// A queue of the greatest length, with that. None where all are empty.
    pub(super) fn deepest(&self) -> Option<(u32, usize)> {
        let head = *self.heads.get(self.deepest).filter(|_| self.deepest > 0)?;
        Some((head, self.deepest))
    }

    fn unlink(&mut self, links: &mut [Link], id: u32) {
        let Link { before, after, depth } = links[id as usize];
        if depth == 0 {
            return;
        }
        match before {
            NONE => self.heads[depth] = after,
            before => links[before as usize].after = after,
        }
        if after != NONE {
            links[after as usize].before = before;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_is_known_whatever_grows_and_shrinks() {
        let (mut depths, mut links) = (Depths::default(), vec![Link::default(); 4]);
        assert_eq!(depths.deepest(), None);
        let mut lengths = [0_usize; 4];
        // 1 more or 1 less, of which queue.
        let steps = [
            (0, 1),
            (1, 1),
            (1, 1),
            (2, 1),
            (1, -1),
            (2, 1),
            (2, 1),
            (0, -1),
            (2, -1),
            (2, -1),
            (1, -1),
            (2, -1),
        ];
        for (id, more) in steps {
            lengths[id] = lengths[id].saturating_add_signed(more);
            depths.set(&mut links, u32::try_from(id).unwrap(), lengths[id]);
            let longest = lengths.into_iter().max().filter(|longest| *longest > 0);
            assert_eq!(depths.deepest().map(|(_, depth)| depth), longest, "{lengths:?}");
            if let Some((id, depth)) = depths.deepest() {
                assert_eq!(lengths[id as usize], depth);
            }
        }
        assert_eq!(depths.deepest(), None);
    }
}
