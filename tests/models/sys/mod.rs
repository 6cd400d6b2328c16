//! What stands below the code that is modelled: loom's words instead of the machine's, and memory made of them.

pub(crate) mod memory;
#[path = "../../../src/sys/peer.rs"]
#[allow(dead_code, reason = "no model asks who called")]
pub(crate) mod peer;
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

        pub(crate) fn take(&'static self, _at_least: usize) -> Option<Block> {
            None
        }
    }

    #[derive(Debug)]
    pub(crate) struct Block {
        words: [super::sync::AtomicU64; HEAD_WORDS],
        bytes: Vec<u8>,
    }

    impl Block {
        pub(crate) fn words(&self) -> &[super::sync::AtomicU64; HEAD_WORDS] {
            &self.words
        }

        pub(crate) fn place(&self) -> u64 {
            0
        }
    }

    impl std::ops::Deref for Block {
        type Target = [u8];
        fn deref(&self) -> &[u8] {
            &self.bytes
        }
    }

    impl std::ops::DerefMut for Block {
        fn deref_mut(&mut self) -> &mut [u8] {
            &mut self.bytes
        }
    }
}
