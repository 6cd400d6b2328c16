//! Whose waiting call goes next, and whose gives way. Pure: no clock, no lock, no threads.
//!
//! Addresses take turns; at an address its connections take turns; the calls of a connection go in the order in which they
//! came. This is round robin as in deficit round robin with a quantum of one call, because what a call costs is not known
//! before it has run. While another connection is open, one runs on all threads but one at most, and the same holds for
//! addresses. Whoever has reached that is *held back*: it leaves its ring and comes back when a call of it has ended.
//!
//! Every operation takes constant time, amortised: a ring's entry that is found empty or at its bound is dropped then, and
//! the deepest queue is found by lists of queues of equal length, as in Linux's `sch_sfq`.

mod depths;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};

use self::depths::{Depths, Link};
use crate::sys::peer::AddressKey;

/// A connection's place among those that take turns. One of a connection that is gone finds nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::worker) struct Lane {
    index: u32,
    generation: u32,
}

impl Lane {
    pub(in crate::worker) fn to_word(self) -> u64 {
        u64::from(self.generation) << 32 | u64::from(self.index)
    }

    pub(in crate::worker) fn from_word(word: u64) -> Self {
        let index = u32::try_from(word & u64::from(u32::MAX)).unwrap_or_default();
        Self { index, generation: (word >> 32) as u32 }
    }
}

/// Connections, what waits for each, and in which order they are served.
#[derive(Debug)]
pub(in crate::worker) struct Turns<T> {
    /// How many calls run at once; None where that is bounded elsewhere and nobody is held back.
    width: Option<usize>,
    lanes: Vec<LaneState<T>>,
    free_lanes: Vec<u32>,
    addresses: Vec<Address>,
    free_addresses: Vec<u32>,
    by_key: HashMap<AddressKey, u32>,
    /// Addresses with calls that may go, in the order of their turns.
    ring: VecDeque<u32>,
    address_depths: Depths,
    address_links: Vec<Link>,
    lane_links: Vec<Link>,
    open: usize,
    open_addresses: usize,
    waiting: usize,
    held_back: usize,
    running: isize,
    lanes_held: Vec<u32>,
    addresses_held: Vec<u32>,
}

#[derive(Debug)]
struct LaneState<T> {
    generation: u32,
    address: u32,
    is_open: bool,
    in_ring: bool,
    is_held: bool,
    /// For a moment it can be one too few, where a call that nobody asked about ends before it was counted.
    running: isize,
    waiting: VecDeque<T>,
}

#[derive(Debug)]
struct Address {
    key: AddressKey,
    lanes: usize,
    open: usize,
    in_ring: bool,
    is_held: bool,
    running: isize,
    waiting: usize,
    /// Of those waiting, the calls of connections that are held back.
    waiting_held: usize,
    /// Of those waiting, the calls that can't go now.
    held_back: usize,
    ring: VecDeque<u32>,
    depths: Depths,
}

/// What a call has before it that a connection would put now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Turn {
    /// Calls that go first, beyond those that go at once.
    pub(in crate::worker) before: usize,
    /// On how many threads these are run, at most.
    pub(in crate::worker) width: usize,
    /// All calls that wait, whoever's, beyond those that go at once.
    pub(in crate::worker) waiting: usize,
}

impl<T> Turns<T> {
    /// For so many calls that run at once. None: it is bounded elsewhere, and nobody is held back.
    pub(in crate::worker) fn new(width: Option<usize>) -> Self {
        Self {
            width,
            lanes: Vec::new(),
            free_lanes: Vec::new(),
            addresses: Vec::new(),
            free_addresses: Vec::new(),
            by_key: HashMap::new(),
            ring: VecDeque::new(),
            address_depths: Depths::default(),
            address_links: Vec::new(),
            lane_links: Vec::new(),
            open: 0,
            open_addresses: 0,
            waiting: 0,
            held_back: 0,
            running: 0,
            lanes_held: Vec::new(),
            addresses_held: Vec::new(),
        }
    }

    /// A connection begins.
    pub(in crate::worker) fn open(&mut self, key: AddressKey) -> Lane {
        let address = self.address_of(key);
        self.addresses[address as usize].lanes += 1;
        self.addresses[address as usize].open += 1;
        self.open += 1;
        self.open_addresses += usize::from(self.addresses[address as usize].open == 1);
        let index = self.free_lanes.pop().unwrap_or_else(|| {
            self.lanes.push(LaneState {
                generation: 0,
                address,
                is_open: false,
                in_ring: false,
                is_held: false,
                running: 0,
                waiting: VecDeque::new(),
            });
            self.lane_links.push(Link::default());
            // Far more connections than a process can have descriptors.
            u32::try_from(self.lanes.len() - 1).unwrap_or(u32::MAX)
        });
        let lane = &mut self.lanes[index as usize];
        (lane.address, lane.is_open) = (address, true);
        Lane { index, generation: lane.generation }
    }

