//! Requests as they should be, as they should not, and in pieces.

use proptest::prelude::*;

use super::*;
use crate::wire::Framing;
use crate::wire::pieces::{Outcome, check};

const LIMIT: usize = 1000;
const FRAMING: Framing = Framing::Http(HttpFraming { max_message: LIMIT });

fn decoded(bytes: &[u8]) -> Outcome {
    check(FRAMING, bytes, 7).unwrap_or_else(|breach| panic!("{}\n{breach}", bytes.escape_ascii()))
}

/// The body of the only request.
fn body(bytes: &[u8]) -> Vec<u8> {
    let outcome = decoded(bytes);
    let [message] = &outcome.messages[..] else { panic!("{}\n{outcome:?}", bytes.escape_ascii()) };
    assert_eq!(outcome.consumed, bytes.len());
    message[open(message).unwrap().body_at..].to_vec()
}

/// The status that ends the connection; no message comes before it, and none behind it is seen.
fn refused(bytes: &[u8]) -> u16 {
    let outcome = decoded(bytes);
    let [(0, error)] = outcome.errors[..] else { panic!("{}\n{outcome:?}", bytes.escape_ascii()) };
    assert!(outcome.is_closed && outcome.messages.is_empty(), "{}", bytes.escape_ascii());
    error.http_status()
}

fn post(fields: &str) -> Vec<u8> {
    format!("POST / HTTP/1.1\r\nHost: a\r\n{fields}\r\n").into_bytes()
}

fn chunked(body: &str) -> Vec<u8> {
    [post("Transfer-Encoding: chunked\r\n"), body.as_bytes().to_vec()].concat()
}

#[test]
fn a_head_tells_what_the_layers_above_ask_for() {
    let message =
        b"POST /frob?x=1 HTTP/1.1\r\nhost: a:8080\r\nCONTENT-LENGTH: 2\r\ncontent-type: application/json\r\n\
        Origin: http://a.example.com\r\nRequest-Timeout-Ms: 50\r\nAccept: */*\r\n\r\n{}";
    let Opened { head, body_at } = open(message).unwrap();
    assert_eq!((head.method, head.target, head.version), ("POST", "/frob?x=1", Version::Http11));
    assert_eq!((head.content_type, head.origin), (Some("application/json"), Some("http://a.example.com")));
    assert_eq!((head.timeout_ms, head.body), (Some("50"), Body::Length(2)));
    assert_eq!((head.keeps_open, head.expects_continue), (true, false));
    assert_eq!(&message[body_at..], b"{}");

    let preflight = b"OPTIONS * HTTP/1.1\r\nHost:\r\nOrigin: \xff\r\nAccess-Control-Request-Method: POST\r\n\
        Access-Control-Request-Headers: content-type, x\r\n\r\n";
    let head = open(preflight).unwrap().head;
    assert_eq!(head.origin, Some("\u{fffd}"), "an origin that can't be read is not none");
    assert_eq!(head.timeout_ms, None);
}

#[test]
fn a_connection_goes_on_as_its_version_and_fields_say() {
    for (version, connection, keeps_open) in [
        ("1.1", "", true),
        ("1.1", "Connection: close\r\n", false),
        ("1.1", "Connection: Keep-Alive\r\n", true),
        ("1.1", "Connection: te, CLOSE\r\n", false),
        ("1.1", "Connection: keep-alive\r\nConnection: close\r\n", false),
        ("1.0", "", false),
        ("1.0", "Connection: keep-alive\r\n", true),
        ("1.0", "Connection: keep-alive, close\r\n", false),
        ("1.1", "Connection: disclose\r\n", true),
    ] {
        let message = format!("GET / HTTP/{version}\r\nHost: a\r\n{connection}\r\n");
        let head = open(message.as_bytes()).unwrap().head;
        assert_eq!(head.keeps_open, keeps_open, "{version} {connection}");
    }
    assert!(open(b"GET / HTTP/1.0\r\n\r\n").is_ok(), "HTTP/1.0 has no Host");
}

