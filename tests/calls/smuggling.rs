//! HTTP that may be read in two ways: nobody gets a second request past a proxy that reads it in the other.

use crate::support::Service;
use crate::support::peer::{Peer, Way, post};
use crate::support::programs::Bystander;

const HOST: &str = "Host: localhost\r\n";

/// Fields of a request that has `12345` behind its head. All are answered 400.
const FIELDS: &[&str] = &[
    "Content-Length: +5",
    "Content-Length: -1",
    "Content-Length: 0x5",
    "Content-Length: 5 5",
    "Content-Length: 5,5",
    "Content-Length: 5, 5",
    "Content-Length: 5.0",
    "Content-Length: 5;",
    "Content-Length: ",
    "Content-Length: \u{665}",
    "Content-Length: 00000000000000000000000000000005",
    "Content-Length: 18446744073709551621",
    "Content-Length: 5\r\nContent-Length: 5",
    "Content-Length: 5\r\ncontent-length: 0",
    "Content-Length: 5\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nContent-Length: 5",
    "Transfer-Encoding: identity\r\nContent-Length: 5",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity",
    "Content-Length : 5",
    "Transfer-Encoding : chunked",
    " Content-Length: 5",
    "Content-Length\u{b}: 5",
    "Content-Length: 5\r\n continued",
    "Content-Length:\r\n 5",
    "Content-Length: 5\r\n\u{b}: y",
    "Content-Length\0: 5",
    "Content-Length: 5\0",
    "Content-Length: 5\u{b}",
    "Content-Length: 5\u{a0}",
    "Content-Length: 0005.",
    "Transfer-Encoding: chunked\r\nTransfer-Encoding:",
    "Transfer-Encoding: chunked\r\n , identity",
    "Request-Timeout-Ms: 5\r\nRequest-Timeout-Ms: 6",
    "X: y\r\n\tContent-Length: 5",
    "X: y\nContent-Length: 5",
    "X: y\rContent-Length: 5",
    "X: y\0",
    "X",
    ": 5",
    "X\u{fc}: y",
    "Host: other",
];

/// Encodings of a body that there are or might be. All are answered 501, but for what has no place in a field.
const ENCODINGS: &[&str] = &[
    "gzip, chunked",
    "chunked, gzip",
    "identity",
    "chunked, chunked",
    "chunkedx",
    "\u{b}chunked",
    "\"chunked\"",
    "",
];

/// Bodies in chunks that are none. All are answered 400.
const CHUNKS: &[&str] = &[
    "+5\r\n12345\r\n0\r\n\r\n",
    "-5\r\n12345\r\n0\r\n\r\n",
    "0x5\r\n12345\r\n0\r\n\r\n",
    " 5\r\n12345\r\n0\r\n\r\n",
    "5 \r\n12345\r\n0\r\n\r\n",
    "g\r\n12345\r\n0\r\n\r\n",
    "\r\n12345\r\n0\r\n\r\n",
    "5\n12345\r\n0\r\n\r\n",
    "5\r12345\r\n0\r\n\r\n",
    "5;a\rb\r\n12345\r\n0\r\n\r\n",
    "5\r\n12345\r\n0\n\n",
    "5\r\n12345\r\n0\r\nContent-Length : 5\r\n\r\n",
    "5\r\n12345\r\n0\r\nX: y\r\n folded\r\n\r\n",
    "5\r\n12345\r\n-0\r\n\r\n",
    "5\r\n12345\r\n0_0\r\n\r\n",
    "5;\n\r\n12345\r\n0\r\n\r\n",
    "5\r\n123456\r\n0\r\n\r\n",
    "5\r\n1234\r\n0\r\n\r\n",
    "5\r\n12345\n0\r\n\r\n",
    "5\r\n123450\r\n\r\n",
    "5\r\n12345\r\n0\r\nX: y\nZ: y\r\n\r\n",
    "00000000000000000000000000000005\r\n12345\r\n0\r\n\r\n",
    "10000000000000005\r\n12345\r\n0\r\n\r\n",
];

/// Whole requests, and what they are answered.
const REQUESTS: &[(&str, u16)] = &[
    ("POST /echo HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 400),
    ("POST  /echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("POST /echo  HTTP/1.1\r\nHost: localhost\r\n\r\n", 505),
    ("POST /echo HTTP/1.1 \r\nHost: localhost\r\n\r\n", 400),
    ("POST /echo\tHTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("POST /echo\r\nHost: localhost\r\n\r\n", 400),
    ("GET /healthz\r\n\r\n", 400),
    ("POST /ec ho HTTP/1.1\r\nHost: localhost\r\n\r\n", 505),
    ("POST /echo HTTP/1.1\nHost: localhost\r\n\r\n", 400),
    ("POST /echo HTTP/1.1\r\nHost: localhost\r\n\n", 400),
    ("\n\nPOST /echo HTTP/1.1\r\nHost: localhost\r\n\r\n", 400),
    ("POST /echo HTTP/1.2\r\nHost: localhost\r\n\r\n", 505),
    ("POST /echo HTTP/2.0\r\nHost: localhost\r\n\r\n", 505),
    ("POST /echo HTTQ/1.1\r\nHost: localhost\r\n\r\n", 505),
    ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    ("POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n0\r\n\r\n", 400),
];

/// Each gets its status, then the end; what comes behind it is never a request.
#[test]
fn nothing_can_be_smuggled_past_a_proxy() {
    let service = Service::start("processes = 1\nthreads = 4");
    let mut bystander = Bystander::of(&service);
    let fields = |fields: &str| format!("POST /echo HTTP/1.1\r\n{HOST}{fields}\r\n\r\n12345");
    let chunks = |chunks: &str| fields("Transfer-Encoding: chunked").replace("12345", chunks);
    let encoding = |encoding: &str| {
        (
            fields(&format!("Transfer-Encoding: {encoding}")),
            if encoding == "\u{b}chunked" { 400 } else { 501 },
        )
    };
    let cases = FIELDS.iter().map(|lines| (fields(lines), 400));
    let cases = cases.chain(ENCODINGS.iter().map(|name| encoding(name)));
    let cases = cases.chain(CHUNKS.iter().map(|body| (chunks(body), 400)));
    let cases = cases.chain(REQUESTS.iter().map(|(request, status)| ((*request).to_owned(), *status)));
    let behind = post("/crash", 14, "") + r#"{"how":"exit"}"#;
    for (request, status) in cases {
        // Alone, and behind one that is right.
        for before in ["", "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"] {
            if before.is_empty() && request.starts_with('\n') {
                continue; // That begins a JSON stream.
            }
            let mut peer = Peer::of(&service, Way::Http);
            peer.send_bytes(format!("{before}{request}{behind}"));
            if !before.is_empty() {
                assert_eq!(peer.reply().status, 200);
            }
            let replies = peer.replies_to_the_end();
            let shown = request.escape_debug();
            assert_eq!(replies.len(), 1, "{shown}: {replies:?}");
            assert_eq!(
                (replies[0].status, replies[0].field("Connection")),
                (status, Some("close")),
                "{shown}: {replies:?}"
            );
            assert!(replies[0].json()["code"].is_i64(), "{shown}: {replies:?}");
        }
    }
    bystander.sees_no_harm(&service, "smugglers");
}
