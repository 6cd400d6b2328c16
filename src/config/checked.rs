//! The config as the rest of the program sees it: parsed types, the limits of every key, the rules between
//! keys, and the defaults.
//!
//! To add a key: a field with its unit, its default, one line that reads it, one in `describe`, and one in
//! the shipped `config.toml`. Listeners have a file of their own.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use toml::de::DeTable;
use tracing::level_filters::LevelFilter;

use super::error::Problems;
use super::listener::{self, Listener};
use super::origin::{header, host, origin};
use super::raw::{self, Section};
use super::size::format_size;
use super::span;
use super::values::{
    choice, count, count_u32, count_usize, count_words, duration, share, size, size_or_none, truth,
};
use super::{ConfigError, Overrides, Source};
use crate::sys::cpus;

/// Everything that can be set, checked.
///
/// A template tells the supervisor what it has checked, and the two may be of different versions: keys that are missing
/// have their defaults there, keys that are not known are passed over.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// At least one.
    pub(crate) listeners: Vec<Listener>,
    /// Worker processes, at least 1: "one for each CPU" is resolved already.
    pub(crate) processes: usize,
    /// Handler threads in each worker, at least 1.
    pub(crate) threads: usize,
    pub(crate) limits: Limits,
    pub(crate) timeouts: Timeouts,
    pub(crate) restart: Restart,
    pub(crate) recycle: Recycle,
    pub(crate) quarantine: Quarantine,
    /// Settings of single methods, by name. That a method of that name exists is not known here.
    pub(crate) methods: BTreeMap<String, MethodSettings>,
    pub(crate) http: Http,
    pub(crate) run: Run,
    pub(crate) log: Log,
}

/// What bounds memory and waiting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Limits {
    /// Bytes of one message, without its framing.
    pub(crate) max_message: usize,
    /// Connections of the whole service; the descriptor limit may allow fewer.
    pub(crate) max_connections: usize,
    /// Connections of one client address in the whole service; zero: any number.
    pub(crate) per_address: usize,
    /// Calls that may wait in one worker.
    pub(crate) queue: usize,
    /// A call that would wait longer is refused; zero: no call waits where a wait is foreseen.
    pub(crate) queue_wait: Duration,
    /// Calls of one connection that run or wait at the same time.
    pub(crate) in_flight_per_connection: usize,
    /// Bytes of answers that wait for one connection before nothing more is read from it.
    pub(crate) output: usize,
    /// Bytes of connection buffers in one worker; at least `max_message` and `output`.
    pub(crate) buffers: usize,
}

/// How long things may take.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Timeouts {
    /// A call, from its last byte to its answer.
    pub(crate) request: Duration,
    /// From a connection's beginning to its first byte.
    pub(crate) first_byte: Duration,
    /// A message, from its first byte to its last.
    pub(crate) message: Duration,
    /// A connection without any call.
    pub(crate) idle: Duration,
    /// A worker, from fork to ready.
    pub(crate) boot: Duration,
    /// Running calls, once a worker is to end; zero: they are cut off at once.
    pub(crate) drain: Duration,
    /// From "not ready" on the health checks to closed listeners, so that balancers notice first.
    pub(crate) pre_stop: Duration,
    /// From when on a connection outlives its worker; zero: at once.
    pub(crate) keep_after: Duration,
    /// What a thread gets beyond its call's deadline before its worker is replaced; also how long a worker may be silent.
    pub(crate) stuck: Duration,
}

/// What happens to workers that die while they boot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Restart {
    /// Boot failures without a ready worker between them that are borne; one more ends the service. Zero: any number.
    pub(crate) max_restarts: u32,
    /// A slot without a boot failure for this long begins anew with `backoff`.
    pub(crate) window: Duration,
    /// Wait after the first boot failure; it doubles with each further one.
    pub(crate) backoff: Duration,
    /// The longest wait; at least `backoff`.
    pub(crate) backoff_max: Duration,
}

