//! A service of `tine` or of the `rig` example, started as a user would start it, with its log in a pipe.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{ChildStderr, Command, Stdio};
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use serde_json::Value;
use tine::BoxError;

use super::cores::{Cores, Place};
use super::process::Owned;

/// The `tine` program, which cargo has built for this bench.
pub fn tine() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_tine"))
}

/// The `rig` example beside it. Cargo builds no examples for a bench, so it is asked to.
pub fn rig() -> Result<PathBuf, BoxError> {
    static BUILT: Once = Once::new();
    let mut built = Ok(());
    BUILT.call_once(|| built = build_rig());
    let folder = Path::new(env!("CARGO_BIN_EXE_tine")).parent().ok_or("a program is in a folder")?;
    let path = folder.join("examples").join("rig");
    match (built, path.exists()) {
        (Ok(()), true) => Ok(path),
        (Err(error), true) => {
            eprintln!("{error}; measuring the {} that is there", path.display());
            Ok(path)
        }
        (built, false) => {
            let why = built.err().unwrap_or_else(|| "cargo built it somewhere else".into());
            let release = if cfg!(debug_assertions) { "" } else { " --release" };
            Err(format!(
                "expected the example rig at {}, found none ({why}): build it with `cargo build{release} --example rig`",
                path.display()
            )
            .into())
        }
    }
}

fn build_rig() -> Result<(), BoxError> {
    let mut build = Command::new(env!("CARGO"));
    build.args(["build", "--quiet", "--example", "rig"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        build.arg("--release");
    }
    let built = build.status().map_err(|error| format!("cargo can't be run: {error}"))?;
    if built.success() { Ok(()) } else { Err("cargo couldn't build the example rig".into()) }
}

/// A folder that goes with its owner.
#[derive(Debug)]
pub struct Folder(PathBuf);

impl Folder {
    pub fn new() -> Result<Self, BoxError> {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let name = format!("tine-bench-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
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

/// A service that was started; ended when it is dropped.
#[derive(Debug)]
pub struct Starting {
    process: Owned,
    log: BufReader<ChildStderr>,
    folder: Folder,
    started: Instant,
}

/// A service whose workers are all ready.
#[derive(Debug)]
pub struct Service {
    process: Owned,
    _folder: Folder,
    address: String,
    workers: Vec<i32>,
}

impl Starting {
    /// Runs `program serve` with a configuration of every default but for a port of its own, a log for machines and what
    /// `config` says (TOML, from the top level on).
    pub fn start(program: &Path, config: &str, cores: &Cores, place: Place) -> Result<Self, BoxError> {
        Self::start_by(Command::new(program), config, cores, place)
    }

    /// The same, where `program` is the end of a command: another program that runs it, its arguments, and it.
    pub fn start_by(
        mut command: Command,
        config: &str,
        cores: &Cores,
        place: Place,
    ) -> Result<Self, BoxError> {
        let folder = Folder::new()?;
        let config = format!("listen = [\"127.0.0.1:0\"]\n{config}\n[log]\nformat = \"json\"\n");
        fs::write(folder.path().join("config.toml"), config)?;
        command.arg("serve").current_dir(folder.path()).stdout(Stdio::null()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut process = Owned::start(cores, place, &mut command)?;
        let log = process.child.stderr.take().ok_or("standard error is a pipe")?;
        Ok(Self { process, log: BufReader::new(log), folder, started })
    }

    /// Just before it was spawned.
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The next line of the log with this message.
    pub fn await_log(&mut self, message: &str) -> Result<Value, BoxError> {
        let mut seen = String::new();
        loop {
            let mut line = String::new();
            if self.log.read_line(&mut line)? == 0 {
                return Err(format!("the service ended before it said {message:?}; it said:\n{seen}").into());
            }
            // What is said before there is a log is no JSON.
            let parsed: Value = serde_json::from_str(&line).unwrap_or_default();
            if parsed["message"] == message {
                return Ok(parsed);
            }
            seen.push_str(&line);
        }
    }

    /// Waits for the address that it listens on.
    pub fn address(&mut self) -> Result<String, BoxError> {
        let listening = self.await_log("listening")?;
        Ok(listening["listen"].as_str().ok_or("the log names the address")?.to_owned())
    }

    /// Waits for this many workers; their pids.
    pub fn workers(&mut self, count: usize) -> Result<Vec<i32>, BoxError> {
        (0..count)
            .map(|_| {
                let ready = self.await_log("worker ready")?;
                Ok(i32::try_from(ready["pid"].as_i64().ok_or("the log names the pid")?)?)
            })
            .collect()
    }

    /// TERM, and the end in good order.
    pub fn stop(self) -> Result<(), BoxError> {
        self.process.stop()
    }
}

impl Service {
    /// Starts a service and waits for all its workers; `processes` is how many, `config` all else that isn't default.
    pub fn start(
        program: &Path,
        processes: usize,
        config: &str,
        cores: &Cores,
        place: Place,
    ) -> Result<Self, BoxError> {
        Self::start_by(Command::new(program), processes, config, cores, place)
    }

    /// The same, where `program` is the end of a command: another program that runs it, its arguments, and it.
    pub fn start_by(
        command: Command,
        processes: usize,
        config: &str,
        cores: &Cores,
        place: Place,
    ) -> Result<Self, BoxError> {
        let config = format!("processes = {processes}\n{config}");
        let mut starting = Starting::start_by(command, &config, cores, place)?;
        let address = starting.address()?;
        let workers = starting.workers(processes)?;
        let Starting { process, log, folder, .. } = starting;
        // Read on, as whoever collects a service's log does; it ends with the service.
        std::thread::spawn(move || log.lines().map_while(Result::ok).for_each(drop));
        Ok(Self { process, _folder: folder, address, workers })
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The pids of its workers.
    pub fn workers(&self) -> &[i32] {
        &self.workers
    }

    /// TERM, and the end in good order, of its workers too.
    pub fn stop(self) -> Result<(), BoxError> {
        self.process.stop()
    }

    /// The pid of its supervisor.
    pub fn pid(&self) -> i32 {
        self.process.pid()
    }
}
