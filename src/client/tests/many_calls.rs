//! Many calls in flight over one connection: answers in any order, late, to nobody, or none at all.

use std::collections::HashMap;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::channel;

use super::*;

const SOON: Duration = Duration::from_millis(10);

/// More than a Unix socket holds.
const LARGE: usize = 1 << 20;

fn accept_unix(listener: &UnixListener) -> UnixStream {
    listener.accept().expect("a caller").0
}

fn answer(call: &Value) -> Vec<u8> {
    framed(&json!({"out": "echo", "result": call["params"], "id": call["id"]}))
}

/// Reads as many calls, which have come from several threads.
fn read_calls(caller: &mut impl Read, count: usize) -> Vec<Value> {
    (0..count).map(|_| read_call(caller)).collect()
}

fn write(caller: &mut impl Write, bytes: &[u8]) {
    caller.write_all(bytes).expect("a caller that reads");
}

/// Makes a call in a thread of its own for each of these params; what came of them.
fn call_side_by_side(client: &Client, count: u32) -> HashMap<u32, Result<u32, ClientError>> {
    thread::scope(|scope| {
        let calls = (0..count).map(|n| (n, scope.spawn(move || client.call::<u32>("echo", &n))));
        let calls: Vec<_> = calls.collect();
        calls.into_iter().map(|(n, call)| (n, call.join().expect("no panic"))).collect()
    })
}

#[test]
fn answers_reach_their_callers_in_whatever_order_they_come() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        for _ in 0..3 {
            // All eight are on their way before the first is answered, backwards and in one piece.
            let mut calls = read_calls(&mut caller, 8);
            calls.reverse();
            write(&mut caller, &calls.iter().flat_map(answer).collect::<Vec<u8>>());
        }
    });
    let client = server.client();
    for _ in 0..3 {
        for (n, result) in call_side_by_side(&client, 8) {
            assert_eq!(result.expect("an echo"), n);
        }
    }
    server.finish();
}

#[test]
fn whoever_reads_hands_that_on_when_its_own_answer_has_come() {
    let (first_done, is_first_done) = channel();
    let server = Script::start(move |listener| {
        let mut caller = accept(listener);
        let calls = read_calls(&mut caller, 2);
        write(&mut caller, &answer(&calls[0]));
        is_first_done.recv().expect("the first caller");
        write(&mut caller, &answer(&calls[1]));
        is_first_done.recv().expect("the second caller");
    });
    let client = server.client();
    thread::scope(|scope| {
        for n in 0..2_u32 {
            let (client, done) = (&client, first_done.clone());
            scope.spawn(move || {
                assert_eq!(client.call::<u32>("echo", &n).expect("an echo"), n);
                done.send(()).expect("a running script");
            });
        }
    });
    server.finish();
}

#[test]
fn clones_share_the_connection_and_have_settings_of_their_own() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        assert!(echo(&mut caller)["timeout_ms"].is_u64());
        assert!(echo(&mut caller)["timeout_ms"].is_null());
        hung_up(&mut caller);
    });
    let client = server.client();
    let hasty = client.clone().timeout(Duration::from_secs(60));
    assert_eq!(echoed(&hasty, "a").expect("an echo"), "a");
    assert_eq!(echoed(&client, "b").expect("an echo"), "b");
    drop((client, hasty));
    server.finish();
}

#[test]
fn a_call_that_is_given_up_costs_no_other_its_answer() {
    let (given_up, is_given_up) = channel();
    let server = Script::start(move |listener| {
        let mut caller = accept(listener);
        let calls = read_calls(&mut caller, 2);
        let patient = calls.iter().find(|call| call["timeout_ms"].is_null()).expect("the patient one");
        let hasty = calls.iter().find(|call| call["timeout_ms"].is_u64()).expect("the hasty one");
        is_given_up.recv().expect("the hasty caller");
        // Late, to nobody; then the other, on the same connection.
        write(&mut caller, &answer(hasty));
        write(&mut caller, &answer(patient));
    });
    let client = server.client();
    thread::scope(|scope| {
        let patient = scope.spawn(|| client.call::<u32>("echo", &7));
        let hasty = client.clone().timeout(SOON);
        assert!(matches!(echoed(&hasty, "late"), Err(ClientError::Timeout { after: SOON })));
        given_up.send(()).expect("a running script");
        assert_eq!(patient.join().expect("no panic").expect("an echo"), 7);
    });
    server.finish();
}

