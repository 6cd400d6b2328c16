//! The server that is tuned: started with a setting on a socket file of its own, asked how much CPU it has used, and
//! ended.
//!
//! `sweep` starts one for each round. It is ended when its value is dropped, by pid and with all its processes, and
//! the folder with socket and log goes with the [`Launcher`]; nothing else on the machine is touched. What load it
//! gets is not known here.

use std::fs::{self, DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::grid::Setting;
use crate::config::span;
use crate::sys::child;

/// How long all workers may take to be ready; a model that is loaded may take its time.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
/// What a worker still has to do after its last thread has started: a few system calls until its door is open.
const LAST_STEPS: Duration = Duration::from_millis(5);
/// How long the server may take to finish what it has begun once it is told to end, and then to end without that.
const DRAIN_LIMIT: Duration = Duration::from_secs(3);
const QUIT_LIMIT: Duration = Duration::from_secs(1);
/// Between two looks at a process; short against any round.
const LOOK: Duration = Duration::from_millis(1);
/// How much of the end of the log is shown when a start fails.
const TAIL_LINES: usize = 15;
/// The name that a worker gives its process.
const WORKER_NAME: &str = "tine-worker";
/// What `serve` exits with when the command line or the configuration is wrong.
const BAD_CONFIG: i32 = 2;

/// Why there is no server.
#[derive(Debug)]
pub(super) enum StartError {
    /// There is no such program, or its configuration or command line is wrong; it says so itself.
    BadConfig(String),
    /// It can't be executed, ended, or did not get ready in time.
    Failed(String),
    /// Somebody asked for the end meanwhile.
    Stopped,
}

/// Starts the servers; owns the folder that they share.
#[derive(Debug)]
pub(super) struct Launcher {
    program: PathBuf,
    config: Option<PathBuf>,
    folder: Folder,
}

impl Launcher {
    /// For `program`, which is to read `config` (without one: what it finds itself).
    ///
    /// # Errors
    ///
    /// The folder for temporary files can't be written.
    pub(super) fn new(program: PathBuf, config: Option<PathBuf>) -> Result<Self, String> {
        let folder = Folder::new().map_err(|error| {
            let temporary = std::env::temp_dir();
            format!(
                "expected to make a folder in {}, found: {error}; set TMPDIR to another",
                temporary.display()
            )
        })?;
        Ok(Self { program, config, folder })
    }

    /// Starts the server and waits until every worker is ready.
    ///
    /// # Errors
    ///
    /// The server did not get there, or `stop` was set; nothing of it is left then.
    pub(super) fn start(&self, setting: Setting, stop: &AtomicBool) -> Result<Server, StartError> {
        let mut server = self.spawn(setting).map_err(|error| {
            StartError::BadConfig(format!(
                "--program: expected a program that can be executed, found {} ({error})",
                self.program.display()
            ))
        })?;
        let begun = Instant::now();
        while !server.is_ready(setting) {
            if stop.load(Ordering::SeqCst) {
                return Err(StartError::Stopped);
            }
            if server.has_ended() {
                return Err(self.ended_early(&mut server, setting));
            }
            if begun.elapsed() >= BOOT_LIMIT {
                let limit = span::show(BOOT_LIMIT);
                let words = format!("expected {setting} workers and threads to be ready within {limit}");
                return Err(StartError::Failed(self.with_log(&words)));
            }
            thread::sleep(LOOK);
        }
        thread::sleep(LAST_STEPS);
        Ok(server)
    }

    /// `words`, and the end of the server's log below them.
    pub(super) fn with_log(&self, words: &str) -> String {
        match tail(&self.folder.log(), TAIL_LINES) {
            log if log.is_empty() => format!("{words}; its log is empty"),
            log => format!("{words}; its log ends with\n{log}"),
        }
    }

    fn spawn(&self, setting: Setting) -> io::Result<Server> {
        let socket = self.folder.socket();
        // Whoever had it before is gone; a server that was killed leaves it behind.
        let _ = fs::remove_file(&socket);
        let address = format!("unix:{}", socket.display());
        let log = File::create(self.folder.log())?;
        let mut command = Command::new(&self.program);
        command.arg("serve");
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        command.args(["--listen", &address, "--processes", &setting.processes.to_string()]);
        command.args(["--threads", &setting.threads.to_string()]);
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        child::bind_to_this_thread(&mut command, Signal::SIGTERM);
        Ok(Server { child: command.spawn()?, address, ended: None })
    }

    fn ended_early(&self, server: &mut Server, setting: Setting) -> StartError {
        let ended = server.end();
        let program = self.program.display();
        if ended.as_ref().is_ok_and(|status| status.code() == Some(BAD_CONFIG)) {
            let log = tail(&self.folder.log(), TAIL_LINES);
            return StartError::BadConfig(format!("{program} serve does not start:\n{log}"));
        }
        let found = ended.map_or_else(|error| error.to_string(), |status| status.to_string());
        let words =
            format!("expected {program} serve to get ready with {setting}, found that it ended ({found})");
        StartError::Failed(self.with_log(&words))
    }
}

/// A running server, ended when dropped.
#[derive(Debug)]
pub(super) struct Server {
    child: Child,
    address: String,
    /// Set once it has been waited for: its pid may be anybody's then.
    ended: Option<ExitStatus>,
}

impl Server {
    /// Where it listens, as a client writes it.
    pub(super) fn address(&self) -> &str {
        &self.address
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some() || child::has_ended(self.pid())
    }

    /// Who can be asked for CPU time, also while the server is lent to somebody.
    pub(super) fn processes(&self) -> Processes {
        Processes(self.pid())
    }

    /// Asks the server to end, and makes it when it takes too long. Its processes are gone afterwards.
    ///
    /// # Errors
    ///
    /// It can't be waited for.
    pub(super) fn end(&mut self) -> io::Result<ExitStatus> {
        if let Some(status) = self.ended {
            return Ok(status);
        }
        // What it has begun is finished, so that handlers are not cut off in the middle of something; then not.
        for (signal, limit) in [(Signal::SIGTERM, DRAIN_LIMIT), (Signal::SIGQUIT, QUIT_LIMIT)] {
            let _ = kill(self.pid(), signal);
            let told = Instant::now();
            while !self.has_ended() && told.elapsed() < limit {
                thread::sleep(LOOK);
            }
        }
        child::kill_group(self.pid());
        let status = self.child.wait()?;
        self.ended = Some(status);
        Ok(status)
    }

    /// Each worker has all its threads, and the poller's.
    fn is_ready(&self, setting: Setting) -> bool {
        let threads = |pid: &Pid| fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
        let named = |pid: &Pid| {
            fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim_end() == WORKER_NAME)
        };
        let workers = self.processes().children().into_iter().filter(named);
        workers.filter(|pid| threads(pid) > setting.threads).count() >= setting.processes
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Nobody is left to tell that it can't be waited for.
        let _ = self.end();
    }
}

