//! A config in words, for `tine check`: what would run, in a stable order.
//!
//! For people; nothing reads it back.

use std::fmt::Write;
use std::time::Duration;

use super::size::format_size;
use super::span::show;
use super::{Config, Listener, LogFormat};
use crate::wire::{ByteOrder, Kind};

/// The column at which a setting's value begins, if its name is not longer than that.
pub(crate) const VALUES_AT: usize = 33;

impl Config {
    /// Every setting on a line of its own, listeners first; ends with a line break.
    pub(crate) fn describe(&self) -> String {
        let mut text = String::new();
        for listener in &self.listeners {
            line(&mut text, "listen", &describe_listener(listener));
        }
        let total = self.processes.saturating_mul(self.threads);
        let workers = format!(
            "{} × {}, {} at once",
            self.processes,
            counted(self.threads as u64, "thread"),
            counted(total as u64, "call")
        );
        line(&mut text, "processes", &workers);
        self.describe_limits(&mut text);
        self.describe_times(&mut text);
        self.describe_recycle(&mut text);
        for (name, method) in &self.methods {
            let timeout = method.timeout.map_or("as timeouts.request".to_owned(), show);
            let name = super::error::bare(name);
            line(&mut text, &format!("methods.{name}.timeout"), &timeout);
            let at_once = method
                .concurrency
                .map_or("as many as threads".to_owned(), |most| format!("{most} at once in each worker"));
            line(&mut text, &format!("methods.{name}.concurrency"), &at_once);
        }
        let origins = &self.http.allow_origins;
        let origins = if origins.is_empty() { "none".to_owned() } else { origins.join(" ") };
        line(&mut text, "http.allow_origins", &origins);
        let list = |names: &[String]| if names.is_empty() { "no others".to_owned() } else { names.join(" ") };
        line(&mut text, "http.allow_headers", &list(&self.http.allow_headers));
        line(&mut text, "http.hosts", &list(&self.http.hosts));
        let left = if self.run.groups_outlive { "left alone" } else { "ended with the worker" };
        line(
            &mut text,
            "run.groups_outlive",
            &format!("{}, what handlers start is {left}", self.run.groups_outlive),
        );
        line(&mut text, "log.level", &self.log.level.to_string());
        let format = match self.log.format {
            LogFormat::Text => "text",
            LogFormat::Json => "json",
        };
        line(&mut text, "log.format", format);
        line(&mut text, "log.slow", &or_word(self.log.slow, "off"));
        text
    }

    fn describe_limits(&self, text: &mut String) {
        let limits = &self.limits;
        line(text, "limits.max_message", &bytes(limits.max_message));
        line(text, "limits.max_connections", &format!("{} in the whole service", limits.max_connections));
        let per_address = match limits.per_address {
            0 => "off".to_owned(),
            most => format!("{} in the whole service", counted(most as u64, "connection")),
        };
        line(text, "limits.per_address", &per_address);
        line(text, "limits.queue", &format!("{} in each worker", counted(limits.queue as u64, "call")));
        line(text, "limits.queue_wait", &show(limits.queue_wait));
        let in_flight = counted(limits.in_flight_per_connection as u64, "call");
        line(text, "limits.in_flight_per_connection", &in_flight);
        line(text, "limits.output", &format!("{} for each connection", bytes(limits.output)));
        line(text, "limits.buffers", &format!("{} in each worker", bytes(limits.buffers)));
    }

    fn describe_times(&self, text: &mut String) {
        let timeouts = &self.timeouts;
        line(text, "timeouts.request", &show(timeouts.request));
        line(text, "timeouts.first_byte", &show(timeouts.first_byte));
        line(text, "timeouts.message", &show(timeouts.message));
        line(text, "timeouts.idle", &show(timeouts.idle));
        line(text, "timeouts.boot", &show(timeouts.boot));
        line(text, "timeouts.drain", &or_word(timeouts.drain, "0s, running calls are cut off"));
        line(text, "timeouts.pre_stop", &show(timeouts.pre_stop));
        line(text, "timeouts.keep_after", &show(timeouts.keep_after));
        line(text, "timeouts.stuck", &show(timeouts.stuck));
        let restart = &self.restart;
        let failures = match restart.max_restarts {
            0 => "no limit".to_owned(),
            most => counted(u64::from(most), "boot failure"),
        };
        line(text, "restart.max_restarts", &failures);
        line(text, "restart.window", &show(restart.window));
        line(text, "restart.backoff", &show(restart.backoff));
        line(text, "restart.backoff_max", &show(restart.backoff_max));
        let quarantine = &self.quarantine;
        let crashes = match quarantine.crashes {
            0 => "off".to_owned(),
            crashes => format!("{crashes} of one method"),
        };
        line(text, "quarantine.crashes", &crashes);
        line(text, "quarantine.window", &show(quarantine.window));
        line(text, "quarantine.cool_down", &show(quarantine.cool_down));
    }

    fn describe_recycle(&self, text: &mut String) {
        let recycle = &self.recycle;
        let requests = match recycle.max_requests {
            0 => "no limit".to_owned(),
            most => format!("{} for each worker", counted(most, "call")),
        };
        line(text, "recycle.max_requests", &requests);
        line(text, "recycle.jitter", &format!("up to {:.1} % earlier", recycle.jitter * 100.0));
        let memory = match recycle.max_memory {
            0 => "no limit".to_owned(),
            most => format!("{} for each worker", bytes(most)),
        };
        line(text, "recycle.max_memory", &memory);
    }
}

fn describe_listener(listener: &Listener) -> String {
    let mut text = format!("{}, backlog {}", listener.address, listener.backlog);
    // Writing to a `String` can't fail.
    if !listener.framings.are_all() {
        let names: Vec<&str> = listener.framings.iter().map(Kind::name).collect();
        let _ = write!(text, ", framing {} alone", names.join(" or "));
    }
    if listener.prefix == ByteOrder::Big {
        text.push_str(", big-endian prefixes");
    }
    if let Some(mode) = listener.mode {
        let _ = write!(text, ", mode {mode:04o}");
    }
    if let Some((uid, gid)) = listener.owner {
        let number = |id: Option<u32>| id.map_or(String::new(), |id| id.to_string());
        let _ = write!(text, ", owner {}:{}", number(uid), number(gid));
    }
    if let Some(uids) = &listener.allow_uids {
        let uids: Vec<String> = uids.iter().map(u32::to_string).collect();
        let _ = write!(text, ", users {} alone", uids.join(" "));
    }
    text
}

fn line(text: &mut String, name: &str, value: &str) {
    let _ = writeln!(text, "{name:<width$} {value}", width = VALUES_AT - 1);
}

/// A count of things by their name, which takes an s unless it is one.
pub(crate) fn counted(count: u64, name: &str) -> String {
    format!("{count} {name}{}", if count == 1 { "" } else { "s" })
}

fn bytes(count: usize) -> String {
    format_size(count as u64)
}

fn or_word(zero_or_more: Duration, word_for_zero: &str) -> String {
    if zero_or_more.is_zero() { word_for_zero.to_owned() } else { show(zero_or_more) }
}
