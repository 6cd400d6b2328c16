//! Listeners that were lost while the service runs: noticing it, binding them anew, telling the workers.
//!
//! A handler that shuts a listening socket down ends listening for everybody who has it, and a socket file can be removed by
//! anybody who may write to its folder. Neither is asked for: the kernel wakes the supervisor, for a socket by its epoll entry,
//! for a file by a watch on its inode.

use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use crate::channel::ToWorker;
use crate::config;
use crate::supervisor::children::worker_channels;
use crate::supervisor::listeners::bound::{Bound, Listeners, Loss};
use crate::supervisor::policy::state::WorkerId;
use crate::supervisor::{LISTENER, SOCKET_FILE, Supervisor};

/// How long until a listener that can't be bound anew is tried again: at first, and at most.
const TRY_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// How long until a socket file that something has happened to is looked at: whoever removes it may be about to put another in
/// its place, or to remove the folder.
const SETTLES: Duration = Duration::from_millis(100);

/// What tells of lost listeners.
#[derive(Debug)]
pub(in crate::supervisor) struct LostListeners {
    /// None where the kernel has none left: a file that went is then noticed at the next reload.
    files: Option<Inotify>,
    retry: Retry,
}

/// When it is tried again to bind what could not be bound.
#[derive(Debug, Default)]
struct Retry {
    at: Option<Instant>,
    wait: Option<Duration>,
}

impl Retry {
    /// It has failed. True where that is to be said.
    fn failed(&mut self, now: Instant) -> bool {
        let is_first = self.wait.is_none();
        let wait = self.wait.map_or(TRY_AGAIN.0, |wait| (wait * 2).min(TRY_AGAIN.1));
        self.wait = Some(wait);
        self.at = now.checked_add(wait);
        is_first
    }

    /// There is something to look at.
    fn soon(&mut self, now: Instant) {
        self.at = now.checked_add(SETTLES);
    }

    fn is_due(&mut self, now: Instant) -> bool {
        self.at.take_if(|at| *at <= now).is_some()
    }
}

impl LostListeners {
    pub(in crate::supervisor) fn new(epoll: &Epoll) -> Self {
        let files = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).and_then(|files| {
            epoll.add(&files, EpollEvent::new(EpollFlags::EPOLLIN, SOCKET_FILE))?;
            Ok(files)
        });
        if let Err(error) = &files {
            tracing::warn!(%error, "socket files can't be watched; one that is removed is noticed at the next reload");
        }
        Self { files: files.ok(), retry: Retry::default() }
    }

    pub(in crate::supervisor) fn next_try(&self) -> Option<Instant> {
        self.retry.at
    }

    fn watch(&self, epoll: &Epoll, bound: &Bound) {
        // By edges: a socket that was shut down stays so. One that is in the set already is refused.
        let flags = EpollFlags::EPOLLRDHUP | EpollFlags::EPOLLET;
        let _ = epoll.add(bound, EpollEvent::new(flags, LISTENER));
        bound.with_file(|file| {
            // Its number of names changes when it is removed, or another file is put in its place.
            let of_itself =
                AddWatchFlags::IN_ATTRIB | AddWatchFlags::IN_MOVE_SELF | AddWatchFlags::IN_DELETE_SELF;
            let inode = format!("/proc/self/fd/{}", file.as_raw_fd());
            if let Some(Err(error)) = self.files.as_ref().map(|files| files.add_watch(&*inode, of_itself)) {
                tracing::warn!(address = bound.address(), %error, "its socket file can't be watched");
            }
        });
    }
}

impl Supervisor {
    /// Has the kernel tell of what happens to the listeners that serve.
    pub(in crate::supervisor) fn watch_listeners(&self) {
        for (_, bound) in self.settings.listeners.iter().flat_map(Listeners::iter) {
            self.lost.watch(&self.epoll, bound);
        }
    }

    pub(in crate::supervisor) fn socket_file_event(&mut self) {
        while let Some(Ok(_)) = self.lost.files.as_ref().map(Inotify::read_events) {}
        self.lost.retry.soon(Instant::now());
    }

