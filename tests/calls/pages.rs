//! Pages in browsers, as their requests come: who may call, what they may send and read, and what the log says of those who may not.

use crate::support::Service;
use crate::support::peer::{Peer, Reply, Way};

const ONE: &str = "processes = 1\nthreads = 1";

fn ask(peer: &mut Peer, method: &str, host: &str, fields: &str) -> Reply {
    let body = if method == "POST" { "1" } else { "" };
    let length = body.len();
    peer.send_bytes(format!(
        "{method} /ping HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n{fields}Content-Length: {length}\r\n\r\n{body}"
    ));
    peer.reply()
}

#[test]
fn pages_of_the_apis_own_origin_call_where_self_is_allowed() {
    let config = format!("{ONE}\n[http]\nallow_origins = [\"self\"]\nhosts = [\"api.example\"]");
    let service = Service::start(&config);
    let mut peer = Peer::of(&service, Way::Http);
    let here = service.address().to_owned();
    let port = here.rsplit_once(':').expect("a port").1.to_owned();
    for (origin, host, status) in [
        (format!("http://{here}"), here.clone(), 200),
        (format!("http://localhost:{port}"), format!("LOCALHOST:{port}"), 200),
        ("https://api.example".to_owned(), "api.example".to_owned(), 200),
        ("https://api.example".to_owned(), "api.example:443".to_owned(), 200),
        // A name of somebody's that leads here by now.
        (format!("http://evil.example:{port}"), format!("evil.example:{port}"), 403),
        ("http://evil.example".to_owned(), here.clone(), 403),
        ("null".to_owned(), here.clone(), 403),
        (format!("http://localhost:{port}"), here.clone(), 403),
    ] {
        // What a page or a proxy says beside it changes nothing.
        let fields = format!("Origin: {origin}\r\nX-Forwarded-Host: evil.example:{port}\r\n");
        let reply = ask(&mut peer, "POST", &host, &fields);
        assert_eq!(reply.status, status, "{origin} at {host}: {reply:?}");
        assert_eq!(reply.field("Vary"), Some("Origin"), "{reply:?}");
        assert_eq!(reply.field("Access-Control-Allow-Origin"), None, "it needs no leave: {reply:?}");
    }
    // Without it nobody of the API's own origin may call, as ever.
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    let own = format!("Origin: http://{}\r\n", service.address());
    assert_eq!(ask(&mut peer, "POST", service.address(), &own).status, 403);
}

#[test]
fn a_page_learns_which_fields_it_may_send_and_reads_when_to_try_again() {
    let config = format!(
        "{ONE}\n[http]\nallow_origins = [\"https://app.example\"]\nallow_headers = [\"Authorization\", \"X-Request-Id\"]"
    );
    let service = Service::start(&config);
    let mut peer = Peer::of(&service, Way::Http);
    let page = "Origin: https://app.example\r\n";
    let asks = format!(
        "{page}Access-Control-Request-Method: POST\r\nAccess-Control-Request-Headers: authorization\r\n"
    );
    let reply = ask(&mut peer, "OPTIONS", "a", &asks);
    let headers = "Content-Type, Request-Timeout-Ms, Authorization, X-Request-Id";
    assert_eq!(
        (reply.status, reply.field("Access-Control-Allow-Headers")),
        (204, Some(headers)),
        "{reply:?}"
    );
    let reply = ask(&mut peer, "POST", "a", page);
    assert_eq!(reply.field("Access-Control-Expose-Headers"), Some("Retry-After"), "{reply:?}");
    // A cache that has the answer to somebody who is no page must not give it to one.
    for (method, fields) in
        [("POST", ""), ("OPTIONS", ""), ("GET", ""), ("POST", "Origin: null\r\n"), ("POST", page)]
    {
        let reply = ask(&mut peer, method, "a", fields);
        assert_eq!(reply.field("Vary"), Some("Origin"), "{method} {fields}: {reply:?}");
    }
    let service = Service::start(ONE);
    assert_eq!(ask(&mut Peer::of(&service, Way::Http), "POST", "a", "").field("Vary"), None);
}

#[test]
fn pages_that_are_refused_are_a_line_a_second_in_the_log() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    for _ in 0..50 {
        assert_eq!(ask(&mut peer, "POST", "a", "Origin: https://forgotten.example\r\n").status, 403);
    }
    let line = service.await_log("a page's call is refused");
    let message = line["message"].as_str().expect("a message");
    assert!(message.contains("https://forgotten.example") && message.contains("allow_origins"), "{line}");
    assert!(line["peer"].is_string(), "{line}");
    let lines = service.log_so_far().matches("a page's call is refused: ").count();
    assert!((1..10).contains(&lines), "{}", service.log_so_far());
}

// A form's post, and a `fetch` that says no type, were refused for that before their origin was looked at, and not logged.
#[test]
fn a_page_whose_body_is_refused_is_in_the_log_too() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Http);
    peer.send_bytes(
        "POST /echo HTTP/1.1\r\nHost: a\r\nOrigin: https://form.example\r\nContent-Type: text/plain\r\nContent-Length: 3\r\n\r\na=1",
    );
    assert_eq!(peer.reply().status, 415);
    let line = service.await_log("a page's call is refused");
    let message = line["message"].as_str().expect("a message");
    assert!(message.contains("https://form.example") && message.contains("`text/plain`"), "{line}");
}
