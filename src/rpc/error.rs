//! The one type of error that an answer carries, and a constructor for every code of the protocol.
//!
//! Handlers make errors with the public constructors; envelopes, worker and dispatch with the others, so that each code's
//! text and `data` are written in one place. How an error stands in a message is the envelope's business.

use std::borrow::Cow;
use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::num::NonZeroU16;
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};
use serde_json::json;
use serde_json::value::RawValue;

use super::guard;
use crate::config::span;
use crate::wire::WireError;

type Cause = Box<dyn StdError + Send + Sync>;

/// An error that a call is answered with: a code, a message for people, and data for programs.
///
/// A handler's own errors have codes from 1 to 32767:
///
/// ```
/// use tine::Error;
///
/// const OUT_OF_STOCK: i32 = 17;
/// let error = Error::new(OUT_OF_STOCK, "no blue pens left").with_data(["red", "black"]);
/// assert_eq!(error.code(), 17);
/// assert_eq!(error.data().unwrap().get(), r#"["red","black"]"#);
/// ```
///
/// `?` works on I/O and JSON errors, and on boxed ones. They become [`Error::INTERNAL`], which tells the caller no
/// more than that: the text of such an error often names files, addresses or queries. It's kept as
/// [`source`](StdError::source) for the server's log. For others there is [`Error::internal`], and to tell the caller
/// make an error of your own with [`Error::new`].
///
/// ```
/// fn motd(_call: &tine::Call<'_>, _params: ()) -> Result<String, tine::Error> {
///     Ok(std::fs::read_to_string("/etc/motd")?)
/// }
/// ```
#[derive(Debug)]
pub struct Error {
    code: i32,
    message: Cow<'static, str>,
    data: Option<Box<RawValue>>,
    cause: Option<Cause>,
    status: Option<NonZeroU16>,
}

impl Error {
    /// The message is not JSON.
    pub const PARSE: i32 = -32700;
    /// The message is JSON, but no request.
    pub const INVALID_REQUEST: i32 = -32600;
    /// The server has no method of that name.
    pub const METHOD_NOT_FOUND: i32 = -32601;
    /// The params are not what the method takes.
    pub const INVALID_PARAMS: i32 = -32602;
    /// The handler panicked, or failed in a way that is not the caller's business.
    pub const INTERNAL: i32 = -32603;
    /// Too many calls are waiting. The call was not run and may be tried again after `data.retry_after_ms`
    /// milliseconds.
    pub const OVERLOADED: i32 = -32000;
    /// The call's time was up before its handler was done.
    pub const DEADLINE: i32 = -32001;
    /// The worker ended while the call was running; `data` has the `method` and the `cause`.
    pub const CRASHED: i32 = -32002;
    /// The message is longer than `data.limit` bytes.
    pub const TOO_LARGE: i32 = -32003;
    /// The method has crashed too many workers and is refused for `data.retry_after_ms` milliseconds.
    pub const QUARANTINED: i32 = -32004;

    /// An error of a handler's own, with a `code` from 1 to 32767 and a `message` for the caller.
    ///
    /// All other codes have meanings of their own, so an error with one of them would mislead the caller: it becomes
    /// [`Error::INTERNAL`], with a message that says what was tried.
    pub fn new(code: i32, message: impl Into<Cow<'static, str>>) -> Error {
        let message = message.into();
        if (1..=32767).contains(&code) {
            Error::plain(code, message)
        } else {
            Error::plain(
                Error::INTERNAL,
                format!("{message} (the handler gave it code {code}; a handler's codes are 1 to 32767)"),
            )
        }
    }

    /// The caller's params are wrong in a way that their type doesn't show; say which and what would be right.
    pub fn invalid_params(message: impl Into<Cow<'static, str>>) -> Error {
        Error::plain(Error::INVALID_PARAMS, message)
    }