#[test]
fn requests_follow_each_other_in_one_stream() {
    let one = [post("Content-Length: 2\r\n"), b"{}".to_vec()].concat();
    let stream = [one.clone(), post(""), one.clone()].concat();
    assert_eq!(decoded(&stream).messages, [one.clone(), post(""), one]);
}

#[test]
fn an_empty_line_before_a_request_is_passed_over_and_many_are_not() {
    let stream = [b"\r\n".to_vec(), post(""), b"\r\n\r\n".to_vec(), post("")].concat();
    assert_eq!(decoded(&stream).messages, [post(""), post("")]);
    assert_eq!(refused(&b"\r\n".repeat(5)), 400);
}

#[test]
fn chunks_are_put_together_behind_the_head() {
    for (sent, expected) in [
        ("0\r\n\r\n", ""),
        ("2\r\n{}\r\n0\r\n\r\n", "{}"),
        ("1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", "{}"),
        ("2;name=value;x=\"y z\"\r\n{}\r\n000;last\r\n\r\n", "{}"),
        ("00002\r\n{}\r\n0\r\nX-Sum: 1\r\nContent-Length: 5\r\n\r\n", "{}"),
        ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
        ("2\r\n\r\n\r\n0\r\n\r\n", "\r\n"),
    ] {
        assert_eq!(body(&chunked(sent)), expected.as_bytes(), "{sent:?}");
    }
    let outcome = decoded(&[chunked("2\r\n{}\r\n0\r\n\r\n"), post("")].concat());
    assert_eq!(outcome.messages.len(), 2);
}

#[test]
fn chunks_that_can_be_read_in_two_ways_are_refused() {
    for sent in [
        "+2\r\n{}\r\n0\r\n\r\n",
        "-2\r\n{}\r\n0\r\n\r\n",
        "0x2\r\n{}\r\n0\r\n\r\n",
        " 2\r\n{}\r\n0\r\n\r\n",
        "2 \r\n{}\r\n0\r\n\r\n",
        "2 ;a\r\n{}\r\n0\r\n\r\n",
        "\r\n{}\r\n0\r\n\r\n",
        ";a\r\n{}\r\n0\r\n\r\n",
        "g\r\n{}\r\n0\r\n\r\n",
        "2\n{}\r\n0\r\n\r\n",
        "2\r\n{}\n0\r\n\r\n",
        "2\r\n{}}\r\n0\r\n\r\n",
        "2\r\n{}0\r\n\r\n",
        "2;a\rb\r\n{}\r\n0\r\n\r\n",
        "2;a\0\r\n{}\r\n0\r\n\r\n",
        "00000000000000002\r\n{}\r\n0\r\n\r\n",
        "0\r\nno field\r\n\r\n",
        "0\r\nX : 1\r\n\r\n",
        "0\r\nX: 1\n\r\n",
        "0\r\n folded\r\n\r\n",
    ] {
        assert_eq!(refused(&chunked(sent)), 400, "{sent:?}");
    }
    assert_eq!(refused(&chunked(&format!("2;{}\r\n{{}}\r\n", "x".repeat(256)))), 400);
    assert_eq!(refused(&chunked(&format!("0\r\n{}\r\n", "a: b\r\n".repeat(700)))), 400);
}

#[test]
fn a_body_of_chunks_is_bounded_with_all_that_is_around_it() {
    let most = "x".repeat(LIMIT);
    assert_eq!(body(&chunked(&format!("3e8\r\n{most}\r\n0\r\n\r\n"))).len(), LIMIT);
    assert_eq!(refused(&chunked("3e9\r\n")), 413);
    assert_eq!(refused(&chunked("ffffffffffffffff\r\n")), 413);
    assert_eq!(refused(&chunked("1\r\nx\r\nffffffffffffffff\r\n")), 413);
    assert_eq!(refused(&chunked(&format!("3e8\r\n{most}\r\n1\r\n"))), 413);
    let with_extensions = format!("1;{}\r\nx\r\n", "e".repeat(200)).repeat(500);
    assert_eq!(refused(&chunked(&with_extensions)), 413);
}

