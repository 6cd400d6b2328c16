//! What scenario tests stand on: a service of the real binary, its log as events, and a plain client.
//!
//! Each service owns its processes, its port (the kernel's choice) and its folder, and ends them when it is
//! dropped. Nothing here waits for time to pass: every wait is for a line of the log, bytes on a socket or the
//! end of a process, and `PATIENCE` only turns a wait that would never end into a failed test.

#![allow(dead_code, unreachable_pub)] // each test binary uses its part

pub mod answers;
pub mod kept;
pub mod peer;
pub mod proc;
pub mod programs;

pub mod measure;
mod rude;
#[path = "../../examples/support/stalls.rs"]
pub mod stalls;

use std::cell::RefCell;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

/// Longer than any machine needs for anything a test waits for.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The `tine` binary.
pub fn tine() -> Command {
    Command::new(env!("CARGO_BIN_EXE_tine"))
}

/// The `rig` example.
pub fn rig() -> Command {
    static BUILT: Once = Once::new();
    example("rig", &BUILT)
}

/// An example's binary: `cargo test` builds it, `cargo test --test NAME` does not, so it is asked for here.
pub fn example(name: &str, built: &Once) -> Command {
    built.call_once(|| {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", name]);
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        let done = build.current_dir(env!("CARGO_MANIFEST_DIR")).status().expect("cargo runs");
        assert!(done.success(), "cargo build --example {name} failed");
    });
    let folder = Path::new(env!("CARGO_BIN_EXE_tine")).parent().expect("a binary is in a folder");
    Command::new(folder.join("examples").join(name))
}

/// A folder that goes with its owner.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let name = format!("tine-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("the temporary folder can be written");
        Self(path)
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Plays a scenario for each of these, all at the same time: most of it waits.
pub fn at_once<T: Send>(cases: impl IntoIterator<Item = T>, scenario: impl Fn(T) + Sync) {
    let scenario = &scenario;
    std::thread::scope(|scope| {
        for case in cases {
            scope.spawn(move || scenario(case));
        }
    });
}

/// Asks again and again until it is so; `what` is for the failure. For what nobody tells of.
pub fn await_so(what: &str, mut is_so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < until, "not within {PATIENCE:?}: {what}");
        std::thread::yield_now();
    }
}

/// Tells threads that work until they are told to stop; dropped, it has told them. A scope joins its threads also when the
/// test in it has failed, and would wait for ever for those that nobody told.
#[derive(Default)]
pub struct Over(AtomicBool);

impl Over {
    pub fn is_so(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub fn say(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    /// Says it at the end of a block, however that ends.
    pub fn at_the_end(&self) -> impl Drop + '_ {
        struct AtTheEnd<'a>(&'a Over);
        impl Drop for AtTheEnd<'_> {
            fn drop(&mut self) {
                self.0.say();
            }
        }
        AtTheEnd(self)
    }
}

/// A running service.
pub struct Service {
    child: Child,
    folder: Folder,
    log: Receiver<Value>,
    /// Lines that were read while waiting for others.
    seen: RefCell<Vec<Value>>,
    address: Option<String>,
    ended: Option<ExitStatus>,
}

impl Service {
    /// Starts `rig` with this configuration (TOML, without `listen` and `[log]`) and waits until every worker is
    /// ready.
    pub fn start(config: &str) -> Self {
        Self::start_with(rig(), config)
    }

    pub fn start_with(program: Command, config: &str) -> Self {
        let service = Self::launch_and_listen(program, config);
        let workers = service.processes();
        for _ in 0..workers {
            service.await_log("worker ready");
        }
        service
    }

    /// Starts a service and waits until it listens.
    pub fn launch_and_listen(program: Command, config: &str) -> Self {
        let mut service = Self::launch(program, config);
        service.await_listening();
        service
    }

    /// Starts a service without waiting for anything.
    pub fn launch(program: Command, config: &str) -> Self {
        let folder = Folder::new();
        let listen = if config.contains("listen") { "" } else { "listen = [\"127.0.0.1:0\"]\n" };
        let log =
            if config.contains("[log]") { "" } else { "\n[log]\nlevel = \"debug\"\nformat = \"json\"\n" };
        std::fs::write(folder.path().join("config.toml"), format!("{listen}{config}{log}")).expect("config");
        Self::spawn(program, &[], folder)
    }

    /// Starts `serve` with these arguments in this folder.
    fn spawn(mut program: Command, arguments: &[&str], folder: Folder) -> Self {
        let mut child = program
            .arg("serve")
            .args(arguments)
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the program starts");
        let stderr = child.stderr.take().expect("stderr is a pipe");
        let (sender, log) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // What is no JSON (a message before the log is set up) is kept as a message.
                let value = serde_json::from_str(&line).unwrap_or_else(|_| json!({ "message": line }));
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        Self { child, folder, log, seen: RefCell::default(), address: None, ended: None }
    }

