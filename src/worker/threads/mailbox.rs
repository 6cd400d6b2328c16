//! What any thread has for the poller: put here, and taken when the poller is woken.
//!
//! A channel and not a list under a lock, because whoever puts something may hold a connection's lock and must not wait for a thread
//! that is not running just then. It has no bound of its own: what is put here is bounded by connections and calls. Nothing
//! outlives the process, so a death at any point leaves nothing to be found.

use crossbeam_channel::{Receiver, Sender};

#[derive(Debug)]
pub(in crate::worker) struct Mailbox<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
}

impl<T> Default for Mailbox<T> {
    fn default() -> Self {
        let (sender, receiver) = crossbeam_channel::unbounded();
        Self { sender, receiver }
    }
}

impl<T> Mailbox<T> {
    /// The poller is to be woken after this.
    pub(in crate::worker) fn put(&self, message: T) {
        // The other end is here too, so it is never lost.
        let _ = self.sender.send(message);
    }

    /// What is here now, in the order in which it came. What comes meanwhile is for the next time, or whoever takes could be kept
    /// at it.
    pub(in crate::worker) fn take(&self) -> Vec<T> {
        self.receiver.try_iter().take(self.receiver.len()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_taken_once_in_the_order_in_which_each_thread_put_it() {
        let mailbox = Mailbox::default();
        let mut taken = Vec::new();
        std::thread::scope(|scope| {
            for thread in 0..2 {
                let mailbox = &mailbox;
                scope.spawn(move || (0..1_000).for_each(|number| mailbox.put((thread, number))));
            }
            taken.extend(mailbox.take());
        });
        taken.extend(mailbox.take());
        for thread in 0..2 {
            let of_thread = taken.iter().filter(|(of, _)| *of == thread).map(|(_, number)| *number);
            assert_eq!(of_thread.collect::<Vec<_>>(), (0..1_000).collect::<Vec<_>>());
        }
        assert!(mailbox.take().is_empty());
    }
}
