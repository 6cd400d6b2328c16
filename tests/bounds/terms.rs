//! The terms on which a call came stay with it when another worker goes on with its connection: how long it may take, counted
//! from when it arrived, and that it was let in.

use crate::support;
use crate::support::kept::Kept;
use crate::support::peer::{ALL, Peer, Way, post};
use crate::support::proc::{Process, kill_at_rest};
use crate::support::{Service, at_once, await_asleep};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// So long that a pool thread parses it.
fn long() -> String {
    "x".repeat(17_000)
}

fn one(timeouts: &str, more: &str) -> Kept {
    let workers = "processes = 1\nthreads = 1\n[restart]\nbackoff = \"1ms\"\n[quarantine]\ncrashes = 0";
    Kept::start(&format!(
        "{workers}\n[limits]\nqueue_wait = \"60s\"\n[timeouts]\nkeep_after = \"0s\"\n{timeouts}\n{more}"
    ))
}

fn code(answer: &Value) -> i64 {
    [&answer["result"]["code"], &answer["error"]["code"]].into_iter().find_map(Value::as_i64).unwrap_or(0)
}

// A call whose message nobody had read when its worker died was given the time of `timeouts.request`, whatever its method's was.
#[test]
fn a_long_message_that_waited_has_the_time_of_its_own_method() {
    let kept =
        one("request = \"200ms\"", "[methods.hang]\ntimeout = \"60s\"\n[methods.sleep]\ntimeout = \"60s\"");
    for way in ALL {
        // Over HTTP one call waits for another of the same connection, and has not begun then.
        let mut blocker = kept.connect_to_speak(Way::Length);
        let pid = blocker.worker();
        blocker.send(r#"{"in":"hang"}"#);
        await_asleep(pid);
        let mut peer = Peer::of(&kept.service, way);
        peer.send(&json!({"in": "sleep", "params": {"ms": 400}, "pad": long()}).to_string());
        kept.await_kept(2);
        let mark = kept.service.mark();
        kill_at_rest(pid);
        assert_eq!(code(&blocker.receive()), -32002, "{way:?}");
        assert_eq!(peer.text(), r#"{"out":"sleep","result":null}"#, "{way:?}");
        kept.service.await_text(mark, "worker ready");
        drop(blocker);
        kept.disconnect(peer);
    }
}

// Its own deadline began anew with the worker that went on with it.
#[test]
fn a_long_message_that_waited_is_not_given_its_time_again() {
    let kept = one("", "[methods.hang]\ntimeout = \"60s\"");
    let mut peer = kept.connect_to_speak(Way::Length);
    let pid = peer.worker();
    peer.send(r#"{"in":"hang","id":1}"#);
    await_asleep(pid);
    peer.send(&json!({"in": "echo", "timeout_ms": 50, "pad": long(), "id": 2}).to_string());
    await_asleep(pid);
    // A call that is read at once says when so much time has passed, and more.
    let mut clock = Peer::of(&kept.service, Way::Length);
    clock.send(r#"{"in":"sleep","params":{"ms":0},"timeout_ms":500}"#);
    assert_eq!(code(&clock.receive()), -32001);
    kill_at_rest(pid);
    let mut answers = [peer.receive(), peer.receive()];
    answers.sort_by_key(|answer| answer["id"].as_u64());
    let codes = answers.each_ref().map(code);
    assert_eq!(codes, [-32002, -32001], "{answers:?}");
}

/// Reloads with this configuration, and waits until the new generation serves.
fn reload(service: &Service, change: impl Fn(String) -> String) {
    let file = service.folder().join("config.toml");
    let config = std::fs::read_to_string(&file).expect("the configuration");
    std::fs::write(&file, change(config)).expect("the service's folder");
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
}

// The rules of the worker that went on with it were applied to a batch that had begun: its answers were lost, and its caller was
// told that it had been refused.
#[test]
fn a_batch_that_has_begun_is_not_refused_by_a_later_configuration() {
    let calls: Vec<String> = (0..5)
        .map(|id| json!({"jsonrpc": "2.0", "method": "echo", "params": [id], "id": id}).to_string())
        .chain([r#"{"jsonrpc":"2.0","method":"hang","id":5}"#.to_owned()])
        .collect();
    let batch = format!("[{}]", calls.join(","));
    at_once(ALL, |way| {
        let kept = Kept::start(
            "processes = 1\nthreads = 4\n[timeouts]\nkeep_after = \"0s\"\n[limits]\nqueue = 100\n[quarantine]\ncrashes = 0",
        );
        let mut peer = kept.connect_to_speak(way);
        let pid = peer.worker();
        peer.send(&batch);
        await_asleep(pid);
        reload(&kept.service, |config| config.replace("queue = 100", "queue = 4"));
        let process = Process::of(pid);
        process.kill();
        let answers = peer.receive();
        let answers = answers.as_array().unwrap_or_else(|| panic!("{way:?}: {answers}"));
        assert_eq!(answers.len(), 6, "{way:?}: {answers:?}");
        for (id, answer) in (0..5).zip(answers) {
            assert_eq!(answer["result"], json!([id]), "{way:?}: {answers:?}");
        }
        assert_eq!(code(&answers[5]), -32002, "{way:?}: {answers:?}");
        peer.send(&batch);
        assert_eq!(code(&peer.receive()), -32600, "{way:?}: it holds for what comes now");
    });
}

// A page whose origin had been taken off the list meanwhile was told 403 for a call that had run.
#[test]
fn a_call_of_a_page_that_has_begun_is_not_refused_by_a_later_configuration() {
    let kept = Kept::start(
        "processes = 1\nthreads = 4\n[timeouts]\nkeep_after = \"0s\"\n[http]\nallow_origins = [\"http://a.example\"]",
    );
    let mut peer = kept.connect_to_speak(Way::Http);
    let pid = peer.worker();
    let page = "Origin: http://a.example\r\nContent-Type: application/json\r\n";
    peer.send_bytes(post("/hang", 2, page) + "[]");
    await_asleep(pid);
    reload(&kept.service, |config| config.replace("\"http://a.example\"", ""));
    Process::of(pid).kill();
    let reply = peer.reply();
    assert_eq!((reply.status, reply.code()), (502, -32002), "{reply:?}");
    peer.send_bytes(post("/ping", 2, page) + "[]");
    assert_eq!(peer.reply().status, 403, "it holds for what comes now");
}

// A connection that held more than `buffers` was closed where another worker was to go on with it, even by a reload that changed
// nothing: one long answer is more.
#[test]
fn an_answer_longer_than_all_buffers_goes_on_with_its_connection() {
    const LONG: usize = 12_000_000;
    let kept = Kept::start(
        "processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\n[limits]\nbuffers = \"4MiB\"\n[quarantine]\ncrashes = 0",
    );
    for how in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGHUP] {
        let mut peer = kept.connect_to_speak(Way::Stream);
        let pid = peer.worker();
        peer.send(&json!({"in": "blob", "params": {"bytes": LONG}}).to_string());
        // It has been run, and begins to arrive.
        peer.stream.peek(&mut [0]).expect("an answer");
        await_asleep(pid);
        match how {
            Signal::SIGHUP => reload(&kept.service, |config| config),
            how => support::send_signal(pid, how),
        }
        let answer = peer.text();
        assert!(answer.len() > LONG && answer.ends_with("x\"}"), "{how}: {} bytes", answer.len());
        assert_ne!(peer.worker(), pid, "{how}");
        kept.disconnect(peer);
    }
}

// So was one whose calls were more, or larger, than the configuration of the other allowed.
#[test]
fn calls_beyond_the_limits_of_a_later_configuration_are_told_what_became_of_them() {
    at_once(
        [
            ("in_flight_per_connection = 64", "in_flight_per_connection = 2"),
            ("max_message = \"1MiB\"", "max_message = \"4KiB\""),
            ("buffers = \"64MiB\"", "buffers = \"4MiB\""),
        ],
        |(before, after)| {
            let kept = Kept::start(&format!(
                "processes = 1\nthreads = 8\n[timeouts]\nkeep_after = \"0s\"\n[quarantine]\ncrashes = 0\n[limits]\n{before}"
            ));
            let mut peer = kept.connect_to_speak(Way::Length);
            let pid = peer.worker();
            let pad = "x".repeat(900_000);
            for id in 0..8 {
                peer.send(&json!({"in": "hang", "pad": pad, "id": id}).to_string());
            }
            await_asleep(pid);
            reload(&kept.service, |config| config.replace(before, after));
            Process::of(pid).kill();
            let mut lost: Vec<u64> = (0..8)
                .map(|_| {
                    let answer = peer.receive();
                    assert_eq!(code(&answer), -32002, "{after}: {answer}");
                    answer["id"].as_u64().expect("an id")
                })
                .collect();
            lost.sort_unstable();
            assert!(lost.into_iter().eq(0..8), "{after}");
            assert_ne!(peer.worker(), pid, "{after}");
        },
    );
}
