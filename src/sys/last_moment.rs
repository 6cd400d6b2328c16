//! What a process that is about to die lets another of its threads finish: connections that were accepted and that nobody
//! else has heard of yet.
//!
//! The poller says [`take_in_hand`] before it accepts, and [`put_down`] when the supervisor was sent what is new. A thread that
//! takes the process down, by a crash or by `exit`, says [`wait_for_hand`] first. Each stores its own word before it reads the
//! other's (Dekker's algorithm), so one of them sees the other: either the thread waits, or the poller accepts nobody any more,
//! and who comes stays in the backlog, for another worker.
//!
//! Both words are this process's own and go with it. They say nothing of a process that is killed from outside: a connection that
//! was accepted in that very moment is lost.

use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use nix::libc;

/// How often, and for how long each time, a dying process looks: 50 ms in all, should the poller be held up.
const LOOKS: u32 = 100;
static PAUSE: libc::timespec = libc::timespec { tv_sec: 0, tv_nsec: 500_000 };

static WORDS: Words = Words::new();

/// The poller is about to accept. False where the process is dying: it accepts nobody then.
pub(crate) fn take_in_hand() -> bool {
    WORDS.take_in_hand()
}

/// Whoever was accepted is known elsewhere, or can't be.
pub(crate) fn put_down() {
    WORDS.put_down();
}

/// This process is about to die: waits until no other thread has anything in hand, for a moment at most. Async-signal-safe: loads,
/// stores, `pthread_self` and `nanosleep`.
pub(crate) fn wait_for_hand() {
    WORDS.wait_for_hand();
}

struct Words {
    /// The thread that has connections which would be lost; 0 for none.
    in_hand: AtomicU64,
    /// A thread takes the process down.
    dying: AtomicBool,
}

impl Words {
    const fn new() -> Self {
        Self { in_hand: AtomicU64::new(0), dying: AtomicBool::new(false) }
    }

    fn take_in_hand(&self) -> bool {
        self.in_hand.store(this_thread(), Ordering::SeqCst);
        let lives = !self.dying.load(Ordering::SeqCst);
        if !lives {
            self.put_down();
        }
        lives
    }

    fn put_down(&self) {
        self.in_hand.store(0, Ordering::Release);
    }

    fn wait_for_hand(&self) {
        self.dying.store(true, Ordering::SeqCst);
        for _ in 0..LOOKS {
            let who = self.in_hand.load(Ordering::SeqCst);
            if who == 0 || who == this_thread() {
                return;
            }
            // SAFETY: it reads the time that it is given, which lives for ever, and is told to leave no rest.
            unsafe { libc::nanosleep(&raw const PAUSE, ptr::null_mut()) };
        }
    }
}

fn this_thread() -> u64 {
    // SAFETY: it takes nothing and can't fail.
    unsafe { libc::pthread_self() }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn who_dies_waits_for_what_another_thread_has_in_hand_and_then_nobody_is_accepted() {
        let words = Words::new();
        assert!(words.take_in_hand());
        thread::scope(|threads| {
            let waits = threads.spawn(|| words.wait_for_hand());
            while !words.dying.load(Ordering::SeqCst) {
                thread::yield_now();
            }
            words.put_down();
            waits.join().unwrap();
        });
        assert!(!words.take_in_hand(), "who comes now is for another worker");
        assert_eq!(words.in_hand.load(Ordering::SeqCst), 0);
    }

    #[test]
    fn ones_own_hands_are_not_waited_for_and_nobody_elses_for_ever() {
        let words = Words::new();
        assert!(words.take_in_hand());
        let wait = || {
            let begun = Instant::now();
            words.wait_for_hand();
            begun.elapsed()
        };
        let all = Duration::from_micros(500) * LOOKS;
        assert!(wait() < all);
        assert!(thread::scope(|threads| threads.spawn(wait).join().unwrap()) >= all);
    }
}
