//! From a message to what it asks for: the native envelope, JSON-RPC 2.0 and 1.0, and batches, told apart by their members.
//!
//! The worker parses with [`parse`], which walks a message once and keeps the places of what it needs; what is answered
//! is `envelope`'s business. Knows no framing: a message here is the JSON alone.

use std::borrow::Cow;

use super::error::{Error, shortened};
use super::json::{RawJson, Span};
use super::scan::{Fault, Scanner, Text};
use crate::sys;

/// How a request was written, and so how the answer to it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// `{"in": …}`, answered `{"out": …}`.
    #[default]
    Native,
    /// JSON-RPC 2.0.
    V2,
    /// JSON-RPC 1.0: without `jsonrpc`, with `method`.
    V1,
    /// HTTP's `POST /METHOD`: params and result have no envelope.
    Bare,
}

/// A message that is JSON and not obviously wrong.
#[derive(Debug, PartialEq)]
pub(crate) enum Message<'a> {
    Single(Request<'a>),
    Batch(Batch<'a>),
}

/// A request, in the places where it stands in its message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request<'a> {
    pub(crate) form: Form,
    pub(crate) method: Cow<'a, str>,
    pub(crate) params: Option<Span>,
    /// `"id": null` is an id too.
    pub(crate) id: Option<Span>,
    pub(crate) timeout_ms: Option<u64>,
    text: &'a str,
}

impl<'a> Request<'a> {
    /// A request whose message is its params alone; no message at all is none.
    pub(super) fn bare(method: Cow<'a, str>, message: &'a [u8]) -> Result<Request<'a>, Rejected<'a>> {
        let text = sys::text::text(message)
            .map_err(|error| Rejected::without_id(Form::Bare, not_utf8(error.valid_up_to())))?;
        let mut scan = Scanner::new(text);
        let params = match scan.next_byte() {
            None => Ok(None),
            Some(_) => scan.value().and_then(|params| scan.end().map(|()| Some(params))),
        };
        match params {
            Ok(params) => Ok(Request { form: Form::Bare, method, params, id: None, timeout_ms: None, text }),
            Err(fault) => Err(Rejected::without_id(Form::Bare, fault.into())),
        }
    }

    /// The request, with no more time than this.
    pub(super) fn within(mut self, timeout_ms: Option<u64>) -> Request<'a> {
        self.timeout_ms = match (self.timeout_ms, timeout_ms) {
            (Some(own), Some(other)) => Some(own.min(other)),
            (own, other) => own.or(other),
        };
        self
    }

    pub(crate) fn id(&self) -> Option<RawJson<'a>> {
        self.id.map(|span| span.json(self.text))
    }

    /// Whether nobody waits for an answer: the call is run and never answered, not even with an error.
    ///
    /// In the native envelope there is no such thing: a request without an id is answered in order.
    pub(crate) fn is_notification(&self) -> bool {
        match self.form {
            Form::Native | Form::Bare => false,
            Form::V2 => self.id.is_none(),
            Form::V1 => self.id.is_none_or(|id| id.of(self.text) == "null"),
        }
    }
}

/// A message that is no request: what to answer, in which form, and the id to answer with where one could be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Rejected<'a> {
    pub(crate) form: Form,
    pub(crate) error: Error,
    pub(crate) id: Option<RawJson<'a>>,
}

/// An array with at least one member. All of it is JSON; what its members are is found when they are reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Batch<'a> {
    text: &'a str,
    len: usize,
}

/// One member of a batch.
#[derive(Debug, PartialEq)]
pub(crate) struct Member<'a> {
    /// Where it stands in the batch's message. What stands there is a message of its own, with the same meaning.
    pub(crate) place: Span,
    /// With places in the batch's message.
    pub(crate) request: Result<Request<'a>, Rejected<'a>>,
}

impl<'a> Batch<'a> {
    /// The number of members, of which there is at least one.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// The members in their order, each parsed when it is asked for. Nothing is allocated for them.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member<'a>> + use<'a> {
        let text = self.text;
        let mut scan = Scanner::new(text);
        let mut more = scan.first_element().unwrap_or(false);
        // The whole array has been walked before, so no fault is found here.
        std::iter::from_fn(move || {
            if !more {
                return None;
            }
            let member = member(text, &mut scan).ok()?;
            more = scan.next_element().unwrap_or(false);
            Some(member)
        })
    }
}

