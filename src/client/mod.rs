//! The client: calls to a tine server from many threads over one connection, for programs and for `tine call`.
//!
//! It knows the native envelope and JSON-RPC 2.0 in length-prefix framing, and nothing of how a server is built. This file is
//! what programs see. `calls` finds or makes the connection and sends again what `retry` allows; `connection` moves
//! bytes for many threads at once, by the book of `waiting`; `input` cuts bytes into messages, `request` and `answer`
//! know what they say; `connect` opens sockets, `stream` waits on them. `http` is for `tine call --http` alone.

mod answer;
mod batch;
mod calls;
mod connect;
mod connection;
pub(crate) mod contract;
mod error;
pub(crate) mod http;
mod input;
pub mod load;
mod look_up;
mod request;
mod retry;
mod stream;
mod waiting;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use crate::config::{AddressError, Endpoint};
pub use batch::Batch;
use calls::{Manner, Shared};
pub use error::{ClientError, RemoteError};
use request::{Asked, Envelope};

/// What an answer may hold unless [`Client::max_answer`] says otherwise.
const MAX_ANSWER: usize = 64 << 20;

/// A connection to a tine server, for any number of threads.
///
/// Calls block their thread until the answer comes; calls of other threads go over the same connection meanwhile, and are
/// answered as they finish. Share a client by reference, or clone it: clones have the same connection, and
/// settings of their own. It starts no thread.
///
/// A connection that breaks is made anew by the next call. Calls that were on their way end in
/// [`ClientError::Closed`], or another error that says that they may have been run; they are never sent again. A connection
/// that turns out to be closed before a call is sent, as after a restart of the server, costs that call nothing, and while
/// nobody listens the client tries to connect a few times, for a third of a second in all.
///
/// A process that forks must make its clients after the fork: two processes on one connection read each other's
/// answers.
///
/// # Example
///
/// ```
/// # // A server with one method, for this example alone.
/// # use std::io::{Read, Write};
/// # let server = std::net::TcpListener::bind("127.0.0.1:0")?;
/// # let addr = server.local_addr()?.to_string();
/// # std::thread::spawn(move || -> std::io::Result<()> {
/// #     let (mut caller, _) = server.accept()?;
/// #     loop {
/// #         let mut head = [0; 4];
/// #         caller.read_exact(&mut head)?;
/// #         let mut body = vec![0; u32::from_le_bytes(head) as usize];
/// #         caller.read_exact(&mut body)?;
/// #         let call: serde_json::Value = serde_json::from_slice(&body)?;
/// #         let answer = match call["in"].as_str() {
/// #             Some("ping") => serde_json::json!({"out": "pong", "result": call["params"], "id": call["id"]}),
/// #             _ => serde_json::json!({"out": "error", "id": call["id"],
/// #                 "result": {"code": -32601, "message": "method not found"}}),
/// #         }.to_string();
/// #         caller.write_all(&(answer.len() as u32).to_le_bytes())?;
/// #         caller.write_all(answer.as_bytes())?;
/// #     }
/// # });
/// use std::time::Duration;
/// use tine::{Client, ClientError};
///
/// // `addr` is the server's, such as "127.0.0.1:8080" or "unix:/run/tine.sock".
/// let client = Client::connect(&addr)?.timeout(Duration::from_secs(5));
///
/// let pong: String = client.call("ping", "ireader 0")?;
/// assert_eq!(pong, "ireader 0");
///
/// match client.call::<()>("no such method", &[1, 2]) {
///     Err(ClientError::Remote(error)) => assert_eq!(error.code, -32601),
///     other => panic!("expected an error answer, found {other:?}"),
/// }
///
/// std::thread::scope(|scope| {
///     for n in 0..4 {
///         let client = &client;
///         scope.spawn(move || assert_eq!(client.call::<u32>("ping", &n).unwrap(), n));
///     }
/// });
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct Client {
    shared: Arc<Shared>,
    manner: Manner,
}

