//! Panics in a worker: what the log says of one, and the program's own panic hook.
//!
//! Our hook runs first and then the one that the program has set, in `main` or `preload`. One that is set later, as in a state, and
//! calls the one before it, calls ours. One that doesn't has ours not run; the panic of a handler is told all the same, by whoever
//! catches it, but without its place.

use std::backtrace::Backtrace;
use std::cell::Cell;
use std::fmt::Write as _;
use std::panic::{PanicHookInfo, set_hook, take_hook};
use std::time::Duration;

use crate::arena::OwnRow;
use crate::config::span;
use crate::log::{self, More};
use crate::rpc::guard::{self, Panicked};
use crate::rpc::{Method, MethodIndex};
use crate::sys::clock;
use crate::worker::context::WorkerContext;
use crate::worker::counted::PANICS;

type Hook = Box<dyn Fn(&PanicHookInfo<'_>) + Send + Sync>;

/// The longest part of a backtrace in one record.
const LONGEST_PART: usize = 2048;
/// The most parts of one.
const MOST_PARTS: usize = 16;

thread_local! {
    /// What this thread runs stands there. None for a thread that runs no calls, such as one that a handler has started.
    static ROW: Cell<Option<OwnRow>> = const { Cell::new(None) };
    /// Our hook has run for the panic that this thread unwinds by, or ran by before.
    static IS_TOLD: Cell<bool> = const { Cell::new(false) };
}

/// Has panics of this thread name the call that it runs.
pub(in crate::worker) fn this_thread_has(row: OwnRow) {
    ROW.set(Some(row));
}

/// Has every panic in this process told in the log, and then to the program's own hook.
pub(in crate::worker) fn log_panics(context: &'static WorkerContext, slot: usize) {
    let backtraces = Backtraces::wanted();
    let programs = programs_hook();
    set_hook(Box::new(move |panic| {
        let _ = IS_TOLD.try_with(|is_told| is_told.set(true));
        let text = guard::text_of(panic.payload()).map_or_else(no_text, |text| log::cut(text).into_owned());
        let place = panic.location().map_or_else(|| "an unknown place".to_string(), ToString::to_string);
        tell(context, slot, Some((&place, backtraces)), &text);
        if let Some(programs) = &programs {
            programs(panic);
        }
    }));
}

/// A panic of a handler was caught: where its own hook has not passed it on, it is told here.
pub(in crate::worker) fn was_caught(context: &'static WorkerContext, slot: usize, panicked: &Panicked) {
    if !IS_TOLD.replace(false) {
        let text = panicked.text().map_or_else(no_text, ToOwned::to_owned);
        tell(context, slot, None, &text);
    }
}

fn no_text() -> String {
    "a value that is not text".to_owned()
}

fn tell(context: &'static WorkerContext, slot: usize, place: Option<(&str, Backtraces)>, text: &str) {
    let running = ROW.try_with(Cell::get).ok().flatten().and_then(OwnRow::running);
    let address = running.and_then(|(_, _, by)| by.peer).map(|peer| peer.key());
    let Some(More { count, from }) = PANICS.admit(address) else { return };
    let mut backtrace = place.map(|(_, wanted)| wanted.of_this_thread()).unwrap_or_default().into_iter();
    let (place, first) = (place.map(|(place, _)| place), backtrace.next());
    let Some((method, since_ns, by)) = running else {
        tracing::error!(
            slot,
            place,
            more = count,
            from,
            backtrace = first,
            "the program panicked outside of a call: {text}"
        );
        return;
    };
    let method = context.service.registry().get(MethodIndex(method)).map(Method::name);
    let (id, peer) = (by.id(), by.peer.map(|peer| peer.to_string()));
    let took = Duration::from_nanos(clock::monotonic_ns().saturating_sub(since_ns));
    tracing::error!(
        slot,
        method,
        id,
        peer,
        took = span::show_measured(took),
        place,
        more = count,
        from,
        backtrace = first,
        "a handler panicked: {text}"
    );
    for backtrace in backtrace {
        tracing::error!(slot, backtrace, "the backtrace goes on");
    }
}

/// The hook that the program has set. None where it is std's, which would write lines of its own to standard error, and wait
/// for it.
fn programs_hook() -> Option<Hook> {
    let set = take_hook();
    // Nothing is set now, so this is std's.
    let stds = take_hook();
    // Neither has data; which function it is shows in the pointers' other half.
    (!std::ptr::eq(&raw const *set, &raw const *stds)).then_some(set)
}

/// As `RUST_BACKTRACE` has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Backtraces {
    No,
    Short,
    Full,
}

