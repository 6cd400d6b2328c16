//! Handlers that take their worker down, once and every time, and a worker that destroys what it shares.

use std::time::Duration;

use serde_json::{Value, json};
use tine::{BoxError, Client, ClientError, RemoteError};

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::content::{Failure, Work};
use crate::support::load::group::Group;
use crate::support::load::speech::Speech;
use crate::support::service::{PATIENCE, Service};

pub const CRASH: Row = Row {
    name: "crash",
    fault: "a handler that segfaults, aborts, calls `exit`, overflows its stack, is killed for memory",
    promise: "its caller and those whose calls ran beside it get -32002 with method and cause; no connection closes",
    parts: &[
        Part { name: "segv", run: |extent| crash(extent, "segv", "SIGSEGV") },
        Part { name: "abort", run: |extent| crash(extent, "abort", "SIGABRT") },
        Part { name: "exit", run: |extent| crash(extent, "exit", "exit 3") },
        Part { name: "stack", run: |extent| crash(extent, "stack", "SIGSEGV") },
        Part { name: "oom", run: |extent| crash(extent, "oom", "SIGKILL") },
    ],
};

pub const QUARANTINE: Row = Row {
    name: "quarantine",
    fault: "a method that crashes every time, beside 7 busy innocent ones",
    promise: "after `crashes` it alone is answered -32004, with one trial call after each `cool_down`",
    parts: &[Part { name: "segv", run: |extent| quarantine(extent, "segv") }],
};

pub const GARBAGE: Row = Row {
    name: "garbage",
    fault: "a worker that writes garbage over its whole arena and dies",
    promise: "only its own connections are harmed, by a close or an error",
    parts: &[Part { name: "arena", run: garbage }],
};

const CLIENTS: Group = Group::new("clients", 32).in_any_framing();

