//! The queue before the pool's threads: callers take [turns](crate::worker::call::turns) in it.
//!
//! A call that is given up is taken out at once, so what is in the queue is what somebody waits for.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::{Condvar, Mutex};

use crate::sys::peer::AddressKey;
use crate::worker::call::turns::{Lane, Turn, Turns};

#[derive(Debug)]
pub(in crate::worker) struct Queue<T> {
    inner: Mutex<Inner<T>>,
    /// For threads that wait for something to take.
    ready: Condvar,
    /// [`Turns::held_back`], as it was when the lock was last released.
    held_back: AtomicUsize,
}

#[derive(Debug)]
struct Inner<T> {
    turns: Turns<T>,
    /// What is nobody's call and goes first.
    urgent: VecDeque<T>,
    /// Most calls that wait.
    room: usize,
    /// Threads that wait.
    idle: usize,
    /// Of these, the ones that were woken and have not come back yet.
    waking: usize,
}

impl<T> Queue<T> {
    /// With room for so many waiting calls, before so many threads.
    pub(in crate::worker) fn new(room: usize, threads: usize) -> Self {
        let (turns, urgent) = (Turns::new(Some(threads)), VecDeque::new());
        Self {
            inner: Mutex::new(Inner { turns, urgent, room, idle: 0, waking: 0 }),
            ready: Condvar::new(),
            held_back: AtomicUsize::new(0),
        }
    }

    /// A connection begins.
    pub(in crate::worker) fn open(&self, address: AddressKey) -> Lane {
        self.inner.lock().turns.open(address)
    }

    /// A connection has ended.
    pub(in crate::worker) fn close(&self, lane: Lane) {
        self.change(|inner| inner.turns.close(lane));
    }

    /// Puts a call behind those of the same connection.
    ///
    /// # Errors
    ///
    /// The call, where there is no room or the connection has ended.
    pub(in crate::worker) fn put(&self, lane: Lane, call: T) -> Result<(), T> {
        self.change(
            |inner| {
                if inner.turns.len() < inner.room { inner.turns.push(lane, call) } else { Err(call) }
            },
        )
    }

    /// Puts what is nobody's call before all calls.
    pub(in crate::worker) fn put_first(&self, task: T) {
        self.change(|inner| inner.urgent.push_back(task));
    }

    /// Waits for the next call that `claim` says is still wanted; others are given to `over`. When it runs no longer its
    /// connection must be told so by [`ended`](Self::ended).
    pub(in crate::worker) fn take(&self, claim: impl Fn(&T) -> bool, mut over: impl FnMut(T)) -> T {
        loop {
            match self.try_take(&claim, &mut over) {
                Some(call) => return call,
                None => self.wait(),
            }
        }
    }

    /// As [`take`](Self::take), without waiting.
    pub(in crate::worker) fn try_take(
        &self,
        claim: impl Fn(&T) -> bool,
        mut over: impl FnMut(T),
    ) -> Option<T> {
        loop {
            let unwanted = self.change(|inner| {
                if let Some(task) = inner.urgent.pop_front() {
                    return Some(Ok(task));
                }
                let (lane, call) = inner.turns.pop()?;
                if claim(&call) {
                    return Some(Ok(call));
                }
                inner.turns.ended(lane);
                Some(Err(call))
            });
            match unwanted? {
                Ok(call) => return Some(call),
                Err(call) => over(call),
            }
        }
    }

    fn wait(&self) {
        let mut inner = self.inner.lock();
        if !inner.has_some() {
            inner.idle += 1;
            self.ready.wait(&mut inner);
            inner.idle -= 1;
            inner.waking = inner.waking.saturating_sub(1);
        }
    }

    /// A call of the connection runs that was not taken from here.
    pub(in crate::worker) fn began(&self, lane: Lane) {
        self.change(|inner| inner.turns.began(lane));
    }

    /// A call of the connection runs no longer.
    pub(in crate::worker) fn ended(&self, lane: Lane) {
        self.change(|inner| inner.turns.ended(lane));
    }

    /// Takes out a call that nobody waits for any more. None where it is not there.
    pub(in crate::worker) fn remove(&self, lane: Lane, is_it: impl FnMut(&T) -> bool) -> Option<T> {
        self.change(|inner| inner.turns.remove(lane, is_it))
    }

