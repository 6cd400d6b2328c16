//! What `sys::sync` of the crate is to its code, by loom.
//!
//! Loom takes a sequentially consistent access for one that acquires and releases, and has sequentially consistent fences. So
//! such an access is made of both here: a fence after the store, before the load, around what does both. That says a little more than
//! the language does where such accesses meet weaker ones to other words, and the same where they meet each other.

use std::cell::Cell;

pub(crate) use loom::sync::atomic::Ordering;
use loom::sync::{Condvar as LoomCondvar, Mutex as LoomMutex, MutexGuard as LoomGuard};

thread_local! {
    /// All threads of a model are this one.
    static IS_WEAK: Cell<bool> = const { Cell::new(false) };
    /// A panic is what is waited for.
    pub(crate) static MUST_FAIL: Cell<bool> = const { Cell::new(false) };
}

/// Runs models in a world where no access orders any other.
pub(crate) fn weakly(run: impl FnOnce()) {
    struct Restored;
    impl Drop for Restored {
        fn drop(&mut self) {
            IS_WEAK.set(false);
        }
    }
    let _restored = Restored;
    IS_WEAK.set(true);
    run();
}

pub(crate) fn fence(order: Ordering) {
    if !IS_WEAK.get() {
        loom::sync::atomic::fence(order);
    }
}

/// An access with fences before and after it where its order is a total one.
fn in_order<R>(order: Ordering, fences: (bool, bool), access: impl FnOnce(Ordering) -> R) -> R {
    if IS_WEAK.get() {
        return access(Ordering::Relaxed);
    }
    let is_total = order == Ordering::SeqCst;
    if is_total && fences.0 {
        fence(order);
    }
    let result = access(order);
    if is_total && fences.1 {
        fence(order);
    }
    result
}

/// A relaxed load is how the only writer of a word reads it back, and no step of the model: it can find nothing but what
/// was stored last. As a step it would hide the stores that follow it: of those who touched a word loom remembers only the
/// last, and tries no course in which a load of another thread before that comes after the store.
macro_rules! word {
    ($name:ident, $value:ty) => {
        #[derive(Debug)]
        pub(crate) struct $name {
            word: loom::sync::atomic::$name,
            last: std::sync::atomic::$name,
        }

        #[allow(dead_code, reason = "each has the same set")]
        impl $name {
            pub(crate) fn new(value: $value) -> Self {
                let (word, last) =
                    (loom::sync::atomic::$name::new(value), std::sync::atomic::$name::new(value));
                Self { word, last }
            }

            pub(crate) fn load(&self, order: Ordering) -> $value {
                if order == Ordering::Relaxed { self.last.load(order) } else { self.look(order) }
            }

            /// A load by somebody who does not write the word.
            pub(crate) fn look(&self, order: Ordering) -> $value {
                in_order(order, (true, false), |order| self.word.load(order))
            }

            pub(crate) fn store(&self, value: $value, order: Ordering) {
                in_order(order, (false, true), |order| self.word.store(value, order));
                self.last.store(value, Ordering::Relaxed);
            }

            pub(crate) fn swap(&self, value: $value, order: Ordering) -> $value {
                let before = in_order(order, (true, true), |order| self.word.swap(value, order));
                self.last.store(value, Ordering::Relaxed);
                before
            }

            pub(crate) fn compare_exchange(
                &self,
                current: $value,
                new: $value,
                success: Ordering,
                failure: Ordering,
            ) -> Result<$value, $value> {
                let failure = if IS_WEAK.get() { Ordering::Relaxed } else { failure };
                let found = in_order(success, (true, true), |order| {
                    self.word.compare_exchange(current, new, order, failure)
                });
                if found.is_ok() {
                    self.last.store(new, Ordering::Relaxed);
                }
                found
            }
        }
    };
}

word!(AtomicBool, bool);
word!(AtomicU64, u64);
word!(AtomicUsize, usize);

impl AtomicUsize {
    pub(crate) fn fetch_add(&self, more: usize, order: Ordering) -> usize {
        let before = in_order(order, (true, true), |order| self.word.fetch_add(more, order));
        self.last.store(before.wrapping_add(more), Ordering::Relaxed);
        before
    }

    pub(crate) fn fetch_sub(&self, less: usize, order: Ordering) -> usize {
        let before = in_order(order, (true, true), |order| self.word.fetch_sub(less, order));
        self.last.store(before.wrapping_sub(less), Ordering::Relaxed);
        before
    }
}

/// As `parking_lot`'s: a panic in a model ends it, so none is poisoned.
#[derive(Debug)]
pub(crate) struct Mutex<T>(LoomMutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(LoomMutex::new(value))
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, T> {
        MutexGuard(Some(self.0.lock().unwrap()))
    }
}

impl<T: Default> Default for Mutex<T> {
    fn default() -> Self {
        Self::new(T::default())
    }
}

/// Empty only inside [`Condvar::wait`].
pub(crate) struct MutexGuard<'a, T>(Option<LoomGuard<'a, T>>);

impl<T> std::ops::Deref for MutexGuard<'_, T> {
    type Target = T;
    fn deref(&self) -> &T {
        self.0.as_ref().unwrap()
    }
}

impl<T> std::ops::DerefMut for MutexGuard<'_, T> {
    fn deref_mut(&mut self) -> &mut T {
        self.0.as_mut().unwrap()
    }
}

#[derive(Debug)]
pub(crate) struct Condvar(LoomCondvar);

impl Condvar {
    pub(crate) fn new() -> Self {
        Self(LoomCondvar::new())
    }

    pub(crate) fn wait<T>(&self, guard: &mut MutexGuard<'_, T>) {
        let waited = self.0.wait(guard.0.take().unwrap()).unwrap();
        guard.0 = Some(waited);
    }

    pub(crate) fn notify_one(&self) {
        self.0.notify_one();
    }
}
