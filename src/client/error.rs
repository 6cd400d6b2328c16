//! Everything that can go wrong with a call, as its caller sees it.
//!
//! Each sentence says what happened and what to do; above all whether the call may have been run.

use std::time::Duration;
use std::{error, fmt, io};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::span;

/// Why a call has no result.
///
/// [`NoServer`](Self::NoServer), [`Address`](Self::Address) and [`Params`](Self::Params) mean that the call was
/// not run, and so do some of the codes of [`Remote`](Self::Remote), such as -32000. After any other error it isn't known
/// whether it ran: all calls that were on their way get one when their connection breaks. The client never sends
/// such a call again; the caller knows whether that would do harm.
///
/// ```
/// use tine::{Client, ClientError};
///
/// match Client::connect("unix:/nowhere/tine.sock") {
///     Err(ClientError::NoServer { addr, .. }) => assert_eq!(addr, "unix:/nowhere/tine.sock"),
///     other => panic!("expected no server there, found {other:?}"),
/// }
/// ```
#[derive(Debug)]
#[non_exhaustive]
pub enum ClientError {
    /// The address is none that could be connected to; the text says why.
    Address(String),
    /// Nobody answers at `addr`, or whoever does hangs up before a call is through.
    NoServer {
        /// The address as it was understood.
        addr: String,
        /// What the system said.
        source: io::Error,
    },
    /// There was no answer in time.
    Timeout {
        /// The time that the call was given, as set by [`Client::timeout`](crate::Client::timeout).
        after: Duration,
    },
    /// The server answered with an error.
    Remote(RemoteError),
    /// The connection ended after the call was sent and before it was answered.
    Closed,
    /// What arrived is not the answer to the call in this protocol; the text says what was expected and found.
    Protocol(String),
    /// The params can't be written as JSON.
    Params(serde_json::Error),
    /// The call has a result, but not of the type that the caller asked for.
    Result(serde_json::Error),
    /// The system failed in a way that none of the others describes.
    Io(io::Error),
}

/// An error that the server answered with: the `result` of an answer whose `out` is `error`.
///
/// ```
/// let error = tine::RemoteError { code: -32601, message: "no such method".to_owned(), data: None };
/// assert_eq!(error.to_string(), "no such method (code -32601)");
/// ```
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RemoteError {
    /// Negative for the server's own errors, 1 to 32767 for the handler's.
    pub code: i32,
    /// For people to read.
    pub message: String,
    /// Details as JSON, for the codes that have some.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Box<RawValue>>,
}

impl ClientError {
    /// The same for another call that shares this one's fate.
    pub(super) fn again(&self) -> Self {
        let json = |error: &serde_json::Error| serde::ser::Error::custom(error);
        match self {
            ClientError::Address(why) => ClientError::Address(why.clone()),
            ClientError::NoServer { addr, source } => {
                ClientError::NoServer { addr: addr.clone(), source: Self::like(source) }
            }
            ClientError::Timeout { after } => ClientError::Timeout { after: *after },
            ClientError::Remote(error) => ClientError::Remote(error.clone()),
            ClientError::Closed => ClientError::Closed,
            ClientError::Protocol(what) => ClientError::Protocol(what.clone()),
            ClientError::Params(error) => ClientError::Params(json(error)),
            ClientError::Result(error) => ClientError::Result(json(error)),
            ClientError::Io(error) => ClientError::Io(Self::like(error)),
        }
    }

    /// The system's error once more, which can't be cloned.
    pub(super) fn like(error: &io::Error) -> io::Error {
        match error.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None => io::Error::new(error.kind(), error.to_string()),
        }
    }
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl error::Error for RemoteError {}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Address(why) => f.write_str(why),
            ClientError::NoServer { addr, source } => write!(
                f,
                "no server takes calls at {addr} ({source}); the call was not run: start the server, \
                 or give the address where it listens"
            ),
            ClientError::Timeout { after } => write!(
                f,
                "no answer within {}; the call may still be running: allow more time, \
                 or look at what keeps the server busy",
                span::show(*after)
            ),
            ClientError::Remote(error) => write!(f, "the server answered with an error: {error}"),
            ClientError::Closed => f.write_str(
                "the connection ended before the answer came; the call may have been run: \
                 find out before sending it again",
            ),
            ClientError::Protocol(what) => write!(f, "{what}; check that a tine server listens there"),
            ClientError::Params(error) => {
                write!(
                    f,
                    "the params can't be written as JSON ({error}); the call was not sent: change their type"
                )
            }
            ClientError::Result(error) => {
                write!(
                    f,
                    "the call was run, but its result is not of the type asked for ({error}): change the type"
                )
            }
            ClientError::Io(error) => write!(
                f,
                "the connection failed ({error}); the call may have been run: find out before sending it again"
            ),
        }
    }
}

impl error::Error for ClientError {
    fn source(&self) -> Option<&(dyn error::Error + 'static)> {
        match self {
            ClientError::NoServer { source, .. } | ClientError::Io(source) => Some(source),
            ClientError::Params(source) | ClientError::Result(source) => Some(source),
            ClientError::Remote(source) => Some(source),
            ClientError::Address(_)
            | ClientError::Timeout { .. }
            | ClientError::Closed
            | ClientError::Protocol(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_error_object_is_written_as_the_protocol_has_it() {
        let text = r#"{"code":-32000,"message":"overloaded","data":{"retry_after_ms":5}}"#;
        let error: RemoteError = serde_json::from_str(text).expect("an error object");
        assert_eq!(serde_json::to_string(&error).expect("JSON"), text);
        let bare = RemoteError { data: None, ..error };
        assert_eq!(serde_json::to_string(&bare).expect("JSON"), r#"{"code":-32000,"message":"overloaded"}"#);
    }
}
