//! Who made a call, as a thread's row says it: enough to find the call in its caller's own log.
//!
//! A worker that died can't be asked, so the words stand in its arena before the handler is entered. They are written by
//! `writer` and read by `reader`, which believes none of them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use crate::sys::peer::PeerAddress;

/// Words: three for the peer, one for the id's length, and the id's beginning.
pub(super) const WORDS: usize = ID + ID_WORDS;

const PEER: usize = 0;
const ID_LENGTH: usize = 3;
const ID: usize = 4;
/// A UUID in quotes has 38 bytes.
const ID_WORDS: usize = 5;
const ID_BYTES: usize = ID_WORDS * 8;

/// What the lowest byte of the peer's first word says about the rest.
mod kind {
    pub(super) const IPV4: u64 = 1;
    pub(super) const IPV6: u64 = 2;
    pub(super) const UNIX: u64 = 3;
}

/// Who made a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CalledBy {
    /// None where that is not known.
    pub(crate) peer: Option<PeerAddress>,
    id: [u8; ID_BYTES],
    /// Of the whole id, of which only the beginning may be here; 0 for none.
    id_length: u64,
}

impl CalledBy {
    /// Where nothing is known.
    pub(super) const UNKNOWN: Self = Self { peer: None, id: [0; ID_BYTES], id_length: 0 };

    /// Stores a peer and an id by `store`, in words from 0. Of an id's words only those that it needs.
    pub(super) fn write(peer: PeerAddress, id: Option<&[u8]>, mut store: impl FnMut(usize, u64)) {
        let words = match peer {
            PeerAddress::Tcp(address) => {
                let port = u64::from(address.port()) << 8;
                match address.ip() {
                    IpAddr::V4(ip) => [kind::IPV4 | port, u64::from(ip.to_bits()), 0],
                    IpAddr::V6(ip) => {
                        let [high, low] = halves(ip.to_bits());
                        [kind::IPV6 | port, high, low]
                    }
                }
            }
            PeerAddress::Unix { uid, pid } => [kind::UNIX, u64::from(uid), u64::from(pid.cast_unsigned())],
        };
        for (index, word) in words.into_iter().enumerate() {
            store(PEER + index, word);
        }
        let id = id.unwrap_or_default();
        store(ID_LENGTH, id.len() as u64);
        for (index, eight) in id.chunks(8).take(ID_WORDS).enumerate() {
            let mut word = [0; 8];
            for (to, from) in word.iter_mut().zip(eight) {
                *to = *from;
            }
            store(ID + index, u64::from_le_bytes(word));
        }
    }

    /// What the words say, whatever that is.
    pub(super) fn read(load: impl Fn(usize) -> u64) -> Self {
        let [first, second, third] = std::array::from_fn(|index| load(PEER + index));
        let [_, low, high, ..] = first.to_le_bytes();
        let port = u16::from_le_bytes([low, high]);
        let tcp = |ip| PeerAddress::Tcp(SocketAddr::new(ip, port));
        let peer = match first & 0xff {
            kind::IPV4 => Some(tcp(Ipv4Addr::from_bits(lower(second)).into())),
            kind::IPV6 => {
                let bits = u128::from(second) << 64 | u128::from(third);
                Some(tcp(Ipv6Addr::from_bits(bits).into()))
            }
            kind::UNIX => Some(PeerAddress::Unix { uid: lower(second), pid: lower(third).cast_signed() }),
            _ => None,
        };
        let mut id = [0; ID_BYTES];
        for (index, eight) in id.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            *eight = load(ID + index).to_le_bytes();
        }
        Self { peer, id, id_length: load(ID_LENGTH) }
    }

    /// The id as it was written, or its beginning; None for a call without one.
    pub(crate) fn id(&self) -> Option<String> {
        let length = usize::try_from(self.id_length).unwrap_or(usize::MAX);
        let here = self.id.get(..length).unwrap_or(&self.id);
        let end = if here.len() < length { "…" } else { "" };
        (length > 0).then(|| format!("{}{end}", String::from_utf8_lossy(here).trim_end_matches('\u{fffd}')))
    }
}

/// `id 7` or `no id`, and where it came from.
impl fmt::Display for CalledBy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.id() {
            Some(id) => write!(f, "id {id}")?,
            None => f.write_str("no id")?,
        }
        match self.peer {
            Some(peer) => write!(f, ", {peer}"),
            None => Ok(()),
        }
    }
}

fn lower(word: u64) -> u32 {
    let [a, b, c, d, ..] = word.to_le_bytes();
    u32::from_le_bytes([a, b, c, d])
}

/// The upper and the lower one.
fn halves(bits: u128) -> [u64; 2] {
    [bits >> 64, bits & u128::from(u64::MAX)].map(|half| u64::try_from(half).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn through_words(peer: PeerAddress, id: Option<&str>) -> CalledBy {
        // What the call before has left.
        let mut words = [u64::MAX; WORDS];
        CalledBy::write(peer, id.map(str::as_bytes), |index, value| words[index] = value);
        CalledBy::read(|index| words[index])
    }

    #[test]
    fn who_called_comes_back_from_the_words() {
        for peer in ["127.0.0.1:65535", "[2001:db8::1]:80", "[::1]:1"] {
            let peer = PeerAddress::Tcp(peer.parse().unwrap());
            assert_eq!(through_words(peer, None).peer, Some(peer));
        }
        let peer = PeerAddress::Unix { uid: u32::MAX, pid: 4711 };
        assert_eq!(through_words(peer, Some("7")).to_string(), "id 7, unix:uid=4294967295,pid=4711");
        assert_eq!(through_words(peer, None).id(), None);
        let uuid = r#""0b5f6f0e-41a2-4f39-9f3c-2d6a3c1e8b77""#;
        assert_eq!(through_words(peer, Some(uuid)).id().unwrap(), uuid);
        let long = through_words(peer, Some(&"é".repeat(30))).id().unwrap();
        assert_eq!(long, format!("{}…", "é".repeat(20)));
        let odd = through_words(peer, Some(&format!("x{}", "é".repeat(30)))).id().unwrap();
        assert_eq!(odd, format!("x{}…", "é".repeat(19)));
    }

    proptest! {
        #[test]
        fn whatever_the_words_are_the_text_is_short(words in prop::array::uniform9(any::<u64>())) {
            let by = CalledBy::read(|index| words[index]);
            prop_assert!(by.to_string().len() < 300);
            prop_assert!(by.id().is_none_or(|id| !id.is_empty()));
        }
    }
}
