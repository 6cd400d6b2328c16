//! JSON-RPC, as its specifications have it, in every framing: the examples of version 2.0, batches, ids, version 1.0.

mod support;

use std::sync::Once;

use serde_json::{Value, json};
use support::peer::{ALL, Peer, Way};
use support::programs::Bystander;
use support::{Service, await_asleep};

const ONE: &str = "processes = 1\nthreads = 4";

/// Errors have a code and a message, and ours have more in them than the specification's.
fn without_details(mut answer: Value) -> Value {
    let answers = match &mut answer {
        Value::Array(answers) => answers.as_mut_slice(),
        one => std::slice::from_mut(one),
    };
    for error in answers.iter_mut().filter_map(|answer| answer.get_mut("error")) {
        assert!(error["message"].as_str().is_some_and(|text| !text.is_empty()), "{error}");
        *error = error["code"].clone();
    }
    answer
}

/// As [`without_details`], after a call by which nothing else can have been answered.
fn answered(peer: &mut Peer, message: &str) -> Value {
    peer.send(message);
    without_details(peer.receive())
}

/// Nothing is answered: the next answer is that of a call behind it. HTTP says 204.
fn not_answered(peer: &mut Peer, way: Way, message: &str) {
    peer.send(message);
    if way == Way::Http {
        let reply = peer.reply();
        assert_eq!((reply.status, &*reply.body), (204, ""), "{message}: {reply:?}");
        assert_eq!(reply.field("Content-Length"), None);
    }
    assert_eq!(peer.call("ping", json!("behind"))["result"], "behind", "{way:?}: {message}");
}

fn result(result: &Value, id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "result": result, "id": id })
}

fn error(code: i64, id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "error": code, "id": id })
}

