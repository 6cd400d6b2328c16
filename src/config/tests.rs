//! Whole configs, as people write them and mistype them.

use std::time::Duration;

use proptest::prelude::*;
use tracing::level_filters::LevelFilter;

use super::*;
use crate::config::checked::{Http, Limits, MethodSettings, Quarantine, Recycle, Restart, Run, Timeouts};
use crate::wire::{ByteOrder, Kind, Kinds};

mod every_key;
mod hostile;

use every_key::KEYS;

fn source(text: &str) -> Source {
    Source { name: "config.toml".to_owned(), text: text.to_owned() }
}

fn checked(text: &str) -> Config {
    check(&source(text), &Overrides::default()).unwrap_or_else(|error| panic!("{error}"))
}

/// The errors, each without its file name.
fn errors(text: &str) -> Vec<String> {
    let error = check(&source(text), &Overrides::default()).expect_err(text).to_string();
    error.lines().map(|line| line.strip_prefix("config.toml:").unwrap_or(line).to_owned()).collect()
}

#[test]
fn the_shipped_file_says_exactly_the_defaults() {
    let shipped = include_str!("../../config.toml");
    assert_eq!(checked(shipped), Config::default());
    assert_eq!(checked(""), Config::default());
}

/// A comment of the shipped file that shows a key must show one that works.
#[test]
fn the_examples_in_the_shipped_files_comments_work() {
    let shipped = include_str!("../../config.toml");
    let mut text: String = shipped
        .lines()
        .filter_map(|line| line.strip_prefix("#   "))
        .fold(String::new(), |text, line| text + line + "\n");
    // This system need not have that user.
    text = text.replace("www-data:www-data", "0:0");
    let config = checked(&text);
    assert_eq!(config.listeners[0].mode, Some(0o660));
    let report = MethodSettings { timeout: Some(Duration::from_secs(300)), concurrency: Some(2) };
    assert_eq!(config.methods["report"], report);
}

#[test]
fn every_key_of_the_shipped_file_is_described() {
    let text = Config::default().describe();
    let document: toml::Table = include_str!("../../config.toml").parse().expect("TOML");
    for (section, value) in &document {
        for key in value.as_table().into_iter().flat_map(|table| table.keys()) {
            let name = format!("{section}.{key} ");
            assert!(text.lines().any(|line| line.starts_with(&name)), "{name}\n{text}");
        }
    }
}

const EVERY_KEY: &str = r#"
processes = 3
threads = 1_000
[[listener]]
address = "[::1]:9000"
backlog = 16
prefix = "big"
framings = ["http", "length"]
[[listener]]
address = "unix:/run/x y.sock"
mode = "0660"
owner = "0:7"
allow_uids = [0, 1000]
[limits]
max_message = "64KiB"
max_connections = 5
per_address = 4
queue = 6
queue_wait = "1ms"
in_flight_per_connection = 7
output = "8KiB"
buffers = "1MiB"
[timeouts]
request = "1s"
first_byte = "9s"
message = "2s"
idle = "3m"
boot = "4s"
drain = "0s"
pre_stop = "6s"
keep_after = "7ms"
stuck = "7s"
[restart]
max_restarts = 0
window = "1m 30s"
backoff = "1ms"
backoff_max = "9s"
[recycle]
max_requests = 1000
jitter = 0.25
max_memory = "1GiB"
[quarantine]
crashes = 0
window = "2m"
cool_down = "8s"
[methods.slow]
timeout = "1h"
concurrency = 2
[methods."a.b c"]
[http]
allow_origins = ["https://a.example", "http://localhost:3000"]
allow_headers = ["X-Request-Id"]
hosts = ["API.example"]
[run]
groups_outlive = true
[log]
level = "trace"
format = "json"
slow = "500ms"
"#;

fn every_keys_listeners() -> Vec<Listener> {
    let tcp = Listener {
        address: "[::1]:9000".parse().expect("address"),
        backlog: 16,
        prefix: ByteOrder::Big,
        framings: Kinds::of([Kind::Length, Kind::Http]),
        mode: None,
        owner: None,
        allow_uids: None,
    };
    let unix = Listener {
        address: Address::Unix("/run/x y.sock".into()),
        backlog: 4096,
        prefix: ByteOrder::Little,
        framings: Kinds::default(),
        mode: Some(0o660),
        owner: Some((Some(0), Some(7))),
        allow_uids: Some(vec![0, 1000]),
    };
    vec![tcp, unix]
}

