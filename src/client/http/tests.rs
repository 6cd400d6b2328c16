//! The HTTP call against servers that answer with scripted bytes.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::thread;

use super::*;

/// Reads a request's head and as much body as that announces.
fn read_request(caller: &mut impl Read) -> String {
    let mut request = Vec::new();
    let mut byte = [0];
    while !request.ends_with(b"\r\n\r\n") {
        caller.read_exact(&mut byte).expect("a head");
        request.push(byte[0]);
    }
    let head = String::from_utf8(request).expect("text");
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: ")).expect("a length");
    let mut body = vec![0; length.parse().expect("a number")];
    caller.read_exact(&mut body).expect("a body");
    head + &String::from_utf8(body).expect("text")
}

/// What comes of a call that is answered with these bytes, and the request that the server had.
fn answered(answer: &'static str, method: &str, params: Option<&str>) -> (Outcome, String) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound socket").to_string();
    let server = thread::spawn(move || {
        let (mut caller, _) = listener.accept().expect("a caller");
        let request = read_request(&mut caller);
        caller.write_all(answer.as_bytes()).expect("a caller that reads");
        request
    });
    let params = params.map(|json| RawValue::from_string(json.to_owned()).expect("JSON"));
    let outcome = call(&addr, method, params.as_deref(), Duration::from_secs(60));
    (outcome, server.join().expect("no panic").replace(&addr, "ADDR"))
}

#[test]
fn the_params_are_the_body_and_the_body_is_the_result() {
    let (outcome, request) =
        answered("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\n1.5", "add up", Some("[1, 0.50]"));
    assert_eq!(outcome.expect("a result").get(), "1.5");
    let (before, after) = request.split_once("Request-Timeout-Ms: ").expect("a deadline");
    assert_eq!(
        before,
        "POST /add%20up HTTP/1.1\r\nHost: ADDR\r\nContent-Type: application/json\r\nContent-Length: 9\r\n"
    );
    let (told, after) = after.split_once("\r\n").expect("a line's end");
    assert!((50_000..=60_000).contains(&told.parse::<u32>().expect("a number")), "{told}");
    assert_eq!(after, "Connection: close\r\n\r\n[1, 0.50]");
}

#[test]
fn a_call_without_params_has_no_body() {
    let (outcome, request) = answered("HTTP/1.1 204 No Content\r\n\r\n", "tine.worker", None);
    assert_eq!(outcome.expect("a result").get(), "null");
    assert!(request.starts_with("POST /tine.worker HTTP") && request.ends_with("\r\n\r\n"), "{request}");
}

#[test]
fn an_error_answer_is_remote_and_others_say_what_came() {
    let (outcome, _) = answered(
        "HTTP/1.1 404 Not Found\r\nContent-Length: 32\r\n\r\n{\"code\":-32601,\"message\":\"none\"}",
        "none",
        None,
    );
    assert!(matches!(outcome, Err(ClientError::Remote(error)) if error.code == -32601));
    for (answer, found) in [
        ("HTTP/1.1 502 Bad Gateway\r\nContent-Length: 4\r\n\r\noops", "HTTP status 502"),
        ("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\noops", "HTTP status 200"),
        ("\u{4}\0\0\0null", "an HTTP answer"),
    ] {
        match answered(answer, "ping", None).0 {
            Err(ClientError::Protocol(what)) => assert!(what.contains(found), "{what}"),
            other => panic!("expected a protocol error, found {other:?}"),
        }
    }
}

#[test]
fn an_end_in_the_middle_is_closed() {
    for answer in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nnull"] {
        assert!(matches!(answered(answer, "ping", None).0, Err(ClientError::Closed)), "{answer}");
    }
}

#[test]
fn a_server_that_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let addr = listener.local_addr().expect("a bound socket").to_string();
    let outcome = call(&addr, "ping", None, Duration::from_millis(10));
    assert!(matches!(outcome, Err(ClientError::Timeout { .. })), "{outcome:?}");
}

#[test]
fn a_unix_socket_serves_as_well() {
    let path = std::env::temp_dir().join(format!("tine-http-{}", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a free path");
    let server = thread::spawn(move || {
        let (mut caller, _) = listener.accept().expect("a caller");
        let request = read_request(&mut caller);
        caller.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ntrue").expect("a caller that reads");
        request
    });
    let outcome = call(&format!("unix:{}", path.display()), "ping", None, Duration::from_secs(60));
    assert_eq!(outcome.expect("a result").get(), "true");
    assert!(server.join().expect("no panic").contains("Host: localhost\r\n"));
    std::fs::remove_file(path).expect("the socket's file");
}
