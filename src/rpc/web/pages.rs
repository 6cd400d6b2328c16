//! Which pages may call from a browser, by the `Origin` and `Host` of their requests, and what answers tell their browsers.
//!
//! Values in, decision out. Other fields, such as `X-Forwarded-Host`, are not looked at: a page can't be held to what it may set.

use std::net::{IpAddr, Ipv6Addr};

/// In the list of origins, it stands for the API's own.
const OWN: &str = "self";

/// Fields that a page may send in any case.
const HEADERS: &str = "Content-Type, Request-Timeout-Ms";

/// What the configuration lets pages do.
#[derive(Debug, Clone)]
pub(crate) struct Pages {
    /// As browsers write them; `*` is all, and `self` the API's own.
    origins: Vec<String>,
    /// Names by which pages of its own know the API, beside IP addresses and `localhost`.
    hosts: Vec<String>,
    /// The value of `Access-Control-Allow-Headers`.
    headers: String,
}

/// Why a page may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Allowed {
    /// Its origin stands at that place of the list.
    Listed(u16),
    /// It is of the API's own origin. Its browser asks for no leave, and is told of none: a page of the same host behind another
    /// scheme could else read the answer.
    Own,
}

impl Pages {
    #[cfg(test)]
    pub(crate) const NONE: Pages = Pages { origins: Vec::new(), hosts: Vec::new(), headers: String::new() };

    pub(crate) fn new(origins: &[String], headers: &[String], hosts: &[String]) -> Self {
        let headers = headers.iter().fold(HEADERS.to_owned(), |all, header| all + ", " + header);
        Self { origins: origins.to_vec(), hosts: hosts.to_vec(), headers }
    }

    /// Whether a page of this origin may call, `host` being that of its request.
    pub(crate) fn allowed(&self, origin: &str, host: Option<&str>) -> Option<Allowed> {
        let listed =
            self.origins.iter().position(|allowed| allowed == "*" || (allowed == origin && allowed != OWN));
        if let Some(place) = listed.and_then(|place| u16::try_from(place).ok()) {
            return Some(Allowed::Listed(place));
        }
        let may_be_own = self.origins.iter().any(|allowed| allowed == OWN);
        (may_be_own && host.is_some_and(|host| self.is_own(origin, host))).then_some(Allowed::Own)
    }

    /// The value of `Access-Control-Allow-Origin`.
    pub(crate) fn listed(&self, place: u16) -> Option<&str> {
        self.origins.get(usize::from(place)).map(String::as_str)
    }

    pub(crate) fn headers(&self) -> &str {
        &self.headers
    }

    /// Answers depend on the origin, whoever asks: a cache must not give one's to another.
    pub(crate) fn answers_vary(&self) -> bool {
        !self.origins.is_empty()
    }

    /// A page that was loaded from here: its origin is where it calls. That alone would also be so for a name of somebody's that
    /// leads to this machine since its page was loaded, so the name must be one that is known.
    fn is_own(&self, origin: &str, host: &str) -> bool {
        let Some((scheme, from)) = origin.split_once("://") else { return false };
        let usual = match scheme {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };
        match (Authority::read(from, usual), Authority::read(host, usual)) {
            (Some(from), Some(to)) => from == to && self.is_known(&to.host),
            _ => false,
        }
    }

    fn is_known(&self, host: &Host) -> bool {
        match host {
            Host::Ip(_) => true,
            Host::Name(name) => name == "localhost" || self.hosts.contains(name),
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Authority {
    host: Host,
    port: u16,
}

#[derive(Debug, PartialEq, Eq)]
enum Host {
    Ip(IpAddr),
    /// In lower case.
    Name(String),
}

impl Authority {
    /// `usual`: the port where none is written.
    fn read(text: &str, usual: u16) -> Option<Self> {
        let (host, port) = match text.rsplit_once(':') {
            // A colon inside of the brackets is the address's.
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (text, ""),
        };
        let port = match port {
            "" if text.ends_with(':') => return None,
            "" => usual,
            port if port.bytes().all(|byte| byte.is_ascii_digit()) => port.parse().ok()?,
            _ => return None,
        };
        let host = match host.strip_prefix('[') {
            Some(rest) => Host::Ip(IpAddr::V6(rest.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?)),
            None => match host.parse::<IpAddr>() {
                Ok(IpAddr::V4(address)) => Host::Ip(IpAddr::V4(address)),
                Ok(IpAddr::V6(_)) => return None,
                Err(_) if host.is_empty() => return None,
                Err(_) => Host::Name(host.to_ascii_lowercase()),
            },
        };
        Some(Self { host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pages(origins: &[&str], hosts: &[&str]) -> Pages {
        let [origins, hosts] =
            [origins, hosts].map(|list| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>());
        Pages::new(&origins, &[], &hosts)
    }

    #[test]
    fn a_page_of_the_apis_own_origin_is_known_by_host_and_port() {
        let pages = pages(&["https://app.example", "self"], &["api.example"]);
        for (origin, host, is_own) in [
            ("http://127.0.0.1:8080", "127.0.0.1:8080", true),
            ("http://localhost:8080", "LocalHost:8080", true),
            ("http://LOCALHOST", "localhost:80", true),
            ("http://[::1]:8080", "[0:0::1]:8080", true),
            ("http://[::1]", "[::1]", true),
            ("https://[::1]", "[::1]:443", true),
            ("https://api.example", "api.example", true),
            ("https://api.example:443", "API.example", true),
            ("http://api.example:8080", "api.example:8080", true),
            // Not where it calls.
            ("http://127.0.0.1:8080", "127.0.0.1:8081", false),
            ("http://127.0.0.1", "127.0.0.1:8080", false),
            ("https://api.example", "api.example:80", false),
            ("http://127.0.0.1:8080", "localhost:8080", false),
            ("http://evil.example", "api.example", false),
            // Where it calls, by a name that anybody could have made.
            ("http://evil.example:8080", "evil.example:8080", false),
            ("http://x.localhost", "x.localhost", false),
            ("http://localhost.", "localhost.", false),
            // No origin of a page that was loaded.
            ("null", "null", false),
            ("file://", "", false),
            ("ftp://localhost", "localhost", false),
            ("http://", "", false),
            ("http://localhost:", "localhost:", false),
            ("http://localhost:x", "localhost:x", false),
            ("http://localhost:99999", "localhost:99999", false),
            ("http://::1", "::1", false),
            ("self", "self", false),
        ] {
            let expected = is_own.then_some(Allowed::Own);
            assert_eq!(pages.allowed(origin, Some(host)), expected, "{origin} {host}");
        }
        assert_eq!(pages.allowed("http://localhost", None), None);
        assert_eq!(pages.allowed("https://app.example", None), Some(Allowed::Listed(0)));
    }

    #[test]
    fn without_self_in_the_list_only_the_list_counts() {
        for (origins, expected) in
            [(&[][..], None), (&["https://a.example"], None), (&["*"], Some(Allowed::Listed(0)))]
        {
            assert_eq!(
                pages(origins, &[]).allowed("http://localhost", Some("localhost")),
                expected,
                "{origins:?}"
            );
            assert_eq!(pages(origins, &[]).answers_vary(), !origins.is_empty());
        }
        assert_eq!(pages(&["self", "*"], &[]).allowed("null", None), Some(Allowed::Listed(1)));
    }
}
