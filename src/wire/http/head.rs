//! The head of a request: from its first line to the empty one, read by `httparse` and then held to more.
//!
//! What it means for the connection and the body is decided here; the fields that `rpc` asks for are handed on as they are.

use std::mem::MaybeUninit;

use crate::sys;
use crate::wire::fields::{self, Line};
use crate::wire::{HttpError, WireError};

/// The most bytes a head may have, its empty line included.
const MAX_HEAD: usize = 16 * 1024;

/// The most fields a head may have.
const MAX_FIELDS: usize = 100;

/// Stands for the value of a field that is not UTF-8: there is one, and it is equal to nothing that is allowed.
const UNREADABLE: &str = "\u{fffd}";

/// What a request's head says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Head<'a> {
    pub(crate) method: &'a str,
    pub(crate) target: &'a str,
    pub(crate) version: Version,
    /// The connection goes on after the answer.
    pub(crate) keeps_open: bool,
    pub(crate) body: Body,
    /// The body comes once the caller is told `100 Continue`.
    pub(crate) expects_continue: bool,
    pub(crate) content_type: Option<&'a str>,
    pub(crate) content_encoding: Option<&'a str>,
    pub(crate) origin: Option<&'a str>,
    pub(crate) host: Option<&'a str>,
    /// `Request-Timeout-Ms`.
    pub(crate) timeout_ms: Option<&'a str>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    Http10,
    Http11,
}

/// How the body of a request is sent. It has been decoded in what is handed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Body {
    None,
    Length(usize),
    Chunked,
}

/// A head that is not whole yet.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(super) struct Search {
    /// Where the line begins whose end is not known, and up to where it has been looked for. Both 0 at first.
    line: usize,
    looked_at: usize,
}

pub(super) const BARE_LINE_END: HttpError =
    bad("CR LF at the end of each line", "one of them alone, or a control character");

impl Search {
    /// The head and its length, once it is whole.
    ///
    /// Most heads arrive in one piece and are parsed at once; what comes in pieces is parsed when its empty line is there.
    pub(super) fn go_on<'a>(&mut self, arrived: &'a [u8]) -> Result<Option<(Head<'a>, usize)>, WireError> {
        if self.looked_at == 0
            && let Some(whole) = parse(arrived)?
        {
            return Ok(Some(whole));
        }
        if self.ends(arrived)? {
            return Ok(parse(arrived)?);
        }
        if arrived.len() < MAX_HEAD { Ok(None) } else { Err(too_large(arrived).into()) }
    }

    fn ends(&mut self, arrived: &[u8]) -> Result<bool, HttpError> {
        loop {
            match fields::line(arrived, self.line, self.looked_at) {
                Line::Whole { text, .. } if text.is_empty() => return Ok(true),
                Line::Whole { next, .. } => (self.line, self.looked_at) = (next, next),
                Line::BareLineFeed => return Err(BARE_LINE_END),
                Line::NotYet => {
                    self.looked_at = arrived.len();
                    return Ok(false);
                }
            }
        }
    }
}

/// The head at the start of the bytes, and its length; None if it is not whole.
pub(super) fn parse(bytes: &[u8]) -> Result<Option<(Head<'_>, usize)>, HttpError> {
    let within = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    let mut fields = [const { MaybeUninit::uninit() }; MAX_FIELDS];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(within, &mut fields) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() >= MAX_HEAD => return Err(too_large(bytes)),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(malformed(error)),
    };
    if has_bare_line_feed(within.get(..length).unwrap_or_default()) {
        return Err(BARE_LINE_END);
    }
    Ok(Some((understand(&request)?, length)))
}

/// The parser takes a line feed alone for the end of a line.
fn has_bare_line_feed(head: &[u8]) -> bool {
    // All are looked at, whatever is found, so that many are compared at once.
    let pairs = head.iter().zip(head.iter().skip(1));
    pairs.fold(0, |found, (&before, &byte)| found | (u8::from(byte == b'\n') & u8::from(before != b'\r')))
        != 0
}

fn understand<'a>(request: &httparse::Request<'_, 'a>) -> Result<Head<'a>, HttpError> {
    let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version) else {
        return Err(bad("a method, a target and a version", "less"));
    };
    let version = if version == 0 { Version::Http10 } else { Version::Http11 };
    let mut found = Found::default();
    for field in request.headers.iter() {
        found.read(field)?;
    }
    found.check_host(version)?;
    Ok(Head {
        method,
        target,
        version,
        keeps_open: !found.says_close && (version == Version::Http11 || found.says_keep),
        body: found.body(version)?,
        // An older client knows no interim answers.
        expects_continue: found.expects(version)?,
        content_type: found.content_type.map(text),
        content_encoding: found.content_encoding.map(text),
        origin: found.origin.map(text),
        host: found.host.map(text),
        timeout_ms: found.timeout_ms.map(text),
    })
}

/// The fields that mean something to us, as they are come upon.
#[derive(Default)]
struct Found<'a> {
    host: Option<&'a [u8]>,
    length: Option<&'a [u8]>,
    encoding: Option<&'a [u8]>,
    expect: Option<&'a [u8]>,
    says_close: bool,
    says_keep: bool,
    content_type: Option<&'a [u8]>,
    content_encoding: Option<&'a [u8]>,
    origin: Option<&'a [u8]>,
    timeout_ms: Option<&'a [u8]>,
}

