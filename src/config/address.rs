//! Where a server listens and a client connects: `HOST:PORT`, IPv6 in brackets, or `unix:PATH`.
//!
//! The config and `--listen` read addresses here, clients by way of `endpoint`. Nothing is bound or connected.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::{fmt, io};

use serde::{Deserialize, Serialize};

/// What the kernel's `sockaddr_un` holds, less the byte that ends it.
const UNIX_PATH_BYTES: usize = 107;

/// One endpoint. Displays in the notation it is written in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Address {
    /// A host name was looked up when the text was read. Port 0 lets the system choose.
    Tcp(SocketAddr),
    /// A socket file; a relative path starts at the working directory.
    Unix(PathBuf),
}

/// Why a text is no address, and how to write it; the sentence goes on after "expected … found …".
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct AddressError {
    found: String,
    advice: String,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { found, advice } = self;
        write!(f, "expected HOST:PORT such as \"127.0.0.1:8080\", or \"unix:PATH\", found {found} ({advice})")
    }
}

impl std::error::Error for AddressError {}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Tcp(address) => write!(f, "{address}"),
            Address::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

impl FromStr for Address {
    type Err = AddressError;

    /// May ask the system's resolver, and wait for it, when HOST is a name.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let parsed = Written::read(text).and_then(|written| match written {
            Written::Unix(path) => Ok(Address::Unix(path)),
            Written::Ip(address) => Ok(Address::Tcp(address)),
            Written::Name(host, port) => look_up(&host, port).map(Address::Tcp),
        });
        parsed.map_err(|advice| AddressError::of(text, advice))
    }
}

impl AddressError {
    pub(super) fn of(text: &str, advice: String) -> Self {
        AddressError { found: super::error::quoted(text), advice }
    }
}

/// An address as a text has it: no name has been looked up yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Written {
    Ip(SocketAddr),
    /// A host's name, or an IPv6 address with the name of an interface, and the port.
    Name(String, u16),
    Unix(PathBuf),
}

impl Written {
    /// The error is the advice of an [`AddressError`].
    pub(super) fn read(text: &str) -> Result<Self, String> {
        match text.strip_prefix("unix:") {
            Some(path) => unix(path),
            None => tcp(text),
        }
    }
}

fn unix(path: &str) -> Result<Written, String> {
    if path.is_empty() {
        return Err("a path goes after \"unix:\"".to_owned());
    }
    if path.contains('\0') {
        return Err("a path has no NUL byte".to_owned());
    }
    if path.len() > UNIX_PATH_BYTES {
        return Err(format!("a socket's path has at most {UNIX_PATH_BYTES} bytes, this has {}", path.len()));
    }
    // `Path::join` and friends treat a trailing slash as nothing, the kernel as "must be a directory".
    if path.ends_with('/') || Path::new(path).file_name().is_none() {
        return Err("the path names a directory, a socket is a file".to_owned());
    }
    Ok(Written::Unix(PathBuf::from(path)))
}

fn tcp(text: &str) -> Result<Written, String> {
    if text.parse::<u16>().is_ok() {
        return Err(format!(
            "write \"127.0.0.1:{text}\" for this machine alone, \"0.0.0.0:{text}\" for every interface"
        ));
    }
    if text.parse::<Ipv6Addr>().is_ok() {
        return Err(format!("an IPv6 address stands in brackets, with a port after it: \"[{text}]:8080\""));
    }
    if text.contains("://") {
        return Err("an address has no scheme and no slashes".to_owned());
    }
    let Some((host, port)) = text.rsplit_once(':') else {
        return Err("a port is missing".to_owned());
    };
    // `u16::from_str` takes a plus sign.
    let port: u16 = Some(port)
        .filter(|port| port.bytes().all(|byte| byte.is_ascii_digit()))
        .and_then(|port| port.parse().ok())
        .ok_or("a port is a whole number from 0 to 65535")?;
    match host.strip_prefix('[').map(|rest| rest.strip_suffix(']')) {
        Some(Some(inside)) => in_brackets(inside, port),
        Some(None) => Err("a bracket is not closed".to_owned()),
        None => without_brackets(host, port),
    }
}

fn in_brackets(host: &str, port: u16) -> Result<Written, String> {
    if let Ok(address) = host.parse::<Ipv6Addr>() {
        return Ok(Written::Ip(SocketAddr::new(IpAddr::V6(address), port)));
    }
    // A zone, as in "fe80::1%eth0": only the resolver can turn an interface's name into its number.
    match host.split_once('%') {
        Some((address, _)) if address.parse::<Ipv6Addr>().is_ok() => Ok(Written::Name(host.to_owned(), port)),
        _ => Err("only an IPv6 address stands in brackets".to_owned()),
    }
}

