//! The guard around everything of the program's: handlers, hooks, what params, results and errors do when they are read,
//! written and dropped.
//!
//! A panic in there is caught, and the value that it was made with is dropped in here too, because that is the program's as
//! well and may panic once more. What can't be guarded ends the process: a panic while another one unwinds, and one in
//! the program's own panic hook.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use crate::log;

/// What was run has panicked; with its text, where it had one.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Panicked(Option<String>);

/// Runs what is the program's.
///
/// State that it leaves half-changed is for its own kind to survive, as with any lock that std poisons: so nothing of ours
/// may be used afterwards that it has written to.
///
/// # Errors
///
/// It panicked. The panic hook has run by then.
#[inline]
pub(crate) fn guarded<T>(run: impl FnOnce() -> T) -> Result<T, Panicked> {
    catch_unwind(AssertUnwindSafe(run)).map_err(Panicked::with)
}

/// A value's own text, made and dropped inside the guard, and no longer than the log takes.
pub(crate) fn told(value: impl fmt::Display) -> String {
    let text = guarded(|| log::text_of(&value));
    // By itself: where both panic, the second must not do so while the first unwinds.
    let _ = guarded(|| drop(value));
    text.unwrap_or_else(|panicked| format!("its text can't be made: it {panicked}"))
}

impl Panicked {
    pub(crate) fn text(&self) -> Option<&str> {
        self.0.as_deref()
    }

    /// Goes on unwinding, by its text, which is told already.
    #[cold]
    pub(crate) fn go_on(self) -> ! {
        match self.0 {
            Some(text) => resume_unwind(Box::new(text)),
            None => resume_unwind(Box::new(())),
        }
    }

    #[cold]
    fn with(payload: Box<dyn Any + Send>) -> Self {
        let text = text_of(&*payload).map(|text| log::cut(text).into_owned());
        if let Err(second) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
            // It may go on like that for ever.
            std::mem::forget(second);
        }
        Panicked(text)
    }
}

impl fmt::Display for Panicked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(text) => write!(f, "panicked: {text}"),
            None => f.write_str("panicked: a value that is not text"),
        }
    }
}

/// What a panic says, if that is text.
pub(crate) fn text_of(payload: &dyn Any) -> Option<&str> {
    let text = payload.downcast_ref::<&str>().copied();
    text.or_else(|| payload.downcast_ref::<String>().map(String::as_str))
}

#[cfg(test)]
mod tests {
    use std::panic::panic_any;

    use super::*;

    /// Panics when it is dropped, with another one of its kind.
    struct Again;

    impl Drop for Again {
        fn drop(&mut self) {
            if !std::thread::panicking() {
                panic_any(Again);
            }
        }
    }

    struct Unprintable;

    impl Drop for Unprintable {
        fn drop(&mut self) {
            panic!("no end")
        }
    }

    impl fmt::Display for Unprintable {
        fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
            panic!("no text")
        }
    }

    #[test]
    fn a_panic_is_told_by_its_text() {
        assert_eq!(guarded(|| 7), Ok(7));
        let told_of = |run: fn()| guarded(run).unwrap_err().to_string();
        assert_eq!(told_of(|| panic!("oh no")), "panicked: oh no");
        let number = std::hint::black_box(5);
        assert_eq!(
            guarded(|| panic!("number {number}")).map(|(): ()| ()).unwrap_err().to_string(),
            "panicked: number 5"
        );
        assert_eq!(told_of(|| panic_any(5)), "panicked: a value that is not text");
    }

    #[test]
    fn a_value_that_panics_when_it_is_dropped_goes_no_further() {
        assert_eq!(guarded(|| panic_any(Again)).map(|(): ()| ()), Err(Panicked(None)));
        assert_eq!(guarded(|| drop(Again)), Err(Panicked(None)));
    }

    #[test]
    fn a_text_that_can_not_be_made_is_said_so() {
        assert_eq!(told(Unprintable), "its text can't be made: it panicked: no text");
        assert_eq!(told("plain"), "plain");
    }
}
