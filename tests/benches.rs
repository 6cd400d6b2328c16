//! What the benches calculate with, and what they take for an answer of others' servers: benches have no tests of their own.

#[path = "../benches/side_by_side/exchanges.rs"]
mod exchanges;
#[allow(dead_code, unreachable_pub)] // the benches use the rest
#[path = "../benches/support"]
mod support {
    pub mod http;
    pub mod numbers;
}

use exchanges::Tarpc;
use support::http::Http;
use support::numbers::{Spread, grouped, time};
use tine::load::{Answer, Exchange};

#[test]
fn a_spread_has_the_middle_sample_or_the_mean_of_the_two() {
    for (samples, least, median, most) in [
        (&[2.0][..], 2.0, 2.0, 2.0),
        (&[4.0, 1.0], 1.0, 2.5, 4.0),
        (&[3.0, 9.0, 1.0], 1.0, 3.0, 9.0),
        (&[8.0, 1.0, 2.0, 4.0], 1.0, 3.0, 8.0),
    ] {
        assert_eq!(Spread::of(samples.iter().copied()), Some(Spread { least, median, most }), "{samples:?}");
    }
    assert_eq!(Spread::of([]), None);
}

#[test]
fn numbers_are_written_for_people() {
    for (number, text) in [(0.0, "0"), (999.4, "999"), (1_000.0, "1,000"), (1_234_567.0, "1,234,567")] {
        assert_eq!(grouped(number), text);
    }
    for (seconds, text) in [(2.5, "2.50 s"), (0.0125, "12.50 ms"), (0.000_004_2, "4.2 µs")] {
        assert_eq!(time(seconds), text);
    }
}

/// An answer is told at every length, and what follows it is left alone.
fn assert_whole(exchange: &impl Exchange, answer: &[u8]) {
    for cut in 1..answer.len() {
        assert_eq!(exchange.clone().answer(&answer[..cut]), Answer::NeedMore, "cut after {cut} bytes");
    }
    let followed = [answer, b"more"].concat();
    assert_eq!(exchange.clone().answer(&followed), Answer::Right { consumed: answer.len() });
}

#[test]
fn an_http_answer_is_right_whatever_its_other_headers_say() {
    let http = Http::get("pong");
    for head in
        ["Server: nginx\r\nDate: Sat, 21 Nov 2026 08:00:00 GMT\r\nContent-Length: 4", "content-length:4"]
    {
        assert_whole(&http, format!("HTTP/1.1 200 OK\r\n{head}\r\n\r\npong").as_bytes());
    }
    for wrong in [
        "HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\npong",
        "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\npongs",
        "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nping",
        "HTTP/1.1 200 OK\r\n\r\npong",
    ] {
        let answer = http.clone().answer(wrong.as_bytes());
        assert!(matches!(answer, Answer::Wrong { .. }), "{wrong}: {answer:?}");
    }
}

fn tarpc_frame(body: &str) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short body");
    [&length.to_be_bytes(), body.as_bytes()].concat()
}

#[test]
fn answers_of_tarpc_may_come_in_any_order_but_each_once() {
    let mut tarpc = Tarpc::ping("\"x\"");
    let mut requests = Vec::new();
    for _ in 0..2 {
        tarpc.request(&mut requests);
    }
    let length = u32::from_be_bytes(*requests.first_chunk().expect("a length")) as usize;
    let request: serde_json::Value = serde_json::from_slice(&requests[4..4 + length]).expect("JSON");
    assert_eq!(request["Request"]["id"], 0);
    assert_eq!(request["Request"]["message"]["Ping"]["params"], "x");

    let answer =
        |id: u32| tarpc_frame(&format!(r#"{{"request_id":{id},"message":{{"Ok":{{"Ping":"x"}}}}}}"#));
    assert_whole(&tarpc, &answer(0));
    for id in [1, 0] {
        assert!(matches!(tarpc.answer(&answer(id)), Answer::Right { .. }), "id {id}");
        assert!(matches!(tarpc.answer(&answer(id)), Answer::Wrong { .. }), "id {id}, a second time");
    }
    let wrong = tarpc_frame(r#"{"request_id":0,"message":{"Ok":{"Ping":"y"}}}"#);
    assert!(matches!(Tarpc::ping("\"x\"").answer(&wrong), Answer::Wrong { .. }));
}
