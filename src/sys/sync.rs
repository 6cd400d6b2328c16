//! The atomics and locks of code whose interleavings are checked, not only tried.
//!
//! Whoever shares words between threads without a lock, or between processes, takes them from here: the models in
//! `tests/models` compile those very files with loom's words in the place of this file, and run every course that two or
//! three threads can take. Nothing may stand here that loom has no counterpart of.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

pub(crate) use parking_lot::{Condvar, Mutex};
