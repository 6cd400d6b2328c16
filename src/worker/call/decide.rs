//! Whether a call may go on: the one place that decides it, for calls alone and in batches, on the poller and in the pool.
//!
//! It is asked twice: before a call is queued, and right before a handler runs it, which may be much later. The checks have the
//! same order both times. The deadline goes first, because a caller whose time is up is told so whatever else is wrong. A place
//! goes last, because it is taken by asking for it and would have to be given back.

use std::time::Instant;

use super::dispatch::Refused;
use crate::rpc::MethodIndex;
use crate::worker::guard::quarantine::Shut;

/// What stands in the way of one call, asked for only as far as the decision needs it.
pub(in crate::worker) trait Checks {
    /// What the call gets where nothing does.
    type Place;

    /// There is room in the buffers for the answer that is expected.
    fn has_memory(&mut self) -> bool;

    /// The error is that the method is in quarantine.
    fn quarantine(&mut self) -> Result<(), (MethodIndex, Shut)>;

    /// Takes a place in the queue, in the method's list or on this thread.
    fn place(&mut self) -> Result<Self::Place, Refused>;
}

/// Why a call is answered without being run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum RejectReason {
    /// Its deadline has passed: -32001.
    Late,
    /// The answer that it is expected to have does not fit into the buffers: -32000.
    NoMemory,
    /// -32004.
    Quarantined(MethodIndex, Shut),
    /// Too many calls wait, or its turn would come too late: -32000.
    Crowded(Refused),
}

/// Decides about a call with this deadline.
pub(in crate::worker) fn decide<C: Checks>(
    deadline: Instant,
    checks: &mut C,
    now: Instant,
) -> Result<C::Place, RejectReason> {
    if now >= deadline {
        return Err(RejectReason::Late);
    }
    if !checks.has_memory() {
        return Err(RejectReason::NoMemory);
    }
    checks.quarantine().map_err(|(method, shut)| RejectReason::Quarantined(method, shut))?;
    checks.place().map_err(RejectReason::Crowded)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const METHOD: MethodIndex = MethodIndex(3);
    const SHUT: Shut = Shut { retry_after: Duration::from_secs(1), ask: true };
    const FULL: Refused = Refused { retry_after: Duration::from_secs(2) };

    /// Says what it is told to, and counts what it is asked.
    struct Told {
        has_memory: bool,
        is_shut: bool,
        is_full: bool,
        asked: Vec<&'static str>,
    }

    impl Checks for Told {
        type Place = ();

        fn has_memory(&mut self) -> bool {
            self.asked.push("memory");
            self.has_memory
        }

        fn quarantine(&mut self) -> Result<(), (MethodIndex, Shut)> {
            self.asked.push("quarantine");
            if self.is_shut { Err((METHOD, SHUT)) } else { Ok(()) }
        }

        fn place(&mut self) -> Result<(), Refused> {
            self.asked.push("place");
            if self.is_full { Err(FULL) } else { Ok(()) }
        }
    }

    #[test]
    fn the_first_reason_counts_and_nothing_behind_it_is_asked_or_taken() {
        let now = Instant::now();
        let table = [
            // late, memory, shut, full, decided, asked
            (false, true, false, false, Ok(()), 3),
            (false, true, false, true, Err(RejectReason::Crowded(FULL)), 3),
            (false, true, true, false, Err(RejectReason::Quarantined(METHOD, SHUT)), 2),
            (false, true, true, true, Err(RejectReason::Quarantined(METHOD, SHUT)), 2),
            (false, false, false, false, Err(RejectReason::NoMemory), 1),
            (false, false, false, true, Err(RejectReason::NoMemory), 1),
            (false, false, true, false, Err(RejectReason::NoMemory), 1),
            (false, false, true, true, Err(RejectReason::NoMemory), 1),
            (true, true, false, false, Err(RejectReason::Late), 0),
            (true, true, false, true, Err(RejectReason::Late), 0),
            (true, true, true, false, Err(RejectReason::Late), 0),
            (true, true, true, true, Err(RejectReason::Late), 0),
            (true, false, false, false, Err(RejectReason::Late), 0),
            (true, false, false, true, Err(RejectReason::Late), 0),
            (true, false, true, false, Err(RejectReason::Late), 0),
            (true, false, true, true, Err(RejectReason::Late), 0),
        ];
        for (is_late, has_memory, is_shut, is_full, decided, asked) in table {
            let deadline = if is_late { now } else { now + Duration::from_nanos(1) };
            let mut checks = Told { has_memory, is_shut, is_full, asked: Vec::new() };
            assert_eq!(
                decide(deadline, &mut checks, now),
                decided,
                "{is_late} {has_memory} {is_shut} {is_full}"
            );
            assert_eq!(checks.asked, ["memory", "quarantine", "place"][..asked]);
        }
    }
}