    /// Something went wrong that the caller can't help. The caller reads "internal error" and no more; `cause` goes to
    /// the server's log.
    ///
    /// ```
    /// let port = "eighty".parse::<u16>().map_err(tine::Error::internal);
    /// assert_eq!(port.unwrap_err().message(), "internal error");
    /// ```
    pub fn internal(cause: impl Into<Box<dyn StdError + Send + Sync>>) -> Error {
        Error { cause: Some(cause.into()), ..Error::plain(Error::INTERNAL, "internal error") }
    }

    /// Adds data for programs. Data that can't be written as JSON (a map whose keys are no texts, say) is left out, and
    /// noted as the error's source if it has none.
    pub fn with_data(mut self, data: impl Serialize) -> Error {
        match serde_json::value::to_raw_value(&data) {
            Ok(data) => self.data = Some(data),
            Err(error) => {
                self.cause.get_or_insert_with(|| format!("the error's data can't be JSON: {error}").into());
            }
        }
        self
    }

    /// Chooses the HTTP status that the caller of `POST /METHOD` is answered with, from 400 to 599; without it, an error with
    /// a code of the handler's own has 500. In all other forms of a call it means nothing. Another number, or an error with a
    /// code of the protocol, whose status is fixed, leaves the status as it was.
    ///
    /// ```
    /// use tine::Error;
    ///
    /// const OUT_OF_STOCK: i32 = 17;
    /// let error = Error::new(OUT_OF_STOCK, "no blue pens left").with_status(409);
    /// # assert_eq!(error.code(), 17);
    /// ```
    pub fn with_status(mut self, status: u16) -> Error {
        if (400..=599).contains(&status) && self.code > 0 {
            self.status = NonZeroU16::new(status);
        }
        self
    }

    /// What the caller is not told, as text for the log. The cause itself is the program's, and gone afterwards.
    pub(crate) fn take_cause(&mut self) -> Option<String> {
        self.cause.take().map(guard::told)
    }

    pub(crate) fn is_internal(&self) -> bool {
        self.code == Error::INTERNAL
    }

    /// The HTTP status that the handler chose.
    pub(super) fn status(&self) -> Option<u16> {
        self.status.map(NonZeroU16::get)
    }

    /// After how many milliseconds the caller may try again, where the data say so.
    pub(super) fn retry_after_ms(&self) -> Option<u64> {
        #[derive(serde::Deserialize)]
        struct Data {
            retry_after_ms: u64,
        }
        let data: Data = serde_json::from_str(self.data()?.get()).ok()?;
        Some(data.retry_after_ms)
    }

    /// The code; the constants of this type name those of the protocol.
    pub fn code(&self) -> i32 {
        self.code
    }

    /// What the caller is told in words.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What the caller is told in JSON.
    pub fn data(&self) -> Option<&RawValue> {
        self.data.as_deref()
    }

    fn plain(code: i32, message: impl Into<Cow<'static, str>>) -> Error {
        Error { code, message: message.into(), data: None, cause: None, status: None }
    }
}

/// What the server itself answers.
impl Error {
    /// Not JSON, from byte `at` (counted from 0) on.
    pub(crate) fn parse(at: usize, what: &impl fmt::Display) -> Error {
        Error::plain(Error::PARSE, format!("parse error at {what}")).with_data(json!({ "byte": at }))
    }

    /// The params are JSON and can't be read as text at byte `at` of the message, as `what` says.
    pub(crate) fn half_pair_in_params(at: usize, what: &impl fmt::Display) -> Error {
        Error::invalid_params(format!("invalid params: {what}")).with_data(json!({ "byte": at }))
    }

    pub(crate) fn invalid_request(what: &impl fmt::Display) -> Error {
        Error::plain(Error::INVALID_REQUEST, format!("invalid request: {what}"))
    }

    pub(crate) fn method_not_found(method: &str) -> Error {
        let method = shortened(method);
        Error::plain(
            Error::METHOD_NOT_FOUND,
            format!("method not found: `{method}` (`tine.methods` lists all)"),
        )
    }

    /// A handler panicked. Its text is for the log only.
    pub(crate) fn panicked(method: &str) -> Error {
        Error::plain(
            Error::INTERNAL,
            format!("internal error: the handler of `{}` panicked", shortened(method)),
        )
    }