#[test]
fn a_connection_that_still_answers_others_is_kept_after_a_timeout() {
    let (read, is_read) = channel();
    let (given_up, is_given_up) = channel();
    let server = Script::start(move |listener| {
        let mut caller = accept(listener);
        let hanging = read_call(&mut caller);
        read.send(()).expect("a running test");
        echo(&mut caller);
        is_given_up.recv().expect("the caller to give up");
        write(&mut caller, &answer(&hanging));
        echo(&mut caller);
    });
    let client = server.client();
    thread::scope(|scope| {
        let hasty = client.clone().timeout(SOON);
        let hanging = scope.spawn(move || echoed(&hasty, "late"));
        is_read.recv().expect("a running script");
        // Answered while the other waits, so the server is known to live.
        assert_eq!(echoed(&client, "between").expect("an echo"), "between");
        assert!(matches!(hanging.join().expect("no panic"), Err(ClientError::Timeout { .. })));
    });
    given_up.send(()).expect("a running script");
    assert_eq!(echoed(&client, "after").expect("an echo"), "after");
    server.finish();
}

#[test]
fn all_calls_on_their_way_learn_that_the_connection_broke_and_the_next_makes_another() {
    for end in [&b""[..], b"\x20\0\0\0{\"out\":"] {
        let server = Script::start(move |listener| {
            let mut caller = accept(listener);
            let calls = read_calls(&mut caller, 6);
            write(&mut caller, &answer(&calls[0]));
            write(&mut caller, end);
            drop(caller);
            echo(&mut accept(listener));
        });
        let client = server.client();
        let results = call_side_by_side(&client, 6);
        assert_eq!(results.values().filter(|result| result.is_ok()).count(), 1);
        for result in results.into_values() {
            assert!(matches!(result, Ok(_) | Err(ClientError::Closed)), "{result:?}");
        }
        assert_eq!(echoed(&client, "again").expect("an echo"), "again");
        server.finish();
    }
}

#[test]
fn garbage_ends_the_connection_for_all_after_what_was_right_before_it() {
    for (garbage, found) in [
        (framed(&json!({"out": "echo", "result": 1, "id": 99})), "id 99"),
        (framed(&json!({"hello": 1})), "expected an answer such as"),
        (b"\x03\0\0\0oh!".to_vec(), "expected an answer such as"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), "at most"),
    ] {
        let server = Script::start(move |listener| {
            let mut caller = accept(listener);
            let calls = read_calls(&mut caller, 4);
            write(&mut caller, &[answer(&calls[0]), garbage].concat());
            // Whatever the client thinks of it, it hangs up.
            let _ = caller.read(&mut [0; 1]);
            echo(&mut accept(listener));
        });
        let client = server.client();
        let results = call_side_by_side(&client, 4);
        assert_eq!(results.values().filter(|result| result.is_ok()).count(), 1);
        for result in results.into_values() {
            assert!(
                result.is_ok() || matches!(&result, Err(ClientError::Protocol(what)) if what.contains(found)),
                "{result:?}"
            );
        }
        assert_eq!(echoed(&client, "again").expect("an echo"), "again");
        server.finish();
    }
}

#[test]
fn a_peer_that_does_not_read_holds_up_each_caller_no_longer_than_its_own_deadline() {
    let (begun, is_begun) = channel();
    let (given_up, are_given_up) = channel();
    let server = Script::start_unix(move |listener| {
        let mut stuck = accept_unix(listener);
        stuck.read_exact(&mut [0; 4]).expect("a length");
        begun.send(()).expect("a running test");
        are_given_up.recv().expect("the hasty callers");
        drop(stuck);
        // The patient call was never here whole, so it comes again.
        echo(&mut accept_unix(listener));
    });
    let client = server.client();
    thread::scope(|scope| {
        let patient = scope.spawn(|| echoed(&client, &"x".repeat(LARGE)));
        is_begun.recv().expect("a running script");
        for _ in 0..3 {
            let hasty = client.clone().timeout(SOON);
            assert!(matches!(echoed(&hasty, "x"), Err(ClientError::Timeout { after: SOON })));
        }
        given_up.send(()).expect("a running script");
        assert_eq!(patient.join().expect("no panic").expect("an echo").len(), LARGE);
    });
    server.finish();
}