    pub(in crate::supervisor) fn listen_again(&mut self) {
        if self.lost.retry.is_due(Instant::now()) {
            self.look_at_listeners();
        }
    }

    /// Binds anew what was lost.
    pub(in crate::supervisor) fn look_at_listeners(&mut self) {
        let listeners = self.settings.listeners.iter().flat_map(Listeners::iter);
        let lost: Vec<(config::Listener, Rc<Bound>, Loss)> = listeners
            .filter_map(|(wanted, bound)| Some((wanted.clone(), Rc::clone(bound), bound.loss()?)))
            .collect();
        let mut why_not = None;
        for (wanted, bound, loss) in lost {
            match bound.bind_anew(&wanted) {
                Ok(anew) => {
                    tracing::error!(address = anew.address(), "{loss}; it was bound anew");
                    self.lost.watch(&self.epoll, &anew);
                    self.put_in_place(&bound, &anew);
                }
                Err(error) => why_not = Some(format!("{loss}, and can't be bound anew: {}", error.why)),
            }
        }
        match why_not {
            None => self.lost.retry = Retry::default(),
            Some(why) if self.lost.retry.failed(Instant::now()) => {
                tracing::error!("{why}; tried again until it can (said once)");
            }
            Some(why) => tracing::debug!("{why}"),
        }
    }

    fn put_in_place(&mut self, lost: &Rc<Bound>, anew: &Rc<Bound>) {
        let next = self.next.as_mut().and_then(|next| next.listeners_mut());
        for listeners in self.settings.listeners.as_mut().into_iter().chain(next) {
            listeners.replace(lost, anew);
        }
        for worker in self.workers.ids() {
            self.listens_on_what_there_is(worker);
        }
    }

    /// Sends a worker that is ready the listeners that have taken the place of those it has. One that boots gets them when it
    /// is ready, and one that is to end accepts nothing more.
    pub(in crate::supervisor) fn listens_on_what_there_is(&mut self, id: WorkerId) {
        let Some(worker) = self.workers.get(id).filter(|worker| !worker.end_expected && worker.pid.is_some())
        else {
            return;
        };
        let Some(settings) = self.settings(worker.generation) else { return };
        let sockets = settings.listeners.as_ref().map(Listeners::sockets).unwrap_or_default();
        let Some(worker) = self.workers.get_mut(id).filter(|worker| worker.hears()) else {
            return;
        };
        for (number, (has, wanted)) in worker.listeners.iter_mut().zip(sockets).enumerate() {
            if Rc::ptr_eq(has, &wanted) {
                continue;
            }
            let sent = wanted
                .duplicate()
                .and_then(|fd| worker.channel.send(&ToWorker::ListenAnew { number }, vec![fd]));
            match sent {
                Ok(()) => *has = wanted,
                Err(error) => {
                    tracing::warn!(slot = worker.slot, %error, "a worker can't be given a listener");
                }
            }
        }
        worker_channels::watch_worker(&self.epoll, worker, id);
    }

    /// Those of a worker's listeners, by number, that nobody goes on with when it leaves: a reload has dropped them.
    pub(in crate::supervisor) fn listeners_that_end_with(&self, id: WorkerId) -> Vec<usize> {
        let serves =
            |bound: &Rc<Bound>| self.settings.listeners.as_ref().is_some_and(|serving| serving.has(bound));
        let listeners =
            self.workers.get(id).into_iter().flat_map(|worker| worker.listeners.iter().enumerate());
        listeners.filter(|(_, bound)| !serves(bound)).map(|(number, _)| number).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_not_be_bound_is_tried_again_less_and_less_often_and_said_once() {
        let (mut retry, mut now) = (Retry::default(), Instant::now());
        let mut waits = Vec::new();
        for attempt in 0..9 {
            assert_eq!(retry.failed(now), attempt == 0);
            let at = retry.at.unwrap();
            assert!(!retry.is_due(now));
            waits.push((at - now).as_secs());
            now = at;
            assert!(retry.is_due(now));
            assert!(!retry.is_due(now), "once");
        }
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
    }
}