#[test]
fn every_key_is_read_into_its_field() {
    let seconds = Duration::from_secs;
    let expected = Config {
        listeners: every_keys_listeners(),
        processes: 3,
        threads: 1000,
        limits: Limits {
            max_message: 64 << 10,
            max_connections: 5,
            per_address: 4,
            queue: 6,
            queue_wait: Duration::from_millis(1),
            in_flight_per_connection: 7,
            output: 8 << 10,
            buffers: 1 << 20,
        },
        timeouts: Timeouts {
            request: seconds(1),
            first_byte: seconds(9),
            message: seconds(2),
            idle: seconds(180),
            boot: seconds(4),
            drain: Duration::ZERO,
            pre_stop: seconds(6),
            keep_after: Duration::from_millis(7),
            stuck: seconds(7),
        },
        restart: Restart {
            max_restarts: 0,
            window: seconds(90),
            backoff: Duration::from_millis(1),
            backoff_max: seconds(9),
        },
        recycle: Recycle { max_requests: 1000, jitter: 0.25, max_memory: 1 << 30 },
        quarantine: Quarantine { crashes: 0, window: seconds(120), cool_down: seconds(8) },
        methods: [
            ("slow".to_owned(), MethodSettings { timeout: Some(seconds(3600)), concurrency: Some(2) }),
            ("a.b c".to_owned(), MethodSettings::default()),
        ]
        .into(),
        http: Http {
            allow_origins: vec!["https://a.example".to_owned(), "http://localhost:3000".to_owned()],
            allow_headers: vec!["X-Request-Id".to_owned()],
            hosts: vec!["api.example".to_owned()],
        },
        run: Run { groups_outlive: true },
        log: Log { level: LevelFilter::TRACE, format: LogFormat::Json, slow: Duration::from_millis(500) },
    };
    assert_eq!(checked(EVERY_KEY), expected);
}

#[test]
fn a_description_has_every_setting_in_a_stable_order() {
    assert_eq!(
        checked(EVERY_KEY).describe(),
        "\
listen                           [::1]:9000, backlog 16, framing length or http alone, big-endian prefixes
listen                           unix:/run/x y.sock, backlog 4096, mode 0660, owner 0:7, users 0 1000 alone
processes                        3 × 1000 threads, 3000 calls at once
limits.max_message               64KiB
limits.max_connections           5 in the whole service
limits.per_address               4 connections in the whole service
limits.queue                     6 calls in each worker
limits.queue_wait                1ms
limits.in_flight_per_connection  7 calls
limits.output                    8KiB for each connection
limits.buffers                   1MiB in each worker
timeouts.request                 1s
timeouts.first_byte              9s
timeouts.message                 2s
timeouts.idle                    3m
timeouts.boot                    4s
timeouts.drain                   0s, running calls are cut off
timeouts.pre_stop                6s
timeouts.keep_after              7ms
timeouts.stuck                   7s
restart.max_restarts             no limit
restart.window                   1m 30s
restart.backoff                  1ms
restart.backoff_max              9s
quarantine.crashes               off
quarantine.window                2m
quarantine.cool_down             8s
recycle.max_requests             1000 calls for each worker
recycle.jitter                   up to 25.0 % earlier
recycle.max_memory               1GiB for each worker
methods.\"a.b c\".timeout          as timeouts.request
methods.\"a.b c\".concurrency      as many as threads
methods.slow.timeout             1h
methods.slow.concurrency         2 at once in each worker
http.allow_origins               https://a.example http://localhost:3000
http.allow_headers               X-Request-Id
http.hosts                       api.example
run.groups_outlive               true, what handlers start is left alone
log.level                        trace
log.format                       json
log.slow                         500ms
"
    );
}

#[test]
fn one_of_a_thing_is_told_as_one() {
    let text = "threads = 1\nprocesses = 1\n[limits]\nqueue = 1\nin_flight_per_connection = 1\nper_address = 1\n\
                [restart]\nmax_restarts = 1\n[recycle]\nmax_requests = 1";
    let described = checked(text).describe();
    for line in [
        "processes                        1 × 1 thread, 1 call at once\n",
        "limits.per_address               1 connection in the whole service\n",
        "limits.queue                     1 call in each worker\n",
        "limits.in_flight_per_connection  1 call\n",
        "restart.max_restarts             1 boot failure\n",
        "recycle.max_requests             1 call for each worker\n",
    ] {
        assert!(described.contains(line), "{line}{described}");
    }
}