#[test]
fn every_example_of_the_specification_is_answered_as_it_says() {
    static BUILT: Once = Once::new();
    let service = Service::start_with(support::example("calculator", &BUILT), ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        let null = &Value::Null;
        for (message, expected) in [
            (
                r#"{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}"#,
                result(&json!(19), &json!(1)),
            ),
            (
                r#"{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}"#,
                result(&json!(-19), &json!(2)),
            ),
            (
                r#"{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}"#,
                result(&json!(19), &json!(3)),
            ),
            (
                r#"{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}"#,
                result(&json!(19), &json!(4)),
            ),
            (r#"{"jsonrpc": "2.0", "method": "foobar", "id": "1"}"#, error(-32601, &json!("1"))),
            (r#"{"jsonrpc": "2.0", "method": 1, "params": "bar"}"#, error(-32600, null)),
            ("[]", error(-32600, null)),
            ("[1]", json!([error(-32600, null)])),
            ("[1,2,3]", json!([error(-32600, null), error(-32600, null), error(-32600, null)])),
            (
                r#"[
                    {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
                    {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
                    {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
                    {"foo": "boo"},
                    {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
                    {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
                ]"#,
                json!([
                    result(&json!(7), &json!("1")),
                    result(&json!(19), &json!("2")),
                    error(-32600, null),
                    error(-32601, &json!("5")),
                    result(&json!(["hello", 5]), &json!("9")),
                ]),
            ),
        ] {
            assert_eq!(answered(&mut peer, message), expected, "{way:?}: {message}");
        }
        for notification in [
            r#"{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}"#,
            r#"{"jsonrpc": "2.0", "method": "foobar"}"#,
            r#"[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]}, {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]"#,
        ] {
            not_answered(&mut peer, way, notification);
        }
        // The end of a bad value is not known in a stream, so each has a connection of its own.
        for broken in [
            r#"{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]"#,
            r#"[ {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"}, {"jsonrpc": "2.0", "method" ]"#,
        ] {
            let mut peer = Peer::of(&service, way);
            assert_eq!(answered(&mut peer, broken), error(-32700, null), "{way:?}: {broken}");
        }
    }
}

#[test]
fn ids_come_back_as_they_were_written() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for id in
            ["null", "0", "-1", "1.5", "1e3", "1.0", "1152921504606846976", "123456789012345678901234567890"]
        {
            peer.send(&format!(r#"{{"jsonrpc":"2.0","method":"ping","params":[7],"id":{id}}}"#));
            assert_eq!(peer.text(), format!(r#"{{"jsonrpc":"2.0","result":[7],"id":{id}}}"#));
        }
        for id in [r#""""#, r#""1e3""#, r#""\u0041\/\ud83d\ude00""#, r#""ü""#] {
            peer.send(&format!(r#"[{{"id":{id},"params":[7],"method":"nope","jsonrpc":"2.0"}}]"#));
            assert!(peer.text().ends_with(&format!(r#"}},"id":{id}}}]"#)), "{id}");
        }
        for id in ["true", "[1]", "{}", "[]"] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"ping","id":{id}}}"#);
            assert_eq!(answered(&mut peer, &message), error(-32600, &Value::Null), "{id}");
        }
    }
}

#[test]
fn what_is_no_request_of_version_2_is_told_so() {
    let service = Service::start(ONE);
    let mut peer = Peer::of(&service, Way::Length);
    for message in [
        r#"{"jsonrpc":"2.1","method":"ping","id":1}"#,
        r#"{"jsonrpc":2.0,"method":"ping","id":1}"#,
        r#"{"jsonrpc":null,"method":"ping","id":1}"#,
        r#"{"jsonrpc":"2.0","id":1}"#,
        r#"{"jsonrpc":"2.0","method":null,"id":1}"#,
        r#"{"jsonrpc":"2.0","method":"ping","params":7,"id":1}"#,
        r#"{"jsonrpc":"2.0","method":"ping","params":"text","id":1}"#,
        r#"{"jsonrpc":"2.0","method":"ping","timeout_ms":0,"id":1}"#,
        // Readers differ in which of two members counts.
        r#"{"jsonrpc":"2.0","method":"ping","method":"ping","id":1}"#,
        r#"{"jsonrpc":"2.0","method":"ping","params":[],"params":[],"id":1}"#,
        r#"{"jsonrpc":"2.0","jsonrpc":"2.0","method":"ping","id":1}"#,
        r#"{"jsonrpc":"2.0","method":"ping","id":1,"id":2}"#,
        r#"{"jsonrpc":"2.0","method":"ping","id":1,"\u0069d":2}"#,
    ] {
        assert_eq!(answered(&mut peer, message), error(-32600, &json!(1)), "{message}");
        // It is as wrong in a batch, and its neighbours are not harmed.
        let batch = format!(r#"[{{"jsonrpc":"2.0","method":"echo","id":2}},{message}]"#);
        let expected = json!([result(&Value::Null, &json!(2)), error(-32600, &json!(1))]);
        assert_eq!(answered(&mut peer, &batch), expected, "{message}");
    }
    // A batch is version 2.0.
    for member in [r#"{"in":"ping"}"#, r#"{"method":"ping","params":[]}"#, "[]", "null", "\"x\""] {
        assert_eq!(
            answered(&mut peer, &format!("[{member}]")),
            json!([error(-32600, &Value::Null)]),
            "{member}"
        );
    }
    // Other members are nobody's business, however often they are there.
    let message =
        r#"{"x":1,"x":2,"jsonrpc":"2.0","in":"no such","method":"echo","params":[{"a":1,"a":2}],"id":1}"#;
    peer.send(message);
    assert_eq!(peer.text(), r#"{"jsonrpc":"2.0","result":[{"a":1,"a":2}],"id":1}"#);
}

#[test]
fn params_by_position_fit_typed_handlers() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for params in [r#"{"ms":1}"#, r#"[{"ms":1}]"#, "[1]"] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"sleep","params":{params},"id":1}}"#);
            assert_eq!(answered(&mut peer, &message), result(&Value::Null, &json!(1)), "{way:?}: {params}");
        }
        for params in ["[]", "{}", "[null]", "[{}]", "null"] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"tine.worker","params":{params},"id":1}}"#);
            assert!(answered(&mut peer, &message)["result"]["pid"].is_u64(), "{params}");
        }
        for params in ["[]", "[-1]", "[\"1\"]", "[1,2]", "[[1,2]]", r#"[{"s":1}]"#, r#"{"ms":"1"}"#] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"sleep","params":{params},"id":1}}"#);
            assert_eq!(answered(&mut peer, &message), error(-32602, &json!(1)), "{way:?}: {params}");
        }
    }
}

#[test]
fn version_1_is_answered_in_its_own_form() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for (message, expected) in [
            (
                r#"{"method":"echo","params":["Hello JSON-RPC"],"id":1}"#,
                r#"{"result":["Hello JSON-RPC"],"error":null,"id":1}"#,
            ),
            (
                r#"{"method":"sleep","params":[{"ms":1}],"id":"a"}"#,
                r#"{"result":null,"error":null,"id":"a"}"#,
            ),
            // Ids may be anything there.
            (r#"{"id":[1, {}],"method":"echo","params":[]}"#, r#"{"result":[],"error":null,"id":[1, {}]}"#),
        ] {
            peer.send(message);
            assert_eq!(peer.text(), expected, "{way:?}");
        }
        peer.send(r#"{"method":"nope","params":[],"id":7}"#);
        let answer = peer.receive();
        assert_eq!((&answer["result"], &answer["id"]), (&Value::Null, &json!(7)));
        assert!(answer["error"].as_str().is_some_and(|text| text.contains("`nope`")), "{answer}");
        for notification in
            [r#"{"method":"echo","params":[1],"id":null}"#, r#"{"method":"nope","params":[1],"id":null}"#]
        {
            not_answered(&mut peer, way, notification);
        }
    }
}

/// Its client numbers calls from 0, ends each with a line break, wants `error` to be null or a text, and may send many before
/// it reads.
#[test]
fn what_go_s_net_rpc_jsonrpc_sends_is_answered_as_it_reads() {
    static BUILT: Once = Once::new();
    let service = Service::start_with(support::example("calculator", &BUILT), ONE);
    let mut peer = Peer::of(&service, Way::Stream);
    for (method, params, result) in [
        ("subtract", r#"{"minuend":42,"subtrahend":23}"#, Some("19")),
        ("subtract", "[42,23]", Some("19")),
        ("get_data", "{}", Some(r#"["hello",5]"#)),
        ("get_data", "null", Some(r#"["hello",5]"#)),
        ("Arith.Divide", r#"{"A":1,"B":0}"#, None),
        ("subtract", r#"{"minuend":"x"}"#, None),
    ] {
        for id in 0..3 {
            peer.send_bytes(format!("{{\"method\":\"{method}\",\"params\":[{params}],\"id\":{id}}}\n"));
        }
        let mut answers = [peer.text(), peer.text(), peer.text()];
        answers.sort_by_key(|answer| answer.rsplit(':').next().map(str::to_owned));
        for (id, answer) in answers.iter().enumerate() {
            if let Some(result) = result {
                assert_eq!(*answer, format!(r#"{{"result":{result},"error":null,"id":{id}}}"#), "{method}");
            } else {
                let answer: Value = serde_json::from_str(answer).expect("JSON");
                assert!(answer["error"].is_string() && answer["result"].is_null(), "{answer}");
                assert_eq!(answer["id"], id);
            }
        }
    }
}

#[test]
fn discover_describes_every_method() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        let names = peer.call("tine.methods", Value::Null)["result"].clone();
        peer.send(r#"{"jsonrpc":"2.0","method":"rpc.discover","id":1}"#);
        let document = peer.receive()["result"].take();
        assert!(document["openrpc"].as_str().is_some_and(|version| version.starts_with("1.")), "{document}");
        let described: Vec<&Value> =
            document["methods"].as_array().expect("a list").iter().map(|method| &method["name"]).collect();
        for name in names.as_array().expect("a list") {
            assert_eq!(described.iter().filter(|found| **found == name).count(), 1, "{name}");
        }
        assert!(
            document["methods"].as_array().expect("a list").iter().all(|method| method["params"].is_array())
        );
    }
    // What begins so is reserved.
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for name in ["rpc.", "rpc.other", "rpc.Discover", "rpc.discover.x"] {
            let message = format!(r#"{{"jsonrpc":"2.0","method":"{name}","id":1}}"#);
            assert_eq!(answered(&mut peer, &message), error(-32601, &json!(1)), "{way:?}: {name}");
        }
    }
}

/// In turn, each would find its time up: they have it from the arrival of the batch.
#[test]
fn the_calls_of_a_batch_run_side_by_side() {
    let service = Service::start("processes = 1\nthreads = 5");
    let hang = |id| format!(r#"{{"jsonrpc":"2.0","method":"hang","timeout_ms":700,"id":{id}}}"#);
    let batch = format!(
        r#"[{},{},{},{},{{"jsonrpc":"2.0","method":"ping","params":[5],"timeout_ms":600,"id":5}}]"#,
        hang(1),
        hang(2),
        hang(3),
        hang(4)
    );
    let mut peer = Peer::of(&service, Way::Stream);
    let mut expected: Vec<Value> = (1..5).map(|id| error(-32001, &json!(id))).collect();
    expected.push(result(&json!([5]), &json!(5)));
    assert_eq!(answered(&mut peer, &batch), json!(expected));
}

#[test]
fn a_call_of_a_batch_that_takes_too_long_costs_the_others_nothing() {
    // Threads that nobody waits for any more are busy for a while.
    let service = Service::start("processes = 1\nthreads = 20");
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        let batch = r#"[
            {"jsonrpc":"2.0","method":"sleep","params":[2000],"timeout_ms":50,"id":1},
            {"jsonrpc":"2.0","method":"ping","params":[2],"id":2},
            {"jsonrpc":"2.0","method":"sleep","params":[2000],"timeout_ms":50},
            {"jsonrpc":"2.0","method":"sleep","params":[1],"id":4}
        ]"#;
        let expected = json!([
            error(-32001, &json!(1)),
            result(&json!([2]), &json!(2)),
            result(&Value::Null, &json!(4))
        ]);
        assert_eq!(answered(&mut peer, batch), expected, "{way:?}");
        assert_eq!(peer.call("ping", json!("after"))["result"], "after");
    }
    // A notification that takes too long is nobody's error.
    let mut peer = Peer::of(&service, Way::Http);
    not_answered(
        &mut peer,
        Way::Http,
        r#"[{"jsonrpc":"2.0","method":"sleep","params":[200],"timeout_ms":20}]"#,
    );
}

#[test]
fn a_batch_longer_than_what_may_be_in_flight_is_answered_whole_and_in_its_order() {
    let service = Service::start(
        "processes = 1\nthreads = 4\n[limits]\nin_flight_per_connection = 8\nqueue_wait = \"60s\"",
    );
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        for method in ["echo", "ping"] {
            let members: Vec<Value> = (0..200)
                .map(|id| json!({ "jsonrpc": "2.0", "method": method, "params": [id], "id": id }))
                .collect();
            let expected: Vec<Value> = (0..200).map(|id| result(&json!([id]), &json!(id))).collect();
            assert_eq!(answered(&mut peer, &json!(members).to_string()), json!(expected), "{way:?}");
        }
        // What takes a thread, mixed with what is wrong and what wants no answer.
        let members: Vec<Value> = (0..200)
            .map(|id| match id % 4 {
                0 => json!({ "jsonrpc": "2.0", "method": "sleep", "params": [1], "id": id }),
                1 => json!({ "jsonrpc": "2.0", "method": "sleep", "params": [0] }),
                2 => json!(id),
                _ => json!({ "jsonrpc": "2.0", "method": "nope", "id": id }),
            })
            .collect();
        let expected: Vec<Value> = (0..200)
            .filter_map(|id| match id % 4 {
                0 => Some(result(&Value::Null, &json!(id))),
                1 => None,
                2 => Some(error(-32600, &Value::Null)),
                _ => Some(error(-32601, &json!(id))),
            })
            .collect();
        assert_eq!(answered(&mut peer, &json!(members).to_string()), json!(expected), "{way:?}");
    }
}

/// `count` calls of `sleep`, the first for so long, with ids from `first` on.
fn sleeps(first: u64, count: u64, ms: u64) -> String {
    let call = |id| json!({ "jsonrpc": "2.0", "method": "sleep", "params": [if id == first { ms } else { 0 }], "id": id });
    (first..first + count).map(call).collect::<Value>().to_string()
}

/// Of a batch, or of some of its calls: as is found when it arrives, or when it is taken apart. Once, the former was one
/// error without an id, which a caller with several batches on their way could tell from none of them.
#[test]
fn what_the_queue_has_no_room_for_of_two_batches_is_refused() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue = 10\nqueue_wait = \"60s\"");
    for way in [Way::Length, Way::Stream, Way::Header] {
        let mut others = Peer::of(&service, Way::Length);
        let call = |id| {
            Way::Length.framed(&format!(
                r#"{{"in":"sleep","params":[{}],"id":{id}}}"#,
                if id == 0 { 300 } else { 0 }
            ))
        };
        others.send_bytes((0..11).flat_map(call).collect::<Vec<_>>());
        // They are in the queue before the batches can be, as one poller reads both.
        let mut peer = Peer::of(&service, way);
        peer.send_bytes(way.all_framed([&*sleeps(0, 10, 300), &sleeps(10, 10, 300)]));
        let (mut run, mut refused) = (0, 0);
        for answer in [peer.receive(), peer.receive()] {
            let answers = answer.as_array().expect("the answers to a batch");
            let first = answers[0]["id"].as_u64().expect("an id");
            assert_eq!(answers.len(), 10, "{answer}");
            for (id, answer) in (first..).zip(answers) {
                assert_eq!(answer["id"], id);
                if answer.get("result").is_some() {
                    run += 1;
                } else {
                    assert_eq!(answer["error"]["code"], -32000, "{answer}");
                    assert!(answer["error"]["data"]["retry_after_ms"].is_u64(), "{answer}");
                    refused += 1;
                }
            }
        }
        assert_eq!((run, refused), (0, 20), "{way:?}");
        (0..11).for_each(|_| assert_eq!(others.receive()["out"], "sleep"));
    }
}

/// All of them were put in the queue at once, and those refused that had waited for the others too long.
#[test]
fn a_batch_is_not_refused_for_its_own_length() {
    let service = Service::start(
        "processes = 1\nthreads = 2\n[limits]\nqueue = 64\nqueue_wait = \"50ms\"\n[methods.sleep]\nconcurrency = 1",
    );
    for (method, how_long) in [("sleep", 5), ("spin", 5_000)] {
        let mut peer = Peer::of(&service, Way::Length);
        let call = |id| json!({ "jsonrpc": "2.0", "method": method, "params": [how_long], "id": id });
        peer.send(&(0..64).map(call).collect::<Value>().to_string());
        let answers = peer.receive();
        let answers = answers.as_array().expect("the answers to a batch");
        let refused: Vec<&Value> = answers.iter().filter(|answer| answer.get("error").is_some()).collect();
        assert_eq!((answers.len(), refused), (64, Vec::new()), "{method}");
    }
}

/// A call that had waited too long, but for another of its batch, was begun again and found too late in the same moment, for ever:
/// the worker did nothing else until it was killed.
#[test]
fn a_batch_whose_calls_take_longer_than_the_wait_in_the_queue_holds_nobody_up() {
    let config = "processes = 1\nthreads = 2\n[limits]\nqueue_wait = \"100ms\"";
    for (more, others) in [("\n[methods.sleep]\nconcurrency = 1", 0), ("", 1)] {
        let service = Service::start(&format!("{config}{more}"));
        let mut busy: Vec<Peer> = (0..others).map(|_| Peer::of(&service, Way::Length)).collect();
        for peer in &mut busy {
            peer.send(r#"{"in":"sleep","params":[600]}"#);
        }
        let mut peer = Peer::of(&service, Way::Length);
        let sleep = |id, ms| json!({ "jsonrpc": "2.0", "method": "sleep", "params": [ms], "id": id });
        peer.send(&json!([sleep(0, 500), sleep(1, 1)]).to_string());
        for n in 0..20 {
            assert_eq!(service.call("ping", json!(n))["result"], n);
            std::thread::yield_now();
        }
        let answers = peer.receive();
        assert_eq!(answers.as_array().map(Vec::len), Some(2), "{answers}");
        assert!(answers[0].get("result").is_some(), "{answers}");
        // Where another has the second thread it may have waited for that one.
        let refused = answers[1]["error"]["code"] == -32000;
        assert!(answers[1].get("result").is_some() || (others > 0 && refused), "{answers}");
        for peer in &mut busy {
            assert_eq!(peer.receive()["out"], "sleep");
        }
    }
}

/// What had no room beside others of its batch was refused, though nobody else was there.
#[test]
fn a_batch_that_is_alone_waits_for_its_own_calls_however_long_they_take() {
    let service = Service::start(
        "processes = 1\nthreads = 4\n[limits]\nqueue_wait = \"200ms\"\n[methods.sleep]\nconcurrency = 1\n[methods.hang]\ntimeout = \"300ms\"",
    );
    let mut peer = Peer::of(&service, Way::Length);
    let call = |id, method, ms| json!({ "jsonrpc": "2.0", "method": method, "params": [ms], "id": id });
    // The method's mean is longer than a call may wait from now on.
    assert_eq!(peer.call("sleep", json!([300]))["result"], json!(null));
    peer.send(&(0..4).map(|id| call(id, "sleep", 150)).collect::<Value>().to_string());
    let answers = peer.receive();
    let run = answers.as_array().expect("answers").iter().filter(|answer| answer.get("result").is_some());
    assert_eq!(run.count(), 4, "{answers}");
    // One that is given up, after longer than a call may wait, has not kept the others waiting either.
    peer.send(&json!([call(0, "hang", 0), call(1, "sleep", 1), call(2, "sleep", 1)]).to_string());
    let answers = peer.receive();
    assert_eq!(answers[0]["error"]["code"], -32001, "{answers}");
    assert!(answers[1].get("result").is_some() && answers[2].get("result").is_some(), "{answers}");
}

/// They were all run, however much that was to keep, and then thrown away: behind a length no answer can have 16 MiB.
#[test]
fn a_batch_whose_answers_are_too_many_is_answered_as_far_as_they_fit() {
    let service = Service::start("processes = 1\nthreads = 2\n[limits]\nbuffers = \"64MiB\"");
    for way in [Way::Length, Way::Http] {
        let mut peer = Peer::of(&service, way);
        let call =
            |id| json!({ "jsonrpc": "2.0", "method": "blob", "params": { "bytes": 1_000_000 }, "id": id });
        peer.send(&(0..40).map(call).collect::<Value>().to_string());
        let answers = peer.receive();
        let answers = answers.as_array().expect("the answers to a batch");
        let (mut right, mut not_run) = (0, 0);
        for (id, answer) in answers.iter().enumerate() {
            assert_eq!(answer["id"], id);
            right += usize::from(answer["result"].as_str().is_some_and(|blob| blob.len() == 1_000_000));
            not_run += usize::from(answer["error"]["code"] == -32000);
        }
        // Of those that were on their way when it was enough a few may not fit either.
        assert!(
            answers.len() == 40 && right >= 15 && not_run >= 20,
            "{way:?}: {right} right, {not_run} not run"
        );
    }
}

/// No thread has found out yet that it is a batch.
#[test]
fn each_call_of_a_batch_is_answered_whose_time_is_up_in_the_queue() {
    let service = Service::start(
        "processes = 1\nthreads = 1\n[timeouts]\nrequest = \"50ms\"\n[methods.sleep]\ntimeout = \"1h\"",
    );
    let mut sleeper = Peer::of(&service, Way::Length);
    sleeper.send(r#"{"in":"sleep","params":[400]}"#);
    await_asleep(service.worker_pids()[0]);
    let mut peers = ALL.map(|way| (way, Peer::of(&service, way)));
    let call = |id: u64| json!({ "jsonrpc": "2.0", "method": "echo", "params": [id], "id": id });
    let silent = json!({ "jsonrpc": "2.0", "method": "echo", "params": [0] });
    for (_, peer) in &mut peers {
        peer.send(&json!([call(1), silent, 1, call(2)]).to_string());
        peer.send(&json!([silent, silent]).to_string());
    }
    for (way, peer) in &mut peers {
        let late = |id: u64| error(-32001, &json!(id));
        let expected = json!([late(1), error(-32600, &Value::Null), late(2)]);
        assert_eq!(without_details(peer.receive()), expected, "{way:?}");
        // One that nobody waits for is given up without a word.
        if *way == Way::Http {
            assert_eq!(peer.reply().status, 204);
        }
    }
    assert_eq!(sleeper.receive()["out"], "sleep");
    for (way, peer) in &mut peers {
        assert_eq!(peer.call("sleep", json!([0]))["out"], "sleep", "{way:?}");
    }
}

#[test]
fn a_batch_that_no_queue_would_hold_is_refused_once() {
    let service = Service::start("processes = 1\nthreads = 4\n[limits]\nqueue = 10");
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        peer.send(&sleeps(0, 11, 0));
        let answer = peer.receive();
        assert!(
            answer["error"]["message"].as_str().is_some_and(|text| text.contains("limits.queue")),
            "{answer}"
        );
        assert_eq!(without_details(answer), error(-32600, &Value::Null), "{way:?}");
        let expected: Value = (0..10).map(|id| result(&Value::Null, &json!(id))).collect();
        assert_eq!(answered(&mut peer, &sleeps(0, 10, 0)), expected, "{way:?}");
    }
}

#[test]
fn a_batch_of_ten_thousand_and_its_answers_fit() {
    let service = Service::start("processes = 1\nthreads = 4\n[limits]\nqueue = 10000");
    let mut bystander = Bystander::of(&service);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        let members: Vec<String> = (0..10_000)
            .map(|id| format!(r#"{{"jsonrpc":"2.0","method":"ping","params":[{id}],"id":{id}}}"#))
            .collect();
        peer.send(&format!("[{}]", members.join(",")));
        let answers = peer.receive();
        let answers = answers.as_array().expect("a list");
        assert_eq!(answers.len(), 10_000, "{way:?}");
        for (id, answer) in answers.iter().enumerate() {
            assert_eq!(answer["id"], id, "{way:?}");
            assert!(answer["result"][0] == id || answer["error"]["code"] == -32000, "{way:?}: {answer}");
        }
    }
    // The smallest members there are.
    let mut peer = Peer::of(&service, Way::Header);
    peer.send(&format!("[{}0]", "0,".repeat(9_999)));
    assert_eq!(peer.receive().as_array().map(Vec::len), Some(10_000));
    bystander.sees_no_harm(&service, "long batches");
}

#[test]
fn what_is_too_deep_or_too_large_is_answered() {
    let service = Service::start(ONE);
    let mut bystander = Bystander::of(&service);
    for way in ALL {
        for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
            let deep = format!("{}1{}", open.repeat(100_000), close.repeat(100_000));
            let calls = [
                deep.clone(),
                format!(r#"{{"jsonrpc":"2.0","method":"echo","params":[{deep}],"id":1}}"#),
                format!(r#"[{{"jsonrpc":"2.0","method":"echo","params":[{deep}],"id":1}}]"#),
            ];
            for call in calls.iter().filter(|call| call.len() < 1 << 20) {
                let mut peer = Peer::of(&service, way);
                peer.send(call);
                let answer = peer.receive();
                // An object that is no request shows no form.
                let error = if answer.get("out").is_some() { &answer["result"] } else { &answer["error"] };
                assert_eq!(error["code"], -32700, "{way:?}: {answer}");
            }
        }
        let mut peer = Peer::of(&service, way);
        for number in ["1e400", "-1e400", "1E-400", "0.1e99999999999999999999"] {
            peer.send(&format!(r#"{{"jsonrpc":"2.0","method":"echo","params":[{number}],"id":{number}}}"#));
            assert_eq!(peer.text(), format!(r#"{{"jsonrpc":"2.0","result":[{number}],"id":{number}}}"#));
            let message = format!(r#"{{"jsonrpc":"2.0","method":"sleep","params":[{number}],"id":1}}"#);
            assert_eq!(answered(&mut peer, &message), error(-32602, &json!(1)), "{number}");
        }
    }
    bystander.sees_no_harm(&service, "depth");
}