impl<'a> Found<'a> {
    fn read(&mut self, field: &httparse::Header<'a>) -> Result<(), HttpError> {
        let name = field.name;
        let (place, once) = if is(name, b"host") {
            (&mut self.host, "one Host")
        } else if is(name, b"content-length") {
            (&mut self.length, "one Content-Length")
        } else if is(name, b"content-type") {
            (&mut self.content_type, "one Content-Type")
        } else if is(name, b"content-encoding") {
            (&mut self.content_encoding, "one Content-Encoding")
        } else if is(name, b"connection") {
            self.read_connection(field.value);
            return Ok(());
        } else if is(name, b"transfer-encoding") {
            (&mut self.encoding, "one Transfer-Encoding")
        } else if is(name, b"expect") {
            (&mut self.expect, "one Expect")
        } else if is(name, b"origin") {
            (&mut self.origin, "one Origin")
        } else if is(name, b"request-timeout-ms") {
            (&mut self.timeout_ms, "one Request-Timeout-Ms")
        } else {
            return Ok(());
        };
        match place.replace(field.value) {
            None => Ok(()),
            Some(_) => Err(bad(once, "several")),
        }
    }

    fn read_connection(&mut self, value: &[u8]) {
        for option in value.split(|&byte| byte == b',') {
            let option = option.trim_ascii();
            self.says_close |= option.eq_ignore_ascii_case(b"close");
            self.says_keep |= option.eq_ignore_ascii_case(b"keep-alive");
        }
    }

    fn check_host(&self, version: Version) -> Result<(), HttpError> {
        match self.host {
            None if version == Version::Http11 => Err(bad("a Host", "none")),
            Some(host) if !host.iter().copied().all(is_host_byte) => {
                Err(bad("a host, and perhaps a port, in Host", "another value"))
            }
            None | Some(_) => Ok(()),
        }
    }

    fn body(&self, version: Version) -> Result<Body, HttpError> {
        match (self.length, self.encoding) {
            (Some(_), Some(_)) => Err(bad("either Content-Length or Transfer-Encoding", "both")),
            (None, None) => Ok(Body::None),
            (Some(length), None) => match fields::decimal(length) {
                Some(length) => Ok(Body::Length(length)),
                None => Err(bad("a Content-Length of at most 15 decimal digits", "another value")),
            },
            (None, Some(_)) if version == Version::Http10 => {
                Err(bad("a Content-Length in HTTP/1.0", "a Transfer-Encoding"))
            }
            (None, Some(encoding)) if encoding.eq_ignore_ascii_case(b"chunked") => Ok(Body::Chunked),
            (None, Some(_)) => {
                Err(HttpError { status: 501, expected: "the Transfer-Encoding `chunked`", found: "another" })
            }
        }
    }

    fn expects(&self, version: Version) -> Result<bool, HttpError> {
        match self.expect {
            None => Ok(false),
            Some(_) if version == Version::Http10 => Ok(false),
            Some(expect) if expect.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            Some(_) => {
                Err(HttpError { status: 417, expected: "`100-continue` in Expect", found: "another value" })
            }
        }
    }
}

fn text(value: &[u8]) -> &str {
    sys::text::text(value).unwrap_or(UNREADABLE)
}

/// True for this name, given in small letters, however it is written. Names that fields may have: in them nothing but a
/// letter differs from another byte by that one bit. The length is fixed, so that many bytes are compared at once.
#[inline]
fn is<const N: usize>(name: &str, small: &[u8; N]) -> bool {
    let Ok(name) = <&[u8; N]>::try_from(name.as_bytes()) else { return false };
    name.iter().zip(small).fold(0, |differ, (&byte, &small)| differ | ((byte | 0x20) ^ small)) == 0
}

/// What a host or an address with a port is made of; two hosts with a comma between them are none.
fn is_host_byte(byte: u8) -> bool {
    matches!(byte, b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' | b'%' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')'
        | b'*' | b'+' | b';' | b'=' | b':' | b'[' | b']')
}

fn malformed(error: httparse::Error) -> HttpError {
    match error {
        httparse::Error::Version => {
            HttpError { status: 505, expected: "HTTP/1.1 or HTTP/1.0", found: "another version" }
        }
        httparse::Error::TooManyHeaders => {
            HttpError { status: 431, expected: "at most 100 header fields", found: "more" }
        }
        httparse::Error::Token => bad("a method, a target and a version", "a byte that has no place there"),
        httparse::Error::HeaderName => {
            bad("`Name: value` in each line", "a name with a byte that has no place there")
        }
        httparse::Error::HeaderValue | httparse::Error::NewLine | httparse::Error::Status => BARE_LINE_END,
    }
}

/// Without the end of the first line, it is that which is too long.
fn too_large(bytes: &[u8]) -> HttpError {
    let within = bytes.get(..MAX_HEAD).unwrap_or(bytes);
    if within.contains(&b'\n') {
        HttpError { status: 431, expected: "a head of at most 16 KiB", found: "a longer one" }
    } else {
        HttpError { status: 414, expected: "a request line of at most 16 KiB", found: "a longer one" }
    }
}

pub(super) const fn bad(expected: &'static str, found: &'static str) -> HttpError {
    HttpError { status: 400, expected, found }
}
