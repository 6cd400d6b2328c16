//! Places where a test can make a thread late, or the process die. Only builds with debug assertions have them.
//!
//! With `TINE_FAIL_POINTS=delay` in its environment each thread is held up at random, for up to twice the time that
//! separates a quick call from a slow one, so that races which are rare are frequent.
//!
//! A process dies at the n-th [`step`] after it was [armed](die_after), as by `kill -9`: a test that arms for the first step,
//! then for the second, and so on, has it die between any two instructions that matter.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::sys::process::{self, Pid, Signal};

/// Turns them on.
const VARIABLE: &str = "TINE_FAIL_POINTS";

/// The longest delay, in microseconds.
const LONGEST_US: u64 = 3_000;

/// Holds the calling thread up, now and then.
pub(crate) fn delay() {
    if cfg!(debug_assertions) && is_on() {
        let draw = draw();
        // Most of the time it passes: a thread that is always late is late for nothing.
        if draw.is_multiple_of(4) {
            std::thread::sleep(Duration::from_micros(draw / 4 % LONGEST_US));
        }
    }
}

/// Which way the steps are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A call's: receiving, beginning, running, publishing, sending.
    Path,
    /// A connection's, from a worker that has died or let it go to another.
    Adopt,
}

/// Steps of either kind until the process dies; 0 while it is not armed.
static STEPS_LEFT: [AtomicU64; 2] = [AtomicU64::new(0), AtomicU64::new(0)];

/// A step of the way. The process dies here if it was armed for this one.
#[inline]
pub(crate) fn step(kind: Kind) {
    #[cfg(test)]
    looking::look();
    if cfg!(debug_assertions) {
        let left = &STEPS_LEFT[kind as usize];
        if left.load(Ordering::Relaxed) > 0 && left.fetch_sub(1, Ordering::Relaxed) == 1 {
            let _ = process::kill(Pid::this(), Signal::SIGKILL);
            // A signal to oneself arrives before the call returns, unless another thread was chosen to take it.
            loop {
                std::thread::park();
            }
        }
    }
}

/// Has this process die at the `steps`-th step of this kind from now on, counted from 1.
pub(crate) fn die_after(kind: Kind, steps: u64) {
    STEPS_LEFT[kind as usize].store(steps, Ordering::Relaxed);
}

fn is_on() -> bool {
    static IS_ON: OnceLock<bool> = OnceLock::new();
    *IS_ON.get_or_init(|| std::env::var_os(VARIABLE).is_some_and(|value| value == "delay"))
}

/// The next number of this thread's sequence: xorshift64 (Marsaglia, "Xorshift RNGs", 2003).
fn draw() -> u64 {
    thread_local! {
        static STATE: Cell<u64> = Cell::new(crate::sys::clock::monotonic_ns() | 1);
    }
    STATE.with(|state| {
        let mut x = state.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        state.set(x);
        x
    })
}

/// At each step of the thread that runs it a test can look at what a reader would find if the process died there.
#[cfg(test)]
pub(crate) mod looking {
    use std::cell::RefCell;

    thread_local! {
        static LOOK: RefCell<Option<Box<dyn FnMut()>>> = RefCell::default();
    }

    /// Has `look` called at each step of this thread from now on.
    pub(crate) fn at_each_step(look: impl FnMut() + 'static) {
        LOOK.with(|place| *place.borrow_mut() = Some(Box::new(look)));
    }

    pub(super) fn look() {
        let look = LOOK.with(|place| place.borrow_mut().take());
        if let Some(mut look) = look {
            look();
            LOOK.with(|place| *place.borrow_mut() = Some(look));
        }
    }
}
