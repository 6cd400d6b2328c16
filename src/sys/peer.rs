//! Who is at the other end of a connection, as the kernel says.

use std::fmt;
use std::hash::{Hash, Hasher};
use std::net::SocketAddr;

use rustc_hash::FxHasher;

/// Who is at the other end of an accepted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PeerAddress {
    Tcp(SocketAddr),
    Unix { uid: u32, pid: i32 },
}

impl PeerAddress {
    /// A number that stands for its address or user, whatever its port or process is; never 0.
    pub(crate) fn number(&self) -> u64 {
        let mut hasher = FxHasher::default();
        match self {
            Self::Tcp(address) => address.ip().to_canonical().hash(&mut hasher),
            Self::Unix { uid, .. } => uid.hash(&mut hasher),
        }
        hasher.finish() | 1
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
