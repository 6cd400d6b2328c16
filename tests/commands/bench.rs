//! `tine bench` as a user types it: what it counts, what it prints, how it exits.
//!
//! Figures are checked for what must hold on any machine: that they add up, and that what was made to happen is seen.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::thread;

use crate::support;
use crate::support::proc::after_setup;
use crate::support::programs::{Ran, run, unwrapped};
use crate::support::{Folder, Service, framed, send_signal, tine};
use nix::sys::signal::Signal;
use serde_json::Value;

/// Long enough for many calls of a quick method.
const QUICK: [&str; 4] = ["--duration", "150ms", "--warm-up", "0s"];

fn bench(to: &str, arguments: &[&str]) -> Command {
    let mut bench = tine();
    bench.args(["bench", "--to", to]).args(arguments);
    bench
}

/// Runs it and reads its JSON, which must be all that it prints.
fn figures(to: &str, arguments: &[&str], code: i32) -> Value {
    figures_of(bench(to, &QUICK).args(arguments), code)
}

fn figures_of(bench: &mut Command, code: i32) -> Value {
    let ran = run(bench.arg("--json"), "");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(code), ""), "{bench:?}: {ran:?}");
    parsed(&ran.stdout)
}

fn parsed(stdout: &str) -> Value {
    assert_eq!(stdout.lines().count(), 1, "{stdout}");
    serde_json::from_str(stdout).expect("JSON")
}

fn count(figures: &Value, name: &str) -> u64 {
    figures[name].as_u64().unwrap_or_else(|| panic!("no count {name} in {figures}"))
}

