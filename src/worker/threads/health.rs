//! What the poller says of the worker's health: a thread that is stuck, limits that are reached, that it lives.
//!
//! When it is time for that is decided in `overdue`, `recycle` and `life`; what follows is the supervisor's.

use std::time::Instant;

use crate::arena::Key;
use crate::channel::FromWorker;
use crate::sys::resident;
use crate::worker::guard::overdue::Due;
use crate::worker::shared::Shared;
use crate::worker::threads::poller_state::PollerState;

impl PollerState {
    /// Says so where this worker has served enough.
    pub(in crate::worker) fn look_at_limits(&mut self, now: Instant) {
        let begun = self.arena.begun();
        let why = self.recycle.count(begun).or_else(|| self.measure_memory(now));
        if let Some(why) = why {
            self.say(&FromWorker::Retiring { why });
        }
    }

    fn measure_memory(&mut self, now: Instant) -> Option<String> {
        if !self.recycle.measures(now) {
            return None;
        }
        let own = resident::anonymous().and_then(|bytes| {
            if self.recycle.is_suspicious(bytes) { resident::own().map(Some) } else { Ok(None) }
        });
        match own {
            Ok(None) => None,
            Ok(Some(own)) => {
                let done = Instant::now();
                self.recycle.measured(own, done - now, done)
            }
            Err(error) => {
                tracing::warn!(%error, "recycle.max_memory has no effect: memory can't be measured");
                self.recycle.give_up_measuring();
                None
            }
        }
    }

    /// The moment has come at which a thread is stuck, if it is still in that call.
    pub(in crate::worker) fn has_stuck(&mut self, key: Key, number: u64, shared: &Shared) {
        let Due::Wedged(method) = shared.overdue.lock().is_due((key, number)) else {
            return;
        };
        let method = method.map_or("?", |method| shared.method_name(method)).to_owned();
        self.say(&FromWorker::Wedged { method });
    }

    /// A worker whose threads don't all come back does not run its stop hooks, which may wait for them: it is killed.
    pub(in crate::worker) fn say_only_stuck(&mut self) {
        if !std::mem::replace(&mut self.said_only_stuck, true) {
            self.say(&FromWorker::OnlyStuckThreadsLeft);
        }
    }

    /// Somebody has connected to a worker that had no connection.
    pub(in crate::worker) fn is_wanted_again(&mut self, now: Instant) {
        if self.life.is_to_tell(now) {
            self.say(&FromWorker::HereIAm);
        }
    }
}
