//! The client: one blocking connection to a tine server, for programs and for `tine call`.
//!
//! It knows the native envelope in length-prefix framing and nothing of how a server is built. `connect` makes the
//! connection, `stream` moves bytes until a deadline, `envelope` turns calls into bytes and bytes into outcomes;
//! this file decides when to connect again and what may be sent once more.

mod connect;
mod envelope;
mod error;
pub mod load;
mod stream;

use std::io;
use std::thread;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use crate::config::{Address, AddressError};
pub use error::{ClientError, RemoteError};
use stream::{Broken, Deadline, Stream};

/// How long connecting may take where no timeout is set.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// What an answer may come late. The server answers a call whose time is up at that moment; a client that gave up
/// in the same moment would sometimes see that answer and sometimes not, and lose its connection for nothing.
const GRACE: Duration = Duration::from_millis(500);

/// What an answer may hold unless [`Client::max_answer`] says otherwise.
const MAX_ANSWER: usize = 64 << 20;

/// A blocking connection to a tine server.
///
/// It makes one call at a time; calls from several threads wait for each other. Lost connections are made anew:
/// a connection that turns out to be closed before a call is sent, as after a restart of the server, costs that
/// call nothing, and while nobody listens the client tries to connect a few times, for a third of a second in all.
/// What may have been run is never sent again.
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
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Client {
    target: Address,
    timeout: Option<Duration>,
    max_answer: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// Only ever a connection on which every call has had its whole answer.
    stream: Option<Stream>,
    last_id: u64,
}

impl Client {
    /// Connects to `addr`: `HOST:PORT`, IPv6 in brackets, or `unix:PATH`. Takes at most 10 seconds; calls have no
    /// time limit until [`timeout`](Self::timeout) sets one.
    ///
    /// # Errors
    ///
    /// [`ClientError::Address`] if `addr` is no address or its host has none, [`ClientError::NoServer`] if nobody
    /// answers there.
    ///
    /// ```
    /// let server = std::net::TcpListener::bind("[::1]:0").or_else(|_| std::net::TcpListener::bind("127.0.0.1:0"))?;
    /// let client = tine::Client::connect(&server.local_addr()?.to_string())?;
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn connect(addr: &str) -> Result<Self, ClientError> {
        Self::new(addr, None)
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
        Self::new(addr, Some(timeout))
    }

