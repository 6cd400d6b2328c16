use super::super::registry::RegistryBuilder;
use super::*;

fn asked(method: &'static str, target: &'static str) -> Asked<'static> {
    Asked { method, target, ..Asked::default() }
}

fn read_with<'a>(asked: &Asked<'a>, body: &'a str, origins: &[&str]) -> Wanted<'a> {
    let origins: Vec<String> = origins.iter().map(|origin| (*origin).to_owned()).collect();
    read(
        asked,
        body.as_bytes(),
        &Pages::new(&origins, &[], &[]),
        &RegistryBuilder::default().build().unwrap(),
    )
}

fn refused(asked: &Asked<'_>, body: &str, origins: &[&str]) -> (u16, Option<&'static str>) {
    match read_with(asked, body, origins) {
        Wanted::Refused(refusal) => (refusal.status, refusal.allow),
        other => panic!("{asked:?}: {other:?}"),
    }
}

#[test]
fn a_message_is_posted_to_the_root_and_keeps_its_form() {
    for (body, form) in [
        (r#"{"jsonrpc":"2.0","method":"ping","id":1}"#, Form::V2),
        (r#"{"method":"ping","id":1}"#, Form::V1),
        (r#"{"in":"ping"}"#, Form::Native),
    ] {
        for target in ["/", "/?a=b", "http://host:80/", "http://host"] {
            let Wanted::Call(request) = read_with(&asked("POST", target), body, &[]) else {
                panic!("{body}")
            };
            assert_eq!((request.form, &*request.method), (form, "ping"));
        }
    }
    let Wanted::Batch { batch, timeout_ms: Some(5) } =
        read_with(&Asked { timeout_ms: Some("5"), ..asked("POST", "/") }, "[1,2]", &[])
    else {
        panic!("a batch")
    };
    assert_eq!(batch.len(), 2);
    for body in ["", "{", "7", "{}"] {
        let Wanted::Rejected(rejected) = read_with(&asked("POST", "/"), body, &[]) else { panic!("{body}") };
        assert_eq!(rejected.form, Form::V2, "{body}");
    }
}

#[test]
fn a_method_in_the_path_takes_the_body_as_its_params() {
    for (target, body, method, params) in [
        ("/ping", "", "ping", None),
        ("/ping", " [1] ", "ping", Some("[1]")),
        ("/tine.methods?x", "null", "tine.methods", Some("null")),
        ("/p%69ng%2F%C3%A9", "7", "ping/é", Some("7")),
        ("/a/b", "7", "a/b", Some("7")),
        ("//", "7", "/", Some("7")),
    ] {
        let Wanted::Call(request) = read_with(&asked("POST", target), body, &[]) else { panic!("{target}") };
        assert_eq!((request.form, &*request.method), (Form::Bare, method));
        assert_eq!(
            request.params.map(|span| span.in_message(body.as_bytes()).unwrap().get().to_owned()).as_deref(),
            params
        );
        assert!(!request.is_notification());
    }
    for body in ["{", "1 2", "1\u{feff}", "nope"] {
        let Wanted::Rejected(rejected) = read_with(&asked("POST", "/ping"), body, &[]) else {
            panic!("{body}")
        };
        assert_eq!((rejected.form, rejected.error.code()), (Form::Bare, Error::PARSE));
    }
    // A proxy that reads paths would see another one than is called.
    for target in ["/%", "/%4", "/%zz", "/%ff", "ping", "", "/ping#x", "/#ping", "http://a/ping#"] {
        assert_eq!(refused(&asked("POST", target), "1", &[]).0, 400, "{target}");
    }
}

#[test]
fn the_smaller_of_the_callers_timeouts_holds() {
    let body = r#"{"jsonrpc":"2.0","method":"ping","timeout_ms":50}"#;
    for (header, timeout) in [(None, 50), (Some("20"), 20), (Some("80"), 50)] {
        let asked = Asked { timeout_ms: header, ..asked("POST", "/") };
        let Wanted::Call(request) = read_with(&asked, body, &[]) else { panic!("{header:?}") };
        assert_eq!(request.timeout_ms, Some(timeout));
    }
    for wrong in ["", "0", "-1", "+5", "1.5", "5s", "0x10"] {
        let asked = Asked { timeout_ms: Some(wrong), ..asked("POST", "/ping") };
        assert_eq!(refused(&asked, "", &[]).0, 400, "{wrong}");
    }
}

#[test]
fn health_is_asked_with_get_and_everything_else_there_is_no_page() {
    for method in ["GET", "HEAD"] {
        assert_eq!(read_with(&asked(method, "/healthz"), "", &[]), Wanted::Healthz);
        assert_eq!(read_with(&asked(method, "/readyz?full"), "", &[]), Wanted::Readyz);
        assert_eq!(refused(&asked(method, "/"), "", &[]), (405, Some("POST, OPTIONS")));
        assert_eq!(refused(&asked(method, "/ping"), "", &[]), (405, Some("POST, OPTIONS")));
        assert_eq!(refused(&asked(method, "/favicon.ico"), "", &[]), (404, None));
    }
    assert_eq!(refused(&asked("CONNECT", "a.example:80"), "", &[]), (405, Some("POST, OPTIONS")));
    for method in ["PUT", "DELETE", "PATCH", "TRACE", "CONNECT"] {
        assert_eq!(refused(&asked(method, "/ping"), "", &[]), (405, Some("POST, OPTIONS")));
        assert_eq!(refused(&asked(method, "/healthz"), "", &[]), (405, Some("GET, HEAD, OPTIONS")));
    }
    for method in ["get", "BREW", "PRI"] {
        assert_eq!(refused(&asked(method, "/ping"), "", &[]), (501, None));
    }
    assert_eq!(read_with(&asked("OPTIONS", "*"), "", &[]), Wanted::Options { allow: "POST, OPTIONS" });
}

#[test]
fn a_page_may_call_only_from_where_the_configuration_says() {
    let from = |method, origin| Asked {
        origin: Some(origin),
        content_type: Some("application/json"),
        ..asked(method, "/ping")
    };
    let allowed = ["https://a.example", "http://b.example:81"];
    for origin in allowed {
        assert!(matches!(read_with(&from("POST", origin), "1", &allowed), Wanted::Call(_)));
        assert_eq!(read_with(&from("OPTIONS", origin), "", &allowed), Wanted::Preflight);
    }
    for origin in
        ["null", "", "https://a.example:443", "http://a.example", "https://a.example.evil", "\u{fffd}"]
    {
        for method in ["POST", "GET", "OPTIONS"] {
            assert_eq!(refused(&from(method, origin), "", &allowed).0, 403, "{method} {origin}");
        }
        assert!(matches!(read_with(&from("POST", origin), "1", &["*"]), Wanted::Call(_)));
    }
    assert_eq!(refused(&from("POST", "https://a.example"), "1", &[]).0, 403);
    let own = Asked { host: Some("localhost:8080"), ..from("POST", "http://localhost:8080") };
    assert!(matches!(read_with(&own, "1", &["self"]), Wanted::Call(_)));
    assert_eq!(refused(&own, "1", &allowed).0, 403);
}

#[test]
fn a_pages_body_must_be_declared_as_json() {
    let page =
        |content_type| Asked { origin: Some("https://a.example"), content_type, ..asked("POST", "/ping") };
    for json in [
        "application/json",
        "Application/JSON; charset=utf-8",
        "application/json-rpc",
        "application/jsonrequest",
        "application/vnd.a+json ; x=y",
    ] {
        assert!(matches!(read_with(&page(Some(json)), "1", &["*"]), Wanted::Call(_)), "{json}");
    }
    for other in [
        None,
        Some("text/plain"),
        Some("text/plain; application/json"),
        Some("+json"),
        Some(""),
        Some("json"),
    ] {
        // Whoever the page belongs to.
        assert_eq!(refused(&page(other), "1", &["*"]).0, 415, "{other:?}");
        assert_eq!(refused(&page(other), "1", &[]).0, 415, "{other:?}");
        assert!(matches!(read_with(&page(other), "", &["*"]), Wanted::Call(_)), "no body needs no type");
        let plain = Asked { origin: None, ..page(other) };
        assert!(matches!(read_with(&plain, "1", &[]), Wanted::Call(_)), "a client that is no browser");
    }
}

#[test]
fn a_body_that_is_encoded_is_not_taken_for_bad_json() {
    let encoded = |content_encoding| Asked { content_encoding, ..asked("POST", "/ping") };
    for none in [None, Some("identity"), Some("Identity")] {
        assert!(matches!(read_with(&encoded(none), "1", &[]), Wanted::Call(_)), "{none:?}");
    }
    for some in ["gzip", "identity, gzip", "", "\u{fffd}"] {
        assert_eq!(refused(&encoded(Some(some)), "1", &[]).0, 415, "{some}");
    }
}