    /// Takes out the call that is to give way to one of this connection, if there is one.
    pub(in crate::worker) fn displace(&self, lane: Lane) -> Option<T> {
        self.change(|inner| inner.turns.displace(lane))
    }

    /// What a call would have before it that this connection put now.
    pub(in crate::worker) fn turn(&self, lane: Lane) -> Turn {
        self.inner.lock().turns.turn(lane)
    }

    /// Calls that wait although a thread may be free, since their callers have enough of them.
    pub(in crate::worker) fn held_back(&self) -> usize {
        self.held_back.load(Ordering::Relaxed)
    }

    #[cfg(any(test, fuzzing))]
    pub(in crate::worker) fn len(&self) -> usize {
        self.inner.lock().turns.len()
    }

    /// Every change ends here: a thread is woken for what may go now.
    fn change<R>(&self, change: impl FnOnce(&mut Inner<T>) -> R) -> R {
        let mut inner = self.inner.lock();
        let result = change(&mut inner);
        self.held_back.store(inner.turns.held_back(), Ordering::Relaxed);
        let wakes = inner.waking < inner.idle && inner.waking < inner.ready();
        inner.waking += usize::from(wakes);
        drop(inner);
        if wakes {
            self.ready.notify_one();
        }
        result
    }
}

impl<T> Inner<T> {
    fn has_some(&self) -> bool {
        !self.urgent.is_empty() || self.turns.may_pop()
    }

    fn ready(&self) -> usize {
        self.urgent.len() + self.turns.len() - self.turns.held_back()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::channel;

    use super::*;

    const HERE: AddressKey = AddressKey::Unix(0);

    fn take_all(queue: &Queue<u32>) -> Vec<u32> {
        std::iter::from_fn(|| queue.try_take(|_| true, drop)).collect()
    }

    #[test]
    fn what_is_over_is_passed_by_and_what_is_urgent_comes_first() {
        let queue = Queue::new(5, 9);
        let lane = queue.open(HERE);
        for call in [1, 20, 3, 40, 5] {
            queue.put(lane, call).unwrap();
        }
        assert_eq!(queue.put(lane, 7), Err(7), "there is no room");
        assert_eq!(queue.remove(lane, |call| *call == 3), Some(3));
        queue.put_first(0);
        let mut over = Vec::new();
        let mut take = || queue.try_take(|call| *call < 10, |call| over.push(call));
        assert_eq!([take(), take(), take(), take()], [Some(0), Some(1), Some(5), None]);
        assert_eq!(over, [20, 40]);
        assert_eq!(queue.try_take(|_| true, drop), None);
    }

    /// Each wakes one thread, whoever puts what or has ended: none sleeps beside what may go.
    #[test]
    fn threads_that_wait_take_all_that_comes() {
        let (queue, (send, taken)) = (Queue::new(1_000, 2), channel());
        std::thread::scope(|scope| {
            for _ in 0..2 {
                let (queue, send) = (&queue, send.clone());
                scope.spawn(move || {
                    loop {
                        let (lane, call) = queue.take(|_| true, drop);
                        if call == u32::MAX {
                            return;
                        }
                        send.send(call).unwrap();
                        queue.ended(lane);
                    }
                });
            }
            let lanes = [HERE, AddressKey::Unix(1)].map(|address| queue.open(address));
            for round in 0..500 {
                for call in 0..round % 4 {
                    // Mostly of one connection, which is held back beside the other.
                    let lane = lanes[usize::from(call == 3)];
                    queue.put(lane, (lane, call)).unwrap();
                }
                (0..round % 4).for_each(|_| assert!(taken.recv().unwrap() < 4));
            }
            (0..2).for_each(|_| queue.put_first((lanes[0], u32::MAX)));
        });
    }

    #[test]
    fn what_was_held_back_goes_when_the_other_connection_ends() {
        let queue = Queue::new(10, 2);
        let [lane, other] = [queue.open(HERE), queue.open(HERE)];
        for call in [1, 2] {
            queue.put(lane, call).unwrap();
        }
        assert_eq!(take_all(&queue), [1]);
        assert_eq!(queue.held_back(), 1);
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| queue.take(|_| true, drop));
            queue.close(other);
            assert_eq!(waits.join().unwrap(), 2);
        });
        assert_eq!(queue.held_back(), 0);
    }
}
