//! Which worker counts its clients' addresses in which region of the shared memory (`limits.per_address`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use serde::{Deserialize, Serialize};

use crate::addresses::{AllAddresses, REGIONS};
use crate::config::COUNTED_AT_ONCE;
use crate::supervisor::policy::state::WorkerId;
use crate::sys::exec::LeftOpen;

// What the configuration is warned of.
const _: () = assert!(REGIONS == COUNTED_AT_ONCE);

/// Whose each region is. Made when the first worker needs one, and never given up.
#[derive(Debug)]
pub(in crate::supervisor) struct AddressRegions {
    counts: AllAddresses,
    owners: Vec<Option<WorkerId>>,
    has_complained: bool,
}

/// What is left of it to another program.
#[derive(Debug, Serialize, Deserialize)]
pub(in crate::supervisor) struct SavedRegions {
    memory: RawFd,
    owners: Vec<Option<WorkerId>>,
}

impl AddressRegions {
    pub(in crate::supervisor) fn new() -> io::Result<Self> {
        Ok(Self { counts: AllAddresses::create()?, owners: Vec::new(), has_complained: false })
    }

    pub(in crate::supervisor) fn leave(&self) -> SavedRegions {
        SavedRegions { memory: self.memory().as_raw_fd(), owners: self.owners.clone() }
    }

    /// None where it is of another form: what the workers so far have counted is not known then.
    pub(in crate::supervisor) fn inherit(left: SavedRegions, descriptors: &mut LeftOpen) -> Option<Self> {
        match descriptors.take(left.memory).and_then(AllAddresses::open) {
            Ok(counts) => Some(Self { counts, owners: left.owners, has_complained: false }),
            Err(error) => {
                tracing::warn!(%error, "limits.per_address begins anew with the workers that follow");
                None
            }
        }
    }

    pub(in crate::supervisor) fn memory(&self) -> BorrowedFd<'_> {
        self.counts.memory()
    }

    /// A region for a worker that is about to be forked. None where all are others'.
    pub(in crate::supervisor) fn give(&mut self, worker: WorkerId) -> Option<usize> {
        let free = self.owners.iter().position(Option::is_none).unwrap_or(self.owners.len());
        if free == REGIONS {
            if !std::mem::replace(&mut self.has_complained, true) {
                tracing::warn!(
                    "more than {REGIONS} workers: limits.per_address has no effect in the last ones (said once)"
                );
            }
            return None;
        }
        match self.owners.get_mut(free) {
            Some(owner) => *owner = Some(worker),
            None => self.owners.push(Some(worker)),
        }
        self.counts.is_used(free);
        Some(free)
    }

    /// Clears the regions of those that are gone. One that can't be cleared stays its owner's.
    pub(in crate::supervisor) fn clear(&mut self, is_gone: impl Fn(WorkerId) -> bool) {
        for (region, owner) in self.owners.iter_mut().enumerate() {
            if owner.is_some_and(&is_gone) && self.counts.clear(region).is_ok() {
                *owner = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_is_anothers_only_when_its_owner_is_gone() {
        let mut regions = AddressRegions::new().unwrap();
        assert_eq!((regions.give(1), regions.give(2), regions.give(3)), (Some(0), Some(1), Some(2)));
        regions.clear(|worker| worker == 2);
        assert_eq!((regions.give(4), regions.give(5)), (Some(1), Some(3)));
        for worker in 6..=u32::try_from(REGIONS).unwrap() + 1 {
            assert!(regions.give(worker).is_some(), "{worker}");
        }
        assert_eq!(regions.give(1_000), None);
    }
}
