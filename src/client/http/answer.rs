//! An HTTP answer's bytes to its status and body. No sockets.
//!
//! The body has a length, comes in chunks, or ends with the connection. All that is kept is bounded.

use std::ops::Range;

/// What a head may hold.
const MOST_HEADERS: usize = 64;
const LONGEST_HEAD: usize = 64 << 10;
const LONGEST_BODY: usize = super::super::MAX_ANSWER;

#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) body: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Wrong {
    /// It ended too early.
    Closed,
    /// It is none; what was expected and found.
    Protocol(String),
}

/// An answer that is arriving.
#[derive(Debug, Default)]
pub(super) struct Reading {
    bytes: Vec<u8>,
    head: Option<Head>,
    /// Of a body in chunks: what has been put together, and the bytes after the head that are in it already.
    unchunked: Vec<u8>,
    taken: usize,
}

#[derive(Debug, Clone, Copy)]
struct Head {
    /// Bytes of it, through the blank line.
    length: usize,
    status: u16,
    body: Body,
}

#[derive(Debug, Clone, Copy)]
enum Body {
    Length(usize),
    Chunks,
    ToTheEnd,
}

impl Reading {
    /// The answer, if these bytes complete it.
    pub(super) fn arrived(&mut self, bytes: &[u8]) -> Result<Option<Answer>, Wrong> {
        self.bytes.extend_from_slice(bytes);
        let Some(head) = self.head()? else { return Ok(None) };
        let rest = self.bytes.get(head.length..).unwrap_or_default();
        let body = match head.body {
            Body::Length(length) => rest.get(..length).map(<[u8]>::to_vec),
            Body::ToTheEnd if rest.len() > LONGEST_BODY => return Err(too_long(rest.len())),
            Body::ToTheEnd => None,
            Body::Chunks => self.take_chunks(head.length)?.then(|| std::mem::take(&mut self.unchunked)),
        };
        Ok(body.map(|body| Answer { status: head.status, body }))
    }

    /// The answer, if the connection's end completes it.
    pub(super) fn ended(&mut self) -> Result<Answer, Wrong> {
        match self.head {
            Some(Head { length, status, body: Body::ToTheEnd }) => {
                Ok(Answer { status, body: self.bytes.split_off(length.min(self.bytes.len())) })
            }
            _ => Err(Wrong::Closed),
        }
    }

    /// The head, past interim ones (1xx), when it is complete.
    fn head(&mut self) -> Result<Option<Head>, Wrong> {
        while self.head.is_none() {
            let Some(head) = parse(&self.bytes)? else {
                if self.bytes.len() > LONGEST_HEAD {
                    let found = self.bytes.len();
                    return Err(protocol(&format!("a head of at most {LONGEST_HEAD} bytes, found {found}")));
                }
                return Ok(None);
            };
            if (100..200).contains(&head.status) {
                self.bytes.drain(..head.length.min(self.bytes.len()));
            } else {
                self.head = Some(head);
            }
        }
        Ok(self.head)
    }

    /// Takes the chunks that are whole; true after the last.
    fn take_chunks(&mut self, head: usize) -> Result<bool, Wrong> {
        loop {
            let begin = head.saturating_add(self.taken);
            let rest = self.bytes.get(begin..).unwrap_or_default();
            let wrong = || protocol("a chunk with its size in hexadecimal before it, found something else");
            let (from, size) = match httparse::parse_chunk_size(rest) {
                Ok(httparse::Status::Complete(found)) => found,
                Ok(httparse::Status::Partial) if rest.len() > LONGEST_HEAD => return Err(wrong()),
                Ok(httparse::Status::Partial) => break,
                Err(_) => return Err(wrong()),
            };
            let size = usize::try_from(size).unwrap_or(usize::MAX);
            if size.saturating_add(self.unchunked.len()) > LONGEST_BODY {
                return Err(too_long(size.saturating_add(self.unchunked.len())));
            }
            if size == 0 {
                // Trailers may follow; they say nothing that is wanted, and the connection ends here.
                return Ok(true);
            }
            let chunk: Range<usize> = from..from.saturating_add(size);
            let end = chunk.end.saturating_add(2);
            match (rest.get(chunk.clone()), rest.get(chunk.end..end)) {
                (Some(chunk), Some(b"\r\n")) => self.unchunked.extend_from_slice(chunk),
                (Some(_), Some(_)) => return Err(wrong()),
                _ => break,
            }
            self.taken = self.taken.saturating_add(end);
        }
        let taken = head.saturating_add(std::mem::take(&mut self.taken));
        self.bytes.drain(head.min(self.bytes.len())..taken.min(self.bytes.len()));
        Ok(false)
    }
}

