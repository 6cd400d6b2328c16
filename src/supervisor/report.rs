//! What the supervisor says about the calls of the whole service: when it begins to drain, and at its end.

use std::time::Duration;

use crate::arena::{Counter, Totals};
use crate::config::span;
use crate::log;

/// Says what is still to be finished.
pub(crate) fn draining(sum: &Totals) {
    let connections = sum.connections_open();
    let ended = [Counter::Ok, Counter::Errors, Counter::Panics, Counter::Late];
    let ended = ended.iter().fold(0_u64, |count, counter| count.saturating_add(sum.get(*counter)));
    // A call whose worker died stays begun and unended for ever, so this is at most.
    let running_at_most = sum.begun.saturating_sub(ended);
    tracing::info!(connections, running_at_most, "draining");
}

/// Says what every method did in the life of the service, one line for each that was called.
pub(crate) fn ended(totals: &Totals, methods: &[String]) {
    log::tell_of_counted(true);
    for (name, method) in methods.iter().zip(&totals.methods) {
        let (ok, errors) = (method.ok, method.errors);
        if ok == 0 && errors == 0 {
            continue;
        }
        let run = |part, whole| told(method.histogram.percentile(part, whole));
        tracing::info!(
            method = name,
            ok,
            errors,
            p50 = run(1, 2),
            p99 = run(99, 100),
            max = run(1, 1),
            "served"
        );
    }
    let refused = totals.get(Counter::Refused);
    let deadlines_exceeded = totals.get(Counter::DeadlineExceeded);
    let log_lines_dropped = totals.get(Counter::LogDropped);
    tracing::info!(answered = totals.answered(), refused, deadlines_exceeded, log_lines_dropped, "ended");
}

fn told(duration: Option<Duration>) -> String {
    duration.map_or_else(|| "?".to_owned(), span::show_measured)
}
