//! What holds for each key there is.

use super::*;

/// Every key, and a value of its right type.
pub(super) const KEYS: [(&str, &str); 48] = [
    ("listen", "['[::1]:80']"),
    ("processes", "1"),
    ("threads", "1"),
    ("listener.address", "'unix:a'"),
    ("listener.backlog", "1"),
    ("listener.prefix", "'big'"),
    ("listener.framings", "['http']"),
    ("listener.mode", "'0600'"),
    ("listener.owner", "'0:0'"),
    ("listener.allow_uids", "[1]"),
    ("limits.max_message", "'1KiB'"),
    ("limits.max_connections", "1"),
    ("limits.per_address", "1"),
    ("limits.queue", "1"),
    ("limits.queue_wait", "'1s'"),
    ("limits.in_flight_per_connection", "1"),
    ("limits.output", "'4KiB'"),
    ("limits.buffers", "'1GiB'"),
    ("timeouts.request", "'1s'"),
    ("timeouts.first_byte", "'1s'"),
    ("timeouts.message", "'1s'"),
    ("timeouts.idle", "'1s'"),
    ("timeouts.boot", "'1s'"),
    ("timeouts.drain", "'1s'"),
    ("timeouts.pre_stop", "'1s'"),
    ("timeouts.keep_after", "'1s'"),
    ("restart.max_restarts", "1"),
    ("restart.window", "'1s'"),
    ("restart.backoff", "'1s'"),
    ("restart.backoff_max", "'1s'"),
    ("timeouts.stuck", "'1s'"),
    ("recycle.max_requests", "1"),
    ("recycle.jitter", "1"),
    ("recycle.max_memory", "'1GiB'"),
    ("quarantine.crashes", "1"),
    ("quarantine.window", "'1s'"),
    ("quarantine.cool_down", "'1s'"),
    ("methods.NAME.timeout", "'1s'"),
    ("methods.NAME.concurrency", "1"),
    ("http.allow_origins", "['*']"),
    ("http.allow_headers", "['Authorization']"),
    ("http.hosts", "['api.example']"),
    ("run.groups_outlive", "true"),
    ("log.level", "'warn'"),
    ("log.format", "'json'"),
    ("log.slow", "'1s'"),
    // A table where the value itself is one.
    ("limits", "{}"),
    ("methods", "{}"),
];

fn file_with(key: &str, value: &str) -> String {
    match key.strip_prefix("listener.") {
        Some("address") => format!("[[listener]]\naddress = {value}"),
        Some(rest) => format!("[[listener]]\naddress = 'unix:a'\n{rest} = {value}"),
        None => format!("{key} = {value}"),
    }
}

#[test]
fn every_keys_wrong_type_is_an_error_that_names_it() {
    let values = ["'x y'", "7", "1.5", "true", "1979-05-27", "[]", "[[]]", "{}", "{ x = 1 }"];
    let kind = |value: &str| match value.as_bytes() {
        [b'\'', ..] => 's',
        [b'[', ..] => 'a',
        [b'{', ..] => 't',
        [b'0'..=b'9'] => 'i',
        _ => 'o',
    };
    for (key, right) in KEYS {
        checked(&file_with(key, right));
        for wrong in values.iter().filter(|wrong| kind(wrong) != kind(right)) {
            let text = file_with(key, wrong);
            let errors = errors(&text);
            let place = format!("{}: {key}: expected ", text.lines().count());
            assert!(errors.iter().any(|error| error.starts_with(&place)), "{text}: {errors:?}");
        }
    }
}
