//! HTTP, byte for byte: what each request is answered, and how connections go on and end.

use std::io::{Read, Write};

use crate::support::peer::{Peer, Reply, Way, post};
use crate::support::{Service, await_asleep};
use serde_json::json;

const ONE: &str = "processes = 1\nthreads = 4";
const HOST: &str = "Host: localhost\r\n";

fn call(peer: &mut Peer, target: &str, body: &str, more: &str) -> Reply {
    peer.send_bytes(post(target, body.len(), more) + body);
    peer.reply()
}

/// A request without a body.
fn ask(peer: &mut Peer, method: &str, target: &str, more: &str) -> Reply {
    peer.send_bytes(format!("{method} {target} HTTP/1.1\r\n{HOST}{more}\r\n"));
    peer.reply_to(method).expect("an answer")
}

/// The bare result of a call that works, which shows that the connection goes on.
fn goes_on(peer: &mut Peer) {
    let reply = call(peer, "/echo", "[1, 2]", "");
    assert_eq!((reply.status, &*reply.body), (200, "[1, 2]"), "{reply:?}");
}

#[test]
fn a_call_has_the_status_of_what_became_of_it() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    for (target, body, status, code) in [
        ("/ping", "{", 400, -32700),
        ("/ping", "1 2", 400, -32700),
        ("/nope", "1", 404, -32601),
        ("/rpc.nope", "", 404, -32601),
        ("//ping", "1", 404, -32601),
        ("/ping/", "1", 404, -32601),
        ("/sleep", "{}", 422, -32602),
        ("/sleep", "", 422, -32602),
        ("/panic", r#"{"message":"secret"}"#, 500, -32603),
        ("/fail", r#"{"message":"secret"}"#, 500, -32603),
        ("/fail", r#"{"code":17,"message":"no pens","data":[1]}"#, 500, 17),
        ("/fail", r#"{"code":17,"message":"no pens","status":409}"#, 409, 17),
        ("/fail", r#"{"code":17,"message":"no pens","status":200}"#, 500, 17),
    ] {
        let reply = call(&mut peer, target, body, "");
        assert_eq!((reply.status, reply.json()["code"].as_i64()), (status, Some(code)), "{target} {reply:?}");
        assert!(!reply.body.contains("secret"), "{reply:?}");
        assert_eq!(reply.field("Content-Type"), Some("application/json"));
    }
    let reply = call(&mut peer, "/fail", r#"{"code":17,"message":"no pens","data":[1]}"#, "");
    assert_eq!(reply.body, r#"{"code":17,"message":"no pens","data":[1]}"#);
    for (target, body, result) in [
        ("/ping", "", "null"),
        ("/ping", " ", "null"),
        ("/ping", "1.0", "1.0"),
        ("/%70in%67?query=1", "\"\"", "\"\""),
        ("http://localhost:1/ping", "1", "1"),
        ("/sleep", "[1]", "null"),
        ("/sleep", r#"[{"ms":0}]"#, "null"),
    ] {
        let reply = call(&mut peer, target, body, "");
        assert_eq!((reply.status, &*reply.body), (200, result), "{target} {reply:?}");
        assert_eq!(reply.field("Connection"), None, "it goes on");
        assert!(reply.field("Date").is_some_and(|date| date.ends_with(" GMT")), "{reply:?}");
    }
    // With an envelope the error is inside.
    for (body, code) in
        [("{", -32700), ("", -32700), ("1", -32600), (r#"{"jsonrpc":"2.0","method":"nope","id":1}"#, -32601)]
    {
        let reply = call(&mut peer, "/", body, "");
        assert_eq!((reply.status, reply.json()["error"]["code"].as_i64()), (200, Some(code)), "{reply:?}");
    }
    // Nobody waits for an answer.
    for body in [r#"{"jsonrpc":"2.0","method":"nope"}"#, r#"[{"jsonrpc":"2.0","method":"ping"}]"#] {
        let reply = call(&mut peer, "/", body, "");
        assert_eq!(
            (reply.status, reply.field("Content-Length"), reply.field("Content-Type")),
            (204, None, None)
        );
    }
    goes_on(&mut peer);
}

#[test]
fn a_deadline_is_504_and_a_header_that_is_none_is_400() {
    let service = Service::start("processes = 1\nthreads = 10\n[methods.hang]\ntimeout = \"200ms\"");
    let mut peer = Peer::of(&service, Way::Http);
    // The smaller of it and the configured one holds.
    for timeout in ["30", "60000", "99999999999999999999999999"] {
        let reply = call(&mut peer, "/hang", "null", &format!("Request-Timeout-Ms: {timeout}\r\n"));
        assert_eq!((reply.status, &reply.json()["code"]), (504, &json!(-32001)), "{reply:?}");
        let shown = if timeout == "30" { "within 30ms" } else { "within 200ms" };
        assert!(reply.body.contains(shown), "{timeout}: {reply:?}");
    }
    let request = r#"{"jsonrpc":"2.0","method":"hang","id":1,"timeout_ms":60000}"#;
    let reply = call(&mut peer, "/", request, "request-timeout-ms: 30\r\n");
    assert_eq!((reply.status, &reply.json()["error"]["code"]), (200, &json!(-32001)), "{reply:?}");
    let batch = r#"[{"jsonrpc":"2.0","method":"hang","id":1},{"jsonrpc":"2.0","method":"echo","id":2}]"#;
    let reply = call(&mut peer, "/", batch, "Request-Timeout-Ms: 30\r\n");
    assert_eq!(reply.json()[0]["error"]["code"], -32001, "{reply:?}");
    assert_eq!(reply.json()[1]["result"], json!(null), "{reply:?}");
    for wrong in ["0", "-1", "1.5", "1s", "", "1, 2"] {
        let reply = call(&mut peer, "/ping", "1", &format!("Request-Timeout-Ms: {wrong}\r\n"));
        assert_eq!(reply.status, 400, "{wrong}");
        assert!(reply.body.contains("Request-Timeout-Ms"), "{reply:?}");
    }
    goes_on(&mut peer);
}

#[test]
fn a_call_that_is_refused_is_503_and_says_when_to_try_again() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue = 1\nqueue_wait = \"60s\"");
    let (mut first, mut second) = (Peer::of(&service, Way::Length), Peer::of(&service, Way::Http));
    let long = |id| json!({ "in": "sleep", "params": { "ms": 400 }, "id": id }).to_string();
    first.send_bytes(Way::Length.all_framed([&*long(1), &long(2)]));
    await_asleep(service.worker_pids()[0]);
    let reply = call(&mut second, "/sleep", "[0]", "");
    assert_eq!((reply.status, &reply.json()["code"]), (503, &json!(-32000)), "{reply:?}");
    assert!(reply.field("Retry-After").is_some_and(|text| text.parse::<u64>().is_ok()), "{reply:?}");
    assert_eq!(
        (first.receive()["out"].clone(), first.receive()["out"].clone()),
        (json!("sleep"), json!("sleep"))
    );
    goes_on(&mut second);
}

#[test]
fn a_crash_is_502_a_method_in_quarantine_503_and_the_connection_goes_on() {
    let service = Service::start(
        "processes = 1\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"\n[quarantine]\ncrashes = 2",
    );
    let mut peer = Peer::of(&service, Way::Http);
    goes_on(&mut peer);
    for _ in 0..2 {
        let crash = r#"{"how":"segv"}"#;
        peer.send_bytes(post("/crash", crash.len(), "") + crash + &post("/echo", 1, "") + "7");
        let reply = peer.reply();
        assert_eq!((reply.status, reply.field("Connection")), (502, None), "{reply:?}");
        let data = json!({ "method": "crash", "cause": "SIGSEGV" });
        assert_eq!((&reply.json()["code"], &reply.json()["data"]), (&json!(-32002), &data), "{reply:?}");
        assert_eq!(peer.text(), "7");
    }
    let reply = call(&mut peer, "/crash", r#"{"how":"none"}"#, "");
    assert_eq!((reply.status, &reply.json()["code"]), (503, &json!(-32004)), "{reply:?}");
    assert!(
        reply.field("Retry-After").is_some_and(|text| text.parse::<u64>().is_ok_and(|s| s > 0)),
        "{reply:?}"
    );
    goes_on(&mut peer);
}

#[test]
fn a_compressed_body_is_refused_for_what_it_is_and_the_connection_goes_on() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    let reply = call(&mut peer, "/ping", "\u{1f}compressed", "Content-Encoding: gzip\r\n");
    assert_eq!(reply.status, 415, "{reply:?}");
    assert!(reply.body.contains("`gzip`"), "{reply:?}");
    assert_eq!(call(&mut peer, "/ping", "1", "Content-Encoding: identity\r\n").status, 200);
    goes_on(&mut peer);
}

#[test]
fn pages_of_other_sites_may_not_call_unless_they_are_allowed() {
    let json_type = "Content-Type: application/json\r\n";
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    for kind in ["", "Content-Type: text/plain\r\n", "Content-Type: application/x-www-form-urlencoded\r\n"] {
        assert_eq!(call(&mut peer, "/ping", "1", kind).status, 200, "no page: {kind}");
        let reply = call(&mut peer, "/ping", "1", &format!("Origin: http://evil.example\r\n{kind}"));
        assert_eq!(reply.status, 415, "{reply:?}");
    }
    for origin in ["http://evil.example", "null", "http://localhost"] {
        let reply = call(&mut peer, "/ping", "1", &format!("Origin: {origin}\r\n{json_type}"));
        assert_eq!((reply.status, reply.field("Access-Control-Allow-Origin")), (403, None), "{reply:?}");
        let asks = format!("Origin: {origin}\r\nAccess-Control-Request-Method: POST\r\n");
        let reply = ask(&mut peer, "OPTIONS", "/ping", &asks);
        assert_eq!((reply.status, reply.field("Access-Control-Allow-Origin")), (403, None), "{reply:?}");
        assert_eq!(ask(&mut peer, "GET", "/healthz", &format!("Origin: {origin}\r\n")).status, 403);
    }
    goes_on(&mut peer);

    let service = Service::start(&format!("{ONE}\n[http]\nallow_origins = [\"https://app.example\"]"));
    let mut peer = Peer::of(&service, Way::Http);
    let ours = "Origin: https://app.example\r\n";
    let asks = "Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: content-type\r\n";
    let reply = ask(&mut peer, "OPTIONS", "/ping", &format!("{ours}{asks}"));
    assert_eq!(
        (reply.status, reply.field("Access-Control-Allow-Origin")),
        (204, Some("https://app.example"))
    );
    assert!(
        reply.field("Access-Control-Allow-Methods").is_some_and(|text| text.contains("POST")),
        "{reply:?}"
    );
    let headers = reply.field("Access-Control-Allow-Headers").expect("those that may be sent");
    assert!(headers.contains("Content-Type") && headers.contains("Request-Timeout-Ms"), "{headers}");
    for (body, status) in [("1", 200), ("{", 400)] {
        let reply = call(&mut peer, "/ping", body, &format!("{ours}{json_type}"));
        assert_eq!(reply.status, status);
        assert_eq!(reply.field("Access-Control-Allow-Origin"), Some("https://app.example"), "{reply:?}");
        assert_eq!(reply.field("Vary"), Some("Origin"), "{reply:?}");
    }
    for other in ["https://app.example.evil", "http://app.example", "https://APP.example:444", "null"] {
        let reply = call(&mut peer, "/ping", "1", &format!("Origin: {other}\r\n{json_type}"));
        assert_eq!((reply.status, reply.field("Access-Control-Allow-Origin")), (403, None), "{reply:?}");
    }
    assert_eq!(call(&mut peer, "/ping", "1", ours).status, 415);
    for (kind, status) in [
        ("application/json; charset=utf-8", 200),
        ("APPLICATION/JSON", 200),
        ("application/json-rpc", 200),
        ("text/json", 415),
        ("application/jsonx", 415),
        ("text/plain; application/json", 415),
        ("multipart/form-data; boundary=application/json", 415),
    ] {
        let reply = call(&mut peer, "/ping", "1", &format!("{ours}Content-Type: {kind}\r\n"));
        assert_eq!(reply.status, status, "{kind}: {reply:?}");
    }
    let reply = ask(&mut peer, "GET", "/healthz", ours);
    assert_eq!(
        (reply.status, reply.field("Access-Control-Allow-Origin")),
        (200, Some("https://app.example"))
    );
    goes_on(&mut peer);

    // What can't be read to its end is told to them as well, or their programmers would see a network error.
    for (more, status) in [("Content-Length: 99999999\r\n", 413), ("Transfer-Encoding: chunked\r\n", 400)] {
        for (origin, allowed) in [(ours, Some("https://app.example")), ("Origin: null\r\n", None)] {
            let mut peer = Peer::of(&service, Way::Http);
            peer.send_bytes(format!("POST / HTTP/1.1\r\n{HOST}{json_type}{origin}{more}\r\nno chunk\r\n"));
            let reply = peer.reply();
            assert_eq!(
                (reply.status, reply.field("Access-Control-Allow-Origin")),
                (status, allowed),
                "{reply:?}"
            );
            assert!(peer.is_closed(), "{more}");
        }
    }

    let service = Service::start(&format!("{ONE}\n[http]\nallow_origins = [\"*\"]"));
    let mut peer = Peer::of(&service, Way::Http);
    let reply = call(&mut peer, "/ping", "1", &format!("Origin: http://any.example\r\n{json_type}"));
    assert_eq!((reply.status, reply.field("Access-Control-Allow-Origin")), (200, Some("*")), "{reply:?}");
}

#[test]
fn pages_and_methods_that_are_not_there_are_told_apart() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    for target in ["/healthz", "/readyz", "/healthz?verbose"] {
        let reply = ask(&mut peer, "GET", target, "");
        assert_eq!((reply.status, &*reply.body), (200, r#"{"status":"ok"}"#));
        let head = ask(&mut peer, "HEAD", target, "");
        assert_eq!((head.status, head.field("Content-Length")), (200, Some("15")), "{head:?}");
    }
    for (method, target, status, allow) in [
        ("GET", "/", 405, Some("POST, OPTIONS")),
        ("GET", "/ping", 405, Some("POST, OPTIONS")),
        ("HEAD", "/ping", 405, Some("POST, OPTIONS")),
        ("GET", "/nope", 404, None),
        ("HEAD", "/nope", 404, None),
        ("PUT", "/ping", 405, Some("POST, OPTIONS")),
        ("DELETE", "/healthz", 405, Some("GET, HEAD, OPTIONS")),
        ("PATCH", "/", 405, Some("POST, OPTIONS")),
        ("BREW", "/", 501, None),
        ("get", "/healthz", 501, None),
        ("OPTIONS", "*", 204, Some("POST, OPTIONS")),
        ("OPTIONS", "/readyz", 204, Some("GET, HEAD, OPTIONS")),
        ("POST", "ping", 400, None),
        ("POST", "/%zz", 400, None),
        ("POST", "/%ff", 400, None),
        ("POST", "/%4", 400, None),
    ] {
        let reply = ask(&mut peer, method, target, "");
        assert_eq!((reply.status, reply.field("Allow")), (status, allow), "{method} {target}: {reply:?}");
    }
    // A body is read, and means nothing.
    peer.send_bytes(format!("GET /healthz HTTP/1.1\r\n{HOST}Content-Length: 5\r\n\r\nGET /"));
    assert_eq!(peer.reply().status, 200);
    goes_on(&mut peer);
}

#[test]
fn connections_go_on_or_end_as_their_version_and_their_callers_say() {
    let service = Service::start(ONE);
    let old = |more: &str| format!("POST /ping HTTP/1.0\r\nContent-Length: 1\r\n{more}\r\n1");
    let new = |more: &str| post("/ping", 1, more) + "1";
    for (request, connection) in [
        (old(""), Some("close")),
        (old("Connection: keep-alive\r\n"), Some("keep-alive")),
        (old("Connection: Keep-Alive\r\nHost: a\r\n"), Some("keep-alive")),
        (old("Connection: keep-alive, close\r\n"), Some("close")),
        (new(""), None),
        (new("Connection: keep-alive\r\n"), None),
        (new("Connection: close\r\n"), Some("close")),
        (new("Connection: x\r\nConnection: y , CLOSE\r\n"), Some("close")),
    ] {
        let mut peer = Peer::of(&service, Way::Http);
        peer.send_bytes(&request);
        let reply = peer.reply();
        assert_eq!((reply.status, reply.field("Connection")), (200, connection), "{request}: {reply:?}");
        if connection == Some("close") {
            assert!(peer.is_closed(), "{request}");
        } else {
            goes_on(&mut peer);
        }
    }
    // What is sent behind the last request is nobody's.
    let mut peer = Peer::of(&service, Way::Http);
    peer.send_bytes(new("Connection: close\r\n") + &new(""));
    assert_eq!(peer.replies_to_the_end().len(), 1);
    // An error that isn't the connection's.
    let mut peer = Peer::of(&service, Way::Http);
    let reply = call(&mut peer, "/nope", "1", "Connection: close\r\n");
    assert_eq!((reply.status, reply.field("Connection")), (404, Some("close")));
    assert!(peer.is_closed());
}

#[test]
fn pipelined_requests_are_answered_in_order_however_long_each_takes() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    let mut requests = String::new();
    for number in 0..50 {
        let sleep = format!("[{}]", [40, 0, 0, 10, 0][number % 5]);
        let body = format!(r#"{{"jsonrpc":"2.0","method":"echo","params":[{number}],"id":{number}}}"#);
        if number % 5 < 4 {
            requests += &(post("/sleep", sleep.len(), "") + &sleep);
        } else {
            requests += "GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n";
        }
        requests += &(post("/", body.len(), "") + &body);
    }
    peer.send_bytes(requests);
    for number in 0..50 {
        let expected = if number % 5 < 4 { "null" } else { r#"{"status":"ok"}"# };
        assert_eq!(peer.text(), expected);
        assert_eq!(peer.receive()["id"], number);
    }
}

#[test]
fn a_chunked_body_with_extensions_and_trailers_is_one_body() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    let head = format!("POST /echo HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n\r\n");
    for (chunks, body) in [
        ("0\r\n\r\n", "null"),
        ("3\r\n[1,\r\n2\r\n2]\r\n0\r\n\r\n", "[1,2]"),
        ("0005;a;b=c;d=\"e f\"\r\n[1,2]\r\n000\r\nX: y\r\nContent-Length: 7\r\n\r\n", "[1,2]"),
        ("A\r\n\"\r\n0\r\n\r\n", ""),
        ("c\r\n\"          \"\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n", "\"          \""),
    ] {
        peer.send_bytes(format!("{head}{chunks}"));
        if body.is_empty() {
            // The chunk isn't whole yet; it has the end's bytes in it.
            peer.send_bytes("1\"\r\n0\r\n\r\n");
            assert_eq!(peer.reply().status, 400, "a line break in a text is bad JSON");
        } else {
            assert_eq!(peer.text(), body, "{chunks}");
        }
        goes_on(&mut peer);
    }
}

#[test]
fn a_caller_that_expects_100_continue_is_told_so_or_refused_at_once() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    let expects = "Expect: 100-continue\r\n";
    for chunked in [false, true] {
        for _ in 0..2 {
            if chunked {
                peer.send_bytes(format!(
                    "POST /echo HTTP/1.1\r\n{HOST}Transfer-Encoding: chunked\r\n{expects}\r\n"
                ));
            } else {
                peer.send_bytes(post("/echo", 6, expects));
            }
            let invited = peer.reply();
            assert_eq!((invited.status, &*invited.head), (100, "HTTP/1.1 100 Continue\r\n\r\n"));
            peer.send_bytes(if chunked { "6\r\n[1, " } else { "[1, " });
            await_asleep(service.worker_pids()[0]);
            peer.send_bytes(if chunked { "2]\r\n0\r\n\r\n" } else { "2]" });
            assert_eq!(peer.text(), "[1, 2]");
        }
    }
    // Behind a call that runs: the word comes behind its answer.
    peer.send_bytes(post("/sleep", 4, "") + "[50]" + &post("/echo", 1, expects));
    assert_eq!(peer.text(), "null");
    assert_eq!(peer.reply().status, 100);
    peer.send_bytes("1");
    assert_eq!(peer.text(), "1");
    // With its body there is nothing to say; an older client doesn't understand it.
    peer.send_bytes(post("/echo", 1, expects) + "2");
    assert_eq!(peer.text(), "2");
    peer.send_bytes(format!(
        "POST /echo HTTP/1.0\r\nConnection: keep-alive\r\nContent-Length: 1\r\n{expects}\r\n"
    ));
    await_asleep(service.worker_pids()[0]);
    peer.send_bytes("3");
    assert_eq!(peer.text(), "3");
    // Too much, and something else.
    for (head, status) in
        [(post("/echo", (1 << 20) + 1, expects), 413), (post("/echo", 1, "Expect: tea\r\n"), 417)]
    {
        let mut peer = Peer::of(&service, Way::Http);
        peer.send_bytes(head);
        assert_eq!(peer.reply().status, status);
        assert!(peer.is_closed());
    }
}

#[test]
fn a_client_that_goes_on_sending_a_body_nobody_wants_still_gets_the_answer() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    peer.send_bytes(post("/echo", 8 << 20, ""));
    let mut first = [0; 12];
    peer.stream.read_exact(&mut first).expect("the answer");
    assert_eq!(&first, b"HTTP/1.1 413");
    peer.stream.write_all(&vec![b'x'; 8 << 20]).expect("it is read and thrown away");
    let mut rest = String::new();
    peer.stream.read_to_string(&mut rest).expect("an end, not a reset");
    assert!(rest.contains("\"limit\":1048576"), "{rest}");
}
