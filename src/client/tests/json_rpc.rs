//! JSON-RPC 2.0: the same calls in another envelope.

use super::*;

fn json_rpc(server: &Script) -> Client {
    server.client().json_rpc()
}

fn write(caller: &mut impl Write, answer: &Value) {
    caller.write_all(&framed(answer)).expect("a caller that reads");
}

#[test]
fn a_call_has_its_result_or_its_error() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        assert_eq!(
            read_call(&mut caller),
            json!({"jsonrpc": "2.0", "method": "add", "params": [1, 2], "id": 1})
        );
        write(&mut caller, &json!({"jsonrpc": "2.0", "result": 3, "id": 1}));
        assert_eq!(read_call(&mut caller)["params"], json!(["x"]));
        let error = json!({"code": -32601, "message": "none", "data": [1]});
        write(&mut caller, &json!({"jsonrpc": "2.0", "error": error, "id": 2}));
    });
    let client = json_rpc(&server);
    assert_eq!(client.call::<u32>("add", &[1, 2]).expect("a sum"), 3);
    match client.call::<u32>("none", "x") {
        Err(ClientError::Remote(error)) => {
            assert_eq!((error.code, error.data.expect("data").get()), (-32601, "[1]"));
        }
        other => panic!("expected an error answer, found {other:?}"),
    }
    server.finish();
}

#[test]
fn both_envelopes_share_a_connection_and_answers_come_in_any_order() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        let calls = [read_call(&mut caller), read_call(&mut caller)];
        for call in calls.iter().rev() {
            let id = &call["id"];
            let rpc = json!({"jsonrpc": "2.0", "result": "rpc", "id": id});
            let native = json!({"out": "echo", "result": "native", "id": id});
            let answer = if call["jsonrpc"].is_string() { rpc } else { native };
            write(&mut caller, &answer);
        }
    });
    let native = server.client();
    let rpc = native.clone().json_rpc();
    thread::scope(|scope| {
        let rpc = scope.spawn(move || echoed(&rpc, "x"));
        assert_eq!(echoed(&native, "x").expect("a result"), "native");
        assert_eq!(rpc.join().expect("no panic").expect("a result"), "rpc");
    });
    server.finish();
}

#[test]
fn a_batch_is_one_array_and_answered_by_one() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        assert_eq!(
            read_call(&mut caller),
            json!([
                {"jsonrpc": "2.0", "method": "a", "params": [1], "id": 1},
                {"jsonrpc": "2.0", "method": "b", "id": 2},
                {"jsonrpc": "2.0", "method": "c", "params": {"x": 1}, "id": 3},
            ])
        );
        let error = json!({"code": 17, "message": "no"});
        write(
            &mut caller,
            &json!([
                {"jsonrpc": "2.0", "result": "third", "id": 3},
                {"jsonrpc": "2.0", "error": error, "id": 2},
            ]),
        );
        // The whole batch is refused, with no word about its members.
        read_call(&mut caller);
        write(&mut caller, &json!({"jsonrpc": "2.0", "error": error, "id": null}));
    });
    let client = json_rpc(&server);
    let results = client.batch().call("a", &1).call("b", &()).call("c", &json!({"x": 1})).send::<String>();
    let [first, second, third] = results.try_into().expect("three results");
    assert!(matches!(first, Err(ClientError::Protocol(what)) if what.contains("none to this one")));
    assert!(matches!(second, Err(ClientError::Remote(error)) if error.code == 17));
    assert_eq!(third.expect("a result"), "third");
    for result in client.batch().call("a", &1).call("b", &2).send_raw() {
        assert!(matches!(result, Err(ClientError::Remote(error)) if error.code == 17));
    }
    server.finish();
}

/// An error for a whole batch, as servers have it that don't answer it call by call.
fn refuse_batch(caller: &mut impl Write, code: i32) {
    let error = json!({"code": code, "message": "no", "data": {"retry_after_ms": 1}});
    write(caller, &json!({"jsonrpc": "2.0", "error": error, "id": null}));
}

