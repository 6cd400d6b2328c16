//! Answers as HTTP has them: the status of an error, and the head before a body.
//!
//! A handler writes its result straight into the output, and only then is it known how long it is and what became of the call: the
//! head is put before the body when that is done.

use std::io::Write as _;

use super::pages::Pages;
use super::{Error, Form, Refusal, Wanted};
use crate::rpc::reply::write_value;

/// How an answer is written, apart from what it says: fixed by the request, and known before the call is run.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Answering<'a> {
    /// The date as [`imf_fixdate`](super::date::imf_fixdate) writes it.
    pub(crate) date: &'a str,
    /// The request said HTTP/1.0.
    pub(crate) is_old: bool,
    /// The connection goes on after this answer.
    pub(crate) keeps_open: bool,
    /// The request was `HEAD`, so the body is only announced.
    pub(crate) head_only: bool,
    /// What `Access-Control-Allow-Origin` says, where the request came from a page of a listed origin.
    pub(crate) allowed_origin: Option<&'a str>,
    pub(crate) pages: &'a Pages,
}

/// What only some answers have in their head.
#[derive(Debug, Clone, Copy, Default)]
struct Extra {
    allow: Option<&'static str>,
    retry_after_ms: Option<u64>,
    preflight: bool,
}

/// The status that an answer has. With an envelope the error is inside, and HTTP did its part.
pub(crate) fn status_of(form: Form, error: Option<&Error>) -> u16 {
    let (Form::Bare, Some(error)) = (form, error) else {
        return 200;
    };
    match error.code() {
        Error::PARSE | Error::INVALID_REQUEST => 400,
        Error::METHOD_NOT_FOUND => 404,
        Error::INVALID_PARAMS => 422,
        Error::OVERLOADED | Error::QUARANTINED => 503,
        Error::DEADLINE => 504,
        Error::CRASHED => 502,
        Error::TOO_LARGE => 413,
        _ => error.status().unwrap_or(500),
    }
}

impl Answering<'_> {
    /// Ends an answer whose body begins at `start`, and puts its head before it. `error` is what became of the call, and
    /// `form` how the body says so; `status` is for who knows better, of a request that is none, say.
    pub(crate) fn end(
        &self,
        out: &mut Vec<u8>,
        start: usize,
        form: Form,
        error: Option<&Error>,
        status: Option<u16>,
    ) {
        let status = status.unwrap_or_else(|| status_of(form, error));
        let retry_after_ms = if status == 503 { error.and_then(Error::retry_after_ms) } else { None };
        self.put_head(out, start, status, Extra { retry_after_ms, ..Extra::default() });
    }

    /// Answers what needs no method. `is_ready`: calls are taken.
    pub(crate) fn page(&self, out: &mut Vec<u8>, page: &Wanted<'_>, is_ready: bool) {
        match page {
            Wanted::Healthz => self.health(out, true),
            Wanted::Readyz => self.health(out, is_ready),
            Wanted::Preflight => self.preflight(out),
            Wanted::Options { allow } => self.options(out, allow),
            Wanted::Refused(refusal) => self.refuse(out, refusal),
            // They are run, and answered by what comes of it.
            Wanted::Call(_) | Wanted::Batch { .. } | Wanted::Rejected(_) => self.nothing(out),
        }
    }

    /// Answers that there is nothing to answer: 204.
    pub(crate) fn nothing(&self, out: &mut Vec<u8>) {
        let start = out.len();
        self.put_head(out, start, 204, Extra::default());
    }

    /// Tells what may be done with a path: 204.
    fn options(&self, out: &mut Vec<u8>, allow: &'static str) {
        let start = out.len();
        self.put_head(out, start, 204, Extra { allow: Some(allow), ..Extra::default() });
    }

    /// Tells a browser that a page may call: 204.
    fn preflight(&self, out: &mut Vec<u8>) {
        let start = out.len();
        self.put_head(out, start, 204, Extra { preflight: true, ..Extra::default() });
    }

    /// Refuses a request.
    fn refuse(&self, out: &mut Vec<u8>, refusal: &Refusal) {
        self.error(out, refusal.status, &refusal.error, refusal.allow);
    }

    fn error(&self, out: &mut Vec<u8>, status: u16, error: &Error, allow: Option<&'static str>) {
        let start = out.len();
        if write_value(error, out).is_err() {
            out.extend_from_slice(br#"{"code":-32603,"message":"internal error"}"#);
        }
        let retry_after_ms = if status == 503 { error.retry_after_ms() } else { None };
        self.put_head(out, start, status, Extra { allow, retry_after_ms, preflight: false });
    }

    /// Answers `/healthz` or `/readyz`.
    fn health(&self, out: &mut Vec<u8>, is_well: bool) {
        let start = out.len();
        out.extend_from_slice(health(is_well));
        self.put_head(out, start, if is_well { 200 } else { 503 }, Extra::default());
    }

    fn put_head(&self, out: &mut Vec<u8>, start: usize, status: u16, extra: Extra) {
        let body_end = out.len();
        self.write_head(out, status, body_end.saturating_sub(start), extra);
        let head = out.len() - body_end;
        if let Some(answer) = out.get_mut(start..) {
            answer.rotate_right(head);
        }
        if self.head_only {
            out.truncate(start.saturating_add(head));
        }
    }

    fn write_head(&self, out: &mut Vec<u8>, status: u16, length: usize, extra: Extra) {
        match status {
            200 => out.extend_from_slice(b"HTTP/1.1 200 OK"),
            status => put(out, format_args!("HTTP/1.1 {status} {}", reason(status))),
        }
        if status != 204 {
            out.extend_from_slice(b"\r\nContent-Type: application/json\r\nContent-Length: ");
            put_number(out, length);
        }
        put_field(out, "Date", self.date);
        match (self.keeps_open, self.is_old) {
            (false, _) => put_field(out, "Connection", "close"),
            (true, true) => put_field(out, "Connection", "keep-alive"),
            (true, false) => {}
        }
        if let Some(allow) = extra.allow {
            put_field(out, "Allow", allow);
        }
        if let Some(ms) = extra.retry_after_ms {
            put(out, format_args!("\r\nRetry-After: {}", ms.div_ceil(1000)));
        }
        if let Some(origin) = self.allowed_origin {
            put_field(out, "Access-Control-Allow-Origin", origin);
            if extra.preflight {
                put_field(out, "Access-Control-Allow-Methods", "POST, GET, HEAD");
                put_field(out, "Access-Control-Allow-Headers", self.pages.headers());
                put_field(out, "Access-Control-Max-Age", "600");
            } else {
                put_field(out, "Access-Control-Expose-Headers", "Retry-After");
            }
        }
        if self.pages.answers_vary() {
            put_field(out, "Vary", "Origin");
        }
        out.extend_from_slice(b"\r\n\r\n");
    }
}

