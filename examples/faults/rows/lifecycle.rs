//! Workers that are recycled, more and fewer of them, the end of the service, and the end of its supervisor.

use std::collections::HashSet;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::Load;
use crate::support::load::content::{Verdict, Work};
use crate::support::load::group::Group;
use crate::support::load::speech::{Found, Framing, Speech};
use crate::support::proc::{self, wait_until};
use crate::support::service::{PATIENCE, Service};

pub const RECYCLE: Row = Row {
    name: "recycle",
    fault: "a worker over `max_requests` or `max_memory`",
    promise: "recycled by letting go, never two at once: no failed call",
    parts: &[
        Part { name: "max_requests", run: |extent| recycle(extent, "max_requests = 20000", CLIENTS) },
        Part { name: "max_memory", run: |extent| recycle(extent, "max_memory = \"64MiB\"", LEAKING) },
    ],
};

pub const SCALE: Row = Row {
    name: "scale",
    fault: "TTIN and TTOU under load",
    promise: "no failed call; connections spread: the busiest worker has at most max(1.3 × mean, mean + 1) within 2 s",
    parts: &[Part { name: "ttin-ttou", run: scale }],
};

pub const SUPERVISOR: Row = Row {
    name: "supervisor",
    fault: "the supervisor killed by SIGKILL",
    promise: "listeners close, running calls are answered, nothing is left behind",
    parts: &[Part { name: "sigkill", run: supervisor }],
};

pub const STOP: Row = Row {
    name: "stop",
    fault: "stop (TERM) under load",
    promise: "every call that had arrived is answered; it ends as soon as the last is",
    parts: &[
        Part { name: "term", run: |extent| stop(extent, "") },
        Part { name: "pre_stop", run: |extent| stop(extent, "pre_stop = \"500ms\"") },
    ],
};

const CLIENTS: Group = Group::new("clients", 32).in_any_framing();