/// When a worker is replaced although nothing is wrong with it yet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Recycle {
    /// Calls that a worker begins; zero: any number.
    pub(crate) max_requests: u64,
    /// The share by which a worker's own limits may lie below the configured ones.
    pub(crate) jitter: f64,
    /// Bytes of memory that is a worker's alone; zero: any.
    pub(crate) max_memory: usize,
}

/// A share is a number that was read or is a default: never NaN.
impl Eq for Recycle {}

/// What happens to methods that take workers down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Quarantine {
    /// Crashes of one method within `window` that put it in quarantine. Zero: none is ever put there.
    pub(crate) crashes: u32,
    pub(crate) window: Duration,
    /// From there to the one call that tries the method again.
    pub(crate) cool_down: Duration,
}

/// Settings of one method.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct MethodSettings {
    /// Instead of `timeouts.request`.
    pub(crate) timeout: Option<Duration>,
    /// Calls of it that may run in one worker at the same time; none: as many as there are threads.
    pub(crate) concurrency: Option<usize>,
}

/// What holds for callers that speak HTTP.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Http {
    /// Whose pages may call, as browsers write an `Origin`; `*` stands for all, `self` for the API's own. Empty: none.
    pub(crate) allow_origins: Vec<String>,
    /// Header fields that these pages may send, beside `Content-Type` and `Request-Timeout-Ms`.
    pub(crate) allow_headers: Vec<String>,
    /// Names of hosts, in lower case, by which pages of the API's own origin may know it. IP addresses and `localhost` are known.
    pub(crate) hosts: Vec<String>,
}

/// What the service's processes are to each other and to the system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Run {
    /// What handlers have started is left alone when their worker ends.
    pub(crate) groups_outlive: bool,
}

/// What is logged, and how.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Log {
    #[serde(with = "level")]
    pub(crate) level: LevelFilter,
    pub(crate) format: LogFormat,
    /// Calls that take longer are logged; zero: none are.
    pub(crate) slow: Duration,
}

/// One line for each event, for people or for machines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LogFormat {
    Text,
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listeners: listener::defaults(),
            processes: one_for_each_cpu(),
            threads: 8,
            limits: Limits::default(),
            timeouts: Timeouts::default(),
            restart: Restart::default(),
            recycle: Recycle::default(),
            quarantine: Quarantine::default(),
            methods: BTreeMap::new(),
            http: Http::default(),
            run: Run::default(),
            log: Log::default(),
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_message: 1 << 20,
            max_connections: 10_000,
            per_address: 0,
            queue: 1024,
            queue_wait: Duration::from_secs(1),
            in_flight_per_connection: 64,
            output: 4 << 20,
            buffers: 256 << 20,
        }
    }
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            request: Duration::from_secs(30),
            first_byte: Duration::from_secs(60),
            message: Duration::from_secs(30),
            idle: Duration::from_secs(600),
            boot: Duration::from_secs(30),
            drain: Duration::from_secs(30),
            pre_stop: Duration::ZERO,
            keep_after: Duration::from_millis(100),
            stuck: Duration::from_secs(10),
        }
    }
}

impl Default for Restart {
    fn default() -> Self {
        Self {
            max_restarts: 100,
            window: Duration::from_secs(60),
            backoff: Duration::from_millis(100),
            backoff_max: Duration::from_secs(30),
        }
    }
}

impl Default for Recycle {
    fn default() -> Self {
        Self { max_requests: 0, jitter: 0.1, max_memory: 0 }
    }
}

