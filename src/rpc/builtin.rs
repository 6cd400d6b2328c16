//! The methods every server has: `ping`, `echo`, `rpc.discover`, `tine.methods` and `tine.worker`.
//!
//! All are raw: `ping` and `echo` send back what they get, and the others take no notice of it, as some clients
//! always send `{}` or `[]`.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::value::RawValue;

use super::context::Call;
use super::discover::Description;
use super::registry::Handler;

/// The name of the method that lists all methods.
pub(super) const METHODS: &str = "tine.methods";

/// The name of the method that describes all methods.
pub(super) const DISCOVER: &str = "rpc.discover";

/// Name, reply and handler of each, except [`METHODS`] and [`DISCOVER`], which have to know the others.
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

/// The handler that answers this document.
pub(super) fn discover(document: Box<RawValue>) -> Handler {
    Handler::raw(move |_call, _params, reply| {
        reply.raw(&document);
        Ok(())
    })
}

/// What `rpc.discover` says of each of them.
pub(super) fn descriptions() -> [(&'static str, Description); 5] {
    [
        ("ping", Description::new("Answers with its params, as they came")),
        ("echo", Description::new("Answers with its params, as they came")),
        (
            "tine.worker",
            Description::new("Tells which worker runs the call").params::<()>().result::<WorkerAnswer>(),
        ),
        (METHODS, Description::new("Lists the names of all methods").params::<()>().result::<Vec<String>>()),
        (DISCOVER, Description::new("Describes all methods as an OpenRPC document").params::<()>()),
    ]
}

pub(crate) fn is_builtin(name: &str) -> bool {
    matches!(name, "ping" | "echo" | "tine.worker" | METHODS | DISCOVER)
}

/// Sends the params back as they came.
fn mirror() -> Handler {
    Handler::raw(|_call, params, reply| {
        reply.raw(params);
        Ok(())
    })
}

#[derive(Serialize, JsonSchema)]
struct WorkerAnswer {
    slot: usize,
    pid: u32,
    generation: u64,
    thread: usize,
    uptime_ms: u64,
}

impl WorkerAnswer {
    fn of(call: &Call<'_>) -> WorkerAnswer {
        let worker = call.worker();
        WorkerAnswer {
            slot: worker.slot(),
            pid: worker.pid(),
            generation: worker.generation(),
            thread: call.thread(),
            uptime_ms: worker.started().elapsed().as_millis().try_into().unwrap_or(u64::MAX),
        }
    }
}
