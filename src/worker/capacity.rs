//! How many connections fit: what the configuration wants, and what the descriptor limit allows.
//!
//! The supervisor asks to tell the user, a worker to know its share.

use crate::config::Config;

/// What a process has open besides connections and whatever handlers open: standard streams, line, arena, epoll, events,
/// listeners, with room to spare.
const OWN: u64 = 64;
/// Descriptors left to the handlers of each thread.
const EACH_THREAD: u64 = 4;

/// Connections that the whole service may hold when a process may have `descriptors` open.
pub(crate) fn connections(config: &Config, descriptors: u64) -> usize {
    let threads = u64::try_from(super::rows(config.threads)).unwrap_or(u64::MAX);
    let kept_free = threads.saturating_mul(EACH_THREAD).saturating_add(OWN);
    let allowed = usize::try_from(descriptors.saturating_sub(kept_free)).unwrap_or(usize::MAX);
    config.limits.max_connections.min(allowed.max(1))
}

/// The share of each worker.
pub(super) fn share(config: &Config, descriptors: u64) -> usize {
    connections(config, descriptors).div_ceil(config.processes)
}

/// Connections that one worker has records for: those of the whole service, in case that it adopts them all, and all that
/// still wait before the doors when they are closed. It accepts only while it holds less than its share, adopted ones
/// counted; so the service has more than its limit only by adoption, while the replacements of workers that died fill
/// their own shares. What would be more than the records, after several such deaths, is not adopted.
pub(super) fn most(config: &Config) -> usize {
    let waiting = config.listeners.iter().map(|listener| listener.backlog as usize);
    waiting.fold(config.limits.max_connections, usize::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_descriptor_limit_bounds_what_the_configuration_wants() {
        let cases = [
            // descriptors, wanted, processes, threads, in the service, in each worker
            (1_000_000, 10_000, 4, 8, 10_000, 2_500),
            (1_000_000, 10_000, 3, 8, 10_000, 3_334),
            (1024, 10_000, 4, 8, 920, 230),
            (1024, 100, 4, 8, 100, 25),
            (16, 100, 2, 1, 1, 1),
            (u64::MAX, 100, 1, 1, 100, 100),
        ];
        for (descriptors, wanted, processes, threads, in_all, each) in cases {
            let mut config = Config { processes, threads, ..Config::default() };
            config.limits.max_connections = wanted;
            assert_eq!(
                connections(&config, descriptors),
                in_all,
                "{descriptors} descriptors, {wanted} wanted"
            );
            assert_eq!(share(&config, descriptors), each, "{descriptors} descriptors, {wanted} wanted");
        }
    }
}
