//! How many connections fit: what the configuration wants, and what the descriptor limit allows.
//!
//! The supervisor asks to tell the user, to keep no more and to share them out; a worker to have room for what may be its part.

use crate::arena::Room;
use crate::channel::MOST_DESCRIPTORS;
use crate::config::Config;

/// Connections that come in by each worker beyond those that it may hold: health checks are answered on them whatever happens.
pub(in crate::worker) const RESERVED: usize = 16;
/// What a process has open besides connections and whatever handlers open: standard streams, channel, arena, epoll, events,
/// listeners, with room to spare.
const OWN: u64 = 64;
/// Descriptors left to the handlers of each thread.
const EACH_THREAD: u64 = 4;
/// What the supervisor needs for each slot: channel, arena and epoll set of its worker and of the next generation's, and channel and arena
/// of one that is about to be forked.
const EACH_SLOT: u64 = 10;
/// For each listener: its socket, that of the next generation, and the duplicates for a fork in each.
const EACH_LISTENER: u64 = 4;

/// Connections that the whole service may hold when a process may have `descriptors` open: no more than one worker could have to
/// go on with, nor than the supervisor can keep. A quarter of that is left for those whose end it has not heard of.
pub(crate) fn connections(config: &Config, descriptors: u64) -> usize {
    let threads = u64::try_from(rows(config.threads)).unwrap_or(u64::MAX);
    let kept_free = threads.saturating_mul(EACH_THREAD).saturating_add(OWN + RESERVED as u64);
    let in_one = usize::try_from(descriptors.saturating_sub(kept_free)).unwrap_or(usize::MAX);
    let kept = kept(config, descriptors);
    config.limits.max_connections.min(in_one).min(kept - kept / 4).max(1)
}

/// Connections that the supervisor may keep then. The rest is a reserve that keeping never touches: for channels, arenas and
/// listeners, for forks and reloads, and for what one message brings before anybody has looked at it.
pub(crate) fn kept(config: &Config, descriptors: u64) -> usize {
    let number = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
    let slots = number(config.processes).saturating_mul(EACH_SLOT);
    let listeners = number(config.listeners.len()).saturating_mul(EACH_LISTENER);
    let message = number(MOST_DESCRIPTORS);
    let reserve = OWN.saturating_add(slots).saturating_add(listeners).saturating_add(message);
    // A low limit is shared: a keeping of some is better than none.
    usize::try_from(descriptors - reserve.min(descriptors / 2)).unwrap_or(usize::MAX)
}

/// Connections without a place that each worker may have kept beside its part: all that it has in reserve, where the supervisor has
/// room for twice as many. The other half of that room is for those whose end it has not heard of.
pub(in crate::worker) fn kept_without_place(config: &Config, descriptors: u64) -> usize {
    let beside = kept(config, descriptors).saturating_sub(connections(config, descriptors));
    RESERVED.min(beside / config.processes / 2)
}

/// The part of each worker while all slots serve. The supervisor tells each how many it may hold, by how many serve. This is for the
/// room that a worker makes before it hears that, and for where an older program has told nothing.
pub(crate) fn share(config: &Config, descriptors: u64) -> usize {
    connections(config, descriptors).div_ceil(config.processes)
}

/// Connections that one worker has records for: those of the whole service and of all reserved places, in case that it adopts them
/// all, and those that still wait in the backlogs when the listeners are closed.
pub(in crate::worker) fn most(config: &Config) -> usize {
    let waiting = config.listeners.iter().map(|listener| listener.backlog as usize);
    let reserved = RESERVED.saturating_mul(config.processes);
    waiting.fold(config.limits.max_connections.saturating_add(reserved), usize::saturating_add)
}

/// What the arena of a worker has room for, but for its methods.
pub(crate) fn room(config: &Config) -> Room {
    Room { rows: rows(config.threads), methods: 0, connections: most(config), buffers: config.limits.buffers }
}

/// Threads that may run calls in a worker with this many pool threads: these, the poller and the watch. Each has a row
/// of the arena.
pub(in crate::worker) fn rows(threads: usize) -> usize {
    threads + 2
}

/// Threads that such a worker starts: all of those but the main one.
pub(crate) fn threads_beside_main(threads: usize) -> usize {
    rows(threads) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_bounds_what_the_configuration_wants() {
        let cases = [
            // descriptors, wanted, processes, threads, in the service, in each worker, kept
            (1_000_000, 10_000, 4, 8, 10_000, 2_500, 999_639),
            (1_000_000, 10_000, 3, 8, 10_000, 3_334, 999_649),
            (1024, 10_000, 4, 8, 498, 125, 663),
            (1024, 100, 4, 8, 100, 25, 663),
            (16, 100, 2, 1, 1, 1, 8),
            (u64::MAX, 100, 1, 1, 100, 100, usize::MAX - 331),
        ];
        for (descriptors, wanted, processes, threads, in_all, each, most_kept) in cases {
            let mut config = Config { processes, threads, ..Config::default() };
            config.limits.max_connections = wanted;
            assert_eq!(
                connections(&config, descriptors),
                in_all,
                "{descriptors} descriptors, {wanted} wanted"
            );
            assert_eq!(
                kept(&config, descriptors),
                most_kept,
                "{descriptors} descriptors, {processes} processes"
            );
            assert_eq!(share(&config, descriptors), each, "{descriptors} descriptors, {wanted} wanted");
        }
    }

    #[test]
    fn who_has_no_place_is_kept_in_half_of_the_room_beside_those_that_have_one() {
        for (descriptors, processes, most) in
            [(1_000_000, 4, 16), (1024, 4, 16), (1024, 8, 9), (200, 1, 12), (16, 2, 1)]
        {
            let config = Config { processes, threads: 1, ..Config::default() };
            assert_eq!(
                kept_without_place(&config, descriptors),
                most,
                "{descriptors} descriptors, {processes} processes"
            );
        }
    }
}
