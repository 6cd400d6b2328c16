//! A thread of a worker: what all of them share, and what is its own.

use std::time::Instant;

use crate::arena::Row;
use crate::rpc::MethodIndex;
use crate::sys::blocks::Block;
use crate::sys::clock::{self, Moment};
use crate::worker::connection::chunk::Scratch;
use crate::worker::shared::Shared;
use crate::worker::threads::role::Term;

/// One thread's part in the work: what all share, and what is its own.
pub(in crate::worker) struct WorkerThread {
    pub(in crate::worker) shared: &'static Shared,
    pub(in crate::worker) row: Row,
    /// Its number in the worker, from 0.
    pub(in crate::worker) thread: usize,
    /// Some while this thread is the poller.
    pub(in crate::worker) term: Option<Term>,
    /// The method in quarantine of which this thread runs the one call that is tried.
    pub(in crate::worker) trial: Option<MethodIndex>,
    /// Bytes that the answer to the call is expected to add which this thread has looked at last.
    pub(in crate::worker) expects: usize,
    /// What is set aside in the buffers for the answer of the call that this thread runs.
    pub(in crate::worker) set_aside: usize,
    /// The moment at which what is done now began; read anew after whatever takes time.
    pub(in crate::worker) now: Instant,
    /// The same moment on the clock that all processes share, in nanoseconds.
    pub(in crate::worker) now_ns: u64,
    /// What was read last, for the poller.
    pub(in crate::worker) scratch: Scratch,
    /// The answer being written; kept for its memory.
    pub(in crate::worker) answer: Vec<u8>,
    /// Memory for answers that wait to be sent.
    pub(in crate::worker) spare: Option<Block>,
}

impl WorkerThread {
    pub(in crate::worker) fn new(shared: &'static Shared, row: Row, thread: usize) -> Self {
        let scratch = Scratch::new(shared.pool);
        Self {
            shared,
            row,
            thread,
            term: None,
            trial: None,
            expects: 0,
            set_aside: 0,
            now: Instant::now(),
            now_ns: clock::monotonic_ns(),
            scratch,
            answer: Vec::new(),
            spare: None,
        }
    }

    pub(in crate::worker) fn thread(&self) -> usize {
        self.thread
    }

    pub(in crate::worker) fn now(&self) -> Instant {
        self.now
    }

    /// The moment at which what is done now began, for whoever goes on with it elsewhere too.
    pub(in crate::worker) fn moment(&self) -> Moment {
        Moment { instant: self.now, ns: self.now_ns }
    }

    /// Something new begins, now.
    pub(in crate::worker) fn look_at_the_clock(&mut self) -> Instant {
        let before = std::mem::replace(&mut self.now, Instant::now());
        self.now_ns += clock::whole_ns(self.now.saturating_duration_since(before));
        self.now
    }
}
