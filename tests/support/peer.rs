//! A plain client of each framing, as somebody else would write it, for what must hold in all of them.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, connect, setsockopt, socket, sockopt};
use serde_json::{Value, json};

use super::{PATIENCE, Service};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Length,
    Stream,
    Header,
    Http,
}

pub const ALL: [Way; 4] = [Way::Length, Way::Stream, Way::Header, Way::Http];

impl Way {
    /// `body` as a request of this framing; in HTTP a `POST /`.
    pub fn framed(self, body: &str) -> Vec<u8> {
        let length = body.len();
        let before = match self {
            Way::Length => u32::try_from(length).expect("a short body").to_le_bytes().to_vec(),
            Way::Stream => Vec::new(),
            Way::Header => format!("Content-Length: {length}\r\n\r\n").into_bytes(),
            Way::Http => post("/", length, "").into_bytes(),
        };
        [&before, body.as_bytes()].concat()
    }

    pub fn all_framed<'a>(self, bodies: impl IntoIterator<Item = &'a str>) -> Vec<u8> {
        bodies.into_iter().flat_map(|body| self.framed(body)).collect()
    }
}

/// The head of a `POST`; `more` are header lines, each with its end.
pub fn post(target: &str, length: usize, more: &str) -> String {
    format!("POST {target} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n{more}\r\n")
}

/// An answer. Its status is 200 and its head empty where the framing has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    pub head: String,
    pub body: String,
}

impl Reply {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The code of an error in the native envelope or in JSON-RPC 2.0, or of a bare one.
    pub fn code(&self) -> i64 {
        let answer = self.json();
        let places = [&answer["result"]["code"], &answer["error"]["code"], &answer["code"]];
        places.into_iter().find_map(Value::as_i64).unwrap_or_else(|| panic!("no error: {self:?}"))
    }

    /// A field of the head.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.head.lines().find_map(|line| {
            let (found, value) = line.split_once(':')?;
            found.eq_ignore_ascii_case(name).then(|| value.trim())
        })
    }
}

/// A connection of one framing.
pub struct Peer {
    pub stream: TcpStream,
    way: Way,
    arrived: Vec<u8>,
}

impl Peer {
    pub fn of(service: &Service, way: Way) -> Self {
        Self::connect(service.socket_address(), way)
    }

    pub fn connect(address: SocketAddr, way: Way) -> Self {
        Self::on(TcpStream::connect(address).expect("the service accepts"), way)
    }

