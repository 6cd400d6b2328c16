//! `tine::Client` against the real program: many threads over one connection, restarts, reloads, deadlines.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use crate::support::{Folder, Over, Service, await_so, rig};
use nix::sys::signal::Signal;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tine::{Client, ClientError};

fn client(service: &Service) -> Client {
    Client::connect(service.address()).expect("the service listens")
}

/// Who serves the connection.
fn worker(client: &Client) -> Value {
    client.call("tine.worker", &()).expect("a worker")
}

#[test]
fn sixteen_threads_have_each_its_own_answers_over_one_connection() {
    let service = Service::start("processes = 2\nthreads = 4");
    let client = client(&service);
    let before = worker(&client)["pid"].clone();
    thread::scope(|scope| {
        for thread in 0..16_u32 {
            let client = &client;
            scope.spawn(move || {
                for n in 0..1_000_u32 {
                    // Some are long enough to arrive in pieces, and some slow enough to be overtaken.
                    let params = json!([thread, n, "x".repeat(if n % 100 == 7 { 50_000 } else { 10 })]);
                    let echoed: Value = client.call("echo", &params).expect("an echo");
                    assert_eq!(echoed, params);
                    if n % 250 == 0 {
                        client.call::<Value>("sleep", &json!({ "ms": 5 })).expect("it wakes");
                    }
                }
            });
        }
    });
    assert_eq!(worker(&client)["pid"], before, "the connection was another one in between");
}

#[test]
fn a_batch_larger_than_what_runs_at_once_comes_back_whole_and_in_order() {
    let service = Service::start("processes = 1\nthreads = 2\n[limits]\nin_flight_per_connection = 4");
    let client = client(&service);
    let batch = (0..500_u32).fold(client.batch(), |batch, n| batch.call("echo", &n));
    let numbers: Vec<u32> = batch.send().into_iter().collect::<Result<_, _>>().expect("500 echoes");
    assert_eq!(numbers, (0..500).collect::<Vec<_>>());
}

#[test]
fn a_large_batch_with_large_answers_does_not_stand_still() {
    let service = Service::start("processes = 1\nthreads = 2\n[limits]\noutput = \"256KiB\"");
    let client = client(&service);
    let params = "x".repeat(500_000);
    let batch = (0..24).fold(client.batch(), |batch, _| batch.call("echo", &params));
    for result in batch.send::<String>() {
        assert_eq!(result.expect("an echo").len(), params.len());
    }
}

#[test]
fn the_servers_own_word_about_a_deadline_is_preferred_and_the_connection_goes_on() {
    let service = Service::start("processes = 1\nthreads = 2");
    let client = client(&service);
    let hasty = client.clone().timeout(Duration::from_millis(50));
    assert!(matches!(hasty.call::<()>("hang", &()), Err(ClientError::Remote(error)) if error.code == -32001));
    assert_eq!(client.call::<u32>("echo", &7).expect("an echo"), 7);
}

#[test]
fn a_restart_between_calls_costs_no_call() {
    let folder = Folder::new();
    let listen = format!("unix:{}", folder.path().join("here.sock").display());
    let mut service = Service::start_in(Folder::new(), rig(), &["--listen", &listen]);
    let client = client(&service);
    assert_eq!(client.call::<u32>("echo", &1).expect("an echo"), 1);
    for n in 0..2_u32 {
        assert_eq!(service.stop(), Some(0));
        assert!(matches!(client.call::<u32>("echo", &n), Err(ClientError::NoServer { .. })));
        service = Service::start_in(Folder::new(), rig(), &["--listen", &listen]);
        thread::scope(|scope| {
            for n in 0..8_u32 {
                let client = &client;
                scope.spawn(move || assert_eq!(client.call::<u32>("echo", &n).expect("an echo"), n));
            }
        });
    }
}

#[test]
fn calls_on_their_way_when_the_service_is_killed_learn_that_they_may_have_run() {
    let service = Service::start("processes = 1\nthreads = 4");
    let client = client(&service);
    let file = service.folder().join("running");
    let line = format!("echo >>{}; exec sleep 600", file.display());
    thread::scope(|scope| {
        let calls: Vec<_> =
            (0..4).map(|_| scope.spawn(|| client.call::<Value>("shell", &json!({ "line": line })))).collect();
        await_so("all run", || std::fs::read(&file).is_ok_and(|told| told.len() == 4));
        service.signal(Signal::SIGQUIT);
        for call in calls {
            let result = call.join().expect("no panic");
            // Its death may be answered before the connection ends.
            assert!(
                matches!(&result, Err(ClientError::Closed))
                    || matches!(&result, Err(ClientError::Remote(error)) if error.code == -32002),
                "{result:?}"
            );
        }
    });
    assert!(matches!(client.call::<u32>("echo", &7), Err(ClientError::NoServer { .. })));
}