fn without_brackets(host: &str, port: u16) -> Result<Written, String> {
    if host.is_empty() {
        return Err(format!(
            "a host goes before the port: \"127.0.0.1:{port}\" for this machine alone, \
             \"0.0.0.0:{port}\" for every interface"
        ));
    }
    if let Ok(address) = host.parse::<Ipv4Addr>() {
        return Ok(Written::Ip(SocketAddr::new(IpAddr::V4(address), port)));
    }
    if host.contains(':') {
        return Err(format!("an IPv6 address stands in brackets: \"[::1]:{port}\""));
    }
    // The resolver would take "300" or "1.2.3" for an address written in some older way.
    if host.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.') {
        return Err("an IPv4 address has four numbers from 0 to 255".to_owned());
    }
    if !host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        return Err("a host name has letters, digits, '-', '.' and '_' alone".to_owned());
    }
    Ok(Written::Name(host.to_owned(), port))
}

/// The address that a server listens at.
fn look_up(host: &str, port: u16) -> Result<SocketAddr, String> {
    if cfg!(fuzzing) {
        return Err("no such host: a fuzzer asks nobody".to_owned());
    }
    let found = addresses_of(host, port).map_err(|error| format!("no such host: {error}"))?;
    found.first().copied().ok_or_else(|| "that host has no address".to_owned())
}

/// All that a name stands for now. IPv4 comes first, so that a server at "localhost" also works where IPv6 is switched off
/// and for clients that only know 127.0.0.1.
pub(super) fn addresses_of(host: &str, port: u16) -> io::Result<Vec<SocketAddr>> {
    let mut found: Vec<SocketAddr> = Vec::new();
    for address in (host, port).to_socket_addrs()? {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found.sort_by_key(SocketAddr::is_ipv6);
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_display_as_they_are_written() {
        for text in ["127.0.0.1:8080", "0.0.0.0:0", "[::1]:0", "[::]:65535", "unix:/x y", "unix:tine.sock"] {
            assert_eq!(text.parse::<Address>().map(|address| address.to_string()), Ok(text.to_owned()));
        }
    }

    #[test]
    fn a_host_name_is_looked_up() {
        let Ok(Address::Tcp(address)) = "localhost:80".parse() else { panic!("localhost has no address") };
        assert!(address.ip().is_loopback());
        assert_eq!(address.port(), 80);
    }

    #[test]
    fn what_is_no_address_says_how_to_write_it() {
        let table = [
            ("8080", "write \"127.0.0.1:8080\" for this machine alone, \"0.0.0.0:8080\" for every interface"),
            (
                ":80",
                "a host goes before the port: \"127.0.0.1:80\" for this machine alone, \
                 \"0.0.0.0:80\" for every interface",
            ),
            ("", "a port is missing"),
            ("localhost", "a port is missing"),
            ("127.0.0.1", "a port is missing"),
            ("127.0.0.1:", "a port is a whole number from 0 to 65535"),
            ("127.0.0.1:65536", "a port is a whole number from 0 to 65535"),
            ("127.0.0.1:+80", "a port is a whole number from 0 to 65535"),
            ("127.0.0.1:http", "a port is a whole number from 0 to 65535"),
            ("[::1]", "a port is a whole number from 0 to 65535"),
            ("::1", "an IPv6 address stands in brackets, with a port after it: \"[::1]:8080\""),
            ("fe80:::80", "an IPv6 address stands in brackets: \"[::1]:80\""),
            ("[::1:80", "a bracket is not closed"),
            ("[127.0.0.1]:80", "only an IPv6 address stands in brackets"),
            ("[]:80", "only an IPv6 address stands in brackets"),
            ("256.1.1.1:80", "an IPv4 address has four numbers from 0 to 255"),
            ("1:80", "an IPv4 address has four numbers from 0 to 255"),
            ("http://localhost:80", "an address has no scheme and no slashes"),
            ("local host:80", "a host name has letters, digits, '-', '.' and '_' alone"),
            ("unix:", "a path goes after \"unix:\""),
            ("unix:/tmp/", "the path names a directory, a socket is a file"),
            ("unix:..", "the path names a directory, a socket is a file"),
            ("unix:a\0b", "a path has no NUL byte"),
        ];
        for (text, advice) in table {
            let error = text.parse::<Address>().expect_err(text);
            assert_eq!(error.advice, advice, "{text:?}");
        }
        assert_eq!(
            "127.0.0.1:99999".parse::<Address>().expect_err("port").to_string(),
            "expected HOST:PORT such as \"127.0.0.1:8080\", or \"unix:PATH\", \
             found \"127.0.0.1:99999\" (a port is a whole number from 0 to 65535)"
        );
    }

    #[test]
    fn a_socket_path_fits_the_kernels_address() {
        let longest = format!("unix:/{}", "s".repeat(UNIX_PATH_BYTES - 1));
        assert!(longest.parse::<Address>().is_ok());
        let error = format!("{longest}s").parse::<Address>().expect_err("one byte too long");
        assert_eq!(error.advice, "a socket's path has at most 107 bytes, this has 108");
    }
}
