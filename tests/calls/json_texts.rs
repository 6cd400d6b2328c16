//! What is JSON and what isn't, in every framing: classes of texts that other parsers were caught with, each as the params
//! of a call and some as a whole message. What is JSON comes back byte for byte, what isn't is -32700.

use crate::support::Service;
use crate::support::peer::{ALL, Peer, Reply, Way, post};
use crate::support::programs::Bystander;
use serde_json::{Value, json};

const ONE: &str = "processes = 1\nthreads = 2";

const NUMBERS: [&str; 19] = [
    "0",
    "-0",
    "0.0",
    "-0.0e-0",
    "0e1",
    "0E+1",
    "1e1",
    "1E-2",
    "123.456e78",
    "-1",
    "1152921504606846976",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "100000000000000000000000000000000000000000000000000",
    "1e400",
    "-1e400",
    "1e-400",
    "0.100000000000000000000000000000000000000000001",
];

const TEXTS: [&str; 15] = [
    r#""""#,
    r#""\"\\\/\b\f\n\r\t""#,
    r#""\u0000""#,
    r#""\u0022\u002C""#,
    r#""\ud83d\uDE00\uD834\udd1e""#,
    r#""\uFFFF\uffff""#,
    r#""\\u00e9\\n""#,
    r#""a/*b*/ // c""#,
    "\"\u{7f}\"",
    "\"\u{80}ü\u{2028}\u{2029}\"",
    "\"\u{feff}\"",
    "\"\u{ffff}\u{10ffff}\"",
    "\"\u{1f600}\"",
    r#""[{]}""#,
    r#"" \" ""#,
];

const OTHERS: [&str; 17] = [
    "true",
    "false",
    "null",
    "[]",
    "{}",
    "[[],[[]],{}]",
    "[ 1 ,\t\"2\"\r\n, null ]",
    "[\"\"]",
    r#"{"":0}"#,
    r#"{"a":1,"a":2,"\u0061":3}"#,
    r#"{"a\u0000b":{"c":[{}]}}"#,
    "{ \"a\" : [ ] , \"b\"\n:\n{ } }",
    r#"{"in":"no call","jsonrpc":"2.0"}"#,
    "[true,false,null]",
    "[-1.5e+3]",
    "{\"\u{1f600}\":\"\u{e000}\"}",
    "[[1],[2,[3]]]",
];

/// No JSON, and so that a reader of a stream can see it.
const BAD: [&[u8]; 81] = [
    // Numbers.
    b"+1",
    b"01",
    b"-01",
    b"00",
    b"1.",
    b".5",
    b"-.5",
    b"1.e1",
    b"1e",
    b"1e+",
    b"1ee2",
    b"1e1.5",
    b"1.2.3",
    b"0x1F",
    b"0b1",
    b"1_000",
    b"1 000",
    b"-",
    b"--1",
    b"- 1",
    b"1f",
    b"Infinity",
    b"-Infinity",
    b"NaN",
    "\u{ff11}".as_bytes(),
    // Words.
    b"True",
    b"FALSE",
    b"nul",
    b"nulll",
    b"undefined",
    b"null\0",
    b"\0",
    // Texts.
    b"'a'",
    b"`a`",
    "\u{201c}a\u{201d}".as_bytes(),
    br#""\x41""#,
    br#""\a""#,
    br#""\u12""#,
    br#""\u12G4""#,
    br#""\U0041""#,
    br#""\ud80""#,
    br#""a" "b""#,
    b"\"\t\"",
    b"\"\n\"",
    b"\"\0\"",
    b"\"\x1f\"",
    b"\"\\\n\"",
    b"\"\xff\"",
    b"\"\x80\"",
    b"\"\xc0\xaf\"",
    b"\"\xe0\x80\xaf\"",
    b"\"\xed\xa0\x80\"",
    b"\"\xf4\x90\x80\x80\"",
    b"\"\xe2\x82\"",
    // Arrays.
    b"[1,]",
    b"[,1]",
    b"[1,,2]",
    b"[,]",
    b"[1 2]",
    b"[1:2]",
    b"[*]",
    b"[1/*c*/]",
    b"[#c\n1]",
    b"[\x0c]",
    b"[\x0b1]",
    b"[\xc2\xa01]",
    b"[1}",
    b"[1]]",
    // Objects.
    br#"{"a":1,}"#,
    b"{,}",
    br#"{"a"}"#,
    br#"{"a":}"#,
    br#"{"a" 1}"#,
    br#"{"a"::1}"#,
    b"{a:1}",
    b"{1:1}",
    b"{'a':1}",
    br#"{"a":1 "b":2}"#,
    br#"{"a":1;"b":2}"#,
    b"{null:1}",
    br#"{"a":1]"#,
];

