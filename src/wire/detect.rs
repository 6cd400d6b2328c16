//! Which framing a connection speaks, from its first bytes. Decided once; the connection then keeps it.
//!
//! The worker asks with what has arrived of a new connection, unless its listener is pinned to one framing. What
//! none of the framings claims is a stranger: one line in the log, and the connection is closed unanswered.

use super::fields::is_token_byte;
use super::stream::StreamFraming;
use super::{ByteOrder, Decode, Kind, Kinds, Progress, Step};

/// What the first bytes say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Recognised {
    /// Decided, for good.
    Framing(Kind),
    /// Too few bytes to tell; ask again when there are `at_least` in all. They are a message of a JSON stream if nothing
    /// comes behind them and [`recognise_at_rest`] says so; `maybe_whole` is true if it does.
    NeedMore { at_least: usize, maybe_whole: bool },
    /// No framing that the listener takes; `looks_like` is for the log.
    Unknown { looks_like: &'static str },
}

/// The longest method that a request may begin with; any longer word is no HTTP.
const LONGEST_METHOD: usize = 20;

/// U+FEFF in UTF-8, which some programs write before a text.
pub(super) const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a header block begins with, in any case.
const HEADER_START: &[u8] = b"content-";

/// Recognises the framing of a connection that begins with `first`, on a listener that takes the framings `allowed` and
/// whose prefixes have this `order`. What is decided is decided whatever comes behind `first`.
pub(crate) fn recognise(first: &[u8], order: ByteOrder, allowed: Kinds) -> Recognised {
    if let Some(kind) = allowed.only() {
        return Recognised::Framing(kind);
    }
    let by_length = if allowed.contains(Kind::Length) { by_length(first, order) } else { ByLength::No };
    match by_length {
        ByLength::Yes => Recognised::Framing(Kind::Length),
        ByLength::NotYet { at_least } => {
            Recognised::NeedMore { at_least, maybe_whole: recognise_at_rest(first, allowed).is_some() }
        }
        ByLength::No => by_text(first, allowed),
    }
}

