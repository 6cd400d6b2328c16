//! One port for every framing: how each is recognised, what a listener refuses, and what holds in all of them.

mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;
use support::peer::{ALL, Peer, Way, post};
use support::programs::Bystander;
use support::{Service, framed};

const ONE: &str = "processes = 1\nthreads = 2";

/// The code of an error answer in the native envelope or in JSON-RPC 2.0, or of a bare one.
fn code(reply: &support::peer::Reply) -> i64 {
    let answer = reply.json();
    let places = [&answer["result"]["code"], &answer["error"]["code"], &answer["code"]];
    places.into_iter().find_map(serde_json::Value::as_i64).unwrap_or_else(|| panic!("no error: {reply:?}"))
}

fn ping(params: &str) -> String {
    format!(r#"{{"in":"ping","params":{params}}}"#)
}

fn pong(result: &str) -> String {
    format!(r#"{{"out":"pong","result":{result}}}"#)
}

/// What a connection gets that is a stranger to its listener: no byte, and one line in the log.
fn is_a_stranger(service: &Service, address: SocketAddr, bytes: &[u8], words: &str) {
    let mut peer = Peer::connect(address, Way::Length);
    let me = peer.stream.local_addr().expect("connected").to_string();
    peer.send_bytes(bytes);
    assert!(peer.is_closed(), "{} is answered", bytes.escape_ascii());
    let line = service.await_log_where(words, |line| line["peer"] == me.as_str());
    assert!(line["level"] == "WARN" && line.to_string().contains(words), "expected {words}: {line}");
    // The worker logs in order: a second line about this one would come before the next one's.
    let mut next = Peer::connect(address, Way::Length);
    let next_me = next.stream.local_addr().expect("connected").to_string();
    next.send_bytes(b"\xa5\xa5\xa5\xa5");
    assert!(next.is_closed());
    service.await_log_where("the next stranger", |line| line["peer"] == next_me.as_str());
    let mentions = service.log_so_far().lines().filter(|line| line.contains(&me)).count();
    assert_eq!(mentions, 1, "{}", service.log_so_far());
}

#[test]
fn each_framing_is_recognised_when_its_first_bytes_come_one_at_a_time() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for round in ["1", "2", "3"] {
            for byte in way.framed(&ping(round)) {
                peer.send_bytes([byte]);
            }
            assert_eq!(peer.text(), pong(round), "{way:?}");
        }
        // Several at once on the same connection.
        peer.send_bytes(way.all_framed([&*ping("4"), &*ping("5")]));
        assert_eq!([peer.text(), peer.text()], [pong("4"), pong("5")], "{way:?}");
    }
    // In any letters, and with other fields first.
    for head in ["content-length", "CONTENT-LENGTH", "Content-Type: text\r\nContent-Length"] {
        let mut peer = Peer::of(&service, Way::Header);
        for byte in format!("{head}: {}\r\n\r\n{}", ping("1").len(), ping("1")).bytes() {
            peer.send_bytes([byte]);
        }
        assert_eq!(peer.text(), pong("1"), "{head}");
    }
}

#[test]
fn a_message_shorter_than_a_prefix_is_answered_while_its_caller_waits_and_when_it_has_ended() {
    let service = Service::start(ONE);
    for short in ["[]", "{}", "[]\n", "{}\n", "\n[]", " {}", "[1]"] {
        for ends in [false, true] {
            let mut peer = Peer::of(&service, Way::Stream);
            peer.send_bytes(short);
            if ends {
                peer.half_close();
            }
            let reply = peer.reply();
            if short == "[1]" {
                assert_eq!(reply.json()[0]["error"]["code"], -32600, "{short:?}");
            } else {
                assert_eq!(code(&reply), -32600, "{short:?}");
            }
            if ends {
                assert!(peer.is_closed(), "{short:?}");
            } else {
                // The framing stays.
                peer.send(&ping("7"));
                assert_eq!(peer.text(), pong("7"), "{short:?}");
            }
        }
    }
}

/// Its first byte is that of a JSON object.
#[test]
fn a_prefixed_message_of_123_bytes_is_no_json_stream() {
    let service = Service::start(ONE);
    for (length, first) in [(123, b'{'), (91, b'['), (32, b' '), (80, b'P'), (67, b'C')] {
        let text = "x".repeat(length - ping("\"\"").len());
        let bytes = framed(&ping(&format!("\"{text}\"")));
        assert_eq!((bytes.len(), bytes[0]), (length + 4, first));
        for pieces in [1, 2, 3, 4, 5, 200] {
            let mut peer = Peer::of(&service, Way::Length);
            for piece in bytes.chunks(pieces) {
                peer.send_bytes(piece);
            }
            assert_eq!(peer.text(), pong(&format!("\"{text}\"")), "{length} in pieces of {pieces}");
        }
    }
}

#[test]
fn a_pinned_listener_refuses_every_other_framing_with_one_line() {
    let service = Service::start(&format!(
        "{ONE}\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"http\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"stream\", \"header\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"length\", \"http\"]\n"
    ));
    let addresses: Vec<SocketAddr> =
        service.addresses().into_iter().map(|address| address.parse().expect("an address")).collect();
    let [http, texts, two] = addresses[..] else { panic!("three addresses, found {addresses:?}") };
    for (address, ways) in [(http, &ALL[3..]), (texts, &ALL[1..3]), (two, &[Way::Length, Way::Http][..])] {
        for way in ways {
            let mut peer = Peer::connect(address, *way);
            peer.send(&ping("1"));
            assert_eq!(peer.text(), pong("1"), "{way:?} on {address}");
        }
    }
    is_a_stranger(&service, texts, &Way::Http.framed("{}"), "HTTP, which its listener does not take");
    is_a_stranger(&service, two, &Way::Stream.framed(&ping("1")), "JSON stream");
    is_a_stranger(&service, two, &Way::Header.framed(&ping("1")), "content-length header");
    // No length is looked for: the zero is no beginning of anything.
    is_a_stranger(&service, texts, &Way::Length.framed("\u{5}"), "no framing");
    // With one alone nothing is recognised: what isn't HTTP is bad HTTP.
    for way in [Way::Length, Way::Stream, Way::Header] {
        let mut peer = Peer::connect(http, Way::Http);
        peer.send_bytes(way.framed(&ping("1")));
        assert_eq!(peer.reply().status, 400, "{way:?}");
        assert!(peer.is_closed(), "{way:?}");
    }
}

