use super::super::{Config, Overrides, Source, check, warnings};

fn read(text: &str, overrides: &Overrides) -> (Source, Config) {
    let source = Source { name: "config.toml".to_owned(), text: text.to_owned() };
    let config = check(&source, overrides).unwrap_or_else(|error| panic!("{error}"));
    (source, config)
}

fn warned(text: &str) -> Vec<String> {
    let (source, config) = read(text, &Overrides::default());
    warnings(&source, &config)
}

#[test]
fn what_is_left_at_its_default_contradicts_nothing() {
    assert_eq!(warned(""), [""; 0]);
    assert_eq!(warned(include_str!("../../../config.toml")), [""; 0]);
    assert_eq!(warned("[methods.ping]\ntimeout = '30s'\nconcurrency = 8"), [""; 0]);
    assert_eq!(
        warned("[timeouts]\ndrain = '1m'\npre_stop = '1m'\nrequest = '1m'\n[limits]\nqueue_wait = '1m'"),
        [""; 0]
    );
}

#[test]
fn settings_that_contradict_each_other_are_told_where_they_stand() {
    for (text, expected) in [
        (
            "[timeouts]\ndrain = '5s'",
            &[
                "config.toml:2: timeouts.drain: 5s is below `timeouts.request` (30s): a call that takes longer is cut off whenever its worker ends",
            ][..],
        ),
        (
            "[timeouts]\n\nrequest = '1m 30s'",
            &[
                "config.toml:3: timeouts.request: `timeouts.drain`: 30s is below `timeouts.request` (1m 30s): a call that takes longer is cut off whenever its worker ends",
            ],
        ),
        (
            "[timeouts]\npre_stop = '31s'",
            &[
                "config.toml:2: timeouts.pre_stop: 31s is above `timeouts.drain` (30s): most of a stop is spent before anything is drained",
            ],
        ),
        (
            "limits.queue_wait = '2s'\ntimeouts.request = '1s'",
            &[
                "config.toml:1: limits.queue_wait: 2s is above `timeouts.request` (1s): a call that waits so long has no time left",
            ],
        ),
        (
            "threads = 2\n[methods.ping]\nconcurrency = 3",
            &["config.toml:3: methods.ping.concurrency: 3 is above `threads` (2): so many never run at once"],
        ),
        (
            "[methods.\"a b\"]\ntimeout = '5m'",
            &[
                "config.toml:2: methods.\"a b\".timeout: 5m is above `timeouts.drain` (30s): a call that takes longer than that is cut off whenever its worker ends",
            ],
        ),
        (
            "[methods.ping]\ntimeout = '500ms'",
            &[
                "config.toml:2: methods.ping.timeout: 500ms is below `limits.queue_wait` (1s): a call that waits so long has no time left",
            ],
        ),
        (
            "processes = 4\nlimits.max_connections = 3",
            &[
                "config.toml:2: limits.max_connections: 3 is below the number of workers (4): some of them take no connection",
            ],
        ),
        (
            "processes = 129\nlimits.per_address = 3",
            &[
                "config.toml:2: limits.per_address: the number of workers is 129: connections are counted in 256 at once, and a reload has twice as many workers; some addresses may have more",
            ],
        ),
        ("processes = 128\nlimits.per_address = 3", &[]),
        (
            "[http]\nallow_headers = ['Authorization']\nhosts = ['a']",
            &[
                "config.toml:2: http.allow_headers: `http.allow_origins` is empty: no page can send these",
                "config.toml:3: http.hosts: `http.allow_origins` has no \"self\": nobody asks for these",
            ],
        ),
        (
            "[http]\nallow_origins = ['self']\nhosts = ['a']\n[[listener]]\naddress = '[::1]:1'\nframings = ['length']",
            &["config.toml:2: http.allow_origins: no listener takes \"http\": no page can call"],
        ),
        (
            "[limits]\nqueue_wait = '2s'\n[timeouts]\nrequest = '1s'\ndrain = '500ms'\npre_stop = '1s'",
            &[
                "config.toml:2: limits.queue_wait: 2s is above `timeouts.request` (1s): a call that waits so long has no time left",
                "config.toml:5: timeouts.drain: 500ms is below `timeouts.request` (1s): a call that takes longer is cut off whenever its worker ends",
                "config.toml:6: timeouts.pre_stop: 1s is above `timeouts.drain` (500ms): most of a stop is spent before anything is drained",
            ],
        ),
    ] {
        assert_eq!(warned(text), expected, "{text}");
    }
}

#[test]
fn a_flag_is_told_as_one() {
    let overrides = Overrides { threads: Some(1), ..Overrides::default() };
    let (source, config) = read("[methods.ping]\nconcurrency = 2", &overrides);
    assert_eq!(
        warnings(&source, &config),
        ["config.toml:2: methods.ping.concurrency: 2 is above `threads` (1): so many never run at once"]
    );
    let overrides = Overrides { processes: Some(2), ..Overrides::default() };
    let (source, mut config) = read("", &overrides);
    config.limits.max_connections = 1;
    let expected = "--processes: `limits.max_connections`: 1 is below the number of workers (2): some of them take no connection";
    assert_eq!(warnings(&source, &config), [expected]);
}
