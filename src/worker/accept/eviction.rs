//! Which connection gives its place to a new one, in a worker that holds as many as it may.
//!
//! The one that has never said anything and has been open for longest; where all have spoken, of the address that has most
//! connections the one that has been idle for longest. Pure: the connections of a worker are looked at once in a while (`reserve`
//! does that), and what is chosen here is looked at again, under its lock, before it is closed. So nothing has to be kept in order
//! while there is room, and a new connection costs no look at all the others.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::arena::Key;
use crate::sys::peer::AddressKey;

/// A connection that has said nothing has at least so long to begin: whoever has just connected is about to speak.
pub(in crate::worker) const TIME_TO_SPEAK: Duration = Duration::from_millis(500);

/// For how long a look at all connections is good.
const FRESH: Duration = Duration::from_millis(100);

/// How soon the next look may be where nobody is left of the last.
const AGAIN: Duration = Duration::from_millis(20);

/// A look takes this part of the poller's time at most.
const PART_OF_TIME: u32 = 20;

/// A connection that holds a place, as it was when it was looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Holder {
    pub(in crate::worker) key: Key,
    pub(in crate::worker) address: AddressKey,
    /// Since when nothing has moved on it. None where it may not give way.
    pub(in crate::worker) idle_since: Option<Instant>,
    /// It has never said anything.
    pub(in crate::worker) is_silent: bool,
}

/// What the last look at all connections has shown, less what was chosen since.
#[derive(Debug, Default)]
pub(in crate::worker) struct Eviction {
    /// Until when that is good, and when the next look may be.
    fresh_until: Option<Instant>,
    next_look: Option<Instant>,
    /// Those that have said nothing, the oldest first.
    silent: VecDeque<(Instant, Key)>,
    /// Those of each address that have spoken and idle, the longest idle first; none is empty.
    idle: HashMap<AddressKey, VecDeque<(Instant, Key)>>,
    /// The same addresses, that with most connections last, and among equals that with the longest idle one.
    order: BTreeSet<(usize, Reverse<Instant>, AddressKey)>,
    /// How many connections each address has.
    counts: HashMap<AddressKey, usize>,
}

/// Who gives way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Choice {
    /// This one, if nothing has moved on it since then.
    Now(Key, Instant),
    /// This one, if it still says nothing when it has had its [time to speak](TIME_TO_SPEAK). Nobody else does meanwhile, or who
    /// says nothing could push out all that have spoken.
    Later(Key, Instant),
    Nobody,
}

impl Eviction {
    /// True when all connections should be looked at before the next choice.
    pub(in crate::worker) fn wants_look(&self, now: Instant) -> bool {
        let is_over = self.silent.is_empty() && self.order.is_empty();
        let is_stale = self.fresh_until.is_none_or(|until| until <= now);
        (is_over || is_stale) && self.next_look.is_none_or(|next| next <= now)
    }

    /// All connections were looked at, from `began` until `now`.
    pub(in crate::worker) fn looked_at(&mut self, holders: &[Holder], began: Instant, now: Instant) {
        let pause = now.saturating_duration_since(began).saturating_mul(PART_OF_TIME);
        let (fresh_until, next_look) = (Some(now + FRESH.max(pause)), Some(now + AGAIN.max(pause)));
        *self = Self { fresh_until, next_look, ..Self::default() };
        let mut silent = Vec::new();
        for holder in holders {
            *self.counts.entry(holder.address).or_default() += 1;
            match holder.idle_since {
                Some(since) if holder.is_silent => silent.push((since, holder.key)),
                Some(since) => self.idle.entry(holder.address).or_default().push_back((since, holder.key)),
                None => {}
            }
        }
        silent.sort_unstable();
        self.silent = silent.into();
        for (address, idle) in &mut self.idle {
            idle.make_contiguous().sort_unstable();
            let longest = idle.front().map_or(now, |(since, _)| *since);
            self.order.insert((count_of(&self.counts, *address), Reverse(longest), *address));
        }
    }

