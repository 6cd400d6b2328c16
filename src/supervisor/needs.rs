//! What the service needs of its resource limits. The limits are checked before anybody can connect.
//!
//! If the kernel refused a worker its shared memory, the supervisor would fork it again and again, with the port open and nobody behind it.

use std::fmt;

use nix::sys::resource::{RLIM_INFINITY, Resource, getrlimit};

use crate::addresses;
use crate::arena::{self, Room};
use crate::config::Config;
use crate::sys::{cpus, descriptors, limits};

/// Addresses that a worker takes beside its shared memory: the program and its libraries, the allocator's.
const PROGRAM: u64 = 256 << 20;
/// The same for each of its threads: its stacks.
const EACH_THREAD: u64 = 4 << 20;
/// One of glibc's own arenas (not ours), from which it allocates: 64 MiB, and for a moment as much again to align them. Where it
/// is refused one it does with another, but then the next thread is refused its stack.
const EACH_MALLOC_ARENA: u64 = 128 << 20;
/// A thread's first allocation makes an arena for it, up to so many for each CPU (mallopt(3), `M_ARENA_MAX`).
const MALLOC_ARENAS_EACH_CPU: u64 = 8;

/// A limit that is too low.
#[derive(Debug, PartialEq, Eq)]
struct Lack {
    limit: &'static str,
    found: u64,
    needed: u64,
    what: &'static str,
    /// Smaller buffers would do.
    is_for_buffers: bool,
}

impl fmt::Display for Lack {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { limit, found, needed, what, is_for_buffers } = self;
        let (found, needed) = (in_words(*found), in_words(*needed));
        write!(out, "{limit} is {found}, and {needed} are needed, {what}; raise that limit")?;
        if *is_for_buffers { out.write_str(", or lower limits.buffers") } else { Ok(()) }
    }
}

/// Whether the limits of this process allow what its workers need. The error names the limit, and the need.
pub(crate) fn check(config: &Config, methods: usize) -> Result<(), String> {
    let limit = |resource| getrlimit(resource).map_or(RLIM_INFINITY, |(soft, _)| soft);
    let size = |buffers| {
        let room = Room { methods, buffers, ..crate::worker::room(config) };
        arena::size(&room).map_err(|error| error.to_string())
    };
    let least = config.limits.max_message.max(config.limits.output);
    let (mut arena, mut least) = (size(config.limits.buffers)?, size(least.min(config.limits.buffers))?);
    if config.limits.per_address > 0 {
        (arena, least) = (arena + addresses::BYTES, least + addresses::BYTES);
    }
    let limits =
        ResourceLimits { addresses: limit(Resource::RLIMIT_AS), file: limit(Resource::RLIMIT_FSIZE) };
    let threads = crate::worker::threads_beside_main(config.threads) as u64;
    match limits.lack(arena, least, beside(threads, cpus::online() as u64)) {
        Some(lack) => Err(lack.to_string()),
        None => Ok(()),
    }
}

/// Addresses that a worker with so many threads beside the main one takes beside its shared memory, at most.
fn beside(threads: u64, cpus: u64) -> u64 {
    let malloc_arenas = threads.min(cpus * MALLOC_ARENAS_EACH_CPU);
    PROGRAM + threads * EACH_THREAD + malloc_arenas * EACH_MALLOC_ARENA
}

/// Raises the soft limit on descriptors to the hard one, for this process and, as they inherit it, for all that come from it.
pub(in crate::supervisor) fn raise_descriptor_limit(config: &Config) {
    let limit = limits::raise_descriptors().unwrap_or_else(|error| {
        tracing::warn!(%error, "the limit on open descriptors can't be raised");
        limits::descriptors()
    });
    let (wanted, allowed) = (config.limits.max_connections, crate::worker::connections(config, limit));
    if allowed < wanted {
        tracing::warn!(
            descriptors = limit,
            "limits.max_connections is lowered from {wanted} to {allowed}: the descriptor limit allows no more; \
             raise the hard limit (ulimit -Hn, LimitNOFILE=) for the rest"
        );
    }
    if descriptors::crowd_out_select(limit, allowed as u64) {
        tracing::warn!(
            descriptors = limit,
            "the descriptor limit leaves too few numbers above 1,023 for all connections: with many of them handlers get \
             numbers that `select` can't wait for; raise the hard limit (ulimit -Hn, LimitNOFILE=)"
        );
    }
}

struct ResourceLimits {
    addresses: u64,
    file: u64,
}

impl ResourceLimits {
    /// What is missing for a worker whose shared memory has so many bytes, or `least` with the smallest buffers, and which
    /// takes so many `beside` it.
    fn lack(&self, arena: u64, least: u64, beside: u64) -> Option<Lack> {
        if arena.saturating_add(beside) > self.addresses {
            return Some(Lack {
                limit: "RLIMIT_AS (`ulimit -v`)",
                found: self.addresses,
                needed: arena.saturating_add(beside),
                what: "as addresses of a worker, most of which it never touches",
                is_for_buffers: least.saturating_add(beside) <= self.addresses,
            });
        }
        (arena > self.file).then_some(Lack {
            limit: "RLIMIT_FSIZE (`ulimit -f`)",
            found: self.file,
            needed: arena,
            what: "as a worker's shared memory, most of which is never touched",
            is_for_buffers: least <= self.file,
        })
    }
}

fn in_words(bytes: u64) -> String {
    const MIB: u64 = 1 << 20;
    if bytes < MIB { format!("{bytes} bytes") } else { format!("{}MiB", bytes / MIB) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_that_is_too_low_is_named_with_what_is_needed() {
        const GIB: u64 = 1 << 30;
        const MOST: u64 = RLIM_INFINITY;
        let table = [
            (MOST, MOST, None),
            (21 * GIB, 20 * GIB, None),
            (20 * GIB, MOST, Some(("RLIMIT_AS", true))),
            (8 * GIB, MOST, Some(("RLIMIT_AS", false))),
            (MOST, 20 * GIB - 1, Some(("RLIMIT_FSIZE", true))),
            (MOST, 0, Some(("RLIMIT_FSIZE", false))),
        ];
        for (addresses, file, expected) in table {
            let lack = ResourceLimits { addresses, file }.lack(20 * GIB, 8 * GIB, GIB);
            let found =
                lack.as_ref().map(|lack| (lack.limit.split(' ').next().unwrap(), lack.is_for_buffers));
            assert_eq!(found, expected, "{addresses} addresses, files of {file}");
        }
        let lack = ResourceLimits { addresses: 8 * GIB, file: MOST }.lack(20 * GIB, 8 * GIB, GIB).unwrap();
        assert_eq!(
            lack.to_string(),
            "RLIMIT_AS (`ulimit -v`) is 8192MiB, and 21504MiB are needed, as addresses of a worker, most of which it \
             never touches; raise that limit"
        );
    }

    #[test]
    fn each_thread_has_an_arena_of_the_allocator_up_to_eight_for_each_cpu() {
        const MIB: u64 = 1 << 20;
        for (threads, cpus, expected) in [
            (2, 1, 256 + 8 + 256),
            (9, 1, 256 + 36 + 1024),
            (9, 2, 256 + 36 + 1152),
            (99, 2, 256 + 396 + 2048),
        ] {
            assert_eq!(beside(threads, cpus), expected * MIB, "{threads} threads on {cpus}");
        }
    }
}
