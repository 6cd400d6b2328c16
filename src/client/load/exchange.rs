//! What a load sends and how it tells a right answer from a wrong one.
//!
//! The engine moves bytes and times them; an [`Exchange`] knows what they mean. Implementations see one
//! connection's bytes in order and no sockets.

/// One protocol's side of a load: makes requests and judges answers. Each connection gets its own by `Clone`, made anew
/// when the connection is.
///
/// Answers come in the order of the requests. The engine calls these methods for every call, so an implementation
/// that allocates shows in what the load can do.
///
/// ```
/// use tine::load::{Answer, Exchange};
///
/// /// A server that answers each line with a line.
/// #[derive(Clone)]
/// struct Lines;
///
/// impl Exchange for Lines {
///     fn request(&mut self, out: &mut Vec<u8>) {
///         out.extend_from_slice(b"hello\n");
///     }
///     fn answer(&mut self, bytes: &[u8]) -> Answer {
///         match bytes.iter().position(|byte| *byte == b'\n') {
///             Some(end) => Answer::Right { consumed: end + 1 },
///             None => Answer::NeedMore,
///         }
///     }
/// }
///
/// assert_eq!(Lines.answer(b"hello\nhel"), Answer::Right { consumed: 6 });
/// ```
pub trait Exchange: Clone + Send {
    /// Appends the next request of this connection to `out`.
    fn request(&mut self, out: &mut Vec<u8>);

    /// Looks at the start of `bytes` for the answer to the oldest request that has none. `bytes` is never empty and may
    /// hold a part of that answer, or that answer and more.
    fn answer(&mut self, bytes: &[u8]) -> Answer;
}

/// What stands at the start of some bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Not yet a whole answer.
    NeedMore,
    /// The right answer.
    Right {
        /// Its length in bytes, at least 1.
        consumed: usize,
    },
    /// An answer that says that the call failed; the connection is fine.
    Error {
        /// Its length in bytes, at least 1.
        consumed: usize,
    },
    /// Not what was expected. The bytes after it can't be trusted either, so the connection is closed.
    Wrong {
        /// What was expected and what was found.
        why: String,
    },
}

/// Sends fixed bytes and expects fixed bytes back, such as a Redis `PING` or a plain echo.
///
/// Every byte of every answer is compared.
///
/// ```
/// use tine::load::{Answer, Exchange, Fixed};
///
/// let mut ping = Fixed::new(b"PING\r\n".to_vec(), b"+PONG\r\n".to_vec());
/// assert_eq!(ping.answer(b"+PO"), Answer::NeedMore);
/// assert_eq!(ping.answer(b"+PONG\r\n+PO"), Answer::Right { consumed: 7 });
/// assert!(matches!(ping.answer(b"-ERR"), Answer::Wrong { .. }));
/// ```
#[derive(Debug, Clone)]
pub struct Fixed {
    request: Vec<u8>,
    answer: Vec<u8>,
}

impl Fixed {
    /// A load of calls that are each `request` and are each answered with `answer`, which has at least one byte.
    pub fn new(request: Vec<u8>, answer: Vec<u8>) -> Self {
        Self { request, answer }
    }
}

impl Exchange for Fixed {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, bytes: &[u8]) -> Answer {
        if bytes.starts_with(&self.answer) {
            return Answer::Right { consumed: self.answer.len() };
        }
        if self.answer.starts_with(bytes) {
            return Answer::NeedMore;
        }
        Answer::Wrong { why: format!("expected {}, found {}", excerpt(&self.answer), excerpt(bytes)) }
    }
}

/// The beginning of some bytes, for a person, who need not see the length before a whole message.
pub(super) fn excerpt(bytes: &[u8]) -> String {
    const SHOWN: usize = 200;
    let bytes = match bytes.split_first_chunk::<4>() {
        Some((length, body)) if u32::from_le_bytes(*length) as usize == body.len() => body,
        _ => bytes,
    };
    let shown = bytes.get(..SHOWN).unwrap_or(bytes);
    let dots = if shown.len() < bytes.len() { "…" } else { "" };
    let mut text = String::from("`");
    for letter in String::from_utf8_lossy(shown).chars() {
        if letter.is_control() { text.extend(letter.escape_default()) } else { text.push(letter) }
    }
    text + dots + "`"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fixed_answer_is_told_at_every_length() {
        let mut fixed = Fixed::new(Vec::new(), b"abc".to_vec());
        for (bytes, expected) in [
            (&b"a"[..], Answer::NeedMore),
            (b"ab", Answer::NeedMore),
            (b"abc", Answer::Right { consumed: 3 }),
            (b"abcabc", Answer::Right { consumed: 3 }),
        ] {
            assert_eq!(fixed.answer(bytes), expected, "{bytes:?}");
        }
        for bytes in [&b"b"[..], b"abd", b"abx and more"] {
            assert!(matches!(fixed.answer(bytes), Answer::Wrong { .. }), "{bytes:?}");
        }
    }

    #[test]
    fn an_excerpt_is_short_and_printable() {
        assert_eq!(excerpt(b"\"a\0\n"), r#"`"a\u{0}\n`"#);
        assert_eq!(excerpt(&[b'x'; 1000]).chars().count(), 203);
    }
}
