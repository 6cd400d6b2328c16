//! A server's methods without a server: for unit tests of handlers.

use std::process;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;
use serde_json::value::to_raw_value;

use super::Server;
use crate::rpc::{BoxError, Call, CallParts, Error, Peer, RawJson, Service, States, WorkerInfo};

/// The time a local call has, which is also the default of a served one.
const ALLOWED: Duration = Duration::from_secs(30);

/// The methods of a [`Server`], called in this process and on this thread: for unit tests of handlers, which need
/// neither processes nor sockets then.
///
/// It stands for one worker, with slot 0, that is its own caller. The handler's deadline is 30 seconds away, but
/// nobody watches over it, and a handler that panics, exits or crashes takes this process along.
#[derive(Debug)]
pub struct LocalServer {
    service: Service,
    states: States,
    worker: WorkerInfo,
    peer: Peer,
}

impl Server {
    /// Makes the methods callable in this process, doing what a worker does before its first call: `preload`, the states,
    /// and the hooks for the start of the worker and of one thread.
    ///
    /// # Errors
    ///
    /// All mistakes in what was registered, or the first state or hook that failed.
    pub fn local(self) -> Result<LocalServer, BoxError> {
        let service = self.into_service()?;
        let worker = WorkerInfo::new(0, process::id(), 0, Instant::now());
        service.preload()?;
        let states = service.make_states(&worker)?;
        service.worker_start(&worker)?;
        service.thread_start(&worker, 0)?;
        let peer = Peer::Unix {
            uid: nix::unistd::getuid().as_raw(),
            pid: process::id().try_into().unwrap_or_default(),
        };
        Ok(LocalServer { service, states, worker, peer })
    }
}

impl LocalServer {
    /// Calls a method; `params` of `()` or `None` are `null`.
    ///
    /// # Errors
    ///
    /// What the caller of a served method would be answered: also that there is no such method, that the params
    /// are wrong, or that they can't be written as JSON.
    ///
    /// ```
    /// let local = tine::Server::new().local()?;
    /// assert_eq!(local.call("ping", "ireader 0")?, "ireader 0");
    /// assert_eq!(local.call("frobnicate", ()).unwrap_err().code(), tine::Error::METHOD_NOT_FOUND);
    /// # Ok::<(), tine::BoxError>(())
    /// ```
    pub fn call(&self, method: &str, params: impl Serialize) -> Result<Value, Error> {
        let (_, method) = self.service.registry().resolve(method)?;
        let params = to_raw_value(&params)
            .map_err(|error| Error::invalid_params(format!("the params can't be JSON: {error}")))?;
        let gone = AtomicBool::new(false);
        let call = Call::new(CallParts {
            method: method.name(),
            id: None,
            peer: &self.peer,
            worker: &self.worker,
            states: &self.states,
            gone: &gone,
            deadline: Instant::now() + ALLOWED,
            thread: 0,
        });
        let mut result = Vec::new();
        method.invoke(&call, Some(RawJson::from(&*params)), &mut result)?;
        Ok(serde_json::from_slice(&result)?)
    }
}
