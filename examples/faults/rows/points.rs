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
use crate::support::plain::{Plain, framed};
use crate::support::proc::{self, wait_until};
use crate::support::service::{Service, program};

pub const ROW: Row = Row {
    name: "points",
    fault: "a worker killed at every single store of a call's way, an adopter at every step of adopting",
    promise: "the same as for any `kill -9`, at each point",
    parts: &[
        Part { name: "ordered", run: |extent| path(extent, Shape { ids: false, half_closed: false }) },
        Part { name: "out-of-order", run: |extent| path(extent, Shape { ids: true, half_closed: false }) },
        Part { name: "half-closed", run: |extent| path(extent, Shape { ids: false, half_closed: true }) },
        Part { name: "adopter", run: adopter },
    ],
};

/// Calls sent with the one that arms.
#[derive(Debug, Clone, Copy)]
struct Shape {
    ids: bool,
    half_closed: bool,
}

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
    let (mut deaths, mut step) = (0, 1);
    loop {
        let mut wire = Plain::connect(service.address())?;
        let pid = wire.worker()?;
        std::thread::sleep(KEPT);
        if let Err(why) = one_death(&mut wire, shape, step) {
            judge.failures.push(format!("step {step}: {why}"));
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
    judge.heard(&service);
    Ok(judge)
}

fn one_death(wire: &mut Plain, shape: Shape, step: u64) -> Result<(), String> {
    let text = "x".repeat(20_000);
    let calls = [
        ("arm", json!({ "kind": "path", "steps": step })),
        ("echo", json!("a")),
        ("echo", json!("b")),
        ("sleep", json!({ "ms": 1 })),
        ("echo", json!(text)),
        ("ping", json!("c")),
        ("spin", json!({ "us": 10 })),
    ];
    let mut bytes = Vec::new();
    for (id, (method, params)) in calls.iter().enumerate() {
        let mut call = json!({ "in": method, "params": params });
        if shape.ids {
            call["id"] = json!(id);
        }
        bytes.extend(framed(&call));
    }
    wire.send(&bytes).map_err(|error| format!("sending: {error}"))?;
    if shape.half_closed {
        wire.finish_sending().map_err(|error| format!("FIN: {error}"))?;
    }
    let mut missing: Vec<usize> = (0..calls.len()).collect();
    let mut crashed = 0;
    while !missing.is_empty() {
        let answer =
            wire.receive_value().map_err(|error| format!("{} answers missing: {error}", missing.len()))?;
        let call = if shape.ids {
            answer["id"].as_u64().map(|id| usize::try_from(id).unwrap_or(0))
        } else {
            missing.first().copied()
        };
        let place = missing.iter().position(|missing| Some(*missing) == call);
        let call = missing.remove(place.ok_or_else(|| format!("an answer to no call: {answer}"))?);
        let (method, params) = &calls[call];
        if is_crash(&answer, method) {
            crashed += 1;
        } else if !is_right(&answer, method, params) {
            return Err(format!("call {call} ({method}) is answered {}", cut(&answer)));
        }
    }
    let most = if shape.ids { 3 } else { 1 };
    if crashed > most {
        return Err(format!("expected at most {most} calls to have run, found {crashed} answered -32002"));
    }
    if shape.half_closed && wire.receive().is_ok() {
        return Err("an answer too many".into());
    }
    if !shape.half_closed {
        let again = wire.call("echo", &json!("again")).map_err(|error| format!("afterwards: {error}"))?;
        if !is_right(&again, "echo", &json!("again")) && !is_crash(&again, "echo") {
            return Err(format!("afterwards: {}", cut(&again)));
        }
    }
    Ok(())
}

fn is_crash(answer: &Value, method: &str) -> bool {
    let data = &answer["result"]["data"];
    answer["out"] == "error"
        && answer["result"]["code"] == -32002
        && data["cause"] == "SIGKILL"
        && data["method"] == method
}

fn is_right(answer: &Value, method: &str, params: &Value) -> bool {
    match method {
        "echo" => answer["out"] == "echo" && answer["result"] == *params,
        "ping" => answer["out"] == "pong" && answer["result"] == *params,
        _ => answer["out"] == method && answer["result"].is_null(),
    }
}

fn cut(answer: &Value) -> String {
    answer.to_string().chars().take(300).collect()
}

fn adopter(extent: Extent) -> Result<Judge, BoxError> {
    let service = start()?;
    let mut judge = Judge::default();
    let every = if extent.is_short() { 7 } else { 1 };
    let (mut deaths, mut step) = (0, 1);
    while step <= MOST && judge.failures.len() < 5 {
        let mut wires = Vec::new();
        // Both workers have some; there is nothing else to do, so this takes a few.
        while wires.len() < 100 {
            let mut wire = Plain::connect(service.address())?;
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
        armed.call("arm", &json!({ "kind": "adopt", "steps": step }))?;
        // What the three have in hand: nothing; a call that runs; one that runs and two that wait.
        let mut expected = Vec::new();
        for (index, (_, wire)) in wires.iter_mut().enumerate().filter(|(_, (pid, _))| *pid == victim) {
            let calls: &[(&str, Value)] = match index % 3 {
                0 => &[],
                1 => &[("sleep", json!({ "ms": 300 }))],
                _ => &[("sleep", json!({ "ms": 300 })), ("echo", json!("x")), ("sleep", json!({ "ms": 1 }))],
            };
            for (method, params) in calls {
                wire.send(&framed(&json!({ "in": method, "params": params })))?;
            }
            expected.push((index, calls.to_vec()));
        }
        std::thread::sleep(Duration::from_millis(50));
        proc::signal(victim, Signal::SIGKILL);
        for (index, calls) in expected {
            if let Err(why) = answers_of(&mut wires[index].1, &calls) {
                judge.failures.push(format!("step {step}, {} calls in hand: {why}", calls.len()));
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

fn answers_of(wire: &mut Plain, calls: &[(&str, Value)]) -> Result<(), String> {
    for (number, (method, params)) in calls.iter().enumerate() {
        let answer = wire.receive_value().map_err(|error| format!("answer {number}: {error}"))?;
        let is_expected = is_right(&answer, method, params) || (number == 0 && is_crash(&answer, method));
        if !is_expected {
            return Err(format!("call {number} ({method}) is answered {}", cut(&answer)));
        }
    }
    let again = wire.call("echo", &json!("again")).map_err(|error| format!("afterwards: {error}"))?;
    if is_right(&again, "echo", &json!("again")) {
        Ok(())
    } else {
        Err(format!("afterwards: {}", cut(&again)))
    }
}