fn number(figures: &Value, name: &str) -> f64 {
    figures[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {figures}"))
}

fn service() -> Service {
    Service::start("processes = 1\nthreads = 2")
}

#[test]
fn a_closed_loop_counts_every_call_and_the_figures_add_up() {
    let service = service();
    let arguments = ["--connections", "5", "--duration", "150ms", "--warm-up", "20ms"];
    let figures = figures_of(&mut bench(service.address(), &arguments), 0);
    for name in ["errors", "wrong", "unanswered", "closed"] {
        assert_eq!(count(&figures, name), 0, "{figures}");
    }
    let calls = count(&figures, "calls");
    assert!(calls > 5, "{figures}");
    let seconds = number(&figures, "measured_s");
    assert!((seconds - 0.15).abs() < 1e-9, "{figures}");
    // At either end of the measured time, each connection has one call that is half in it.
    let arrived = number(&figures, "calls_per_second") * seconds;
    assert!((arrived - f64::from(u32::try_from(calls).expect("few"))).abs() <= 5.5, "{figures}");
    let latency = &figures["latency_ns"];
    let ladder =
        ["min", "p50", "p75", "p90", "p99", "p99.9", "p99.99", "max"].map(|name| count(latency, name));
    assert!(ladder.is_sorted() && ladder[0] > 0, "{latency}");
    let mean = count(latency, "mean");
    assert!(ladder[0] <= mean && mean <= ladder[7], "{latency}");
    assert!(number(&figures, "load_cpu_share") > 0.0, "{figures}");
    assert_eq!(figures["interrupted"], false);
    for name in ["rate", "server_cpu_s", "server_cpu_us_per_call", "first_error", "first_wrong"] {
        assert_eq!(figures[name], Value::Null, "{name}");
    }
}

#[test]
fn a_pipeline_is_answered_whole() {
    let service = service();
    let params = r#"{"a": [1.50, "\u0041"]}"#;
    let arguments = ["--connections", "2", "--pipeline", "16", "--method", "echo", "--params", params];
    let figures = figures(service.address(), &arguments, 0);
    assert!(count(&figures, "calls") > 32, "{figures}");
    assert_eq!((count(&figures, "pipeline"), count(&figures, "connections")), (16, 2));
}

#[test]
fn a_method_with_results_that_differ_is_measured_too() {
    let service = service();
    let figures = figures(service.address(), &["--connections", "2", "--method", "rand"], 0);
    assert!(count(&figures, "calls") > 0, "{figures}");
}

#[test]
fn the_page_has_every_figure_and_a_picture() {
    let service = service();
    let ran = run(&mut bench(service.address(), &QUICK), "");
    // No terminal, so no progress bar.
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    for row in [
        "calls/s",
        "calls ",
        "errors",
        "wrong",
        "unanswered",
        "closed",
        "50 %",
        "75 %",
        "90 %",
        "99 %",
        "99.9 %",
        "99.99 %",
        "max",
    ] {
        assert!(ran.stdout.lines().any(|line| line.trim().starts_with(row)), "{row}:\n{}", ran.stdout);
    }
    assert!(ran.stdout.contains('█'), "{}", ran.stdout);
    assert!(ran.stdout.contains("64 connections"), "{}", ran.stdout);
}

#[test]
fn an_open_loop_beyond_what_the_server_can_do_shows_the_wait() {
    let service = service();
    // Two threads that sleep 10 ms answer 200 calls a second; 400 are due.
    let arguments =
        ["--method", "sleep", "--params", r#"{"ms":10}"#, "--connections", "4", "--duration", "200ms"];
    let open =
        run(bench(service.address(), &arguments).args(["--warm-up", "0s", "--rate", "400", "--json"]), "");
    let open = parsed(&open.stdout);
    let ended: u64 = ["calls", "errors", "wrong", "unanswered"].iter().map(|name| count(&open, name)).sum();
    assert_eq!(ended, 80, "each call that was due in 200 ms is accounted for: {open}");
    // A call that started when it was sent would have waited for one other, 20 ms; the last one that was due has half
    // of all the others before it.
    assert!(count(&open["latency_ns"], "p99") > 100_000_000, "{open}");
    assert!(number(&open, "calls_per_second") < 300.0, "{open}");
}

#[test]
fn an_open_loop_keeps_to_its_rate() {
    let service = service();
    let figures = figures(service.address(), &["--rate", "2000", "--connections", "4"], 0);
    assert_eq!(count(&figures, "calls"), 300, "{figures}");
    assert_eq!(figures["rate"], 2000.0);
}

#[test]
fn error_answers_are_counted_apart_and_the_first_is_shown() {
    let service = service();
    for (method, params, words) in
        [("nosuch", "1", "-32601"), ("fail", r#"{"code":17,"message":"no pens"}"#, "no pens")]
    {
        let arguments = ["--method", method, "--params", params, "--connections", "2"];
        let figures = figures(service.address(), &arguments, 1);
        assert!(count(&figures, "errors") > 2, "{figures}");
        for name in ["calls", "wrong", "unanswered", "closed"] {
            assert_eq!(count(&figures, name), 0, "{figures}");
        }
        assert_eq!(figures["latency_ns"], Value::Null);
        assert!(figures["first_error"].as_str().is_some_and(|first| first.contains(words)), "{figures}");
    }
    let ran = run(bench(service.address(), &QUICK).args(["--method", "nosuch"]), "");
    assert_eq!(ran.code, Some(1));
    assert!(ran.stdout.contains("first error: ") && ran.stdout.contains("-32601"), "{}", ran.stdout);
}

#[test]
fn a_worker_that_dies_answers_its_call_with_an_error_and_its_connection_stays() {
    let service = service();
    let arguments = ["--method", "crash", "--params", r#"{"how":"exit"}"#, "--connections", "1"];
    let figures = figures(service.address(), &arguments, 1);
    assert!(count(&figures, "errors") >= 1, "{figures}");
    assert!(figures["first_error"].as_str().is_some_and(|first| first.contains("-32002")), "{figures}");
    for name in ["calls", "wrong", "unanswered", "closed"] {
        assert_eq!(count(&figures, name), 0, "{figures}");
    }
    service.await_log("worker died");
}

#[test]
fn connections_that_are_closed_are_made_again() {
    let (to, called) = serve(|listener, called| {
        for _ in 0..3 {
            let mut caller = accept(listener);
            answer(&mut caller, r#"{"out":"pong","result":null}"#);
            read_call(&mut caller);
        }
        let mut last = accept(listener);
        read_call(&mut last);
        called.send(()).expect("the test waits");
        // Keeps the connection until the other side leaves.
        let _ = last.read(&mut [0; 1]);
    });
    let arguments = ["--duration", "1h", "--warm-up", "0s", "--connections", "1", "--json"];
    let child = Bench::start(&mut bench(&to, &arguments));
    called.recv_timeout(support::PATIENCE).expect("a fourth connection");
    let ran = child.interrupt();
    // As after every Ctrl-C.
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let figures = parsed(&ran.stdout);
    assert_eq!((count(&figures, "calls"), count(&figures, "closed")), (3, 3), "{figures}");
    assert_eq!((count(&figures, "unanswered"), count(&figures, "wrong")), (3, 0), "{figures}");
}

#[test]
fn a_server_that_is_gone_in_the_middle_is_told_by_the_count() {
    let (to, _) = serve(|listener, _| {
        let mut callers: Vec<TcpStream> = (0..3).map(|_| accept(listener)).collect();
        for _ in 0..10 {
            for caller in &mut callers {
                answer(caller, r#"{"out":"pong","result":null}"#);
            }
        }
        callers.iter_mut().for_each(read_call);
    });
    let arguments = ["--connections", "3", "--duration", "500ms", "--warm-up", "0s"];
    let figures = figures_of(&mut bench(&to, &arguments), 1);
    assert_eq!((count(&figures, "calls"), count(&figures, "closed")), (30, 3), "{figures}");
    assert_eq!(count(&figures, "unanswered"), 3, "{figures}");
}

#[test]
fn answers_that_are_wrong_are_told() {
    for (first, later, words) in [
        ("HTTP/1.1 400 Bad Request", None, "expected a length"),
        (r#"{"out":"pong","result":1}"#, None, "expected the result null"),
        (
            r#"{"out":"pong","result":null}"#,
            Some(r#"{"out":"pong","result":[]}"#),
            "expected the result null",
        ),
        (r#"{"out":"ping","result":null}"#, None, "expected an answer of \"pong\""),
        ("{}", None, "missing field `out`"),
    ] {
        let (to, _) = serve(move |listener, _| {
            let mut caller = accept(listener);
            if first.starts_with("HTTP") {
                read_call(&mut caller);
                caller.write_all(first.as_bytes()).expect("a caller that reads");
            } else {
                answer(&mut caller, first);
            }
            if let Some(later) = later {
                answer(&mut caller, later);
            }
            // It hangs up on us, and comes back until it is over.
            while let Ok((mut caller, _)) = listener.accept() {
                let _ = caller.read(&mut [0; 64]);
                let _ = caller.write_all(b"nonsense");
            }
        });
        let figures = figures(&to, &["--connections", "1"], 1);
        assert!(count(&figures, "wrong") >= 1, "{figures}");
        assert_eq!(count(&figures, "calls"), u64::from(later.is_some()), "{figures}");
        assert!(figures["first_wrong"].as_str().is_some_and(|first| first.contains(words)), "{figures}");
    }
}

#[test]
fn ctrl_c_prints_what_there_is_and_exits_0() {
    for json in [true, false] {
        let (to, called) = serve(|listener, called| {
            let mut caller = accept(listener);
            for _ in 0..20 {
                answer(&mut caller, r#"{"out":"pong","result":null}"#);
            }
            read_call(&mut caller);
            called.send(()).expect("the test waits");
            // Keeps the connection until the other side leaves.
            let _ = caller.read(&mut [0; 1]);
        });
        let arguments = ["--duration", "1h", "--warm-up", "0s", "--connections", "1"];
        let mut command = bench(&to, &arguments);
        if json {
            command.arg("--json");
        }
        let child = Bench::start(&mut command);
        called.recv_timeout(support::PATIENCE).expect("twenty-one calls");
        let ran = child.interrupt();
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
        if json {
            let figures = parsed(&ran.stdout);
            assert_eq!((count(&figures, "calls"), count(&figures, "unanswered")), (20, 0), "{figures}");
            assert_eq!(figures["interrupted"], true);
        } else {
            assert!(ran.stdout.contains("until Ctrl-C"), "{}", ran.stdout);
        }
    }
}

#[test]
fn with_a_pid_the_servers_cpu_time_is_told() {
    let service = service();
    let supervisor = service.pid().to_string();
    let arguments = ["--method", "spin", "--params", r#"{"us":1000}"#, "--connections", "2", "--pid"];
    let figures = figures(service.address(), &[&arguments[..], &[&supervisor]].concat(), 0);
    // The kernel tells CPU time in steps of 10 ms, for each process.
    let per_call = number(&figures, "server_cpu_us_per_call");
    assert!((500.0..10_000.0).contains(&per_call), "{figures}");
    assert!(number(&figures, "server_cpu_s") > 0.0, "{figures}");

    let worker = service.worker_pids()[0].to_string();
    let ran = run(bench(service.address(), &QUICK).args(["--pid", &worker]), "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.contains("server CPU: "), "{}", ran.stdout);
}

#[test]
fn a_socket_file_is_measured_as_well() {
    let folder = Folder::new();
    let to = format!("unix:{}", folder.path().join("tine.sock").display());
    let _service = Service::start(&format!("processes = 1\nthreads = 1\nlisten = [\"{to}\"]"));
    let figures = figures(&to, &["--connections", "3", "--pipeline", "2"], 0);
    assert!(count(&figures, "calls") > 6, "{figures}");
}

#[test]
fn without_a_server_it_exits_3_and_names_the_address() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let refused = listener.local_addr().expect("bound").to_string();
    drop(listener);
    let folder = Folder::new();
    let nobody = format!("unix:{}", folder.path().join("nobody.sock").display());
    for to in [refused, nobody] {
        let ran = run(&mut bench(&to, &QUICK), "");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{ran:?}");
        assert!(ran.stderr.starts_with("error: no server") && ran.stderr.contains(&to), "{ran:?}");
    }
}

#[test]
fn what_can_not_be_exits_2_and_says_why() {
    for (arguments, words) in [
        (&["--connections", "0"][..], "--connections: expected at least 1, found 0"),
        (&["--pipeline", "0"], "--pipeline: expected at least 1"),
        (&["--rate", "0"], "--rate: expected more than 0"),
        (&["--rate", "-5"], "found -5"),
        (&["--rate", "NaN"], "found NaN"),
        (&["--rate", "1e12"], "found 1000000000000"),
        (&["--duration", "0s"], "measuring needs some time"),
        (&["--duration", "10"], "write a number with its unit"),
        (&["--params", "{ms: 5}"], "--params is not JSON"),
        (&["--to", "8080"], "--to: expected HOST:PORT"),
        (&["--pid", "4294967295"], "--pid: expected a process"),
    ] {
        let ran = run(tine().arg("bench").args(arguments), "");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ran:?}");
        assert!(unwrapped(&ran.stderr).contains(words), "{arguments:?}: {ran:?}");
    }
}

#[test]
fn more_connections_than_descriptors_are_refused_and_a_low_soft_limit_is_raised() {
    let service = service();
    let ran = run(&mut after_setup("ulimit -n 64", &bench(service.address(), &["--connections", "64"])), "");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    assert!(
        ran.stderr.contains("--connections: 64 connections") && unwrapped(&ran.stderr).contains("64 open"),
        "{ran:?}"
    );

    let command = after_setup("ulimit -Sn 64", &bench(service.address(), &QUICK));
    let ran = run(&mut { command }, "");
    assert_eq!(ran.code, Some(0), "{ran:?}");
}

#[test]
fn the_help_tells_every_option_and_figure() {
    let ran = run(tine().args(["bench", "--help"]), "");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    for words in [
        "--to",
        "--connections",
        "--pipeline",
        "--rate",
        "--duration",
        "--warm-up",
        "--method",
        "--params",
        "--pid",
        "--json",
        "Exit codes:",
    ] {
        assert!(ran.stdout.contains(words), "{words}:\n{}", ran.stdout);
    }
    let service = service();
    let figures = figures(service.address(), &[], 0);
    for name in figures.as_object().expect("an object").keys() {
        assert!(ran.stdout.contains(name.as_str()), "{name} is not told:\n{}", ran.stdout);
    }
}

/// A server of the test's own, on its own thread, and what it tells while it serves.
fn serve(
    body: impl FnOnce(&TcpListener, &std::sync::mpsc::Sender<()>) + Send + 'static,
) -> (String, Receiver<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let to = listener.local_addr().expect("bound").to_string();
    let (sender, receiver) = channel();
    thread::spawn(move || body(&listener, &sender));
    (to, receiver)
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().expect("a caller").0
}

fn read_call(caller: &mut TcpStream) {
    let mut head = [0; 4];
    caller.read_exact(&mut head).expect("a length");
    caller.read_exact(&mut vec![0; u32::from_le_bytes(head) as usize]).expect("as many bytes");
}

/// Reads one call and answers it with `body`.
fn answer(caller: &mut TcpStream, body: &str) {
    read_call(caller);
    caller.write_all(&framed(body)).expect("a caller that reads");
}

/// A bench that runs until it is interrupted.
struct Bench(Child);

impl Bench {
    fn start(command: &mut Command) -> Self {
        let command = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.spawn().expect("the program starts"))
    }

    fn interrupt(mut self) -> Ran {
        send_signal(i32::try_from(self.0.id()).expect("a pid fits"), Signal::SIGINT);
        let ended = support::await_child(&mut self.0).expect("it ends");
        let mut ran = Ran { code: ended.code(), stdout: String::new(), stderr: String::new() };
        self.0.stdout.take().expect("a pipe").read_to_string(&mut ran.stdout).expect("UTF-8");
        self.0.stderr.take().expect("a pipe").read_to_string(&mut ran.stderr).expect("UTF-8");
        ran
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
