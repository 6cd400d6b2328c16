//! What this worker knows of methods in quarantine: one word for each method, read before any of its calls runs.
//!
//! The poller writes what the supervisor says; every thread reads, and the one that uses up a trial writes that. Which
//! methods are in quarantine is decided by the supervisor.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::channel::FromWorker;
use crate::rpc::{Error, MethodIndex, Registry};
use crate::sys::clock;
use crate::worker::shared::Shared;

/// Any call may run.
const OPEN: u64 = 0;
/// One call may run.
const TRIAL: u64 = 1;
// Anything else: none may run, and the supervisor gives no trial before this moment, in nanoseconds of the monotonic clock.

/// What a caller is told to wait while the trial is about to be given to somebody, or runs somewhere.
const SOON: Duration = Duration::from_millis(20);

#[derive(Debug)]
pub(in crate::worker) struct Quarantine {
    /// By a method's number.
    methods: Vec<Word>,
}

#[derive(Debug)]
struct Word {
    word: AtomicU64,
    /// The supervisor was asked for the trial.
    has_asked: AtomicBool,
}

/// A call must not run; its caller may try again after this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) struct Shut {
    pub(in crate::worker) retry_after: Duration,
    /// The supervisor should be asked for the trial.
    pub(in crate::worker) ask: bool,
}

/// A call may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::worker) enum Pass {
    Free,
    /// It is the trial, and whoever runs it must say how it has ended.
    Trial,
}

impl Quarantine {
    pub(in crate::worker) fn new(registry: &Registry) -> Self {
        Self::of(registry.names().len())
    }

    fn of(methods: usize) -> Self {
        let open = || Word { word: AtomicU64::new(OPEN), has_asked: AtomicBool::new(false) };
        Self { methods: std::iter::repeat_with(open).take(methods).collect() }
    }

    /// Whether a call may be begun. It [enters](Self::enter) when it is run, which may be much later.
    pub(in crate::worker) fn admits(&self, method: MethodIndex) -> Result<(), Shut> {
        let Some(of) = self.methods.get(method.0) else { return Ok(()) };
        // Nothing else is read on the strength of it.
        match of.word.load(Ordering::Relaxed) {
            OPEN | TRIAL => Ok(()),
            until_ns => Err(of.shut(until_ns)),
        }
    }

    /// Whether a call may run now. This uses the trial up, so that a second one finds the method shut.
    pub(in crate::worker) fn enter(&self, method: MethodIndex) -> Result<Pass, Shut> {
        match self.methods.get(method.0) {
            Some(of) if of.word.load(Ordering::Relaxed) != OPEN => of.enter(),
            Some(_) | None => Ok(Pass::Free),
        }
    }

    /// Shuts a method; nothing is tried for `wait`. True if this took a trial back that no call had used.
    pub(in crate::worker) fn shut(&self, method: MethodIndex, wait: Duration) -> bool {
        let Some(of) = self.methods.get(method.0) else { return false };
        let until_ns = clock::monotonic_ns().saturating_add(clock::whole_ns(wait)).max(TRIAL + 1);
        let before = of.word.swap(until_ns, Ordering::AcqRel);
        of.has_asked.store(false, Ordering::Relaxed);
        before == TRIAL
    }

    /// One call may run, if the method is shut.
    pub(in crate::worker) fn grant(&self, method: MethodIndex) {
        if let Some(of) = self.methods.get(method.0) {
            of.has_asked.store(false, Ordering::Relaxed);
            of.word.store(TRIAL, Ordering::Release);
        }
    }

    pub(in crate::worker) fn release(&self, method: MethodIndex) {
        if let Some(of) = self.methods.get(method.0) {
            of.word.store(OPEN, Ordering::Release);
            of.has_asked.store(false, Ordering::Relaxed);
        }
    }
}

impl Shared {
    /// From the supervisor: calls of the method are refused from now on.
    pub(in crate::worker) fn shut_method(&self, name: &str, wait: Duration) {
        let Some(method) = self.context.service.registry().find(name) else { return };
        if self.quarantine.shut(method, wait) {
            self.tell(FromWorker::TrialEnded { method: name.to_owned(), ok: false });
        }
    }

    /// From the supervisor: one call of the method may run.
    pub(in crate::worker) fn grant_trial(&self, name: &str) {
        match self.context.service.registry().find(name) {
            Some(method) => self.quarantine.grant(method),
            // Methods of this generation alone are granted here, but a trial must not be lost.
            None => self.tell(FromWorker::TrialEnded { method: name.to_owned(), ok: false }),
        }
    }

    /// From the supervisor: the method is one like any other.
    pub(in crate::worker) fn release_method(&self, name: &str) {
        if let Some(method) = self.context.service.registry().find(name) {
            self.quarantine.release(method);
        }
    }

    /// The trial's call has come back, and the process with it.
    pub(in crate::worker) fn trial_survived(&self, method: MethodIndex) {
        self.tell(FromWorker::TrialEnded { method: self.method_name(method).to_owned(), ok: true });
    }

