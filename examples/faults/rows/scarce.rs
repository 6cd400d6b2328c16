//! The machine is out of something: descriptors, processes, room for the log.

use std::fs;
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::group::Group;
use crate::support::load::speech::Speech;
use crate::support::plain::Plain;
use crate::support::proc::{self, wait_until};
use crate::support::service::{Folder, PATIENCE, Service, program};

pub const ROW: Row = Row {
    name: "scarce",
    fault: "EMFILE, ENOMEM on fork, ETOOMANYREFS, a full disk or a full pipe under the log, the clock set back",
    promise: "stays up, says so once, recovers by itself",
    parts: &[
        Part { name: "emfile", run: emfile },
        Part { name: "supervisor-emfile", run: supervisor_emfile },
        Part { name: "fork-refused", run: fork_refused },
        Part { name: "too-many-references", run: too_many_references },
        Part { name: "log-disk-full", run: log_disk_full },
        Part { name: "log-pipe-full", run: log_pipe_full },
        Part { name: "clock-set-back", run: clock },
    ],
};

const CLIENTS: Group = Group::new("clients", 32).in_any_framing().pace(Duration::from_millis(2));

/// Sets how many descriptors a process may have open; what it was.
fn limit_descriptors(pid: i32, soft: u64) -> Result<u64, BoxError> {
    let pid = Pid::from_raw(pid).ok_or("a pid is no 0")?;
    let now = rustix::process::prlimit(
        Some(pid),
        Resource::Nofile,
        Rlimit { current: Some(soft), maximum: Some(HARD) },
    );
    match now {
        Ok(before) => Ok(before.current.unwrap_or(HARD)),
        Err(_) => {
            // Who may not name the hard limit leaves it as it is.
            let before = prlimit(Some(pid), Resource::Nofile, Rlimit { current: Some(soft), maximum: None })?;
            Ok(before.current.unwrap_or(HARD))
        }
    }
}

const HARD: u64 = 20_000;

