//! The public builder: what a program registers before it runs.
//!
//! It only collects. Checked and complete, all of it becomes a `Service`, which template and workers use.

mod local;

use std::any::{TypeId, type_name};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::rpc::{
    About, BoxError, Call, Description, Error, Handler, Hooks, Mistakes, RawJson, RegistryBuilder, Reply,
    Service, WorkerInfo,
};

pub use local::LocalServer;

/// A server to be: methods, each worker's state, and hooks.
///
/// Every closure runs in a forked process, so nothing that doesn't survive a fork should be captured: open
/// connections, threads, locks held. Make those in [`state`](Server::state), which runs in each worker. What is
/// wrong with a registration (a name taken twice, say) is reported when the server is run.
///
/// ```
/// use std::sync::atomic::{AtomicU64, Ordering};
///
/// use serde::Deserialize;
/// use tine::{Error, Server};
///
/// #[derive(Deserialize)]
/// struct Greet {
///     name: String,
/// }
///
/// #[derive(Default)]
/// struct Greeted(AtomicU64);
///
/// let server = Server::new()
///     .state(|_worker| Ok(Greeted::default()))
///     .method("greet", |call, params: Greet| {
///         if params.name.is_empty() {
///             return Err(Error::invalid_params("`name` is empty"));
///         }
///         let nth = call.state::<Greeted>().0.fetch_add(1, Ordering::Relaxed) + 1;
///         Ok(format!("hello {}, you are number {nth} here", params.name))
///     });
///
/// // A program would now run it; a unit test calls its methods in its own process.
/// let local = server.local()?;
/// let answer = local.call("greet", serde_json::json!({"name": "Ada"}))?;
/// assert_eq!(answer, "hello Ada, you are number 1 here");
/// # Ok::<(), tine::BoxError>(())
/// ```
#[derive(Default)]
#[must_use = "a server does nothing until it is run"]
pub struct Server {
    methods: RegistryBuilder,
    state_types: Vec<TypeId>,
    hooks: Hooks,
}

impl Server {
    /// A server with the built-in methods `ping`, `echo`, `rpc.discover`, `tine.methods` and `tine.worker`.
    pub fn new() -> Server {
        Server::default()
    }

