//! The memfd of a model: one for each run, of loom's words. Every mapping is the whole of it.

use std::cell::Cell;
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::{BorrowedFd, OwnedFd};

use super::sync::{AtomicU64, Ordering, fence};

pub(crate) const WORD: usize = 8;
/// A small one: each word costs loom time.
pub(crate) const PAGE: usize = 64;

thread_local! {
    static SIZE: Cell<usize> = const { Cell::new(0) };
}

loom::lazy_static! {
    static ref WORDS: Vec<AtomicU64> = std::iter::repeat_with(|| AtomicU64::new(0)).take(SIZE.get() / WORD).collect();
}

/// The descriptor stands for nothing.
pub(crate) fn create_sealed(_: &CStr, bytes: usize) -> io::Result<OwnedFd> {
    SIZE.set(bytes);
    Ok(File::open("/dev/null")?.into())
}

pub(crate) fn sealed_size(_: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(SIZE.get())
}

pub(crate) fn held(fd: BorrowedFd<'_>) -> io::Result<usize> {
    sealed_size(fd)
}

/// No model follows a place to the bytes there.
pub(crate) fn copy(_: BorrowedFd<'_>, _: Range<usize>) -> Option<Vec<u8>> {
    None
}

#[derive(Debug)]
pub(crate) struct WritableMemory(&'static [AtomicU64]);

impl WritableMemory {
    pub(crate) fn map(_: BorrowedFd<'_>, _bytes: usize) -> io::Result<Self> {
        Ok(Self(&WORDS))
    }

    pub(crate) fn word(&self, offset: usize) -> Option<&AtomicU64> {
        self.0.get(offset / WORD)
    }

    pub(crate) fn words(&self, offset: usize, count: usize) -> Option<&[AtomicU64]> {
        self.0.get(offset / WORD..)?.get(..count)
    }
}

#[derive(Debug)]
pub(crate) struct ReadableMemory(&'static [AtomicU64]);

impl ReadableMemory {
    pub(crate) fn map(_: BorrowedFd<'_>, _bytes: usize) -> io::Result<Self> {
        Ok(Self(&WORDS))
    }

    /// As the real one: relaxed, and a fence after it.
    pub(crate) fn load(&self, offset: usize) -> Option<u64> {
        let value = self.0.get(offset / WORD)?.look(Ordering::Relaxed);
        fence(Ordering::Acquire);
        Some(value)
    }
}
