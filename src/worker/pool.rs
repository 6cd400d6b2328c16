//! The pool: the threads that run handlers, and the bounded queue before them.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;

use super::connection::Connection;
use super::flow::Hand;
use crate::rpc::{MethodIndex, RawJson, Span};

/// A call on its way to a pool thread. It owns its message, in which params and id are places.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) connection: Arc<Connection>,
    /// Which of the connection's calls it is.
    pub(super) number: u64,
    pub(super) method: MethodIndex,
    pub(super) deadline: Instant,
    pub(super) allowed: Duration,
    pub(super) params: Option<Span>,
    pub(super) id: Option<Span>,
    pub(super) message: Box<[u8]>,
}

impl Job {
    pub(super) fn params(&self) -> Option<RawJson<'_>> {
        self.params.map(|span| span.in_message(&self.message))
    }

    pub(super) fn id(&self) -> Option<RawJson<'_>> {
        self.id.map(|span| span.in_message(&self.message))
    }
}

/// The body of a pool thread.
pub(super) fn serve(mut hand: Hand, queue: &Receiver<Job>) {
    while let Ok(job) = queue.recv() {
        hand.run(&job);
    }
}