    /// A connection ends. What it has running or waiting still counts.
    pub(in crate::worker) fn close(&mut self, lane: Lane) {
        let Some(index) = self.index(lane) else { return };
        if !std::mem::replace(&mut self.lanes[index].is_open, false) {
            return;
        }
        let address = self.lanes[index].address as usize;
        self.addresses[address].open -= 1;
        self.open -= 1;
        self.open_addresses -= usize::from(self.addresses[address].open == 0);
        self.forget_if_over(index);
        // Nobody else may be there now for whom a thread is to be free.
        for lane in std::mem::take(&mut self.lanes_held) {
            self.resume_lane(lane as usize);
        }
        for address in std::mem::take(&mut self.addresses_held) {
            self.resume_address(address as usize);
        }
    }

    /// A call waits. Given back where the connection is gone.
    pub(in crate::worker) fn push(&mut self, lane: Lane, call: T) -> Result<(), T> {
        let Some(index) = self.index(lane) else { return Err(call) };
        self.lanes[index].waiting.push_back(call);
        self.count_waiting(index, 1);
        self.enter_ring(index);
        Ok(())
    }

    /// The next call, which runs from now on until it has [ended](Self::ended).
    pub(in crate::worker) fn pop(&mut self) -> Option<(Lane, T)> {
        while let Some(address) = self.ring.pop_front() {
            let at = address as usize;
            self.addresses[at].in_ring = false;
            if self.is_at_bound_address(at) {
                self.hold_address(at);
                continue;
            }
            let Some((index, call)) = self.pop_of(at) else { continue };
            self.count_running(index, 1);
            if self.is_at_bound_address(at) {
                self.hold_address(at);
            }
            self.enter_ring_of_addresses(at);
            let generation = self.lanes[index].generation;
            return Some((Lane { index: to_u32(index), generation }, call));
        }
        None
    }

    fn pop_of(&mut self, address: usize) -> Option<(usize, T)> {
        while let Some(lane) = self.addresses[address].ring.pop_front() {
            let index = lane as usize;
            self.lanes[index].in_ring = false;
            if self.is_at_bound_lane(index, 0) {
                self.hold_lane(index);
                continue;
            }
            let Some(call) = self.lanes[index].waiting.pop_front() else { continue };
            self.count_waiting(index, -1);
            if self.is_at_bound_lane(index, 1) {
                self.hold_lane(index);
            }
            self.enter_ring(index);
            return Some((index, call));
        }
        None
    }

    /// A call of the connection runs that never waited.
    pub(in crate::worker) fn began(&mut self, lane: Lane) {
        if let Some(index) = self.index(lane) {
            self.count_running(index, 1);
            self.forget_if_over(index);
        }
    }

    /// A call of the connection runs no longer.
    pub(in crate::worker) fn ended(&mut self, lane: Lane) {
        let Some(index) = self.index(lane) else { return };
        self.count_running(index, -1);
        let address = self.lanes[index].address as usize;
        if self.lanes[index].is_held {
            self.resume_lane(index);
        }
        if self.addresses[address].is_held {
            self.resume_address(address);
        }
        self.forget_if_over(index);
    }

    /// Takes out a call that waits.
    pub(in crate::worker) fn remove(&mut self, lane: Lane, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        let index = self.index(lane)?;
        let at = self.lanes[index].waiting.iter().position(is_it)?;
        let call = self.lanes[index].waiting.remove(at)?;
        self.count_waiting(index, -1);
        self.forget_if_over(index);
        Some(call)
    }

    /// Takes out the newest call of whoever has most waiting, so that this connection can put one: of the address with most,
    /// or, where that is its own, of the connection there with most. None where that is the connection itself.
    pub(in crate::worker) fn displace(&mut self, lane: Lane) -> Option<T> {
        let index = self.index(lane)?;
        let own = self.lanes[index].address as usize;
        let (address, mine) = match self.address_depths.deepest() {
            Some((deepest, most)) if most > self.addresses[own].waiting + 1 => (deepest as usize, 0),
            Some(_) | None => (own, self.lanes[index].waiting.len() + 1),
        };
        let (victim, most) = self.addresses[address].depths.deepest()?;
        if most <= mine {
            return None;
        }
        let victim = victim as usize;
        let call = self.lanes[victim].waiting.pop_back()?;
        self.count_waiting(victim, -1);
        self.forget_if_over(victim);
        Some(call)
    }