/// The processes of a server, by the pid of its supervisor.
#[derive(Debug, Clone, Copy)]
pub(super) struct Processes(Pid);

impl Processes {
    /// CPU time that they have used since they were started. What a process used that has ended is not in it.
    pub(super) fn cpu_time(self) -> Duration {
        let all = std::iter::once(self.0).chain(self.children());
        all.filter_map(|pid| child::cpu_time(pid).ok()).sum()
    }

    fn children(self) -> Vec<Pid> {
        let pid = self.0;
        let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
        text.split_whitespace().filter_map(|pid| pid.parse().ok().map(Pid::from_raw)).collect()
    }
}

/// A folder that only this user can look into, removed with its content.
#[derive(Debug)]
struct Folder(PathBuf);

impl Folder {
    fn new() -> io::Result<Self> {
        let parent = std::env::temp_dir();
        if parent.to_str().is_none() {
            return Err(io::Error::new(io::ErrorKind::InvalidFilename, "its name is not UTF-8"));
        }
        let mut number = 0_u32;
        loop {
            // Short: a socket file's path has room for about a hundred bytes.
            let path = parent.join(format!("tine-tune-{}-{number}", std::process::id()));
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                // Left by a process that had our number and was killed.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists && number < 1000 => number += 1,
                Err(error) => return Err(error),
            }
        }
    }

    fn socket(&self) -> PathBuf {
        self.0.join("s")
    }

    fn log(&self) -> PathBuf {
        self.0.join("log")
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// The last `lines` lines of a text file; empty if there is none.
fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.trim_end().lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