#[test]
fn a_reload_is_not_noticed_by_callers() {
    let service = Service::start("processes = 1\nthreads = 4");
    let client = client(&service);
    let generation = |client: &Client| worker(client)["generation"].as_u64();
    assert_eq!(generation(&client), Some(1));
    let (over, calls) = (Over::default(), AtomicU32::new(0));
    thread::scope(|scope| {
        let _told = over.at_the_end();
        for thread in 0..4_u32 {
            let (client, over, calls) = (&client, &over, &calls);
            scope.spawn(move || {
                while !over.is_so() {
                    assert_eq!(client.call::<u32>("echo", &thread).expect("an echo"), thread);
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        service.signal(Signal::SIGHUP);
        service.await_log("reloaded");
        await_so("the next generation answers", || generation(&client) != Some(1));
        over.say();
    });
    assert!(calls.into_inner() > 4);
    assert_eq!(generation(&client), Some(2));
}

#[test]
fn calls_that_are_given_up_on_all_sides_disturb_no_other() {
    let service = Service::start("processes = 2\nthreads = 4");
    let client = client(&service);
    thread::scope(|scope| {
        for thread in 0..24_u32 {
            let client = &client;
            scope.spawn(move || {
                let hasty = client.clone().timeout(Duration::from_millis(2));
                for n in 0..60_u32 {
                    match (thread + n) % 4 {
                        // The server's word, the client's own, or an answer just in time.
                        0 => drop(hasty.call::<Value>("sleep", &json!({ "ms": 2 }))),
                        1 => {
                            let batch = client.batch().call("echo", &n).call("echo", &thread);
                            let both: Vec<u32> =
                                batch.send().into_iter().collect::<Result<_, _>>().expect("two echoes");
                            assert_eq!(both, [n, thread]);
                        }
                        _ => assert_eq!(client.call::<u32>("echo", &n).expect("an echo"), n),
                    }
                }
            });
        }
    });
}

#[test]
fn a_call_that_is_too_large_is_told_so_among_others() {
    let service = Service::start("processes = 1\nthreads = 4\n[limits]\nmax_message = \"64KiB\"");
    let client = client(&service);
    thread::scope(|scope| {
        let beside: Vec<_> =
            (0..3).map(|_| scope.spawn(|| client.call::<Value>("sleep", &json!({ "ms": 100 })))).collect();
        let large = client.call::<String>("echo", &"x".repeat(100_000));
        assert!(matches!(&large, Err(ClientError::Remote(error)) if error.code == -32003), "{large:?}");
        for call in beside {
            let result = call.join().expect("no panic");
            // What came before it is answered, what came after it was never read.
            assert!(matches!(result, Ok(_) | Err(ClientError::Closed)), "{result:?}");
        }
    });
    assert_eq!(client.call::<u32>("echo", &7).expect("an echo"), 7);
}

#[test]
fn a_batch_that_is_refused_costs_no_call_beside_it_and_is_tried_again() {
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nqueue = 8\nqueue_wait = \"20ms\"");
    let client = client(&service).json_rpc();
    client.notify("sleep", &json!({ "ms": 1 })).expect("the service listens");
    thread::scope(|scope| {
        // Refused while the other has the only thread.
        let patient = client.clone().retries(10_000);
        let beside = scope.spawn({
            let patient = patient.clone();
            move || patient.call::<Value>("sleep", &json!({ "ms": 300 }))
        });
        // By position: JSON-RPC has no other params than arrays and objects.
        let batch = patient.batch().call("echo", &[1]).call("echo", &[2]);
        let both: Vec<[u32; 1]> = batch.send().into_iter().collect::<Result<_, _>>().expect("two echoes");
        assert_eq!(both, [[1], [2]]);
        // More than the queue holds are not taken at all.
        let many = (0..9_u32).fold(patient.batch(), |batch, n| batch.call("echo", &n));
        for result in many.send_raw() {
            assert!(matches!(&result, Err(ClientError::Remote(error)) if error.code == -32600), "{result:?}");
        }
        beside.join().expect("no panic").expect("it wakes");
    });
}

/// An error that names no call used to end the connection for all, and dropping it would leave its caller waiting for ever.
#[test]
fn a_call_that_the_server_cannot_read_is_told_so_among_others() {
    let service = Service::start("processes = 1\nthreads = 4");
    let client = client(&service);
    let raw = |json: String| RawValue::from_string(json).expect("JSON as far as it is looked at");
    let too_deep = raw(format!("{}{}", "[".repeat(128), "]".repeat(128)));
    let half_a_pair = raw(r#""\ud83d""#.to_owned());
    thread::scope(|scope| {
        let beside = scope.spawn(|| client.call::<Value>("sleep", &json!({ "ms": 100 })));
        client.notify("echo", &too_deep).expect("the service listens");
        client.notify("echo", &half_a_pair).expect("the service listens");
        let unread = client.call_raw("echo", Some(&too_deep));
        assert!(
            matches!(&unread, Err(ClientError::Remote(error)) if error.code == -32700)
                || matches!(&unread, Err(ClientError::Protocol(_))),
            "{unread:?}"
        );
        let no_text = client.call_raw("echo", Some(&half_a_pair));
        assert!(matches!(&no_text, Err(ClientError::Remote(error)) if error.code == -32602), "{no_text:?}");
        beside.join().expect("no panic").expect("it wakes");
    });
}
