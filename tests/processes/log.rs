//! The log costs nobody anything: a standard error that nobody reads, and what its lines look like.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, ErrorKind, PipeWriter, Read, Write, pipe};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};

use crate::support::proc::{is_a_duration, worker_pid};
use crate::support::{Folder, PATIENCE, Wire, await_child, code, rig, send_signal};
use nix::libc::O_NONBLOCK;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// A service whose standard error is a pipe that is read only when the test does.
struct Piped {
    child: Child,
    stderr: BufReader<Patient>,
    /// The test's own way into the pipe.
    writer: Option<PipeWriter>,
    address: String,
    _folder: Folder,
}

impl Piped {
    /// Reads until the one worker is ready.
    fn start(program: Command, log: &str) -> Self {
        let (reader, writer) = pipe().expect("a pipe");
        let service = writer.try_clone().expect("a descriptor");
        let mut piped = Self::start_with(program, log, reader, service);
        piped.writer = Some(writer);
        piped
    }

    fn start_with(
        mut program: Command,
        log: &str,
        reader: impl Into<OwnedFd>,
        stderr: impl Into<Stdio>,
    ) -> Self {
        let folder = Folder::new();
        let config = format!("listen = [\"127.0.0.1:0\"]\nprocesses = 1\nthreads = 1\n[log]\n{log}\n");
        std::fs::write(folder.path().join("config.toml"), config).expect("config");
        let child = program
            .arg("serve")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr)
            .spawn()
            .expect("the program starts");
        let stderr = BufReader::new(Patient(File::from(reader.into())));
        let mut piped = Self { child, stderr, writer: None, address: String::new(), _folder: folder };
        let listening = piped.read_until("listening");
        piped.address =
            listening.split('"').find(|part| part.starts_with("127.0.0.1:")).expect("an address").into();
        piped.read_until("worker ready");
        piped
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    fn connect(&self) -> Wire {
        Wire::connect(self.address.parse().expect("an address"))
    }

    fn read_until(&mut self, text: &str) -> String {
        let mut line = String::new();
        while !line.contains(text) {
            line.clear();
            let count = self.stderr.read_line(&mut line).expect("a line");
            assert!(count > 0, "the log ended without {text:?}");
        }
        line
    }

    /// Fills the pipe to the last byte.
    fn fill(&mut self) {
        // A description of its own: the service must not find its standard error made non-blocking.
        let path = format!("/proc/self/fd/{}", self.writer.as_ref().expect("not closed").as_raw_fd());
        let mut own: File =
            OpenOptions::new().write(true).custom_flags(O_NONBLOCK).open(path).expect("the pipe opens again");
        for filler in [&[b'.'; 4096][..], b"."] {
            loop {
                match own.write(filler) {
                    Ok(_) => {}
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error}"),
                }
            }
        }
    }

    /// Makes room for a few lines.
    fn make_room(&mut self) {
        let filled = self.stderr.fill_buf().expect("the filler").len();
        self.stderr.consume(filled);
    }

    fn stop(&mut self) -> Option<i32> {
        send_signal(self.pid(), Signal::SIGTERM);
        await_child(&mut self.child).and_then(|ended| ended.code())
    }
}

