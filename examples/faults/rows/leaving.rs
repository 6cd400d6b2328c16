//! Workers that leave while calls wait behind busy threads: what nobody has begun is run by another worker, once.

use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tine::BoxError;

use super::{Part, Row};
use crate::Extent;
use crate::judge::Judge;
use crate::support::load::speech::Speech;
use crate::support::plain::{Asked, Plain};
use crate::support::proc;
use crate::support::service::Service;

pub const ROW: Row = Row {
    name: "leaving",
    fault: "a worker that is told to end, reloaded, recycled or replaced as wedged while calls wait behind its busy threads",
    promise: "what was not begun runs elsewhere, once, whatever `drain` is; only what ran too long gets -32002 `drained`",
    parts: &[
        Part { name: "term", run: |extent| Ok(leaving(extent, &TERM)) },
        Part { name: "reload", run: |extent| Ok(leaving(extent, &RELOAD)) },
        Part { name: "max_requests", run: |extent| Ok(leaving(extent, &MAX_REQUESTS)) },
        Part { name: "wedged", run: |extent| Ok(leaving(extent, &WEDGED)) },
    ],
};

const PROCESSES: usize = 2;

const THREADS: usize = 2;

const CLIENTS: usize = 40;

/// Until every worker has its share of the connections.
const SPREAD: Duration = Duration::from_secs(1);

/// For how long its threads are busy.
const BUSY: Duration = Duration::from_secs(3);

/// Until a worker has read what it was sent.
const READ: Duration = Duration::from_millis(100);

/// How soon another worker has answered what waited: a boot, and where it takes a reload, a second of probation.
const SOON: Duration = Duration::from_secs(2);

/// Calls of a worker after which it is recycled, in that part.
const MOST_REQUESTS: usize = 100;

/// A way for a worker to leave.
struct Way {
    config: &'static str,
    /// What keeps its threads busy.
    busy: fn() -> Asked<'static>,
    /// Makes that worker leave. The connection is one to it.
    leave: fn(&Service, i32, &mut Plain) -> Result<(), BoxError>,
}

const TERM: Way = Way {
    config: "",
    busy: sleep,
    leave: |_, worker, _| {
        proc::signal(worker, Signal::SIGTERM);
        Ok(())
    },
};

const RELOAD: Way = Way {
    config: "",
    busy: sleep,
    leave: |service, _, _| {
        service.signal(Signal::SIGHUP);
        Ok(())
    },
};

const MAX_REQUESTS: Way = Way {
    config: "[recycle]\nmax_requests = 100\njitter = 0.0",
    busy: sleep,
    leave: |_, _, wire| {
        // Whoever answers: when it leaves the rest of these goes to another worker.
        for nth in 0..=MOST_REQUESTS {
            if nth == MOST_REQUESTS {
                // It counts now and then, when there is something to do.
                std::thread::sleep(READ);
            }
            match wire.call("ping", json!([nth]))? {
                Ok(result) if result == json!([nth]) => {}
                other => return Err(format!("ping: expected [{nth}], found {other:?}").into()),
            }
        }
        Ok(())
    },
};

const WEDGED: Way = Way {
    config: "[methods.hang]\ntimeout = \"100ms\"",
    busy: || ("hang", json!([])),
    // It has begun to when its threads did not come back.
    leave: |_, _, _| Ok(()),
};

fn sleep() -> Asked<'static> {
    ("sleep", json!([BUSY.as_millis()]))
}

fn leaving(extent: Extent, way: &Way) -> Judge {
    let mut judge = Judge::default();
    let (mut waited, mut longest) = (0, Duration::ZERO);
    for drain in ["30s", "0s"] {
        for round in 0..extent.count(5, 1) {
            match one_leaves(&mut judge, way, drain) {
                Ok((calls, soon)) => (waited, longest) = (waited + calls, longest.max(soon)),
                Err(why) => judge.failures.push(format!("drain {drain}, round {round}: {why}")),
            }
        }
    }
    judge.tell(format!("{waited} calls waited"));
    judge.within("answered after", longest, SOON);
    judge
}