    /// The answer to a call that must not run.
    pub(in crate::worker) fn quarantined(&self, method: MethodIndex, shut: Shut) -> Error {
        let name = self.method_name(method);
        if shut.ask {
            self.tell(FromWorker::TrialWanted { method: name.to_owned() });
        }
        Error::quarantined(name, shut.retry_after)
    }
}

impl Word {
    /// Of a method that was in quarantine a moment ago.
    #[cold]
    fn enter(&self) -> Result<Pass, Shut> {
        loop {
            match self.word.load(Ordering::Relaxed) {
                OPEN => return Ok(Pass::Free),
                TRIAL => {
                    let now_ns = clock::monotonic_ns().max(TRIAL + 1);
                    let taken =
                        self.word.compare_exchange(TRIAL, now_ns, Ordering::AcqRel, Ordering::Relaxed);
                    if taken.is_ok() {
                        // Whoever is refused meanwhile need not ask: the end of this call decides.
                        self.has_asked.store(true, Ordering::Relaxed);
                        return Ok(Pass::Trial);
                    }
                }
                until_ns => return Err(self.shut(until_ns)),
            }
        }
    }

    fn shut(&self, until_ns: u64) -> Shut {
        let left = Duration::from_nanos(until_ns.saturating_sub(clock::monotonic_ns()));
        let retry_after = if left.is_zero() { SOON } else { left };
        Shut { retry_after, ask: !self.has_asked.swap(true, Ordering::Relaxed) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OTHER: MethodIndex = MethodIndex(0);
    const METHOD: MethodIndex = MethodIndex(1);
    const LONG: Duration = Duration::from_secs(1_000);

    fn asks(found: Result<(), Shut>) -> bool {
        found.unwrap_err().ask
    }

    #[test]
    fn a_method_that_is_shut_runs_no_call_until_it_is_released_and_others_do() {
        let quarantine = Quarantine::of(2);
        assert_eq!((quarantine.admits(METHOD), quarantine.enter(METHOD)), (Ok(()), Ok(Pass::Free)));
        assert!(!quarantine.shut(METHOD, LONG));
        let shut = quarantine.admits(METHOD).unwrap_err();
        assert!(shut.retry_after <= LONG && shut.retry_after > LONG / 2, "{shut:?}");
        assert!(quarantine.enter(METHOD).is_err());
        assert_eq!((quarantine.admits(OTHER), quarantine.enter(OTHER)), (Ok(()), Ok(Pass::Free)));
        quarantine.release(METHOD);
        assert_eq!((quarantine.admits(METHOD), quarantine.enter(METHOD)), (Ok(()), Ok(Pass::Free)));
    }

    #[test]
    fn time_alone_opens_nothing() {
        let quarantine = Quarantine::of(2);
        quarantine.shut(METHOD, Duration::ZERO);
        assert_eq!(quarantine.admits(METHOD).unwrap_err().retry_after, SOON);
        assert!(quarantine.enter(METHOD).is_err());
    }

    #[test]
    fn a_trial_is_for_one_call_however_many_were_begun() {
        let quarantine = Quarantine::of(2);
        quarantine.shut(METHOD, Duration::ZERO);
        quarantine.grant(METHOD);
        assert_eq!((quarantine.admits(METHOD), quarantine.admits(METHOD)), (Ok(()), Ok(())));
        let entered: Vec<_> = std::thread::scope(|threads| {
            let all: Vec<_> = (0..8).map(|_| threads.spawn(|| quarantine.enter(METHOD))).collect();
            all.into_iter().filter_map(|one| one.join().unwrap().ok()).collect()
        });
        assert_eq!(entered, [Pass::Trial]);
        assert!(!asks(quarantine.admits(METHOD)), "its end decides");
    }

    #[test]
    fn a_trial_is_given_back_only_if_no_call_has_used_it() {
        let quarantine = Quarantine::of(2);
        quarantine.shut(METHOD, Duration::ZERO);
        quarantine.grant(METHOD);
        assert!(quarantine.shut(METHOD, Duration::ZERO));
        assert!(quarantine.enter(METHOD).is_err());
        quarantine.grant(METHOD);
        assert_eq!(quarantine.enter(METHOD), Ok(Pass::Trial));
        assert!(!quarantine.shut(METHOD, Duration::ZERO));
    }

    #[test]
    fn the_supervisor_is_asked_once_for_each_time_that_it_says_something() {
        let quarantine = Quarantine::of(2);
        for wait in [LONG, Duration::ZERO] {
            quarantine.shut(METHOD, wait);
            assert!(asks(quarantine.admits(METHOD)));
            assert!(!asks(quarantine.admits(METHOD)));
            assert!(!quarantine.enter(METHOD).unwrap_err().ask);
        }
    }

    #[test]
    fn a_method_that_never_was_is_not_in_quarantine() {
        let quarantine = Quarantine::of(2);
        let none = MethodIndex(2);
        assert!(!quarantine.shut(none, LONG));
        quarantine.grant(none);
        assert_eq!((quarantine.admits(none), quarantine.enter(none)), (Ok(()), Ok(Pass::Free)));
    }
}