impl Drop for Piped {
    fn drop(&mut self) {
        // Workers end with their supervisor.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Reads from a pipe or socket, and fails where nothing comes.
struct Patient(File);

impl Read for Patient {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let mut wanted = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        let timeout = PollTimeout::try_from(PATIENCE).expect("a short time");
        let ready = poll(&mut wanted, timeout)?;
        assert!(ready > 0, "nothing more comes");
        self.0.read(buffer)
    }
}

const JSON: &str = "level = \"debug\"\nformat = \"json\"";

/// Kills the worker by a call; the pid of the next one, which goes on with the connection.
fn crash_and_find_the_next(service: &Piped) -> i32 {
    let mut wire = service.connect();
    let before = worker_pid(&mut wire);
    assert_eq!(code(&wire.call("crash", json!({ "how": "segv" }))), -32002);
    let next = worker_pid(&mut wire);
    assert_ne!(next, before);
    next
}

#[test]
fn a_full_stderr_that_nobody_reads_delays_no_call_no_restart_and_no_stop() {
    let mut service = Piped::start(rig(), JSON);
    service.fill();
    let mut wire = service.connect();
    for number in 0..100 {
        assert_eq!(code(&wire.call("panic", json!({ "message": "for a log that is full" }))), -32603);
        assert_eq!(wire.call("ping", json!(number))["result"], number);
    }
    // As often as a method may, before it is in quarantine.
    for _ in 0..3 {
        crash_and_find_the_next(&service);
    }
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn when_stderr_is_read_again_it_says_how_many_lines_were_dropped() {
    // A panic takes long on a busy machine, and a poller that is relieved meanwhile says so at `debug`.
    let mut service = Piped::start(rig(), "level = \"info\"\nformat = \"json\"");
    let mut wire = service.connect();
    service.fill();
    for _ in 0..7 {
        wire.call("panic", json!({ "message": "dropped" }));
    }
    service.make_room();
    wire.call("panic", json!({ "message": "written" }));
    let told = service.read_until("log lines were dropped");
    let told = told.trim_start_matches('.');
    assert!(told.contains("7 log lines were dropped"), "{told}");
    let line: Value = serde_json::from_str(told).expect("a line of a JSON log is JSON");
    assert_eq!(line["level"], "WARN", "{told}");
    service.read_until("a handler panicked: written");
}

#[test]
fn the_supervisor_tells_what_it_dropped_too() {
    let mut service = Piped::start(rig(), "level = \"info\"\nformat = \"text\"");
    service.fill();
    crash_and_find_the_next(&service);
    crash_and_find_the_next(&service);
    service.make_room();
    send_signal(service.pid(), Signal::SIGHUP);
    // Three lines for each crash (the death, where its connection goes, and the next worker), of which the last may still have
    // been to come when there was room.
    let told = service.read_until("log lines were dropped");
    let counts = ["5", "6"].map(|count| format!("WARN {count} log lines were dropped"));
    assert!(counts.iter().any(|count| told.contains(count)), "{told}");
    service.read_until("SIGHUP");
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_stderr_that_is_a_socket_nobody_reads_delays_nothing_either() {
    let (unread, stderr) = UnixStream::pair().expect("a socket pair");
    let mut service = Piped::start_with(rig(), JSON, unread, OwnedFd::from(stderr));
    let mut wire = service.connect();
    let long = "x".repeat(4_000);
    for number in 0..400 {
        assert_eq!(code(&wire.call("panic", json!({ "message": long }))), -32603);
        assert_eq!(wire.call("ping", json!(number))["result"], number);
    }
    crash_and_find_the_next(&service);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_stderr_whose_reader_is_gone_changes_nothing() {
    let mut service = Piped::start(rig(), JSON);
    let (elsewhere, _) = pipe().expect("a pipe");
    service.stderr = BufReader::new(Patient(File::from(OwnedFd::from(elsewhere))));
    service.writer = None;
    crash_and_find_the_next(&service);
    let mut wire = service.connect();
    assert_eq!(code(&wire.call("panic", json!({ "message": "for nobody" }))), -32603);
    assert_eq!(wire.call("ping", json!(1))["result"], 1);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_text_log_is_for_people_and_has_no_escape_codes_where_no_terminal_is() {
    let mut service = Piped::start(rig(), "level = \"info\"\nformat = \"text\"");
    let mut wire = service.connect();
    let pid = worker_pid(&mut wire);
    wire.request("crash", &json!({ "how": "exit", "code": 3 }));
    let died = service.read_until("worker died");
    assert!(!died.contains('\u{1b}'), "{died:?}");
    for part in [
        "ERROR",
        "slot=0",
        &format!("pid={pid}"),
        "cause=\"exit 3\"",
        "running=\"crash for ",
        "(no id, 127.0.0.1:",
    ] {
        assert!(died.contains(part), "expected {part} in {died}");
    }
    let uptime = died.split("uptime=\"").nth(1).and_then(|rest| rest.split('"').next()).expect("an uptime");
    assert!(is_a_duration(uptime), "{died}");
    service.read_until("worker ready");
}

#[test]
fn a_line_that_is_too_long_for_a_pipe_is_cut_and_does_not_run_into_the_next() {
    let mut service = Piped::start(rig(), "level = \"info\"\nformat = \"text\"");
    let mut wire = service.connect();
    wire.call("panic", json!({ "message": "ä".repeat(10_000) }));
    let told = service.read_until("a handler panicked");
    assert!(
        told.len() <= 4096 && told.contains("… (cut) slot=0 method=\"panic\""),
        "{} bytes: {told}",
        told.len()
    );
    wire.call("panic", json!({ "message": "short" }));
    service.read_until("a handler panicked: short");
}

/// What a caller puts into a message, an error or a name, in the hope that the log or its reader's terminal takes it for its own.
const FORGED: &str =
    "x\n2026-01-01T00:00:00Z ERROR forged\r\u{1b}[31m \u{9b}31m \u{7f} \u{202e}gol\u{2066} \u{2028}\u{85}";

#[test]
fn whatever_a_caller_sends_a_record_is_one_line_without_escapes() {
    for format in ["text", "json"] {
        let mut service =
            Piped::start(rig(), &format!("level = \"info\"\nformat = \"{format}\"\nslow = \"1ns\""));
        let mut wire = service.connect();
        let id = json!(FORGED);
        for (method, params) in [
            ("panic", json!({ "message": FORGED })),
            ("fail", json!({ "message": FORGED })),
            ("fail", json!({ "code": 99_999, "message": FORGED })),
            ("sleep", json!({ "ms": 1 })),
        ] {
            wire.send(&json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id }).to_string());
            assert_eq!(wire.receive()["id"], id);
        }
        wire.send(
            &json!({ "jsonrpc": "2.0", "method": "crash", "params": { "how": "segv" }, "id": id })
                .to_string(),
        );
        let mut read = String::new();
        while !read.contains("worker died") {
            let start = read.len();
            service.stderr.read_line(&mut read).expect("a line");
            let line = read[start..].trim_end_matches('\n');
            let is_escape = |shown: char| shown.is_control() || "\u{202e}\u{2066}\u{2028}".contains(shown);
            assert!(!line.contains(is_escape), "{line:?}");
            assert!(!line.starts_with("2026-01-01"), "{line:?}");
            if format == "json" {
                assert!(serde_json::from_str::<Value>(line).is_ok(), "{line:?}");
            }
        }
        for record in ["a handler panicked", "internal error", "slow call", "worker died"] {
            assert!(read.contains(record), "{record} in {read}");
        }
    }
}

#[test]
fn strangers_have_one_line_a_second_and_the_others_are_counted() {
    let mut service = Piped::start(rig(), "level = \"info\"\nformat = \"json\"");
    let began = std::time::Instant::now();
    for _ in 0..200 {
        let mut stranger = service.connect();
        stranger.send_bytes(b"\x16\x03\x01\x02\x00\x01");
        assert!(stranger.is_closed());
    }
    let seconds = began.elapsed().as_secs() + 1;
    assert_eq!(service.stop(), Some(0));
    service.writer = None;
    let mut log = String::new();
    service.stderr.read_to_string(&mut log).expect("the log to its end");
    let lines: Vec<Value> = log.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect();
    let (mut written, mut counted) = (0, 0);
    for line in &lines {
        let message = line["message"].as_str().unwrap_or_default();
        if message.starts_with("expected a framing") {
            written += 1;
            counted += line["more"].as_u64().unwrap_or(0);
            assert!(line["more"].is_null() || line["from"] == "one address", "{line}");
        } else if message.contains(" not written: expected a framing") {
            counted +=
                message.split(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a count");
            assert_eq!(line["from"], "one address", "{line}");
        }
    }
    assert!((1..=seconds).contains(&written), "{written} in {seconds} s: {log}");
    assert_eq!(written + counted, 200, "{log}");
}

#[test]
fn failures_that_callers_cause_at_will_are_written_at_a_bounded_rate_and_counted() {
    for (method, record, a_second) in [("fail", "internal error", 10), ("panic", "a handler panicked", 20)] {
        let mut program = rig();
        // The pipe takes all that is written.
        program.env_remove("RUST_BACKTRACE");
        let mut service = Piped::start(program, "level = \"info\"\nformat = \"json\"");
        let mut wire = service.connect();
        let began = std::time::Instant::now();
        for _ in 0..300 {
            assert_eq!(code(&wire.call(method, json!({ "message": "A".repeat(300) }))), -32603);
        }
        let seconds = began.elapsed().as_secs() + 1;
        drop(wire);
        assert_eq!(service.stop(), Some(0));
        service.writer = None;
        let mut log = String::new();
        service.stderr.read_to_string(&mut log).expect("the log to its end");
        let (mut written, mut counted) = (0, 0);
        for line in log.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")) {
            let message = line["message"].as_str().unwrap_or_default();
            if message.starts_with(record) {
                written += 1;
                counted += line["more"].as_u64().unwrap_or(0);
            } else if message.contains(" not written: ") {
                counted +=
                    message.split(' ').next().and_then(|count| count.parse::<u64>().ok()).expect("a count");
            }
        }
        assert!(written <= seconds * a_second, "{written} in {seconds} s");
        assert_eq!(written + counted, 300);
    }
}

#[test]
fn a_level_of_off_says_nothing_at_all() {
    let folder = Folder::new();
    let config = "listen = [\"127.0.0.1:0\"]\nprocesses = 1\nthreads = 1\n[log]\nlevel = \"off\"\n";
    std::fs::write(folder.path().join("config.toml"), config).expect("config");
    // The preload fails, so that it ends by itself.
    let run =
        rig().arg("serve").current_dir(folder.path()).env("RIG_PRELOAD", "fail").output().expect("it runs");
    assert_eq!((run.status.code(), run.stderr.as_slice()), (Some(1), &b""[..]));
}
