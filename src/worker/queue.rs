//! The bounded queue before the pool's threads.
//!
//! Calls that were given up stay in it until a thread takes them out. Where all threads hang none does: when the queue is
//! full they are swept out, so that the room is for calls that somebody waits for.

use crossbeam_channel::{Receiver, Sender, TrySendError};

#[derive(Debug)]
pub(super) struct Queue<T> {
    sender: Sender<T>,
    receiver: Receiver<T>,
}

impl<T> Queue<T> {
    pub(super) fn new(room: usize) -> Self {
        let (sender, receiver) = crossbeam_channel::bounded(room);
        Self { sender, receiver }
    }

    /// The end that threads take from.
    pub(super) fn receiver(&self) -> Receiver<T> {
        self.receiver.clone()
    }

    /// Puts `task` at the end. Where there is no room, tasks that are `over` leave through `sweep` first.
    ///
    /// # Errors
    ///
    /// The task, where there is no room after that either.
    pub(super) fn put(&self, task: T, over: impl Fn(&T) -> bool, mut sweep: impl FnMut(T)) -> Result<(), T> {
        let Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) = self.sender.try_send(task)
        else {
            return Ok(());
        };
        // As many as are in it now: what is put in meanwhile, by us or others, comes behind them.
        for _ in 0..self.receiver.len() {
            let Ok(task) = self.receiver.try_recv() else { break };
            if over(&task) {
                sweep(task);
            } else if let Err(TrySendError::Full(task) | TrySendError::Disconnected(task)) =
                self.sender.try_send(task)
            {
                // Others were quicker to use its room. Its caller is told when it has waited enough.
                sweep(task);
            }
        }
        self.sender.try_send(task).map_err(|error| match error {
            TrySendError::Full(task) | TrySendError::Disconnected(task) => task,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_over_makes_room_and_the_rest_keeps_its_order() {
        let queue = Queue::new(5);
        for task in [1, 20, 3, 40, 5] {
            queue.put(task, |_| false, |_| panic!("there is room")).unwrap();
        }
        let mut swept = Vec::new();
        queue.put(7, |task| *task >= 10, |task| swept.push(task)).unwrap();
        assert_eq!(swept, [20, 40]);
        assert_eq!(queue.receiver().try_iter().collect::<Vec<_>>(), [1, 3, 5, 7]);
    }

    #[test]
    fn a_queue_full_of_what_is_wanted_takes_no_more() {
        let queue = Queue::new(2);
        for task in [1, 2] {
            queue.put(task, |_| false, drop).unwrap();
        }
        assert_eq!(queue.put(3, |_| false, |_| panic!("it is wanted")), Err(3));
        assert_eq!(queue.receiver().try_iter().collect::<Vec<_>>(), [1, 2]);
    }
}