const LEAKING: Group = Group::new("leaking", 8)
    .work(Work::Fixed { method: "leak", params: r#"{"bytes":1000000}"#, result: Some("null") })
    .pace(Duration::from_millis(40));

fn recycle(extent: Extent, limit: &str, group: Group) -> Result<Judge, BoxError> {
    let processes = 3;
    let service = Service::start(processes, &format!("[recycle]\n{limit}"))?;
    let mut judge = Judge::default();
    let first = service.workers();
    let load = Load::start(service.address(), &[group, Group { name: "sleepers", ..SLEEPERS }])?;
    let until = Instant::now() + extent.seconds(30, 6);
    let mut most = 0;
    while Instant::now() < until {
        most = most.max(service.workers().len());
        std::thread::sleep(Duration::from_millis(5));
    }
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.without_errors(&tallies);
    let replaced = first.iter().filter(|pid| !proc::is_alive(**pid)).count();
    judge.at_least("of the first workers recycled", replaced, if extent.is_short() { 1 } else { processes });
    judge.at_most("workers at any time", most, processes + 1);
    judge.heard(&service);
    Ok(judge)
}

const SLEEPERS: Group = Group::new("sleepers", 10)
    .in_any_framing()
    .work(Work::Fixed { method: "sleep", params: r#"{"ms":10}"#, result: Some("null") })
    .pace(Duration::from_millis(10));

fn scale(extent: Extent) -> Result<Judge, BoxError> {
    let service = Service::start(2, "")?;
    let mut judge = Judge::default();
    let load = Load::start(service.address(), &[Group::new("clients", 60), SLEEPERS])?;
    judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
    std::thread::sleep(Duration::from_millis(500));
    let mut count = 2;
    let mut worst: (f64, String) = (0.0, String::new());
    for _ in 0..extent.count(10, 1) {
        for (signal, to) in
            [(Signal::SIGTTIN, 3), (Signal::SIGTTIN, 4), (Signal::SIGTTOU, 3), (Signal::SIGTTOU, 2)]
        {
            service.signal(signal);
            judge.holds("the number of workers follows", service.await_workers(to));
            count = to;
            std::thread::sleep(Duration::from_secs(2));
            let spread = connections(&service);
            let (sum, most) = (spread.iter().sum::<usize>(), spread.iter().max().copied().unwrap_or(0));
            #[expect(clippy::cast_precision_loss, reason = "some connections")]
            let (mean, most) = (sum as f64 / count as f64, most as f64);
            let over = most - (1.3 * mean).max(mean + 1.0);
            if over > worst.0 || worst.1.is_empty() {
                worst = (over, format!("{spread:?} connections over {count} workers"));
            }
        }
    }
    let tallies = load.finish(PATIENCE)?;
    judge.unharmed(&tallies);
    judge.without_errors(&tallies);
    judge.tell(format!("least even: {}", worst.1));
    judge.holds("the busiest worker has at most max(1.3 × mean, mean + 1) connections", worst.0 <= 0.0);
    judge.holds("as many workers as asked for", service.await_workers(count));
    judge.heard(&service);
    Ok(judge)
}

/// How many of the service's connections each worker holds.
fn connections(service: &Service) -> Vec<usize> {
    let port = format!(":{:04X} ", service.address().port());
    let table = fs::read_to_string("/proc/net/tcp").unwrap_or_default();
    // Columns: number, local address, remote address, state (01 is established), …, inode.
    let inodes: HashSet<String> = table
        .lines()
        .filter(|line| {
            line.split_whitespace().nth(1).is_some_and(|local| format!("{local} ").ends_with(&port))
        })
        .filter(|line| line.split_whitespace().nth(3) == Some("01"))
        .filter_map(|line| Some(format!("socket:[{}]", line.split_whitespace().nth(9)?)))
        .collect();
    let held = |pid: i32| {
        let open = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        let links = open.filter_map(|entry| fs::read_link(entry.path()).ok());
        links.filter(|link| inodes.contains(&*link.to_string_lossy())).count()
    };
    service.workers().into_iter().map(held).collect()
}

/// A plain connection that has sent calls and will read answers.
struct Sent {
    stream: TcpStream,
    speech: Speech,
    messages: u64,
    client: u64,
}

/// What came back on a connection up to its end.
struct Came {
    right: u64,
    /// The last answer said that it was that, where there is a way to say so.
    is_polite: bool,
    /// Why it is not all that was asked for.
    why: String,
}

const WORK: Work = Work::Mixed { bytes: 40, every: 4, ms: 20 };

impl Sent {
    /// `client` says what it speaks, too.
    fn new(service: &Service, client: u64, messages: u64) -> Result<Self, BoxError> {
        let mut stream = TcpStream::connect(service.address())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let speech = Speech::ALL[usize::try_from(client)? % Speech::ALL.len()];
        let mut bytes = Vec::new();
        (0..messages).for_each(|message| speech.write_message(&mut bytes, WORK, client, message));
        stream.write_all(&bytes)?;
        Ok(Self { stream, speech, messages, client })
    }

    fn calls(&self) -> u64 {
        self.messages * self.speech.calls()
    }

    /// Reads to the end; how many of its calls were answered rightly.
    fn right_answers(&mut self) -> Came {
        let mut bytes = Vec::new();
        let end =
            self.stream.read_to_end(&mut bytes).err().map(|error| error.to_string()).unwrap_or_default();
        let (mut at, mut right, mut goodbyes, mut scratch) = (0, 0, 0, Vec::new());
        let mut unanswered: Vec<u64> = (0..self.messages).collect();
        let mut why = String::new();
        while why.is_empty() {
            let Found { body, end, status, is_goodbye } = match self.speech.find_answer(&bytes[at..], 0) {
                Ok(Some(found)) => found,
                Ok(None) => break,
                Err(strange) => {
                    why = strange;
                    break;
                }
            };
            let answer = &bytes[at + body.start..at + body.end];
            if goodbyes > 0 {
                "an answer behind the one that was to be the last".clone_into(&mut why);
            }
            goodbyes += u64::from(is_goodbye);
            let message = if self.speech.is_ordered() {
                unanswered.first().copied()
            } else {
                self.speech.message_of(answer)
            };
            let Some(place) = unanswered.iter().position(|waiting| Some(*waiting) == message) else {
                why = format!("an answer to no call: {}", String::from_utf8_lossy(answer));
                break;
            };
            let message = unanswered.remove(place);
            for verdict in self.speech.judge(&mut scratch, (answer, status), WORK, (self.client, message)) {
                match verdict {
                    Verdict::Right => right += 1,
                    other => why = format!("message {message}: {other:?}"),
                }
            }
            at += end;
        }
        let (speech, left_over) = (self.speech.name(), bytes.len() - at);
        let is_polite = goodbyes == u64::from(self.speech.framing == Framing::Http);
        Came {
            right,
            is_polite,
            why: format!("{speech}, {goodbyes} goodbyes, {left_over} bytes left over, {} {why}", end.trim()),
        }
    }
}

fn stop(extent: Extent, pre_stop: &str) -> Result<Judge, BoxError> {
    let mut judge = Judge::default();
    let (mut expected, mut answered, mut slowest) = (0, 0, Duration::ZERO);
    let rounds = extent.count(20, 3);
    for _ in 0..rounds {
        let mut service = Service::start(2, &format!("[timeouts]\n{pre_stop}"))?;
        let load = Load::start(service.address(), &[Group::new("others", 32).in_any_framing()])?;
        judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
        let mut sent: Vec<Sent> =
            (0..20).map(|client| Sent::new(&service, 1_000_000 + client, 40)).collect::<Result<_, _>>()?;
        // One that has sent its call and was perhaps not even accepted yet.
        sent.extend(
            (0..20)
                .map(|client| Sent::new(&service, 2_000_000 + client, 1))
                .collect::<Result<Vec<_>, _>>()?,
        );
        service.signal(Signal::SIGTERM);
        if !pre_stop.is_empty() {
            std::thread::sleep(Duration::from_millis(100));
            judge.holds("connects are taken during pre_stop", TcpStream::connect(service.address()).is_ok());
        }
        for wire in &mut sent {
            let Came { right, is_polite, why } = wire.right_answers();
            expected += wire.calls();
            answered += right;
            // What was answered before anybody stopped, a single call perhaps, says nothing of an end.
            let says_goodbye = is_polite || wire.messages == 1 || !pre_stop.is_empty();
            if right != wire.calls() || !says_goodbye {
                judge.failures.push(format!("expected {} answers, found {right}: {why}", wire.calls()));
            }
        }
        let last = Instant::now();
        let code = service.await_end(PATIENCE).and_then(|ended| ended.code());
        slowest = slowest.max(last.elapsed());
        judge.holds("it ends with exit code 0", code == Some(0));
        let tallies = load.finish(Duration::from_millis(100))?;
        judge.holds("no answer is wrong", tallies.iter().all(|tally| tally.wrong + tally.anonymous == 0));
        judge.heard(&service);
        if !judge.failures.is_empty() {
            break;
        }
    }
    judge.tell(format!("{rounds} times, {answered} of {expected} calls answered"));
    judge.within("from the last answer to the end", slowest, Duration::from_millis(500));
    Ok(judge)
}

fn supervisor(extent: Extent) -> Result<Judge, BoxError> {
    let mut judge = Judge::default();
    let rounds = extent.count(20, 3);
    let (mut answered, mut expected, mut slowest) = (0, 0, Duration::ZERO);
    for _ in 0..rounds {
        let mut service = Service::start(2, "")?;
        let load = Load::start(service.address(), &[Group::new("others", 32).in_any_framing()])?;
        judge.holds("every client gets a first answer", load.await_begun(PATIENCE));
        let family = service.processes();
        let mut sent: Vec<Sent> =
            (0..20).map(|client| Sent::new(&service, 1_000_000 + client, 4)).collect::<Result<_, _>>()?;
        // Until the calls run: what has begun is finished, whatever happens to the supervisor.
        std::thread::sleep(Duration::from_millis(200));
        let late = Sent::new(&service, 3_000_000, 4)?;
        sent.push(late);
        std::thread::sleep(Duration::from_millis(10));
        service.signal(Signal::SIGKILL);
        let at = Instant::now();
        let _ = service.await_end(PATIENCE);
        for wire in &mut sent {
            expected += wire.calls();
            answered += wire.right_answers().right;
        }
        let gone = wait_until(Duration::from_secs(10), || !family.iter().any(|pid| proc::is_alive(*pid)));
        slowest = slowest.max(at.elapsed());
        judge.holds("nothing is left behind", gone);
        judge.holds("the port is free", TcpStream::connect(service.address()).is_err());
        let tallies = load.finish(Duration::from_millis(100))?;
        judge.holds("no answer is wrong", tallies.iter().all(|tally| tally.wrong + tally.anonymous == 0));
        judge.heard(&service);
    }
    judge.tell(format!("{rounds} times, {answered} of {expected} calls answered"));
    judge.holds("running calls are answered", answered == expected);
    judge.within("all gone after", slowest, Duration::from_secs(2));
    Ok(judge)
}
