//! Giving workers their regions for clients' addresses, and clearing those of workers that are gone.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use super::regions::AddressRegions;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::state::WorkerId;

impl Supervisor {
    /// The region of a worker that is about to be forked, and the memory that it is in. None where addresses don't count.
    pub(in crate::supervisor) fn region_for(
        &mut self,
        worker: WorkerId,
        per_address: usize,
    ) -> io::Result<Option<(usize, OwnedFd)>> {
        if per_address == 0 {
            return Ok(None);
        }
        let regions = match self.addresses.take() {
            Some(regions) => regions,
            None => AddressRegions::new()?,
        };
        let regions = self.addresses.insert(regions);
        let Some(region) = regions.give(worker) else {
            return Ok(None);
        };
        Ok(Some((region, regions.memory().as_fd().try_clone_to_owned()?)))
    }

    /// What a worker has counted goes when it has ended and all its connections are others', who count them too: in between
    /// they count twice, so that nobody has more than may be.
    pub(in crate::supervisor) fn clear_addresses(&mut self) {
        if let Some(regions) = &mut self.addresses {
            let escrow = &self.handover.escrow;
            regions.clear(|worker| !escrow.knows(worker));
        }
    }
}
