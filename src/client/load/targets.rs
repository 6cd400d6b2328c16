//! Which address each connection of a load is made to, where the server was given by a name.
//!
//! The engine asks for an address when it opens a connection and tells how that went. It never waits here but for the first look-up.

use std::io;
use std::time::Duration;

use super::super::look_up::{self, LookUp};
use super::tally::later;
use crate::config::{Address, Endpoint};

/// A name is looked up once for all connections that are made within this time.
const LOOK_UP_AGAIN: Duration = Duration::from_secs(1);

#[derive(Debug)]
pub(super) struct Targets {
    endpoint: Endpoint,
    addresses: Vec<Address>,
    /// The address that took the last connection: others begin there too.
    preferred: usize,
    looking: Option<LookUp>,
    next_look_up: u64,
}

impl Targets {
    /// `limit`: how long the first look-up may take.
    pub(super) fn look_up(endpoint: Endpoint, now: u64, limit: Duration) -> io::Result<Self> {
        let addresses = look_up::addresses(&endpoint, limit)?;
        let next_look_up = later(now, LOOK_UP_AGAIN);
        Ok(Self { endpoint, addresses, preferred: 0, looking: None, next_look_up })
    }

    /// As the server was given.
    pub(super) fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    pub(super) fn count(&self) -> usize {
        self.addresses.len()
    }

    /// Some connection is to be made: looks the name up again if that was long ago, without waiting for it.
    pub(super) fn refresh(&mut self, now: u64) {
        if !self.endpoint.is_name() {
            return;
        }
        match self.looking.take().map(LookUp::finished) {
            Some(Ok(Ok(found))) if found != self.addresses => {
                self.addresses = found;
                self.preferred = 0;
            }
            // While the name can't be looked up, what was found before is as good as anything.
            Some(Ok(Ok(_) | Err(_))) => {}
            Some(Err(looking)) => self.looking = Some(looking),
            None if now >= self.next_look_up => {
                self.next_look_up = later(now, LOOK_UP_AGAIN);
                self.looking = LookUp::begin(&self.endpoint).ok();
            }
            None => {}
        }
    }

    /// The address for a connection that has been tried in vain at so many. None if there is no further one.
    pub(super) fn address(&self, tried: usize) -> Option<&Address> {
        let count = self.addresses.len();
        if tried >= count { None } else { self.addresses.get((self.preferred + tried) % count) }
    }

    /// The address after so many took a connection.
    pub(super) fn worked(&mut self, tried: usize) {
        self.preferred = (self.preferred + tried) % self.addresses.len().max(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_address_is_tried_once_and_the_one_that_works_first_from_then_on() {
        let endpoint: Endpoint = "[::1]:80".parse().expect("an address");
        let mut targets = Targets::look_up(endpoint, 0, Duration::ZERO).expect("no name");
        let [a, b, c] =
            ["[::1]:1", "127.0.0.1:2", "unix:c"].map(|text| text.parse::<Address>().expect("an address"));
        targets.addresses = vec![a.clone(), b.clone(), c.clone()];
        assert_eq!([0, 1, 2, 3].map(|tried| targets.address(tried)), [Some(&a), Some(&b), Some(&c), None]);
        targets.worked(1);
        assert_eq!([0, 1, 2, 3].map(|tried| targets.address(tried)), [Some(&b), Some(&c), Some(&a), None]);
        targets.worked(1);
        assert_eq!(targets.address(0), Some(&c));
    }
}
