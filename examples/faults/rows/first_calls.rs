//! Workers that die in their first calls, one after another, beside a caller who connects anew for every call.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::speech::Speech;
use crate::support::memory_group::MemoryGroup;
use crate::support::plain::Plain;
use crate::support::proc::{self, wait_until};
use crate::support::service::{PATIENCE, Service};
use crate::support::stalls::Stalls;

pub const ROW: Row = Row {
    name: "first-calls",
    fault: "workers that die in their first calls, on connections that have just come, again and again",
    promise: "who made such a call gets -32002 with the cause; a caller on fresh connections is answered within 100 ms, save where \
              a worker is killed, or ends by `_exit`, between accepting his connection and having it kept",
    parts: &[
        Part { name: "kill-9", run: |extent| deaths(extent, &killed()) },
        Part { name: "memory-limit", run: memory_limit },
        Part { name: "segv", run: |extent| deaths(extent, &crash("segv", "SIGSEGV")) },
        Part { name: "abort", run: |extent| deaths(extent, &crash("abort", "SIGABRT")) },
        Part { name: "exit", run: |extent| deaths(extent, &crash("exit", "exit 3")) },
        Part { name: "vanish", run: |extent| deaths(extent, &unseen("vanish", "exit 3")) },
        Part { name: "stack", run: |extent| deaths(extent, &crash("stack", "SIGSEGV")) },
        Part { name: "oom", run: |extent| deaths(extent, &unseen("oom", "SIGKILL")) },
    ],
};

/// Everything else is as it is by default. A method that takes every worker down would be refused after the third.
const CONFIG: &str = "[quarantine]\ncrashes = 0";

const PROCESSES: usize = 2;

/// What a call may take while others take workers down.
const PROMPT: Duration = Duration::from_millis(100);

/// Between two calls of the caller whom nobody may harm.
const PAUSE: Duration = Duration::from_millis(1);

/// A call that its worker does not survive.
struct Deadly {
    method: &'static str,
    params: Value,
    /// What its caller is told that the worker died of.
    cause: &'static str,
    /// What is done to the service meanwhile.
    meanwhile: fn(&Service) -> bool,
    /// Of so many deaths one may end a connection unanswered: who dies between accepting it and having it kept takes it along,
    /// where no handler of a signal sees that.
    may_end_one_in: Option<usize>,
}

/// From outside, while it is in the call.
fn killed() -> Deadly {
    Deadly { meanwhile: kill_the_stopped, ..unseen("stop", "SIGKILL") }
}

/// No handler of a signal sees it.
fn unseen(how: &str, cause: &'static str) -> Deadly {
    Deadly { may_end_one_in: Some(20), ..crash(how, cause) }
}

fn crash(how: &str, cause: &'static str) -> Deadly {
    Deadly {
        method: "crash",
        params: json!({ "how": how, "code": 3 }),
        cause,
        meanwhile: |_| true,
        may_end_one_in: None,
    }
}

/// Kills the worker whose call has stopped it, as soon as it has.
fn kill_the_stopped(service: &Service) -> bool {
    wait_until(PATIENCE, || {
        let stopped = service.workers().into_iter().find(|pid| proc::is_stopped(*pid));
        stopped.inspect(|pid| proc::signal(*pid, Signal::SIGKILL)).is_some()
    })
}

fn deaths(extent: Extent, deadly: &Deadly) -> Result<Judge, BoxError> {
    let service = Service::start(PROCESSES, CONFIG)?;
    die(extent, &service, deadly)
}

/// The kernel kills who uses too much of what all processes of the service may use together, and then, now and then, another
/// worker too. Everybody who needs memory waits meanwhile, also between accepting a connection and having it kept.
fn memory_limit(extent: Extent) -> Result<Judge, BoxError> {
    let group = match MemoryGroup::new(192 << 20) {
        Ok(group) => group,
        Err(why) => return Ok(Judge::impossible(why)),
    };
    let service = Service::start(PROCESSES, CONFIG)?;
    group.take(&service.processes())?;
    let params = json!({ "bytes": 400 << 20 });
    let judge = die(
        extent,
        &service,
        &Deadly { method: "leak", params, may_end_one_in: Some(3), ..crash("", "SIGKILL") },
    );
    drop(service);
    judge
}