#[test]
fn an_origin_is_written_as_browsers_write_it() {
    for wrong in [
        "app.example.com",
        "https://",
        "://a",
        "https://a.example/",
        "https://A.example",
        "https://*.a.example",
        "https://a.example:443",
        "http://a.example:80",
        "https://a b",
        "",
    ] {
        let errors = errors(&format!("[http]\nallow_origins = ['*', '{wrong}']"));
        assert!(
            errors.iter().any(|error| error.starts_with("2: http.allow_origins: expected an origin")),
            "{errors:?}"
        );
    }
    assert!(checked("http.allow_origins = ['https://[::1]:8443', '*']").http.allow_origins.len() == 2);
}

#[test]
fn zero_processes_are_one_for_each_cpu() {
    assert_eq!(checked("processes = 0").processes, crate::sys::cpus::available());
}

#[test]
fn a_mistake_is_told_with_line_key_and_what_would_be_right() {
    let table = [
        // Sizes
        (
            "\n[limits]\nmax_message = 5",
            r#"3: limits.max_message: expected a size such as "1MiB", found 5 (a number needs a unit)"#,
        ),
        (
            "limits.max_message = \"1M\"",
            "1: limits.max_message: expected a size such as \"1MiB\", found \"1M\" \
             (the units are B, KiB, MiB, GiB, TiB, kB, MB, GB and TB)",
        ),
        (
            "limits.max_message = '16MiB'",
            "1: limits.max_message: expected a size of at least 64B and below 16MiB, found \"16MiB\"",
        ),
        ("limits.output = '0'", "1: limits.output: expected a size from 4KiB to 1GiB, found \"0\""),
        // Durations
        (
            "[timeouts]\n\nidle = 600",
            r#"3: timeouts.idle: expected a duration such as "30s", found 600 (a number needs a unit)"#,
        ),
        (
            "timeouts.request = '0s'",
            "1: timeouts.request: expected a duration from 1ms to 1day, found \"0s\"",
        ),
        (
            "timeouts.idle = '31days'",
            "1: timeouts.idle: expected a duration from 1ms to 30days, found \"31days\"",
        ),
        (
            "timeouts.boot = 'soon'",
            "1: timeouts.boot: expected a duration such as \"30s\", found \"soon\" (it starts with a number)",
        ),
        (
            "[methods.fetch]\ntimeout = '-1s'",
            "2: methods.fetch.timeout: expected a duration such as \"30s\", found \"-1s\" (it can't be negative)",
        ),
        // Numbers
        ("threads = 0", "1: threads: expected a whole number from 1 to 4096, found 0"),
        ("threads = -1", "1: threads: expected a whole number from 1 to 4096, found -1"),
        ("threads = 0x2000", "1: threads: expected a whole number from 1 to 4096, found 0x2000"),
        ("threads = 8.0", "1: threads: expected a whole number from 1 to 4096, found 8.0"),
        ("processes = 1025", "1: processes: expected a whole number from 0 to 1024, found 1025"),
        (
            "threads = 99999999999999999999999",
            "1: threads: expected a whole number from 1 to 4096, found 99999999999999999999999",
        ),
        (
            "restart.max_restarts = true",
            "1: restart.max_restarts: expected a whole number from 0 to 1000000, found true",
        ),
        ("recycle.jitter = 1.5", "1: recycle.jitter: expected a number from 0.0 to 1.0, found 1.5"),
        (
            "recycle.max_memory = '1KiB'",
            "1: recycle.max_memory: expected a size from 1MiB to 1TiB, found \"1KiB\"; \"0\" is no limit",
        ),
        (
            "timeouts.stuck = '99ms'",
            "1: timeouts.stuck: expected a duration from 100ms to 1day, found \"99ms\"",
        ),
        (
            "methods.report.concurrency = 0",
            "1: methods.report.concurrency: expected a whole number from 1 to 1000000, found 0",
        ),
        // Words
        (
            "log.level = 'loud'",
            "1: log.level: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", \
             found \"loud\"",
        ),
        ("log.format = 'xml'", "1: log.format: expected one of \"text\", \"json\", found \"xml\""),
        // Unknown keys
        ("[limits]\nqueue_wiat = '1s'", "2: limits.queue_wiat: unknown key; did you mean `queue_wait`?"),
        ("thread = 8", "1: thread: unknown key; did you mean `threads`?"),
        ("max_message = '1MiB'", "1: max_message: unknown key; did you mean `limits.max_message`?"),
        ("[limit]\nqueue = 1", "1: limit: unknown key; did you mean `limits`?"),
        ("[log]\ncolour = true", "2: log.colour: unknown key; the keys here are format, level, slow"),
        (
            "[methods.\"a b\"]\nbanana = 1",
            "2: methods.\"a b\".banana: unknown key; the keys here are concurrency, timeout",
        ),
        // Shapes
        ("limits = 5", "1: limits: expected a table, found 5"),
        ("[[limits]]\nqueue = 5", "1: limits: expected a table, found an array"),
        ("methods.ping = '1s'", "1: methods.ping: expected a table, found \"1s\""),
        // Rules between keys
        (
            "[limits]\nmax_message = '2MiB'\noutput = '1MiB'\nbuffers = '1MiB'",
            "4: limits.buffers: expected at least `max_message`, which is 2MiB, found 1MiB",
        ),
        (
            "limits.output = '512MiB'",
            "1: limits.output: expected at most `buffers`, which is 256MiB, found 512MiB",
        ),
        (
            "[restart]\nbackoff = '1m'",
            "2: restart.backoff: expected at most `backoff_max`, which is 30s, found 1m",
        ),
        // No TOML
        ("threads = ", "1: this is not TOML: string values must be quoted, expected literal string"),
        ("threads = 1\nthreads = 2", "2: this is not TOML: duplicate key at \"threads\""),
    ];
    for (text, message) in table {
        assert_eq!(errors(text), [message], "{text}");
    }
}