#[test]
fn a_listener_of_lengths_alone_takes_every_byte_as_one() {
    let service = Service::start(&format!(
        "{ONE}\n[limits]\nmax_message = \"20MiB\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"length\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"length\"]\nprefix = \"big\"\n"
    ));
    let addresses: Vec<SocketAddr> =
        service.addresses().into_iter().map(|address| address.parse().expect("an address")).collect();
    let mut peer = Peer::connect(addresses[0], Way::Length);
    let long = ping(&format!("\"{}\"", "x".repeat(17 << 20)));
    peer.send("[]");
    assert_eq!(code(&peer.reply()), -32600);
    // What begins like text is a length here, and far too long.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{\"in\":\"ping\"}", b"Content-Length: 2\r\n\r\n{}"] {
        let mut peer = Peer::connect(addresses[0], Way::Length);
        peer.send_bytes(bytes);
        assert_eq!(code(&peer.reply()), -32003, "{}", bytes.escape_ascii());
        assert!(peer.is_closed());
    }
    // More than 16 MiB can be asked, and not answered.
    peer.send(&long);
    assert_eq!(code(&peer.reply()), -32603);
    // Big-endian, both ways.
    let body = ping("1");
    let mut peer = Peer::connect(addresses[1], Way::Length);
    peer.send_bytes([0, 0, 0, u8::try_from(body.len()).expect("short")]);
    peer.send_bytes(&body);
    let answer = [&[0, 0, 0, u8::try_from(pong("1").len()).expect("short")], pong("1").as_bytes()].concat();
    let mut found = vec![0; answer.len()];
    std::io::Read::read_exact(&mut peer.stream, &mut found).expect("an answer");
    assert_eq!(found, answer);
}

#[test]
fn a_big_endian_listener_takes_the_other_framings_too() {
    let service =
        Service::start(&format!("{ONE}\n[[listener]]\naddress = \"127.0.0.1:0\"\nprefix = \"big\"\n"));
    for way in [Way::Stream, Way::Header, Way::Http] {
        let mut peer = Peer::of(&service, way);
        for byte in way.framed(&ping("1")) {
            peer.send_bytes([byte]);
        }
        assert_eq!(peer.text(), pong("1"), "{way:?}");
    }
    // 0x7b bytes: the first is 0.
    let text = ping(&format!("\"{}\"", "x".repeat(123 - ping("\"\"").len())));
    let mut peer = Peer::of(&service, Way::Length);
    for byte in [&[0, 0, 0, 123], text.as_bytes()].concat() {
        peer.send_bytes([byte]);
    }
    let mut prefix = [0; 4];
    std::io::Read::read_exact(&mut peer.stream, &mut prefix).expect("an answer");
    assert_eq!(
        u32::from_be_bytes(prefix) as usize,
        text.len() + r#""out":"pong","result""#.len() - r#""in":"ping","params""#.len()
    );
    // Little-endian lengths begin nothing there, but a JSON value that their first byte begins, and then isn't one.
    is_a_stranger(&service, service.socket_address(), &framed("\"xyz\""), "no framing");
}

#[test]
fn a_tls_hello_and_what_is_no_framing_are_strangers() {
    let service = Service::start(ONE);
    let mut bystander = Bystander::of(&service);
    let hello = [&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01, 0, 0, 0xec, 3, 3][..], &[7; 229]].concat();
    let long_hello = [&[0x16, 0x03, 0x03, 0x02, 0x00, 0x01, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat();
    let address = service.socket_address();
    is_a_stranger(&service, address, &hello, "a TLS hello");
    is_a_stranger(&service, address, &hello[..6], "a TLS hello");
    is_a_stranger(&service, address, &long_hello, "a TLS hello");
    is_a_stranger(&service, address, b"hello?\n", "text that begins no framing");
    is_a_stranger(&service, address, b"SSH-2.0-OpenSSH_9.6\r\n", "text that begins no framing");
    is_a_stranger(&service, address, b"\"text\"   ", "text that begins no framing");
    is_a_stranger(&service, address, &(16_u32 << 20).to_le_bytes(), "16 MiB");
    bystander.sees_no_harm(&service, "strangers");
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
        assert_eq!(code(&reply), -32700, "{way:?}: {reply:?}");
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
        let codes: Vec<i64> = peer.replies_to_the_end().iter().map(code).collect();
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
            assert_eq!(code(&reply), -32003, "{way:?}: {reply:?}");
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
    assert_eq!(code(&peer.reply()), -32700);
    assert!(peer.is_closed());
    bystander.sees_no_harm(&service, "too much");
}

#[test]
fn a_message_that_does_not_arrive_in_time_is_answered_in_each_framing() {
    let service = Service::start(&format!("{ONE}\n[timeouts]\nmessage = \"100ms\""));
    let half_chunk = b"POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n{".to_vec();
    let parts = [
        (Way::Length, framed("{\"in\"")[..6].to_vec()),
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
        assert_eq!(code(&reply), -32600, "{way:?}: {reply:?}");
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
