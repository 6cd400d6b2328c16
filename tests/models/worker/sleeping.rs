//! A poller that falls asleep while others add moments.

use std::sync::Arc;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use libtest_mimic::Trial;
use loom::thread;

use super::deadlines::Deadlines;
use crate::holds;
use crate::sys::sync::{Condvar, Mutex};

pub(crate) fn trials() -> Vec<Trial> {
    vec![holds("sleeping_an_added_moment_is_never_slept_through", 4, an_added_moment_is_never_slept_through)]
}

/// As an eventfd: once rung it wakes who sleeps, or the next who would.
#[derive(Debug)]
struct Bell {
    is_rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    fn ring(&self) {
        *self.is_rung.lock() = true;
        self.heard.notify_one();
    }

    fn wait(&self) {
        let mut is_rung = self.is_rung.lock();
        while !*is_rung {
            self.heard.wait(&mut is_rung);
        }
        *is_rung = false;
    }
}

/// The same in all runs of a model, which must not differ.
fn at(seconds: u64) -> Instant {
    static START: OnceLock<Instant> = OnceLock::new();
    *START.get_or_init(Instant::now) + Duration::from_secs(seconds)
}

/// The poller would sleep until 9; two threads add something for 1 and for 5. A moment that is slept through shows as a
/// model that never ends: nothing but the bell ends this sleep.
fn an_added_moment_is_never_slept_through() {
    let deadlines = Arc::new(Deadlines::new());
    let bell = Arc::new(Bell { is_rung: Mutex::new(false), heard: Condvar::new() });
    deadlines.add(at(9), 9, None);
    let others = [5, 1].map(|moment| {
        let (deadlines, bell) = (Arc::clone(&deadlines), Arc::clone(&bell));
        thread::spawn(move || {
            if deadlines.add(at(moment), moment, None) {
                bell.ring();
            }
        })
    });
    let mut due = Vec::new();
    while due.len() < 2 {
        let until = deadlines.fall_asleep();
        if until == Some(at(9)) {
            bell.wait();
        }
        deadlines.wake_up();
        while let Some((_, moment)) = deadlines.next_due(at(6)) {
            due.push(moment);
        }
    }
    for other in others {
        other.join().unwrap();
    }
}