/// No JSON, and a stream may yet bring the rest.
const UNENDED: [&[u8]; 9] =
    [b"\"", b"\"a", br#""\""#, br#""\u"#, b"[", b"[1,", b"[[1]", br#"{"a":1"#, br#"{"a":"}"#];

/// Whole messages that are none.
fn bad_messages() -> Vec<Vec<u8>> {
    let deep = |text: &str, times: usize| text.repeat(times).into_bytes();
    let mut bad: Vec<Vec<u8>> = [
        &b"\xef\xbb\xbf\xef\xbb\xbe{}"[..],
        b"\xff\xfe{\0}\0",
        b"\xfe\xff\0{\0}",
        b"{\0}\0",
        b"{\"in\":\"ping\"}}",
        b"{\"in\":\"ping\"},",
        b"{\"in\":\"ping\"}\0",
        b"{} x",
        b"<methodCall/>",
        b"ping",
        b"\x0c{}",
    ]
    .map(<[u8]>::to_vec)
    .into();
    bad.extend([deep("[", 100_000), deep("{\"a\":", 100_000), deep("[{\"\":", 50_000)]);
    bad.push([deep("[", 100_000), deep("]", 100_000)].concat());
    bad
}

fn is_parse_error(reply: &Reply, status: u16, way: Way, message: &[u8]) {
    let shown = message[..message.len().min(80)].escape_ascii();
    assert_eq!((reply.code(), reply.status), (-32700, status), "{way:?}: {shown}: {reply:?}");
    assert!(reply.body.len() < 500, "{way:?}: {shown}: {reply:?}");
}

fn framed(way: Way, message: &[u8]) -> Vec<u8> {
    // The head depends on the length alone.
    let mut bytes = way.framed(&"x".repeat(message.len()));
    let start = bytes.len() - message.len();
    bytes.splice(start.., message.iter().copied());
    bytes
}

fn in_a_batch(call: &[u8]) -> Vec<u8> {
    [b"[", call, b"]"].concat()
}

/// A value as the params of a call, in two envelopes.
fn calls(value: &[u8]) -> [Vec<u8>; 2] {
    [
        [br#"{"in":"echo","params":"#, value, b"}"].concat(),
        [br#"{"jsonrpc":"2.0","method":"echo","id":7,"params":["#, value, b"]}"].concat(),
    ]
}

#[test]
fn what_is_json_comes_back_as_it_was_written() {
    let service = Service::start(ONE);
    // As deep as it may be: the second form puts it into an array.
    let deep = format!("{}{}", "[".repeat(126), "]".repeat(126));
    let values = || NUMBERS.into_iter().chain(TEXTS).chain(OTHERS).chain([&*deep]);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        // A line break would end an answer for a reader of lines.
        for value in values().filter(|value| way != Way::Stream || !value.contains('\n')) {
            let [native, v2] = calls(value.as_bytes());
            peer.send_bytes([framed(way, &native), framed(way, &v2)].concat());
            let expected = [
                format!(r#"{{"out":"echo","result":{value}}}"#),
                format!(r#"{{"jsonrpc":"2.0","result":[{value}],"id":7}}"#),
            ];
            let mut answers = [peer.text(), peer.text()];
            // One of them has an id.
            answers.sort_by_key(|answer| answer.starts_with(r#"{"jsonrpc"#));
            assert_eq!(answers, expected, "{way:?}");
            // In a batch it may be as deep.
            peer.send_bytes(framed(way, &in_a_batch(&v2)));
            assert_eq!(peer.text(), format!("[{}]", expected[1]), "{way:?}");
        }
    }
    let mut peer = Peer::of(&service, Way::Http);
    for value in values() {
        for around in ["", " \r\n\t"] {
            let body = format!("{around}{value}{around}");
            peer.send_bytes(post("/echo", body.len(), "") + &body);
            assert_eq!(peer.text(), value);
        }
    }
}

/// JSON by its grammar, and no text.
const HALF_PAIRS: [&str; 8] = [
    r#""\ud83d""#,
    r#""\ude00""#,
    r#""cut \uD83D""#,
    r#""\ud83d\ud83d\ude00""#,
    r#""\ud83d\n""#,
    r#""\ude00\ud83d""#,
    r#"{"\ud83d":1}"#,
    r#"[[{"a":["\udfff"]}]]"#,
];

// What Python and JavaScript write for a text that was cut inside an emoji took the batch around it, and the stream that it came in.
#[test]
fn half_a_surrogate_pair_fails_one_call_and_nothing_beside_it() {
    let service = Service::start(ONE);
    let padding = "x".repeat(20_000);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for value in HALF_PAIRS {
            let v2 = |method: &str, params: &str, id: &str| {
                format!(r#"{{"jsonrpc":"2.0","method":"{method}","params":{params},"id":{id}}}"#)
            };
            let [bad, good] = [v2("echo", &format!("[{value}]"), "7"), v2("echo", "[8]", "8")];
            let is_refused = |answer: &Value, id: Value| {
                assert_eq!(
                    (&answer["error"]["code"], &answer["id"]),
                    (&json!(-32602), &id),
                    "{way:?} {value}: {answer}"
                );
                let message = answer["error"]["message"].as_str().unwrap_or_default();
                assert!(message.contains("expected both halves of a surrogate pair"), "{answer}");
            };
            peer.send(&bad);
            is_refused(&peer.receive(), json!(7));
            // A large one is read by another thread.
            peer.send(&v2("echo", &format!(r#"["{padding}",{value}]"#), "7"));
            is_refused(&peer.receive(), json!(7));
            peer.send(&format!(r#"{{"in":"echo","params":{value},"id":7}}"#));
            let answer = peer.receive();
            assert_eq!((&answer["result"]["code"], &answer["id"]), (&json!(-32602), &json!(7)), "{answer}");
            // The id comes back as it was written.
            let id = r#""\ud83d""#;
            peer.send(&v2("echo", "[]", id));
            let answer = peer.text();
            assert!(
                answer.contains("\"code\":-32600") && answer.ends_with(&format!(",\"id\":{id}}}")),
                "{way:?}: {answer}"
            );
            // In a batch the others are answered, and a notification is not.
            let silent = format!(r#"{{"jsonrpc":"2.0","method":"echo","params":[{value}]}}"#);
            let named = v2(r"\ud83d", "[]", "9");
            peer.send(&format!("[{bad},{silent},{good},{named}]"));
            let answers = peer.receive();
            let answers = answers.as_array().expect("an array");
            assert_eq!(answers.len(), 3, "{way:?}: {answers:?}");
            let by_id =
                |id: u64| answers.iter().find(|answer| answer["id"] == id).expect("an answer to each");
            is_refused(by_id(7), json!(7));
            assert_eq!(by_id(8)["result"], json!([8]));
            assert_eq!(by_id(9)["error"]["code"], -32600);
        }
        assert_eq!(peer.call("ping", "on".into())["result"], "on", "{way:?}");
    }
    let mut peer = Peer::of(&service, Way::Http);
    for value in HALF_PAIRS {
        peer.send_bytes(post("/echo", value.len(), "") + value);
        let reply = peer.reply();
        assert_eq!((reply.status, reply.code()), (422, -32602), "{reply:?}");
    }
}

/// As .NET's `Encoding.UTF8` and some editors write it.
#[test]
fn a_byte_order_mark_before_a_message_is_skipped() {
    let service = Service::start(ONE);
    let call = r#"{"jsonrpc":"2.0","method":"ping","params":["x"],"id":1}"#;
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for message in
            [call.to_owned(), format!("[{call}]"), r#"{"in":"ping","params":["x"],"id":1}"#.to_owned()]
        {
            peer.send(&format!("\u{feff}{message}"));
            let answer = peer.receive();
            let answer = answer.get(0).unwrap_or(&answer);
            assert_eq!((&answer["result"], &answer["id"]), (&json!(["x"]), &json!(1)), "{way:?}: {answer}");
        }
        // In the middle of a message it is named.
        peer.send("{\"in\":\u{feff}\"ping\"}");
        assert!(peer.text().contains("found a byte order mark"), "{way:?}");
    }
    let mut peer = Peer::of(&service, Way::Http);
    peer.send_bytes(post("/ping", 6, "") + "\u{feff}\"x\"");
    assert_eq!(peer.text(), "\"x\"");
}

/// In a stream the brackets of the envelope were counted with those of the params, and the caller was told of an end that was none.
#[test]
fn one_level_too_many_is_told_as_that_in_each_framing() {
    let service = Service::start(ONE);
    for depth in [128, 129, 100_000] {
        let [native, v2] = calls(format!("{}{}", "[".repeat(depth), "]".repeat(depth)).as_bytes());
        let batch = in_a_batch(&v2);
        for message in [native, v2, batch] {
            for way in ALL {
                let mut peer = Peer::of(&service, way);
                peer.send_bytes(framed(way, &message));
                let answer = peer.text();
                assert!(
                    answer.contains("expected at most 127 levels of nesting, found `[`"),
                    "{way:?}: {answer}"
                );
            }
        }
    }
}

#[test]
fn what_is_no_json_is_told_so_and_only_a_stream_ends_with_it() {
    let service = Service::start(ONE);
    let mut bystander = Bystander::of(&service);
    for way in [Way::Length, Way::Header, Way::Http] {
        let mut peer = Peer::of(&service, way);
        let values = BAD.into_iter().chain(UNENDED).flat_map(calls);
        for message in values.chain(bad_messages()) {
            peer.send_bytes(framed(way, &message));
            is_parse_error(&peer.reply(), 200, way, &message);
        }
        assert_eq!(peer.call("ping", "on".into())["result"], "on", "{way:?}");
    }
    let mut peer = Peer::of(&service, Way::Http);
    for value in BAD.into_iter().chain(UNENDED).map(<[u8]>::to_vec).chain(bad_messages()) {
        peer.send_bytes([post("/echo", value.len(), "").as_bytes(), &value].concat());
        is_parse_error(&peer.reply(), 400, Way::Http, &value);
    }
    bystander.sees_no_harm(&service, "texts that are no JSON");
}

/// Its caller keeps its side open and waits.
#[test]
fn what_is_no_json_ends_a_stream_while_its_caller_waits() {
    let service = Service::start(ONE);
    let mut bystander = Bystander::of(&service);
    for message in BAD.into_iter().flat_map(calls).chain(bad_messages()) {
        let mut peer = Peer::of(&service, Way::Stream);
        peer.send_bytes(b"{}\n");
        peer.send_bytes(&message);
        let replies = peer.replies_to_the_end();
        let [first @ .., last] = &replies[..] else { panic!("no answer") };
        is_parse_error(last, 200, Way::Stream, &message);
        // What stood before it was a message.
        assert!((1..=2).contains(&first.len()), "{}: {replies:?}", message.escape_ascii());
    }
    // What has no end is no message yet, and none at all where its caller has ended.
    for value in UNENDED.into_iter().chain([&b"nul"[..], b"-", b" "]) {
        for before in ["", r#"{"in":"echo","params":"#] {
            let mut peer = Peer::of(&service, Way::Stream);
            peer.send_bytes([b"{}\r\n", before.as_bytes(), value].concat());
            peer.half_close();
            let codes: Vec<_> = peer.replies_to_the_end().iter().map(Reply::code).collect();
            assert_eq!(codes, [-32600], "{}", value.escape_ascii());
        }
    }
    bystander.sees_no_harm(&service, "streams that are no JSON");
}
