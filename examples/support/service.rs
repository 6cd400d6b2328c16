//! A service of the real program, started as an operator would start it, with its log read line by line.
//!
//! It owns its processes and its folder, and ends them when it is dropped, by pid.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::Value;
use tine::{BoxError, Client};

use super::proc;

/// Longer than anything that is waited for takes, unless it is broken.
pub const PATIENCE: Duration = Duration::from_secs(40);

/// The program `name` of this build: an example beside this one, or `tine` itself. Cargo builds both with
/// the examples.
pub fn program(name: &str) -> Result<PathBuf, BoxError> {
    let own = std::env::current_exe()?;
    let examples = own.parent().ok_or("a program is in a folder")?;
    let place = |folder: &Path| folder.join("examples").join(name);
    let candidates = [examples.join(name), examples.join("..").join(name), place(&examples.join(".."))];
    candidates.iter().find(|path| path.is_file()).cloned().ok_or_else(|| {
        let release = if cfg!(debug_assertions) { "" } else { " --release" };
        format!(
            "expected the program {name} at {}, found none: build it with `cargo build{release} --bins --examples`",
            candidates[0].display()
        )
        .into()
    })
}

/// A folder that goes with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Result<Self, BoxError> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tine-faults-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        fs::create_dir_all(&path)?;
        Ok(Self(path))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What the service has said so far.
#[derive(Debug, Default)]
struct Log {
    lines: Mutex<Vec<Value>>,
    more: Condvar,
}

/// A running service.
#[derive(Debug)]
pub struct Service {
    child: Child,
    folder: Folder,
    log: Arc<Log>,
    address: SocketAddr,
    processes: usize,
    program: PathBuf,
}

impl Service {
    /// Starts `rig` with this configuration (TOML, from the top level on, without `listen` and `[log]`), and waits
    /// for all its workers.
    pub fn start(processes: usize, config: &str) -> Result<Self, BoxError> {
        Self::start_with(Command::new(program("rig")?), processes, config)
    }

