//! What the user's program gave the server, complete and checked: methods, states and hooks.
//!
//! Made by the public builder; the template calls [`Service::preload`] before it forks, the worker the rest. When to
//! call which is their business, and so is what becomes of an error.

use std::any::Any;
use std::error::Error as StdError;
use std::fmt;

use super::about::About;
use super::context::{States, WorkerInfo};
use super::guard;
use super::registry::Registry;

/// Why a [state](crate::Server::state) or hook failed: any error, or a text turned into one by `?` or `.into()`.
pub type BoxError = Box<dyn StdError + Send + Sync>;

pub(crate) type StateMaker =
    dyn Fn(&WorkerInfo) -> Result<Box<dyn Any + Send + Sync>, BoxError> + Send + Sync;
pub(crate) type Preload = dyn Fn() -> Result<(), BoxError> + Send + Sync;
pub(crate) type WorkerHook = dyn Fn(&WorkerInfo) -> Result<(), BoxError> + Send + Sync;
pub(crate) type StopHook = dyn Fn(&WorkerInfo) + Send + Sync;
pub(crate) type ThreadHook = dyn Fn(&WorkerInfo, usize) -> Result<(), BoxError> + Send + Sync;

/// The closures, in the order they were registered; that is the order they run in.
#[derive(Default)]
pub(crate) struct Hooks {
    pub(crate) preload: Vec<Box<Preload>>,
    /// With the name of each state's type.
    pub(crate) states: Vec<(&'static str, Box<StateMaker>)>,
    pub(crate) worker_start: Vec<Box<WorkerHook>>,
    pub(crate) worker_stop: Vec<Box<StopHook>>,
    pub(crate) thread_start: Vec<Box<ThreadHook>>,
}

/// All that the user's program gave the server.
pub(crate) struct Service {
    registry: Registry,
    hooks: Hooks,
}

impl Service {
    pub(crate) fn new(registry: Registry, hooks: Hooks) -> Service {
        Service { registry, hooks }
    }

    pub(crate) fn registry(&self) -> &Registry {
        &self.registry
    }

    /// The service's name and version.
    pub(crate) fn about(&self) -> &About {
        self.registry.about()
    }

    /// The methods' names, in the order of their numbers.
    pub(crate) fn method_names(&self) -> Vec<String> {
        self.registry.names().map(str::to_owned).collect()
    }

    /// In the template, once, before any fork. The error says what failed and why.
    pub(crate) fn preload(&self) -> Result<(), String> {
        run_all(&self.hooks.preload, "preload", |hook| hook())
    }

    /// In the worker, after the fork.
    pub(crate) fn make_states(&self, worker: &WorkerInfo) -> Result<States, String> {
        let mut states = States::default();
        for (name, make) in &self.hooks.states {
            match hook(&format!("state `{name}`"), || make(worker)) {
                Ok(state) => states.insert(state),
                Err(reason) => {
                    // What they do when they are dropped must not come between the reason and whoever is told.
                    std::mem::forget(states);
                    return Err(reason);
                }
            }
        }
        Ok(states)
    }

    /// In the worker, after its states are made and before it takes calls.
    pub(crate) fn worker_start(&self, worker: &WorkerInfo) -> Result<(), String> {
        run_all(&self.hooks.worker_start, "on_worker_start", |hook| hook(worker))
    }

    /// In the worker, when its last call is answered.
    pub(crate) fn worker_stop(&self, worker: &WorkerInfo) {
        for stop in &self.hooks.worker_stop {
            // The panic hook has told of it, and the others have their turn.
            let _ = guard::guarded(|| stop(worker));
        }
    }

    /// On each thread that runs handlers, before its first call.
    pub(crate) fn thread_start(&self, worker: &WorkerInfo, thread: usize) -> Result<(), String> {
        run_all(&self.hooks.thread_start, "on_thread_start", |hook| hook(worker, thread))
    }
}

fn run_all<H: ?Sized>(
    hooks: &[Box<H>],
    name: &str,
    run: impl Fn(&H) -> Result<(), BoxError>,
) -> Result<(), String> {
    hooks.iter().try_for_each(|each| hook(name, || run(each)))
}

/// Runs a closure of the program's. The error says which it was and what is wrong. A panic that went on from here would take the
/// process apart, its channel to the supervisor first, before anybody was told why.
fn hook<T>(name: &str, run: impl FnOnce() -> Result<T, BoxError>) -> Result<T, String> {
    match guard::guarded(|| run().map_err(guard::told)) {
        Ok(done) => done.map_err(|reason| format!("{name}: {reason}")),
        Err(panicked) => Err(format!("{name} {panicked}")),
    }
}

impl fmt::Debug for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Service").field("methods", &self.registry).finish_non_exhaustive()
    }
}