impl Client {
    /// Connects to `addr`: `HOST:PORT`, IPv6 in brackets, or `unix:PATH`. A name is looked up now and each time that the
    /// connection is made anew, and all of its addresses are tried. Takes at most 10 seconds; calls have no
    /// time limit until [`timeout`](Self::timeout) sets one.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if `addr` is no address, [`ClientError::NoServer`] if nobody answers there or the host's name
    /// is not known.
    ///
    /// ```
    /// let server = std::net::TcpListener::bind("[::1]:0").or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))?;
    /// let client = tine::Client::connect(&server.local_addr()?.to_string())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn connect(addr: &str) -> Result<Self, ClientError> {
        let client = Self::lazy(addr)?;
        client.shared.connect(client.manner)?;
        Ok(client)
    }

    /// As [`connect`](Self::connect) and [`timeout`](Self::timeout), with the time limit on connecting too.
    ///
    /// # Errors
    ///
    /// Those of [`connect`](Self::connect).
    ///
    /// ```
    /// # use std::time::Duration;
    /// let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let addr = server.local_addr()?.to_string();
    /// let client = tine::Client::connect_timeout(&addr, Duration::from_secs(2))?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn connect_timeout(addr: &str, timeout: Duration) -> Result<Self, ClientError> {
        let client = Self::lazy(addr)?.timeout(timeout);
        client.shared.connect(client.manner)?;
        Ok(client)
    }

    /// A client that connects at its first call.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if `addr` is no address. A name is looked up by the first call.
    ///
    /// ```
    /// // Nobody needs to listen there yet.
    /// let client = tine::Client::lazy("127.0.0.1:8080")?.retries(5);
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn lazy(addr: &str) -> Result<Self, ClientError> {
        let target: Endpoint =
            addr.parse().map_err(|error: AddressError| ClientError::Address(error.to_string()))?;
        Ok(Self { shared: Arc::new(Shared::new(target, MAX_ANSWER)), manner: Manner::default() })
    }

    /// Limits each call, from [`call`](Self::call) to the server's answer, connecting anew and trying again included.
    ///
    /// The server is told what is left of it and answers -32001 when it is over. Only if not even that answer
    /// comes, half a second later, does the call end in [`ClientError::Timeout`]. An answer that comes still later reaches
    /// nobody; if nothing else came over the connection either, the next call makes a new one.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use tine::{Client, ClientError};
    /// // A server that never answers.
    /// let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// let client = Client::connect(&server.local_addr()?.to_string())?.timeout(Duration::from_millis(10));
    /// assert!(matches!(client.call::<()>("ping", &()), Err(ClientError::Timeout { .. })));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.manner.timeout = Some(timeout);
        self
    }

    /// Limits the bytes that one answer may have; 64 MiB if this is never called. A larger one ends the connection, and the
    /// calls on their way in [`ClientError::Protocol`]. It holds for all clones of a client.
    ///
    /// ```
    /// # let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let addr = server.local_addr()?.to_string();
    /// let client = tine::Client::connect(&addr)?.max_answer(1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_answer(self, bytes: usize) -> Self {
        self.shared.max_answer.store(bytes, Ordering::Relaxed);
        self
    }

    /// Makes calls in JSON-RPC 2.0 instead of the native envelope.
    ///
    /// JSON-RPC has params in arrays and objects alone: any other value is sent as an array of one, by position, and `null`
    /// as no params at all.
    ///
    /// ```no_run
    /// let client = tine::Client::connect("127.0.0.1:8080")?.json_rpc();
    /// let pong: Vec<u32> = client.call("ping", &[1, 2])?;
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn json_rpc(mut self) -> Self {
        self.manner.envelope = Envelope::JsonRpc;
        self
    }

    /// Tries a call again, so many times at most, if it was certainly not run: the server refused it as overloaded
    /// (-32000) or because its method is in quarantine (-32004), or nobody listens, or whoever does hangs up before the call
    /// is through. Waits before each try, as long as the server says but for 30 seconds at most; if what the server says is
    /// not within the call's [`timeout`](Self::timeout), the error is returned at once. What was sent and not answered is
    /// never sent again. Of a [`batch`](Self::batch) only those calls are tried again that were not run.
    ///
    /// ```no_run
    /// # use std::time::Duration;
    /// let client = tine::Client::connect("127.0.0.1:8080")?.timeout(Duration::from_secs(5)).retries(3);
    /// let pong: String = client.call("ping", "ireader 0")?;
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn retries(mut self, most: u32) -> Self {
        self.manner.retries = most;
        self
    }

    /// Calls `method` with `params` and waits for its result. [`Client`] has an example.
    ///
    /// # Errors
    ///
    /// Every [`ClientError`] but `Address`; [`ClientError::Remote`] if the server answers with an error.
    ///
    /// ```no_run
    /// let client = tine::Client::connect("127.0.0.1:8080")?;
    /// let pong: String = client.call("ping", "ireader 0")?;
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn call<R: DeserializeOwned>(
        &self,
        method: &str,
        params: &(impl Serialize + ?Sized),
    ) -> Result<R, ClientError> {
        let params = to_raw_value(params).map_err(ClientError::Params)?;
        typed(&self.call_raw(method, Some(&params))?)
    }

    /// As [`call`](Self::call), with JSON that passes through as it is written: digits, escapes and all. Without
    /// params the call has none, which is not the same as `null`.
    ///
    /// # Errors
    ///
    /// Those of [`call`](Self::call) except `Result`.
    ///
    /// ```no_run
    /// let client = tine::Client::connect("127.0.0.1:8080")?;
    /// println!("{}", client.call_raw("tine.methods", None)?);
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn call_raw(&self, method: &str, params: Option<&RawValue>) -> Result<Box<RawValue>, ClientError> {
        let outcome = self.shared.run(self.manner, &[Asked { method, params }]).pop();
        // There is one for each call.
        outcome.unwrap_or(Err(ClientError::Closed))
    }

    /// Has `method` run with `params` and waits for nothing but the system to take the bytes: there is no answer, not even for
    /// a method that does not exist. It is always sent in JSON-RPC 2.0, as the native envelope has no such calls.
    ///
    /// # Errors
    ///
    /// [`ClientError::Params`], [`ClientError::NoServer`], [`ClientError::Timeout`] or [`ClientError::Io`].
    ///
    /// ```no_run
    /// let client = tine::Client::connect("127.0.0.1:8080")?;
    /// client.notify("log", &["started"])?;
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn notify(&self, method: &str, params: &(impl Serialize + ?Sized)) -> Result<(), ClientError> {
        let params = to_raw_value(params).map_err(ClientError::Params)?;
        self.shared.notify(self.manner, &Asked { method, params: Some(&params) })
    }

    /// Starts a batch: calls that are sent together.
    ///
    /// ```no_run
    /// let client = tine::Client::connect("127.0.0.1:8080")?;
    /// let pongs = client.batch().call("ping", "first").call("ping", "second").send::<String>();
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn batch(&self) -> Batch<'_> {
        Batch::new(self)
    }
}

fn typed<R: DeserializeOwned>(result: &RawValue) -> Result<R, ClientError> {
    serde_json::from_str(result.get()).map_err(ClientError::Result)
}

#[cfg(test)]
mod tests;
