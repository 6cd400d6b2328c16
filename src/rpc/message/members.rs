//! The members of one request: read in one walk, and then held to the rules of the form that they show.
//!
//! Each form has its own rules, and the member that tells the form may be the last, so nothing is judged before all is read.

use super::{Form, Rejected, Request};
use crate::rpc::error::{Error, shortened};
use crate::rpc::json::Span;
use crate::rpc::scan::{Fault, HalfPair, Scanner, Text};

/// A member of a request that means something. Its number is its place among the values, and its bit among those that were seen.
#[derive(Clone, Copy)]
enum Member {
    JsonRpc,
    In,
    Method,
    Params,
    Id,
    Timeout,
}

impl Member {
    const ALL: [Member; 6] = [Self::JsonRpc, Self::In, Self::Method, Self::Params, Self::Id, Self::Timeout];

    /// What it is called; which forms know it is said where this is used.
    fn name(self) -> &'static str {
        match self {
            Self::JsonRpc => "jsonrpc",
            Self::In => "in",
            Self::Method => "method",
            Self::Params => "params",
            Self::Id => "id",
            Self::Timeout => "timeout_ms",
        }
    }

    #[inline]
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"in" => Self::In,
            b"id" => Self::Id,
            b"method" => Self::Method,
            b"params" => Self::Params,
            b"jsonrpc" => Self::JsonRpc,
            b"timeout_ms" => Self::Timeout,
            _ => return None,
        })
    }

    const fn bit(self) -> u8 {
        1 << self as u8
    }
}

/// What stands behind a member's name.
#[derive(Clone, Copy, Default)]
struct Value {
    span: Span,
    /// It is a text in quotes, and that has escapes.
    is_text: bool,
    escaped: bool,
}

impl Value {
    fn text(self) -> Option<Text> {
        self.is_text.then_some(Text { span: self.span, escaped: self.escaped })
    }
}

/// What has been read of a request. What it means is decided when all is read: the member that tells the form may be the last.
#[derive(Default)]
pub(super) struct Members {
    /// Bits of the members that were there, and of those that were there more than once.
    seen: u8,
    twice: u8,
    /// Of members that stand there twice the first is kept.
    values: [Value; Member::ALL.len()],
    /// In a member that means something.
    half: Option<HalfPair>,
}

impl Members {
    /// From the opening brace to behind the closing one.
    #[inline]
    pub(super) fn read_all(&mut self, scan: &mut Scanner<'_>, text: &str) -> Result<(), Fault> {
        let mut more = scan.first_member()?;
        while more {
            let name = scan.name()?;
            self.read(name, scan, text)?;
            more = scan.next_member()?;
        }
        self.half = scan.take_half();
        Ok(())
    }

    #[inline]
    fn read(&mut self, name: Text, scan: &mut Scanner<'_>, text: &str) -> Result<(), Fault> {
        let member = match name.plain(text) {
            Some(plain) => Member::of(plain),
            None => Member::of(name.decoded(text).as_bytes()),
        };
        let value = if scan.next_byte() == Some(b'"') {
            let Text { span, escaped } = scan.text()?;
            Value { span, is_text: true, escaped }
        } else {
            Value { span: scan.value()?, is_text: false, escaped: false }
        };
        let Some(member) = member else {
            scan.forget_half_from(name.span.range().start);
            return Ok(());
        };
        if self.has(member) {
            self.twice |= member.bit();
        } else {
            self.seen |= member.bit();
            self.values[member as usize] = value;
        }
        Ok(())
    }

    #[inline]
    fn has(&self, member: Member) -> bool {
        self.seen & member.bit() != 0
    }

    #[inline]
    fn get(&self, member: Member) -> Option<Value> {
        self.has(member).then_some(self.values[member as usize])
    }

    #[inline]
    fn span(&self, member: Member) -> Option<Span> {
        self.get(member).map(|value| value.span)
    }

    /// The form that the members so far show. A `jsonrpc` may still come behind a `method`, and a client of version 1.0
    /// understands an error of version 2.0 as one.
    #[cold]
    pub(super) fn form_so_far(&self, text: &str, fallback: Form) -> Form {
        if self.has(Member::JsonRpc) {
            self.form_of_version(text)
        } else if self.has(Member::In) {
            Form::Native
        } else if self.has(Member::Method) {
            Form::V2
        } else {
            fallback
        }
    }

