//! The native envelope: `{"in": METHOD, "params": ANY, "id": ANY, "timeout_ms": N}` and what it is answered with.
//!
//! The worker parses with [`parse`], which walks the message once, and answers with [`answer`] or
//! [`answer_error`], which write into the connection's output. Knows no framing: a message here is the JSON alone.

use std::borrow::Cow;

use super::context::Call;
use super::error::{Error, shortened};
use super::json::{RawJson, Span};
use super::registry::Method;
use super::reply::write_value;
use super::scan::{Fault, Scanner, Text};
use crate::sys;

/// The name every error answer has.
pub(super) const ERROR_NAME: &str = "error";

/// A request, in the places where it stands in its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) method: Cow<'a, str>,
    pub(crate) params: Option<Span>,
    /// `"id": null` is an id too.
    pub(crate) id: Option<Span>,
    pub(crate) timeout_ms: Option<u64>,
    text: &'a str,
}

impl<'a> Request<'a> {
    pub(crate) fn id(&self) -> Option<RawJson<'a>> {
        self.id.map(|span| span.json(self.text))
    }
}

/// A message that is no request: what to answer, and the id to answer with where one could be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Rejected<'a> {
    pub(crate) error: Error,
    pub(crate) id: Option<RawJson<'a>>,
}

/// Reads a message of the native envelope. Members it doesn't know are ignored.
pub(crate) fn parse(message: &[u8]) -> Result<Request<'_>, Rejected<'_>> {
    let text = sys::text::text(message).map_err(|error| {
        let at = error.valid_up_to();
        Rejected::without_id(Error::parse(at, &format_args!("byte {at}: expected UTF-8, found other bytes")))
    })?;
    let mut scan = Scanner::new(text);
    if let Some(byte) = scan.next_byte()
        && byte != b'{'
    {
        scan.value().and_then(|_| scan.end())?;
        return Err(Rejected::without_id(Error::invalid_request(&"expected an object with a member `in`")));
    }

    let mut members = Members::default();
    let mut key = scan.first_member()?;
    while let Some(name) = key {
        members.read(name, &mut scan, text)?;
        key = scan.next_member()?;
    }
    scan.end()?;
    members.into_request(text)
}

/// The id that the answer to a message carries, whatever that answer is.
pub(crate) fn id_of(message: &[u8]) -> Option<RawJson<'_>> {
    match parse(message) {
        Ok(request) => request.id(),
        Err(rejected) => rejected.id,
    }
}

/// Appends the answer of a call to `out`: the result that the method gives, or its error.
///
/// The error is returned too, to be counted and logged. If the handler panics this unwinds and leaves part of an
/// answer in `out`.
pub(crate) fn answer(
    out: &mut Vec<u8>,
    method: &Method,
    call: &Call<'_>,
    params: Option<RawJson<'_>>,
) -> Result<(), Error> {
    let start = out.len();
    out.extend_from_slice(method.native_head());
    match method.invoke(call, params, out) {
        Ok(()) => {
            end_answer(out, call.id());
            Ok(())
        }
        Err(error) => {
            out.truncate(start);
            answer_error(out, &error, call.id());
            Err(error)
        }
    }
}

/// Appends an error answer to `out`.
pub(crate) fn answer_error(out: &mut Vec<u8>, error: &Error, id: Option<RawJson<'_>>) {
    out.extend_from_slice(br#"{"out":"error","result":"#);
    if write_value(error, out).is_err() {
        // An error is two texts, a number and checked JSON; it can always be written.
        out.extend_from_slice(br#"{"code":-32603,"message":"internal error"}"#);
    }
    end_answer(out, id);
}

/// An answer up to its result.
pub(super) fn answer_head(reply: &str) -> Vec<u8> {
    format!(r#"{{"out":{},"result":"#, serde_json::Value::from(reply)).into_bytes()
}

fn end_answer(out: &mut Vec<u8>, id: Option<RawJson<'_>>) {
    if let Some(id) = id {
        out.extend_from_slice(br#","id":"#);
        out.extend_from_slice(id.get().as_bytes());
    }
    out.push(b'}');
}

/// What has been read of a request. The first problem is kept and reading goes on, for the sake of the id.
#[derive(Default)]
struct Members<'a> {
    method: Option<Cow<'a, str>>,
    params: Option<Span>,
    id: Option<Span>,
    timeout_ms: Option<u64>,
    problem: Option<String>,
}

impl<'a> Members<'a> {
    #[inline]
    fn read(&mut self, name: Text, scan: &mut Scanner<'a>, text: &'a str) -> Result<(), Fault> {
        let decoded;
        let plain = match name.plain(text) {
            Some(plain) => plain,
            None => {
                decoded = name.decoded(text);
                decoded.as_bytes()
            }
        };
        let again = match plain {
            b"in" => {
                let again = self.method.is_some();
                self.read_method(scan, text)?;
                again
            }
            b"params" => self.params.replace(scan.value()?).is_some(),
            b"id" => {
                let id = scan.value()?;
                let again = self.id.is_some();
                self.id.get_or_insert(id);
                again
            }
            b"timeout_ms" => {
                let again = self.timeout_ms.is_some();
                self.read_timeout(scan.value()?.of(text));
                again
            }
            _ => {
                scan.value()?;
                false
            }
        };
        if again {
            self.problem(|| format!("member `{}` stands there twice", name.decoded(text)));
        }
        Ok(())
    }

    #[inline]
    fn read_method(&mut self, scan: &mut Scanner<'a>, text: &'a str) -> Result<(), Fault> {
        let method = if scan.next_byte() == Some(b'"') {
            Text::decoded(scan.text()?, text)
        } else {
            let found = scan.value()?.of(text);
            self.problem(|| {
                format!("member `in` must be a text, the method's name; found `{}`", shortened(found))
            });
            Cow::Borrowed("")
        };
        self.method = Some(method);
        Ok(())
    }

    fn read_timeout(&mut self, written: &str) {
        // More digits than a u64 holds are still a positive integer, and as good as no limit.
        let whole = written.bytes().all(|byte| byte.is_ascii_digit());
        let timeout = if whole { written.parse().unwrap_or(u64::MAX) } else { 0 };
        if timeout == 0 {
            self.problem(|| {
                format!("member `timeout_ms` must be a positive integer; found `{}`", shortened(written))
            });
        }
        self.timeout_ms = Some(timeout);
    }

    fn problem(&mut self, what: impl FnOnce() -> String) {
        self.problem.get_or_insert_with(what);
    }

    fn into_request(mut self, text: &'a str) -> Result<Request<'a>, Rejected<'a>> {
        if self.method.is_none() {
            self.problem(|| "member `in`, the method's name, is missing".to_owned());
        }
        if let Some(what) = self.problem {
            return Err(Rejected {
                error: Error::invalid_request(&what),
                id: self.id.map(|span| span.json(text)),
            });
        }
        Ok(Request {
            method: self.method.unwrap_or_default(),
            params: self.params,
            id: self.id,
            timeout_ms: self.timeout_ms,
            text,
        })
    }
}

impl Rejected<'_> {
    fn without_id(error: Error) -> Self {
        Rejected { error, id: None }
    }
}

impl From<Fault> for Rejected<'_> {
    fn from(fault: Fault) -> Self {
        Rejected::without_id(fault.into())
    }
}

#[cfg(test)]
mod tests;
