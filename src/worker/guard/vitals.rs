//! The end of a worker that has lost a descriptor it stands on.
//!
//! A handler that closes what isn't its own, or puts something else in its place, takes from the worker its channel, its
//! epoll, a listener or a connection. Nothing of that can be had back: the worker ends at once, and its connections go to
//! others. Whoever meets an error that says so comes here, by [`descriptors::lost_by`]; nothing is looked at before it
//! is used, because it could change hands in between.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::epoll::{EpollEvent, EpollFlags};

use crate::sys::{descriptors, last_moment, process};
use crate::worker::shared::Shared;
use crate::worker::tokens::WAKE;

/// From now on this process ends when one of its descriptors is lost.
pub(in crate::worker) fn guard(slot: usize) {
    static IS_ENDING: AtomicBool = AtomicBool::new(false);
    descriptors::when_lost(Box::new(move |what, error| {
        if IS_ENDING.swap(true, Ordering::SeqCst) {
            // Another thread has met it too, and says so.
            loop {
                std::thread::park();
            }
        }
        tracing::error!(
            slot,
            what,
            %error,
            "a descriptor of the worker's own was closed or replaced, as by a handler that closes what isn't its own; the \
             worker ends and is replaced"
        );
        last_moment::wait_for_hand();
        process::exit_now(1)
    }));
}

impl Shared {
    /// The poller is never woken by a write: that would reach whatever has the number by now. Epoll knows an entry by its
    /// number and its file.
    pub(in crate::worker) fn wake_poller(&self) {
        let mut event = EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLONESHOT, WAKE);
        if let Err(errno) = self.epoll.modify(&self.wake, &mut event) {
            descriptors::lost_by("epoll, or the event that wakes the poller", &io::Error::from(errno));
        }
    }
}