#[test]
fn lengths_that_can_be_read_in_two_ways_are_refused() {
    for fields in [
        "Content-Length: 2\r\nContent-Length: 2\r\n",
        "Content-Length: 2\r\ncontent-length: 3\r\n",
        "Content-Length: 2\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 2\r\n",
        "Content-Length: +2\r\n",
        "Content-Length: -2\r\n",
        "Content-Length: 0x2\r\n",
        "Content-Length: 2, 2\r\n",
        "Content-Length: 2 2\r\n",
        "Content-Length: 2.0\r\n",
        "Content-Length:\r\n",
        "Content-Length: \r\n",
        "Content-Length: two\r\n",
        "Content-Length: 18446744073709551618\r\n",
        "Content-Length : 2\r\n",
        " Content-Length: 2\r\n",
        "Content-Length: 2\n",
        "Content-Length: 2\r\r\n",
        "Content-Length\r\n",
        "X: 1\r\n Content-Length: 2\r\n",
        "X: 1\rContent-Length: 2\r\n",
        "X: 1\nContent-Length: 2\r\n",
        "X: \0\r\n",
        "X\0: 1\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n",
        "Transfer-Encoding : chunked\r\n",
        "Transfer-Encoding\t: chunked\r\n",
        "Host: b\r\n",
    ] {
        let hidden = "GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n";
        let request = [post(fields), b"{}".to_vec(), hidden.as_bytes().to_vec()].concat();
        assert_eq!(refused(&request), 400, "{fields:?}");
    }
}

