//! `wrk` as the load of an HTTP server: a load that others know, and that is not ours.

use std::fs;
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tine::BoxError;

use super::drive::{self, Lengths, Run, Shape};
use super::http::Http;
use super::machine::{Look, Shares};
use super::process::{Owned, cpu_time};
use super::service::Folder;

/// It ends when it is told to; this is for when nobody tells it.
const LONGEST: &str = "60s";

/// `POST /` of one JSON text, again and again, on so many connections.
#[derive(Debug)]
pub struct Wrk {
    folder: Folder,
    connections: usize,
    /// The same calls for a load that checks the answers.
    checked: Http,
}

/// What its script has it print, a number in each line.
const FIELDS: usize = 5;

impl Wrk {
    /// None, and a note, where it is not installed.
    pub fn post(json: &str, answer: &str, connections: usize) -> Result<Option<Self>, BoxError> {
        let found = Command::new("wrk").arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status();
        if found.is_err() {
            eprintln!("wrk is not installed (apt: wrk): left out");
            return Ok(None);
        }
        let folder = Folder::new()?;
        // Without a function `request` it writes the request once; `done` runs when all is over.
        let script = format!(
            "wrk.method = 'POST'\nwrk.body = '{json}'\nwrk.headers['Content-Type'] = 'application/json'\n\
             function done(summary, latency)\n\
             \x20 local e = summary.errors\n\
             \x20 local failed = e.connect + e.read + e.write + e.status + e.timeout\n\
             \x20 io.write(string.format('\\nRESULT\\n%f\\n%f\\n%f\\n%f\\n%f\\n', failed, summary.requests * 1e6 / summary.duration,\n\
             \x20   latency:percentile(50), latency:percentile(99), latency:percentile(99.9)))\n\
             end\n"
        );
        fs::write(folder.path().join("post.lua"), script)?;
        Ok(Some(Self { folder, connections, checked: Http::post(json, answer) }))
    }

    /// Runs against the server at `to`, whose processes are `pids`.
    ///
    /// It looks at the status of an answer alone, so the warm-up is a load that looks at all of it.
    pub fn run(&self, to: &str, pids: &[i32], lengths: Lengths) -> Result<Run, BoxError> {
        let warm_up = Lengths { warm_up: Duration::ZERO, measured: lengths.warm_up, ..lengths };
        drive::run(to, pids, Shape::single(self.connections), warm_up, &self.checked)?;

        let mut command = Command::new("wrk");
        command.args([
            "--threads",
            "1",
            "--connections",
            &self.connections.to_string(),
            "--duration",
            LONGEST,
        ]);
        command.arg("--script").arg(self.folder.path().join("post.lua")).arg(format!("http://{to}/"));
        let look = Look::now(pids)?;
        let started = Instant::now();
        let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut wrk = Owned { child };
        thread::sleep(lengths.measured);
        let load_share = cpu_time(wrk.pid())?.as_secs_f64() / started.elapsed().as_secs_f64();
        let Shares { server: server_share, others } = look.shares()?;
        // It stops and reports.
        kill(Pid::from_raw(wrk.pid()), Signal::SIGINT)?;
        let mut said = String::new();
        wrk.child.stdout.take().ok_or("standard output is a pipe")?.read_to_string(&mut said)?;
        let [failed, rate, p50, p99, p999] = parse(&said).ok_or_else(|| format!("wrk said:\n{said}"))?;
        if failed > 0.0 || rate <= 0.0 {
            return Err(format!("expected right answers alone from {to}, wrk said:\n{said}").into());
        }
        let time = |microseconds: f64| Duration::from_secs_f64(microseconds / 1e6);
        let (p50, p99, p999) = (time(p50), time(p99), time(p999));
        Ok(Run { rate, p50, p99, p999, server_share, load_share, others })
    }
}

fn parse(said: &str) -> Option<[f64; FIELDS]> {
    let (_, result) = said.split_once("RESULT\n")?;
    let numbers: Vec<f64> = result.lines().map_while(|line| line.parse().ok()).collect();
    numbers.try_into().ok()
}
