//! A worker that dies at every single step of a call's way, and an adopter that dies at every step of adopting.
//!
//! The steps exist in builds with debug assertions alone, so this starts a debug build of `rig`.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::speech::{Framing, Saying, Speech};
use crate::support::plain::{Asked, Plain, Told};
use crate::support::proc::{self, wait_until};
use crate::support::service::{Service, program};

pub const ROW: Row = Row {
    name: "points",
    fault: "a worker killed at every single store of a call's way, an adopter at every step of adopting",
    promise: "the same as for any `kill -9`, at each point",
    parts: &[
        Part { name: "ordered", run: |extent| path(extent, ORDERED) },
        Part { name: "out-of-order", run: |extent| path(extent, speaking(Framing::Length, WITH_IDS)) },
        Part { name: "half-closed", run: |extent| path(extent, Shape { half_closed: true, ..ORDERED }) },
        Part { name: "http", run: |extent| path(extent, speaking(Framing::Http, Saying::JsonRpc)) },
        Part { name: "http-bare", run: |extent| path(extent, HALF_CLOSED_HTTP) },
        Part { name: "stream", run: |extent| path(extent, speaking(Framing::Stream, Saying::JsonRpc)) },
        Part { name: "header", run: |extent| path(extent, speaking(Framing::Header, Saying::JsonRpc)) },
        Part { name: "batch", run: |extent| path(extent, speaking(Framing::Length, BATCH)) },
        Part { name: "http-batch", run: |extent| path(extent, speaking(Framing::Http, BATCH)) },
        Part { name: "adopter", run: adopter },
    ],
};

/// How the calls are sent, of which the first arms.
#[derive(Debug, Clone, Copy)]
struct Shape {
    speech: Speech,
    half_closed: bool,
}

const fn speaking(framing: Framing, saying: Saying) -> Shape {
    Shape { speech: Speech::new(framing, saying), half_closed: false }
}

const ORDERED: Shape = speaking(Framing::Length, Saying::Native { ids: false });

const HALF_CLOSED_HTTP: Shape = Shape { half_closed: true, ..speaking(Framing::Http, Saying::Bare) };

const WITH_IDS: Saying = Saying::Native { ids: true };

/// As many as there are.
const BATCH: Saying = Saying::Batch { calls: u64::MAX };

const CONFIG: &str = "threads = 2\n[timeouts]\nkeep_after = \"10ms\"\n[restart]\nmax_restarts = 0\nbackoff = \"10ms\"\n\
                      backoff_max = \"20ms\"\n[quarantine]\ncrashes = 0";

/// Until a connection is surely kept.
const KEPT: Duration = Duration::from_millis(100);

/// More steps than any way has.
const MOST: u64 = 500;

fn start() -> Result<Service, BoxError> {
    Service::start_with(Command::new(debug_rig()?), 2, CONFIG)
}

