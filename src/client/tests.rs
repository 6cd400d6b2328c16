//! The client against servers that follow a script: what arrives in which pieces, who hangs up when.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::UnixListener;
use std::sync::atomic::AtomicU32;
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};

use super::*;

mod json_rpc;
mod many_calls;
mod trying_again;

/// A server that does what its script says and then ends. `finish` shows a script that did not come to its end.
struct Script {
    addr: String,
    thread: JoinHandle<()>,
}

impl Script {
    fn start(script: impl FnOnce(&TcpListener) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("a bound socket").to_string();
        Self { addr, thread: thread::spawn(move || script(&listener)) }
    }

    /// On a Unix socket, whose buffers a quarter of a mebibyte fills.
    fn start_unix(script: impl FnOnce(&UnixListener) + Send + 'static) -> Self {
        static STARTED: AtomicU32 = AtomicU32::new(0);
        let name = format!("tine-script-{}-{}", std::process::id(), STARTED.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        let listener = UnixListener::bind(&path).expect("a free path");
        let addr = format!("unix:{}", path.display());
        let script = move || {
            script(&listener);
            std::fs::remove_file(path).expect("the socket's file");
        };
        Self { addr, thread: thread::spawn(script) }
    }

    fn client(&self) -> Client {
        Client::connect(&self.addr).expect("a listening server")
    }

    fn finish(self) {
        self.thread.join().expect("the script to reach its end");
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    listener.accept().expect("a caller").0
}

fn read_call(caller: &mut impl Read) -> Value {
    let mut head = [0; 4];
    caller.read_exact(&mut head).expect("a length");
    let mut body = vec![0; u32::from_le_bytes(head) as usize];
    caller.read_exact(&mut body).expect("as many bytes");
    serde_json::from_slice(&body).expect("a call")
}

fn framed(answer: &Value) -> Vec<u8> {
    let body = answer.to_string();
    let mut frame = u32::try_from(body.len()).expect("a short answer").to_le_bytes().to_vec();
    frame.extend_from_slice(body.as_bytes());
    frame
}

/// Answers one call with its own params.
fn echo(caller: &mut (impl Read + Write)) -> Value {
    let call = read_call(caller);
    let answer = json!({"out": "echo", "result": call["params"], "id": call["id"]});
    caller.write_all(&framed(&answer)).expect("a caller that reads");
    call
}

fn hung_up(caller: &mut impl Read) {
    let mut rest = Vec::new();
    caller.read_to_end(&mut rest).expect("the end of the connection");
    assert_eq!(rest, b"", "expected the end of the connection");
}

fn echoed(client: &Client, params: &str) -> Result<String, ClientError> {
    client.call("echo", params)
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.to_owned()).expect("JSON")
}

#[test]
fn a_client_may_be_shared_and_sent() {
    fn is_shareable<T: Clone + Send + Sync>(_: &T) {}
    is_shareable(&Client::lazy("127.0.0.1:1").expect("an address"));
}

#[test]
fn a_call_brings_back_the_result_as_it_was_written() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        assert_eq!(read_call(&mut caller), json!({"in": "add", "params": [1, 2], "id": 1}));
        caller
            .write_all(b"\x21\0\0\0{\"out\":\"sum\",\"result\":3.0,\"id\":1}")
            .expect("a caller that reads");
    });
    let result = server.client().call_raw("add", Some(&raw("[1,2]"))).expect("a result");
    assert_eq!(result.get(), "3.0");
    server.finish();
}

#[test]
fn calls_share_one_connection_and_each_has_its_own_id() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        for id in 1..=3 {
            assert_eq!(echo(&mut caller)["id"], json!(id));
        }
        hung_up(&mut caller);
    });
    let client = server.client();
    for params in ["a", "b", "c"] {
        assert_eq!(echoed(&client, params).expect("an echo"), params);
    }
    drop(client);
    server.finish();
}

#[test]
fn callers_in_several_threads_have_each_their_own_answer() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        for _ in 0..8 {
            echo(&mut caller);
        }
    });
    let client = server.client();
    thread::scope(|scope| {
        for n in 0..8_u32 {
            let client = &client;
            scope.spawn(move || assert_eq!(client.call::<u32>("echo", &n).expect("an echo"), n));
        }
    });
    server.finish();
}

