//! Which framing a connection speaks: recognised from its first bytes however they come, kept for good, and refused where its
//! listener doesn't take it or nobody knows it.

use std::net::SocketAddr;

use crate::support::peer::{ALL, Peer, Way};
use crate::support::programs::Bystander;
use crate::support::{Service, framed};

const ONE: &str = "processes = 1\nthreads = 2";

fn ping(params: &str) -> String {
    format!(r#"{{"in":"ping","params":{params}}}"#)
}

fn pong(result: &str) -> String {
    format!(r#"{{"out":"pong","result":{result}}}"#)
}

/// What a connection gets that is a stranger to the last listener of `listeners`: no byte, and one line in the log. It has a service
/// of its own: of several strangers within a second the others are counted.
fn is_a_stranger(listeners: &str, bytes: &[u8], words: &str) {
    let mut service = Service::start(&format!("{ONE}\n{listeners}"));
    // On the first one.
    let mut bystander = Bystander::of(&service);
    let last = service.addresses().pop().expect("an address").parse().expect("of TCP");
    let mut peer = Peer::connect(last, Way::Length);
    let me = peer.stream.local_addr().expect("connected").to_string();
    peer.send_bytes(bytes);
    assert!(peer.is_closed(), "{} is answered", bytes.escape_ascii());
    bystander.sees_no_harm(&service, words);
    drop(bystander);
    assert_eq!(service.stop(), Some(0));
    let log = service.whole_log();
    let lines: Vec<_> = log.iter().filter(|line| line.to_string().contains(&me)).collect();
    let [line] = lines[..] else { panic!("{words}: expected one line, found {lines:?} in {log:?}") };
    assert!(
        line["level"] == "ERROR" && line["peer"] == me.as_str() && line.to_string().contains(words),
        "expected {words}: {line}"
    );
    assert!(!log.iter().any(|line| line.to_string().contains("more record")), "{log:?}");
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
            let reply = peer.reply();
            assert_eq!(reply.body, pong(round), "{way:?}");
            if way == Way::Header {
                // Some clients take nothing else.
                assert_eq!(reply.head, format!("Content-Length: {}\r\n\r\n", reply.body.len()));
            }
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
    for short in ["[]", "{}", "[]\n", "{}\n", "\n[]", "\r{}", "\t[]", " {}", "[1]"] {
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
                assert_eq!(reply.code(), -32600, "{short:?}");
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

/// Its first byte is that of a JSON object, and those of 790 bytes are a TLS hello's.
#[test]
fn a_prefixed_message_of_123_bytes_is_no_json_stream() {
    let service = Service::start(ONE);
    for (length, first) in [(123, b'{'), (91, b'['), (32, b' '), (80, b'P'), (67, b'C'), (0x316, 0x16)] {
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
    let pinned = |framings: &str| {
        format!(
            "[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nframings = {framings}"
        )
    };
    let [texts, two] = [pinned(r#"["stream", "header"]"#), pinned(r#"["length", "http"]"#)];
    is_a_stranger(&texts, &Way::Http.framed("{}"), "HTTP, which its listener does not take");
    is_a_stranger(&two, &Way::Stream.framed(&ping("1")), "JSON stream");
    is_a_stranger(&two, &Way::Header.framed(&ping("1")), "content-length header");
    // No length is looked for: the zero is no beginning of anything.
    is_a_stranger(&texts, &Way::Length.framed("\u{5}"), "no framing");
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
        "{ONE}\n[limits]\nmax_message = \"20MiB\"\nqueue_wait = \"60s\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"length\"]\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nframings = [\"length\"]\nprefix = \"big\"\n"
    ));
    let addresses: Vec<SocketAddr> =
        service.addresses().into_iter().map(|address| address.parse().expect("an address")).collect();
    let mut peer = Peer::connect(addresses[0], Way::Length);
    let long = ping(&format!("\"{}\"", "x".repeat(17 << 20)));
    peer.send("[]");
    assert_eq!(peer.reply().code(), -32600);
    // What begins like text is a length here, and far too long.
    for bytes in [&b"GET / HTTP/1.1\r\n\r\n"[..], b"{\"in\":\"ping\"}", b"Content-Length: 2\r\n\r\n{}"] {
        let mut peer = Peer::connect(addresses[0], Way::Length);
        peer.send_bytes(bytes);
        assert_eq!(peer.reply().code(), -32003, "{}", bytes.escape_ascii());
        assert!(peer.is_closed());
    }
    // More than 16 MiB can be asked, and not answered.
    peer.send(&long);
    assert_eq!(peer.reply().code(), -32603);
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
    let big =
        "[[listener]]\naddress = \"127.0.0.1:0\"\n[[listener]]\naddress = \"127.0.0.1:0\"\nprefix = \"big\"";
    is_a_stranger(big, &framed("\"xyz\""), "no framing");
}

#[test]
fn a_tls_hello_and_what_is_no_framing_are_strangers() {
    let hello = [&[0x16, 0x03, 0x01, 0x00, 0xf0, 0x01, 0, 0, 0xec, 3, 3][..], &[7; 229]].concat();
    let long_hello = [&[0x16, 0x03, 0x03, 0x02, 0x00, 0x01, 0, 1, 0xfc, 3, 3][..], &[7; 500]].concat();
    is_a_stranger("", &hello, "a TLS hello");
    is_a_stranger("", &hello[..6], "a TLS hello");
    is_a_stranger("", &long_hello, "a TLS hello");
    is_a_stranger("", "A".repeat(21).as_bytes(), "text that begins no framing");
    // The sixth byte tells.
    let service = Service::start(ONE);
    let mut slow = Peer::of(&service, Way::Length);
    for byte in &hello[..6] {
        slow.send_bytes([*byte]);
    }
    assert!(slow.is_closed());
    is_a_stranger("", b"hello?\n", "text that begins no framing");
    is_a_stranger("", b"SSH-2.0-OpenSSH_9.6\r\n", "text that begins no framing");
    is_a_stranger("", b"\"text\"   ", "text that begins no framing");
    is_a_stranger("", &(16_u32 << 20).to_le_bytes(), "16 MiB");
}

#[test]
fn a_connection_keeps_the_framing_that_its_first_bytes_have_shown() {
    let service = Service::start(ONE);
    for way in ALL {
        for other in ALL.into_iter().filter(|other| *other != way) {
            let mut peer = Peer::of(&service, way);
            peer.send(&ping("1"));
            assert_eq!(peer.text(), pong("1"), "{way:?}");
            // A header's line is wrong once it has ended.
            peer.send_bytes([&other.framed(&ping("2"))[..], b"\r\n"].concat());
            let replies = peer.replies_to_the_end();
            let [reply] = &replies[..] else { panic!("{other:?} on {way:?}: {replies:?}") };
            let (expected, status) = match way {
                // Text is a length, and too long.
                Way::Length => (-32003, 200),
                Way::Stream | Way::Header => (-32700, 200),
                Way::Http => (-32600, 400),
            };
            assert_eq!((reply.code(), reply.status), (expected, status), "{other:?} on {way:?}");
        }
    }
}
