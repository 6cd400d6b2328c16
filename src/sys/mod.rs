//! The operating system, made safe: the only module that may contain `unsafe`.
//!
//! Everything above calls these functions and never a raw system call that needs `unsafe`. Each file covers
//! one part of the kernel's interface; each `unsafe` block stands under the reason why it is sound.
#![allow(unsafe_code)]

pub(crate) mod allocator;
pub(crate) mod blocks;
pub(crate) mod child;
pub(crate) mod clock;
pub(crate) mod cpus;
pub(crate) mod culprit;
pub(crate) mod descriptors;
pub(crate) mod exec;
pub(crate) mod family;
pub(crate) mod last_moment;
pub(crate) mod limits;
pub(crate) mod memory;
pub(crate) mod oom;
pub(crate) mod peer;
pub(crate) mod process;
pub(crate) mod resident;
pub(crate) mod seqpacket;
pub(crate) mod signals;
pub(crate) mod socket;
pub(crate) mod socket_file;
pub(crate) mod sync;
pub(crate) mod tcp;
pub(crate) mod text;
pub(crate) mod title;
