//! The members of one request: read in one walk, and then held to the rules of the form that they show.
//!
//! Each form has its own rules, and the member that tells the form may be the last, so nothing is judged before all is read.

use super::{Form, Rejected, Request};
use crate::rpc::error::{Error, shortened};
use crate::rpc::json::Span;
use crate::rpc::scan::{Fault, HalfPair, Scanner, Text};

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
pub(super) struct Members {
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
    /// In a member that means something.
    half: Option<HalfPair>,
}

impl Members {
    /// From the opening brace to behind the closing one.
    #[inline]
    pub(super) fn read_all(&mut self, scan: &mut Scanner<'_>, text: &str) -> Result<(), Fault> {
        let mut key = scan.first_member()?;
        while let Some(name) = key {
            self.read(name, scan, text)?;
            key = scan.next_member()?;
        }
        self.half = scan.take_half();
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
                scan.forget_half_from(name.span.range().start);
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
    pub(super) fn form_so_far(&self, text: &str, fallback: Form) -> Form {
        if self.seen & bit::JSONRPC != 0 {
            self.form_of_version(text)
        } else if self.seen & bit::IN != 0 {
            Form::Native
        } else if self.seen & bit::METHOD != 0 {
            Form::V2
        } else {
            fallback
        }
    }

    #[inline]
    pub(super) fn to_request<'a>(&self, text: &'a str, fallback: Form) -> Result<Request<'a>, Rejected<'a>> {
        let form = if self.seen & bit::JSONRPC != 0 {
            self.form_of_version(text)
        } else if self.seen & bit::IN != 0 {
            Form::Native
        } else if self.seen & bit::METHOD != 0 && self.id.is_some() {
            Form::V1
        } else {
            fallback
        };
        self.to_form(text, form)
    }

    /// The form that the member `jsonrpc` names. What is no version at all is held to version 2.0, which has that member.
    #[inline]
    fn form_of_version(&self, text: &str) -> Form {
        match self.jsonrpc {
            Some(Name::Text(version)) if version.decoded(text) == "1.0" => Form::V1,
            _ => Form::V2,
        }
    }

    /// A batch is JSON-RPC 2.0 and nothing else.
    pub(super) fn to_member<'a>(&self, text: &'a str) -> Result<Request<'a>, Rejected<'a>> {
        self.to_form(text, Form::V2)
    }

    #[inline]
    fn to_form<'a>(&self, text: &'a str, form: Form) -> Result<Request<'a>, Rejected<'a>> {
        let (name, timeout_ms, params) = match self.check(text, form) {
            Ok(checked) => checked,
            Err(what) => return Err(self.rejected(text, form, &what)),
        };
        let request = Request { form, method: name.decoded(text), params, id: self.id, timeout_ms, text };
        match self.half {
            None => Ok(request),
            Some(half) => Err(self.with_half(&request, half)),
        }
    }

    #[cold]
    fn rejected<'a>(&self, text: &'a str, form: Form, what: &str) -> Rejected<'a> {
        // Version 2.0 wants null where it can't be told which one is meant.
        let is_told = |id: &Span| self.twice & bit::ID == 0 && is_id(id.of(text));
        let id = self.id.filter(|id| form != Form::V2 || is_told(id));
        let id = id.map(|span| span.json(text));
        Rejected { form, error: Error::invalid_request(&what), id, is_silent: false }
    }

    /// A request that would be right if all of its texts were some. Only it is refused, with its id as it was written: what stands
    /// around it is read in one way alone.
    #[cold]
    fn with_half<'a>(&self, request: &Request<'a>, half: HalfPair) -> Rejected<'a> {
        let is_in_params = self.params.is_some_and(|params| params.range().contains(&half.at));
        let error = if is_in_params {
            Error::half_pair_in_params(half.at, &half)
        } else {
            Error::invalid_request(&half)
        };
        Rejected { form: request.form, error, id: request.id(), is_silent: request.is_notification() }
    }

    /// Name, timeout and params, or the first thing that is wrong in this form.
    #[inline]
    fn check(&self, text: &str, form: Form) -> Result<(Text, Option<u64>, Option<Span>), String> {
        if form == Form::V2 {
            self.check_version(text)?;
        } else if form == Form::V1 && self.id.is_none() {
            return Err("member `id` is missing; in version 1.0 it is null where no answer is wanted".into());
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
            None if form == Form::Native && self.method.is_some() => {
                return Err(
                    "a `method` needs `jsonrpc` beside it, or `id` in version 1.0; a native call has `in`"
                        .into(),
                );
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
pub(in crate::rpc) fn timeout_of(written: &str) -> Option<u64> {
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
