//! What stands below the code that is modelled: loom's words instead of the machine's, and memory made of them.

pub(crate) mod memory;
pub(crate) mod sync;

/// What a reader has to know of the word that names a culprit, which no model uses.
pub(crate) mod culprit {
    pub(crate) const STRANGER: u64 = u64::MAX;
    pub(crate) const STACK_OVERFLOW: u64 = 1 << 32;
}

/// Blocks are under a lock, and no model uses any.
pub(crate) mod blocks {
    use std::io;
    use std::os::fd::BorrowedFd;

    pub(crate) const HEAD_WORDS: usize = 8;
    pub(crate) const HEAD: usize = HEAD_WORDS * 8;

    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(crate) struct Spans;

    impl Spans {
        pub(crate) fn new(_bytes: usize, _owners: usize) -> Self {
            Self
        }

        pub(crate) fn bytes(&self) -> Option<usize> {
            Some(HEAD)
        }
    }

    #[derive(Debug)]
    pub(crate) struct Pool;

    impl Pool {
        pub(crate) fn open(_: BorrowedFd<'_>, _base: usize, _: &Spans) -> io::Result<&'static Self> {
            Err(io::ErrorKind::Unsupported.into())
        }
    }
}
