//! What tells the supervisor that a listener was lost: the epoll set for sockets, inotify for their files.

use std::os::fd::AsRawFd;

use nix::sys::epoll::{Epoll, EpollEvent, EpollFlags};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::bound::Bound;
use crate::supervisor::policy::rebinding::Rebinding;
use crate::supervisor::tokens::{LISTENER, SOCKET_FILE};

/// What tells of lost listeners.
#[derive(Debug)]
pub(in crate::supervisor) struct LostListeners {
    /// None where the kernel has none left: a file that went is then noticed at the next reload.
    pub(in crate::supervisor) files: Option<Inotify>,
    pub(in crate::supervisor) rebinding: Rebinding,
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
        Self { files: files.ok(), rebinding: Rebinding::default() }
    }

    pub(in crate::supervisor) fn watch(&self, epoll: &Epoll, bound: &Bound) {
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
