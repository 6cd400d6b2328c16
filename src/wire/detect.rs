//! Which framing a connection speaks, from its first bytes. Decided once; the connection then keeps it.
//!
//! The worker asks with what has arrived of a new connection, unless its listener is pinned to one framing. What
//! none of the framings claims is a stranger: one line in the log, and the connection is closed unanswered.

use super::ByteOrder;

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recognised {
    /// Too few bytes to tell; ask again when there are `at_least` in all.
    NeedMore { at_least: usize },
    /// Length-prefix framing.
    Length,
    /// No framing of ours; `looks_like` is for the log.
    Unknown { looks_like: &'static str },
}

/// Recognises the framing of a connection that begins with `first`, on a listener whose prefixes have this `order`.
pub(crate) fn recognise(first: &[u8], order: ByteOrder) -> Recognised {
    match order {
        ByteOrder::Little => recognise_little(first),
        ByteOrder::Big => recognise_big(first),
    }
}

fn recognise_big(first: &[u8]) -> Recognised {
    match first.first() {
        None => Recognised::NeedMore { at_least: 1 },
        Some(0) => Recognised::Length,
        Some(_) => stranger(first),
    }
}

fn recognise_little(first: &[u8]) -> Recognised {
    match first {
        // A TLS hello of less than 256 bytes reads as a length below 16 MiB. Waiting for its sixth byte can't keep a
        // short message waiting: read as a length, `16 03 .. 00` announces at least 0x316 bytes.
        [0x16, 0x03, _, 0] | [0x16, 0x03, _, 0, _] => Recognised::NeedMore { at_least: 6 },
        [0x16, 0x03, _, 0, _, 0x01, ..] => stranger(first),
        [_, _, _, 0, ..] => Recognised::Length,
        [_, _, _, _, ..] => stranger(first),
        _ => Recognised::NeedMore { at_least: 4 },
    }
}

fn stranger(first: &[u8]) -> Recognised {
    let looks_like = match first {
        [0x16, 0x03, ..] => "a TLS hello",
        [byte, ..] if byte.is_ascii_graphic() => "text without a length before it",
        _ => "no framing this server knows, or a message of 16 MiB or more",
    };
    Recognised::Unknown { looks_like }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use ByteOrder::{Big, Little};

    fn is_stranger(recognised: Recognised) -> bool {
        matches!(recognised, Recognised::Unknown { .. })
    }

    #[test]
    fn a_length_below_16_mib_is_a_prefix_and_one_of_16_mib_is_not() {
        for length in [0_u32, 2, 123, 0x316, (16 << 20) - 1] {
            let body = [b'{', b'}', b' '];
            let little: Vec<u8> = length.to_le_bytes().into_iter().chain(body).collect();
            let big: Vec<u8> = length.to_be_bytes().into_iter().chain(body).collect();
            assert_eq!(recognise(&little, Little), Recognised::Length, "{length}");
            assert_eq!(recognise(&big, Big), Recognised::Length, "{length}");
        }
        for length in [16_u32 << 20, u32::MAX] {
            assert!(is_stranger(recognise(&length.to_le_bytes(), Little)), "{length}");
            assert!(is_stranger(recognise(&length.to_be_bytes(), Big)), "{length}");
        }
    }

    #[test]
    fn a_message_of_123_bytes_starts_with_a_brace_and_is_still_a_prefix() {
        assert_eq!(recognise(b"{\0\0\0", Little), Recognised::Length);
    }

    #[test]
    fn a_tls_hello_of_any_length_is_a_stranger() {
        assert!(is_stranger(recognise(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01], Little)));
        assert!(is_stranger(recognise(&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01], Little)));
        assert!(is_stranger(recognise(&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01], Big)));
    }

    #[test]
    fn a_hello_is_told_from_a_prefix_by_its_sixth_byte_and_not_before() {
        let message = [0x16, 0x03, 0x01, 0x00, b'{', b'"', b'i'];
        assert_eq!(recognise(&message[..4], Little), Recognised::NeedMore { at_least: 6 });
        assert_eq!(recognise(&message[..5], Little), Recognised::NeedMore { at_least: 6 });
        assert_eq!(recognise(&message[..6], Little), Recognised::Length);
    }

    #[test]
    fn the_shortest_messages_are_recognised_from_their_prefix_alone() {
        assert_eq!(recognise(&[1, 0, 0, 0], Little), Recognised::Length);
        assert_eq!(recognise(&[0x16, 0, 0, 0], Little), Recognised::Length);
        assert_eq!(recognise(&[0], Big), Recognised::Length);
    }

    #[test]
    fn nothing_at_all_is_not_yet_anything() {
        assert_eq!(recognise(&[], Little), Recognised::NeedMore { at_least: 4 });
        assert_eq!(recognise(&[], Big), Recognised::NeedMore { at_least: 1 });
    }

    proptest! {
        #[test]
        fn what_has_been_recognised_stays_so_as_more_bytes_arrive(
            bytes in prop::collection::vec(any::<u8>(), 0..12),
            hello in any::<bool>(),
            big in any::<bool>(),
        ) {
            let order = if big { Big } else { Little };
            let bytes = if hello { [&[0x16, 0x03], bytes.as_slice()].concat() } else { bytes };
            let mut decided = None;
            for cut in 0..=bytes.len() {
                match recognise(&bytes[..cut], order) {
                    Recognised::NeedMore { at_least } => {
                        prop_assert!(decided.is_none() && at_least > cut && at_least <= 6);
                    }
                    Recognised::Length => {
                        prop_assert!(!matches!(decided, Some(false)));
                        decided = Some(true);
                    }
                    Recognised::Unknown { .. } => {
                        prop_assert!(!matches!(decided, Some(true)));
                        decided = Some(false);
                    }
                }
            }
            prop_assert!(decided.is_some() || bytes.len() < 6);
        }
    }
}
