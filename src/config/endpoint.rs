//! Where a client connects to: an address as it was given, whose name is looked up anew for each connect.
//!
//! `client` reads its addresses here. A server's own are `address`'s, which looks a name up once.

use std::str::FromStr;
use std::{fmt, io};

use super::address::{Address, AddressError, Written, addresses_of};

/// One server, as the client was told. Displays as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Endpoint {
    text: String,
    written: Written,
}

impl Endpoint {
    /// The addresses to try, in this order. Asks the system's resolver, and waits for it, where there is a name.
    ///
    /// # Errors
    ///
    /// The resolver's, in words that say that it was the name; also where the name has no address.
    pub(crate) fn addresses(&self) -> io::Result<Vec<Address>> {
        match &self.written {
            Written::Unix(path) => Ok(vec![Address::Unix(path.clone())]),
            Written::Ip(address) => Ok(vec![Address::Tcp(*address)]),
            Written::Name(host, port) => {
                let no_host =
                    |why: &dyn fmt::Display| io::Error::other(format!("{host:?} is no host's name: {why}"));
                let found = addresses_of(host, *port).map_err(|error| no_host(&error))?;
                if found.is_empty() {
                    return Err(no_host(&"it has no address"));
                }
                Ok(found.into_iter().map(Address::Tcp).collect())
            }
        }
    }

    /// Whether [`addresses`](Self::addresses) may wait, and find something else each time.
    pub(crate) fn is_name(&self) -> bool {
        matches!(self.written, Written::Name(..))
    }

    pub(crate) fn is_unix(&self) -> bool {
        matches!(self.written, Written::Unix(_))
    }
}

impl FromStr for Endpoint {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        match Written::read(text) {
            Ok(written) => Ok(Endpoint { text: text.to_owned(), written }),
            Err(advice) => Err(AddressError::of(text, advice)),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().expect("an address")
    }

    #[test]
    fn an_endpoint_displays_as_it_was_written() {
        for text in ["127.0.0.1:8080", "localhost:80", "[::1]:80", "[fe80::1%lo]:80", "unix:/a b"] {
            assert_eq!(endpoint(text).to_string(), text);
        }
    }

    #[test]
    fn only_a_name_is_looked_up() {
        for (text, is_name) in [
            ("127.0.0.1:80", false),
            ("[::1]:80", false),
            ("unix:a", false),
            ("localhost:80", true),
            ("[fe80::1%lo]:80", true),
        ] {
            assert_eq!(endpoint(text).is_name(), is_name, "{text}");
        }
        assert_eq!(
            endpoint("[::1]:80").addresses().expect("no name"),
            ["[::1]:80".parse().expect("an address")]
        );
    }

    #[test]
    fn a_name_that_stands_for_nothing_is_named() {
        // RFC 2606 keeps this name free, and a resolver that is not there says no too.
        let error = endpoint("nobody.invalid:80").addresses().expect_err("no host");
        assert!(error.to_string().starts_with("\"nobody.invalid\" is no host's name: "), "{error}");
    }
}
