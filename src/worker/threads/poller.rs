//! The poller: waits in epoll and hands each event to whoever knows what follows from it.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollEvent, EpollTimeout};

use crate::worker::threads::deadlines::Deadlines;

/// Events taken from the kernel in one go.
const BATCH: usize = 128;

/// Waits for events and moments.
pub(in crate::worker) struct Poller<T> {
    epoll: Arc<Epoll>,
    deadlines: Arc<Deadlines<T>>,
    events: [EpollEvent; BATCH],
}

impl<T: Ord + Copy> Poller<T> {
    pub(in crate::worker) fn new(epoll: Arc<Epoll>, deadlines: Arc<Deadlines<T>>) -> Self {
        Self { epoll, deadlines, events: [EpollEvent::empty(); BATCH] }
    }

    /// Sleeps until something happens or a moment has come; the events that happened.
    pub(in crate::worker) fn wait(&mut self) -> io::Result<&[EpollEvent]> {
        let timeout = timeout_until(self.deadlines.fall_asleep());
        let arrived = self.epoll.wait(&mut self.events, timeout);
        self.deadlines.wake_up();
        match arrived {
            Ok(count) => Ok(self.events.get(..count).unwrap_or_default()),
            Err(Errno::EINTR) => Ok(&[]),
            Err(errno) => Err(errno.into()),
        }
    }
}

fn timeout_until(moment: Option<Instant>) -> EpollTimeout {
    let Some(moment) = moment else {
        return EpollTimeout::NONE;
    };
    // Rounded up, or the poller would spin through the last millisecond.
    let wait = moment.saturating_duration_since(Instant::now()) + Duration::from_micros(999);
    EpollTimeout::try_from(wait.as_millis()).unwrap_or(EpollTimeout::MAX)
}
