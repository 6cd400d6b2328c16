//! What an HTTP request means to this server: which call it is, or why it is none, and who may make it from a page.
//!
//! The worker hands over a head that `wire` has parsed and the body that belongs to it; nothing here reads or writes a
//! socket, and nothing runs a call. How answers are written is in `web/answer.rs`.

pub(crate) mod answer;
pub(crate) mod date;
pub(crate) mod pages;

use std::borrow::Cow;

use super::error::{Error, shortened};
use super::message::{Batch, Form, Message, Rejected, Request, parse, timeout_of};
use super::registry::Registry;
use pages::Pages;

/// What the head of a request says, as far as it matters here.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Asked<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) content_encoding: Option<&'a str>,
    pub(crate) origin: Option<&'a str>,
    pub(crate) host: Option<&'a str>,
    /// `Request-Timeout-Ms`, as written.
    pub(crate) timeout_ms: Option<&'a str>,
}

/// What is to be done for a request.
#[derive(Debug, PartialEq)]
pub(crate) enum Wanted<'a> {
    /// Run a call, with its places in the body; a timeout in the head is in it already.
    Call(Request<'a>),
    /// Run a batch; each member has this timeout at most.
    Batch { batch: Batch<'a>, timeout_ms: Option<u64> },
    /// Answer an error in the form of the message.
    Rejected(Rejected<'a>),
    /// `GET /healthz`: whether the worker lives.
    Healthz,
    /// `GET /readyz`: whether it takes calls.
    Readyz,
    /// Tell a browser that a page may call: 204.
    Preflight,
    /// Answer 204 and what is allowed here.
    Options { allow: &'static str },
    /// Refuse the request itself.
    Refused(Refusal),
}

/// A request that is not for us.
#[derive(Debug, PartialEq)]
pub(crate) struct Refusal {
    pub(crate) status: u16,
    pub(crate) error: Error,
    /// What the header `Allow` says, with status 405.
    pub(crate) allow: Option<&'static str>,
    /// It is of a page that may not call, or not with such a body.
    pub(crate) is_page: bool,
}

const ALLOW_CALL: &str = "POST, OPTIONS";
const ALLOW_HEALTH: &str = "GET, HEAD, OPTIONS";

impl Refusal {
    fn new(status: u16, what: impl std::fmt::Display) -> Refusal {
        Refusal { status, error: Error::invalid_request(&what), allow: None, is_page: false }
    }

    fn not_allowed(allow: &'static str, what: impl std::fmt::Display) -> Refusal {
        Refusal { allow: Some(allow), ..Refusal::new(405, what) }
    }
}

/// What a request asks for.
///
/// `pages` says who may call from a browser; `registry` is asked only whether a page that somebody wants to `GET` is a
/// method after all.
pub(crate) fn read<'a>(asked: &Asked<'a>, body: &'a [u8], pages: &Pages, registry: &Registry) -> Wanted<'a> {
    match understand(asked, body, pages, registry) {
        Ok(wanted) => wanted,
        Err(refusal) => Wanted::Refused(refusal),
    }
}

fn understand<'a>(
    asked: &Asked<'a>,
    body: &'a [u8],
    pages: &Pages,
    registry: &Registry,
) -> Result<Wanted<'a>, Refusal> {
    check_page(asked, body, pages)?;
    let path = match path_of(asked.target) {
        // Its target is none: the name of a host.
        Err(_) if asked.method == "CONNECT" => "/",
        path => path?,
    };
    match asked.method {
        "POST" => call(asked, path, body),
        "GET" | "HEAD" => match path {
            "/healthz" => Ok(Wanted::Healthz),
            "/readyz" => Ok(Wanted::Readyz),
            _ => Err(no_page(path, registry)),
        },
        "OPTIONS" if asked.origin.is_some() => Ok(Wanted::Preflight),
        "OPTIONS" => Ok(Wanted::Options { allow: allowed_at(path) }),
        "PUT" | "DELETE" | "PATCH" | "TRACE" | "CONNECT" => Err(Refusal::not_allowed(
            allowed_at(path),
            format_args!("expected `POST`, found `{}`", asked.method),
        )),
        other => Err(Refusal::new(
            501,
            format_args!(
                "expected a method of HTTP that is known here, as `POST`; found `{}`",
                shortened(other)
            ),
        )),
    }
}

/// What a page in somebody's browser may not do is refused before anything else is looked at. Without an `Origin` the caller is no
/// page of another site.
fn check_page(asked: &Asked<'_>, body: &[u8], pages: &Pages) -> Result<(), Refusal> {
    let Some(origin) = asked.origin else {
        return Ok(());
    };
    let refused =
        |status, what: &dyn std::fmt::Display| Refusal { is_page: true, ..Refusal::new(status, what) };
    // A page may send other types without asking first.
    if !body.is_empty() && !asked.content_type.is_some_and(is_json) {
        let (origin, found) =
            (shortened(origin), asked.content_type.map_or(Cow::Borrowed("none"), shortened));
        return Err(refused(
            415,
            &format_args!(
                "expected the header `Content-Type: application/json` from a page of `{origin}`, found `{found}`"
            ),
        ));
    }
    if pages.allowed(origin, asked.host).is_none() {
        let origin = shortened(origin);
        return Err(refused(
            403,
            &format_args!("pages of `{origin}` may not call; `allow_origins` in `[http]` has those that may"),
        ));
    }
    Ok(())
}

/// A body is read as it comes: one that is compressed is no JSON, and its caller should learn why.
fn check_encoding(asked: &Asked<'_>) -> Result<(), Refusal> {
    match asked.content_encoding {
        Some(encoding) if !encoding.eq_ignore_ascii_case("identity") => {
            let found = shortened(encoding);
            Err(Refusal::new(
                415,
                format_args!("expected a body without `Content-Encoding`, found it encoded as `{found}`"),
            ))
        }
        _ => Ok(()),
    }
}

fn is_json(content_type: &str) -> bool {
    let kind = content_type.split(';').next().unwrap_or_default().trim();
    let ends = |end: &str| {
        kind.len()
            .checked_sub(end.len())
            .and_then(|at| kind.get(at..))
            .is_some_and(|kind| kind.eq_ignore_ascii_case(end))
    };
    let known = ["application/json", "application/json-rpc", "application/jsonrequest"];
    known.iter().any(|known| kind.eq_ignore_ascii_case(known)) || (kind.contains('/') && ends("+json"))
}

/// The path of a target, without a query: nothing here has one.
fn path_of(target: &str) -> Result<&str, Refusal> {
    // No target has one: who cuts it off and who does not sees another path.
    if target.contains('#') {
        return Err(Refusal::new(
            400,
            format_args!("expected a target without `#`, found `{}`", shortened(target)),
        ));
    }
    let target = target.split('?').next().unwrap_or_default();
    if target.starts_with('/') || target == "*" {
        return Ok(target);
    }
    // As it is sent to a proxy: `http://host/path`.
    match target.split_once("://") {
        Some((_, rest)) => Ok(rest.find('/').and_then(|slash| rest.get(slash..)).unwrap_or("/")),
        None => Err(Refusal::new(
            400,
            format_args!("expected a path that starts with `/`, found `{}`", shortened(target)),
        )),
    }
}

fn allowed_at(path: &str) -> &'static str {
    if matches!(path, "/healthz" | "/readyz") { ALLOW_HEALTH } else { ALLOW_CALL }
}

