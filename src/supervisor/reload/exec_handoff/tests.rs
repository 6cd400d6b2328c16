//! The form in which a supervisor leaves what it knows.

use super::*;

/// A hand-off of version 2, with a key that this program doesn't know in its configuration.
fn sample() -> Value {
    serde_json::json!({
        "version": 2,
        "brain": { "generation": 3, "last_generation": 4, "next_worker": 9, "slots": [7, null] },
        "config": {
            "listeners": [{ "address": { "tcp": "127.0.0.1:4000" } }],
            "processes": 2,
            "log": { "level": "warn" },
            "of_a_later_version": { "key": [1, 2] },
        },
        "config_path": "config.toml",
        "source": { "name": "config.toml", "text": "processes = 2" },
        "program": 5,
        "program_path": "/srv/program",
        "methods": ["echo"],
        "all_methods": ["echo", "gone"],
        "totals": {
            "begun": 12,
            "methods": [{ "ok": 10, "errors": 1, "run_ns": 5_000, "histogram": vec![0; 128] }],
            "counts": [1, 2, 10, 1, 0, 0, 0, 0, 0],
        },
        "quarantine": [{ "method": "echo", "wait": { "secs": 1, "nanos": 5 }, "trying": 7 }],
        "listeners": [{
            "configured": {
                "address": { "unix": "socket" },
                "backlog": 1_024,
                "prefix": "little",
                "mode": 432,
                "owner": [1_000, null],
                "allow_uids": [0],
            },
            "address": "unix:socket",
            "file": ["socket", [1, 2]],
            "descriptor": 6,
        }],
        "bell": 7,
        "template": { "generation": 3, "pid": 100, "line": 8, "age": { "secs": 1, "nanos": 0 } },
        "workers": [{
            "id": 7,
            "slot": 0,
            "pid": 101,
            "line": 9,
            "arena": 10,
            "age": { "secs": 1, "nanos": 0 },
            "kept": [[[0, 2], 11]],
        }],
    })
}

/// What stands there was left by programs that are deployed. Who changes the form gives it the next version and writes
/// the sample anew, so that no program takes what it would misunderstand.
#[test]
fn the_form_of_a_handoff_changes_only_with_its_version() {
    let read: ExecHandoff = serde_json::from_value(sample()).unwrap();
    assert_eq!(read.version, HANDOFF_VERSION);
    assert_eq!(serde_json::to_value(&read).unwrap(), sample());
}

#[test]
fn keys_of_a_later_configuration_go_along_and_missing_ones_have_their_defaults() {
    let read: ExecHandoff = serde_json::from_value(sample()).unwrap();
    assert_eq!(read.config.understood.processes, 2);
    assert_eq!(read.config.understood.quarantine, Config::default().quarantine);
    assert_eq!(read.config.words, sample()["config"]);
}
