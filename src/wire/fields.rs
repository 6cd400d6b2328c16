//! Header fields, `Name: value` on a line of its own, as HTTP and the content-length framing have them.
//!
//! A line ends with CR LF and nothing else: where two readers disagree on the end of a line, one of them can be made to see
//! a request that the other does not.

use std::ops::Range;

/// A number with more digits is no length of anything, and one with so many fits any type used for it.
const MOST_DIGITS: usize = 15;

/// What is known of a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Line {
    /// Its `text` without its end; the next line begins at `next`.
    Whole { text: Range<usize>, next: usize },
    /// It has no end yet.
    NotYet,
    /// It ends with a line feed that no carriage return stands before.
    BareLineFeed,
}

/// Reads the line that begins at `start`, of which everything before `looked_at` is known to hold no line feed.
pub(super) fn line(bytes: &[u8], start: usize, looked_at: usize) -> Line {
    let from = looked_at.max(start);
    let unseen = bytes.get(from..).unwrap_or_default();
    let Some(end) = unseen.iter().position(|&byte| byte == b'\n').map(|at| from + at) else {
        return Line::NotYet;
    };
    match bytes.get(start..end) {
        Some([text @ .., b'\r']) => Line::Whole { text: start..start + text.len(), next: end + 1 },
        _ => Line::BareLineFeed,
    }
}

/// Name and value of a field, without the blanks around the value; None if the line is no field.
pub(super) fn split(line: &[u8]) -> Option<(&[u8], &[u8])> {
    let colon = line.iter().position(|&byte| byte == b':')?;
    let (name, value) = (line.get(..colon)?, line.get(colon + 1..)?);
    let is_field = !name.is_empty() && name.iter().all(|&byte| is_token_byte(byte)) && is_text(value);
    is_field.then_some((name, value.trim_ascii()))
}

/// No control characters: neither a carriage return within a line nor a NUL.
pub(super) fn is_text(bytes: &[u8]) -> bool {
    bytes.iter().all(|&byte| byte == b'\t' || !byte.is_ascii_control())
}

/// A length: digits alone. None for a sign, a blank, another base, a list, and for more digits than any length has.
pub(super) fn decimal(value: &[u8]) -> Option<usize> {
    if !(1..=MOST_DIGITS).contains(&value.len()) {
        return None;
    }
    value.iter().try_fold(0usize, |number, byte| {
        let digit = char::from(*byte).to_digit(10)?;
        number.checked_mul(10)?.checked_add(usize::try_from(digit).ok()?)
    })
}

/// The bytes of a `token`, which HTTP's methods and names of fields are made of.
pub(super) fn is_token_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_ends_with_both_characters_or_is_refused() {
        assert_eq!(line(b"a: b\r\nc", 0, 0), Line::Whole { text: 0..4, next: 6 });
        assert_eq!(line(b"a\r\n\r\n", 3, 3), Line::Whole { text: 3..3, next: 5 });
        assert_eq!(line(b"a: b\r", 0, 0), Line::NotYet);
        assert_eq!(line(b"a: b\n", 0, 0), Line::BareLineFeed);
        assert_eq!(line(b"a\r\n\n", 3, 3), Line::BareLineFeed);
        assert_eq!(line(b"", 7, 9), Line::NotYet);
    }

    #[test]
    fn a_line_feed_that_comes_after_its_carriage_return_was_looked_at_ends_the_line() {
        assert_eq!(line(b"ab\r\n", 0, 3), Line::Whole { text: 0..2, next: 4 });
    }

    #[test]
    fn fields_are_names_with_values() {
        assert_eq!(split(b"Content-Length: 5"), Some((&b"Content-Length"[..], &b"5"[..])));
        assert_eq!(split(b"a:\t b c \t"), Some((&b"a"[..], &b"b c"[..])));
        assert_eq!(split(b"a:"), Some((&b"a"[..], &b""[..])));
        for no_field in [&b"a"[..], b": b", b"a : b", b" a: b", b"a: b\0", b"a: b\rc", b"", b"a\xff: b"] {
            assert_eq!(split(no_field), None, "{}", no_field.escape_ascii());
        }
    }

    #[test]
    fn a_length_is_digits_alone() {
        assert_eq!(decimal(b"0"), Some(0));
        assert_eq!(decimal(b"999999999999999"), Some(999_999_999_999_999));
        for text in ["", "+5", "-1", "0x10", "5, 5", "5 ", "1e3", "5\r", "1000000000000000", "\u{665}"] {
            assert_eq!(decimal(text.as_bytes()), None, "{text:?}");
        }
    }
}