#[test]
fn an_answer_may_arrive_byte_by_byte() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        caller.set_nodelay(true).expect("a TCP socket");
        let call = read_call(&mut caller);
        for byte in framed(&json!({"out": "echo", "result": call["params"], "id": call["id"]})) {
            caller.write_all(&[byte]).expect("a caller that reads");
        }
    });
    assert_eq!(echoed(&server.client(), "in pieces").expect("an echo"), "in pieces");
    server.finish();
}

#[test]
fn a_unix_socket_serves_as_well() {
    let path = std::env::temp_dir().join(format!("tine-client-{}", std::process::id()));
    let listener = UnixListener::bind(&path).expect("a free path");
    let server = thread::spawn(move || echo(&mut listener.accept().expect("a caller").0));
    let client = Client::connect(&format!("unix:{}", path.display())).expect("a listening server");
    assert_eq!(echoed(&client, "by file").expect("an echo"), "by file");
    server.join().expect("no panic");
    std::fs::remove_file(path).expect("the socket's file");
}

#[test]
fn an_error_answer_is_remote_and_keeps_the_connection() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        let id = read_call(&mut caller)["id"].clone();
        let error = json!({"code": -32000, "message": "overloaded", "data": {"retry_after_ms": 5}});
        caller
            .write_all(&framed(&json!({"out": "error", "result": error, "id": id})))
            .expect("a caller that reads");
        echo(&mut caller);
    });
    let client = server.client();
    match echoed(&client, "") {
        Err(ClientError::Remote(RemoteError { code: -32000, message, data: Some(data) })) => {
            assert_eq!((message.as_str(), data.get()), ("overloaded", r#"{"retry_after_ms":5}"#));
        }
        other => panic!("expected an error answer, found {other:?}"),
    }
    assert_eq!(echoed(&client, "again").expect("an echo"), "again");
    server.finish();
}

#[test]
fn the_server_is_told_the_deadline() {
    let server = Script::start(|listener| {
        let call = echo(&mut accept(listener));
        let told = call["timeout_ms"].as_u64().expect("a deadline");
        assert!((50_000..=60_000).contains(&told), "{call}");
    });
    let client = server.client().timeout(Duration::from_secs(60));
    assert_eq!(echoed(&client, "x").expect("an echo"), "x");
    server.finish();
}

#[test]
fn a_call_without_an_answer_times_out_and_its_late_answer_reaches_nobody() {
    let (timed_out, late) = mpsc::channel();
    let server = Script::start(move |listener| {
        let mut caller = accept(listener);
        let call = read_call(&mut caller);
        late.recv().expect("the client to give up");
        // The socket may be reset by then, and that is right too.
        let _ = caller.write_all(&framed(&json!({"out": "echo", "result": "late", "id": call["id"]})));
        assert_eq!(echo(&mut accept(listener))["id"], json!(2));
    });
    let time = Duration::from_millis(10);
    let client = server.client().timeout(time);
    assert!(matches!(echoed(&client, "first"), Err(ClientError::Timeout { after }) if after == time));
    timed_out.send(()).expect("a running script");
    let client = client.timeout(Duration::from_secs(60));
    assert_eq!(echoed(&client, "second").expect("an echo"), "second");
    server.finish();
}

#[test]
fn a_connection_that_was_closed_between_calls_is_made_anew() {
    let (closed, is_closed) = mpsc::channel();
    let server = Script::start(move |listener| {
        echo(&mut accept(listener));
        closed.send(()).expect("a test that waits");
        echo(&mut accept(listener));
    });
    let client = server.client();
    assert_eq!(echoed(&client, "first").expect("an echo"), "first");
    is_closed.recv().expect("a running script");
    assert_eq!(echoed(&client, "second").expect("an echo"), "second");
    server.finish();
}

#[test]
fn a_call_that_was_sent_whole_is_never_sent_again() {
    let server = Script::start(|listener| {
        for part_of_the_answer in ["", "\x20\0\0", "\x20\0\0\0{\"out\":"] {
            let mut caller = accept(listener);
            assert_eq!(read_call(&mut caller)["params"], json!("once"));
            caller.write_all(part_of_the_answer.as_bytes()).expect("a caller that reads");
        }
        // The next thing that arrives is the next call, not the last one.
        assert_eq!(echo(&mut accept(listener))["params"], json!("other"));
    });
    let client = server.client();
    for _ in 0..3 {
        assert!(matches!(echoed(&client, "once"), Err(ClientError::Closed)));
    }
    assert_eq!(echoed(&client, "other").expect("an echo"), "other");
    server.finish();
}

#[test]
fn a_server_that_hangs_up_while_the_call_is_sent_has_not_run_it() {
    let server = Script::start(|listener| {
        // Closed with unread input: the client's write meets a reset.
        let mut caller = accept(listener);
        caller.read_exact(&mut [0; 4]).expect("a length");
    });
    let client = server.client();
    match echoed(&client, &"x".repeat(16 << 20)) {
        Err(ClientError::NoServer { addr, .. }) => assert_eq!(addr, server.addr),
        other => panic!("expected no server, found {other:?}"),
    }
    server.finish();
}

#[test]
fn a_call_that_is_refused_while_it_is_sent_has_its_error() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        caller.read_exact(&mut [0; 4]).expect("a length");
        let error = json!({"code": -32003, "message": "message too large", "data": {"limit": 1_048_576}});
        caller.write_all(&framed(&json!({"out": "error", "result": error}))).expect("a caller that reads");
        drop(caller);
        echo(&mut accept(listener));
    });
    let client = server.client();
    match echoed(&client, &"x".repeat(16 << 20)) {
        Err(ClientError::Remote(error)) => assert_eq!(error.code, -32003),
        other => panic!("expected an error answer, found {other:?}"),
    }
    assert_eq!(echoed(&client, "short").expect("an echo"), "short");
    server.finish();
}