    fn on(stream: TcpStream, way: Way) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        stream.set_nodelay(true).expect("the option exists");
        Self { stream, way, arrived: Vec::new() }
    }

    /// The same by the socket file of this name in the service's folder.
    pub fn by_file(service: &Service, name: &str, way: Way) -> Self {
        let socket = UnixStream::connect(service.folder().join(name)).expect("the service accepts");
        socket.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        socket.set_write_timeout(Some(PATIENCE)).expect("a timeout can be set");
        // Read and written like any other socket.
        Self { stream: TcpStream::from(OwnedFd::from(socket)), way, arrived: Vec::new() }
    }

    /// One that takes little at a time, so that a hundred kilobytes of answers already wait in the service.
    pub fn narrow(service: &Service, way: Way) -> Self {
        let socket =
            socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).expect("a socket");
        setsockopt(&socket, sockopt::TcpMaxSeg, &500).expect("the option exists");
        setsockopt(&socket, sockopt::RcvBuf, &(4 << 10)).expect("the option exists");
        let SocketAddr::V4(address) = service.socket_address() else { panic!("it listens on IPv4") };
        connect(socket.as_raw_fd(), &SockaddrIn::from(address)).expect("the service accepts");
        Self::on(TcpStream::from(socket), way)
    }

    pub fn send_bytes(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).expect("the service reads");
    }

    pub fn send(&mut self, body: &str) {
        let bytes = self.way.framed(body);
        self.send_bytes(bytes);
    }

    pub fn half_close(&self) {
        self.stream.shutdown(Shutdown::Write).expect("the connection is open");
    }

    /// The next answer; None when the connection was closed instead.
    pub fn next_reply(&mut self) -> Option<Reply> {
        self.reply_to("POST")
    }

    /// The next answer, to a request of this method: none has a body where the request was a `HEAD`.
    pub fn reply_to(&mut self, method: &str) -> Option<Reply> {
        let (head, length, end) = match self.way {
            Way::Length => {
                let prefix = self.take(4)?;
                let length = u32::from_le_bytes(prefix.try_into().expect("four bytes")) as usize;
                (String::new(), length, 0)
            }
            Way::Stream => (String::new(), self.until(b"\n")? - 1, 1),
            Way::Header | Way::Http => {
                let head = self.until(b"\r\n\r\n")?;
                let head = String::from_utf8(self.take(head).expect("it arrived")).expect("ASCII");
                (head, 0, 0)
            }
        };
        let mut reply = Reply { status: 200, head, body: String::new() };
        if self.way == Way::Http {
            let status = reply.head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3));
            reply.status =
                status.and_then(|digits| digits.parse().ok()).unwrap_or_else(|| panic!("{reply:?}"));
        }
        let has_none = method == "HEAD" || matches!(reply.status, 100..200 | 204);
        let length = if reply.head.is_empty() {
            length
        } else if has_none {
            0
        } else {
            reply.field("Content-Length").and_then(|text| text.parse().ok()).expect("a length")
        };
        let body = self.take(length).expect("a whole answer");
        self.take(end).expect("the end of an answer");
        reply.body = String::from_utf8(body).expect("UTF-8");
        Some(reply)
    }

    pub fn reply(&mut self) -> Reply {
        self.next_reply().expect("an answer, not a close")
    }

    pub fn receive(&mut self) -> Value {
        self.reply().json()
    }

    /// The text of the next answer.
    pub fn text(&mut self) -> String {
        self.reply().body
    }

    pub fn call(&mut self, method: &str, params: Value) -> Value {
        self.send(&json!({ "in": method, "params": params }).to_string());
        self.receive()
    }

    /// All answers up to the service's FIN.
    pub fn replies_to_the_end(&mut self) -> Vec<Reply> {
        std::iter::from_fn(|| self.next_reply()).collect()
    }

    /// Takes at least so many bytes off the wire, for the answers to come.
    pub fn read_ahead(&mut self, count: usize) {
        while self.arrived.len() < count {
            assert!(self.fill(), "closed after {} bytes", self.arrived.len());
        }
    }

    /// True when the service has closed the connection with nothing left to read.
    pub fn is_closed(&mut self) -> bool {
        self.arrived.is_empty() && matches!(self.stream.read(&mut [0; 1]), Ok(0))
    }

    /// Who serves this connection.
    pub fn worker(&mut self) -> i32 {
        super::proc::pid_in(&self.call("tine.worker", Value::Null)["result"])
    }

    /// So many bytes; None where the connection ended before the first.
    fn take(&mut self, count: usize) -> Option<Vec<u8>> {
        while self.arrived.len() < count {
            self.fill_or_end()?;
        }
        Some(self.arrived.drain(..count).collect())
    }

    /// Where `mark` ends in what arrives next.
    fn until(&mut self, mark: &[u8]) -> Option<usize> {
        let mut looked_at = 0;
        loop {
            let from = usize::saturating_sub(looked_at, mark.len());
            let rest = &self.arrived[from..];
            if let Some(at) = rest.windows(mark.len()).position(|window| window == mark) {
                return Some(from + at + mark.len());
            }
            looked_at = self.arrived.len();
            self.fill_or_end()?;
        }
    }

    /// None where the connection ended between two messages.
    fn fill_or_end(&mut self) -> Option<()> {
        if self.fill() {
            return Some(());
        }
        assert!(self.arrived.is_empty(), "closed inside {:?}", String::from_utf8_lossy(&self.arrived));
        None
    }

    fn fill(&mut self) -> bool {
        let mut piece = [0; 16_384];
        let count = self.stream.read(&mut piece).expect("an answer or a close");
        self.arrived.extend_from_slice(&piece[..count]);
        count > 0
    }
}
