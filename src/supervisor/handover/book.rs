//! The supervisor's book of connections: those in escrow, how many there may be, and when the book is looked at again.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use crate::config::Config;
use crate::supervisor::policy::Policy;
use crate::supervisor::policy::balance::Balance;
use crate::supervisor::policy::escrow::Escrow;
use crate::supervisor::policy::state::WorkerId;
use crate::sys::limits;
use crate::worker;

/// The most connections that a worker may ask to have kept before it hears of more.
const WINDOW: usize = 1024;

/// When it is tried again to hand over what the kernel would not take.
const TRY_AGAIN: Duration = Duration::from_millis(20);

/// What the supervisor has of connections.
#[derive(Debug)]
pub(in crate::supervisor) struct Handover {
    pub(in crate::supervisor) escrow: Escrow<OwnedFd, OwnedFd>,
    /// So many may be kept.
    pub(in crate::supervisor) most: usize,
    /// So many may the workers hold.
    pub(in crate::supervisor) connections: usize,
    /// Something may have changed in how many each worker may hold.
    pub(in crate::supervisor) shares_may_change: bool,
    /// Something may have changed in how many each may yet ask to have kept.
    pub(in crate::supervisor) credit_may_change: bool,
    pub(in crate::supervisor) retry: Retry,
    pub(in crate::supervisor) balance: Balance,
    /// Workers that could not be asked to adopt, and until when they are not asked again.
    pub(in crate::supervisor) refuse_until: BTreeMap<WorkerId, Instant>,
    pub(in crate::supervisor) has_complained: bool,
}

impl Handover {
    pub(in crate::supervisor) fn new(config: &Config) -> Self {
        let mut handover = Self {
            escrow: Escrow::default(),
            most: 0,
            connections: 0,
            shares_may_change: false,
            credit_may_change: false,
            retry: Retry::default(),
            balance: Balance::default(),
            refuse_until: BTreeMap::new(),
            has_complained: false,
        };
        handover.resize(config);
        handover
    }

    /// The descriptor limit, or the configuration, is another one.
    pub(in crate::supervisor) fn resize(&mut self, config: &Config) {
        let descriptors = limits::descriptors();
        self.most = worker::kept(config, descriptors);
        self.connections = worker::connections(config, descriptors);
        self.shares_changed();
    }

    /// How many connections each worker may hold is computed anew in this round.
    pub(in crate::supervisor) fn shares_changed(&mut self) {
        (self.shares_may_change, self.credit_may_change) = (true, true);
    }

    /// Connections of each of `workers` that are kept beyond what it may hold: it has not told of their end yet.
    pub(in crate::supervisor) fn slack(&self, workers: usize) -> usize {
        self.most.saturating_sub(self.connections) / workers.max(1)
    }

    /// How many connections each of `workers` may ask to have kept in one go. With as many granted to all of them there is
    /// room for all that they may hold.
    pub(in crate::supervisor) fn window(&self, workers: usize) -> usize {
        self.slack(workers).clamp(1, WINDOW)
    }

    /// Once, or a service without room would say nothing else.
    pub(in crate::supervisor) fn complain(&mut self, why: &str) {
        if !std::mem::replace(&mut self.has_complained, true) {
            tracing::warn!(
                kept = self.escrow.len(),
                "some connections can't be kept and would end with their worker (said once): {why}; raise the \
                 descriptor limit (ulimit -n, LimitNOFILE=) for more"
            );
        }
    }
}

/// When connections are handed over that the kernel would not take.
#[derive(Debug, Default)]
pub(in crate::supervisor) struct Retry {
    at: Option<Instant>,
}

impl Retry {
    pub(in crate::supervisor) fn later(&mut self, now: Instant) {
        self.at = Some(now + TRY_AGAIN);
    }
}

impl Policy for Retry {
    type Seen<'a> = ();
    /// What waits may be handed over.
    type Decision = bool;

    fn next_due(&self) -> Option<Instant> {
        self.at
    }

    fn due(&mut self, now: Instant, (): ()) -> bool {
        if self.at.is_none_or(|at| at <= now) {
            self.at = None;
        }
        self.at.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_kernel_would_not_take_waits_for_20_ms_and_nothing_else_does() {
        let (start, mut retry) = (Instant::now(), Retry::default());
        assert!(retry.due(start, ()));
        retry.later(start);
        assert_eq!(retry.next_due(), Some(start + TRY_AGAIN));
        assert!(!retry.due(start + TRY_AGAIN / 2, ()));
        assert!(retry.due(start + TRY_AGAIN, ()));
        assert_eq!(retry.next_due(), None);
    }
}
