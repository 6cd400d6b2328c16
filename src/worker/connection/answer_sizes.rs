//! How long answers have been lately, of each method and on each connection: what the next one has to have room for.
//!
//! `call` asks before it runs a call, while it can still be refused, and tells how long the answer was.

use std::sync::atomic::{AtomicUsize, Ordering};

use crate::rpc::MethodIndex;

/// What is left of a long answer after each shorter one: an eighth is forgotten. Some forty small answers forget one of a mebibyte.
const FORGOTTEN: usize = 8;

/// How long answers have been lately: of one method, or on one connection. Threads that meet here may lose an answer: it is an estimate.
#[derive(Debug, Default)]
pub(in crate::worker) struct AnswerSize(AtomicUsize);

impl AnswerSize {
    /// Bytes that an answer is expected to have; None where there was none yet.
    pub(in crate::worker) fn expected(&self) -> Option<usize> {
        Some(self.0.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)
    }

    /// An answer had so many bytes.
    pub(in crate::worker) fn answered(&self, bytes: usize) {
        let before = self.0.load(Ordering::Relaxed);
        let next = bytes.max(before - before / FORGOTTEN);
        // Written only where it changes: every thread reads it for every call.
        if next != before {
            self.0.store(next, Ordering::Relaxed);
        }
    }
}

/// Those of all methods, by a method's number.
#[derive(Debug)]
pub(in crate::worker) struct AnswerSizes(Vec<AnswerSize>);

impl AnswerSizes {
    pub(in crate::worker) fn new(methods: usize) -> Self {
        Self(std::iter::repeat_with(AnswerSize::default).take(methods).collect())
    }

    /// Bytes that an answer of this method is expected to have. 0 for one that has not answered yet.
    pub(in crate::worker) fn expected(&self, method: MethodIndex) -> usize {
        self.0.get(method.0).and_then(AnswerSize::expected).unwrap_or(0)
    }

    /// An answer of this method had so many bytes.
    pub(in crate::worker) fn answered(&self, method: MethodIndex, bytes: usize) {
        if let Some(size) = self.0.get(method.0) {
            size.answered(bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_answer_is_expected_again_and_forgotten_little_by_little() {
        let (sizes, method) = (AnswerSizes::new(2), MethodIndex(1));
        assert_eq!(sizes.expected(method), 0);
        for (answered, expected) in
            [(100, 100), (1_000, 1_000), (1_000, 1_000), (0, 875), (800, 800), (50, 700)]
        {
            sizes.answered(method, answered);
            assert_eq!(sizes.expected(method), expected, "after an answer of {answered}");
        }
        assert_eq!(sizes.expected(MethodIndex(0)), 0, "of another method");
        assert_eq!(sizes.expected(MethodIndex(2)), 0, "of none");
    }

    #[test]
    fn a_method_whose_answers_are_small_again_is_one_of_small_answers_soon() {
        let (sizes, method) = (AnswerSizes::new(1), MethodIndex(0));
        sizes.answered(method, 1 << 20);
        let runs = std::iter::repeat_with(|| sizes.answered(method, 100))
            .take_while(|()| sizes.expected(method) >= 4096);
        let runs = runs.count();
        assert!((30..60).contains(&runs), "{runs} runs");
    }
}