    #[inline]
    pub(super) fn to_request<'a>(&self, text: &'a str, fallback: Form) -> Result<Request<'a>, Rejected<'a>> {
        let form = if self.has(Member::JsonRpc) {
            self.form_of_version(text)
        } else if self.has(Member::In) {
            Form::Native
        } else if self.has(Member::Method) && self.has(Member::Id) {
            Form::V1
        } else {
            fallback
        };
        self.to_form(text, form)
    }

    /// The form that the member `jsonrpc` names. What is no version at all is held to version 2.0, which has that member.
    #[inline]
    fn form_of_version(&self, text: &str) -> Form {
        if self.is_version(text, "1.0") { Form::V1 } else { Form::V2 }
    }

    #[inline]
    fn is_version(&self, text: &str, version: &str) -> bool {
        let written = self.get(Member::JsonRpc).and_then(Value::text);
        written.is_some_and(|written| match written.plain(text) {
            Some(plain) => plain == version.as_bytes(),
            None => written.decoded(text) == version,
        })
    }

    /// A batch is JSON-RPC 2.0 and nothing else.
    pub(super) fn to_member<'a>(&self, text: &'a str) -> Result<Request<'a>, Rejected<'a>> {
        self.to_form(text, Form::V2)
    }

    #[inline]
    fn to_form<'a>(&self, text: &'a str, form: Form) -> Result<Request<'a>, Rejected<'a>> {
        let (name, timeout_ms) = match self.check(text, form) {
            Ok(checked) => checked,
            Err(what) => return Err(self.rejected(text, form, &what)),
        };
        let mut params = self.span(Member::Params);
        // Some clients write this for a call without params.
        if form == Form::V2 && params.is_some_and(|params| params.of(text) == "null") {
            params = None;
        }
        let id = self.span(Member::Id);
        let request = Request { form, method: name.decoded(text), params, id, timeout_ms, text };
        match self.half {
            None => Ok(request),
            Some(half) => Err(self.with_half(&request, half)),
        }
    }

    #[cold]
    fn rejected<'a>(&self, text: &'a str, form: Form, what: &str) -> Rejected<'a> {
        // Version 2.0 wants null where it can't be told which one is meant.
        let is_told = |id: &Span| self.twice & Member::Id.bit() == 0 && is_id(id.of(text));
        let id = self.span(Member::Id).filter(|id| form != Form::V2 || is_told(id));
        let id = id.map(|span| span.json(text));
        Rejected { form, error: Error::invalid_request(&what), id, is_silent: false }
    }

    /// A request that would be right if all of its texts were some. Only it is refused, with its id as it was written: what stands
    /// around it is read in one way alone.
    #[cold]
    fn with_half<'a>(&self, request: &Request<'a>, half: HalfPair) -> Rejected<'a> {
        let is_in_params = self.span(Member::Params).is_some_and(|params| params.range().contains(&half.at));
        let error = if is_in_params {
            Error::half_pair_in_params(half.at, &half)
        } else {
            Error::invalid_request(&half)
        };
        Rejected { form: request.form, error, id: request.id(), is_silent: request.is_notification() }
    }

    /// Name and timeout, or the first thing that is wrong in this form.
    #[inline]
    fn check(&self, text: &str, form: Form) -> Result<(Text, Option<u64>), String> {
        if form == Form::V2 {
            if !self.is_version(text, "2.0") {
                return Err(self.wrong_version(text));
            }
        } else if form == Form::V1 && !self.has(Member::Id) {
            return Err("member `id` is missing; in version 1.0 it is null where no answer is wanted".into());
        }
        if self.twice != 0 {
            self.check_twice(form)?;
        }
        let member = if form == Form::Native { Member::In } else { Member::Method };
        let Some(name) = self.get(member).and_then(Value::text) else {
            return Err(self.no_name(text, member));
        };
        if form == Form::V2 {
            self.check_params_and_id(text)?;
        }
        let timeout_ms = match self.span(Member::Timeout).map(|written| written.of(text)) {
            Some(written) => Some(
                timeout_of(written).ok_or_else(|| must_be("timeout_ms", "a positive integer", written))?,
            ),
            None => None,
        };
        Ok((name, timeout_ms))
    }

    #[inline]
    fn check_params_and_id(&self, text: &str) -> Result<(), String> {
        if let Some(params) = self.span(Member::Params).map(|params| params.of(text))
            && !matches!(params.as_bytes(), [b'[' | b'{', ..] | b"null")
        {
            return Err(must_be("params", "an array or an object", params));
        }
        if let Some(id) = self.span(Member::Id).map(|id| id.of(text))
            && !is_id(id)
        {
            return Err(must_be("id", "a text, a number or null", id));
        }
        Ok(())
    }

    #[cold]
    fn wrong_version(&self, text: &str) -> String {
        match self.span(Member::JsonRpc) {
            Some(found) => must_be("jsonrpc", "the text \"2.0\"", found.of(text)),
            None => "member `jsonrpc` must be there and the text \"2.0\"".to_owned(),
        }
    }

    #[cold]
    fn no_name(&self, text: &str, member: Member) -> String {
        match (self.span(member), member) {
            (Some(found), _) => must_be(member.name(), "a text, the method's name", found.of(text)),
            (None, Member::In) if self.has(Member::Method) => {
                "a `method` needs `jsonrpc` beside it, or `id` in version 1.0; a native call has `in`".into()
            }
            (None, _) => format!("member `{}`, the method's name, is missing", member.name()),
        }
    }

    /// Readers of JSON differ in which of two members counts, so a proxy could have let another call pass than would be run
    /// here.
    #[cold]
    fn check_twice(&self, form: Form) -> Result<(), String> {
        let ignored = if form == Form::Native { Member::Method } else { Member::In };
        let twice = self.twice & !ignored.bit();
        match Member::ALL.into_iter().find(|member| twice & member.bit() != 0) {
            Some(member) => Err(format!("member `{}` stands there twice", member.name())),
            None => Ok(()),
        }
    }
}

/// Whether this JSON is what the specification takes as an id.
fn is_id(written: &str) -> bool {
    matches!(written.as_bytes(), [b'"' | b'-' | b'0'..=b'9', ..] | b"null")
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