    pub fn await_listening(&mut self) {
        let listening = self.await_log("listening");
        let addresses = listening["listen"].as_str().expect("the log names the addresses").to_owned();
        self.address = Some(addresses);
    }

    fn processes(&self) -> u64 {
        let seen = self.seen.borrow();
        let listening = seen.iter().find(|line| line["message"] == "listening").expect("it listens");
        listening["processes"].as_u64().expect("the log says how many processes")
    }

    /// The first address it listens on, as a client writes it.
    pub fn address(&self) -> &str {
        self.address.as_deref().expect("the service listens").split(", ").next().expect("one address")
    }

    pub fn socket_address(&self) -> SocketAddr {
        self.address().parse().expect("a TCP address")
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The supervisor's pid.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    pub fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// Waits for the next log line whose message contains `text`.
    pub fn await_log(&self, text: &str) -> Value {
        self.await_log_where(text, |line| message(line).contains(text))
    }

    /// Waits for the next log line that `wanted` accepts; `what` is for the failure.
    pub fn await_log_where(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.borrow_mut().push(line.clone());
                    if wanted(&line) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no log line with {what:?}; seen:\n{}", self.log_so_far())
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("the service ended without a log line with {what:?}; seen:\n{}", self.log_so_far())
                }
            }
        }
    }

    /// All lines read so far, for messages and for counting after the end.
    pub fn log_so_far(&self) -> String {
        let mut seen = self.seen.borrow_mut();
        seen.extend(self.log.try_iter());
        seen.iter().map(|line| format!("{line}\n")).collect()
    }

    /// Every line up to the end of the log; call it after the service and all its workers have ended.
    pub fn whole_log(&self) -> Vec<Value> {
        let until = Instant::now() + PATIENCE;
        loop {
            match self.log.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => self.seen.borrow_mut().push(line),
                Err(RecvTimeoutError::Disconnected) => return self.seen.borrow().clone(),
                Err(RecvTimeoutError::Timeout) => panic!("somebody still holds the log open"),
            }
        }
    }

    /// Waits until the supervisor has ended.
    pub fn await_end(&mut self) -> ExitStatus {
        if let Some(ended) = self.ended {
            return ended;
        }
        let ended =
            await_child(&mut self.child).unwrap_or_else(|| panic!("no end; seen:\n{}", self.log_so_far()));
        self.ended = Some(ended);
        ended
    }

    /// TERM, then the exit code.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.await_end().code()
    }

    pub fn connect(&self) -> Wire {
        Wire::connect(self.socket_address())
    }

    /// One call on a connection of its own.
    pub fn call(&self, method: &str, params: Value) -> Value {
        self.connect().call(method, params)
    }

    /// Pids of the living worker processes, by slot.
    pub fn worker_pids(&self) -> Vec<i32> {
        // A worker may serve before the process between it and the template has ended, whose child it is until then.
        let are_forked =
            || children_named(self.pid(), "tine-template").into_iter().all(|pid| children_of(pid).is_empty());
        await_so("all workers are the supervisor's children", are_forked);
        let mut workers = children_named(self.pid(), "tine-worker");
        workers.retain(|pid| !is_zombie(*pid));
        workers.sort_by_key(|pid| slot_of(*pid));
        workers
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if self.ended.is_none() {
            // The kernel closes the lines of a killed supervisor; its children end by themselves.
            let children = children_of(self.pid());
            let _ = self.child.kill();
            let _ = self.child.wait();
            for pid in children {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        }
    }
}

fn message(line: &Value) -> &str {
    line["message"].as_str().unwrap_or_default()
}

/// Waits for the end of a child without a busy loop: its pidfd becomes readable.
pub fn await_child(child: &mut Child) -> Option<ExitStatus> {
    let pid = i32::try_from(child.id()).expect("a pid fits");
    if await_gone(pid, PATIENCE) { child.wait().ok() } else { None }
}

/// Waits until process `pid` has ended (reaped or not); false when it has not within `patience`.
pub fn await_gone(pid: i32, patience: Duration) -> bool {
    use std::os::fd::AsFd;
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return true };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else {
        return true;
    };
    let mut wanted = [nix::poll::PollFd::new(pidfd.as_fd(), nix::poll::PollFlags::POLLIN)];
    let timeout = nix::poll::PollTimeout::try_from(patience).expect("a short time");
    nix::poll::poll(&mut wanted, timeout).is_ok_and(|ready| ready > 0)
}

pub fn send_signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).expect("the process is there");
}

/// Pids of the children of `pid`.
pub fn children_of(pid: i32) -> Vec<i32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).collect()
}

/// Pids of the children of `pid` whose name is `name`.
pub fn children_named(pid: i32, name: &str) -> Vec<i32> {
    let named = |pid: &i32| {
        std::fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|comm| comm.trim_end() == name)
    };
    children_of(pid).into_iter().filter(named).collect()
}

