//! What JSON-RPC answers, as the tests of it compare them.

use serde_json::{Value, json};

use super::peer::{Peer, Way};

/// Errors have a code and a message, and ours have more in them than the specification's.
pub fn without_details(mut answer: Value) -> Value {
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
pub fn answered(peer: &mut Peer, message: &str) -> Value {
    peer.send(message);
    without_details(peer.receive())
}

/// Nothing is answered: the next answer is that of a call behind it. HTTP says 204.
pub fn not_answered(peer: &mut Peer, way: Way, message: &str) {
    peer.send(message);
    if way == Way::Http {
        let reply = peer.reply();
        assert_eq!((reply.status, &*reply.body), (204, ""), "{message}: {reply:?}");
        assert_eq!(reply.field("Content-Length"), None);
    }
    assert_eq!(peer.call("ping", json!("behind"))["result"], "behind", "{way:?}: {message}");
}

pub fn result(result: &Value, id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "result": result, "id": id })
}

pub fn error(code: i64, id: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "error": code, "id": id })
}
