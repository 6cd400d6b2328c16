//! The methods every server has: `ping`, `echo`, `tine.methods` and `tine.worker`.
//!
//! All are raw: `ping` and `echo` send back what they get, and the others take no notice of it, as some clients
//! always send `{}` or `[]`.

use serde::Serialize;

use super::context::Call;
use super::registry::Handler;

/// The name of the method that lists all methods.
pub(super) const METHODS: &str = "tine.methods";

/// Name, reply and handler of each, except [`METHODS`], which has to know the others.
pub(super) fn handlers() -> [(&'static str, &'static str, Handler); 3] {
    [
        ("ping", "pong", mirror()),
        ("echo", "echo", mirror()),
        (
            "tine.worker",
            "tine.worker",
            Handler::raw(|call, _params, reply| reply.value(&WorkerAnswer::of(call))),
        ),
    ]
}

/// The handler that lists these names, sorted.
pub(super) fn list_of<'a>(names: impl Iterator<Item = &'a str>) -> Handler {
    let mut names: Vec<String> = names.map(str::to_owned).collect();
    names.sort();
    names.dedup();
    Handler::raw(move |_call, _params, reply| reply.value(&names))
}

pub(crate) fn is_builtin(name: &str) -> bool {
    matches!(name, "ping" | "echo" | "tine.worker" | METHODS)
}

/// Sends the params back as they came.
fn mirror() -> Handler {
    Handler::raw(|_call, params, reply| {
        reply.raw(params);
        Ok(())
    })
}

#[derive(Serialize)]
struct WorkerAnswer {
    slot: usize,
    pid: u32,
    generation: u64,
    thread: usize,
    uptime_ms: u128,
}

impl WorkerAnswer {
    fn of(call: &Call<'_>) -> WorkerAnswer {
        let worker = call.worker();
        WorkerAnswer {
            slot: worker.slot(),
            pid: worker.pid(),
            generation: worker.generation(),
            thread: call.thread(),
            uptime_ms: worker.started().elapsed().as_millis(),
        }
    }
}