#[test]
fn an_answer_to_another_call_is_refused_and_the_connection_dropped() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        read_call(&mut caller);
        let answer = framed(&json!({"out": "echo", "result": "not yours", "id": 99}));
        caller.write_all(&answer).expect("a caller that reads");
        hung_up(&mut caller);
        echo(&mut accept(listener));
    });
    let client = server.client();
    match echoed(&client, "mine") {
        Err(ClientError::Protocol(text)) => assert!(text.contains("id 99"), "{text}"),
        other => panic!("expected a protocol error, found {other:?}"),
    }
    assert_eq!(echoed(&client, "mine").expect("an echo"), "mine");
    server.finish();
}

#[test]
fn an_answer_beyond_the_limit_is_refused_before_it_is_read() {
    let server = Script::start(|listener| {
        for head in [[0xff; 4], [11, 0, 0, 0]] {
            let mut caller = accept(listener);
            read_call(&mut caller);
            caller.write_all(&head).expect("a caller that reads");
            hung_up(&mut caller);
        }
    });
    for (limit, found) in [(MAX_ANSWER, "4294967295"), (10, "11")] {
        let client = server.client().max_answer(limit);
        match echoed(&client, "x") {
            Err(ClientError::Protocol(text)) => assert!(text.contains(found), "{text}"),
            other => panic!("expected a protocol error, found {other:?}"),
        }
    }
    server.finish();
}

#[test]
fn a_result_of_another_type_is_the_callers_mistake_and_keeps_the_connection() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        echo(&mut caller);
        echo(&mut caller);
    });
    let client = server.client();
    assert!(matches!(client.call::<u32>("echo", "text"), Err(ClientError::Result(_))));
    assert_eq!(echoed(&client, "text").expect("an echo"), "text");
    server.finish();
}

#[test]
fn an_address_that_is_none_and_one_where_nobody_listens_are_told_apart() {
    assert!(matches!(Client::connect("8080"), Err(ClientError::Address(_))));
    let nobody = std::env::temp_dir().join(format!("tine-nobody-{}", std::process::id()));
    let addr = format!("unix:{}", nobody.display());
    match Client::connect(&addr) {
        Err(error @ ClientError::NoServer { .. }) => assert!(error.to_string().contains(&addr), "{error}"),
        other => panic!("expected no server, found {other:?}"),
    }
}