#[test]
fn an_encoding_that_is_not_chunked_alone_is_refused() {
    for encoding in
        ["identity", "gzip, chunked", "chunked, identity", "xchunked", "chunked;q=1", "", "\"chunked\""]
    {
        assert_eq!(refused(&post(&format!("Transfer-Encoding: {encoding}\r\n"))), 501, "{encoding}");
    }
    assert_eq!(refused(&post("Transfer-Encoding: \x0bchunked\r\n")), 400);
    assert_eq!(refused(b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"), 400);
}

#[test]
fn heads_that_are_no_requests_are_refused() {
    for (head, status) in [
        ("GET / HTTP/1.1\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a,b\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", 400),
        ("GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\nHost: a\n\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\n\n", 400),
        ("\nGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("\rGET / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET /\r\n\r\n", 400),
        ("GET  / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / x HTTP/1.1\r\nHost: a\r\n\r\n", 505),
        ("GET /\0 HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GE(T / HTTP/1.1\r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1 \r\nHost: a\r\n\r\n", 400),
        ("GET / HTTP/1.1\r\nHost: a\r\nOrigin: x\r\nOrigin: y\r\n\r\n", 400),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        ("GET / HTTP/1.2\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/2\r\nHost: a\r\n\r\n", 505),
        ("GET / http/1.1\r\nHost: a\r\n\r\n", 505),
        ("GET / HTTP/1.1\r\nHost: a\r\nExpect: 200-ok\r\n\r\n", 417),
    ] {
        let outcome = decoded(head.as_bytes());
        assert!(outcome.messages.is_empty(), "{head:?}: {outcome:?}");
        assert_eq!(outcome.errors.first().map(|(_, error)| error.http_status()), Some(status), "{head:?}");
    }
}

#[test]
fn a_head_is_bounded() {
    let of = |length: usize| {
        let room = length - post("X: \r\n").len();
        post(&format!("X: {}\r\n", "x".repeat(room)))
    };
    assert_eq!(decoded(&of(16 * 1024)).messages.len(), 1);
    assert_eq!(refused(&of(16 * 1024 + 1)), 431);
    assert_eq!(refused(&post(&"X: 1\r\n".repeat(100))), 431);
    assert_eq!(decoded(&post(&"X: 1\r\n".repeat(99))).messages.len(), 1);
    assert_eq!(refused(format!("GET /{}", "x".repeat(16 * 1024)).as_bytes()), 414);
}

#[test]
fn a_caller_that_waits_to_be_invited_is_invited_once_and_not_for_what_is_too_large() {
    let decode = |bytes: &[u8], progress: &mut Progress| FRAMING.decode(bytes, progress);
    let head = post("Expect: 100-Continue\r\nContent-Length: 2\r\n");
    let mut progress = Progress::default();
    assert_eq!(decode(&head, &mut progress), Step::Invite { at_least: head.len() + 2 });
    assert_eq!(decode(&head, &mut progress), Step::NeedMore { at_least: head.len() + 2 });
    let whole = [&head[..], b"{}"].concat();
    let message = Step::Message { body: 0..whole.len(), consumed: whole.len() };
    assert_eq!(decode(&whole, &mut progress), message);
    assert_eq!(decode(&whole, &mut Progress::default()), message, "its body came without being asked for");

    let chunked = post("Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n");
    assert!(matches!(decode(&chunked, &mut Progress::default()), Step::Invite { .. }));
    assert_eq!(refused(&post("Expect: 100-continue\r\nContent-Length: 1001\r\n")), 413);
    let old = b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n";
    assert!(matches!(decode(old, &mut Progress::default()), Step::NeedMore { .. }));
}

#[test]
fn a_body_over_the_limit_is_refused_from_its_head_alone() {
    assert_eq!(refused(&post("Content-Length: 1001\r\n")), 413);
    assert_eq!(refused(&post("Content-Length: 999999999999999\r\n")), 413);
    assert!(decoded(&post("Content-Length: 1000\r\n")).errors.is_empty());
}

#[test]
fn a_stored_message_that_is_none_is_not_opened() {
    for message in [&b""[..], b"GET / HTTP/1.1\r\nHost: a\r\n", b"{}", b"\0"] {
        assert!(open(message).is_err(), "{}", message.escape_ascii());
    }
}

fn piece() -> impl Strategy<Value = Vec<u8>> {
    let parts: Vec<&'static [u8]> = vec![
        b"POST / HTTP/1.1\r\n",
        b"GET /x HTTP/1.0\r\n",
        b"Host: a\r\n",
        b"Content-Length: 3\r\n",
        b"Transfer-Encoding: chunked\r\n",
        b"Expect: 100-continue\r\n",
        b"\r\n",
        b"3\r\nabc\r\n",
        b"0\r\n\r\n",
        b"abc",
        b"\n",
        b"\r",
        b" ",
        b"3",
        b":",
    ];
    prop_oneof![9 => prop::sample::select(parts).prop_map(<[u8]>::to_vec), 1 => any::<u8>().prop_map(|byte| vec![byte])]
}

proptest! {
    #[test]
    fn bytes_give_the_same_requests_in_pieces_as_whole(parts in prop::collection::vec(piece(), 0..20)) {
        let breach = check(FRAMING, &parts.concat(), 7).err();
        prop_assert!(breach.is_none(), "{}", breach.unwrap_or_default());
    }

    #[test]
    fn any_body_arrives_as_it_was_sent_in_chunks(
        chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 1..40), 0..20),
    ) {
        let mut sent = String::new().into_bytes();
        for chunk in &chunks {
            sent.extend(format!("{:x}\r\n", chunk.len()).bytes().chain(chunk.iter().copied()).chain(*b"\r\n"));
        }
        let request = [post("Transfer-Encoding: chunked\r\n"), sent, b"0\r\n\r\n".to_vec()].concat();
        prop_assert_eq!(body(&request), chunks.concat());
    }
}