/// The body of an answer to `/healthz` or `/readyz`.
fn health(is_well: bool) -> &'static [u8] {
    if is_well { br#"{"status":"ok"}"# } else { br#"{"status":"unavailable"}"# }
}

fn put_field(out: &mut Vec<u8>, name: &str, value: &str) {
    for part in ["\r\n", name, ": ", value] {
        out.extend_from_slice(part.as_bytes());
    }
}

fn put(out: &mut Vec<u8>, text: std::fmt::Arguments<'_>) {
    // Nothing that is appended to a vector fails.
    let _ = out.write_fmt(text);
}

/// In every answer, so without the machinery of formatting.
fn put_number(out: &mut Vec<u8>, mut number: usize) {
    let start = out.len();
    loop {
        out.push(b'0' + u8::try_from(number % 10).unwrap_or_default());
        number /= 10;
        if number == 0 {
            break;
        }
    }
    if let Some(digits) = out.get_mut(start..) {
        digits.reverse();
    }
}

fn reason(status: u16) -> &'static str {
    match status {
        204 => "No Content",
        400 => "Bad Request",
        401 => "Unauthorized",
        403 => "Forbidden",
        404 => "Not Found",
        405 => "Method Not Allowed",
        408 => "Request Timeout",
        409 => "Conflict",
        410 => "Gone",
        413 => "Content Too Large",
        414 => "URI Too Long",
        415 => "Unsupported Media Type",
        417 => "Expectation Failed",
        422 => "Unprocessable Content",
        429 => "Too Many Requests",
        431 => "Request Header Fields Too Large",
        500 => "Internal Server Error",
        501 => "Not Implemented",
        502 => "Bad Gateway",
        503 => "Service Unavailable",
        504 => "Gateway Timeout",
        505 => "HTTP Version Not Supported",
        // A handler may choose any; the text means nothing.
        _ if status < 500 => "Client Error",
        _ => "Server Error",
    }
}

#[cfg(test)]
mod tests;