/// Reads a message. Members of a request that are not known are ignored.
///
/// `fallback` is the form of the error for a message that doesn't show one of its own.
pub(crate) fn parse(message: &[u8], fallback: Form) -> Result<Message<'_>, Rejected<'_>> {
    let text = match sys::text::text(message) {
        Ok(text) => text,
        Err(error) => return Err(not_text(message, error.valid_up_to(), fallback)),
    };
    let mut scan = Scanner::new(text);
    match scan.next_byte() {
        Some(b'[') => parse_batch(scan, text),
        Some(b'{') | None => {
            let mut members = Members::default();
            let read = members.read_all(&mut scan, text).and_then(|()| scan.end());
            match read {
                Ok(()) => members.into_request(text, fallback).map(Message::Single),
                Err(fault) => Err(Rejected::without_id(members.form_so_far(fallback), fault.into())),
            }
        }
        Some(_) => {
            let walked = scan.value().and_then(|_| scan.end());
            let error = match walked {
                Ok(()) => {
                    Error::invalid_request(&"expected an object, or an array of them; found another value")
                }
                Err(fault) => fault.into(),
            };
            Err(Rejected::without_id(fallback, error))
        }
    }
}

/// The form and the id of the answer to a message that is no batch, whatever that answer is.
pub(crate) fn address_of(message: &[u8], fallback: Form) -> (Form, Option<RawJson<'_>>) {
    match parse(message, fallback) {
        Ok(Message::Single(request)) => (request.form, request.id()),
        Ok(Message::Batch(_)) => (Form::V2, None),
        Err(rejected) => (rejected.form, rejected.id),
    }
}

#[cold]
fn not_text(message: &[u8], at: usize, fallback: Form) -> Rejected<'_> {
    let before = message.get(..at).and_then(|before| std::str::from_utf8(before).ok()).unwrap_or_default();
    let mut scan = Scanner::new(before);
    let form = if scan.next_byte() == Some(b'[') {
        Form::V2
    } else {
        let mut members = Members::default();
        // What it was before the fault is all that counts here.
        let _ = members.read_all(&mut scan, before);
        members.form_so_far(fallback)
    };
    Rejected::without_id(form, not_utf8(at))
}

fn not_utf8(at: usize) -> Error {
    Error::parse(at, &format_args!("byte {at}: expected UTF-8, found other bytes"))
}

fn parse_batch<'a>(mut scan: Scanner<'a>, text: &'a str) -> Result<Message<'a>, Rejected<'a>> {
    match count_elements(&mut scan) {
        Ok(0) => {
            let error = Error::invalid_request(&"expected at least one request in the array, found none");
            Err(Rejected::without_id(Form::V2, error))
        }
        Ok(len) => Ok(Message::Batch(Batch { text, len })),
        Err(fault) => Err(Rejected::without_id(Form::V2, fault.into())),
    }
}

fn count_elements(scan: &mut Scanner<'_>) -> Result<usize, Fault> {
    let mut count: usize = 0;
    let mut more = scan.first_element()?;
    while more {
        scan.value()?;
        count = count.saturating_add(1);
        more = scan.next_element()?;
    }
    scan.end()?;
    Ok(count)
}

/// Reads the element of an array that stands next.
fn member<'a>(text: &'a str, scan: &mut Scanner<'a>) -> Result<Member<'a>, Fault> {
    if scan.next_byte() != Some(b'{') {
        let place = scan.value()?;
        let found = shortened(place.of(text));
        let error = Error::invalid_request(&format_args!("expected an object in the array; found `{found}`"));
        return Ok(Member { place, request: Err(Rejected::without_id(Form::V2, error)) });
    }
    let start = scan.place();
    let mut members = Members::default();
    members.read_all(scan, text)?;
    let place = Span::new(start, scan.place());
    Ok(Member { place, request: members.into_member(text) })
}

/// The members of a request that mean something, one bit each.
mod bit {
    pub(super) const JSONRPC: u8 = 1;
    pub(super) const IN: u8 = 2;
    pub(super) const METHOD: u8 = 4;
    pub(super) const PARAMS: u8 = 8;
    pub(super) const ID: u8 = 16;
    pub(super) const TIMEOUT: u8 = 32;

