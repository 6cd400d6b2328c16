//! One port for every framing: what holds in all of them, from a conversation cut anywhere to what is too long or too late.

use std::time::{Duration, Instant};

use crate::support;
use crate::support::peer::{ALL, Peer, Reply, Way, post};
use crate::support::programs::Bystander;
use crate::support::{Service, framed};
use serde_json::json;

const ONE: &str = "processes = 1\nthreads = 2";

fn ping(params: &str) -> String {
    format!(r#"{{"in":"ping","params":{params}}}"#)
}

fn pong(result: &str) -> String {
    format!(r#"{{"out":"pong","result":{result}}}"#)
}

#[test]
fn a_message_of_no_bytes_is_an_invalid_request_and_the_connection_goes_on() {
    let service = Service::start(ONE);
    for way in [Way::Length, Way::Header] {
        // As the very first bytes, and later.
        let mut peer = Peer::of(&service, way);
        for _ in 0..2 {
            peer.send_bytes(way.all_framed(["", &ping("1")]));
            let reply = peer.reply();
            assert_eq!(reply.code(), -32600, "{way:?}");
            assert!(reply.body.contains("a length of 0"), "{reply:?}");
            assert_eq!(peer.text(), pong("1"), "{way:?}");
        }
    }
}

/// It hears why: a reset would take the answer away.
#[test]
fn a_caller_that_goes_on_sending_what_nobody_wants_still_gets_the_answer_in_each_framing() {
    let service = Service::start(ONE);
    for (way, bytes, expected) in [
        (Way::Length, (8_u32 << 20).to_le_bytes().to_vec(), -32003),
        (Way::Stream, b"{]".to_vec(), -32700),
        (Way::Stream, b"[\"".to_vec(), -32003),
        (Way::Header, b"Content-Length: 8388608\r\n\r\n".to_vec(), -32003),
        (Way::Header, b"Content-Length: +5\r\n\r\n".to_vec(), -32700),
        (Way::Http, post("/", 8 << 20, "").into_bytes(), -32003),
        (Way::Http, post("/", 5, "Content-Length: 5\r\n").into_bytes(), -32600),
    ] {
        let mut peer = Peer::of(&service, way);
        peer.send_bytes(&bytes);
        peer.send_bytes(vec![b'x'; 8 << 20]);
        peer.half_close();
        let replies = peer.replies_to_the_end();
        assert_eq!(replies.iter().map(Reply::code).collect::<Vec<_>>(), [expected], "{way:?}");
    }
}

#[test]
fn a_caller_s_deadline_and_a_handler_s_errors_are_told_in_each_framing_and_form() {
    // What hangs keeps its thread.
    let service = Service::start("processes = 1\nthreads = 40\n[methods.hang]\ntimeout = \"60ms\"");
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for (method, params, timeout, code) in [
            ("hang", "[]", 20, -32001),
            // The smaller of the two holds.
            ("hang", "[]", 60_000, -32001),
            ("panic", r#"{"message":"secret"}"#, 60_000, -32603),
            ("fail", r#"{"message":"secret"}"#, 60_000, -32603),
            ("fail", r#"{"code":17,"message":"no pens","data":[1]}"#, 60_000, 17),
            ("nope", "[]", 60_000, -32601),
            ("sleep", r#"{"ms":-1}"#, 60_000, -32602),
        ] {
            let rest = format!(r#""params":{params},"timeout_ms":{timeout}"#);
            peer.send(&format!(r#"{{"in":"{method}",{rest}}}"#));
            let native = peer.receive();
            assert_eq!(
                (&native["out"], &native["result"]["code"]),
                (&json!("error"), &json!(code)),
                "{way:?}"
            );
            peer.send(&format!(r#"{{"jsonrpc":"2.0","method":"{method}","id":1,{rest}}}"#));
            let v2 = peer.receive();
            assert_eq!((&v2["error"], &v2["id"]), (&native["result"], &json!(1)), "{way:?}");
            peer.send(&format!(r#"{{"method":"{method}","id":1,{rest}}}"#));
            let v1 = peer.receive();
            let text = v1["error"].as_str().expect("a text");
            assert!(
                native["result"]["message"].as_str().is_some_and(|message| text.starts_with(message)),
                "{way:?}: {v1}"
            );
            assert_eq!((&v1["result"], &v1["id"]), (&json!(null), &json!(1)), "{way:?}");
            assert!(!format!("{native}{v2}{v1}").contains("secret"), "{way:?}");
            if code == 17 {
                assert_eq!(native["result"], json!({ "code": 17, "message": "no pens", "data": [1] }));
            }
        }
    }
}

/// A few requests of different kinds, among them wrong ones that the connection survives; and how many answers they get.
fn conversation(way: Way) -> (Vec<u8>, usize) {
    let mut bytes = way.all_framed([
        r#"{"in":"ping","params":[1,"}{][\\\"",{"a":[]}]}"#,
        r#"{"jsonrpc":"2.0","method":"no such","id":"\"{"}"#,
        r#"[{"jsonrpc":"2.0","method":"echo","params":[2],"id":2},1]"#,
        r#"{"method":"echo","params":[3],"id":3}"#,
    ]);
    let more = match way {
        Way::Length => {
            bytes.extend(way.all_framed(["", "{", "17"]));
            3
        }
        Way::Stream => {
            bytes.extend(b" \r\n\t 17 null\"x\" []\n\n");
            4
        }
        Way::Header => {
            bytes.extend(
                b"Content-Type: application/vscode-jsonrpc; charset=utf-8\r\ncontent-length:2\r\n\r\n{]",
            );
            bytes.extend(way.framed(""));
            2
        }
        Way::Http => {
            bytes.extend(b"\r\n");
            bytes.extend(way.framed("{"));
            bytes.extend(post("/echo", 3, "").bytes().chain(*b"[5]"));
            bytes.extend(b"POST /echo HTTP/1.1\r\nhost: a\r\ntransfer-encoding: Chunked\r\n\r\n");
            bytes.extend(b"3;name=value\r\n[6,\r\n0002\r\n7]\r\n0\r\nTrailer: 1\r\n\r\n");
            bytes.extend(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n");
            4
        }
    };
    (bytes, 4 + more)
}

#[test]
fn a_conversation_split_at_any_byte_gets_the_same_answers() {
    let service = Service::start(ONE);
    let worker = service.worker_pids()[0];
    for way in ALL {
        let (bytes, count) = conversation(way);
        let converse = |split: usize| {
            let mut peer = Peer::of(&service, way);
            let (first, rest) = bytes.split_at(split);
            peer.send_bytes(first);
            // It has looked at the first part.
            support::await_asleep(worker);
            peer.send_bytes(rest);
            peer.half_close();
            let replies = peer.replies_to_the_end();
            let mut answers: Vec<_> = replies.into_iter().map(|reply| (reply.status, reply.body)).collect();
            // Answers with ids come in any order.
            answers.sort();
            answers
        };
        let whole = converse(0);
        assert_eq!(whole.len(), count, "{way:?}: {whole:?}");
        for split in 1..bytes.len() {
            assert_eq!(converse(split), whole, "{way:?}, split at {split}");
        }
    }
}

/// vscode-jsonrpc writes a head and then the body, which the client's kernel keeps back until the head is acknowledged: every
/// call took 44 ms.
#[test]
fn a_caller_whose_kernel_joins_small_writes_is_not_kept_waiting() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        peer.stream.set_nodelay(false).expect("a TCP socket");
        let message = way.framed(&ping("1"));
        let (head, body) = message.split_at(4);
        let mut took = Vec::new();
        for _ in 0..20 {
            let from = Instant::now();
            peer.send_bytes(head);
            peer.send_bytes(body);
            assert_eq!(peer.text(), pong("1"), "{way:?}");
            took.push(from.elapsed());
        }
        // The first ones are acknowledged at once by any kernel. Of the others one that isn't takes 40 ms, each of them.
        let shortest = took.into_iter().skip(10).min();
        assert!(shortest < Some(Duration::from_millis(35)), "{way:?}: {shortest:?} at least");
    }
}

#[test]
fn white_space_between_the_values_of_a_stream_belongs_to_none() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Stream);
    for between in ["", " ", "\n", "\r\n\r\n", " \t \n"] {
        peer.send_bytes(format!("{between}{}{between}{}{between}", ping("1"), ping("2")));
        assert_eq!([peer.text(), peer.text()], [pong("1"), pong("2")], "{between:?}");
    }
    // More of it than a message may have bytes.
    peer.send_bytes(" ".repeat(3 << 20));
    peer.send(&ping("3"));
    assert_eq!(peer.text(), pong("3"));
    peer.send_bytes("\n\n");
    peer.half_close();
    assert!(peer.is_closed());
    // White space alone is no message.
    let mut peer = Peer::of(&service, Way::Stream);
    peer.send_bytes("  \r\n  ");
    peer.half_close();
    assert!(peer.is_closed());
}

#[test]
fn bad_json_ends_a_stream_and_nothing_else() {
    let service = Service::start(ONE);
    let mut bystander = Bystander::of(&service);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        peer.send(&ping("1"));
        assert_eq!(peer.text(), pong("1"));
        peer.send(r#"{"in":}"#);
        peer.send(&ping("2"));
        let reply = peer.reply();
        assert_eq!(reply.code(), -32700, "{way:?}: {reply:?}");
        if way == Way::Stream {
            assert_eq!(peer.replies_to_the_end(), []);
        } else {
            assert_eq!(peer.text(), pong("2"), "{way:?}");
        }
    }
    // Where nothing begins, and where an end stands for another.
    for bytes in ["{} ]", "{} x", "{}\n:", "{}[}", "{}{\"a\":]"] {
        let mut peer = Peer::of(&service, Way::Stream);
        peer.send_bytes(bytes);
        peer.half_close();
        let codes: Vec<i64> = peer.replies_to_the_end().iter().map(Reply::code).collect();
        assert_eq!(codes, [-32600, -32700], "{bytes}");
    }
    bystander.sees_no_harm(&service, "bad JSON");
}

/// A call that takes `length` bytes as a message.
fn echo_of(length: usize) -> String {
    let around = r#"{"in":"echo","params":""}"#.len();
    format!(r#"{{"in":"echo","params":"{}"}}"#, "x".repeat(length - around))
}

#[test]
fn a_message_of_max_message_is_answered_in_each_framing() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for length in [(1 << 20) - 1, 1 << 20] {
            peer.send(&echo_of(length));
            peer.send(&ping("1"));
            assert_eq!(peer.receive()["result"].as_str().map(str::len), Some(length - 25), "{way:?}");
            assert_eq!(peer.text(), pong("1"), "{way:?}");
        }
        // The same for an answer.
        peer.send(r#"{"in":"blob","params":{"bytes":1048576}}"#);
        peer.send(&ping("2"));
        assert_eq!(peer.receive()["result"].as_str().map(str::len), Some(1 << 20), "{way:?}");
        assert_eq!(peer.text(), pong("2"), "{way:?}");
    }
    let mut peer = Peer::of(&service, Way::Http);
    let params = format!("[\"{}\"]", "x".repeat((1 << 20) - 4));
    peer.send_bytes("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for piece in params.as_bytes().chunks(10_000) {
        peer.send_bytes([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
    }
    peer.send_bytes("0\r\n\r\n");
    assert_eq!(peer.text(), params);
}

#[test]
fn a_message_beyond_max_message_is_refused_in_each_framing_and_the_answer_arrives() {
    let service = Service::start(ONE);
    let mut bystander = Bystander::of(&service);
    for way in ALL {
        // At once, and behind a call that runs.
        for before in ["", r#"{"in":"sleep","params":{"ms":20}}"#] {
            let mut peer = Peer::of(&service, way);
            if !before.is_empty() {
                peer.send(before);
            }
            peer.send(&echo_of((1 << 20) + 1));
            if !before.is_empty() {
                assert_eq!(peer.receive()["out"], "sleep");
            }
            let reply = peer.reply();
            assert_eq!(reply.code(), -32003, "{way:?}: {reply:?}");
            assert_eq!(reply.status, if way == Way::Http { 413 } else { 200 });
            assert!(reply.body.contains("\"limit\":1048576"), "{reply:?}");
            assert!(peer.is_closed(), "{way:?}");
        }
    }
    // Chunks say so one by one.
    let mut peer = Peer::of(&service, Way::Http);
    peer.send_bytes("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n");
    for _ in 0..3 {
        peer.send_bytes([b"80000\r\n", &vec![b' '; 0x80000][..], b"\r\n"].concat());
    }
    assert_eq!(peer.reply().status, 413);
    assert!(peer.is_closed());
    // Heads have limits of their own.
    let long = "x".repeat(20_000);
    for (head, status) in [
        (format!("GET /{long} HTTP/1.1\r\n"), 414),
        (format!("GET / HTTP/1.1\r\nHost: a\r\nX: {long}\r\n\r\n"), 431),
        (format!("GET / HTTP/1.1\r\nHost: a\r\n{}\r\n", "X: y\r\n".repeat(101)), 431),
    ] {
        let mut peer = Peer::of(&service, Way::Http);
        peer.send_bytes(head);
        assert_eq!(peer.reply().status, status);
        assert!(peer.is_closed());
    }
    let mut peer = Peer::of(&service, Way::Header);
    peer.send_bytes(format!("Content-Type: {long}"));
    assert_eq!(peer.reply().code(), -32700);
    assert!(peer.is_closed());
    bystander.sees_no_harm(&service, "too much");
}

#[test]
fn a_message_that_does_not_arrive_in_time_is_answered_in_each_framing() {
    let service = Service::start(&format!("{ONE}\n[timeouts]\nmessage = \"100ms\""));
    let half_chunk = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{".to_vec();
    let parts = [
        (Way::Length, framed("{\"in\"")[..6].to_vec()),
        (Way::Length, b"PO".to_vec()),
        (Way::Stream, b"{\"in\":".to_vec()),
        (Way::Header, b"Content-Len".to_vec()),
        (Way::Header, b"Content-Length: 5\r\n\r\n{".to_vec()),
        (Way::Http, b"POST / HTT".to_vec()),
        (Way::Http, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n{".to_vec()),
        (Way::Http, half_chunk),
    ];
    let mut peers: Vec<_> = parts
        .iter()
        .flat_map(|(way, part)| {
            // The first of a connection, and behind another.
            let (mut first, mut second) = (Peer::of(&service, *way), Peer::of(&service, *way));
            first.send_bytes(part);
            second.send_bytes([&way.framed(&ping("1")), &part[..]].concat());
            [(*way, false, first), (*way, true, second)]
        })
        .collect();
    for (way, is_second, peer) in &mut peers {
        if *is_second {
            assert_eq!(peer.text(), pong("1"));
        }
        let reply = peer.reply();
        assert_eq!(reply.code(), -32600, "{way:?}: {reply:?}");
        assert!(reply.body.contains("timeouts.message"), "{reply:?}");
        if *way == Way::Http {
            assert_eq!((reply.status, reply.field("Connection")), (408, Some("close")));
        }
        assert!(peer.is_closed(), "{way:?}");
    }
}

#[test]
fn an_idle_connection_is_closed_without_a_word_in_each_framing() {
    let service = Service::start(&format!("{ONE}\n[timeouts]\nidle = \"150ms\""));
    let mut peers: Vec<Peer> = ALL
        .into_iter()
        .map(|way| {
            let mut peer = Peer::of(&service, way);
            peer.send(&ping("1"));
            assert_eq!(peer.text(), pong("1"));
            peer
        })
        .collect();
    for peer in &mut peers {
        assert!(peer.is_closed());
    }
}

#[test]
fn a_half_closed_caller_gets_all_its_answers_in_each_framing() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        let sleep = r#"{"in":"sleep","params":{"ms":20}}"#.to_owned();
        let bodies: Vec<String> =
            [sleep].into_iter().chain((1..100).map(|number| ping(&number.to_string()))).collect();
        peer.send_bytes(way.all_framed(bodies.iter().map(String::as_str)));
        peer.half_close();
        let replies = peer.replies_to_the_end();
        assert_eq!(replies.len(), 100, "{way:?}");
        for (number, reply) in replies.iter().enumerate().skip(1) {
            assert_eq!(reply.body, pong(&number.to_string()), "{way:?}");
        }
        // What isn't whole is no message, and nothing is said of it.
        let mut peer = Peer::of(&service, way);
        peer.send(&ping("1"));
        let half = way.framed(&ping("2"));
        peer.send_bytes(&half[..half.len() - 1]);
        peer.half_close();
        let bodies: Vec<String> = peer.replies_to_the_end().into_iter().map(|reply| reply.body).collect();
        assert_eq!(bodies, [pong("1")], "{way:?}");
    }
    assert_eq!(service.call("ping", json!(1))["result"], 1);
}