fn debug_rig() -> Result<PathBuf, BoxError> {
    if cfg!(debug_assertions) {
        return program("rig");
    }
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut build = Command::new(cargo);
    build.args(["build", "--quiet", "--example", "rig"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let built = build.output()?;
    if !built.status.success() {
        let why = String::from_utf8_lossy(&built.stderr).into_owned();
        return Err(
            format!("expected a debug build of rig, `cargo build --example rig` failed: {why}").into()
        );
    }
    let release = program("rig")?;
    let target = release.ancestors().nth(3).ok_or("cargo builds into a folder for each profile")?;
    Ok(target.join("debug").join("examples").join("rig"))
}

fn path(extent: Extent, shape: Shape) -> Result<Judge, BoxError> {
    let service = start()?;
    let mut judge = Judge::default();
    let every = if extent.is_short() { 7 } else { 1 };
    let (mut deaths, mut step, mut cut, mut lost) = (0, 1, 0, 0);
    loop {
        let mut wire = Plain::connect(service.address(), shape.speech)?;
        let pid = wire.worker()?;
        std::thread::sleep(KEPT);
        match one_death(&mut wire, shape, step) {
            Ok(failed) => {
                cut += usize::from(failed > 0 && failed < CALLS);
                lost += failed;
            }
            Err(why) => judge.failures.push(format!("step {step}: {why}")),
        }
        // Dead after the last answer, or in what follows it.
        let died = wait_until(Duration::from_millis(100), || !proc::is_alive(pid));
        if !died || step > MOST || judge.failures.len() > 5 {
            // Armed still, for a step that never came.
            proc::signal(pid, Signal::SIGKILL);
            break;
        }
        deaths += 1;
        step += every;
        if !service.await_workers(2) {
            judge.failures.push(format!("step {step}: both workers are back: they are not"));
            break;
        }
    }
    judge.at_least("steps at which a worker died", deaths, 1);
    judge.tell(format!("{lost} failed calls"));
    if shape.speech.calls() > 1 {
        // What was finished of a batch is not lost with the rest. A few of all steps may not be at such a moment.
        judge.at_least("deaths in the middle of a batch", cut, usize::from(!extent.is_short()));
    }
    judge.heard(&service);
    Ok(judge)
}

/// Calls of a round.
const CALLS: usize = 7;

/// How many were answered by -32002.
fn one_death(wire: &mut Plain, shape: Shape, step: u64) -> Result<usize, String> {
    let text = "x".repeat(20_000);
    let calls: [Asked<'_>; CALLS] = [
        ("arm", json!({ "kind": "path", "steps": step })),
        ("echo", json!(["a"])),
        ("echo", json!(["b"])),
        ("sleep", json!({ "ms": 1 })),
        ("echo", json!([text])),
        ("ping", json!(["c"])),
        ("spin", json!({ "us": 10 })),
    ];
    wire.send(&calls).map_err(|error| format!("sending: {error}"))?;
    if shape.half_closed {
        wire.finish_sending().map_err(|error| format!("FIN: {error}"))?;
    }
    let crashed = receive_all(wire, &calls)?;
    // Those of a batch are answered together, so it is lost with all of them that are not finished.
    let most = match shape.speech {
        Speech { saying: Saying::Batch { .. }, .. } => CALLS,
        speech if speech.is_ordered() => 1,
        _ => 3,
    };
    if crashed.len() > most {
        return Err(format!("expected at most {most} calls to have run, found {crashed:?} answered -32002"));
    }
    if shape.half_closed && wire.receive().is_ok() {
        return Err("an answer too many".into());
    }
    if !shape.half_closed {
        let again = ("echo", json!(["again"]));
        wire.send(std::slice::from_ref(&again)).map_err(|error| format!("afterwards: {error}"))?;
        receive_all(wire, &[again]).map_err(|error| format!("afterwards: {error}"))?;
    }
    Ok(crashed.len())
}

/// Receives the answer to each of the calls, which must be its own. Returns which of them failed with their worker.
fn receive_all(wire: &mut Plain, calls: &[Asked<'_>]) -> Result<Vec<usize>, String> {
    let has_ids = !matches!(wire.speech().saying, Saying::Native { ids: false } | Saying::Bare);
    let mut missing: Vec<usize> = (0..calls.len()).collect();
    let mut crashed = Vec::new();
    while !missing.is_empty() {
        let told = wire.receive().map_err(|error| format!("{} answers missing: {error}", missing.len()))?;
        for Told { id, outcome } in told {
            let call = match id {
                Some(id) if has_ids => usize::try_from(id).ok(),
                _ if has_ids => None,
                _ => missing.first().copied(),
            };
            let place = missing.iter().position(|missing| Some(*missing) == call);
            let place = place.ok_or_else(|| format!("an answer to no call: {id:?} {}", cut(&outcome)))?;
            let call = missing.remove(place);
            let (method, params) = &calls[call];
            match &outcome {
                Err(error) if is_crash(error, method) => crashed.push(call),
                Ok(result) if is_right(result, method, params) => {}
                _ => return Err(format!("call {call} ({method}) is answered {}", cut(&outcome))),
            }
        }
        if wire.speech().calls() > 1 && !missing.is_empty() {
            return Err(format!("a batch is answered without {missing:?}"));
        }
    }
    Ok(crashed)
}

fn is_crash(error: &Value, method: &str) -> bool {
    error["code"] == -32002 && error["data"]["cause"] == "SIGKILL" && error["data"]["method"] == method
}

fn is_right(result: &Value, method: &str, params: &Value) -> bool {
    match method {
        "echo" | "ping" => result == params,
        _ => result.is_null(),
    }
}

fn cut(outcome: &Result<Value, Value>) -> String {
    format!("{outcome:?}").chars().take(300).collect()
}

fn adopter(extent: Extent) -> Result<Judge, BoxError> {
    let service = start()?;
    let mut judge = Judge::default();
    let every = if extent.is_short() { 7 } else { 1 };
    let (mut deaths, mut step) = (0, 1);
    // Which speech has what in hand is another one each time.
    let mut speeches = Speech::ALL.iter().copied().cycle();
    while step <= MOST && judge.failures.len() < 5 {
        let mut wires: Vec<(i32, Plain)> = Vec::new();
        // Both workers have some; there is nothing else to do, so this takes a few.
        while wires.len() < 100 {
            let speech = speeches.next().unwrap_or(Speech::PLAIN[0]);
            let mut wire = Plain::connect(service.address(), speech)?;
            wires.push((wire.worker()?, wire));
            let first = wires[0].0;
            if wires.iter().filter(|(pid, _)| *pid == first).count() >= 3
                && wires.iter().any(|(pid, _)| *pid != first)
            {
                break;
            }
        }
        std::thread::sleep(KEPT);
        let victim = wires[0].0;
        let Some((adopter, armed)) = wires.iter_mut().find(|(pid, _)| *pid != victim) else {
            judge.failures.push("expected connections to two workers, found one that has them all".into());
            break;
        };
        let adopter = *adopter;
        let is_armed = armed.call("arm", json!({ "kind": "adopt", "steps": step }))?.is_ok();
        judge.holds("the adopter is armed", is_armed);
        // What the three have in hand: nothing; a call that runs; one that runs and two that wait.
        let mut expected = Vec::new();
        let of_victim = wires.iter_mut().enumerate().filter(|(_, (pid, _))| *pid == victim);
        for (nth, (index, (_, wire))) in of_victim.enumerate() {
            let sleep = ("sleep", json!({ "ms": 300 }));
            let calls: Vec<Asked<'_>> = match nth % 3 {
                0 => vec![],
                1 => vec![sleep],
                _ => vec![sleep, ("echo", json!(["x"])), ("sleep", json!({ "ms": 1 }))],
            };
            wire.send(&calls)?;
            expected.push((index, calls));
        }
        std::thread::sleep(Duration::from_millis(50));
        proc::signal(victim, Signal::SIGKILL);
        for (index, calls) in expected {
            let wire = &mut wires[index].1;
            if let Err(why) = answers_of(wire, &calls) {
                let speech = wire.speech().name();
                judge.failures.push(format!("step {step}, {speech}, {} calls in hand: {why}", calls.len()));
            }
        }
        let died = wait_until(Duration::from_millis(100), || !proc::is_alive(adopter));
        if !died {
            break;
        }
        deaths += 1;
        step += every;
        if !service.await_workers(2) {
            judge.failures.push(format!("step {step}: both workers are back: they are not"));
            break;
        }
    }
    judge.at_least("steps at which an adopter died", deaths, 1);
    judge.heard(&service);
    Ok(judge)
}

fn answers_of(wire: &mut Plain, calls: &[Asked<'_>]) -> Result<(), String> {
    let crashed = receive_all(wire, calls)?;
    // All of a batch that is not finished goes with it.
    if wire.speech().calls() == 1 && crashed.iter().any(|call| *call > 0) {
        return Err(format!("calls that had not begun failed: {crashed:?}"));
    }
    match wire.call("echo", json!(["again"])).map_err(|error| format!("afterwards: {error}"))? {
        Ok(result) if result == json!(["again"]) => Ok(()),
        other => Err(format!("afterwards: {}", cut(&other))),
    }
}
