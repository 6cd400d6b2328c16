//! What has arrived and not been looked at, cut into messages.
//!
//! `connection` fills it from the socket. The framing is the length prefix: a little-endian u32, then that many bytes. An
//! announced length alone takes no memory: room at most doubles, and only when it is full.

/// The length prefix's size in bytes.
pub(super) const HEAD: usize = 4;

/// The least room there is.
const LEAST: usize = 64 << 10;

/// More room than this is given back when it is empty.
const MOST_KEPT: usize = 1 << 20;

#[derive(Debug, Default)]
pub(super) struct Input {
    /// Bytes before `begin` are done with, those from `end` on are room.
    bytes: Vec<u8>,
    begin: usize,
    end: usize,
}

/// A message that is announced to be larger than allowed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooLong {
    pub(super) found: usize,
}

impl Input {
    /// Where the next bytes go, never empty; `filled` says how many came.
    pub(super) fn room(&mut self) -> &mut [u8] {
        if self.begin == self.end {
            (self.begin, self.end) = (0, 0);
            if self.bytes.len() > MOST_KEPT {
                self.bytes = Vec::new();
            }
        } else if self.is_short() {
            self.bytes.drain(..self.begin);
            (self.begin, self.end) = (0, self.end.saturating_sub(self.begin));
        }
        if self.is_short() {
            self.bytes.resize(LEAST.max(self.end.saturating_mul(2)), 0);
        }
        self.bytes.get_mut(self.end..).unwrap_or_default()
    }

    pub(super) fn filled(&mut self, count: usize) {
        self.end = self.end.saturating_add(count).min(self.bytes.len());
    }

    /// The next whole message without its prefix. After an error there is no next one.
    pub(super) fn next(&mut self, most: usize) -> Result<Option<&[u8]>, TooLong> {
        let rest = self.bytes.get(self.begin..self.end).unwrap_or_default();
        let Some((head, rest)) = rest.split_first_chunk::<HEAD>() else { return Ok(None) };
        let length = usize::try_from(u32::from_le_bytes(*head)).unwrap_or(usize::MAX);
        if length > most {
            return Err(TooLong { found: length });
        }
        let Some(message) = rest.get(..length) else { return Ok(None) };
        self.begin = self.begin.saturating_add(HEAD).saturating_add(length);
        Ok(Some(message))
    }

    fn is_short(&self) -> bool {
        self.bytes.len().saturating_sub(self.end) < LEAST / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn framed(body: &[u8]) -> Vec<u8> {
        let mut frame = u32::try_from(body.len()).expect("short").to_le_bytes().to_vec();
        frame.extend_from_slice(body);
        frame
    }

    fn put(input: &mut Input, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let room = input.room();
            let count = room.len().min(bytes.len());
            room[..count].copy_from_slice(&bytes[..count]);
            input.filled(count);
            bytes = &bytes[count..];
        }
    }

    fn drained(input: &mut Input) -> Vec<Vec<u8>> {
        let mut messages = Vec::new();
        while let Some(message) = input.next(usize::MAX).expect("short enough") {
            messages.push(message.to_vec());
        }
        messages
    }

    #[test]
    fn messages_come_whole_wherever_they_are_cut() {
        let sent: [&[u8]; 3] = [b"one", b"", b"three"];
        let bytes: Vec<u8> = sent.iter().flat_map(|body| framed(body)).collect();
        for cut in 0..=bytes.len() {
            let mut input = Input::default();
            put(&mut input, &bytes[..cut]);
            let mut messages = drained(&mut input);
            put(&mut input, &bytes[cut..]);
            messages.extend(drained(&mut input));
            assert_eq!(messages, sent, "cut at {cut}");
        }
    }

    #[test]
    fn many_messages_of_every_size_pass_through() {
        let mut input = Input::default();
        for length in (0..200).chain([LEAST - HEAD, LEAST, 3 * LEAST, 2 * MOST_KEPT, 1]) {
            let body = vec![u8::try_from(length % 251).expect("a byte"); length];
            put(&mut input, &framed(&body));
            assert_eq!(drained(&mut input), [body]);
        }
        assert!(input.room().len() <= MOST_KEPT, "what was large is kept");
    }

    #[test]
    fn an_announced_length_takes_no_memory() {
        let mut input = Input::default();
        put(&mut input, &(64_u32 << 20).to_le_bytes());
        assert_eq!(input.next(64 << 20), Ok(None));
        assert_eq!(input.bytes.len(), LEAST);
    }

    #[test]
    fn a_message_over_the_limit_is_refused_by_its_prefix() {
        let mut input = Input::default();
        put(&mut input, &framed(b"12345"));
        put(&mut input, &11_u32.to_le_bytes());
        assert_eq!(input.next(10), Ok(Some(&b"12345"[..])));
        assert_eq!(input.next(10), Err(TooLong { found: 11 }));
    }
}