#[test]
fn a_half_written_call_ends_the_connection_for_those_that_wait_on_it() {
    let (read, is_read) = channel();
    let server = Script::start_unix(move |listener| {
        let mut stuck = accept_unix(listener);
        let patient = read_call(&mut stuck);
        read.send(()).expect("a running test");
        // No further byte is read until the client has given the connection up.
        echo(&mut accept_unix(listener));
        let _ = stuck.write_all(&answer(&patient));
    });
    let client = server.client();
    let large = "x".repeat(LARGE);
    thread::scope(|scope| {
        let patient = scope.spawn(|| client.call::<u32>("echo", &7));
        is_read.recv().expect("a running script");
        let hasty = client.clone().timeout(SOON);
        assert!(matches!(echoed(&hasty, &large), Err(ClientError::Timeout { .. })));
        assert!(matches!(patient.join().expect("no panic"), Err(ClientError::Closed)));
    });
    assert_eq!(echoed(&client, "again").expect("an echo"), "again");
    server.finish();
}

#[test]
fn a_writer_reads_meanwhile_so_that_a_server_held_up_by_its_answers_goes_on() {
    let server = Script::start_unix(|listener| {
        let mut caller = accept_unix(listener);
        // One at a time: unless answers are read, writing them stops this server from reading.
        for _ in 0..64 {
            echo(&mut caller);
        }
    });
    let client = server.client();
    let large = "x".repeat(LARGE / 16);
    let batch = (0..64).fold(client.batch(), |batch, _| batch.call("echo", &large));
    for result in batch.send::<String>() {
        assert_eq!(result.expect("an echo").len(), large.len());
    }
    server.finish();
}

#[test]
fn a_native_batch_is_gathered_in_the_order_asked() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        let calls = read_calls(&mut caller, 3);
        assert_eq!(calls[0], json!({"in": "a", "params": 1, "id": 1}));
        assert_eq!(calls[2], json!({"in": "c", "id": 3}));
        let error = json!({"code": 17, "message": "no"});
        let refusal = framed(&json!({"out": "error", "result": error, "id": 2}));
        write(&mut caller, &[answer(&calls[2]), refusal, answer(&calls[0])].concat());
        hung_up(&mut caller);
    });
    let client = server.client();
    assert!(client.batch().send_raw().is_empty());
    let unwritable: HashMap<[u8; 2], u8> = HashMap::from([([1, 2], 3)]);
    let results = client
        .batch()
        .call("a", &1)
        .call("unwritable", &unwritable)
        .call("b", "x")
        .call_raw("c", None)
        .send::<Option<u32>>();
    let [a, unwritable, b, c] = results.try_into().expect("four results");
    assert_eq!(a.expect("an echo"), Some(1));
    assert!(matches!(unwritable, Err(ClientError::Params(_))));
    assert!(matches!(b, Err(ClientError::Remote(error)) if error.code == 17));
    assert_eq!(c.expect("an echo"), None);
    drop(client);
    server.finish();
}

#[test]
fn of_a_batch_that_is_cut_off_each_call_learns_whether_it_may_have_run() {
    let server = Script::start_unix(|listener| {
        let mut caller = accept_unix(listener);
        let call = read_call(&mut caller);
        write(&mut caller, &answer(&call));
        // Closed with much unread.
    });
    let client = server.client();
    let large = "x".repeat(LARGE);
    let results = client.batch().call("echo", "a").call("echo", &large).call("echo", "c").send_raw();
    let [first, second, third] = results.try_into().expect("three results");
    // The reset may outrun the answer.
    assert!(matches!(first, Ok(_) | Err(ClientError::Closed)), "{first:?}");
    for result in [second, third] {
        assert!(matches!(result, Err(ClientError::NoServer { .. })), "{result:?}");
    }
    server.finish();
}
