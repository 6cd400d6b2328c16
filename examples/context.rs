//! What a server can do around its calls: load once, keep state in each worker, know its caller, notice that nobody
//! waits any more.
//!
//! ```text
//! cargo run --example context -- serve
//! cargo run --example context -- call who
//! ```
//!
//! Each worker keeps a file in the folder that `CONTEXT_FOLDER` names, or in the system's temporary one.

#![allow(clippy::unnecessary_wraps)] // handlers have one shape, whether they can fail or not

use std::cell::Cell;
use std::collections::hash_map::RandomState;
use std::fs::File;
use std::hash::BuildHasher;
use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use serde::Serialize;
use tine::{BoxError, Call, Error, Server, WorkerInfo};

fn main() -> ExitCode {
    Server::new()
        .preload(load)
        .state(|_worker| Ok(Answered::default()))
        .state(open_notes)
        .on_worker_start(|worker| {
            tracing::info!(slot = worker.slot(), pid = worker.pid(), "a worker starts");
            Ok(())
        })
        .on_thread_start(|worker, thread| {
            THREAD.set(Some(thread));
            tracing::info!(slot = worker.slot(), thread, "a thread starts");
            Ok(())
        })
        .on_worker_stop(|worker| tracing::info!(slot = worker.slot(), pid = worker.pid(), "a worker stops"))
        .method("who", who)
        .method("loaded", loaded)
        .method("note", note)
        .method("wait", wait)
        .run()
}

/// Loaded once and shared: the memory of it is in every worker, and is copied only where one writes to it.
#[derive(Debug, Serialize)]
struct Loaded {
    by_pid: u32,
    number: u64,
}

static LOADED: OnceLock<Loaded> = OnceLock::new();

fn load() -> Result<(), BoxError> {
    let loaded = Loaded { by_pid: std::process::id(), number: RandomState::new().hash_one("a large table") };
    LOADED.set(loaded).map_err(|_| "loaded twice".into())
}

fn loaded(_call: &Call<'_>, (): ()) -> Result<&'static Loaded, Error> {
    LOADED.get().ok_or_else(|| Error::new(1, "nothing was loaded"))
}

/// How many calls of `who` this worker has answered.
#[derive(Debug, Default)]
struct Answered(AtomicU64);

thread_local! {
    /// What the hook left on this thread.
    static THREAD: Cell<Option<usize>> = const { Cell::new(None) };
}

#[derive(Debug, Serialize)]
struct Who {
    method: String,
    peer: String,
    id: Option<String>,
    slot: usize,
    pid: u32,
    thread: usize,
    thread_by_hook: Option<usize>,
    /// Of the two, one is counted from now and one is a moment.
    remaining_ms: u128,
    deadline_in_ms: u128,
    is_cancelled: bool,
    nth_here: u64,
    has_other_state: bool,
}

/// Everything that a handler is told about its call.
fn who(call: &Call<'_>, (): ()) -> Result<Who, Error> {
    Ok(Who {
        method: call.method().to_owned(),
        peer: call.peer().to_string(),
        id: call.id().map(|id| id.get().to_owned()),
        slot: call.slot(),
        pid: call.worker().pid(),
        thread: call.thread(),
        thread_by_hook: THREAD.get(),
        remaining_ms: call.remaining().as_millis(),
        deadline_in_ms: call.deadline().saturating_duration_since(std::time::Instant::now()).as_millis(),
        is_cancelled: call.is_cancelled(),
        nth_here: call.state::<Answered>().0.fetch_add(1, Ordering::Relaxed) + 1,
        has_other_state: call.try_state::<String>().is_some(),
    })
}

/// A file of this worker's own: opened before the fork, all workers would write at one position.
#[derive(Debug)]
struct Notes {
    file: Mutex<File>,
    path: PathBuf,
}

fn open_notes(worker: &WorkerInfo) -> Result<Notes, BoxError> {
    let folder = std::env::var_os("CONTEXT_FOLDER").map_or_else(std::env::temp_dir, PathBuf::from);
    let path = folder.join(format!("notes-{}.txt", worker.slot()));
    let file = File::options().create(true).append(true).open(&path);
    let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
    Ok(Notes { file: Mutex::new(file), path })
}

/// Writes a line down; the answer is where.
fn note(call: &Call<'_>, line: String) -> Result<PathBuf, Error> {
    let notes = call.state::<Notes>();
    let mut file = notes.file.lock().map_err(|_| Error::new(1, "an earlier note failed half-way"))?;
    writeln!(file, "{line}").map_err(|error| Error::new(2, error.to_string()))?;
    Ok(notes.path.clone())
}

/// Works until nobody waits for it any more, as long work should that looks now and then.
fn wait(call: &Call<'_>, (): ()) -> Result<(), Error> {
    tracing::info!(slot = call.slot(), "begins to wait");
    while !call.is_cancelled() {
        thread::sleep(Duration::from_millis(1));
    }
    let remaining_ms = u64::try_from(call.remaining().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(remaining_ms, "nobody waits any more");
    Ok(())
}