/// Waits until no thread of `pid` is at anything: what it was about to do after an answer that has arrived is done.
///
/// Threads are looked at one after the other, and one may have woken the one that was looked at before it. So they are asleep
/// only where a second look finds each of them asleep, and none has run since the first: it would have slept once more often.
pub fn await_asleep(pid: i32) {
    let until = Instant::now() + PATIENCE;
    let mut before = None;
    loop {
        let asleep = sleepers(pid);
        if asleep.is_some() && asleep == before {
            return;
        }
        before = asleep;
        assert!(Instant::now() < until, "{pid} is always at something");
        std::thread::yield_now();
    }
}

/// The threads of `pid`, each with how often it has gone to sleep or been put aside; None where one of them is awake.
fn sleepers(pid: i32) -> Option<Vec<(String, String)>> {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).expect("the process lives");
    let sleeper = |task: std::fs::DirEntry| {
        let status = std::fs::read_to_string(task.path().join("status")).ok()?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))?
            .trim_start()
            .starts_with('S')
            .then_some(())?;
        let switches = status.lines().filter(|line| line.contains("ctxt_switches")).collect();
        Some((task.file_name().into_string().ok()?, switches))
    };
    tasks.flatten().map(sleeper).collect()
}

/// What `/proc` tells of `pid` behind its name, by number; None when there is no such process.
fn stat_of(pid: i32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(number).map(str::to_owned)
}

/// The slot of a worker process, by its title.
fn slot_of(pid: i32) -> Option<usize> {
    let title = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
    title.strip_prefix("tine: worker ")?.split(' ').next()?.parse().ok()
}

/// It has ended, and its parent has not looked yet.
fn is_zombie(pid: i32) -> bool {
    stat_of(pid, 0).is_some_and(|state| state == "Z")
}

/// The parent of `pid`; None when there is no such process.
pub fn parent_of(pid: i32) -> Option<i32> {
    stat_of(pid, 1)?.parse().ok()
}

/// CPU time a process has used, in clock ticks.
pub fn cpu_ticks(pid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("the process lives");
    let rest = stat.rsplit_once(')').expect("a name in parentheses").1;
    let field = |index: usize| rest.split_whitespace().nth(index).and_then(|text| text.parse::<u64>().ok());
    field(11).expect("utime") + field(12).expect("stime")
}

/// A plain client of the length-prefixed native protocol, as somebody else would write it.
pub struct Wire {
    pub stream: TcpStream,
}

impl Wire {
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).expect("the service accepts"))
    }

    /// As a client that has this address.
    pub fn connect_from(own: IpAddr, address: SocketAddr) -> Self {
        use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, bind, connect, socket};
        let family = if own.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
        let socket = socket(family, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        let own = SockaddrStorage::from(SocketAddr::new(own, 0));
        bind(socket.as_raw_fd(), &own).expect("an address of this machine");
        connect(socket.as_raw_fd(), &SockaddrStorage::from(address)).expect("the service accepts");
        Self::over(TcpStream::from(socket))
    }

    fn over(stream: TcpStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("the option exists");
        Self { stream }
    }

    pub fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("the service reads");
    }

    /// Sends `body` behind its length.
    pub fn send(&mut self, body: &str) {
        self.send_bytes(&framed(body));
    }

    pub fn request(&mut self, method: &str, params: &Value) {
        self.send(&json!({ "in": method, "params": params }).to_string());
    }

    /// The next answer's text; None when the connection was closed instead.
    pub fn receive_text(&mut self) -> Option<String> {
        let mut prefix = [0; 4];
        let mut read = 0;
        while read < 4 {
            match self.stream.read(&mut prefix[read..]).expect("an answer or a close") {
                0 if read == 0 => return None,
                0 => panic!("closed inside a length"),
                count => read += count,
            }
        }
        let mut body = vec![0; u32::from_le_bytes(prefix) as usize];
        self.stream.read_exact(&mut body).expect("a whole answer");
        Some(String::from_utf8(body).expect("UTF-8"))
    }

    pub fn receive(&mut self) -> Value {
        let text = self.receive_text().expect("an answer, not a close");
        serde_json::from_str(&text).expect("JSON")
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.request(method, &params);
        self.receive()
    }

    /// True when the service has closed the connection with nothing left to read.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.stream.read(&mut [0; 1]), Ok(0))
    }
}

/// `body` behind its little-endian length.
pub fn framed(body: &str) -> Vec<u8> {
    let mut bytes = u32::try_from(body.len()).expect("a short body").to_le_bytes().to_vec();
    bytes.extend_from_slice(body.as_bytes());
    bytes
}

/// The error of an answer, native or JSON-RPC 2.0.
pub fn error_of(answer: &Value) -> &Value {
    let error = if answer["out"] == "error" { &answer["result"] } else { &answer["error"] };
    assert!(error.is_object(), "expected an error, found {answer}");
    error
}

/// The code of an error answer.
pub fn code(answer: &Value) -> i64 {
    error_of(answer)["code"].as_i64().expect("an error has a code")
}