const SLEEPERS: Group = Group::new("sleepers", 10)
    .in_any_framing()
    .work(Work::Fixed { method: "sleep", params: r#"{"ms":20}"#, result: Some("null") })
    .pace(Duration::from_millis(5));

fn crash(extent: Extent, how: &'static str, cause: &str) -> Result<Judge, BoxError> {
    let service = Service::start(4, "[restart]\nmax_restarts = 0\n[quarantine]\ncrashes = 0")?;
    let mut judge = Judge::default();
    // Who takes a worker down has by then a connection that survives it.
    let crashers = Group::new("crashers", Speech::ALL.len())
        .in_any_framing()
        .work(Work::Fixed { method: "crash", params: deadly(how), result: None })
        .calling_over(Duration::from_secs(1))
        .after(Duration::from_millis(500))
        .pace(Duration::from_secs(1));
    let load = Load::start(service.address(), &[CLIENTS, SLEEPERS, crashers])?;
    std::thread::sleep(extent.seconds(8, 3));
    let tallies = load.finish(PATIENCE)?;
    judge.tell(format!("{} crashes told to those who made them", tallies[2].all_errors()));
    judge.unharmed(&tallies);
    let is_told = |failure: &Failure, methods: &[&str]| {
        failure.code == -32002 && failure.cause == cause && methods.contains(&failure.method.as_str())
    };
    judge.only_errors(&tallies[..2], |failure| is_told(failure, &["echo", "sleep"]));
    judge.only_errors(&tallies[2..], |failure| is_told(failure, &["crash"]));
    judge.holds("nobody survives such a call", tallies[2].right == 0);
    judge.holds("all workers are back", service.await_workers(4));
    judge.heard(&service);
    Ok(judge)
}

/// The params of a call that takes its worker down.
fn deadly(how: &str) -> &'static str {
    match how {
        "segv" => r#"{"how":"segv"}"#,
        "abort" => r#"{"how":"abort"}"#,
        "exit" => r#"{"how":"exit","code":3}"#,
        "stack" => r#"{"how":"stack"}"#,
        _ => r#"{"how":"oom"}"#,
    }
}

fn data_of(error: &RemoteError) -> Value {
    error.data.as_ref().and_then(|data| serde_json::from_str(data.get()).ok()).unwrap_or_default()
}

/// Seven methods that do no harm, each with clients of its own.
const INNOCENT: [Group; 7] = [
    Group::new("echo", 5).in_any_framing(),
    Group::new("echo of much", 5)
        .in_any_framing()
        .work(Work::Echo { bytes: 20_000 })
        .pace(Duration::from_millis(2)),
    Group::new("blob", 5).in_any_framing().work(Work::Blob { bytes: 10_000 }).pace(Duration::from_millis(2)),
    Group::new("sleep", 5).in_any_framing().work(Work::Fixed {
        method: "sleep",
        params: r#"{"ms":5}"#,
        result: Some("null"),
    }),
    Group::new("mix", 5).in_any_framing().work(Work::Fixed {
        method: "mix",
        params: r#"{"ms":2,"us":100}"#,
        result: Some("null"),
    }),
    Group::new("spin", 5)
        .in_any_framing()
        .work(Work::Fixed { method: "spin", params: r#"{"us":200}"#, result: Some("null") })
        .pace(Duration::from_millis(2)),
    Group::new("flaky", 5)
        .in_any_framing()
        .work(Work::Fixed { method: "flaky", params: r#"{"every":1,"ms":1}"#, result: Some("true") })
        .pace(Duration::from_millis(2)),
];

const CRASHES: u64 = 3;

fn quarantine(extent: Extent, how: &str) -> Result<Judge, BoxError> {
    let cool_down = extent.seconds(5, 1);
    let config = format!(
        "[restart]\nmax_restarts = 0\n[quarantine]\ncrashes = {CRASHES}\nwindow = \"60s\"\ncool_down = \"{}s\"",
        cool_down.as_secs()
    );
    let service = Service::start(4, &config)?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &INNOCENT)?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    let caller = Client::connect(&service.address().to_string())?;
    std::thread::sleep(Duration::from_millis(500));
    let until = std::time::Instant::now() + extent.seconds(30, 4);
    let (mut crashed, mut refused) = (0, 0);
    let mut first_refusal = None;
    while std::time::Instant::now() < until {
        match caller.call::<Value>("crash", &json!({ "how": how })) {
            Err(ClientError::Remote(error)) if error.code == -32002 => crashed += 1,
            Err(ClientError::Remote(error)) if error.code == -32004 => {
                refused += 1;
                first_refusal.get_or_insert(std::time::Instant::now());
                let has_time = data_of(&error)["retry_after_ms"].is_u64();
                judge.holds("-32004 comes with data.retry_after_ms", has_time || refused > 1);
            }
            other => {
                judge.failures.push(format!("expected -32002 or -32004, found {other:?}"));
                break;
            }
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let tallies = load.finish(PATIENCE)?;
    judge.tell(format!("{crashed} crashes, {refused} calls refused"));
    judge.holds("it gets into quarantine", refused > 0);
    let whole = first_refusal.map_or(0, |first| first.elapsed().as_secs() / cool_down.as_secs());
    // Calls that were on their way when the last crash was counted may crash as well: one caller has one.
    judge.at_most("crashes", crashed, CRASHES + whole + 1);
    judge.at_least("trial calls", crashed.saturating_sub(CRASHES), u64::from(whole > 1));
    judge.unharmed(&tallies);
    judge.only_errors(&tallies, |failure| failure.code == -32002 && failure.cause == "SIGSEGV");
    judge.holds("all workers are back", service.await_workers(4));
    judge.heard(&service);
    Ok(judge)
}

fn garbage(extent: Extent) -> Result<Judge, BoxError> {
    let service = Service::start(2, "[restart]\nmax_restarts = 0\n[quarantine]\ncrashes = 0")?;
    let mut judge = Judge::default();
    let rounds = extent.count(30, 3);
    let mut harmed = 0;
    for seed in 0..rounds {
        // Those who come after it was over notice nothing; those who were there may be closed or get an error.
        let load = Load::start(service.address(), &[CLIENTS.pipelined(4)])?;
        judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
        std::thread::sleep(Duration::from_millis(300));
        let (workers, supervisor) = (service.workers().len(), service.pid());
        judge.holds("both workers live before", workers == 2);
        let caller = Client::connect(&service.address().to_string())?;
        let _ = caller.call::<Value>("scribble", &json!({ "seed": seed }));
        judge.holds("the supervisor lives", crate::support::proc::is_alive(supervisor));
        judge.holds("both workers are back", service.await_workers(2));
        let answered = load.right();
        std::thread::sleep(Duration::from_millis(200));
        judge.holds("the other worker's clients go on", load.right() > answered);
        let tallies = load.finish(Duration::from_secs(3))?;
        let closed: u64 = tallies.iter().map(|tally| tally.closed + tally.anonymous + tally.missing).sum();
        harmed += closed;
        // A connection whose record is garbage is closed. While the memory of its calls is being overwritten, the worker may
        // also put noise for an answer that it sends; one that could be taken for an answer would be worse.
        judge.holds("no answer is wrong", tallies.iter().all(|tally| tally.wrong == 0));
        judge.holds("no answer is missing", tallies.iter().all(|tally| tally.missing == 0));
        judge.holds("somebody's connection stays", closed < CLIENTS.clients as u64);
        if !judge.failures.is_empty() {
            judge.failures.extend(tallies.iter().filter_map(|tally| tally.first_wrong.clone()));
            break;
        }
    }
    judge.tell(format!("{rounds} times, {harmed} of {} connections closed", rounds * CLIENTS.clients));
    judge.heard(&service);
    Ok(judge)
}
