//! A connection belongs to the service in every framing: what a worker's end, its leave and the service's end look like to
//! callers that never reconnect.

use std::time::Instant;

use crate::support;
use crate::support::kept::Kept;
use crate::support::peer::{ALL, Peer, Reply, Way, post};
use crate::support::proc::{Process, kill_at_rest};
use crate::support::{PATIENCE, Service, await_asleep, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Two workers whose connections are kept from the start, and which come back at once however often they are killed.
const TWO: &str = "processes = 2\nthreads = 4\n[timeouts]\nkeep_after = \"0s\"\n[limits]\nqueue_wait = \"60s\"\n[quarantine]\ncrashes = 0\n[restart]\nbackoff = \"1ms\"\nbackoff_max = \"10ms\"";

fn request(method: &str, params: &Value, id: u64) -> String {
    json!({ "jsonrpc": "2.0", "method": method, "params": params, "id": id }).to_string()
}

/// An answer to a call that was lost with its worker.
fn is_lost(answer: &Value, method: &str, cause: &str, id: u64) {
    assert_eq!((&answer["error"]["code"], &answer["id"]), (&json!(-32002), &json!(id)), "{answer}");
    assert_eq!(answer["error"]["data"], json!({ "method": method, "cause": cause }), "{answer}");
}

fn native_is_lost(reply: &Reply, method: &str, cause: &str) {
    let answer = reply.json();
    assert_eq!((&answer["out"], &answer["result"]["code"]), (&json!("error"), &json!(-32002)), "{answer}");
    assert_eq!(answer["result"]["data"], json!({ "method": method, "cause": cause }), "{answer}");
}

#[test]
fn a_killed_worker_costs_the_call_that_ran_and_nothing_behind_it() {
    let kept = Kept::start(TWO);
    for way in ALL {
        let mut peer = kept.connect_to_speak(way);
        // In the native envelope without an id: one after the other, in every framing.
        let pid = peer.worker();
        let calls: Vec<String> = [r#"{"in":"hang"}"#.to_owned()]
            .into_iter()
            .chain((0..20).map(|number| format!(r#"{{"in":"echo","params":{number}}}"#)))
            .collect();
        let bytes = way.all_framed(calls.iter().map(String::as_str));
        // The last is not whole when its worker ends.
        let (first, rest) = bytes.split_at(bytes.len() - 3);
        peer.send_bytes(first);
        let mark = kept.service.mark();
        kill_at_rest(pid);
        native_is_lost(&peer.reply(), "hang", "SIGKILL");
        for number in 0..19 {
            assert_eq!(peer.text(), format!(r#"{{"out":"echo","result":{number}}}"#), "{way:?}");
        }
        peer.send_bytes(rest);
        assert_eq!(peer.text(), r#"{"out":"echo","result":19}"#, "{way:?}");
        assert_ne!(peer.worker(), pid);
        kept.service.await_text(mark, "worker ready");
        kept.disconnect(peer);
    }
}

#[test]
fn a_killed_worker_is_told_in_the_form_of_each_caller() {
    let kept = Kept::start(TWO);
    for way in ALL {
        let mut peer = kept.connect_to_speak(way);
        let pid = peer.worker();
        // The second and third run beside the first, but in HTTP, where they are run by the next worker.
        peer.send_bytes(way.all_framed([
            &*request("hang", &json!([1]), 1),
            r#"{"method":"echo","params":["one"],"id":2}"#,
            // Where it runs alone, it is run anew by the next worker, and ends.
            r#"{"jsonrpc":"2.0","method":"hang","timeout_ms":300}"#,
            &request("echo", &json!(["four"]), 4),
        ]));
        let mut answers = Vec::new();
        if way != Way::Http {
            answers.extend([peer.receive(), peer.receive()]);
        }
        let mark = kept.service.mark();
        kill_at_rest(pid);
        answers.push(peer.receive());
        if way == Way::Http {
            answers.push(peer.receive());
            assert_eq!(peer.reply().status, 204);
            answers.push(peer.receive());
        }
        answers.sort_by_key(|answer| answer["id"].as_u64());
        is_lost(&answers[0], "hang", "SIGKILL", 1);
        assert_eq!(answers[1], json!({ "result": ["one"], "error": null, "id": 2 }), "{way:?}");
        assert_eq!(answers[2], json!({ "jsonrpc": "2.0", "result": ["four"], "id": 4 }), "{way:?}");
        assert_eq!(peer.call("echo", json!(5))["result"], 5, "{way:?}");
        kept.service.await_text(mark, "worker ready");
        kept.disconnect(peer);
    }
}

#[test]
fn a_bare_call_whose_worker_is_killed_is_502_in_its_order() {
    let kept = Kept::start(TWO);
    let mut peer = kept.connect_to_speak(Way::Http);
    let pid = peer.worker();
    let chunked =
        "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n[1\r\n1\r\n]\r\n0\r\n\r\n";
    let chunked_hang = chunked.replace("/echo", "/hang");
    peer.send_bytes(
        post("/echo", 1, "")
            + "1"
            + &chunked_hang
            + chunked
            + "HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
            + &post("/hang", 4, "Connection: close\r\n")
            + "null"
            + &post("/echo", 1, "")
            + "1",
    );
    assert_eq!(peer.text(), "1");
    kill_at_rest(pid);
    let reply = peer.reply();
    assert_eq!((reply.status, reply.field("Connection")), (502, None), "{reply:?}");
    assert_eq!(reply.json()["data"], json!({ "method": "hang", "cause": "SIGKILL" }));
    assert_eq!(peer.text(), "[1]");
    assert_eq!(peer.reply_to("HEAD").expect("an answer").field("Content-Length"), Some("15"));
    // The next one is the last that its caller wants answered, whoever does it.
    let mut other = Peer::of(&kept.service, Way::Http);
    let next = other.worker();
    let running =
        kept.service.worker_pids().into_iter().find(|other| *other != pid && *other != next).unwrap_or(next);
    for pid in [running, next] {
        await_asleep(pid);
    }
    let process = [Process::of(running), Process::of(next)];
    for process in process {
        process.kill();
        process.await_end();
    }
    let replies = peer.replies_to_the_end();
    assert_eq!(replies.len(), 1, "{replies:?}");
    assert_eq!((replies[0].status, replies[0].field("Connection")), (502, Some("close")), "{replies:?}");
}

#[test]
fn a_batch_whose_worker_is_killed_has_what_was_finished_and_errors_for_the_rest() {
    let kept = Kept::start(TWO);
    for way in ALL {
        let mut peer = kept.connect_to_speak(way);
        let pid = peer.worker();
        let batch = format!(
            "[{},{},{},1,{},{}]",
            request("echo", &json!(["first"]), 0),
            request("hang", &json!([]), 1),
            request("sleep", &json!([0]), 2),
            r#"{"jsonrpc":"2.0","method":"hang"}"#,
            request("nope", &json!([]), 5),
        );
        peer.send_bytes([way.framed(&batch), way.framed(r#"{"in":"echo","params":"behind"}"#)].concat());
        if way != Way::Http {
            // It has no id, so it runs beside a batch; then all that will be finished is.
            assert_eq!(peer.text(), r#"{"out":"echo","result":"behind"}"#, "{way:?}");
        }
        let mark = kept.service.mark();
        kill_at_rest(pid);
        let reply = peer.reply();
        assert_eq!(reply.status, 200);
        let answers = reply.json();
        assert_eq!(answers.as_array().map(Vec::len), Some(5), "{way:?}: {answers}");
        assert_eq!(answers[0], json!({ "jsonrpc": "2.0", "result": ["first"], "id": 0 }), "{way:?}");
        is_lost(&answers[1], "hang", "SIGKILL", 1);
        assert_eq!(answers[2], json!({ "jsonrpc": "2.0", "result": null, "id": 2 }), "{way:?}");
        assert_eq!(answers[3]["error"]["code"], -32600, "{way:?}");
        assert_eq!(answers[4]["error"]["code"], -32601, "{way:?}");
        if way == Way::Http {
            assert_eq!(peer.text(), r#"{"out":"echo","result":"behind"}"#);
        }
        assert_ne!(peer.worker(), pid);
        kept.service.await_text(mark, "worker ready");
        kept.disconnect(peer);
    }
}

/// Answers are kept as they are finished, also long ones and many.
#[test]
fn long_answers_of_a_batch_outlive_its_worker() {
    let kept = Kept::start(TWO);
    for way in [Way::Stream, Way::Http] {
        let mut peer = kept.connect_to_speak(way);
        let pid = peer.worker();
        let mut members: Vec<String> =
            (0..40).map(|id| request("blob", &json!({ "bytes": 50_000 }), id)).collect();
        members.push(request("panic", &json!({ "message": "the last but one" }), 40));
        members.push(request("hang", &json!([]), 41));
        let mark = kept.service.mark();
        peer.send(&format!("[{}]", members.join(",")));
        // Another thread may still run one of the forty when the last but one is told in the log; a worker at rest runs none.
        kill_at_rest(pid);
        let answers = peer.receive();
        assert_eq!(answers.as_array().map(Vec::len), Some(42));
        for id in 0..40 {
            assert_eq!(answers[id]["id"], id);
            assert_eq!(answers[id]["result"].as_str().map(str::len), Some(50_000), "{way:?}: call {id}");
        }
        assert_eq!(answers[40]["error"]["code"], -32603, "{way:?}");
        is_lost(&answers[41], "hang", "SIGKILL", 41);
        assert_eq!(peer.call("echo", json!(1))["result"], 1);
        kept.service.await_text(mark, "worker ready");
        kept.disconnect(peer);
    }
}

/// Split anywhere, by the ends of two workers: also where it isn't known yet what the connection speaks.
#[test]
fn a_half_sent_message_outlives_the_workers_that_read_it() {
    let kept = Kept::start(TWO);
    let chunked = "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n5;a=b\r\n[\"abc\r\n2\r\n\"]\r\n0\r\nX: y\r\n\r\n";
    let echo = r#"{"in":"echo","params":["abc"]}"#;
    let head = chunked.find("\r\n\r\n").expect("it has one") + 4;
    for (way, bytes, pieces) in [
        (Way::Length, Way::Length.framed(echo), [2, 10]),
        (Way::Stream, Way::Stream.framed("{}"), [1, 1]),
        (Way::Stream, Way::Stream.framed(&echo.replace("[\"a", "[\"\\\"")), [3, 26]),
        (Way::Header, Way::Header.framed(echo), [4, 19]),
        (Way::Http, Way::Http.framed(echo), [3, 70]),
        (Way::Http, chunked.as_bytes().to_vec(), [head + 6, head + 17]),
        (Way::Http, chunked.as_bytes().to_vec(), [head - 2, chunked.len() - 3]),
    ] {
        let mut peer = Peer::of(&kept.service, way);
        let mut from = 0;
        for to in pieces {
            peer.send_bytes(&bytes[from..to]);
            from = to;
            // Whoever serves it: both, one after the other.
            for pid in kept.service.worker_pids() {
                let mark = kept.service.mark();
                kill_at_rest(pid);
                kept.service.await_text(mark, "worker ready");
            }
        }
        peer.send_bytes(&bytes[from..]);
        let mut reply = peer.reply();
        while reply.status == 100 {
            reply = peer.reply();
        }
        let expected = if bytes == b"{}" { "-32600" } else { "bc\"]" };
        assert!(reply.body.contains(expected), "{way:?}: {reply:?}");
        peer.half_close();
        assert!(peer.is_closed(), "{way:?}");
    }
}

#[test]
fn a_half_read_answer_goes_on_where_the_dead_worker_stopped() {
    let kept = Kept::start(&TWO.replace("[limits]", "[limits]\noutput = \"64KiB\""));
    for way in ALL {
        let mut peer = Peer::narrow(&kept.service, way);
        kept.await_kept(1);
        let pid = peer.worker();
        let blob = |id| request("blob", &json!({ "bytes": 50_000 }), id);
        let batch = format!("[{},{}]", blob(8), request("echo", &json!([9]), 9));
        let last = request("tine.worker", &json!([]), 10);
        let calls: Vec<String> = (0..8).map(blob).chain([batch]).collect();
        peer.send_bytes(way.all_framed(calls.iter().map(String::as_str)));
        // A first part of it is read, and then everything waits for the reader, also what comes last.
        peer.read_ahead(1_000);
        await_asleep(pid);
        peer.send(&last);
        peer.half_close();
        let mark = kept.service.mark();
        kill_at_rest(pid);
        let mut ids = Vec::new();
        for reply in peer.replies_to_the_end() {
            let answer = reply.json();
            let answers = answer.as_array().map_or(std::slice::from_ref(&answer), Vec::as_slice);
            for answer in answers {
                let id = answer["id"].as_u64().expect("an id");
                match id {
                    10 => assert_ne!(answer["result"]["pid"], pid, "{way:?}: nothing waited for its reader"),
                    9 => assert_eq!(answer["result"], json!([9]), "{way:?}: {answer}"),
                    _ => assert_eq!(
                        answer["result"].as_str().map(str::len),
                        Some(50_000),
                        "{way:?}: call {id}"
                    ),
                }
                ids.push(id);
            }
        }
        ids.sort_unstable();
        assert!(ids.iter().copied().eq(0..=10), "{way:?}: {ids:?}");
        kept.service.await_text(mark, "worker ready");
        kept.disconnect(peer);
    }
}

#[test]
fn connections_of_each_framing_move_when_their_worker_leaves() {
    let kept = Kept::start(TWO);
    for way in ALL {
        let mut peer = kept.connect_to_speak(way);
        let pid = peer.worker();
        let process = Process::of(pid);
        let sleep = request("sleep", &json!([150]), 2);
        // A batch runs, something waits behind it, and the last has only begun to arrive.
        let echo = way.framed(r#"{"in":"echo","params":"behind"}"#);
        let half = way.framed(r#"{"in":"echo","params":"last"}"#);
        peer.send_bytes(way.framed(r#"{"in":"sleep","params":[150]}"#));
        peer.send_bytes([&way.framed(&format!("[{sleep}]")), &echo, &half[..half.len() - 2]].concat());
        await_asleep(pid);
        send_signal(pid, Signal::SIGTERM);
        let mut answers = vec![peer.text(), peer.text(), peer.text()];
        if way != Way::Http {
            answers.sort();
        }
        let mut expected = vec![
            r#"{"out":"sleep","result":null}"#.to_owned(),
            r#"[{"jsonrpc":"2.0","result":null,"id":2}]"#.to_owned(),
            r#"{"out":"echo","result":"behind"}"#.to_owned(),
        ];
        if way != Way::Http {
            expected.sort();
        }
        assert_eq!(answers, expected, "{way:?}");
        process.await_end();
        peer.send_bytes(&half[half.len() - 2..]);
        let reply = peer.reply();
        assert_eq!(
            (&*reply.body, reply.field("Connection")),
            (r#"{"out":"echo","result":"last"}"#, None),
            "{way:?}"
        );
        assert_ne!(peer.worker(), pid, "{way:?}");
        while kept.service.worker_pids().len() < 2 {
            kept.service.await_log("worker ready");
        }
        kept.disconnect(peer);
    }
}

#[test]
fn a_reload_moves_connections_of_each_framing() {
    let kept = Kept::start(TWO);
    let mut peers: Vec<(Way, Peer)> =
        ALL.into_iter().map(|way| (way, Peer::of(&kept.service, way))).collect();
    let olds: Vec<i32> = peers.iter_mut().map(|(_, peer)| peer.worker()).collect();
    let mark = kept.service.mark();
    for (_, peer) in &mut peers {
        peer.send(r#"{"in":"sleep","params":[100]}"#);
        peer.send(&format!("[{}]", request("sleep", &json!([100]), 1)));
    }
    kept.service.signal(Signal::SIGHUP);
    kept.service.await_text(mark, "reload");
    for (way, peer) in &mut peers {
        assert_eq!(peer.text(), r#"{"out":"sleep","result":null}"#, "{way:?}");
        let reply = peer.reply();
        assert_eq!(reply.body, r#"[{"jsonrpc":"2.0","result":null,"id":1}]"#, "{way:?}");
        assert_eq!(reply.field("Connection"), None);
    }
    for pid in olds.iter().copied() {
        assert!(support::await_gone(pid, PATIENCE), "{pid} stays; log:\n{}", kept.service.log_so_far());
    }
    for (way, peer) in &mut peers {
        assert!(!olds.contains(&peer.worker()), "{way:?}");
    }
}

#[test]
fn a_call_that_outlives_the_time_to_drain_is_told_so_in_each_framing() {
    for way in ALL {
        let kept =
            Kept::start("processes = 2\nthreads = 4\n[timeouts]\nkeep_after = \"0s\"\ndrain = \"200ms\"");
        let mut peer = kept.connect_to_speak(way);
        let pid = peer.worker();
        peer.send(&format!("[{},{}]", request("echo", &json!([0]), 0), request("hang", &json!([]), 1)));
        await_asleep(pid);
        send_signal(pid, Signal::SIGTERM);
        let answers = peer.receive();
        assert_eq!(answers[0]["result"], json!([0]), "{way:?}: {answers}");
        is_lost(&answers[1], "hang", "drained", 1);
        assert_ne!(peer.worker(), pid);
    }
}

#[test]
fn the_end_of_the_service_answers_what_had_begun_and_says_so() {
    let mut kept = Kept::start(TWO);
    let mut peers: Vec<(Way, Peer)> =
        ALL.into_iter().map(|way| (way, Peer::of(&kept.service, way))).collect();
    let mut idle: Vec<Peer> = ALL.into_iter().map(|way| Peer::of(&kept.service, way)).collect();
    for peer in &mut idle {
        peer.worker();
    }
    for (_, peer) in &mut peers {
        peer.worker();
        peer.send(r#"{"in":"sleep","params":[300]}"#);
    }
    for pid in kept.service.worker_pids() {
        await_asleep(pid);
    }
    kept.service.signal(Signal::SIGTERM);
    for (way, peer) in &mut peers {
        let replies = peer.replies_to_the_end();
        assert_eq!(replies.len(), 1, "{way:?}: {replies:?}");
        assert_eq!(replies[0].body, r#"{"out":"sleep","result":null}"#, "{way:?}");
        let says = (*way == Way::Http).then_some("close");
        assert_eq!(replies[0].field("Connection"), says, "{way:?}");
    }
    for peer in &mut idle {
        assert!(peer.is_closed());
    }
    assert_eq!(kept.service.await_end().code(), Some(0));
}

#[test]
fn a_service_that_is_about_to_stop_is_not_ready_and_still_answers() {
    let service = Service::start(&TWO.replace("keep_after", "pre_stop = \"10m\"\nkeep_after"));
    let mut peer = Peer::of(&service, Way::Http);
    let page = |peer: &mut Peer, target: &str| {
        peer.send_bytes(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
        peer.reply()
    };
    assert_eq!(page(&mut peer, "/readyz").status, 200);
    service.signal(Signal::SIGTERM);
    let until = Instant::now() + PATIENCE;
    let reply = loop {
        let reply = page(&mut peer, "/readyz");
        if reply.status != 200 || Instant::now() > until {
            break reply;
        }
    };
    assert_eq!((reply.status, reply.field("Connection")), (503, None), "{reply:?}");
    assert_eq!(page(&mut peer, "/healthz").status, 200);
    assert_eq!(peer.call("echo", json!(1))["result"], 1);
    let mut other = Peer::of(&service, Way::Http);
    assert_eq!(page(&mut other, "/readyz").status, 503);
}
