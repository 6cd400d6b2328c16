//! Who is at the other end of a connection, as the kernel says.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    Tcp(SocketAddr),
    Unix { uid: u32, pid: i32 },
}

/// Whose connections count together: a client's address as far as it is hard to change.
///
/// An IPv6 client usually has a whole /64 network to choose addresses from, so that is its key. A Unix client is known by its
/// user. Where a trusted proxy forwards a client's address, the key is made of that one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum AddressKey {
    V4([u8; 4]),
    /// The first 64 bits.
    V6(u64),
    /// A user.
    Unix(u32),
}

impl PeerAddress {
    /// What it has in common with others that may be the same client.
    pub(crate) fn key(&self) -> AddressKey {
        match self {
            Self::Tcp(address) => AddressKey::from(address.ip()),
            Self::Unix { uid, .. } => AddressKey::Unix(*uid),
        }
    }
}

impl fmt::Display for PeerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix { uid, pid } => write!(f, "unix:uid={uid},pid={pid}"),
        }
    }
}

impl From<IpAddr> for AddressKey {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(address) => Self::V4(address.octets()),
            IpAddr::V6(address) => Self::from(address),
        }
    }
}

impl From<Ipv6Addr> for AddressKey {
    fn from(address: Ipv6Addr) -> Self {
        // A listener for both families reports IPv4 clients so.
        if let Some(address) = address.to_ipv4_mapped() {
            return Self::V4(address.octets());
        }
        Self::V6((address.to_bits() >> 64) as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_that_could_be_one_have_one_key() {
        let cases = [
            // one, another, the same
            ("127.0.0.1:5", "127.0.0.1:6", true),
            ("127.0.0.1:5", "127.0.0.2:5", false),
            ("127.0.0.1:5", "[::ffff:127.0.0.1]:5", true),
            ("[2001:db8:1:2::1]:5", "[2001:db8:1:2:ffff::9]:5", true),
            ("[2001:db8:1:2::1]:5", "[2001:db8:1:3::1]:5", false),
        ];
        let key = |text: &str| PeerAddress::Tcp(text.parse().unwrap()).key();
        for (one, another, is_same) in cases {
            assert_eq!(key(one) == key(another), is_same, "{one} and {another}");
        }
        let user = |uid, pid| PeerAddress::Unix { uid, pid }.key();
        assert_eq!(user(1000, 1), user(1000, 2));
        assert_ne!(user(1000, 1), user(1001, 1));
    }
}