fn no_page(path: &str, registry: &Registry) -> Refusal {
    let name = method_name(path).unwrap_or_default();
    if path == "/" || registry.find(&name).is_some() {
        return Refusal::not_allowed(ALLOW_CALL, "a call is made with `POST`, found `GET` or `HEAD`");
    }
    let path = shortened(path);
    Refusal::new(
        404,
        format_args!(
            "there is no page `{path}`; calls are made with `POST`, health is at `/healthz` and `/readyz`"
        ),
    )
}

fn call<'a>(asked: &Asked<'a>, path: &'a str, body: &'a [u8]) -> Result<Wanted<'a>, Refusal> {
    check_encoding(asked)?;
    let timeout_ms = match asked.timeout_ms {
        Some(written) => Some(timeout_of(written).ok_or_else(|| {
            let found = shortened(written);
            Refusal::new(
                400,
                format_args!("the header `Request-Timeout-Ms` must be a positive integer; found `{found}`"),
            )
        })?),
        None => None,
    };
    if path == "/" {
        return Ok(match parse(body, Form::V2) {
            Ok(Message::Single(request)) => Wanted::Call(request.within(timeout_ms)),
            Ok(Message::Batch(batch)) => Wanted::Batch { batch, timeout_ms },
            Err(rejected) => Wanted::Rejected(rejected),
        });
    }
    Ok(match Request::bare(method_name(path)?, body) {
        Ok(request) => Wanted::Call(request.within(timeout_ms)),
        Err(rejected) => Wanted::Rejected(rejected),
    })
}

/// The caller's timeout as its header says it, before anything else of the request is looked at. None where there is no right one.
pub(crate) fn timeout_ms(written: Option<&str>) -> Option<u64> {
    written.and_then(timeout_of)
}

/// The name of the method that stands in a path, freed of `%` escapes.
fn method_name(path: &str) -> Result<Cow<'_, str>, Refusal> {
    let name = path.strip_prefix('/').unwrap_or(path);
    if !name.contains('%') {
        return Ok(Cow::Borrowed(name));
    }
    percent_decoded(name).map(Cow::Owned).ok_or_else(|| {
        let found = shortened(name);
        Refusal::new(
            400,
            format_args!("expected a method's name in UTF-8, with two hexadecimal digits behind each `%`; found `{found}`"),
        )
    })
}

fn percent_decoded(text: &str) -> Option<String> {
    let mut decoded = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte != b'%' {
            decoded.push(byte);
            continue;
        }
        let mut digit = || char::from(bytes.next()?).to_digit(16);
        decoded.push(u8::try_from(digit()? << 4 | digit()?).ok()?);
    }
    String::from_utf8(decoded).ok()
}

#[cfg(test)]
mod tests;
