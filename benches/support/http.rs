//! HTTP/1.1 requests that are all alike, for `tine::load`.

use std::sync::Arc;

use tine::load::{Answer, Exchange};

/// Longer heads than any server here sends.
const LONGEST_HEAD: usize = 16 * 1024;

/// One request again and again, on connections that stay open. Of an answer the status, the length and the
/// body are checked; other headers may say what they like (nginx puts the time in).
#[derive(Debug, Clone)]
pub struct Http {
    request: Arc<[u8]>,
    body: Arc<[u8]>,
}

impl Http {
    /// `GET /`, answered with this body.
    pub fn get(body: &str) -> Self {
        Self::new("GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", body)
    }

    /// `POST /` of some JSON, answered with this body.
    pub fn post(json: &str, body: &str) -> Self {
        let length = json.len();
        let head = format!(
            "POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
        );
        Self::new(&(head + json), body)
    }

    fn new(request: &str, body: &str) -> Self {
        Self { request: Arc::from(request.as_bytes()), body: Arc::from(body.as_bytes()) }
    }
}

impl Exchange for Http {
    fn request(&mut self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.request);
    }

    fn answer(&mut self, bytes: &[u8]) -> Answer {
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else {
            return if bytes.len() > LONGEST_HEAD {
                wrong("the end of a head", bytes)
            } else {
                Answer::NeedMore
            };
        };
        let head = &bytes[..end];
        if !head.starts_with(b"HTTP/1.1 200 ") {
            return wrong("the status 200", bytes);
        }
        if content_length(head) != Some(self.body.len()) {
            return wrong("a Content-Length that is the body's", bytes);
        }
        let consumed = end + 4 + self.body.len();
        match bytes.get(end + 4..consumed) {
            None => Answer::NeedMore,
            Some(body) if body == &*self.body => Answer::Right { consumed },
            Some(_) => wrong("the body", bytes),
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    const NAME: &[u8] = b"content-length:";
    let mut lines = head.split(|byte| *byte == b'\n');
    let value = lines.find_map(|line| {
        let (name, value) = line.split_at_checked(NAME.len())?;
        name.eq_ignore_ascii_case(NAME).then_some(value)
    })?;
    std::str::from_utf8(value).ok()?.trim().parse().ok()
}

/// Says so of an answer.
pub fn wrong(expected: &str, found: &[u8]) -> Answer {
    let found = String::from_utf8_lossy(&found[..found.len().min(300)]);
    Answer::Wrong { why: format!("expected {expected}, found {found}") }
}
