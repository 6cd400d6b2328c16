//! Batches of JSON-RPC: their calls run side by side, wait for each other and for others', and are answered together.

use crate::support::answers::{answered, error, not_answered, result, without_details};
use crate::support::peer::{ALL, Peer, Way};
use crate::support::programs::Bystander;
use crate::support::{Service, await_asleep};
use serde_json::{Value, json};

/// Alone such a call was told that its time was up, and in a batch that the service was overloaded.
#[test]
fn a_call_of_a_batch_whose_time_is_up_is_told_so_although_the_buffers_are_full() {
    let limits = "output = \"1MiB\"\nbuffers = \"4MiB\"\nmax_message = \"4MiB\"";
    let service = Service::start(&format!("processes = 1\nthreads = 1\n[limits]\n{limits}"));
    let mut peer = Peer::of(&service, Way::Length);
    let long = "x".repeat(2_200_000);
    let batch = json!([
        { "jsonrpc": "2.0", "method": "sleep", "params": [150], "id": 1 },
        // Its answer beside the message fills them.
        { "jsonrpc": "2.0", "method": "ping", "params": [long], "id": 2 },
        { "jsonrpc": "2.0", "method": "ping", "id": 3 },
        { "jsonrpc": "2.0", "method": "ping", "timeout_ms": 50, "id": 4 },
    ]);
    peer.send(&batch.to_string());
    let answers = peer.receive();
    assert_eq!((&answers[1]["id"], &answers[1]["result"][0]), (&json!(2), &json!(long)));
    assert_eq!(
        (&answers[2]["id"], &answers[2]["error"]["code"]),
        (&json!(3), &json!(-32000)),
        "they are full"
    );
    assert_eq!(
        (&answers[3]["id"], &answers[3]["error"]["code"]),
        (&json!(4), &json!(-32001)),
        "{}",
        answers[3]
    );
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
        // One call each, so that nobody has more than another and would give way.
        let mut others: Vec<Peer> = (0..11).map(|_| Peer::of(&service, Way::Length)).collect();
        let mut peer = Peer::of(&service, way);
        for one in others.iter_mut().chain([&mut peer]) {
            assert_eq!(one.call("ping", json!([1]))["result"], json!([1]));
        }
        for (id, other) in (0..).zip(&mut others) {
            other
                .send(&format!(r#"{{"in":"sleep","params":[{}],"id":{id}}}"#, if id == 0 { 600 } else { 0 }));
            if id == 0 {
                // It would be one more in the queue until the thread has taken it.
                await_asleep(service.worker_pids()[0]);
            }
        }
        // They are in the queue before the batches can be, as one poller reads both.
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
        for other in &mut others {
            assert_eq!(other.receive()["out"], "sleep");
        }
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
        let call = |id, ms| json!({ "jsonrpc": "2.0", "method": "sleep", "params": [ms], "id": id });
        peer.send(&json!([call(0, 500), call(1, 1)]).to_string());
        for n in 0..20 {
            assert_eq!(service.call("ping", json!(n))["result"], n);
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