    /// As `start`, of this program and environment.
    pub fn start_with(mut command: Command, processes: usize, config: &str) -> Result<Self, BoxError> {
        let folder = Folder::new()?;
        fs::write(folder.path().join("config.toml"), full_config(processes, config, "127.0.0.1:0"))?;
        command.arg("serve").current_dir(folder.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn()?;
        let log = Arc::new(Log::default());
        if let Some(stderr) = child.stderr.take() {
            let log = Arc::clone(&log);
            std::thread::Builder::new().name("log".into()).spawn(move || read_log(stderr, &log))?;
        }
        let program = PathBuf::from(command.get_program());
        let mut service =
            Self { child, program, folder, log, address: ([127, 0, 0, 1], 0).into(), processes };
        let listening = service.await_log(0, "listening").ok_or_else(|| service.failed("listening"))?;
        service.address = listening["listen"].as_str().ok_or("the log names the address")?.parse()?;
        if !service.await_workers(processes) {
            return Err(service.failed("workers being ready"));
        }
        Ok(service)
    }

    fn failed(&self, wanted: &str) -> BoxError {
        format!("expected {wanted}, found none; the log:\n{}", self.tail(20)).into()
    }

    /// Rewrites the configuration file, for the next reload; the address stays what it is.
    pub fn write_config(&self, config: &str) -> Result<(), BoxError> {
        let text = full_config(self.processes, config, &self.address.to_string());
        Ok(fs::write(self.folder.path().join("config.toml"), text)?)
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// The supervisor's pid.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    pub fn signal(&self, signal: Signal) {
        proc::signal(self.pid(), signal);
    }

    /// Pids of the living workers, in no order.
    pub fn workers(&self) -> Vec<i32> {
        proc::children(self.pid()).into_iter().filter(|pid| proc::name(*pid) == "tine-worker").collect()
    }

    /// Everything the service runs: supervisor, templates, workers.
    pub fn processes(&self) -> Vec<i32> {
        let mut all = vec![self.pid()];
        all.extend(proc::children(self.pid()));
        all
    }

    /// Waits until exactly this many workers live and have all said that they are ready.
    pub fn await_workers(&self, count: usize) -> bool {
        proc::wait_until(PATIENCE, || {
            let living = self.workers();
            let ready = self.ready_workers();
            living.len() == count && living.iter().all(|pid| ready.contains(pid))
        })
    }

    /// Pids of all workers that ever became ready.
    pub fn ready_workers(&self) -> Vec<i32> {
        let is_ready = |line: &&Value| line["message"].as_str() == Some("worker ready");
        let pid = |line: &Value| line["pid"].as_i64().and_then(|pid| i32::try_from(pid).ok());
        self.lines().iter().filter(is_ready).filter_map(pid).collect()
    }

    /// The generation of each worker that ever became ready, by pid.
    pub fn generations(&self) -> std::collections::BTreeMap<i32, u64> {
        let is_ready = |line: &&Value| line["message"].as_str() == Some("worker ready");
        let entry =
            |line: &Value| Some((i32::try_from(line["pid"].as_i64()?).ok()?, line["generation"].as_u64()?));
        self.lines().iter().filter(is_ready).filter_map(entry).collect()
    }

    /// The path of the program that was started.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// How much was said so far: where `await_log` may begin.
    pub fn mark(&self) -> usize {
        self.lines().len()
    }

    /// The first line from `mark` on whose message contains `text`, when it comes in time.
    pub fn await_log(&self, mark: usize, text: &str) -> Option<Value> {
        self.await_line(mark, |line| said(line).contains(text))
    }

    fn await_line(&self, mark: usize, is_it: impl Fn(&Value) -> bool) -> Option<Value> {
        let until = Instant::now() + PATIENCE;
        let mut lines = self.lines();
        loop {
            if let Some(found) = lines.iter().skip(mark).find(|line| is_it(line)) {
                return Some(found.clone());
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            lines = self.log.more.wait_timeout(lines, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Lines from `mark` on whose text contains `text`, fields included.
    pub fn count_log(&self, mark: usize, text: &str) -> usize {
        self.lines().iter().skip(mark).filter(|line| line.to_string().contains(text)).count()
    }

    /// How many calls of a method were run to a result, as the service says at its end.
    pub fn await_served(&self, method: &str) -> Option<u64> {
        self.await_line(0, |line| said(line) == "served" && line["method"] == method)?["ok"].as_u64()
    }

    /// The last lines that contain one of these, for a person.
    pub fn lines_with(&self, texts: &[&str], most: usize) -> String {
        let lines = self.lines();
        let mut found: Vec<String> = lines
            .iter()
            .map(|line| format!("    {line}\n"))
            .filter(|line| texts.iter().any(|text| line.contains(text)))
            .collect();
        found.drain(..found.len().saturating_sub(most));
        found.concat()
    }

    /// The last lines, for a person.
    pub fn tail(&self, count: usize) -> String {
        let lines = self.lines();
        let from = lines.len().saturating_sub(count);
        lines[from..].iter().map(|line| format!("    {line}\n")).collect()
    }

    /// Lines of warnings, errors and panics, each once, for a person.
    pub fn complaints(&self, most: usize) -> String {
        let lines = self.lines();
        let bad = |line: &&Value| {
            let level = line["level"].as_str().unwrap_or("");
            level == "ERROR" || level == "WARN" || level.is_empty() || said(line).contains("panicked")
        };
        let mut found: Vec<String> = lines
            .iter()
            .filter(bad)
            .map(|line| format!("    {}\n", line.to_string().chars().take(400).collect::<String>()))
            .collect();
        found.truncate(most);
        found.concat()
    }

    /// True when any process of the service said that it panicked.
    pub fn has_panicked(&self) -> bool {
        self.lines().iter().any(|line| line.to_string().contains("panicked at"))
    }

    fn lines(&self) -> std::sync::MutexGuard<'_, Vec<Value>> {
        self.log.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One call on a connection of its own.
    pub fn call(&self, method: &str, params: &Value) -> Result<Value, BoxError> {
        let client = Client::connect(&self.address.to_string())?;
        Ok(client.call(method, params)?)
    }

    /// Waits for the supervisor's end.
    pub fn await_end(&mut self, patience: Duration) -> Option<ExitStatus> {
        let mut ended = None;
        proc::wait_until(patience, || {
            ended = self.child.try_wait().ok().flatten();
            ended.is_some()
        });
        ended
    }

    /// TERM; the exit code, when it ends in time.
    pub fn stop(&mut self) -> Option<i32> {
        self.signal(Signal::SIGTERM);
        self.await_end(PATIENCE)?.code()
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        if let Ok(Some(_)) = self.child.try_wait() {
            return;
        }
        let children = proc::children(self.pid());
        let _ = self.child.kill();
        let _ = self.child.wait();
        // They end by themselves when their line closes; a stopped one would not.
        for pid in children {
            proc::signal(pid, Signal::SIGKILL);
        }
    }
}

fn full_config(processes: usize, config: &str, address: &str) -> String {
    format!("listen = [\"{address}\"]\nprocesses = {processes}\n{config}\n[log]\nformat = \"json\"\n")
}

fn said(line: &Value) -> &str {
    line["message"].as_str().unwrap_or_default()
}

fn read_log(stderr: ChildStderr, log: &Log) {
    for line in BufReader::new(stderr).lines().map_while(Result::ok) {
        // What is no JSON (said before the log is set up) is kept as a message.
        let value = serde_json::from_str(&line).unwrap_or_else(|_| serde_json::json!({ "message": line }));
        log.lines.lock().unwrap_or_else(PoisonError::into_inner).push(value);
        log.more.notify_all();
    }
}
