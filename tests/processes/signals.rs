//! What signals do: to the supervisor, to one worker, to the whole process group.

use std::os::unix::process::CommandExt;
use std::time::Duration;

use crate::support;
use crate::support::proc::{pid_in, timed, worker_pid};
use crate::support::{PATIENCE, Service, await_asleep, await_so, children_named, rig, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Far above what an end takes that waits for nothing, far below `timeouts.drain` as it is by default.
const AT_ONCE: Duration = Duration::from_secs(10);

/// Two workers of one thread each.
const TWO: &str = "processes = 2\nthreads = 1";

fn drains_on(signal: Signal) {
    let mut service = Service::start(TWO);
    let (mut busy, mut idle) = (service.connect_to(0), service.connect_to(1));
    busy.request("sleep", &json!({ "ms": 300 }));
    service.signal(signal);
    assert!(idle.is_closed());
    assert_eq!(busy.receive()["out"], "sleep");
    assert!(busy.is_closed());
    let (ended, took) = timed(|| service.await_end());
    assert_eq!(ended.code(), Some(0));
    assert!(took < AT_ONCE, "it ended {took:?} after the last answer");
    service.whole_log();
    assert_eq!(service.count_since(0, "worker died"), 0);
}

#[test]
fn term_answers_the_running_call_closes_idle_connections_and_ends_at_the_last_answer() {
    drains_on(Signal::SIGTERM);
}

#[test]
fn int_drains_as_term_does() {
    drains_on(Signal::SIGINT);
}

#[test]
fn term_without_any_connection_ends_at_once() {
    let mut service = Service::start(TWO);
    let (code, took) = timed(|| service.stop());
    assert_eq!(code, Some(0));
    assert!(took < AT_ONCE, "{took:?}");
}

#[test]
fn calls_that_were_sent_before_term_are_all_answered() {
    let mut service = Service::start("processes = 1\nthreads = 1");
    let mut wires: Vec<_> = (0..5).map(|_| service.connect()).collect();
    for wire in &mut wires {
        for id in 0..4 {
            wire.send(&json!({ "in": "sleep", "params": { "ms": 5 }, "id": id }).to_string());
        }
    }
    service.signal(Signal::SIGTERM);
    for wire in &mut wires {
        let ids: std::collections::BTreeSet<u64> =
            (0..4).map(|_| wire.receive()["id"].as_u64().expect("an id")).collect();
        assert_eq!(ids.len(), 4);
        assert!(wire.is_closed());
    }
    assert_eq!(service.await_end().code(), Some(0));
}

#[test]
fn a_second_int_ends_at_once() {
    let mut service = Service::start("processes = 1\nthreads = 2");
    let (mut busy, mut idle) = (service.connect(), service.connect());
    idle.call("ping", json!(1));
    busy.request("hang", &json!(null));
    let (code, took) = timed(|| {
        service.signal(Signal::SIGINT);
        assert!(idle.is_closed(), "the first INT drains");
        service.signal(Signal::SIGINT);
        service.await_end().code()
    });
    assert_eq!(code, Some(0));
    assert!(took < AT_ONCE, "{took:?}");
    assert!(busy.is_closed());
}

#[test]
fn a_second_term_changes_nothing() {
    let mut service = Service::start("processes = 1\nthreads = 2");
    let (mut busy, mut idle) = (service.connect(), service.connect());
    idle.call("ping", json!(1));
    busy.request("sleep", &json!({ "ms": 300 }));
    service.signal(Signal::SIGTERM);
    assert!(idle.is_closed());
    service.signal(Signal::SIGTERM);
    assert_eq!(busy.receive()["out"], "sleep");
    assert_eq!(service.await_end().code(), Some(0));
}

#[test]
fn quit_ends_at_once_whatever_runs() {
    let mut service = Service::start(TWO);
    let mut busy = service.connect();
    busy.call("ping", json!(1));
    busy.request("hang", &json!(null));
    let (code, took) = timed(|| {
        service.signal(Signal::SIGQUIT);
        service.await_end().code()
    });
    assert_eq!(code, Some(0));
    assert!(took < AT_ONCE, "{took:?}");
    assert!(busy.is_cut_off());
}

#[test]
fn hup_and_usr2_reload_and_usr1_does_nothing() {
    let mut service = Service::start(TWO);
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        let mark = service.mark();
        service.signal(signal);
        service.await_text(mark, "reloaded");
    }
    let workers = service.workers();
    service.signal(Signal::SIGUSR1);
    service.await_log_where("USR1", |line| line["signal"] == "SIGUSR1");
    assert_eq!(service.call("ping", json!(1))["result"], 1);
    assert_eq!(service.workers(), workers);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn ttin_adds_a_worker_in_the_next_slot() {
    let service = Service::start(TWO);
    let mark = service.mark();
    service.signal(Signal::SIGTTIN);
    let third = service.await_refill(mark, 2);
    assert_eq!(worker_pid(&mut service.connect_to(2)), third);
    assert_eq!(service.workers().len(), 3);
}

#[test]
fn ttou_takes_the_last_slots_worker_away_and_its_connections_stay() {
    let service = Service::start(TWO);
    let mark = service.mark();
    let (mut staying, mut leaving) = (service.connect_to(0), service.connect_to(1));
    leaving.request("sleep", &json!({ "ms": 200 }));
    service.signal(Signal::SIGTTOU);
    assert_eq!(leaving.receive()["out"], "sleep");
    let ended = service.await_text(mark, "worker ended");
    assert_eq!((ended["slot"].as_u64(), ended["cause"].as_str()), (Some(1), Some("exit 0")), "{ended}");
    let stays = service.adopted_workers()[&0];
    assert_eq!([worker_pid(&mut staying), worker_pid(&mut leaving)], [stays; 2]);
    assert_eq!(service.worker_pids(), [stays]);
}

#[test]
fn ttou_never_takes_the_last_worker() {
    let service = Service::start("processes = 1\nthreads = 1");
    let mark = service.mark();
    let mut wire = service.connect();
    service.signal(Signal::SIGTTOU);
    service.await_text(mark, "the last worker stays");
    assert_eq!(worker_pid(&mut wire), service.workers()[&0]);
}

#[test]
fn a_slot_that_was_taken_away_can_be_added_again() {
    let service = Service::start(TWO);
    let first = service.workers()[&1];
    let mark = service.mark();
    service.signal(Signal::SIGTTOU);
    service.await_text(mark, "worker ended");
    service.signal(Signal::SIGTTIN);
    let second = service.await_refill(mark, 1);
    assert_ne!(first, second);
    assert_eq!(worker_pid(&mut service.connect_to(1)), second);
}

#[test]
fn term_to_one_worker_has_it_replaced_and_its_connections_stay() {
    let service =
        Service::start("processes = 2\nthreads = 2\n[restart]\nmax_restarts = 1\nbackoff = \"30s\"");
    for _ in 0..3 {
        let workers = service.workers();
        let mut busy = service.connect();
        let leaver = worker_pid(&mut busy);
        let slot = workers.iter().find(|(_, pid)| **pid == leaver).map(|(slot, _)| *slot).expect("a slot");
        let mark = service.mark();
        busy.request("sleep", &json!({ "ms": 100 }));
        send_signal(leaver, Signal::SIGTERM);
        assert_eq!(busy.receive()["out"], "sleep");
        let next = service.await_refill(mark, slot);
        assert_ne!(next, leaver);
        service.await_text(mark, "worker ended");
        assert_ne!(worker_pid(&mut busy), leaver);
        assert_eq!(service.workers()[&(1 - slot)], workers[&(1 - slot)]);
    }
    assert_eq!(service.count_since(0, "worker died"), 0);
    assert_eq!(service.count_since(0, "boot failure"), 0);
}

#[test]
fn term_to_a_worker_that_has_not_answered_a_call_is_no_boot_failure() {
    let service =
        Service::start("processes = 1\nthreads = 1\n[restart]\nmax_restarts = 1\nbackoff = \"30s\"");
    for _ in 0..4 {
        let mark = service.mark();
        send_signal(service.workers()[&0], Signal::SIGTERM);
        service.await_refill(mark, 0);
    }
    assert_eq!(service.count_since(0, "boot failure"), 0);
}

#[test]
fn signals_of_a_terminal_to_the_whole_group_reach_the_supervisor_alone() {
    let mut program = rig();
    program.process_group(0);
    let mut service = Service::start_with(program, TWO);
    let (workers, template) = (service.workers(), service.template());
    let mut wire = service.connect_to(0);
    let mark = service.mark();
    service.signal_group(Signal::SIGUSR1);
    service.await_since(mark, "the signal", |line| line["signal"] == "SIGUSR1");
    assert_eq!(worker_pid(&mut wire), workers[&0]);
    assert_eq!(worker_pid(&mut service.connect_to(1)), workers[&1]);
    assert_eq!(children_named(service.pid(), "tine-template"), [template]);
    for signal in [Signal::SIGHUP, Signal::SIGUSR2] {
        let mark = service.mark();
        service.signal_group(signal);
        service.await_text(mark, "reloaded");
    }
    let mut wire = service.connect_to(0);
    wire.request("sleep", &json!({ "ms": 200 }));
    service.signal_group(Signal::SIGINT);
    assert_eq!(wire.receive()["out"], "sleep");
    assert_eq!(service.await_end().code(), Some(0));
    service.whole_log();
    assert_eq!(service.count_since(0, "died"), 0, "{}", service.log_so_far());
}

#[test]
fn term_to_the_whole_group_drains_as_term_to_the_supervisor_does() {
    let mut program = rig();
    program.process_group(0);
    let mut service = Service::start_with(program, TWO);
    let (mut busy, mut idle) = (service.connect_to(0), service.connect_to(1));
    busy.request("sleep", &json!({ "ms": 200 }));
    service.signal_group(Signal::SIGTERM);
    assert!(idle.is_closed());
    assert_eq!(busy.receive()["out"], "sleep");
    assert_eq!(service.await_end().code(), Some(0));
    service.whole_log();
    assert_eq!(service.count_since(0, "worker died"), 0, "{}", service.log_so_far());
}

#[test]
fn a_call_that_outlives_drain_is_killed_and_told() {
    let mut service = Service::start("processes = 2\nthreads = 1\n[timeouts]\ndrain = \"200ms\"");
    let mut busy = service.connect();
    let worker = worker_pid(&mut busy);
    busy.request("hang", &json!(null));
    let (code, took) = timed(|| service.stop());
    assert_eq!(code, Some(0));
    assert!(took >= Duration::from_millis(200) && took < AT_ONCE, "{took:?}");
    let answer = busy.receive();
    assert_eq!(answer["result"]["code"], -32002, "{answer}");
    assert_eq!(answer["result"]["data"], json!({ "method": "hang", "cause": "drained" }));
    assert!(busy.is_closed());
    let log = service.whole_log();
    let with = |text: &str| -> Value {
        let found = log.iter().find(|line| line["message"].as_str().is_some_and(|told| told.contains(text)));
        found.unwrap_or_else(|| panic!("nothing of {text:?} in {log:?}")).clone()
    };
    with("not everything had ended within timeouts.drain (200ms); what is left is killed");
    let ended = with("worker ended with calls running");
    assert_eq!((pid_in(&ended), ended["cause"].as_str()), (worker, Some("SIGKILL")), "{ended}");
    assert!(ended["running"].as_str().is_some_and(|running| running.starts_with("hang for ")), "{ended}");
}

#[test]
fn a_stop_hook_that_outlives_drain_is_killed_too() {
    let mut program = rig();
    program.env("RIG_WORKER_STOP", "hang");
    let mut service =
        Service::start_with(program, "processes = 1\nthreads = 1\n[timeouts]\ndrain = \"200ms\"");
    assert_eq!(service.stop(), Some(0));
    service.whole_log();
    assert_eq!(service.count_since(0, "RIG_WORKER_STOP hangs"), 1);
}

#[test]
fn a_worker_taken_away_ends_when_drain_is_up_and_its_connections_stay() {
    let service = Service::start("processes = 2\nthreads = 1\n[timeouts]\ndrain = \"200ms\"");
    let mark = service.mark();
    let mut busy = service.connect_to(1);
    busy.request("hang", &json!(null));
    // Before it runs it would go elsewhere.
    await_asleep(service.workers()[&1]);
    service.signal(Signal::SIGTTOU);
    let ended = service.await_text(mark, "worker ended with calls running");
    assert_eq!((ended["slot"].as_u64(), ended["cause"].as_str()), (Some(1), Some("exit 0")), "{ended}");
    let answer = busy.receive();
    assert_eq!(answer["result"]["data"], json!({ "method": "hang", "cause": "drained" }), "{answer}");
    assert_eq!(busy.call("ping", json!(2))["result"], 2);
    assert_eq!(service.call("ping", json!(1))["result"], 1);
}

#[test]
fn accepting_goes_on_during_pre_stop_and_int_cuts_it_short() {
    // Longer than the test may take: only INT can end it.
    let mut service =
        Service::start(&format!("{TWO}\n[timeouts]\npre_stop = \"{}s\"", PATIENCE.as_secs() * 10));
    service.signal(Signal::SIGTERM);
    service.await_log("stopping; accepting goes on for timeouts.pre_stop");
    assert_eq!(service.call("ping", json!(1))["result"], 1);
    service.signal(Signal::SIGINT);
    assert_eq!(service.await_end().code(), Some(0));
}

#[test]
fn draining_begins_when_pre_stop_is_over() {
    let mut service = Service::start(&format!("{TWO}\n[timeouts]\npre_stop = \"200ms\""));
    let mut idle = service.connect();
    idle.call("ping", json!(1));
    let (code, took) = timed(|| service.stop());
    assert_eq!(code, Some(0));
    assert!(took >= Duration::from_millis(200) && took < AT_ONCE, "{took:?}");
    assert!(idle.is_closed());
}

#[test]
fn what_a_clients_kernel_held_back_until_the_answer_is_answered_too() {
    let mut service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    // Nagle's algorithm: small writes wait in the client's kernel until what was sent before is acknowledged, which a
    // connection that goes to and fro does with the answer, or late.
    wire.stream.set_nodelay(false).expect("the option exists");
    assert_eq!(wire.call("echo", json!("to and fro"))["result"], "to and fro");
    wire.request("sleep", &json!({ "ms": 100 }));
    for n in 0..40 {
        wire.request("echo", &json!(n));
    }
    service.signal(Signal::SIGTERM);
    assert_eq!(wire.receive()["out"], "sleep");
    for n in 0..40 {
        assert_eq!(wire.receive()["result"], n);
    }
    assert!(wire.is_closed());
    assert_eq!(service.await_end().code(), Some(0));
}

/// A load balancer that asks `/readyz` is to stop sending before connections are refused.
#[test]
fn with_pre_stop_readiness_is_red_while_calls_are_still_taken() {
    let mut service =
        Service::start("processes = 2\nthreads = 1\n[timeouts]\npre_stop = \"1h\"\nkeep_after = \"1h\"");
    let ready = |service: &Service| {
        let mut wire = service.connect();
        wire.send_bytes(b"GET /readyz HTTP/1.0\r\n\r\n");
        let mut answer = String::new();
        std::io::Read::read_to_string(&mut wire.stream, &mut answer).expect("an answer and a close");
        answer.starts_with("HTTP/1.1 200 ")
    };
    assert!(ready(&service));
    let mut old = service.connect();
    let mark = service.mark();
    service.signal(Signal::SIGTERM);
    service.await_text(mark, "accepting goes on for timeouts.pre_stop");
    // Each worker is told by a message of its own.
    await_so("each worker is red", || !ready(&service));
    assert_eq!(old.call("ping", json!(1))["result"], 1);
    assert_eq!(service.connect().call("ping", json!(2))["result"], 2);
    service.signal(Signal::SIGQUIT);
    assert_eq!(service.await_end().code(), Some(0));
}

/// A goodbye before the last answer would have the client throw away those that follow.
#[test]
fn at_drain_pipelined_http_requests_are_all_answered_and_the_last_answer_says_goodbye() {
    let mut service = Service::start("processes = 1\nthreads = 1");
    let mut wire = service.connect();
    let request = |path: &str, body: &str| {
        format!("POST /{path} HTTP/1.1\r\nHost: tine\r\nContent-Length: {}\r\n\r\n{body}", body.len())
    };
    let (slow, quick) = (request("sleep", r#"{"ms":300}"#), request("ping", "7"));
    wire.send_bytes(format!("{quick}{slow}{slow}{quick}").as_bytes());
    let mut answers = vec![0; 1];
    std::io::Read::read_exact(&mut wire.stream, &mut answers).expect("the first one begins");
    service.signal(Signal::SIGTERM);
    std::io::Read::read_to_end(&mut wire.stream, &mut answers).expect("answers and a close");
    let answers = String::from_utf8(answers).expect("text");
    assert_eq!(answers.matches("HTTP/1.1 200 OK\r\n").count(), 4, "{answers}");
    let goodbye = answers.find("Connection: close").expect("a goodbye");
    assert!(answers[goodbye..].find("HTTP/1.1").is_none(), "{answers}");
    assert_eq!(service.await_end().code(), Some(0));
}

/// The kernel signals the whole group of a background job that writes to its terminal (`stty tostop`), and it was taken for an
/// order: each line of the log took a worker away, while the one that wrote it tried for ever.
#[test]
fn what_a_terminal_says_of_a_background_job_is_no_order() {
    let folder = support::Folder::new();
    let config = folder.path().join("config.toml");
    let log = "[log]\nlevel = \"debug\"\nformat = \"json\"\n";
    std::fs::write(&config, format!("listen = [\"127.0.0.1:0\"]\n{TWO}\n{log}")).expect("config");
    let job = format!("{} serve --config {}", rig().get_program().display(), config.display());
    let shell = format!("set -m; stty tostop; {job} & wait");
    // It has its standard input for a terminal's, and ends with it.
    let mut terminal = std::process::Command::new("script");
    terminal.args(["-qfc", &format!("sh -c '{shell}'"), "/dev/null"]);
    let mut terminal = terminal
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("script(1) runs");
    let input = terminal.stdin.take();
    let lines = std::io::BufReader::new(terminal.stdout.take().expect("a pipe"));
    let mut lines = std::io::BufRead::lines(lines).map_while(Result::ok);
    let mut seen = Vec::new();
    let mut await_message = |text: &str| -> Value {
        for line in lines.by_ref() {
            let line: Value =
                serde_json::from_str(line.trim()).unwrap_or_else(|_| json!({ "message": line }));
            seen.push(line.clone());
            if line["message"].as_str().is_some_and(|message| message.contains(text)) {
                return line;
            }
        }
        panic!("no line with {text}; seen: {seen:?}");
    };
    let listening = await_message("listening");
    let pid = pid_in(&listening);
    await_message("worker ready");
    await_message("worker ready");
    let address = listening["listen"].as_str().expect("an address").parse().expect("TCP");
    for _ in 0..3 {
        let answer = support::Wire::connect(address).call("panic", json!({ "message": "a line" }));
        assert_eq!(support::code(&answer), -32603);
        await_message("a line");
    }
    send_signal(pid, Signal::SIGTTIN);
    await_message("one worker more: 3");
    send_signal(pid, Signal::SIGTERM);
    assert_eq!(await_message("signal")["signal"], "SIGTERM");
    drop(input);
    terminal.wait().expect("it ends with the job");
    let is_order = |line: &&Value| line["message"].as_str().is_some_and(|text| text.contains("fewer"));
    assert_eq!(seen.iter().filter(is_order).count(), 0, "{seen:?}");
}