    pub(crate) fn answer_too_long(what: &impl fmt::Display) -> Error {
        Error::plain(Error::INTERNAL, format!("internal error: {what}"))
    }

    pub(crate) fn overloaded(retry_after: Duration) -> Error {
        Error::plain(Error::OVERLOADED, "overloaded: the call was not run, try again later")
            .with_data(retry_after_ms(retry_after))
    }

    pub(crate) fn deadline(allowed: Duration) -> Error {
        // Deadlines come in whole milliseconds; what is left of one is not nothing.
        let allowed = Duration::from_millis(u64::try_from(allowed.as_millis()).unwrap_or(u64::MAX).max(1));
        Error::plain(Error::DEADLINE, format!("deadline exceeded: no answer within {}", span::show(allowed)))
    }

    pub(crate) fn too_large(length: usize, limit: usize) -> Error {
        Error::plain(Error::TOO_LARGE, WireError::TooLarge { length, limit }.to_string())
            .with_data(json!({ "limit": limit }))
    }

    /// The worker that ran `method` ended before the handler did; `cause` as the supervisor names it: `SIGSEGV`,
    /// `exit 3`.
    pub(crate) fn crashed(method: &str, cause: &str) -> Error {
        Error::lost_with_worker("worker crashed while the call was running", method, cause)
    }

    /// The worker had to end, and `method` outlived the time that running calls get for that.
    pub(crate) fn drained(method: &str) -> Error {
        Error::lost_with_worker("worker was drained while the call was running", method, "drained")
    }

    fn lost_with_worker(message: &'static str, method: &str, cause: &str) -> Error {
        Error::plain(Error::CRASHED, message)
            .with_data(json!({ "method": shortened(method), "cause": shortened(cause) }))
    }

    /// `method` is in quarantine for `retry_after` longer.
    pub(crate) fn quarantined(method: &str, retry_after: Duration) -> Error {
        let method = shortened(method);
        Error::plain(
            Error::QUARANTINED,
            format!("method in quarantine: `{method}` has crashed too many workers, try again later"),
        )
        .with_data(retry_after_ms(retry_after))
    }
}

/// Rounded up: a caller that is told 0 would try again at once.
fn retry_after_ms(duration: Duration) -> serde_json::Value {
    let ms = duration.as_nanos().div_ceil(1_000_000).max(1);
    json!({ "retry_after_ms": u64::try_from(ms).unwrap_or(u64::MAX) })
}

/// A caller's text as it is told back to it: a method's name may be as long as a message.
pub(super) fn shortened(text: &str) -> Cow<'_, str> {
    const SHOWN: usize = 128;
    if text.len() <= SHOWN {
        return Cow::Borrowed(text);
    }
    let shown = (0..=SHOWN).rev().find_map(|end| text.get(..end)).unwrap_or_default();
    Cow::Owned(format!("{shown}…"))
}