    /// What each is called, and which forms know it is said where this is used.
    pub(super) const NAMES: [(u8, &str); 6] = [
        (JSONRPC, "jsonrpc"),
        (IN, "in"),
        (METHOD, "method"),
        (PARAMS, "params"),
        (ID, "id"),
        (TIMEOUT, "timeout_ms"),
    ];
}

/// The name of a method, or what stands there instead.
#[derive(Clone, Copy)]
enum Name {
    Text(Text),
    Other(Span),
}

/// What has been read of a request. What it means is decided when all is read: the member that tells the form may be the last.
#[derive(Default)]
struct Members {
    /// Bits of the members that were there, and of those that were there more than once.
    seen: u8,
    twice: u8,
    /// Of members that stand there twice the first is kept.
    jsonrpc: Option<Name>,
    native: Option<Name>,
    method: Option<Name>,
    params: Option<Span>,
    id: Option<Span>,
    timeout: Option<Span>,
}

impl Members {
    /// From the opening brace to behind the closing one.
    #[inline]
    fn read_all(&mut self, scan: &mut Scanner<'_>, text: &str) -> Result<(), Fault> {
        let mut key = scan.first_member()?;
        while let Some(name) = key {
            self.read(name, scan, text)?;
            key = scan.next_member()?;
        }
        Ok(())
    }

    #[inline]
    fn read(&mut self, name: Text, scan: &mut Scanner<'_>, text: &str) -> Result<(), Fault> {
        let decoded;
        let plain = match name.plain(text) {
            Some(plain) => plain,
            None => {
                decoded = name.decoded(text);
                decoded.as_bytes()
            }
        };
        let bit = match plain {
            b"in" => {
                let value = Name::read(scan)?;
                self.native.get_or_insert(value);
                bit::IN
            }
            b"method" => {
                let value = Name::read(scan)?;
                self.method.get_or_insert(value);
                bit::METHOD
            }
            b"jsonrpc" => {
                let value = Name::read(scan)?;
                self.jsonrpc.get_or_insert(value);
                bit::JSONRPC
            }
            b"params" => {
                let value = scan.value()?;
                self.params.get_or_insert(value);
                bit::PARAMS
            }
            b"id" => {
                let value = scan.value()?;
                self.id.get_or_insert(value);
                bit::ID
            }
            b"timeout_ms" => {
                let value = scan.value()?;
                self.timeout.get_or_insert(value);
                bit::TIMEOUT
            }
            _ => {
                scan.value()?;
                return Ok(());
            }
        };
        self.twice |= self.seen & bit;
        self.seen |= bit;
        Ok(())
    }

    /// The form that the members so far show. A `jsonrpc` may still come behind a `method`, and a client of version 1.0
    /// understands an error of version 2.0 as one.
    #[cold]
    fn form_so_far(&self, fallback: Form) -> Form {
        if self.seen & bit::JSONRPC != 0 {
            Form::V2
        } else if self.seen & bit::IN != 0 {
            Form::Native
        } else if self.seen & bit::METHOD != 0 {
            Form::V2
        } else {
            fallback
        }
    }

    fn into_request(self, text: &str, fallback: Form) -> Result<Request<'_>, Rejected<'_>> {
        let form = if self.seen & bit::JSONRPC != 0 {
            Form::V2
        } else if self.seen & bit::IN != 0 {
            Form::Native
        } else if self.seen & bit::METHOD != 0 {
            Form::V1
        } else {
            fallback
        };
        self.into_form(text, form)
    }

    /// A batch is JSON-RPC 2.0 and nothing else.
    fn into_member(self, text: &str) -> Result<Request<'_>, Rejected<'_>> {
        self.into_form(text, Form::V2)
    }

    #[inline]
    fn into_form(self, text: &str, form: Form) -> Result<Request<'_>, Rejected<'_>> {
        let (name, timeout_ms, params) = match self.check(text, form) {
            Ok(checked) => checked,
            Err(what) => {
                let id = self.id.filter(|id| form != Form::V2 || is_id(id.of(text)));
                return Err(Rejected {
                    form,
                    error: Error::invalid_request(&what),
                    id: id.map(|span| span.json(text)),
                });
            }
        };
        Ok(Request { form, method: name.decoded(text), params, id: self.id, timeout_ms, text })
    }