    /// What a call would have before it that this connection put now.
    pub(in crate::worker) fn turn(&self, lane: Lane) -> Turn {
        let running = usize::try_from(self.running).unwrap_or(0);
        let free = self.width.map_or(0, |width| width.saturating_sub(running));
        let width = self.width.unwrap_or(usize::MAX);
        let waiting = self.waiting.saturating_sub(free);
        let Some(index) = self.index(lane) else {
            return Turn { before: waiting, width, waiting };
        };
        let (lane, address) = (&self.lanes[index], &self.addresses[self.lanes[index].address as usize]);
        let own = lane.waiting.len();
        // Of every other connection that takes turns here, one call for each of this connection's, if there are so many.
        let own_held = if lane.is_held { own } else { 0 };
        let beside = address.waiting - own - (address.waiting_held - own_held);
        let lanes = address.ring.len() - usize::from(lane.in_ring);
        let here = own + beside.min(lanes.saturating_mul(own + 1));
        if lane.is_held || address.is_held {
            // Only a call of its own makes room for it.
            let before = if address.is_held { here } else { own };
            let width = if address.is_held { self.most_of_address() } else { self.most_of_lane() };
            return Turn { before, width, waiting };
        }
        let elsewhere = self.waiting - self.held_back - (address.waiting - address.held_back);
        let addresses = self.ring.len() - usize::from(address.in_ring);
        let before = here + elsewhere.min(addresses.saturating_mul(here + 1));
        Turn { before: before.saturating_sub(free), width, waiting }
    }

    /// Calls that wait.
    pub(in crate::worker) fn len(&self) -> usize {
        self.waiting
    }

    /// Calls that wait although a thread may be free, since their own connection or address has enough of them.
    pub(in crate::worker) fn held_back(&self) -> usize {
        self.held_back
    }

    /// There may be a call that can go now.
    pub(in crate::worker) fn may_pop(&self) -> bool {
        !self.ring.is_empty()
    }

    /// Nothing of this connection waits.
    pub(in crate::worker) fn is_empty(&self, lane: Lane) -> bool {
        self.index(lane).is_none_or(|index| self.lanes[index].waiting.is_empty())
    }

    /// The most calls of one connection that run at once.
    fn most_of_lane(&self) -> usize {
        self.most(self.open > 1)
    }

    fn most_of_address(&self) -> usize {
        self.most(self.open_addresses > 1)
    }

    fn most(&self, beside_others: bool) -> usize {
        self.width.map_or(usize::MAX, |width| width.saturating_sub(usize::from(beside_others)).max(1))
    }

    fn is_at_bound_lane(&self, lane: usize, more: isize) -> bool {
        self.lanes[lane].running.saturating_add(more) >= to_isize(self.most_of_lane())
    }

    fn is_at_bound_address(&self, address: usize) -> bool {
        self.addresses[address].running >= to_isize(self.most_of_address())
    }

    fn hold_lane(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if !std::mem::replace(&mut lane.is_held, true) {
            let (address, waiting) = (lane.address as usize, lane.waiting.len());
            self.lanes_held.push(to_u32(index));
            self.addresses[address].waiting_held += waiting;
            self.recount_held(address);
        }
    }

    /// A connection that was held back takes turns again, if it may.
    fn resume_lane(&mut self, index: usize) {
        self.lanes_held.retain(|held| *held as usize != index);
        if self.is_at_bound_lane(index, 0) {
            self.lanes_held.push(to_u32(index));
            return;
        }
        let lane = &mut self.lanes[index];
        lane.is_held = false;
        let (address, waiting) = (lane.address as usize, lane.waiting.len());
        self.addresses[address].waiting_held -= waiting;
        self.recount_held(address);
        self.enter_ring(index);
    }

    fn hold_address(&mut self, index: usize) {
        if !std::mem::replace(&mut self.addresses[index].is_held, true) {
            self.addresses_held.push(to_u32(index));
            self.recount_held(index);
        }
    }

    fn resume_address(&mut self, index: usize) {
        self.addresses_held.retain(|held| *held as usize != index);
        if self.is_at_bound_address(index) {
            self.addresses_held.push(to_u32(index));
            return;
        }
        self.addresses[index].is_held = false;
        self.recount_held(index);
        self.enter_ring_of_addresses(index);
    }