impl Backtraces {
    fn wanted() -> Self {
        match std::env::var_os("RUST_BACKTRACE") {
            None => Self::No,
            Some(value) if value == "0" => Self::No,
            Some(value) if value == "full" => Self::Full,
            Some(_) => Self::Short,
        }
    }

    /// In parts, of which each fits into a record.
    fn of_this_thread(self) -> Vec<String> {
        if self == Self::No {
            return Vec::new();
        }
        let mut parts = parts_of(&Backtrace::force_capture().to_string(), self == Self::Full);
        parts.truncate(MOST_PARTS);
        parts
    }
}

/// The frames of a backtrace, a line each, in texts of bounded length. Where it is not to be full, those of the program alone:
/// between what std does for a panic and what we do for a call.
fn parts_of(backtrace: &str, is_full: bool) -> Vec<String> {
    let mut frames: Vec<String> = Vec::new();
    for line in backtrace.lines().map(str::trim) {
        match frames.last_mut().filter(|_| line.starts_with("at ")) {
            Some(frame) => {
                let _ = write!(frame, " {line}");
            }
            None => frames.push(line.to_owned()),
        }
    }
    if !is_full {
        let is_panicking =
            |frame: &String| frame.contains("std::panicking::") || frame.contains("core::panicking::");
        let is_ours = |frame: &String| {
            frame.contains("tine::rpc::guard::") || frame.contains("panicking::catch_unwind")
        };
        let end = frames.iter().position(is_ours).unwrap_or(frames.len());
        let before = frames.iter().take(end).rposition(is_panicking).map_or(0, |last| last + 1);
        frames = frames.drain(before..end).collect();
    }
    let mut parts: Vec<String> = Vec::new();
    for frame in frames {
        match parts.last_mut().filter(|part| part.len() + frame.len() < LONGEST_PART) {
            Some(part) => {
                part.push('\n');
                part.push_str(&frame);
            }
            None => parts.push(frame),
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKTRACE: &str = "   0: tine::worker::panics::tell_backtrace\n             at ./src/worker/panics.rs:7:1
   1: std::panicking::panic_with_hook\n   2: core::panicking::panic_fmt\n   3: shop::order
             at ./src/main.rs:30:9\n   4: core::ops::function::FnOnce::call_once\n   5: std::panicking::catch_unwind::do_call
   6: tine::rpc::guard::guarded\n   7: main";

    #[test]
    fn a_short_backtrace_has_the_programs_frames_and_a_full_one_all() {
        assert_eq!(
            parts_of(BACKTRACE, false),
            ["3: shop::order at ./src/main.rs:30:9\n4: core::ops::function::FnOnce::call_once"]
        );
        let full = parts_of(BACKTRACE, true);
        assert_eq!((full.len(), full[0].lines().count()), (1, 8));
    }

    #[test]
    fn a_long_backtrace_is_told_in_parts() {
        let long: String = (0..500).map(|frame| format!("{frame:4}: shop::deeper\n")).collect();
        let parts = parts_of(&long, false);
        assert!(parts.len() > 2 && parts.iter().all(|part| part.len() <= LONGEST_PART));
        assert_eq!(parts.iter().map(|part| part.lines().count()).sum::<usize>(), 500);
    }
}
