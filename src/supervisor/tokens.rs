//! What epoll calls the things that the supervisor waits for, and how channels are watched.

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};

use super::policy::state::{GenerationId, WorkerId};
use crate::channel::Channel;

pub(in crate::supervisor) const SIGNALS: u64 = 0;
/// A listener was shut down.
pub(in crate::supervisor) const LISTENER: u64 = 1;
/// Something has happened to a socket file.
pub(in crate::supervisor) const SOCKET_FILE: u64 = 2;
/// Worker process `n` has the token `FIRST_WORKER + n`, and the template of generation `n` `FIRST_TEMPLATE + n`.
pub(in crate::supervisor) const FIRST_WORKER: u64 = 1 << 32;
pub(in crate::supervisor) const FIRST_TEMPLATE: u64 = 2 << 32;

/// Messages taken from one channel in one go, so that a child which writes without end holds up nobody. A dead child's
/// channel never holds as many: the kernel lets about 280 wait.
pub(in crate::supervisor) const MOST_MESSAGES: usize = 1024;

/// Asks to be woken for the channel's input, and for room in it while messages are queued.
pub(in crate::supervisor) fn watch(epoll: &Epoll, channel: &Channel, token: u64) {
    let mut flags = EpollFlags::EPOLLIN;
    flags.set(EpollFlags::EPOLLOUT, channel.has_queued());
    // A channel that has been closed is no longer in the set; then there is nothing to watch.
    let _ = epoll.modify(channel, &mut EpollEvent::new(flags, token));
}

/// What epoll calls the channel of a worker.
pub(in crate::supervisor) fn worker_token(worker: WorkerId) -> u64 {
    FIRST_WORKER + u64::from(worker)
}

/// What epoll calls the channel of a generation's template.
pub(in crate::supervisor) fn template_token(generation: GenerationId) -> u64 {
    FIRST_TEMPLATE + u64::from(generation)
}