    /// Whether anybody is known who might give way.
    pub(in crate::worker) fn has_candidates(&self, now: Instant) -> bool {
        match self.silent.front() {
            Some((since, _)) => *since + TIME_TO_SPEAK <= now,
            None => !self.order.is_empty(),
        }
    }

    /// Who gives way to a new connection of `newcomer`. Whoever is named is not named again before the next look.
    pub(in crate::worker) fn choose(&mut self, newcomer: AddressKey, now: Instant) -> Choice {
        if let Some((since, key)) = self.silent.front().copied() {
            if now < since + TIME_TO_SPEAK {
                return Choice::Later(key, since);
            }
            self.silent.pop_front();
            return Choice::Now(key, since);
        }
        let Some(address) = self.has_most(newcomer) else {
            return Choice::Nobody;
        };
        match self.take_idle(address) {
            Some((since, key)) => Choice::Now(key, since),
            None => Choice::Nobody,
        }
    }

    /// The one that was to give way later has spoken, or is gone.
    pub(in crate::worker) fn has_spoken(&mut self) {
        self.silent.pop_front();
    }

    /// The one that was chosen has given its place to another: addresses have one less and one more.
    pub(in crate::worker) fn changed_hands(&mut self, from: AddressKey, to: AddressKey) {
        self.count(from, |count| count.saturating_sub(1));
        self.count(to, |count| count + 1);
    }

    /// The address whose connection gives way: nobody gets a place from one that has fewer than he would have then.
    fn has_most(&self, newcomer: AddressKey) -> Option<AddressKey> {
        let (count, _, address) = *self.order.last()?;
        let would_have = count_of(&self.counts, newcomer) + 1;
        if count >= would_have {
            return Some(address);
        }
        self.idle.contains_key(&newcomer).then_some(newcomer)
    }

    fn take_idle(&mut self, address: AddressKey) -> Option<(Instant, Key)> {
        self.leave_order(address);
        let taken = self.idle.get_mut(&address)?.pop_front();
        self.enter_order(address);
        taken
    }

    fn count(&mut self, address: AddressKey, change: impl FnOnce(usize) -> usize) {
        self.leave_order(address);
        let count = self.counts.entry(address).or_default();
        *count = change(*count);
        self.enter_order(address);
    }

    fn leave_order(&mut self, address: AddressKey) {
        if let Some((longest, _)) = self.idle.get(&address).and_then(VecDeque::front) {
            self.order.remove(&(count_of(&self.counts, address), Reverse(*longest), address));
        }
    }

    fn enter_order(&mut self, address: AddressKey) {
        match self.idle.get(&address).map(VecDeque::front) {
            Some(Some((longest, _))) => {
                self.order.insert((count_of(&self.counts, address), Reverse(*longest), address));
            }
            Some(None) => {
                self.idle.remove(&address);
            }
            None => {}
        }
    }
}

