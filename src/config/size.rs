//! Sizes in bytes as people write them: "1MiB", "64 KiB", "500B".
//!
//! Pure text to number and back. What size a key allows is not known here.

use std::fmt;

/// Smaller before larger; binary before decimal, so that formatting finds "1MiB" and never "1048576B".
const UNITS: [(&str, u64); 9] = [
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("TiB", 1 << 40),
    ("kB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
    ("TB", 1_000_000_000_000),
];

/// Why a text is no size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SizeError {
    /// Digits and nothing else. Zero alone needs no unit.
    NoUnit,
    /// The part after the digits is no unit known here.
    UnknownUnit,
    /// It does not start with digits.
    NoNumber,
    /// More bytes than 64 bits count.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SizeError::NoUnit => "a number needs a unit",
            SizeError::UnknownUnit => "the units are B, KiB, MiB, GiB, TiB, kB, MB, GB and TB",
            SizeError::NoNumber => "a size starts with a whole number",
            SizeError::TooLarge => "that is too large",
        })
    }
}

/// Bytes of a text such as "1MiB". Units in any case; white space may stand around and between.
pub(crate) fn parse_size(text: &str) -> Result<u64, SizeError> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::NoNumber);
    }
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    let unit = unit.trim_start();
    if unit.is_empty() {
        return if number == 0 { Ok(0) } else { Err(SizeError::NoUnit) };
    }
    let known = UNITS.iter().find(|(name, _)| name.eq_ignore_ascii_case(unit));
    let (_, bytes) = known.ok_or(SizeError::UnknownUnit)?;
    number.checked_mul(*bytes).ok_or(SizeError::TooLarge)
}

/// The shortest exact text in binary units: 1048576 is "1MiB", 1000 is "1000B".
pub(crate) fn format_size(bytes: u64) -> String {
    let fits = |unit: u64| bytes >= unit && bytes.is_multiple_of(unit);
    let binary = UNITS.iter().take(5).rev().find(|(_, unit)| fits(*unit));
    let (name, unit) = binary.copied().unwrap_or(("B", 1));
    format!("{}{name}", bytes / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        let table = [
            ("0", 0),
            ("0B", 0),
            ("64B", 64),
            ("1KiB", 1024),
            (" 2 MiB ", 2 << 20),
            ("1gib", 1 << 30),
            ("3TiB", 3 << 40),
            ("5kB", 5_000),
            ("5KB", 5_000),
            ("1MB", 1_000_000),
            ("2GB", 2_000_000_000),
            ("1TB", 1_000_000_000_000),
        ];
        for (text, bytes) in table {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_size_says_why() {
        let table = [
            ("5", SizeError::NoUnit),
            ("1M", SizeError::UnknownUnit),
            ("1.5MiB", SizeError::UnknownUnit),
            ("1MiB2", SizeError::UnknownUnit),
            ("", SizeError::NoNumber),
            ("MiB", SizeError::NoNumber),
            ("-1MiB", SizeError::NoNumber),
            ("٣MiB", SizeError::NoNumber),
            ("99999999999999999999B", SizeError::TooLarge),
            ("99999999TiB", SizeError::TooLarge),
        ];
        for (text, error) in table {
            assert_eq!(parse_size(text), Err(error), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn a_formatted_size_reads_back_as_the_same_bytes(bytes: u64) {
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_it_panic(text: String) {
            let _ = parse_size(&text);
        }
    }
}
