//! What is tried again, and what never is.

use std::time::Instant;

use super::*;

fn refuse(caller: &mut (impl Read + Write), code: i32, retry_after_ms: u64) {
    let id = read_call(caller)["id"].clone();
    let error = json!({"code": code, "message": "later", "data": {"retry_after_ms": retry_after_ms}});
    let answer = framed(&json!({"out": "error", "result": error, "id": id}));
    caller.write_all(&answer).expect("a caller that reads");
}

#[test]
fn a_refused_call_is_made_again_after_the_pause_that_the_server_asks_for() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        refuse(&mut caller, -32000, 20);
        refuse(&mut caller, -32004, 1);
        echo(&mut caller);
    });
    let began = Instant::now();
    assert_eq!(echoed(&server.client().retries(2), "at last").expect("an echo"), "at last");
    assert!(began.elapsed() >= Duration::from_millis(21));
    server.finish();
}

#[test]
fn without_being_asked_or_at_the_last_try_the_refusal_is_returned() {
    for retries in 0..2 {
        let server = Script::start(move |listener| {
            let mut caller = accept(listener);
            for _ in 0..=retries {
                refuse(&mut caller, -32000, 1);
            }
            hung_up(&mut caller);
        });
        let client = server.client();
        let client = if retries > 0 { client.retries(retries) } else { client };
        assert!(matches!(echoed(&client, "x"), Err(ClientError::Remote(error)) if error.code == -32000));
        drop(client);
        server.finish();
    }
}

#[test]
fn a_pause_that_the_deadline_does_not_allow_is_not_waited_for() {
    let server = Script::start(|listener| refuse(&mut accept(listener), -32004, 3_600_000));
    let client = server.client().timeout(Duration::from_secs(60)).retries(9);
    assert!(matches!(echoed(&client, "x"), Err(ClientError::Remote(error)) if error.code == -32004));
    server.finish();
}

#[test]
fn a_call_that_may_have_run_is_not_made_again() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        refuse(&mut caller, -32002, 1);
        read_call(&mut caller);
        drop(caller);
        assert_eq!(echo(&mut accept(listener))["params"], json!("other"));
    });
    let client = server.client().retries(9);
    assert!(matches!(echoed(&client, "x"), Err(ClientError::Remote(error)) if error.code == -32002));
    assert!(matches!(echoed(&client, "x"), Err(ClientError::Closed)));
    assert_eq!(echoed(&client, "other").expect("an echo"), "other");
    server.finish();
}

#[test]
fn of_a_batch_only_what_was_refused_is_made_again() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        echo(&mut caller);
        refuse(&mut caller, -32000, 1);
        echo(&mut caller);
        assert_eq!(echo(&mut caller)["params"], json!("b"));
        hung_up(&mut caller);
    });
    let client = server.client().retries(1);
    let results = client.batch().call("echo", "a").call("echo", "b").call("echo", "c").send::<String>();
    let results: Vec<String> = results.into_iter().collect::<Result<_, _>>().expect("three echoes");
    assert_eq!(results, ["a", "b", "c"]);
    drop(client);
    server.finish();
}

#[test]
fn a_server_that_starts_late_is_waited_for() {
    let path = std::env::temp_dir().join(format!("tine-late-{}", std::process::id()));
    let addr = format!("unix:{}", path.display());
    let client = Client::lazy(&addr).expect("an address").timeout(Duration::from_secs(60));
    assert!(matches!(echoed(&client, "x"), Err(ClientError::NoServer { .. })));
    thread::scope(|scope| {
        let patient = client.clone().retries(50);
        let call = scope.spawn(move || echoed(&patient, "x"));
        // Takes as long as a try, so the patient one has failed at least once or shares this failure.
        assert!(matches!(client.notify("x", &()), Err(ClientError::NoServer { .. })));
        let listener = UnixListener::bind(&path).expect("a free path");
        echo(&mut listener.accept().expect("a caller").0);
        assert_eq!(call.join().expect("no panic").expect("an echo"), "x");
    });
    std::fs::remove_file(path).expect("the socket's file");
}
