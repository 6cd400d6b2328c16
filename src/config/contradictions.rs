//! Settings that contradict each other: each is allowed, and together they do what hardly anybody wants.
//!
//! `cli` prints and logs these, and the template has the supervisor log them at a reload. Nothing is refused here.

use super::error::{Problems, bare};
use super::raw;
use super::span::show;
use super::{Config, Source};
use crate::wire::Kind;

/// Worker processes whose connections `limits.per_address` counts at once.
pub(crate) const COUNTED_AT_ONCE: usize = 256;

/// A setting, the other that it contradicts, and what follows.
struct Contradiction {
    /// Names of tables and then of the key.
    keys: [Vec<String>; 2],
    text: String,
}

/// What in a checked config contradicts itself, one line each, with the file, the line and the key as errors have them. As long as
/// the defaults are left alone there is nothing.
pub(crate) fn warnings(source: &Source, config: &Config) -> Vec<String> {
    let found = contradictions(config);
    if found.is_empty() {
        return Vec::new();
    }
    let mut problems = Problems::default();
    let document = raw::parse(&source.text, &mut problems);
    for Contradiction { keys, text } in found {
        let [key, other] = keys.each_ref().map(|path| path_in_words(path));
        // Where the file has only the other one, that is what somebody wrote.
        let place = |path: &[String]| document.as_ref().and_then(|document| raw::place(document, path));
        let [first, second] = keys.each_ref().map(|path| place(path));
        match (first, second) {
            (Some(at), _) => problems.wrong(at, key, text),
            (None, Some(at)) => problems.wrong(at, other, format!("`{key}`: {text}")),
            // Only `processes` and `threads` can come from the command line.
            (None, None) => problems.wrong_flag(&format!("--{other}"), format!("`{key}`: {text}")),
        }
    }
    problems.into_lines(source)
}

fn path_in_words(path: &[String]) -> String {
    path.iter().map(|name| bare(name)).collect::<Vec<_>>().join(".")
}

fn contradictions(config: &Config) -> Vec<Contradiction> {
    let mut found = Vec::new();
    let mut add = |first: &[&str], second: &[&str], text: String| {
        let keys = [first, second].map(|path| path.iter().map(|name| (*name).to_owned()).collect());
        found.push(Contradiction { keys, text });
    };
    let (limits, timeouts) = (&config.limits, &config.timeouts);
    let (drain, request) = (timeouts.drain, timeouts.request);
    if drain < request {
        let text = format!(
            "{} is below `timeouts.request` ({}): a call that takes longer is cut off whenever its worker ends",
            show(drain),
            show(request)
        );
        add(&["timeouts", "drain"], &["timeouts", "request"], text);
    }
    if timeouts.pre_stop > drain {
        let text = format!(
            "{} is above `timeouts.drain` ({}): most of a stop is spent before anything is drained",
            show(timeouts.pre_stop),
            show(drain)
        );
        add(&["timeouts", "pre_stop"], &["timeouts", "drain"], text);
    }
    if limits.queue_wait > request {
        let text = format!(
            "{} is above `timeouts.request` ({}): a call that waits so long has no time left",
            show(limits.queue_wait),
            show(request)
        );
        add(&["limits", "queue_wait"], &["timeouts", "request"], text);
    }
    for (name, method) in &config.methods {
        if let Some(most) = method.concurrency.filter(|most| *most > config.threads) {
            let text = format!("{most} is above `threads` ({}): so many never run at once", config.threads);
            add(&["methods", name, "concurrency"], &["threads"], text);
        }
        let Some(timeout) = method.timeout else { continue };
        if drain < timeout {
            let text = format!(
                "{} is above `timeouts.drain` ({}): a call that takes longer than that is cut off whenever its worker ends",
                show(timeout),
                show(drain)
            );
            add(&["methods", name, "timeout"], &["timeouts", "drain"], text);
        }
        if limits.queue_wait > timeout {
            let text = format!(
                "{} is below `limits.queue_wait` ({}): a call that waits so long has no time left",
                show(timeout),
                show(limits.queue_wait)
            );
            add(&["methods", name, "timeout"], &["limits", "queue_wait"], text);
        }
    }
    if limits.max_connections < config.processes {
        let text = format!(
            "{} is below the number of workers ({}): some of them take no connection",
            limits.max_connections, config.processes
        );
        add(&["limits", "max_connections"], &["processes"], text);
    }
    // A reload has two workers in each place for a while.
    if limits.per_address > 0 && config.processes > COUNTED_AT_ONCE / 2 {
        let text = format!(
            "the number of workers is {}: connections are counted in {COUNTED_AT_ONCE} at once, and a reload has twice as many workers; \
             some addresses may have more",
            config.processes
        );
        add(&["limits", "per_address"], &["processes"], text);
    }
    about_http(config, &mut add);
    found
}

/// What is set for pages of which none may call, or none can.
fn about_http(config: &Config, add: &mut impl FnMut(&[&str], &[&str], String)) {
    let http = &config.http;
    let mut idle = |key: &str, why: &str| add(&["http", key], &["http", "allow_origins"], why.to_owned());
    if !http.allow_headers.is_empty() && http.allow_origins.is_empty() {
        idle("allow_headers", "`http.allow_origins` is empty: no page can send these");
    }
    if !http.hosts.is_empty() && !http.allow_origins.iter().any(|origin| origin == "self") {
        idle("hosts", "`http.allow_origins` has no \"self\": nobody asks for these");
    }
    if !http.allow_origins.is_empty() && !config.listeners.iter().any(|one| one.framings.contains(Kind::Http))
    {
        idle("allow_origins", "no listener takes \"http\": no page can call");
    }
}

#[cfg(test)]
mod tests;
