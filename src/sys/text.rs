//! Bytes as text. Messages are mostly ASCII, for which the check is a handful of instructions.

use std::str::Utf8Error;

/// The text that these bytes are.
///
/// # Errors
///
/// They are no UTF-8; the error says from where on.
#[inline]
pub(crate) fn text(bytes: &[u8]) -> Result<&str, Utf8Error> {
    if bytes.is_ascii() {
        // SAFETY: every byte is below 128, and such bytes are UTF-8, each a character by itself.
        return Ok(unsafe { std::str::from_utf8_unchecked(bytes) });
    }
    std::str::from_utf8(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_what_the_standard_library_says() {
        let all: Vec<u8> = (0..=255).collect();
        for start in 0..all.len() {
            for length in [0, 1, 2, 7, 8, 9, 40] {
                let bytes = all.get(start..all.len().min(start + length)).unwrap_or_default();
                assert_eq!(text(bytes), std::str::from_utf8(bytes), "{bytes:?}");
            }
        }
        assert_eq!(text("ireader → 0".as_bytes()), Ok("ireader → 0"));
    }
}
