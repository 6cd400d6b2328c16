use std::time::Duration;

use super::*;

const PLAIN: Answering<'_> = Answering {
    date: "Sun, 06 Nov 1994 08:49:37 GMT",
    is_old: false,
    keeps_open: true,
    head_only: false,
    allowed_origin: None,
    pages: &Pages::NONE,
};

fn written(write: impl FnOnce(&mut Vec<u8>)) -> String {
    let mut out = b"earlier|".to_vec();
    write(&mut out);
    String::from_utf8(out).unwrap().strip_prefix("earlier|").unwrap().to_owned()
}

fn with_body(answering: &Answering<'_>, body: &str, form: Form, error: Option<&Error>) -> String {
    written(|out| {
        let start = out.len();
        out.extend_from_slice(body.as_bytes());
        answering.end(out, start, form, error, None);
    })
}

#[test]
fn an_answer_is_a_head_and_the_body_behind_it() {
    assert_eq!(
        with_body(&PLAIN, "[1,2,3,4,5]", Form::V2, None),
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\
         Date: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n[1,2,3,4,5]"
    );
    let long = "x".repeat(100_000);
    let answer = with_body(&PLAIN, &long, Form::V2, None);
    assert!(answer.contains("Content-Length: 100000\r\n") && answer.ends_with(&format!("\r\n\r\n{long}")));
}

#[test]
fn what_becomes_of_the_connection_is_said_where_it_is_not_the_usual() {
    let says = |is_old, keeps_open| {
        let answer = with_body(&Answering { is_old, keeps_open, ..PLAIN }, "1", Form::Bare, None);
        answer.lines().find_map(|line| line.strip_prefix("Connection: ").map(str::to_owned))
    };
    assert_eq!(says(false, true), None);
    assert_eq!(says(false, false).as_deref(), Some("close"));
    assert_eq!(says(true, true).as_deref(), Some("keep-alive"));
    assert_eq!(says(true, false).as_deref(), Some("close"));
}

#[test]
fn head_is_told_the_length_of_what_it_does_not_get() {
    let answer = written(|out| Answering { head_only: true, ..PLAIN }.health(out, true));
    assert!(answer.contains("Content-Length: 15\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
}

#[test]
fn nothing_to_answer_has_no_length_either() {
    let answer = written(|out| PLAIN.nothing(out));
    assert_eq!(answer, "HTTP/1.1 204 No Content\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\r\n");
}

#[test]
fn health_is_in_the_status() {
    assert!(written(|out| PLAIN.health(out, true)).starts_with("HTTP/1.1 200 OK\r\n"));
    let ill = written(|out| PLAIN.health(out, false));
    assert!(
        ill.starts_with("HTTP/1.1 503 Service Unavailable\r\n")
            && ill.ends_with(r#"{"status":"unavailable"}"#)
    );
}

#[test]
fn each_code_has_its_status_where_the_body_is_bare_and_200_in_an_envelope() {
    let ms = Duration::from_millis;
    for (error, status) in [
        (Error::parse(0, &"byte 0"), 400),
        (Error::invalid_request(&"no"), 400),
        (Error::method_not_found("frob"), 404),
        (Error::invalid_params("no"), 422),
        (Error::panicked("frob"), 500),
        (Error::internal("no"), 500),
        (Error::overloaded(ms(1)), 503),
        (Error::deadline(ms(1)), 504),
        (Error::crashed("frob", "SIGSEGV"), 502),
        (Error::drained("frob"), 502),
        (Error::too_large(2, 1), 413),
        (Error::quarantined("frob", ms(1)), 503),
        (Error::new(17, "no pens"), 500),
        (Error::new(17, "no pens").with_status(409), 409),
        (Error::new(17, "no pens").with_status(599), 599),
        (Error::new(17, "no pens").with_status(200), 500),
        (Error::new(17, "no pens").with_status(600), 500),
        (Error::invalid_params("no").with_status(409), 422),
        (Error::internal("no").with_status(409), 500),
    ] {
        assert_eq!(status_of(Form::Bare, Some(&error)), status, "{error}");
        for form in [Form::Native, Form::V2, Form::V1] {
            assert_eq!(status_of(form, Some(&error)), 200);
        }
        let answer = with_body(&PLAIN, "1", Form::Bare, Some(&error));
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
    }
    assert_eq!(status_of(Form::Bare, None), 200);
}

#[test]
fn who_may_try_again_is_told_when_in_whole_seconds() {
    for (ms, seconds) in [(1, 1), (1000, 1), (1001, 2)] {
        let error = Error::overloaded(Duration::from_millis(ms));
        let answer = with_body(&PLAIN, "1", Form::Bare, Some(&error));
        assert!(answer.contains(&format!("\r\nRetry-After: {seconds}\r\n")), "{answer}");
        assert!(!with_body(&PLAIN, "1", Form::V2, Some(&error)).contains("Retry-After"));
    }
}

#[test]
fn a_page_that_may_call_reads_so_in_every_answer() {
    let page = Answering { allowed_origin: Some("https://a.example"), ..PLAIN };
    let answer = with_body(&page, "1", Form::V2, None);
    assert!(
        answer.contains("\r\nAccess-Control-Allow-Origin: https://a.example\r\nAccess-Control-Expose-Headers: Retry-After\r\n"),
        "{answer}"
    );
    assert!(!answer.contains("Access-Control-Allow-Methods"));
    let pages = Pages::new(&[], &[], &[]);
    let answer = written(|out| Answering { pages: &pages, ..page }.preflight(out));
    assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n"), "{answer}");
    for field in [
        "Access-Control-Allow-Methods: POST, GET, HEAD",
        "Access-Control-Allow-Headers: Content-Type, Request-Timeout-Ms",
        "Access-Control-Max-Age: 600",
    ] {
        assert!(answer.contains(field), "{answer}");
    }
}

#[test]
fn what_is_refused_says_what_is_allowed() {
    let refusal =
        Refusal { status: 405, error: Error::invalid_request(&"no"), allow: Some("POST"), is_page: false };
    let answer = written(|out| PLAIN.refuse(out, &refusal));
    assert!(
        answer.starts_with("HTTP/1.1 405 Method Not Allowed\r\n") && answer.contains("\r\nAllow: POST\r\n")
    );
    assert!(answer.ends_with(r#"{"code":-32600,"message":"invalid request: no"}"#), "{answer}");
    let answer = written(|out| {
        let start = out.len();
        PLAIN.end(out, start, Form::Bare, Some(&refusal.error), Some(431));
    });
    assert!(answer.starts_with("HTTP/1.1 431 Request Header Fields Too Large\r\n"));
    assert!(written(|out| PLAIN.options(out, "POST")).contains("\r\nAllow: POST\r\n"));
}
