//! Models: every course that a few threads can take through the code that shares words without a lock.
//!
//! The files of `src` in question are compiled here once more, as they are, with `sys` of this directory below them: its
//! atomics and locks are loom's, which runs a model again and again until each order of its steps has been tried, and each value
//! that a load may return by the memory model, also those that no x86 processor ever shows.
//!
//! A model must be able to fail. Each one that rests on the order of its stores is run a second time in a world where no
//! store releases and nothing is sequentially consistent ([`sys::sync::weakly`]), and has to fail there.
//!
//! Between its steps a thread is interrupted a few times at most; `LOOM_MAX_PREEMPTIONS` allows more.

use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

#[path = "../../src/arena/mod.rs"]
#[allow(
    dead_code,
    unused_imports,
    clippy::drop_non_drop,
    reason = "a model uses a part of it, and memory that is made up"
)]
mod arena;
mod connections;
mod rows;
#[allow(
    clippy::unused_self,
    clippy::unnecessary_wraps,
    clippy::trivially_copy_pass_by_ref,
    reason = "all signatures are those of the real one"
)]
mod sys;
mod worker;

/// None of them is armed here.
mod fail_points {
    pub(crate) enum Kind {
        Path,
    }

    pub(crate) fn step(_: Kind) {}

    pub(crate) fn delay() {}
}

fn main() -> ExitCode {
    be_silent_about_what_must_fail();
    let trials = [rows::trials(), connections::trials(), worker::trials()];
    libtest_mimic::run(&Arguments::from_args(), trials.into_iter().flatten().collect()).exit_code()
}

/// What holds in every course. `preemptions` bounds how often threads come in between each other's steps.
fn holds(name: &str, preemptions: usize, model: fn()) -> Trial {
    Trial::test(name, move || {
        check(preemptions, model);
        Ok(())
    })
}

/// As [`holds`], and not without the order of the stores.
fn holds_by_order(name: &str, preemptions: usize, model: fn()) -> Vec<Trial> {
    let fails = format!("{name}_and_not_in_any_order");
    vec![
        holds(name, preemptions, model),
        fails_in_some_course(&fails, move || sys::sync::weakly(|| check(2, model))),
    ]
}

/// The model fails, which shows that what it is about can go wrong.
fn fails(name: &str, model: fn()) -> Trial {
    fails_in_some_course(name, move || check(2, model))
}

fn fails_in_some_course(name: &str, check: impl FnOnce() + Send + 'static) -> Trial {
    Trial::test(name, move || {
        sys::sync::MUST_FAIL.set(true);
        let ended = panic::catch_unwind(AssertUnwindSafe(check));
        sys::sync::MUST_FAIL.set(false);
        match ended {
            Ok(()) => Err(Failed::from(
                "expected some course in which the model fails, found none: it shows nothing",
            )),
            Err(_) => Ok(()),
        }
    })
}

fn check(preemptions: usize, model: fn()) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(builder.preemption_bound.unwrap_or(0).max(preemptions));
    builder.max_branches = 10_000;
    builder.check(model);
}

fn be_silent_about_what_must_fail() {
    let report = panic::take_hook();
    panic::set_hook(Box::new(move |what| {
        if !sys::sync::MUST_FAIL.get() {
            report(what);
        }
    }));
}
