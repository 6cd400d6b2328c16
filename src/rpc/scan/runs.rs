//! How long a run of bytes of one kind is. Most of a long message is the inside of texts and numbers, so these look at many bytes at a
//! time: eight in a word, or more in a loop without branches, for which the compiler has vector instructions.

const ONES: u64 = u64::from_ne_bytes([1; 8]);
/// The highest bit of each byte.
const HIGHS: u64 = u64::from_ne_bytes([0x80; 8]);
/// Bytes that are looked at together in a long text.
const BLOCK: usize = 64;

/// How many bytes at the start of `bytes` are neither a quote, a backslash nor a control character.
#[inline]
pub(super) fn plain(bytes: &[u8]) -> usize {
    match bytes.split_first_chunk::<8>() {
        Some((word, behind)) => match first_special(*word) {
            Some(at) => at,
            None => 8 + long_plain(behind),
        },
        None => short(bytes, |byte| !is_special(byte)),
    }
}

/// The same, for what doesn't end soon.
fn long_plain(bytes: &[u8]) -> usize {
    let mut left = bytes;
    let passed = |left: &[u8]| bytes.len() - left.len();
    while let Some((word, behind)) = left.split_first_chunk::<8>() {
        if let Some(at) = first_special(*word) {
            return passed(left) + at;
        }
        left = behind;
        while let Some((block, behind)) = left.split_first_chunk::<BLOCK>() {
            if has_special(block) {
                break;
            }
            left = behind;
        }
    }
    passed(left) + short(left, |byte| !is_special(byte))
}

/// How many bytes at the start of `bytes` are decimal digits.
#[inline]
pub(super) fn digits(bytes: &[u8]) -> usize {
    let mut left = bytes;
    let passed = |left: &[u8]| bytes.len() - left.len();
    while let Some((word, behind)) = left.split_first_chunk::<8>() {
        let values = u64::from_le_bytes(*word) ^ (ONES * 0x30);
        // What is above 9 gets the highest bit, or has it. The sum carries into higher bytes, so only the lowest hit of a word is
        // certain, and only that one is used.
        let others = (values.wrapping_add(ONES * (0x7f - 9)) | values) & HIGHS;
        if others != 0 {
            return passed(left) + others.trailing_zeros() as usize / 8;
        }
        left = behind;
    }
    passed(left) + short(left, |byte| byte.is_ascii_digit())
}

/// Where the first quote, backslash or control character is among these bytes.
#[inline]
fn first_special(word: [u8; 8]) -> Option<usize> {
    let word = u64::from_le_bytes(word);
    // The subtractions borrow into higher bytes, so only the lowest hit of a word is certain, and only that one is used. Without its
    // second bit a quote is next to the control characters, which stay among themselves.
    let quotes_and_controls = (word ^ (ONES * 2)).wrapping_sub(ONES * 0x21);
    let backslashes = (word ^ (ONES * u64::from(b'\\'))).wrapping_sub(ONES);
    let hits = (quotes_and_controls | backslashes) & !word & HIGHS;
    (hits != 0).then_some(hits.trailing_zeros() as usize / 8)
}

#[inline]
fn has_special(block: &[u8; BLOCK]) -> bool {
    block.iter().fold(false, |found, &byte| found | is_special(byte))
}

#[inline]
fn is_special(byte: u8) -> bool {
    (byte ^ 2) < 0x21 || byte == b'\\'
}

#[inline]
fn short(bytes: &[u8], belongs: impl Fn(u8) -> bool) -> usize {
    bytes.iter().position(|&byte| !belongs(byte)).unwrap_or(bytes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every byte at every place of a run, as long as a few blocks and as short as nothing.
    #[test]
    fn a_run_ends_at_the_first_byte_of_another_kind_and_nowhere_before() {
        for length in (0..20).chain([63, 64, 65, 71, 72, 73, 150]) {
            for place in (0..=length).filter(|place| length < 20 || place % 7 == 0 || place % 8 == 0) {
                for byte in 0..=u8::MAX {
                    let with = |filler: u8| {
                        let mut bytes = vec![filler; length];
                        bytes.insert(place, byte);
                        // What comes behind it may be anything.
                        bytes.extend([0, b'"', 0xff, b'x']);
                        bytes
                    };
                    for filler in [b'x', b'!', b'#', 0x20, 0x7f, 0x80, 0xff, b']', b'['] {
                        let expected =
                            if byte < 0x20 || byte == b'"' || byte == b'\\' { place } else { length + 1 };
                        assert_eq!(
                            plain(&with(filler)),
                            expected,
                            "{filler:#x} {byte:#x} {place} of {length}"
                        );
                    }
                    for filler in [b'0', b'9'] {
                        let expected = if byte.is_ascii_digit() { length + 1 } else { place };
                        assert_eq!(
                            digits(&with(filler)),
                            expected,
                            "{filler:#x} {byte:#x} {place} of {length}"
                        );
                    }
                }
            }
        }
    }
}