/// How many calls waited, and how long it took at most until those of the worker that left were answered.
fn one_leaves(judge: &mut Judge, way: &Way, drain: &str) -> Result<(usize, Duration), BoxError> {
    let config = format!(
        "threads = {THREADS}\n[limits]\nqueue_wait = \"60s\"\n[timeouts]\ndrain = \"{drain}\"\nstuck = \"300ms\"\n\
         [quarantine]\ncrashes = 0\n{}",
        way.config
    );
    let mut service = Service::start(PROCESSES, &config)?;
    let mut unasked = Vec::new();
    for speech in Speech::ALL.iter().cycle().take(CLIENTS) {
        unasked.push(Plain::connect(service.address(), *speech)?);
    }
    std::thread::sleep(SPREAD);
    let mut wires = Vec::new();
    for mut wire in unasked {
        wires.push((wire.worker()?, wire));
    }
    let victim = wires[0].0;
    // Nobody is idle who could take calls over before it leaves.
    let mut busy = Vec::new();
    for worker in service.workers() {
        for _ in 0..THREADS {
            let place = wires.iter().rposition(|(pid, _)| *pid == worker);
            let (_, mut wire) = wires.remove(place.ok_or("a worker has connections")?);
            wire.send(&[(way.busy)()])?;
            busy.push((worker, wire));
        }
    }
    // What makes the victim leave must not wait for its threads itself.
    let place = wires.iter().rposition(|(pid, wire)| *pid == victim && !wire.speech().may_need_thread());
    let (_, mut other) = wires.remove(place.ok_or("the victim has connections whose calls need no thread")?);
    std::thread::sleep(READ);
    let mut waiting = 0;
    for (_, wire) in &mut wires {
        let calls = calls_of(wire.speech());
        wire.send(&calls)?;
        waiting += calls.len();
    }
    std::thread::sleep(READ);
    let left = Instant::now();
    (way.leave)(&service, victim, &mut other)?;
    // First those of the worker that leaves, so that the others, who wait for as long as theirs is busy, delay nobody.
    wires.sort_by_key(|(pid, _)| *pid != victim);
    let mut soon = Duration::ZERO;
    for (pid, wire) in &mut wires {
        all_counted(wire)?;
        if *pid == victim {
            soon = soon.max(left.elapsed());
        }
    }
    for (worker, wire) in &mut busy {
        begun_ends_well(wire, (way.busy)().0, drain == "0s")
            .map_err(|why| format!("busy in {worker}: {why}"))?;
    }
    judge.holds("as many workers as before", service.await_workers(PROCESSES));
    judge.holds("it stops", service.stop() == Some(0));
    let ran = service.await_served("count");
    judge.holds(&format!("each of {waiting} calls ran once, found {ran:?}"), ran == Some(waiting as u64));
    judge.heard(&service);
    Ok((waiting, soon))
}

/// Calls whose number is told by the service at its end.
fn calls_of(speech: Speech) -> Vec<Asked<'static>> {
    let count = || ("count", json!({ "of": "waiting", "add": 1 }));
    (0..speech.calls()).map(|_| count()).collect()
}

fn all_counted(wire: &mut Plain) -> Result<(), BoxError> {
    let mut missing = wire.speech().calls();
    while missing > 0 {
        for told in wire.receive().map_err(|error| format!("{}: {error}", wire.speech().name()))? {
            match told.outcome {
                Ok(Value::Number(_)) => missing -= 1,
                other => {
                    let name = wire.speech().name();
                    return Err(format!("{name}: expected that count is run, found {other:?}").into());
                }
            }
        }
    }
    Ok(())
}

/// What had been begun is answered rightly, or told that its time was up.
fn begun_ends_well(wire: &mut Plain, method: &str, may_be_drained: bool) -> Result<(), BoxError> {
    for told in wire.receive()? {
        let is_well = match (&told.outcome, method) {
            (Ok(Value::Null), "sleep") => true,
            (Err(error), "hang") => error["code"] == -32001 || error["code"] == -32002,
            (Err(error), _) => may_be_drained && error["data"]["cause"] == "drained",
            _ => false,
        };
        if !is_well {
            return Err(format!("{method} was begun: {:?}", told.outcome).into());
        }
    }
    Ok(())
}