/// It used to end the connection: the call failed as one that may have run, and the batch was never tried again.
#[test]
fn a_batch_that_is_refused_as_a_whole_is_tried_again_and_harms_no_call_beside_it() {
    let (read, is_read) = mpsc::channel();
    let server = Script::start(move |listener| {
        let mut caller = accept(listener);
        // The notification, which no error of the batch is to be taken for.
        read_call(&mut caller);
        let beside = read_call(&mut caller);
        read.send(()).expect("a running test");
        read_call(&mut caller);
        refuse_batch(&mut caller, -32000);
        let again = read_call(&mut caller);
        write(
            &mut caller,
            &json!([
                {"jsonrpc": "2.0", "result": "b", "id": again[1]["id"]},
                {"jsonrpc": "2.0", "result": "a", "id": again[0]["id"]},
            ]),
        );
        read_call(&mut caller);
        refuse_batch(&mut caller, -32600);
        write(&mut caller, &json!({"jsonrpc": "2.0", "result": "beside", "id": beside["id"]}));
        hung_up(&mut caller);
    });
    let client = json_rpc(&server).retries(3);
    thread::scope(|scope| {
        client.notify("log", "x").expect("a server that listens");
        let call = scope.spawn(|| echoed(&client, "x"));
        is_read.recv().expect("a running script");
        let batch = || client.batch().call("a", &1).call("b", &2).send::<String>();
        let results: Vec<String> = batch().into_iter().collect::<Result<_, _>>().expect("two results");
        assert_eq!(results, ["a", "b"]);
        for result in batch() {
            assert!(matches!(&result, Err(ClientError::Remote(error)) if error.code == -32600), "{result:?}");
        }
        assert_eq!(call.join().expect("no panic").expect("a result"), "beside");
    });
    drop(client);
    server.finish();
}

#[test]
fn of_the_calls_in_an_array_only_those_that_were_refused_are_made_again() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        read_call(&mut caller);
        let refused = |code, id| {
            let error = json!({"code": code, "message": "later", "data": {"retry_after_ms": 1}});
            json!({"jsonrpc": "2.0", "error": error, "id": id})
        };
        write(
            &mut caller,
            &json!([
                refused(-32000, 1),
                {"jsonrpc": "2.0", "result": "b", "id": 2},
                refused(-32004, 3),
                refused(-32002, 4),
            ]),
        );
        let again = read_call(&mut caller);
        assert_eq!(
            (&again[0]["method"], &again[1]["method"], &again[2]),
            (&json!("a"), &json!("c"), &json!(null))
        );
        write(&mut caller, &json!([refused(-32000, 5), {"jsonrpc": "2.0", "result": "c", "id": 6}]));
        // The last of them alone is no batch any more.
        assert_eq!(read_call(&mut caller)["method"], json!("a"));
        write(&mut caller, &json!({"jsonrpc": "2.0", "result": "a", "id": 7}));
        hung_up(&mut caller);
    });
    let client = json_rpc(&server).retries(2);
    let batch = client.batch().call("a", &1).call("b", &2).call("c", &3).call("d", &4);
    let [a, b, c, d] = batch.send::<String>().try_into().expect("four results");
    assert_eq!(
        (a.expect("a result"), b.expect("a result"), c.expect("a result")),
        ("a".into(), "b".into(), "c".into())
    );
    assert!(matches!(d, Err(ClientError::Remote(error)) if error.code == -32002));
    drop(client);
    server.finish();
}

#[test]
fn a_notification_is_sent_and_not_waited_for() {
    let server = Script::start(|listener| {
        let mut caller = accept(listener);
        let call = read_call(&mut caller);
        assert_eq!(call, json!({"jsonrpc": "2.0", "method": "log", "params": ["started"]}));
        echo(&mut caller);
    });
    let client = server.client();
    client.notify("log", "started").expect("a server that listens");
    assert_eq!(echoed(&client, "after").expect("an echo"), "after");
    server.finish();
}
