//! Listeners that are lost while the service runs: the supervisor notices, binds them anew, and gives workers the new sockets.
//!
//! A handler that shuts a listening socket down ends listening for everybody who has the socket. Anybody who may write to the folder of a
//! socket file can remove the file. The supervisor does not poll for either: the kernel wakes it, by the socket's epoll entry and by a watch on
//! the file's inode.

use std::rc::Rc;
use std::time::Instant;

use nix::sys::inotify::Inotify;

use super::bound::{Bound, Listeners, Loss};
use crate::channel::ToWorker;
use crate::config;
use crate::supervisor::children::tell::watch_worker;
use crate::supervisor::parts::Supervisor;
use crate::supervisor::policy::Policy;
use crate::supervisor::policy::rebinding::Rebinding;
use crate::supervisor::policy::state::WorkerId;

impl Supervisor {
    /// Has the kernel tell of what happens to the listeners that serve.
    pub(in crate::supervisor) fn watch_listeners(&self) {
        for (_, bound) in self.settings.listeners.iter().flat_map(Listeners::iter) {
            self.lost.watch(&self.epoll, bound);
        }
    }

    pub(in crate::supervisor) fn socket_file_event(&mut self) {
        while let Some(Ok(_)) = self.lost.files.as_ref().map(Inotify::read_events) {}
        self.lost.rebinding.soon(Instant::now());
    }

    pub(in crate::supervisor) fn listen_again(&mut self) {
        if self.lost.rebinding.due(Instant::now(), ()) {
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
            None => self.lost.rebinding = Rebinding::default(),
            Some(why) if self.lost.rebinding.failed(Instant::now()) => {
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
        watch_worker(&self.epoll, worker, id);
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