    /// Limits each call, from [`call`](Self::call) to the server's answer, connecting anew included.
    ///
    /// The server is told what is left of it and answers -32001 when it is over. Only if not even that answer
    /// comes, half a second later, does the call end in [`ClientError::Timeout`]; the connection is then dropped and the
    /// next call makes a new one, for a late answer must not be taken for another call's.
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
        self.timeout = Some(timeout);
        self
    }

    /// Limits the bytes that one answer may have; 64 MiB if this is never called. A larger one ends its call in
    /// [`ClientError::Protocol`] and the connection with it.
    ///
    /// ```
    /// # let server = std::net::TcpListener::bind("127.0.0.1:0")?;
    /// # let addr = server.local_addr()?.to_string();
    /// let client = tine::Client::connect(&addr)?.max_answer(1 << 20);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn max_answer(mut self, bytes: usize) -> Self {
        self.max_answer = bytes;
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
        let result = self.call_raw(method, Some(&params))?;
        serde_json::from_str(result.get()).map_err(ClientError::Result)
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
        let sending = Deadline::after(self.timeout);
        let waiting = Deadline::after(self.timeout.map(|timeout| timeout.saturating_add(GRACE)));
        let mut state = self.turn(sending)?;
        state.last_id += 1;
        let id = state.last_id;

        // Out of the state until the answer has been read whole: every early return drops the connection.
        let kept = state.stream.take().filter(Stream::is_at_rest);
        let mut may_be_stale = kept.is_some();
        let mut stream = match kept {
            Some(stream) => stream,
            None => self.reach(sending)?,
        };
        while let Sent::InPart = self.send(&mut stream, id, method, params, sending)? {
            // The server had not all of the call, so it can't have run it; but it may have refused it, as it does
            // with a message that is too large while that is still arriving.
            if let Ok(answer) = self.receive(&mut stream, waiting) {
                return envelope::reply(&answer, id)?.outcome.map_err(ClientError::Remote);
            }
            if !may_be_stale {
                return Err(self.no_server(io::ErrorKind::ConnectionReset.into()));
            }
            may_be_stale = false;
            stream = self.reach(sending)?;
        }
        let answer = self.receive(&mut stream, waiting)?;
        let reply = envelope::reply(&answer, id)?;
        state.stream = Some(stream).filter(|_| reply.goes_on);
        reply.outcome.map_err(ClientError::Remote)
    }

    fn new(addr: &str, timeout: Option<Duration>) -> Result<Self, ClientError> {
        let target = addr.parse().map_err(|error: AddressError| ClientError::Address(error.to_string()))?;
        let state = Mutex::new(State { stream: None, last_id: 0 });
        let client = Self { target, timeout, max_answer: MAX_ANSWER, state };
        let stream = client.reach(Deadline::after(timeout))?;
        client.state.lock().stream = Some(stream);
        Ok(client)
    }

    /// Waits for the calls of other threads.
    fn turn(&self, deadline: Deadline) -> Result<MutexGuard<'_, State>, ClientError> {
        match deadline.left().map_err(|broken| self.failure(broken))? {
            None => Ok(self.state.lock()),
            Some(left) => self.state.try_lock_for(left).ok_or_else(|| self.failure(Broken::TimedOut)),
        }
    }

    fn reach(&self, deadline: Deadline) -> Result<Stream, ClientError> {
        let limit = match deadline.left().map_err(|broken| self.failure(broken))? {
            None => Deadline::after(Some(CONNECT_LIMIT)),
            Some(_) => deadline,
        };
        connect::connect(&self.target, limit, thread::sleep).map_err(|source| self.no_server(source))
    }

    fn send(
        &self,
        stream: &mut Stream,
        id: u64,
        method: &str,
        params: Option<&RawValue>,
        deadline: Deadline,
    ) -> Result<Sent, ClientError> {
        let left = deadline.left().map_err(|broken| self.failure(broken))?;
        let frame = envelope::request(id, method, params, left)?;
        match stream.write_all(&frame, deadline) {
            Ok(()) => Ok(Sent::Whole),
            Err(Broken::Closed) => Ok(Sent::InPart),
            Err(broken) => Err(self.failure(broken)),
        }
    }

    /// The next message, without its length.
    fn receive(&self, stream: &mut Stream, deadline: Deadline) -> Result<Vec<u8>, ClientError> {
        let mut read = |count| stream.read_exactly(count, deadline).map_err(|broken| self.failure(broken));
        let length = read(envelope::HEAD)?.try_into().map_or(u32::MAX, u32::from_le_bytes);
        match usize::try_from(length) {
            Ok(length) if length <= self.max_answer => read(length),
            _ => Err(ClientError::Protocol(format!(
                "expected an answer of at most {} bytes, found one of {length}",
                self.max_answer
            ))),
        }
    }

    fn failure(&self, broken: Broken) -> ClientError {
        match broken {
            Broken::TimedOut => ClientError::Timeout { after: self.timeout.unwrap_or(CONNECT_LIMIT) },
            Broken::Closed => ClientError::Closed,
            Broken::Io(error) => ClientError::Io(error),
        }
    }

    fn no_server(&self, source: io::Error) -> ClientError {
        ClientError::NoServer { addr: self.target.to_string(), source }
    }
}

/// How far a call got.
enum Sent {
    Whole,
    /// The server hung up before it had the last byte.
    InPart,
}

#[cfg(test)]
mod tests;