fn count_of(counts: &HashMap<AddressKey, usize>, address: AddressKey) -> usize {
    counts.get(&address).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: fn(u64) -> Duration = Duration::from_millis;

    fn address(number: u8) -> AddressKey {
        AddressKey::V4([10, 0, 0, number])
    }

    fn key(index: u32) -> Key {
        Key { index, generation: 0 }
    }

    /// A connection's address, since when it idles in ms after the start (None: busy), and whether it is silent.
    type Held = (u8, Option<u64>, bool);

    /// A look at connections, whose keys count from 0.
    fn looked(holders: &[Held], start: Instant, now: Instant) -> Eviction {
        let holders: Vec<Holder> = (0..)
            .zip(holders)
            .map(|(index, (number, since, is_silent))| Holder {
                key: key(index),
                address: address(*number),
                idle_since: since.map(|since| start + MS(since)),
                is_silent: *is_silent,
            })
            .collect();
        let mut eviction = Eviction::default();
        assert!(eviction.wants_look(now));
        eviction.looked_at(&holders, now, now);
        eviction
    }

    /// Who gives way to one newcomer of this address after the other; each gets the place.
    fn chosen(eviction: &mut Eviction, holders: &[Held], newcomers: &[u8], now: Instant) -> Vec<u32> {
        let mut chosen = Vec::new();
        for newcomer in newcomers {
            let Choice::Now(key, _) = eviction.choose(address(*newcomer), now) else { break };
            eviction.changed_hands(address(holders[key.index as usize].0), address(*newcomer));
            chosen.push(key.index);
        }
        chosen
    }

    #[test]
    fn who_said_nothing_goes_first_then_the_longest_idle_of_the_address_with_most() {
        type Case<'a> = (&'a [Held], &'a [u8], &'a [u32]);
        let cases: [Case<'_>; 8] = [
            // holders, newcomers, who gives way
            (&[(1, Some(5), false), (2, Some(3), true), (3, Some(1), true)], &[9, 9], &[2, 1]),
            (&[(1, Some(9), false), (1, Some(4), false), (2, Some(1), false)], &[9], &[1]),
            (&[(1, None, false), (1, Some(4), false), (2, Some(1), false)], &[9], &[1]),
            // All equal: the longest idle.
            (&[(1, Some(9), false), (2, Some(4), false), (3, Some(6), false)], &[9, 8], &[1, 2]),
            // Whoever has most makes room himself, and gets none from those that have fewer.
            (&[(1, None, false), (1, None, false), (2, Some(1), false)], &[1], &[]),
            (&[(1, None, false), (1, Some(8), false), (2, Some(1), false)], &[1], &[1]),
            (&[(1, Some(8), false), (2, Some(1), false)], &[1], &[0]),
            (&[(1, None, false), (2, None, false)], &[9], &[]),
        ];
        let start = Instant::now();
        let now = start + MS(10_000);
        for (holders, newcomers, expected) in cases {
            let mut eviction = looked(holders, start, now);
            assert_eq!(chosen(&mut eviction, holders, newcomers, now), expected, "{holders:?}");
        }
    }

    #[test]
    fn an_address_that_loses_connections_is_no_longer_the_one_with_most() {
        let holders = [
            (1, Some(1), false),
            (1, Some(2), false),
            (1, Some(3), false),
            (2, Some(4), false),
            (2, Some(5), false),
        ];
        let start = Instant::now();
        let now = start + MS(10_000);
        let mut eviction = looked(&holders, start, now);
        // 3 and 2; then 2 and 2, where the longest idle one decides; then 1 and 2.
        assert_eq!(chosen(&mut eviction, &holders, &[7, 8, 9], now), [0, 1, 3]);
    }

    #[test]
    fn whoever_has_just_connected_has_time_to_speak_and_nobody_else_gives_way_meanwhile() {
        let holders = [(1, Some(0), false), (2, Some(100), true)];
        let start = Instant::now();
        let mut eviction = looked(&holders, start, start + MS(100));
        let may_end = start + MS(100) + TIME_TO_SPEAK;
        assert_eq!(may_end, start + MS(600));
        assert_eq!(eviction.choose(address(9), start + MS(599)), Choice::Later(key(1), start + MS(100)));
        assert_eq!(eviction.choose(address(9), may_end), Choice::Now(key(1), start + MS(100)));
        assert_eq!(eviction.choose(address(9), may_end), Choice::Now(key(0), start));
        assert_eq!(eviction.choose(address(9), may_end), Choice::Nobody);

        let mut eviction = looked(&holders, start, start + MS(100));
        eviction.has_spoken();
        assert_eq!(eviction.choose(address(9), start + MS(101)), Choice::Now(key(0), start));
    }

    #[test]
    fn looks_are_good_for_a_while_and_never_take_much_of_the_time() {
        let start = Instant::now();
        let mut eviction = looked(&[(1, Some(0), false)], start, start);
        assert!(!eviction.wants_look(start + MS(99)) && eviction.wants_look(start + MS(100)));
        assert_eq!(eviction.choose(address(9), start), Choice::Now(key(0), start));
        assert!(!eviction.wants_look(start + MS(19)), "nobody is left, and the last look was just now");
        assert!(eviction.wants_look(start + MS(20)));
        // One that took 50 ms.
        eviction.looked_at(&[], start, start + MS(50));
        assert!(!eviction.wants_look(start + MS(50 + 999)) && eviction.wants_look(start + MS(50 + 1_000)));
    }
}