impl Default for Quarantine {
    fn default() -> Self {
        Self { crashes: 3, window: Duration::from_secs(60), cool_down: Duration::from_secs(30) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { level: LevelFilter::INFO, format: LogFormat::Text, slow: Duration::ZERO }
    }
}

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// The fourth byte of a length prefix must be 0 for the framing to be recognised among others, hence "below 16 MiB".
const MAX_MESSAGE: RangeInclusive<u64> = 64..=16 * MIB - 1;
/// Where no listener has to tell a prefix from anything else.
const MAX_MESSAGE_PINNED: RangeInclusive<u64> = 64..=GIB;
const OUTPUT: RangeInclusive<u64> = 4 * KIB..=GIB;
const BUFFERS: RangeInclusive<u64> = 64 * KIB..=1024 * GIB;
/// Each thread of a worker has its own part in shared memory, and a stack.
const THREADS: RangeInclusive<u64> = 1..=4096;
/// Each slot costs the supervisor an arena and a channel; also the most that "one for each CPU" gives.
const PROCESSES: RangeInclusive<u64> = 0..=1024;
/// A fresh worker has more than the least of these.
const MEMORY: RangeInclusive<u64> = MIB..=1024 * GIB;
const MILLION: u64 = 1_000_000;

const INSTANT: Duration = Duration::ZERO;
/// A wait below this is a mistake in the unit.
const SHORTEST: Duration = Duration::from_millis(1);
/// A worker is asked for a sign of life four times in `stuck`; a busy machine may keep it waiting this long.
const BRIEF: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

const LEVELS: [(&str, LevelFilter); 6] = [
    ("off", LevelFilter::OFF),
    ("error", LevelFilter::ERROR),
    ("warn", LevelFilter::WARN),
    ("info", LevelFilter::INFO),
    ("debug", LevelFilter::DEBUG),
    ("trace", LevelFilter::TRACE),
];
const FORMATS: [(&str, LogFormat); 2] = [("text", LogFormat::Text), ("json", LogFormat::Json)];

/// Makes a config of the file's text and the command line, which wins. Reports every problem it can find,
/// not only the first. May wait for the system's resolver, where an address has a host name.
pub(crate) fn check(source: &Source, overrides: &Overrides) -> Result<Config, ConfigError> {
    let mut problems = Problems::default();
    let mut config = match raw::parse(&source.text, &mut problems) {
        Some(document) => from_document(&document, &mut problems),
        None => Config::default(),
    };
    apply(overrides, &mut config, &mut problems);
    problems.into_result(source, config)
}

/// Checks that every `[methods.NAME]` is about a method there is. Apart from [`check`], because only the program
/// knows its methods.
pub(crate) fn check_methods(source: &Source, known: &[String]) -> Result<(), ConfigError> {
    let mut problems = Problems::default();
    if let Some(document) = raw::parse(&source.text, &mut problems) {
        Section::root(&document, &mut problems).each_named("methods", |name, section| {
            if !known.iter().any(|known| known == name) {
                let known = known.join(", ");
                section.wrong_itself(format!("expected the name of a method, one of {known}"));
            }
        });
    }
    problems.into_result(source, ())
}

fn from_document(document: &DeTable<'_>, problems: &mut Problems) -> Config {
    let mut root = Section::root(document, problems);
    let listeners = listener::read(&mut root);
    let max_message =
        if listeners.iter().any(Listener::tells_prefixes_apart) { MAX_MESSAGE } else { MAX_MESSAGE_PINNED };
    let config = Config {
        listeners,
        processes: resolve(root.read("processes", 0, count_usize(PROCESSES))),
        threads: root.read("threads", 8, count_usize(THREADS)),
        limits: limits(root.section("limits"), max_message),
        timeouts: timeouts(root.section("timeouts")),
        restart: restart(root.section("restart")),
        recycle: recycle(root.section("recycle")),
        quarantine: quarantine(root.section("quarantine")),
        methods: methods(&mut root),
        http: http(root.section("http")),
        run: run(root.section("run")),
        log: log(root.section("log")),
    };
    root.finish();
    config
}

fn limits(mut section: Section<'_, '_>, max_message: RangeInclusive<u64>) -> Limits {
    let problems_before = section.problem_count();
    let default = Limits::default();
    let limits = Limits {
        max_message: section.read("max_message", default.max_message, size(max_message)),
        max_connections: section.read("max_connections", default.max_connections, count_usize(1..=MILLION)),
        per_address: section.read("per_address", default.per_address, count_usize(0..=MILLION)),
        queue: section.read("queue", default.queue, count_usize(1..=MILLION)),
        queue_wait: section.read("queue_wait", default.queue_wait, duration(SHORTEST..=DAY)),
        in_flight_per_connection: section.read(
            "in_flight_per_connection",
            default.in_flight_per_connection,
            count_usize(1..=65536),
        ),
        output: section.read("output", default.output, size(OUTPUT)),
        buffers: section.read("buffers", default.buffers, size(BUFFERS)),
    };
    if section.problem_count() == problems_before {
        let buffers = ("buffers", limits.buffers);
        in_order(&mut section, ("max_message", limits.max_message), buffers, show_size);
        in_order(&mut section, ("output", limits.output), buffers, show_size);
    }
    section.finish();
    limits
}

fn timeouts(mut section: Section<'_, '_>) -> Timeouts {
    let default = Timeouts::default();
    let timeouts = Timeouts {
        request: section.read("request", default.request, duration(SHORTEST..=DAY)),
        first_byte: section.read("first_byte", default.first_byte, duration(SHORTEST..=MONTH)),
        message: section.read("message", default.message, duration(SHORTEST..=DAY)),
        idle: section.read("idle", default.idle, duration(SHORTEST..=MONTH)),
        boot: section.read("boot", default.boot, duration(SHORTEST..=DAY)),
        drain: section.read("drain", default.drain, duration(INSTANT..=DAY)),
        pre_stop: section.read("pre_stop", default.pre_stop, duration(INSTANT..=HOUR)),
        keep_after: section.read("keep_after", default.keep_after, duration(INSTANT..=HOUR)),
        stuck: section.read("stuck", default.stuck, duration(BRIEF..=DAY)),
    };
    section.finish();
    timeouts
}

fn restart(mut section: Section<'_, '_>) -> Restart {
    let problems_before = section.problem_count();
    let default = Restart::default();
    let restart = Restart {
        max_restarts: section.read("max_restarts", default.max_restarts, count_u32(0..=1_000_000)),
        window: section.read("window", default.window, duration(SHORTEST..=DAY)),
        backoff: section.read("backoff", default.backoff, duration(SHORTEST..=HOUR)),
        backoff_max: section.read("backoff_max", default.backoff_max, duration(SHORTEST..=DAY)),
    };
    if section.problem_count() == problems_before {
        let longest = ("backoff_max", restart.backoff_max);
        in_order(&mut section, ("backoff", restart.backoff), longest, span::show);
    }
    section.finish();
    restart
}

fn recycle(mut section: Section<'_, '_>) -> Recycle {
    let default = Recycle::default();
    let recycle = Recycle {
        max_requests: section.read("max_requests", default.max_requests, count(0..=MILLION * MILLION)),
        jitter: section.read("jitter", default.jitter, share()),
        max_memory: section.read("max_memory", default.max_memory, size_or_none(MEMORY)),
    };
    section.finish();
    recycle
}

fn quarantine(mut section: Section<'_, '_>) -> Quarantine {
    let default = Quarantine::default();
    let quarantine = Quarantine {
        crashes: section.read("crashes", default.crashes, count_u32(0..=1000)),
        window: section.read("window", default.window, duration(SHORTEST..=DAY)),
        cool_down: section.read("cool_down", default.cool_down, duration(SHORTEST..=DAY)),
    };
    section.finish();
    quarantine
}

fn http(mut section: Section<'_, '_>) -> Http {
    let expected = "a list of origins such as [\"https://app.example.com\"]";
    let allow_origins = section.each("allow_origins", expected, origin).unwrap_or_default();
    let expected = "a list of header fields such as [\"Authorization\"]";
    let allow_headers = section.each("allow_headers", expected, header).unwrap_or_default();
    let expected = "a list of hosts' names such as [\"api.example.com\"]";
    let hosts = section.each("hosts", expected, host).unwrap_or_default();
    section.finish();
    Http { allow_origins, allow_headers, hosts }
}

fn run(mut section: Section<'_, '_>) -> Run {
    let groups_outlive = section.read("groups_outlive", false, truth);
    section.finish();
    Run { groups_outlive }
}

fn methods(root: &mut Section<'_, '_>) -> BTreeMap<String, MethodSettings> {
    let mut methods = BTreeMap::new();
    root.each_named("methods", |name, mut section| {
        let timeout = section.optional("timeout", duration(SHORTEST..=DAY));
        let concurrency = section.optional("concurrency", count_usize(1..=MILLION));
        section.finish();
        methods.insert(name.to_owned(), MethodSettings { timeout, concurrency });
    });
    methods
}

fn log(mut section: Section<'_, '_>) -> Log {
    let default = Log::default();
    let log = Log {
        level: section.read("level", default.level, choice(&LEVELS)),
        format: section.read("format", default.format, choice(&FORMATS)),
        slow: section.read("slow", default.slow, duration(INSTANT..=DAY)),
    };
    section.finish();
    log
}

/// The rule `small` ≤ `large`. The complaint goes where the person can see the cause: to a key that is in the
/// file, and if only `small` is, then to that, because the other is a default.
fn in_order<T: PartialOrd + Copy>(
    section: &mut Section<'_, '_>,
    small: (&str, T),
    large: (&str, T),
    show: fn(T) -> String,
) {
    if small.1 <= large.1 {
        return;
    }
    let (small_text, large_text) = (show(small.1), show(large.1));
    if section.has(large.0) {
        let text = format!("expected at least `{}`, which is {small_text}, found {large_text}", small.0);
        section.wrong(large.0, text);
    } else {
        let text = format!("expected at most `{}`, which is {large_text}, found {small_text}", large.0);
        section.wrong(small.0, text);
    }
}

fn show_size(bytes: usize) -> String {
    format_size(bytes as u64)
}

fn apply(overrides: &Overrides, config: &mut Config, problems: &mut Problems) {
    if !overrides.listen.is_empty() {
        config.listeners = listener::from_flags(&overrides.listen, problems);
        // These take every framing, unlike those of the file that such a limit is right for.
        if config.limits.max_message as u64 > *MAX_MESSAGE.end() {
            let found = show_size(config.limits.max_message);
            let text =
                format!("expected `limits.max_message` below 16MiB, as it takes all framings, found {found}");
            problems.wrong_flag("--listen", text);
        }
    }
    if let Some(processes) = overrides.processes {
        config.processes = resolve(processes);
        flag_in_range("--processes", processes, &PROCESSES, problems);
    }
    if let Some(threads) = overrides.threads {
        config.threads = threads;
        flag_in_range("--threads", threads, &THREADS, problems);
    }
}

fn flag_in_range(flag: &str, number: usize, range: &RangeInclusive<u64>, problems: &mut Problems) {
    if !range.contains(&(number as u64)) {
        problems.wrong_flag(flag, format!("expected {}, found {number}", count_words(range)));
    }
}

fn resolve(processes: usize) -> usize {
    if processes == 0 { one_for_each_cpu() } else { processes }
}

fn one_for_each_cpu() -> usize {
    let most = usize::try_from(*PROCESSES.end()).unwrap_or(usize::MAX);
    cpus::available().min(most)
}

/// A level by its name, which is all that it has.
mod level {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};
    use tracing::level_filters::LevelFilter;

    // The signature is serde's.
    #[allow(clippy::trivially_copy_pass_by_ref)]
    pub(super) fn serialize<S: Serializer>(level: &LevelFilter, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(level)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(from: D) -> Result<LevelFilter, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
