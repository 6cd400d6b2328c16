//! Places where a test can make a thread late, so that races which are rare are frequent.
//!
//! With `TINE_FAIL_POINTS=delay` in its environment each thread is held up at random, for up to twice the time that
//! separates a quick call from a slow one. Only builds with debug assertions have these places.

use std::cell::Cell;
use std::sync::OnceLock;
use std::time::Duration;

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