fn die(extent: Extent, service: &Service, deadly: &Deadly) -> Result<Judge, BoxError> {
    let mut judge = Judge::default();
    let (mark, deaths) = (service.mark(), extent.count(100, 10));
    let stalls = Stalls::watch();
    let is_over = AtomicBool::new(false);
    let (others, told) = std::thread::scope(|scope| {
        let others = scope.spawn(|| call_until(service, &is_over));
        let told = die_so_often(service, deadly, deaths);
        is_over.store(true, Ordering::SeqCst);
        (joined(others), told)
    });
    let (others, stalled) = (others?, stalls.longest());
    judge.failures.extend(told.err().map(|why| why.to_string()));
    judge.failures.extend(others.wrong);
    judge.tell(format!("{} calls beside it, {} failed with their worker", others.answered, others.failed));
    judge.at_most(
        "ended unanswered",
        others.ended,
        deadly.may_end_one_in.map_or(0, |one_in| deaths.div_ceil(one_in)),
    );
    // The log has told of every death by then.
    judge.holds("all workers are back", service.await_workers(PROCESSES));
    judge.at_least("deaths", service.count_log(mark, "worker died"), deaths);
    judge.holds("calls are answered beside it", others.answered > deaths / 4);
    judge.tell(format!("longest stall of the machine {stalled:.1?}"));
    // What the machine did not let anybody do is nobody's fault.
    judge.within("longest call", others.longest, PROMPT + stalled);
    judge.heard(service);
    Ok(judge)
}

/// Makes deadly calls one after another, each as the first of its connection, in one speech after the other.
fn die_so_often(service: &Service, deadly: &Deadly, deaths: usize) -> Result<(), BoxError> {
    for (nth, speech) in (0..deaths).zip(Speech::ALL.iter().cycle()) {
        let mut wire = Plain::connect(service.address(), *speech)?;
        wire.send(&[(deadly.method, deadly.params.clone())])?;
        let what = format!("death {nth}, {}", speech.name());
        if !(deadly.meanwhile)(service) {
            return Err(format!("{what}: expected a worker that is stopped, found none").into());
        }
        let answers = wire.receive().map_err(|error| format!("{what}: {error}"))?;
        for told in answers {
            let error = told.outcome.err().unwrap_or_default();
            if error["code"] != -32002 || error["data"]["cause"] != deadly.cause {
                return Err(
                    format!("{what}: expected -32002 with cause {}, found {error}", deadly.cause).into()
                );
            }
        }
        // And the connection goes on, wherever it is now.
        if let Answered::ByItsEnd(why) = check_call(&mut wire, nth)? {
            return Err(format!("{what}, afterwards: {why}").into());
        }
    }
    Ok(())
}

/// What came of the calls beside it.
#[derive(Debug, Default)]
struct Others {
    answered: usize,
    /// Answered that they ran in a worker that died, which is no wrong answer.
    failed: usize,
    /// Not answered, as the connection ended.
    ended: usize,
    longest: Duration,
    wrong: Vec<String>,
}

/// Calls on fresh connections, in one speech after the other.
fn call_until(service: &Service, is_over: &AtomicBool) -> Others {
    let mut others = Others::default();
    for (nth, speech) in Speech::ALL.iter().cycle().enumerate() {
        if is_over.load(Ordering::SeqCst) || others.wrong.len() > 3 {
            break;
        }
        let begun = Instant::now();
        let called = Plain::connect(service.address(), *speech)
            .map_err(BoxError::from)
            .and_then(|mut wire| check_call(&mut wire, nth));
        others.longest = others.longest.max(begun.elapsed());
        match called {
            Ok(Answered::Rightly) => others.answered += 1,
            Ok(Answered::ThatItsWorkerDied) => others.failed += 1,
            Ok(Answered::ByItsEnd(_)) => others.ended += 1,
            Err(why) => others.wrong.push(format!("call {nth}, {}: {why}", speech.name())),
        }
        std::thread::sleep(PAUSE);
    }
    others
}

enum Answered {
    Rightly,
    /// It ran beside the call that was deadly.
    ThatItsWorkerDied,
    ByItsEnd(String),
}

/// Calls a method of the program's own, whose answer is no other call's.
fn check_call(wire: &mut Plain, nth: usize) -> Result<Answered, BoxError> {
    let of = format!("{nth} ");
    let called = match wire.call("blob", json!({ "bytes": 40, "of": of })) {
        Ok(called) => called,
        Err(why) => return Ok(Answered::ByItsEnd(why.to_string())),
    };
    match called {
        Ok(Value::String(text)) if text.len() == 40 && of.repeat(40).starts_with(&text) => {
            Ok(Answered::Rightly)
        }
        Err(error) if error["code"] == -32002 && error["data"]["method"] == "blob" => {
            Ok(Answered::ThatItsWorkerDied)
        }
        other => Err(format!("expected a text of {of:?}, found {other:?}").into()),
    }
}

fn joined<T>(thread: ScopedJoinHandle<'_, T>) -> Result<T, BoxError> {
    thread.join().map_err(|_| "the caller's thread panicked".into())
}
