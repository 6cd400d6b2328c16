//! How soon a service answers after it was started, and how much memory a worker has that does nothing.
//!
//! `cargo bench --bench startup` prints both; README.md beside this file says how they are measured. Without the
//! `--bench` that cargo adds, as in `cargo test --all-targets`, one round shows that it works.

use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::PathBuf;
use std::process::{Child, ChildStderr, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

const ROUNDS: usize = 50;
const WORKERS: usize = 4;
const CONFIG: &str =
    "listen = [\"127.0.0.1:0\"]\nprocesses = 4\nthreads = 8\n[log]\nlevel = \"info\"\nformat = \"json\"\n";
const PING: &[u8] = br#"{"in":"ping","params":"first"}"#;

fn main() -> Result<(), Box<dyn Error>> {
    let rounds = if std::env::args().any(|argument| argument == "--bench") { ROUNDS } else { 1 };
    let folder = Folder::new()?;
    let (mut times, mut memories) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let round = Service::start(&folder)?.measure()?;
        times.push(round.first_answer);
        memories.extend(round.workers);
    }
    times.sort_unstable();
    memories.sort_unstable();
    println!("{rounds} starts of a service with {WORKERS} workers");
    let ms = |time: &Duration| format!("{:.1} ms", time.as_secs_f64() * 1e3);
    print("from exec to the first answer", "50 ms", &times, ms);
    #[expect(clippy::cast_precision_loss, reason = "megabytes, printed with two digits")]
    let mb = |bytes: &usize| format!("{:.2} MB", *bytes as f64 / 1e6);
    print("private memory of an idle worker", "3 MB", &memories, mb);
    Ok(())
}

fn print<T>(what: &str, target: &str, sorted: &[T], show: impl Fn(&T) -> String) {
    let at = |index: usize| sorted.get(index).map_or_else(String::new, &show);
    let (least, median, most) = (at(0), at(sorted.len() / 2), at(sorted.len() - 1));
    println!("{what}: median {median}, least {least}, most {most} (at most {target} wanted)");
}

/// A folder with the configuration; it goes with its owner.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self, Box<dyn Error>> {
        let path = std::env::temp_dir().join(format!("tine-startup-{}", std::process::id()));
        fs::create_dir_all(&path)?;
        fs::write(path.join("config.toml"), CONFIG)?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A service that was just started, ended when it is dropped.
struct Service {
    child: Child,
    log: BufReader<ChildStderr>,
    started: Instant,
}

struct Round {
    first_answer: Duration,
    /// Bytes of private memory of each worker.
    workers: Vec<usize>,
}

impl Service {
    fn start(folder: &Folder) -> Result<Self, Box<dyn Error>> {
        let mut program = Command::new(env!("CARGO_BIN_EXE_tine"));
        program.arg("serve").current_dir(&folder.0).stdin(Stdio::null()).stderr(Stdio::piped());
        let started = Instant::now();
        let mut child = program.spawn()?;
        let log = BufReader::new(child.stderr.take().ok_or("standard error is a pipe")?);
        Ok(Self { child, log, started })
    }

    fn measure(mut self) -> Result<Round, Box<dyn Error>> {
        let listening = self.await_log("listening")?;
        let address = listening["listen"].as_str().ok_or("the log names the address")?;
        // The listener is there before any worker is; the connection waits for the first that is ready.
        let mut stream = TcpStream::connect(address)?;
        stream.write_all(&u32::try_from(PING.len())?.to_le_bytes())?;
        stream.write_all(PING)?;
        let mut length = [0; 4];
        stream.read_exact(&mut length)?;
        let mut answer = vec![0; usize::try_from(u32::from_le_bytes(length))?];
        stream.read_exact(&mut answer)?;
        let first_answer = self.started.elapsed();
        drop(stream);

        let mut workers = Vec::new();
        while workers.len() < WORKERS {
            let ready = self.await_log("worker ready")?;
            workers.push(ready["pid"].as_u64().ok_or("the log names the pid")?);
        }
        let workers = workers.into_iter().map(private_memory).collect::<Result<_, _>>()?;
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let ended = self.child.wait()?;
        if !ended.success() {
            return Err(format!("expected the service to end with 0, found {ended}").into());
        }
        Ok(Round { first_answer, workers })
    }

    fn await_log(&mut self, message: &str) -> Result<Value, Box<dyn Error>> {
        loop {
            let mut line = String::new();
            if self.log.read_line(&mut line)? == 0 {
                return Err(format!("the service ended before it said {message:?}").into());
            }
            let line: Value = serde_json::from_str(&line)?;
            if line["message"] == message {
                return Ok(line);
            }
        }
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Bytes that the process shares with no other.
fn private_memory(pid: u64) -> Result<usize, Box<dyn Error>> {
    let mut kilobytes = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?.lines() {
        if line.starts_with("Private_Clean:") || line.starts_with("Private_Dirty:") {
            kilobytes += line.split_whitespace().nth(1).ok_or("a number of kB")?.parse::<usize>()?;
        }
    }
    Ok(kilobytes * 1024)
}