    /// A connection with calls that may go takes turns.
    fn enter_ring(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        let address = lane.address as usize;
        if !lane.in_ring && !lane.is_held && !lane.waiting.is_empty() {
            lane.in_ring = true;
            self.addresses[address].ring.push_back(to_u32(index));
        }
        self.enter_ring_of_addresses(address);
    }

    fn enter_ring_of_addresses(&mut self, index: usize) {
        let address = &mut self.addresses[index];
        if !address.in_ring && !address.is_held && !address.ring.is_empty() {
            address.in_ring = true;
            self.ring.push_back(to_u32(index));
        }
    }

    fn count_running(&mut self, lane: usize, more: isize) {
        let address = self.lanes[lane].address as usize;
        self.lanes[lane].running += more;
        self.addresses[address].running += more;
        self.running += more;
    }

    /// One call more or less waits, which is in the lane or out of it already.
    fn count_waiting(&mut self, index: usize, more: isize) {
        let (lane, address) = (&self.lanes[index], self.lanes[index].address as usize);
        let (depth, is_held) = (lane.waiting.len(), lane.is_held);
        let at = &mut self.addresses[address];
        at.waiting = at.waiting.saturating_add_signed(more);
        at.depths.set(&mut self.lane_links, to_u32(index), depth);
        // One that waits alone gives way to nobody of another address.
        let depth = if at.waiting > 1 { at.waiting } else { 0 };
        self.address_depths.set(&mut self.address_links, to_u32(address), depth);
        self.waiting = self.waiting.saturating_add_signed(more);
        if is_held {
            at.waiting_held = at.waiting_held.saturating_add_signed(more);
        }
        if is_held || at.is_held {
            self.recount_held(address);
        }
    }

    fn recount_held(&mut self, address: usize) {
        let at = &mut self.addresses[address];
        let held_back = if at.is_held { at.waiting } else { at.waiting_held };
        self.held_back = self.held_back + held_back - std::mem::replace(&mut at.held_back, held_back);
    }

    fn index(&self, lane: Lane) -> Option<usize> {
        let index = lane.index as usize;
        self.lanes.get(index).is_some_and(|state| state.generation == lane.generation).then_some(index)
    }

    fn address_of(&mut self, key: AddressKey) -> u32 {
        if let Some(address) = self.by_key.get(&key) {
            return *address;
        }
        let index = self.free_addresses.pop().unwrap_or_else(|| {
            self.addresses.push(Address {
                key,
                lanes: 0,
                open: 0,
                in_ring: false,
                is_held: false,
                running: 0,
                waiting: 0,
                waiting_held: 0,
                held_back: 0,
                ring: VecDeque::new(),
                depths: Depths::default(),
            });
            self.address_links.push(Link::default());
            to_u32(self.addresses.len() - 1)
        });
        self.addresses[index as usize].key = key;
        self.by_key.insert(key, index);
        index
    }

    /// Gives back the place of a connection that is closed, with nothing waiting or running.
    fn forget_if_over(&mut self, index: usize) {
        let lane = &mut self.lanes[index];
        if lane.is_open || lane.running != 0 || !lane.waiting.is_empty() {
            return;
        }
        let address = lane.address as usize;
        lane.generation = lane.generation.wrapping_add(1);
        // Thousands of connections that came and went would leave as many queues behind.
        lane.waiting = VecDeque::new();
        // It may stand in its ring still, where it would be another's, who has the place next.
        let (in_ring, is_held) = (std::mem::take(&mut lane.in_ring), std::mem::take(&mut lane.is_held));
        if is_held {
            self.lanes_held.retain(|held| *held as usize != index);
        }
        if in_ring {
            self.addresses[address].ring.retain(|lane| *lane as usize != index);
        }
        self.free_lanes.push(to_u32(index));
        let at = &mut self.addresses[address];
        at.lanes -= 1;
        if at.lanes == 0 {
            let (key, in_ring, is_held) =
                (at.key, std::mem::take(&mut at.in_ring), std::mem::take(&mut at.is_held));
            if is_held {
                self.addresses_held.retain(|held| *held as usize != address);
            }
            if in_ring {
                self.ring.retain(|index| *index as usize != address);
            }
            self.by_key.remove(&key);
            self.free_addresses.push(to_u32(address));
        }
    }
}

fn to_u32(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

fn to_isize(count: usize) -> isize {
    isize::try_from(count).unwrap_or(isize::MAX)
}