/// The framing of a connection on which `first` is all, because its caller waits for an answer or has ended its side:
/// a JSON value that is too short for a length prefix to be ruled out. None if it is not whole.
pub(crate) fn recognise_at_rest(first: &[u8], allowed: Kinds) -> Option<Kind> {
    let begins = first.iter().position(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r'))?;
    let value = first.get(begins..).filter(|value| matches!(value, [b'{' | b'[', ..]))?;
    let is_whole = matches!(
        StreamFraming { max_message: value.len() }.decode(value, &mut Progress::default()),
        Step::Message { consumed, .. } if consumed == value.len()
    );
    (is_whole && allowed.contains(Kind::Stream)).then_some(Kind::Stream)
}

/// Whether a length prefix may begin like that.
pub(crate) fn may_be_length(first: &[u8], order: ByteOrder) -> bool {
    !matches!(by_length(first, order), ByLength::No)
}

enum ByLength {
    Yes,
    NotYet { at_least: usize },
    No,
}

fn by_length(first: &[u8], order: ByteOrder) -> ByLength {
    match (order, first) {
        (ByteOrder::Big, []) => ByLength::NotYet { at_least: 1 },
        (ByteOrder::Big, [0, ..]) => ByLength::Yes,
        // A TLS hello of less than 256 bytes reads as a length below 16 MiB. Waiting for its sixth byte can't keep a
        // short message waiting: read as a length, `16 03 .. 00` announces at least 0x316 bytes.
        (ByteOrder::Little, [0x16, 0x03, _, 0] | [0x16, 0x03, _, 0, _]) => ByLength::NotYet { at_least: 6 },
        (ByteOrder::Little, [0x16, 0x03, _, 0, _, 0x01, ..]) => ByLength::No,
        (ByteOrder::Little, [_, _, _, 0, ..]) => ByLength::Yes,
        (ByteOrder::Little, [] | [_] | [_, _] | [_, _, _]) => ByLength::NotYet { at_least: 4 },
        (ByteOrder::Big | ByteOrder::Little, _) => ByLength::No,
    }
}

/// The rest of the table, once a length prefix is ruled out.
fn by_text(first: &[u8], allowed: Kinds) -> Recognised {
    let if_allowed = |kind, looks_like| {
        if allowed.contains(kind) { Recognised::Framing(kind) } else { Recognised::Unknown { looks_like } }
    };
    let one_more = Recognised::NeedMore { at_least: first.len() + 1, maybe_whole: false };
    if BYTE_ORDER_MARK.starts_with(first) {
        return one_more;
    }
    if let Some(behind) = first.strip_prefix(BYTE_ORDER_MARK) {
        return match behind.first() {
            Some(b'{' | b'[' | b' ' | b'\t' | b'\n' | b'\r') => {
                if_allowed(Kind::Stream, "a JSON stream, which its listener does not take")
            }
            _ => Recognised::Unknown { looks_like: "a byte order mark before what is no JSON" },
        };
    }
    let Some(byte) = first.first() else { return one_more };
    if matches!(byte, b'{' | b'[' | b' ' | b'\t' | b'\n' | b'\r') {
        return if_allowed(Kind::Stream, "a JSON stream, which its listener does not take");
    }
    let word = first.iter().take_while(|&&byte| is_token_byte(byte)).count();
    let start = first.get(..HEADER_START.len()).unwrap_or(first);
    let header_so_far = HEADER_START.get(..start.len()).unwrap_or_default();
    let maybe_header = start.eq_ignore_ascii_case(header_so_far);
    if maybe_header && start.len() == HEADER_START.len() {
        return if_allowed(Kind::Header, "content-length headers, which its listener does not take");
    }
    match first.get(word) {
        Some(b' ') if (1..=LONGEST_METHOD).contains(&word) => {
            if_allowed(Kind::Http, "HTTP, which its listener does not take")
        }
        None if word <= LONGEST_METHOD => one_more,
        _ => stranger(first, allowed),
    }
}

fn stranger(first: &[u8], allowed: Kinds) -> Recognised {
    let looks_like = match first {
        [0x16, 0x03, ..] => "a TLS hello",
        // Where prefixes are big-endian it would be no stranger.
        [0, ..] if allowed.contains(Kind::Length) => {
            "a message of 16 MiB or more, or a length in network order, which takes `prefix = \"big\"` in a `[[listener]]`"
        }
        [byte, ..] if byte.is_ascii_graphic() => "text that begins no framing",
        _ => "no framing this server knows, or a message of 16 MiB or more",
    };
    Recognised::Unknown { looks_like }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::pieces::check_detection;
    use ByteOrder::{Big, Little};

    fn all(first: &[u8], order: ByteOrder) -> Recognised {
        recognise(first, order, Kinds::default())
    }

    fn is_stranger(recognised: Recognised) -> bool {
        matches!(recognised, Recognised::Unknown { .. })
    }

    #[test]
    fn a_length_below_16_mib_is_a_prefix_and_one_of_16_mib_is_not() {
        for length in [0_u32, 2, 123, 0x316, (16 << 20) - 1] {
            let body = [b'{', b'}', b' '];
            let little: Vec<u8> = length.to_le_bytes().into_iter().chain(body).collect();
            let big: Vec<u8> = length.to_be_bytes().into_iter().chain(body).collect();
            assert_eq!(all(&little, Little), Recognised::Framing(Kind::Length), "{length}");
            assert_eq!(all(&big, Big), Recognised::Framing(Kind::Length), "{length}");
        }
        for length in [16_u32 << 20, u32::MAX] {
            assert!(is_stranger(all(&length.to_le_bytes(), Little)), "{length}");
            assert!(is_stranger(all(&length.to_be_bytes(), Big)), "{length}");
        }
    }

    #[test]
    fn whoever_writes_lengths_in_network_order_is_told_apart() {
        let big = 66_u32.to_be_bytes();
        let Recognised::Unknown { looks_like } = all(&big, Little) else {
            panic!("{big:?} was taken");
        };
        assert!(looks_like.contains("`prefix = \"big\"`"), "{looks_like}");
    }

    #[test]
    fn a_message_of_123_bytes_starts_with_a_brace_and_is_still_a_prefix() {
        assert_eq!(all(b"{\0\0\0", Little), Recognised::Framing(Kind::Length));
    }

    #[test]
    fn a_tls_hello_of_any_length_is_a_stranger() {
        assert!(is_stranger(all(&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01], Little)));
        assert!(is_stranger(all(&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01], Little)));
        assert!(is_stranger(all(&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01], Big)));
    }

    #[test]
    fn a_hello_is_told_from_a_prefix_by_its_sixth_byte_and_not_before() {
        let message = [0x16, 0x03, 0x01, 0x00, b'{', b'"', b'i'];
        assert_eq!(all(&message[..4], Little), Recognised::NeedMore { at_least: 6, maybe_whole: false });
        assert_eq!(all(&message[..5], Little), Recognised::NeedMore { at_least: 6, maybe_whole: false });
        assert_eq!(all(&message[..6], Little), Recognised::Framing(Kind::Length));
    }

    #[test]
    fn the_shortest_messages_are_recognised_from_their_prefix_alone() {
        assert_eq!(all(&[1, 0, 0, 0], Little), Recognised::Framing(Kind::Length));
        assert_eq!(all(&[0x16, 0, 0, 0], Little), Recognised::Framing(Kind::Length));
        assert_eq!(all(&[0], Big), Recognised::Framing(Kind::Length));
    }

    #[test]
    fn nothing_at_all_is_not_yet_anything() {
        assert_eq!(all(&[], Little), Recognised::NeedMore { at_least: 4, maybe_whole: false });
        assert_eq!(all(&[], Big), Recognised::NeedMore { at_least: 1, maybe_whole: false });
    }

    #[test]
    fn each_framing_is_recognised_from_its_first_bytes() {
        for (first, kind) in [
            (&b"GET / HTTP/1.1\r\n"[..], Kind::Http),
            (b"POST ", Kind::Http),
            (b"A /x", Kind::Http),
            (b"VERSION-CONTROL / H", Kind::Http),
            (b"CONTENT /", Kind::Http),
            (b"Content-", Kind::Header),
            (b"Content-Length: 2", Kind::Header),
            (b"cONTENT-tYPE: x", Kind::Header),
            (b"Content-X / HTTP/1.1", Kind::Header),
            (b"{\"in\"", Kind::Stream),
            (b"[]\n{", Kind::Stream),
            (b"  \n\n", Kind::Stream),
            (b"\xef\xbb\xbf{", Kind::Stream),
            (b"\xef\xbb\xbf\0", Kind::Length),
            (b"\r\nGET", Kind::Stream),
            (b"{\"a\0", Kind::Length),
            (b"GET\0", Kind::Length),
        ] {
            assert_eq!(all(first, Little), Recognised::Framing(kind), "{}", first.escape_ascii());
        }
        assert_eq!(all(b"{", Big), Recognised::Framing(Kind::Stream), "a big-endian length begins with 0");
        assert_eq!(all(b"\0GET", Big), Recognised::Framing(Kind::Length));
    }

    #[test]
    fn what_could_still_be_a_method_or_a_header_is_waited_for() {
        for (first, at_least) in
            [("GETS", 5), ("CONTENT", 8), ("Content", 8), ("GET", 4), ("ABCDEFGHIJKLMNOPQRST", 21)]
        {
            let expected = Recognised::NeedMore { at_least, maybe_whole: false };
            assert_eq!(all(first.as_bytes(), Little), expected, "{first}");
        }
        assert_eq!(all(b"GE", Big), Recognised::NeedMore { at_least: 3, maybe_whole: false });
    }

    #[test]
    fn what_begins_nothing_is_a_stranger() {
        for first in [
            "\"text\"",
            "1234\n",
            "true\n",
            "ABCDEFGHIJKLMNOPQRSTU",
            "SSH-2.0-x\r\n",
            " GET",
            "GET\t/",
            "<xml>",
            ":::::",
            "\u{feff}GET / HTTP/1.1",
            "\u{fefe}{",
        ] {
            let is_white = first.starts_with(' ');
            assert_eq!(is_stranger(all(first.as_bytes(), Little)), !is_white, "{first}");
        }
    }

    #[test]
    fn a_message_shorter_than_a_prefix_is_known_when_nothing_follows() {
        for first in ["[]", "{}", "[]\n", " {}", "{} ", "[1]"] {
            let first = first.as_bytes();
            assert_eq!(all(first, Little), Recognised::NeedMore { at_least: 4, maybe_whole: true });
            assert_eq!(recognise_at_rest(first, Kinds::default()), Some(Kind::Stream));
            assert_eq!(recognise_at_rest(first, Kinds::of([Kind::Length, Kind::Http])), None);
        }
        for first in ["", "[", "{", "\n", "\n\n", "[[]", "GET", "12", "1 ", "\"\"", "{}{"] {
            assert_eq!(recognise_at_rest(first.as_bytes(), Kinds::default()), None, "{first}");
        }
    }

    #[test]
    fn a_listener_with_one_framing_does_not_look() {
        for kind in Kind::ALL {
            for first in [&b""[..], b"\xff\xff\xff\xff", b"\x16\x03\x01\x02\x00\x01"] {
                assert_eq!(recognise(first, Little, Kinds::of([kind])), Recognised::Framing(kind));
            }
        }
    }

    #[test]
    fn a_listener_with_some_framings_recognises_these_and_says_what_the_others_are() {
        let text = Kinds::of([Kind::Stream, Kind::Header]);
        assert_eq!(recognise(b"{", Little, text), Recognised::Framing(Kind::Stream), "no length is possible");
        assert_eq!(recognise(b"\x02\0\0\0", Little, text), recognise(b"\x02", Little, text));
        let http = Recognised::Unknown { looks_like: "HTTP, which its listener does not take" };
        assert_eq!(recognise(b"GET / HTTP/1.1", Little, text), http);
        let others = Kinds::of([Kind::Length, Kind::Http]);
        assert!(is_stranger(recognise(b"{\"in\"", Little, others)));
        assert!(is_stranger(recognise(b"Content-Length: 2", Little, others)));
        assert_eq!(recognise(b"POST /", Little, others), Recognised::Framing(Kind::Http));
    }

    /// First bytes that share their beginnings with each other.
    fn beginning() -> impl Strategy<Value = Vec<u8>> {
        let beginnings: Vec<&'static [u8]> = vec![
            b"",
            b"\x16\x03",
            b"\x16\x03\x01\0",
            b"Content",
            b"conTENT-",
            b"GET",
            b"GET ",
            b"{",
            b"[]",
            b" ",
            b"\0",
            BYTE_ORDER_MARK,
            b"ABCDEFGHIJKLMNOPQRS",
        ];
        prop::sample::select(beginnings).prop_map(<[u8]>::to_vec)
    }

    proptest! {
        #[test]
        fn what_has_been_recognised_stays_so_as_more_bytes_arrive(
            beginning in beginning(),
            rest in prop::collection::vec(prop_oneof![any::<u8>(), Just(0), Just(b' '), b'A'..=b'Z'], 0..12),
            big in any::<bool>(),
            kinds in prop::sample::subsequence(Kind::ALL.to_vec(), 1..=4),
        ) {
            let (order, kinds) = (if big { Big } else { Little }, Kinds::of(kinds));
            let breach = check_detection(&[beginning, rest].concat(), order, kinds).err();
            prop_assert!(breach.is_none(), "{}", breach.unwrap_or_default());
        }
    }
}
