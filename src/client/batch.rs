//! Several calls sent as one.
//!
//! `Client::batch` starts one; `calls` sends it.

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::{RawValue, to_raw_value};

use super::error::ClientError;
use super::request::Asked;
use super::{Client, typed};

/// Calls that are sent together: from [`Client::batch`].
///
/// In JSON-RPC they are one message, an array, which the server answers when the last of them is done. Otherwise they are
/// messages written in one go, each answered when it is done. The server may run them side by side, in any order.
///
/// # Example
///
/// ```no_run
/// # let client = tine::Client::connect("127.0.0.1:8080")?;
/// let answers = client.batch().call("ping", "first").call("ping", "second").send::<String>();
/// for answer in answers {
///     println!("{}", answer?);
/// }
/// # Ok::<(), tine::ClientError>(())
/// ```
#[derive(Debug)]
#[must_use = "a batch is sent by `send` or `send_raw`"]
pub struct Batch<'a> {
    client: &'a Client,
    members: Vec<Member>,
}

#[derive(Debug)]
struct Member {
    method: String,
    /// The error of params that can't be written is its outcome.
    params: Result<Option<Box<RawValue>>, ClientError>,
}

impl<'a> Batch<'a> {
    pub(super) fn new(client: &'a Client) -> Self {
        Self { client, members: Vec::new() }
    }

    /// Adds a call.
    ///
    /// ```no_run
    /// # let client = tine::Client::connect("127.0.0.1:8080")?;
    /// let sum_and_pong = client.batch().call("add", &[1, 2]).call("ping", &()).send_raw();
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn call(self, method: &str, params: &(impl Serialize + ?Sized)) -> Self {
        self.with(method, to_raw_value(params).map(Some).map_err(ClientError::Params))
    }

    /// Adds a call with JSON that passes through as it is written, or without params.
    ///
    /// ```no_run
    /// # let client = tine::Client::connect("127.0.0.1:8080")?;
    /// let methods = client.batch().call_raw("tine.methods", None).send_raw();
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn call_raw(self, method: &str, params: Option<&RawValue>) -> Self {
        self.with(method, Ok(params.map(ToOwned::to_owned)))
    }

    /// Sends them and waits for all results, which come in the order in which the calls were added, all of one type. Each
    /// call has its own error; those of [`Client::call`]. The client's [`timeout`](Client::timeout) and
    /// [`retries`](Client::retries) hold for the batch as a whole. A try after the first one sends only those calls that were
    /// refused or not taken, in either envelope, and whether the server refuses the calls of a batch one by one or
    /// all of them with one error.
    ///
    /// ```no_run
    /// # let client = tine::Client::connect("127.0.0.1:8080")?;
    /// let numbers: Vec<u32> = client.batch().call("one", &()).call("two", &()).send().into_iter().collect::<Result<_, _>>()?;
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn send<R: DeserializeOwned>(self) -> Vec<Result<R, ClientError>> {
        self.send_raw().into_iter().map(|result| typed(&result?)).collect()
    }

    /// As [`send`](Self::send), with results as they were written.
    ///
    /// ```no_run
    /// # let client = tine::Client::connect("127.0.0.1:8080")?;
    /// for result in client.batch().call("add", &[1, 2]).call("ping", &()).send_raw() {
    ///     println!("{}", result?);
    /// }
    /// # Ok::<(), tine::ClientError>(())
    /// ```
    pub fn send_raw(self) -> Vec<Result<Box<RawValue>, ClientError>> {
        let writable = self.members.iter().filter_map(|member| {
            let params = member.params.as_ref().ok()?.as_deref();
            Some(Asked { method: &member.method, params })
        });
        let asked: Vec<Asked<'_>> = writable.collect();
        let shared = &self.client.shared;
        let outcomes = if asked.is_empty() { Vec::new() } else { shared.run(self.client.manner, &asked) };
        let mut outcomes = outcomes.into_iter();
        let members = self.members.into_iter();
        // `run` has an outcome for each call that it is given.
        members.filter_map(|member| member.params.err().map(Err).or_else(|| outcomes.next())).collect()
    }

    fn with(mut self, method: &str, params: Result<Option<Box<RawValue>>, ClientError>) -> Self {
        self.members.push(Member { method: method.to_owned(), params });
        self
    }
}
