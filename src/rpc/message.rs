//! From a message to what it asks for: the native envelope, JSON-RPC 2.0 and 1.0, and batches, told apart by their members.
//!
//! The worker parses with [`parse`], which walks a message once and keeps the places of what it needs; what is answered
//! is `envelope`'s business. Knows no framing: a message here is the JSON alone.

mod members;

use std::borrow::Cow;
use std::ops::Range;

use self::members::Members;
use super::error::{Error, shortened};
use super::json::{RawJson, Span};
use super::scan::{Fault, Scanner};
use crate::sys;

pub(super) use members::timeout_of;

/// How a request was written, and so how the answer to it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Form {
    /// `{"in": …}`, answered `{"out": …}`.
    #[default]
    Native,
    /// JSON-RPC 2.0.
    V2,
    /// JSON-RPC 1.0: without `jsonrpc`, or with `"1.0"` there, as some clients write it.
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
            .map_err(|error| Rejected::without_id(Form::Bare, not_utf8(message, error.valid_up_to())))?;
        let mut scan = Scanner::of_message(text);
        let params = match scan.next_byte() {
            None => Ok(None),
            Some(_) => scan.value().and_then(|params| scan.end().map(|()| Some(params))),
        };
        let rejected = |error| Err(Rejected::without_id(Form::Bare, error));
        match (params, scan.take_half()) {
            (Ok(_), Some(half)) => rejected(Error::half_pair_in_params(half.at, &half)),
            (Ok(params), None) => {
                Ok(Request { form: Form::Bare, method, params, id: None, timeout_ms: None, text })
            }
            (Err(fault), _) => rejected(fault.into()),
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
            Form::V1 => self.id.is_some_and(|id| id.of(self.text) == "null"),
        }
    }
}

/// A message that is no request: what to answer, in which form, and the id to answer with where one could be read.
#[derive(Debug, PartialEq)]
pub(crate) struct Rejected<'a> {
    pub(crate) form: Form,
    pub(crate) error: Error,
    pub(crate) id: Option<RawJson<'a>>,
    /// It is a notification but for what its params hold: nobody waits for the error.
    pub(crate) is_silent: bool,
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

    /// Bytes of its text.
    pub(crate) fn text_len(&self) -> usize {
        self.text.len()
    }

    /// Where its members are in its text, in their order.
    pub(crate) fn places(&self) -> impl Iterator<Item = Range<usize>> + use<'a> {
        let mut scan = Scanner::of_message(self.text);
        let mut more = scan.first_element().unwrap_or(false);
        // The whole array has been walked before, so no fault is found here.
        std::iter::from_fn(move || {
            let place = if more { element(&mut scan).ok()? } else { return None };
            more = scan.next_element().unwrap_or(false);
            Some(place.range())
        })
    }

    /// The members in their order, each parsed when it is asked for. Nothing is allocated for them.
    pub(crate) fn members(&self) -> impl Iterator<Item = Member<'a>> + use<'a> {
        let text = self.text;
        let mut scan = Scanner::of_message(text);
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
#[inline]
pub(crate) fn parse(message: &[u8], fallback: Form) -> Result<Message<'_>, Rejected<'_>> {
    let text = match sys::text::text(message) {
        Ok(text) => text,
        Err(error) => return Err(not_text(message, error.valid_up_to(), fallback)),
    };
    let mut scan = Scanner::of_message(text);
    match scan.next_byte() {
        Some(b'[') => parse_batch(scan, text),
        Some(b'{') | None => {
            let mut members = Members::default();
            let read = members.read_all(&mut scan, text).and_then(|()| scan.end());
            match read {
                Ok(()) => members.to_request(text, fallback).map(Message::Single),
                Err(fault) => Err(Rejected::without_id(members.form_so_far(text, fallback), fault.into())),
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

/// Reads a member of a batch, taken out of it.
pub(crate) fn parse_member(text: &[u8]) -> Result<Request<'_>, Rejected<'_>> {
    let text = match sys::text::text(text) {
        Ok(text) => text,
        Err(error) => return Err(not_text(text, error.valid_up_to(), Form::V2)),
    };
    match member(text, &mut Scanner::new(text)) {
        Ok(member) => member.request,
        Err(fault) => Err(Rejected::without_id(Form::V2, fault.into())),
    }
}

#[cold]
fn not_text(message: &[u8], at: usize, fallback: Form) -> Rejected<'_> {
    let before = message.get(..at).and_then(|before| std::str::from_utf8(before).ok()).unwrap_or_default();
    let mut scan = Scanner::of_message(before);
    let form = if scan.next_byte() == Some(b'[') {
        Form::V2
    } else {
        let mut members = Members::default();
        // What it was before the fault is all that counts here.
        let _ = members.read_all(&mut scan, before);
        members.form_so_far(before, fallback)
    };
    Rejected::without_id(form, not_utf8(message, at))
}

fn not_utf8(message: &[u8], at: usize) -> Error {
    let found = match message {
        [0xff, 0xfe, ..] | [0xfe, 0xff, ..] => "UTF-16 with its byte order mark",
        _ => "other bytes",
    };
    Error::parse(at, &format_args!("byte {at}: expected UTF-8, found {found}"))
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
        element(scan)?;
        count = count.saturating_add(1);
        more = scan.next_element()?;
    }
    scan.end()?;
    Ok(count)
}

/// Passes an element of an array. In a request, as in one that is alone, each value may be as deep as any.
fn element(scan: &mut Scanner<'_>) -> Result<Span, Fault> {
    if scan.next_byte() != Some(b'{') {
        return scan.value();
    }
    let start = scan.place();
    let mut more = scan.first_member()?;
    while more {
        scan.name()?;
        scan.value()?;
        more = scan.next_member()?;
    }
    Ok(Span::new(start, scan.place()))
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
    Ok(Member { place, request: members.to_member(text) })
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
        Rejected { form, error, id: None, is_silent: false }
    }
}

#[cfg(test)]
mod tests;
