//! A service whose supervisor keeps connections: how many they are is seen from what it has open.

use std::time::Instant;

use super::peer::{Peer, Way};
use super::proc::open_descriptors;
use super::{PATIENCE, Service, Wire};

/// A service, and what its supervisor has open without connections.
pub struct Kept {
    pub service: Service,
    /// Descriptors that the supervisor has without connections.
    pub without: usize,
}

impl Kept {
    pub fn start(config: &str) -> Self {
        let service = Service::start(config);
        // What a fork leaves open is closed with the message that reports its end.
        let without = open_descriptors(service.pid());
        Self { service, without }
    }

    /// Waits until the supervisor keeps as many connections.
    pub fn await_kept(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while open_descriptors(self.service.pid()) != self.without + count {
            assert!(
                Instant::now() < until,
                "{} descriptors are open, expected {} and {count} connections; log:\n{}",
                open_descriptors(self.service.pid()),
                self.without,
                self.service.log_so_far()
            );
            std::thread::yield_now();
        }
    }

    /// Connects plain clients, and waits until their connections are kept.
    pub fn connect(&self, count: usize) -> Vec<Wire> {
        let wires = (0..count).map(|_| self.service.connect()).collect();
        self.await_kept(count);
        wires
    }

    /// The same with one client of a framing.
    pub fn connect_to_speak(&self, way: Way) -> Peer {
        let peer = Peer::of(&self.service, way);
        self.await_kept(1);
        peer
    }

    /// The one connection ends, and the supervisor lets it go.
    pub fn disconnect(&self, peer: Peer) {
        drop(peer);
        self.await_kept(0);
    }
}
