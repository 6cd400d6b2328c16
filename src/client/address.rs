//! Reads the address that a client is given. Stands in for `config::address`, which replaces this file.

use std::fmt;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Target {
    Tcp(SocketAddr),
    Unix(PathBuf),
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Target::Tcp(address) => write!(f, "{address}"),
            Target::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Says in a sentence why `addr` is no address and what one looks like.
pub(super) fn parse(addr: &str) -> Result<Target, String> {
    let wrong = |why: &str| {
        format!("expected HOST:PORT such as \"127.0.0.1:8080\", or \"unix:PATH\", found \"{addr}\" ({why})")
    };
    if let Some(path) = addr.strip_prefix("unix:") {
        return match path {
            "" => Err(wrong("a path goes after \"unix:\"")),
            _ => Ok(Target::Unix(PathBuf::from(path))),
        };
    }
    let (host, _) = addr.rsplit_once(':').ok_or_else(|| wrong("a port is missing"))?;
    if host.contains(':') && !host.starts_with('[') {
        return Err(wrong("an IPv6 address stands in brackets, with a port after it"));
    }
    let mut found = addr.to_socket_addrs().map_err(|error| wrong(&error.to_string()))?;
    found.next().map(Target::Tcp).ok_or_else(|| wrong("the name has no address"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_kinds_of_address_are_read_and_shown_as_they_are_written() {
        for text in ["127.0.0.1:8080", "[::1]:9", "unix:/run/tine.sock", "unix:here.sock"] {
            assert_eq!(parse(text).expect(text).to_string(), text);
        }
    }

    #[test]
    fn anything_else_is_refused_with_the_reason() {
        for (text, reason) in
            [("127.0.0.1", "a port is missing"), ("unix:", "a path"), ("::1:80", "brackets")]
        {
            let refused = parse(text).expect_err(text);
            assert!(refused.contains(reason) && refused.contains(text), "{refused}");
        }
    }
}