#[test]
fn a_message_of_16_mib_is_allowed_where_no_prefix_has_to_be_told_from_text() {
    let with = |listeners: &str| format!("{listeners}\n[limits]\nmax_message = '16MiB'");
    let pinned = "[[listener]]\naddress = '[::1]:80'\nframings = ['length']";
    let text_alone = "[[listener]]\naddress = 'unix:a'\nframings = ['http', 'stream']";
    let config = checked(&with(&format!("{pinned}\n{text_alone}")));
    assert_eq!(config.limits.max_message, 16 << 20);
    for one_that_tells in [
        "",
        "[[listener]]\naddress = 'unix:b'",
        "[[listener]]\naddress = 'unix:b'\nframings = ['length', 'http']",
    ] {
        let text = match one_that_tells {
            "" => with(""),
            other => with(&format!("{pinned}\n{other}")),
        };
        let errors = errors(&text);
        assert!(errors.len() == 1 && errors[0].contains("64B and below 16MiB"), "{errors:?}");
    }
    let overrides = Overrides { listen: vec!["[::1]:80".to_owned()], ..Overrides::default() };
    let error = check(&source(&with(pinned)), &overrides).expect_err("it takes all framings").to_string();
    assert!(error.contains("--listen: expected `limits.max_message` below 16MiB"), "{error}");
}

#[test]
fn a_mistake_in_a_listener_is_told_with_its_line() {
    let table = [
        (
            "listen = [\n'127.0.0.1:80',\n'8080']",
            "3: listen: expected HOST:PORT such as \"127.0.0.1:8080\", or \"unix:PATH\", found \"8080\" \
             (write \"127.0.0.1:8080\" for this machine alone, \"0.0.0.0:8080\" for every interface)",
        ),
        (
            "listen = '127.0.0.1:80'",
            "1: listen: expected a list of addresses such as [\"127.0.0.1:8080\"], found \"127.0.0.1:80\"",
        ),
        ("listen = [80]", "1: listen: expected an address, found 80"),
        ("listen = []", "1: listen: expected at least one address such as \"127.0.0.1:8080\", found none"),
        (
            "listen = ['[::1]:80', '[0::1]:80']",
            "1: listen: expected each address once, found \"[::1]:80\" again",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\n[[listener]]\naddress = 'unix:a'",
            "4: listener.address: expected each address once, found \"unix:a\" again",
        ),
        (
            "listen = ['[::1]:80']\n[[listener]]\naddress = '[::1]:81'",
            "2: listener: `listen` and [[listener]] are both here; keep one of them, \
             a table's `address` is what `listen` has in its list",
        ),
        (
            "\n[[listener]]\nbacklog = 5",
            "2: listener.address: expected an address such as \"127.0.0.1:8080\", found none",
        ),
        (
            "[listener]\naddress = '[::1]:81'",
            "1: listener: expected tables, each under a line [[listener]], found a table",
        ),
        ("listener = []", "1: listener: expected at least one table with an `address`, found none"),
        ("listener = [5]", "1: listener: expected a table, found 5"),
        (
            "[[listener]]\naddress = '[::1]:80'\nmode = '0660'",
            "3: listener.mode: only a \"unix:PATH\" address has this; remove it, or change the address",
        ),
        (
            "[[listener]]\naddress = '[::1]:80'\nallow_uids = [0]",
            "3: listener.allow_uids: only a \"unix:PATH\" address has this; remove it, or change the address",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nmode = 660",
            "3: listener.mode: expected permission bits such as \"0660\", found 660 (write \"0660\")",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nmode = 0o660",
            "3: listener.mode: expected permission bits such as \"0660\", found 0o660 (write it as text)",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nmode = '0888'",
            "3: listener.mode: expected permission bits such as \"0660\", in octal digits up to \"0777\", \
             found \"0888\"",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nowner = 'nobody-has-this-name'",
            "3: listener.owner: expected a user's name or number, found \"nobody-has-this-name\", \
             which this system does not know",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nallow_uids = [0,\n-1]",
            "4: listener.allow_uids: expected a whole number from 0 to 4294967294, found -1",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nallow_uids = []",
            "3: listener.allow_uids: expected at least one user number, found none: nobody could connect",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nbacklog = 65536",
            "3: listener.backlog: expected a whole number from 1 to 65535, found 65536",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nframings = ['length', 'http2']",
            "3: listener.framings: expected one of \"length\", \"stream\", \"header\", \"http\", found \"http2\"",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nframings = 'length'",
            "3: listener.framings: expected a list of framings such as [\"length\", \"http\"], found \"length\"",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nframings = []",
            "3: listener.framings: expected at least one framing, found none: no connection could speak",
        ),
        (
            "[[listener]]\naddress = 'unix:a'\nprefix = 'middle'",
            "3: listener.prefix: expected one of \"little\", \"big\", found \"middle\"",
        ),
    ];
    for (text, message) in table {
        assert_eq!(errors(text), [message], "{text}");
    }
}

