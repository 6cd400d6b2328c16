//! A connection is kept before a handler first runs on it: whatever that handler does, its caller and all beside it are
//! answered, on connections that have just begun.

use std::time::{Duration, Instant};

use crate::support::kept::Kept;
use crate::support::measure::{assert_rests, wakeups};
use crate::support::peer::{ALL, Peer, Way, post};
use crate::support::proc::{Process, after_setup, open_descriptors, status};
use crate::support::{
    PATIENCE, Service, Wire, at_once, await_asleep, await_gone, await_so, code, rig, send_signal,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Workers come back at once however often they end, and what waits is not refused. `keep_after` never comes.
const CONFIG: &str = "threads = 2\nlisten = [\"127.0.0.1:0\", \"unix:rpc.sock\"]\n[timeouts]\nkeep_after = \"1h\"\n[limits]\nqueue_wait = \"60s\"\n\
                      [quarantine]\ncrashes = 0\n[restart]\nmax_restarts = 0\nbackoff = \"1ms\"\nbackoff_max = \"10ms\"\n";

/// What a handler may do, and what its caller is told of it.
const DEATHS: [(&str, &str); 6] = [
    ("segv", "SIGSEGV"),
    ("abort", "SIGABRT"),
    ("exit", "exit 7"),
    ("vanish", "exit 7"),
    ("stack", "SIGSEGV"),
    ("oom", "SIGKILL"),
];

fn start(processes: usize) -> Service {
    Service::start(&format!("processes = {processes}\n{CONFIG}"))
}

/// One by TCP, then one by a socket file, each when it is asked for: a connection that says nothing is not kept.
fn peers(service: &Service, way: Way) -> impl Iterator<Item = Peer> {
    let kinds =
        [Peer::of as fn(&Service, Way) -> Peer, |service, way| Peer::by_file(service, "rpc.sock", way)];
    kinds.into_iter().map(move |connect| connect(service, way))
}

/// The worker that is stopped, as soon as one is.
fn await_stopped(service: &Service) -> i32 {
    let until = Instant::now() + PATIENCE;
    let is_stopped = |pid: &i32| status(*pid, "State").is_some_and(|state| state.starts_with('T'));
    loop {
        if let Some(stopped) = service.worker_pids().into_iter().find(is_stopped) {
            return stopped;
        }
        assert!(Instant::now() < until, "no worker is stopped; log:\n{}", service.log_so_far());
        std::thread::yield_now();
    }
}

#[test]
fn a_first_call_is_answered_whatever_it_does() {
    let service = start(2);
    for way in ALL {
        for (how, cause) in DEATHS {
            for mut peer in peers(&service, way) {
                peer.send(&json!({ "in": "crash", "params": { "how": how, "code": 7 } }).to_string());
                let answer = peer.receive();
                assert_eq!(answer["result"]["code"], -32002, "{way:?} {how}: {answer}");
                assert_eq!(
                    answer["result"]["data"],
                    json!({ "method": "crash", "cause": cause }),
                    "{answer}"
                );
                // And the connection goes on.
                assert_eq!(peer.call("echo", json!(how))["result"], how, "{way:?}");
            }
        }
    }
}

#[test]
fn a_first_call_is_answered_in_whatever_form_it_comes() {
    let service = start(2);
    let crash =
        |id: u64| json!({ "jsonrpc": "2.0", "method": "crash", "params": { "how": "oom" }, "id": id });
    let long = format!("{{\"in\":\"crash\",\"params\":{{\"how\":\"oom\"}}{}}}", " ".repeat(20_000));
    for way in ALL {
        for mut peer in peers(&service, way) {
            peer.send(&crash(1).to_string());
            assert_eq!(code(&peer.receive()), -32002, "{way:?}");
        }
        for mut peer in peers(&service, way) {
            peer.send(&json!({ "method": "crash", "params": [{ "how": "oom" }], "id": 1 }).to_string());
            let answer = peer.text();
            assert!(answer.contains("(code -32002)"), "{way:?}, version 1.0: {answer}");
        }
        for mut peer in peers(&service, way) {
            peer.send(&long);
            assert_eq!(code(&peer.receive()), -32002, "{way:?}, parsed by a thread of the pool");
        }
        for mut peer in peers(&service, way) {
            let batch = json!([crash(1), { "jsonrpc": "2.0", "method": "ping", "id": 2 }, crash(3)]);
            peer.send(&batch.to_string());
            let answers = peer.receive();
            let answers = answers.as_array().expect("a batch");
            assert_eq!(
                answers.iter().map(|answer| &answer["id"]).collect::<Vec<_>>(),
                [1, 2, 3],
                "{answers:?}"
            );
            assert_eq!((code(&answers[0]), code(&answers[2])), (-32002, -32002), "{way:?}");
        }
        for mut peer in peers(&service, way) {
            // Nobody waits for a notification; who waits for the next call must not lose that.
            let worker = Process::of(peer.worker());
            let told = json!({ "jsonrpc": "2.0", "method": "crash", "params": { "how": "oom" } });
            peer.send_bytes(way.all_framed([&*told.to_string(), r#"{"in":"echo","params":1,"id":7}"#]));
            if way == Way::Http {
                assert_eq!(peer.reply().status, 204);
            }
            assert_eq!(peer.receive()["id"], 7, "{way:?}");
            // Its worker may not have ended yet, and what it accepts at that moment ends with it.
            worker.await_end();
        }
    }
    for mut peer in peers(&service, Way::Http) {
        let body = r#"{"how":"oom"}"#;
        peer.send_bytes(post("/crash", body.len(), "") + body);
        assert_eq!(peer.reply().status, 502);
    }
    for mut peer in peers(&service, Way::Http) {
        peer.send_bytes(
            "POST /crash HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{\"how\"\r\n7\r\n:\"oom\"}\r\n0\r\n\r\n",
        );
        assert_eq!(peer.reply().status, 502, "it came in chunks");
    }
}

#[test]
fn a_first_call_that_stops_its_worker_is_answered_when_that_is_killed() {
    let service = start(2);
    for way in ALL {
        for mut peer in peers(&service, way) {
            peer.send(r#"{"in":"crash","params":{"how":"stop"}}"#);
            Process::of(await_stopped(&service)).kill();
            let answer = peer.receive();
            assert_eq!(answer["result"]["data"]["cause"], "SIGKILL", "{way:?}: {answer}");
        }
    }
}

#[test]
fn calls_that_came_beside_it_are_answered() {
    let service = start(1);
    for (how, _) in DEATHS {
        let [worker] = service.worker_pids()[..] else { panic!("one worker") };
        // All that is there when it looks again comes in one round.
        let process = Process::of(worker);
        send_signal(worker, Signal::SIGSTOP);
        await_stopped(&service);
        let mut peers: Vec<Peer> =
            ALL.into_iter().cycle().take(40).flat_map(|way| peers(&service, way)).collect();
        for (number, peer) in peers.iter_mut().enumerate() {
            let params = json!({ "how": if number == 30 { how } else { "none" }, "code": 7 });
            peer.send(
                &json!({ "jsonrpc": "2.0", "method": "crash", "params": params, "id": number }).to_string(),
            );
        }
        send_signal(worker, Signal::SIGCONT);
        process.await_end();
        for (number, peer) in peers.iter_mut().enumerate() {
            let answer = peer.receive();
            assert_eq!(answer["id"], number, "{answer}");
            if number == 30 {
                assert_eq!(code(&answer), -32002, "{how}: {answer}");
            } else if answer["error"] != Value::Null {
                // Two threads: one other call may have been on its way.
                assert_eq!(code(&answer), -32002, "{how}: {answer}");
            }
        }
        drop(peers);
        service.await_log("worker ready");
    }
}

#[test]
fn a_call_that_can_not_be_kept_waits_and_is_refused_and_never_runs() {
    // First there is no room on the line, then no descriptor that the supervisor has granted.
    at_once(["true", "ulimit -n 200"], waits_and_is_refused);
}

fn waits_and_is_refused(setup: &str) {
    let config = "processes = 1\nthreads = 1\n[timeouts]\nkeep_after = \"1h\"\nstuck = \"1h\"\n[limits]\nqueue_wait = \"300ms\"\n";
    let service = Service::start_with(after_setup(setup, &rig()), config);
    let address = service.socket_address();
    let count = |wire: &mut Wire, add: u64| wire.call("count", json!({ "of": "runs", "add": add }));
    let mut kept = service.connect();
    assert_eq!(count(&mut kept, 1)["result"], 1);
    // Its line takes some hundred messages that nobody reads, one for each of these.
    send_signal(service.pid(), Signal::SIGSTOP);
    let mut ran = 1;
    let mut refused = loop {
        let mut new = service.connect();
        let answer = count(&mut new, 1);
        if answer["out"] == "error" {
            assert_eq!(code(&answer), -32000, "{answer}");
            break new;
        }
        ran += 1;
        assert_eq!(answer["result"], ran);
        assert!(ran < 10_000, "the line is never full");
    };
    // Who is kept waits for nobody, and the built-in methods need no keeping.
    assert_eq!(count(&mut kept, 0)["result"], ran, "what was refused has not run");
    assert_eq!(refused.call("echo", json!(1))["result"], 1);
    assert_eq!(service.call("echo", json!(1))["result"], 1);
    // In every framing, whatever it is.
    for way in ALL {
        let long = format!("{{\"in\":\"echo\",\"params\":null{}}}", " ".repeat(20_000));
        let batch = r#"[{"jsonrpc":"2.0","method":"count","params":{"of":"runs","add":1},"id":1}]"#;
        at_once([r#"{"in":"count","params":{"of":"runs","add":1}}"#, &long, batch], |body| {
            let mut peer = Peer::connect(address, way);
            peer.send(body);
            let answer = peer.receive();
            assert_eq!(code(answer.get(0).unwrap_or(&answer)), -32000, "{way:?}");
        });
    }
    // One that waits is begun as soon as the line takes it.
    refused.request("count", &json!({ "of": "runs", "add": 1 }));
    send_signal(service.pid(), Signal::SIGCONT);
    assert_eq!(refused.receive()["result"], ran + 1);
}

/// They wait before the doors, where another worker finds them.
#[test]
fn nobody_is_accepted_while_nobody_can_be_kept() {
    let config = "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"60s\"\n[quarantine]\ncrashes = 0\n\
                  [timeouts]\nkeep_after = \"1h\"\nstuck = \"1h\"";
    let service = Service::start_with(after_setup("ulimit -n 200", &rig()), config);
    let [worker] = service.worker_pids()[..] else { panic!("one worker") };
    let process = Process::of(worker);
    // It keeps nobody any more when what it was granted is used up.
    send_signal(service.pid(), Signal::SIGSTOP);
    let mut kept: Vec<Wire> = Vec::new();
    let unkept = loop {
        let mut wire = service.connect();
        wire.request("count", &json!({ "of": "runs", "add": 1 }));
        await_asleep(worker);
        wire.stream.set_nonblocking(true).expect("the option exists");
        let is_answered = wire.stream.peek(&mut [0; 1]).is_ok();
        wire.stream.set_nonblocking(false).expect("the option exists");
        if !is_answered {
            break wire;
        }
        wire.receive();
        kept.push(wire);
        assert!(kept.len() < 75, "it may keep all that it may hold");
    };
    let mut left: Vec<Wire> = (0..8).map(|_| service.connect()).collect();
    for wire in &mut left {
        wire.request("count", &json!({ "of": "runs", "add": 1 }));
    }
    await_asleep(worker);
    process.kill();
    send_signal(service.pid(), Signal::SIGCONT);
    for wire in kept.iter_mut().chain(&mut left) {
        assert!(wire.call("count", json!({ "of": "runs", "add": 0 }))["result"].is_u64());
    }
    drop(unkept);
}

/// They were kept by the timer, as no call asked for it, and the doors stayed shut for half of `queue_wait`.
#[test]
fn doors_are_open_as_soon_as_connections_that_call_nothing_are_kept() {
    let config = "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"10m\"\n\
                  [timeouts]\nkeep_after = \"0s\"\nstuck = \"1h\"\nfirst_byte = \"10m\"";
    let service = Service::start_with(after_setup("ulimit -n 200", &rig()), config);
    let [worker] = service.worker_pids()[..] else { panic!("one worker") };
    send_signal(service.pid(), Signal::SIGSTOP);
    // More than it was granted to have kept, and fewer than the supervisor has room for.
    let silent: Vec<Wire> = (0..40).map(|_| service.connect()).collect();
    await_asleep(worker);
    send_signal(service.pid(), Signal::SIGCONT);
    assert_eq!(service.call("ping", json!(1))["result"], 1);
    drop(silent);
}

/// It looked every 20 ms whether they could be kept by now.
#[test]
fn a_worker_that_may_keep_no_more_rests_until_it_may() {
    let config = "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"100ms\"\n\
                  [timeouts]\nkeep_after = \"0s\"\nstuck = \"1h\"";
    let service = Service::start_with(after_setup("ulimit -n 200", &rig()), config);
    let kept = Kept { without: open_descriptors(service.pid()), service };
    let service = &kept.service;
    let [worker] = service.worker_pids()[..] else { panic!("one worker") };
    send_signal(service.pid(), Signal::SIGSTOP);
    // More than it was granted, and fewer than it may hold. They say nothing that would have to wait for that.
    let mut silent: Vec<Wire> = (0..40).map(|_| service.connect()).collect();
    for wire in &mut silent {
        assert_eq!(wire.call("ping", json!(1))["result"], 1);
    }
    await_so("it rests", || {
        let before = wakeups(worker);
        assert!(!await_gone(service.pid(), Duration::from_millis(300)));
        wakeups(worker) == before
    });
    send_signal(service.pid(), Signal::SIGCONT);
    kept.await_kept(silent.len());
}

/// Those that were born first were granted all there was, and the last refused every call.
#[test]
fn at_a_low_limit_every_worker_may_have_connections_kept() {
    let config = "processes = 4\nthreads = 2\n[limits]\nmax_connections = 16\nqueue_wait = \"1s\"";
    let service = Service::start_with(after_setup("ulimit -n 300", &rig()), config);
    let mut wires: Vec<Wire> = (0..16).map(|_| service.connect()).collect();
    for wire in &mut wires {
        assert_eq!(wire.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
    }
}

/// The supervisor keeps 100 connections then, of which 75 may be open; it hears of those that ended 20 ms later.
#[test]
fn no_call_runs_whose_connection_the_supervisor_has_no_descriptor_for() {
    let config = "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"60s\"\n[quarantine]\ncrashes = 0\n\
                  [restart]\nmax_restarts = 0\nbackoff = \"1ms\"\nbackoff_max = \"10ms\"\n[timeouts]\nkeep_after = \"1h\"";
    let service = Service::start_with(after_setup("ulimit -n 200", &rig()), config);
    for round in 0..10 {
        for _ in 0..2 {
            let mut visits: Vec<Wire> = (0..70).map(|_| service.connect()).collect();
            for visit in &mut visits {
                visit.request("count", &json!({ "of": "runs", "add": 1 }));
            }
            for visit in &mut visits {
                assert!(visit.receive()["result"].is_u64(), "round {round}");
            }
        }
        let answer = service.call("crash", json!({ "how": "exit", "code": 7 }));
        assert_eq!(code(&answer), -32002, "round {round}: {answer}");
    }
}

/// Its poller was woken for every new connection, took none, told nobody, and was busy with that until the worker was killed.
#[test]
fn a_worker_whose_exit_lasts_leaves_connections_to_others_and_rests() {
    let mut program = rig();
    program.env("RIG_PRELOAD", "hang at exit");
    let service = Service::start_with(program, &format!("processes = 2\n{CONFIG}"));
    let workers = service.worker_pids();
    let mut exits = service.connect();
    exits.request("crash", &json!({ "how": "exit" }));
    service.await_log("the exit hangs");
    assert_rests(&workers, || {
        for _ in 0..20 {
            assert_eq!(service.call("ping", json!(1))["result"], 1);
        }
    });
}
