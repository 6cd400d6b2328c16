//! JSON-RPC, as its specifications have it, in every framing: the examples of version 2.0, batches, ids, version 1.0.

use std::sync::Once;

use crate::support;
use crate::support::Service;
use crate::support::answers::{answered, error, not_answered, result};
use crate::support::peer::{ALL, Peer, Way};
use crate::support::programs::Bystander;
use serde_json::{Value, json};

const ONE: &str = "processes = 1\nthreads = 4";

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
        // Which of two ids its caller waits for nobody knows.
        let id = if message.contains(":2}") { Value::Null } else { json!(1) };
        assert_eq!(answered(&mut peer, message), error(-32600, &id), "{message}");
        // It is as wrong in a batch, and its neighbours are not harmed.
        let batch = format!(r#"[{{"jsonrpc":"2.0","method":"echo","id":2}},{message}]"#);
        let expected = json!([result(&Value::Null, &json!(2)), error(-32600, &id)]);
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

// Clients of version 1.0 that say so in the member of version 2.0 were told that it must be 2.0.
#[test]
fn a_client_that_says_version_one_gets_answers_of_version_one() {
    let service = Service::start(ONE);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        peer.send(r#"{"jsonrpc":"1.0","id":"a","method":"echo","params":[1]}"#);
        assert_eq!(peer.text(), r#"{"result":[1],"error":null,"id":"a"}"#, "{way:?}");
        peer.send(r#"{"jsonrpc":"1.0","id":"a","method":"nope","params":[]}"#);
        let answer = peer.receive();
        assert!(answer["error"].as_str().is_some_and(|text| text.contains("-32601")), "{way:?}: {answer}");
        // A batch is of version 2.0: that member alone fails.
        peer.send(
            r#"[{"jsonrpc":"1.0","id":1,"method":"echo"},{"jsonrpc":"2.0","id":2,"method":"echo","params":[2]}]"#,
        );
        let mut codes: Vec<Value> = peer.receive().as_array().expect("an array").clone();
        codes.sort_by_key(|answer| answer["id"].as_u64());
        assert_eq!(
            (&codes[0]["error"]["code"], &codes[1]["result"]),
            (&json!(-32600), &json!([2])),
            "{way:?}"
        );
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