fn emfile(extent: Extent) -> Result<Judge, BoxError> {
    let service = Service::start(2, "")?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[CLIENTS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(Duration::from_millis(300));
    let mark = service.mark();
    let mut before = Vec::new();
    for pid in service.workers() {
        before.push((pid, limit_descriptors(pid, proc::descriptors(pid) as u64 + 4)?));
    }
    // More than fit: those that don't wait in the backlog, and get their answer when others have gone.
    let more = Load::start(
        service.address(),
        &[Group::new("more", 100).in_any_framing().pace(Duration::from_millis(20))],
    )?;
    std::thread::sleep(extent.seconds(5, 2));
    let still = load.right();
    std::thread::sleep(Duration::from_millis(300));
    judge.holds("clients that are there go on", load.right() > still);
    for (pid, limit) in before {
        limit_descriptors(pid, limit)?;
    }
    judge.holds("those who waited are served once there is room", more.await_begun(PATIENCE));
    let tallies = [load.finish(PATIENCE)?, more.finish(PATIENCE)?].concat();
    judge.unharmed(&tallies);
    judge.without_errors(&tallies);
    let said = service.count_log(mark, "WARN") + service.count_log(mark, "ERROR");
    judge.tell(format!("{said} warnings"));
    judge.holds("it says so, and not again and again", (1..=8).contains(&said));
    judge.heard(&service);
    Ok(judge)
}

fn supervisor_emfile(extent: Extent) -> Result<Judge, BoxError> {
    let service =
        Service::start(2, "[restart]\nmax_restarts = 0\nbackoff = \"50ms\"\nbackoff_max = \"100ms\"")?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[CLIENTS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(Duration::from_millis(300));
    let mark = service.mark();
    let before = limit_descriptors(service.pid(), proc::descriptors(service.pid()) as u64)?;
    // It can keep none of these, nor start a worker.
    let more = Load::start(
        service.address(),
        &[Group::new("more", 32).in_any_framing().pace(Duration::from_millis(5))],
    )?;
    judge.holds("new clients are served", more.await_begun(PATIENCE));
    std::thread::sleep(extent.seconds(3, 1));
    let tallies = more.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.without_errors(&tallies);
    limit_descriptors(service.pid(), before)?;
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.without_errors(&tallies);
    let said = service.count_log(mark, "WARN") + service.count_log(mark, "ERROR");
    judge.tell(format!("{said} warnings"));
    judge.holds("it says so, and not again and again", (1..=4).contains(&said));
    service.workers().iter().take(1).for_each(|pid| proc::signal(*pid, Signal::SIGKILL));
    judge.holds("afterwards a worker can be replaced", service.await_workers(2));
    judge.heard(&service);
    Ok(judge)
}

/// A cgroup of our own that bounds the number of processes; removed with its owner.
struct Bound(PathBuf);

impl Bound {
    fn new() -> Option<Self> {
        let root = ["/sys/fs/cgroup/pids", "/sys/fs/cgroup"]
            .into_iter()
            .map(Path::new)
            .find(|root| root.join("cgroup.procs").exists())?;
        let own = root.join(format!("tine-faults-{}", std::process::id()));
        fs::create_dir(&own).ok()?;
        let bound = Self(own);
        bound.0.join("pids.max").exists().then_some(bound)
    }

    fn take(&self, pid: i32) -> std::io::Result<()> {
        fs::write(self.0.join("cgroup.procs"), pid.to_string())
    }

    fn at(&self, most: &str) -> std::io::Result<()> {
        fs::write(self.0.join("pids.max"), most)
    }

    fn now(&self) -> String {
        fs::read_to_string(self.0.join("pids.current")).unwrap_or_default().trim().to_owned()
    }
}

impl Drop for Bound {
    fn drop(&mut self) {
        wait_until(Duration::from_secs(5), || fs::remove_dir(&self.0).is_ok());
    }
}

fn fork_refused(extent: Extent) -> Result<Judge, BoxError> {
    let Some(bound) = Bound::new() else {
        return Ok(Judge::impossible("it takes a cgroup of one's own that bounds processes (pids.max)"));
    };
    let service = Service::start(2, "[restart]\nbackoff = \"50ms\"\nbackoff_max = \"200ms\"")?;
    let mut judge = Judge::default();
    for pid in service.processes() {
        bound.take(pid)?;
    }
    let load = Load::start(service.address(), &[CLIENTS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(Duration::from_millis(500));
    let mark = service.mark();
    // No more threads or processes than there are; a worker's end makes some room, but it is taken at once.
    bound.at("1")?;
    judge.tell(format!("{} tasks at most 1", bound.now()));
    service.workers().iter().take(1).for_each(|pid| proc::signal(*pid, Signal::SIGKILL));
    std::thread::sleep(extent.seconds(5, 2));
    let still = load.right();
    std::thread::sleep(Duration::from_millis(300));
    judge.holds("clients are served by the other worker", load.right() > still);
    let said = service.count_log(mark, "can't be forked");
    bound.at("max")?;
    judge.holds("it recovers by itself", service.await_workers(2));
    judge.holds("it says that it has", service.await_log(mark, "workers can be forked again").is_some());
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.only_errors(&tallies, |failure| failure.code == -32002);
    judge.tell(format!("{said} warnings of it"));
    judge.holds("it says so once", said == 1);
    judge.heard(&service);
    drop(service);
    Ok(judge)
}

#[expect(clippy::unnecessary_wraps, reason = "all parts have one shape")]
fn too_many_references(_extent: Extent) -> Result<Judge, BoxError> {
    Ok(Judge::impossible(
        "the kernel refuses descriptors in flight (ETOOMANYREFS) to no process with CAP_SYS_RESOURCE or CAP_SYS_ADMIN, \
         and bounds others only beyond their own limit of open ones",
    ))
}

/// A service whose log goes somewhere else; it is ended when this goes.
struct Elsewhere {
    child: Child,
    address: std::net::SocketAddr,
    _folder: Folder,
}

impl Elsewhere {
    fn start(stderr: Stdio) -> Result<Self, BoxError> {
        // The log can't tell the port, so it is one that was free a moment ago.
        let address = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let folder = Folder::new()?;
        fs::write(
            folder.path().join("config.toml"),
            format!("listen = [\"{address}\"]\nprocesses = 2\n[log]\nlevel = \"debug\"\n"),
        )?;
        let mut command = Command::new(program("rig")?);
        command
            .arg("serve")
            .current_dir(folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(stderr);
        let service = Self { child: command.spawn()?, address, _folder: folder };
        if wait_until(PATIENCE, || TcpStream::connect(address).is_ok() && service.workers().len() == 2) {
            Ok(service)
        } else {
            Err("expected a service that listens, found none".into())
        }
    }

    fn workers(&self) -> Vec<i32> {
        let children = proc::children(self.child.id().cast_signed());
        children.into_iter().filter(|pid| proc::name(*pid) == "tine-worker").collect()
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        proc::signal(self.child.id().cast_signed(), Signal::SIGTERM);
        let ended = wait_until(Duration::from_secs(10), || matches!(self.child.try_wait(), Ok(Some(_))));
        if !ended {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// Everything that is told is told while clients call: errors of handlers, deaths, restarts.
fn much_to_say(service: &Elsewhere, judge: &mut Judge) -> Result<(), BoxError> {
    let load = Load::start(service.address, &[CLIENTS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    let mut noisy = Plain::connect(service.address, Speech::PLAIN[0])?;
    let words = "m".repeat(2_000);
    for _ in 0..200 {
        noisy.send(&[("fail", json!({ "message": words }))])?;
    }
    for _ in 0..200 {
        noisy.receive()?;
    }
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..3 {
        service.workers().iter().take(1).for_each(|pid| proc::signal(*pid, Signal::SIGKILL));
        judge.holds("workers come back", wait_until(PATIENCE, || service.workers().len() == 2));
        std::thread::sleep(Duration::from_millis(400));
    }
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.only_errors(&tallies, |failure| failure.code == -32002);
    Ok(())
}

fn log_disk_full(_extent: Extent) -> Result<Judge, BoxError> {
    let full = fs::OpenOptions::new().write(true).open("/dev/full");
    let Ok(full) = full else { return Ok(Judge::impossible("there is no /dev/full")) };
    let service = Elsewhere::start(full.into())?;
    let mut judge = Judge::default();
    much_to_say(&service, &mut judge)?;
    Ok(judge)
}

fn log_pipe_full(_extent: Extent) -> Result<Judge, BoxError> {
    let (reader, writer) = std::io::pipe()?;
    let mut service = Elsewhere::start(writer.into())?;
    let mut judge = Judge::default();
    // Nobody reads: 64 KiB fit, and 400 KB are said.
    much_to_say(&service, &mut judge)?;
    let reader = std::thread::spawn(move || std::io::read_to_string(reader));
    std::thread::sleep(Duration::from_millis(200));
    service.workers().iter().take(1).for_each(|pid| proc::signal(*pid, Signal::SIGKILL));
    judge.holds("workers come back", wait_until(PATIENCE, || service.workers().len() == 2));
    proc::signal(service.child.id().cast_signed(), Signal::SIGTERM);
    let _ = service.child.wait();
    let log = reader.join().map_err(|_| "the reader panicked")??;
    let tells = log.lines().filter(|line| line.contains("dropped")).count();
    judge.tell(format!("{} lines got through", log.lines().count()));
    judge.holds("the log says that lines were dropped", tells > 0);
    Ok(judge)
}

#[expect(clippy::unnecessary_wraps, reason = "all parts have one shape")]
fn clock(_extent: Extent) -> Result<Judge, BoxError> {
    Ok(Judge::impossible(
        "the clock is the machine's, and setting it would harm others; every time that is kept is monotonic",
    ))
}