impl From<WireError> for Error {
    fn from(error: WireError) -> Error {
        match error {
            WireError::Empty { .. } => Error::invalid_request(&error),
            WireError::TooLarge { length, limit } => Error::too_large(length, limit),
            WireError::Endless { limit } => {
                Error::plain(Error::TOO_LARGE, error.to_string()).with_data(json!({ "limit": limit }))
            }
            WireError::Stray { .. } | WireError::Header { .. } => {
                Error::plain(Error::PARSE, format!("parse error: {error}"))
            }
            WireError::Http(_) => Error::invalid_request(&error),
        }
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Error {
        Error::internal(error)
    }
}

impl From<serde_json::Error> for Error {
    fn from(error: serde_json::Error) -> Error {
        Error::internal(error)
    }
}

impl From<Box<dyn StdError + Send + Sync>> for Error {
    fn from(error: Box<dyn StdError + Send + Sync>) -> Error {
        Error::internal(error)
    }
}

/// As the caller reads it: code and message, not the source.
impl PartialEq for Error {
    fn eq(&self, other: &Error) -> bool {
        let data = |error: &Error| error.data().map(|data| data.get().to_owned());
        self.code == other.code && self.message == other.message && data(self) == data(other)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", self.message, self.code)
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.cause.as_deref().map(|cause| cause as &(dyn StdError + 'static))
    }
}

/// `{"code": …, "message": …, "data": …}`, without `data` if there is none.
impl Serialize for Error {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut members = serializer.serialize_struct("Error", 2 + usize::from(self.data.is_some()))?;
        members.serialize_field("code", &self.code)?;
        members.serialize_field("message", &self.message)?;
        if let Some(data) = &self.data {
            members.serialize_field("data", data)?;
        }
        members.end()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;

    fn json(error: &Error) -> String {
        serde_json::to_string(error).unwrap()
    }

    #[test]
    fn a_handlers_codes_end_where_the_protocols_begin() {
        for code in [1, 32767] {
            assert_eq!(Error::new(code, "no").code(), code);
        }
        for code in [0, -1, 32768, -32000, i32::MIN] {
            let error = Error::new(code, "no");
            assert_eq!(error.code(), Error::INTERNAL);
            assert!(error.message().starts_with("no (") && error.message().contains(&code.to_string()));
        }
    }

    #[test]
    fn every_error_of_the_server_carries_its_code_and_data() {
        let ms = Duration::from_millis;
        for (error, code, data) in [
            (Error::parse(17, &"byte 17: expected `:`"), -32700, r#"{"byte":17}"#),
            (Error::invalid_request(&"no `in`"), -32600, ""),
            (Error::method_not_found("frob"), -32601, ""),
            (Error::invalid_params("no"), -32602, ""),
            (Error::panicked("frob"), -32603, ""),
            (Error::overloaded(Duration::from_micros(1500)), -32000, r#"{"retry_after_ms":2}"#),
            (Error::overloaded(Duration::ZERO), -32000, r#"{"retry_after_ms":1}"#),
            (Error::deadline(ms(50)), -32001, ""),
            (Error::crashed("frob", "exit 3"), -32002, r#"{"cause":"exit 3","method":"frob"}"#),
            (Error::drained("frob"), -32002, r#"{"cause":"drained","method":"frob"}"#),
            (Error::too_large(2000, 1000), -32003, r#"{"limit":1000}"#),
            (Error::quarantined("frob", ms(1500)), -32004, r#"{"retry_after_ms":1500}"#),
        ] {
            assert_eq!(error.code(), code);
            assert_eq!(error.data().map_or("", RawValue::get), data, "{error}");
        }
    }

    #[test]
    fn wire_errors_are_answered_with_their_codes() {
        assert_eq!(Error::from(WireError::Empty { prefix: 4 }).code(), Error::INVALID_REQUEST);
        let error = Error::from(WireError::TooLarge { length: 9, limit: 8 });
        assert_eq!(
            json(&error),
            r#"{"code":-32003,"message":"the message has a length of 9 bytes; this server takes at most 8 (`max_message`)","data":{"limit":8}}"#
        );
    }

    #[test]
    fn what_the_question_mark_converts_is_for_the_log_and_not_for_the_caller() {
        let fail = || -> Result<(), Error> { Err(io::Error::other("/secret/path is gone"))? };
        let error = fail().unwrap_err();
        assert_eq!(json(&error), r#"{"code":-32603,"message":"internal error"}"#);
        assert_eq!(error.source().unwrap().to_string(), "/secret/path is gone");
    }

    #[test]
    fn data_that_is_not_json_is_left_out() {
        let error = Error::new(1, "no").with_data(HashMap::from([((1, 2), 3)]));
        assert!(error.data().is_none() && error.source().is_some());
    }

    #[test]
    fn a_name_as_long_as_a_message_is_not_told_back_whole() {
        let error = Error::method_not_found(&"é".repeat(100_000));
        assert!(error.message().len() < 300, "{}", error.message().len());
    }
}