    /// Name, timeout and params, or the first thing that is wrong in this form.
    #[inline]
    fn check(&self, text: &str, form: Form) -> Result<(Text, Option<u64>, Option<Span>), String> {
        if form == Form::V2 {
            self.check_version(text)?;
        }
        if self.twice != 0 {
            self.check_twice(form)?;
        }
        let (name, member) = match form {
            Form::Native => (self.native, "in"),
            Form::V2 | Form::V1 | Form::Bare => (self.method, "method"),
        };
        let name = match name {
            Some(Name::Text(name)) => name,
            Some(Name::Other(found)) => {
                return Err(must_be(member, "a text, the method's name", found.of(text)));
            }
            None => return Err(format!("member `{member}`, the method's name, is missing")),
        };
        let mut params = self.params;
        if form == Form::V2 {
            params = match params.map(|params| (params, params.of(text))) {
                // Some clients write this for a call without params.
                Some((_, "null")) => None,
                Some((_, found)) if !found.starts_with(['[', '{']) => {
                    return Err(must_be("params", "an array or an object", found));
                }
                _ => params,
            };
            if let Some(id) = self.id
                && !is_id(id.of(text))
            {
                return Err(must_be("id", "a text, a number or null", id.of(text)));
            }
        }
        let timeout_ms = match self.timeout.map(|written| written.of(text)) {
            Some(written) => Some(
                timeout_of(written).ok_or_else(|| must_be("timeout_ms", "a positive integer", written))?,
            ),
            None => None,
        };
        Ok((name, timeout_ms, params))
    }

    fn check_version(&self, text: &str) -> Result<(), String> {
        match self.jsonrpc {
            Some(Name::Text(version)) if version.decoded(text) == "2.0" => Ok(()),
            Some(Name::Text(Text { span: found, .. }) | Name::Other(found)) => {
                Err(must_be("jsonrpc", "the text \"2.0\"", found.of(text)))
            }
            None => Err("member `jsonrpc` must be there and the text \"2.0\"".to_owned()),
        }
    }

    /// Readers of JSON differ in which of two members counts, so a proxy could have let another call pass than would be run
    /// here.
    #[cold]
    fn check_twice(&self, form: Form) -> Result<(), String> {
        let ignored = if form == Form::Native { bit::METHOD } else { bit::IN };
        let twice = self.twice & !ignored;
        match bit::NAMES.into_iter().find(|(bit, _)| twice & bit != 0) {
            Some((_, name)) => Err(format!("member `{name}` stands there twice")),
            None => Ok(()),
        }
    }
}

impl Name {
    #[inline]
    fn read(scan: &mut Scanner<'_>) -> Result<Name, Fault> {
        if scan.next_byte() == Some(b'"') {
            scan.text().map(Name::Text)
        } else {
            scan.value().map(Name::Other)
        }
    }
}

/// Whether this JSON is what the specification takes as an id.
fn is_id(written: &str) -> bool {
    written == "null" || written.starts_with(|first: char| matches!(first, '"' | '-' | '0'..='9'))
}

/// A caller's timeout; None if it is no positive integer.
pub(super) fn timeout_of(written: &str) -> Option<u64> {
    if written.is_empty() || !written.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    // More digits than a u64 holds are still a positive integer, and as good as no limit.
    Some(written.parse().unwrap_or(u64::MAX)).filter(|ms| *ms > 0)
}

#[cold]
fn must_be(member: &str, what: &str, found: &str) -> String {
    format!("member `{member}` must be {what}; found `{}`", shortened(found))
}

impl<'a> Message<'a> {
    /// For those that can't run batches: the request, or the answer that there is none.
    pub(crate) fn single(self) -> Result<Request<'a>, Rejected<'a>> {
        match self {
            Message::Single(request) => Ok(request),
            Message::Batch(_) => Err(Rejected::without_id(
                Form::V2,
                Error::invalid_request(&"a batch, where a request is expected"),
            )),
        }
    }
}

impl Rejected<'_> {
    fn without_id(form: Form, error: Error) -> Self {
        Rejected { form, error, id: None }
    }
}

#[cfg(test)]
mod tests;