#[test]
fn port_zero_may_stand_twice_because_each_is_a_new_port() {
    assert_eq!(checked("listen = ['127.0.0.1:0', '127.0.0.1:0']").listeners.len(), 2);
}

#[test]
fn every_mistake_is_told_in_the_order_of_the_file() {
    let text = "threads = 0\n[limits]\nquueue = 1\nqueue = 'many'\n[log]\nlevel = 3\n";
    assert_eq!(
        errors(text),
        [
            "1: threads: expected a whole number from 1 to 4096, found 0",
            "3: limits.quueue: unknown key; did you mean `queue`?",
            "4: limits.queue: expected a whole number from 1 to 1000000, found \"many\"",
            "6: log.level: expected one of \"off\", \"error\", \"warn\", \"info\", \"debug\", \"trace\", found 3",
        ]
    );
}

#[test]
fn the_command_line_wins_over_the_file() {
    let overrides = Overrides {
        listen: vec!["unix:a".to_owned(), "127.0.0.1:0".to_owned()],
        processes: Some(5),
        threads: Some(6),
    };
    let config =
        check(&source("processes = 1\nthreads = 2\nlisten = ['[::1]:80']"), &overrides).expect("valid");
    let addresses: Vec<String> =
        config.listeners.iter().map(|listener| listener.address.to_string()).collect();
    assert_eq!(addresses, ["unix:a", "127.0.0.1:0"]);
    assert_eq!((config.processes, config.threads), (5, 6));
    let for_each_cpu = Overrides { processes: Some(0), ..Overrides::default() };
    let config = check(&source("processes = 1000"), &for_each_cpu).expect("valid");
    assert_eq!(config.processes, Config::default().processes);
}

#[test]
fn a_mistake_on_the_command_line_names_the_flag() {
    let overrides = Overrides {
        listen: vec!["unix:".to_owned(), "[::1]:1".to_owned(), "[::1]:1".to_owned()],
        processes: Some(9999),
        threads: Some(0),
    };
    let error = check(&source("threads = 'x'"), &overrides).expect_err("six mistakes").to_string();
    assert_eq!(
        error.lines().collect::<Vec<_>>(),
        [
            "--listen: expected HOST:PORT such as \"127.0.0.1:8080\", or \"unix:PATH\", found \"unix:\" \
             (a path goes after \"unix:\")",
            "--listen: expected each address once, found \"[::1]:1\" again",
            "--processes: expected a whole number from 0 to 1024, found 9999",
            "--threads: expected a whole number from 1 to 4096, found 0",
            "config.toml:1: threads: expected a whole number from 1 to 4096, found \"x\"",
        ]
    );
}

#[test]
fn settings_of_methods_there_are_not_are_told_with_their_lines() {
    let text = "[methods.ping]\n\n[methods.\"a b\"]\n[methods.pong]\ntimeout = '1s'";
    let source = Source { name: "f".to_owned(), text: text.to_owned() };
    let error = check_methods(&source, &["echo".to_owned(), "ping".to_owned()]).expect_err("two strangers");
    assert_eq!(
        error.to_string(),
        "f:3: methods.\"a b\": expected the name of a method, one of echo, ping\n\
         f:4: methods.pong: expected the name of a method, one of echo, ping"
    );
}