/// What comes of an answer that arrives in pieces of so many bytes, and then the end.
pub(super) fn read_in_pieces(bytes: &[u8], piece: usize) -> Result<Answer, Wrong> {
    let mut reading = Reading::default();
    for bytes in bytes.chunks(piece) {
        if let Some(answer) = reading.arrived(bytes)? {
            return Ok(answer);
        }
    }
    reading.ended()
}

fn parse(bytes: &[u8]) -> Result<Option<Head>, Wrong> {
    let mut headers = [httparse::EMPTY_HEADER; MOST_HEADERS];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(protocol(&format!("an HTTP answer, found {error}"))),
    };
    let status = response.code.unwrap_or_default();
    let mut body = Body::ToTheEnd;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("Transfer-Encoding") {
            body = Body::Chunks;
        } else if header.name.eq_ignore_ascii_case("Content-Length") && !matches!(body, Body::Chunks) {
            let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
            let count = value.parse().map_err(|_| {
                protocol(&format!(
                    "a Content-Length in digits, found {:?}",
                    String::from_utf8_lossy(header.value)
                ))
            })?;
            body = Body::Length(count);
        }
    }
    body = match (status, body) {
        (100..200 | 204 | 304, _) => Body::Length(0),
        (_, Body::Length(count)) if count > LONGEST_BODY => return Err(too_long(count)),
        (_, body) => body,
    };
    Ok(Some(Head { length, status, body }))
}

fn protocol(expected_and_found: &str) -> Wrong {
    Wrong::Protocol(format!("expected {expected_and_found}"))
}

fn too_long(found: usize) -> Wrong {
    protocol(&format!("an answer of at most {LONGEST_BODY} bytes, found one of {found}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of an answer, wherever it is cut into pieces.
    fn read(answer: &str) -> Result<(u16, String), Wrong> {
        let read = |piece| {
            read_in_pieces(answer.as_bytes(), piece)
                .map(|answer| (answer.status, String::from_utf8(answer.body).expect("text")))
        };
        let whole = read(answer.len().max(1));
        for piece in 1..answer.len() {
            assert_eq!(read(piece), whole, "in pieces of {piece}: {answer}");
        }
        whole
    }

    #[test]
    fn a_body_has_a_length_or_chunks_or_ends_with_the_connection() {
        for (answer, status, body) in [
            ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nnull", 200, "null"),
            ("HTTP/1.1 404 Not Found\r\ncontent-length:2\r\nX: y\r\n\r\n{}", 404, "{}"),
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, ""),
            ("HTTP/1.0 200 OK\r\n\r\n[1]", 200, "[1]"),
            (
                "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2;x=y\r\n2]\r\n0\r\n\r\n",
                200,
                "[1,2]",
            ),
            ("HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n7", 200, "7"),
        ] {
            assert_eq!(read(answer), Ok((status, body.to_owned())), "{answer}");
        }
    }

    #[test]
    fn an_answer_that_stops_in_the_middle_is_closed() {
        for answer in [
            "",
            "HTTP/1.1 200 OK\r\nConte",
            "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nnull",
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\n[1,\r\n2",
        ] {
            assert_eq!(read(answer), Err(Wrong::Closed), "{answer}");
        }
    }

    #[test]
    fn what_is_no_answer_says_what_was_expected() {
        for (answer, expected) in [
            ("\u{1}\0\0\0{}", "an HTTP answer"),
            ("HTTP/1.1 200 OK\r\nContent-Length: +1\r\n\r\n7", ""),
            ("HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", "Content-Length in digits, found \"x\""),
            ("HTTP/1.1 200 OK\r\nContent-Length: 67108865\r\n\r\n", "at most 67108864 bytes"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nfffffff\r\n", "at most 67108864 bytes"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", "a chunk"),
            ("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc\r\n", "a chunk"),
        ] {
            match read(answer) {
                Err(Wrong::Protocol(what)) => assert!(what.contains(expected), "{what}"),
                other => assert!(expected.is_empty(), "{answer}: {other:?}"),
            }
        }
    }
}