    /// Registers a method whose params are decoded into `P` and whose result is encoded from `R`.
    ///
    /// A call without params is taken as one with `null`, so `P` may be `()` or an `Option`; a struct whose members all
    /// have defaults takes it too. An empty array is no params either. A struct is taken by name, from an object, and by
    /// position, from an array with the members in the order of their declaration. What is no `P` and an array of one
    /// element is taken as that element, as many clients know no other way to send one value. Params that are no `P` are answered [`Error::INVALID_PARAMS`], naming the
    /// field and what was expected of it, and the handler isn't run. A handler may block and take as long as it
    /// needs, within the call's [deadline](Call::deadline); if it panics, its caller is answered
    /// [`Error::INTERNAL`].
    ///
    /// Names have 1 to 128 bytes and no control characters; those that start with `tine.` or `rpc.` are reserved,
    /// and the built-in methods can't be replaced.
    ///
    /// ```
    /// let server = tine::Server::new().method("add", |_call, (a, b): (i64, i64)| Ok(a + b));
    /// assert_eq!(server.local()?.call("add", [2, 40])?, 42);
    /// # Ok::<(), tine::BoxError>(())
    /// ```
    pub fn method<P, R, F>(self, name: impl Into<String>, handler: F) -> Server
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(&Call<'_>, P) -> Result<R, Error> + Send + Sync + 'static,
    {
        let name = name.into();
        let reply = name.clone();
        self.method_replying(name, reply, handler)
    }

    /// Registers a method like [`method`](Server::method), whose answers in the native envelope are named `reply`
    /// (`{"out": reply, …}`) instead of after the method.
    ///
    /// `reply` has 1 to 128 bytes and is not `error`, which is the name of all error answers.
    pub fn method_replying<P, R, F>(
        mut self,
        name: impl Into<String>,
        reply: impl Into<String>,
        handler: F,
    ) -> Server
    where
        P: DeserializeOwned,
        R: Serialize,
        F: Fn(&Call<'_>, P) -> Result<R, Error> + Send + Sync + 'static,
    {
        self.methods.add(name.into(), reply.into(), Handler::typed(handler));
        self
    }

    /// Registers a method that is given its params as JSON text and writes its result into a [`Reply`].
    ///
    /// For params that are passed on rather than understood: digits and escapes stay as they were written. A call
    /// without params has [`RawJson::NULL`]. Names are as for [`method`](Server::method).
    ///
    /// ```
    /// let server = tine::Server::new().raw_method("twice", |_call, params, reply| {
    ///     reply.value(&[params, params])
    /// });
    /// assert_eq!(server.local()?.call("twice", "x")?, serde_json::json!(["x", "x"]));
    /// # Ok::<(), tine::BoxError>(())
    /// ```
    pub fn raw_method<F>(self, name: impl Into<String>, handler: F) -> Server
    where
        F: Fn(&Call<'_>, RawJson<'_>, &mut Reply<'_>) -> Result<(), Error> + Send + Sync + 'static,
    {
        let name = name.into();
        let reply = name.clone();
        self.raw_method_replying(name, reply, handler)
    }

    /// Registers a method like [`raw_method`](Server::raw_method), with answers named as for
    /// [`method_replying`](Server::method_replying).
    pub fn raw_method_replying<F>(
        mut self,
        name: impl Into<String>,
        reply: impl Into<String>,
        handler: F,
    ) -> Server
    where
        F: Fn(&Call<'_>, RawJson<'_>, &mut Reply<'_>) -> Result<(), Error> + Send + Sync + 'static,
    {
        self.methods.add(name.into(), reply.into(), Handler::raw(handler));
        self
    }

    /// Tells the callers of `rpc.discover` what a method is for, what it takes and what it gives. Each method has one
    /// [`Description`] at most; the built-in ones have theirs.
    ///
    /// ```
    /// use tine::Description;
    ///
    /// let server = tine::Server::new()
    ///     .method("add", |_call, (a, b): (i64, i64)| Ok(a + b))
    ///     .describe("add", Description::new("Adds two numbers").params::<(i64, i64)>().result::<i64>());
    /// let document = server.local()?.call("rpc.discover", ())?;
    /// assert_eq!(document["methods"][0]["summary"], "Adds two numbers");
    /// # Ok::<(), tine::BoxError>(())
    /// ```
    pub fn describe(mut self, name: impl Into<String>, description: Description) -> Server {
        self.methods.describe(name.into(), description);
        self
    }

    /// Name and version of the service, for `rpc.discover`, `--version` and the log. Without it the name is that of the program's
    /// file, and there is no version.
    pub fn about(mut self, title: impl Into<String>, version: impl Into<String>) -> Server {
        self.methods.set_about(title.into(), version.into());
        self
    }

    /// Has each worker make a state of its own, after it was forked and before it takes calls.
    ///
    /// Handlers reach it with [`Call::state`], from several threads at once. States are made in the order in which they
    /// were registered, one of a type. If `make` fails, the worker fails to boot, and that is logged and tried again
    /// as configured. Database connections and random number generators belong here: made before the fork,
    /// all workers would share them.
    ///
    /// ```
    /// use std::sync::Mutex;
    ///
    /// let server = tine::Server::new()
    ///     .state(|worker| Ok(Mutex::new(vec![worker.slot()])))
    ///     .method("push", |call, number: usize| {
    ///         let mut numbers = call.state::<Mutex<Vec<usize>>>().lock().map_err(|_| tine::Error::new(1, "poisoned"))?;
    ///         numbers.push(number);
    ///         Ok(numbers.clone())
    ///     });
    /// assert_eq!(server.local()?.call("push", 7)?, serde_json::json!([0, 7]));
    /// # Ok::<(), tine::BoxError>(())
    /// ```
    pub fn state<S, F>(mut self, make: F) -> Server
    where
        S: Send + Sync + 'static,
        F: Fn(&WorkerInfo) -> Result<S, BoxError> + Send + Sync + 'static,
    {
        let name = type_name::<S>();
        if self.state_types.contains(&TypeId::of::<S>()) {
            self.methods.mistake(format!(
                "state `{name}` is registered twice; wrap one of them in a type of its own to tell them apart"
            ));
        }
        self.state_types.push(TypeId::of::<S>());
        self.hooks.states.push((name, Box::new(move |worker| Ok(Box::new(make(worker)?)))));
        self
    }

    /// Runs `hook` once, in the process that all workers are forked from: load what they should share (a model,
    /// a library, a table) into memory here. It must leave no threads behind. If it fails, the server doesn't start.
    pub fn preload<F>(mut self, hook: F) -> Server
    where
        F: Fn() -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.hooks.preload.push(Box::new(hook));
        self
    }

    /// Runs `hook` in each worker, after its states are made and before it takes calls. If it fails, the worker
    /// fails to boot.
    pub fn on_worker_start<F>(mut self, hook: F) -> Server
    where
        F: Fn(&WorkerInfo) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.hooks.worker_start.push(Box::new(hook));
        self
    }

    /// Runs `hook` in each worker that ends in good order, after its last call, on any of its threads. A worker that
    /// crashes or is killed runs no hooks.
    pub fn on_worker_stop<F>(mut self, hook: F) -> Server
    where
        F: Fn(&WorkerInfo) + Send + Sync + 'static,
    {
        self.hooks.worker_stop.push(Box::new(hook));
        self
    }

    /// Runs `hook` on each thread of a worker that may run handlers, before its first call, with the thread's number
    /// within the worker, from 0. There are two more than the `threads` of the configuration: the poller runs quick calls,
    /// and the thread that relieves it when one blocks runs them then. If it fails, the worker fails to boot.
    pub fn on_thread_start<F>(mut self, hook: F) -> Server
    where
        F: Fn(&WorkerInfo, usize) -> Result<(), BoxError> + Send + Sync + 'static,
    {
        self.hooks.thread_start.push(Box::new(hook));
        self
    }

    pub(crate) fn own_name(&self) -> &About {
        self.methods.about()
    }

    /// What template and workers need, or all mistakes that were made.
    pub(crate) fn into_service(self) -> Result<Service, Mistakes> {
        Ok(Service::new(self.methods.build()?, self.hooks))
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};
    use std::time::Instant;

    use super::*;

    fn worker() -> WorkerInfo {
        WorkerInfo::new(1, 2, 3, Instant::now())
    }

    #[test]
    fn mistakes_in_the_chain_are_all_reported_at_its_end() {
        let mistakes = Server::new()
            .method("ping", |_, (): ()| Ok(()))
            .state(|_| Ok(1_u8))
            .state(|_| Ok(2_u8))
            .raw_method("", |_, _, _| Ok(()))
            .into_service()
            .unwrap_err();
        assert_eq!(mistakes.0.len(), 3, "{mistakes}");
        assert!(mistakes.to_string().contains("state `u8` is registered twice"));
    }

    #[test]
    fn hooks_run_in_order_and_know_their_worker() {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let note = |what: &'static str| {
            let seen = Arc::clone(&seen);
            move |detail: String| seen.lock().unwrap().push(format!("{what} {detail}"))
        };
        let (preload, first, second, stop, thread) =
            (note("preload"), note("first"), note("second"), note("stop"), note("thread"));
        let service = Server::new()
            .preload(move || {
                preload(String::new());
                Ok(())
            })
            .on_worker_start(move |worker| {
                first(worker.slot().to_string());
                Ok(())
            })
            .on_worker_start(move |worker| {
                second(worker.generation().to_string());
                Ok(())
            })
            .on_thread_start(move |_, number| {
                thread(number.to_string());
                Ok(())
            })
            .on_worker_stop(move |worker| stop(worker.pid().to_string()))
            .into_service()
            .unwrap();
        service.preload().unwrap();
        service.worker_start(&worker()).unwrap();
        service.thread_start(&worker(), 4).unwrap();
        service.worker_stop(&worker());
        assert_eq!(*seen.lock().unwrap(), ["preload ", "first 1", "second 3", "thread 4", "stop 2"]);
    }

    #[test]
    fn what_fails_says_where_and_why() {
        let service = Server::new()
            .state(|_| -> Result<u16, BoxError> { Err("no database".into()) })
            .preload(|| Err("no model".into()))
            .on_worker_start(|_| Err("no start".into()))
            .on_thread_start(|_, _| Err("no thread".into()))
            .into_service()
            .unwrap();
        assert_eq!(service.preload().unwrap_err(), "preload: no model");
        assert_eq!(service.make_states(&worker()).unwrap_err(), "state `u16`: no database");
        assert_eq!(service.worker_start(&worker()).unwrap_err(), "on_worker_start: no start");
        assert_eq!(service.thread_start(&worker(), 0).unwrap_err(), "on_thread_start: no thread");
    }

    #[test]
    fn functions_are_handlers_as_well_as_closures() {
        fn root(_call: &Call<'_>, number: i64) -> Result<i64, Error> {
            number.checked_isqrt().ok_or_else(|| Error::new(1, "negative numbers have no root here"))
        }
        let local = Server::new().method("root", root).local().unwrap();
        assert_eq!(local.call("root", 49).unwrap(), 7);
        assert_eq!(local.call("root", -1).unwrap_err().code(), 1);
    }
}
