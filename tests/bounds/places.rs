//! A service that holds as many connections as it may: who gives way to a new one, and what is answered where nobody does.

use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::time::Instant;

use crate::support::peer::{ALL, Peer, Reply, Way, post};
use crate::support::proc::{kill, kill_at_rest};
use crate::support::{Folder, PATIENCE, Service, Wire, await_asleep, code, framed, rig, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const POLITE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const GREEDY: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));
const NEW: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 4));

/// Nobody is refused for how long he waits.
const PATIENT: &str = "queue_wait = \"60s\"\n";

/// And no time makes room while a test waits.
const LONG: &str = "queue_wait = \"60s\"\n[timeouts]\nfirst_byte = \"10m\"\nrequest = \"10m\"\n";

/// Beyond `limits.max_connections`, in each worker.
const RESERVED: usize = 16;

/// One worker with room for so many.
fn room_for(connections: usize, more: &str) -> Service {
    Service::start(&format!("processes = 1\nthreads = 8\n[limits]\nmax_connections = {connections}\n{more}"))
}

fn page(peer: &mut Peer, target: &str) -> Reply {
    peer.send_bytes(format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n"));
    peer.reply()
}

/// A call that a handler runs, which takes a place.
fn runs(wire: &mut Wire) {
    assert_eq!(wire.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
}

/// What was sent has arrived, and the service has heard of it: an answer on its way holds a connection's place.
fn let_answers_arrive(wire: &mut Wire) {
    assert_eq!(wire.call("sleep", json!({ "ms": 300 }))["out"], "sleep");
}

/// As many connections on which a call runs, and a word to each of them that has arrived before that.
fn busy(service: &Service, own: IpAddr, count: usize) -> Vec<Wire> {
    let hold = || {
        let mut wire = Wire::connect_from(own, service.socket_address());
        wire.send(r#"{"in":"hang","id":1}"#);
        wire.send(r#"{"in":"unknown","id":2}"#);
        assert_eq!(code(&wire.receive()), -32601);
        wire
    };
    (0..count).map(|_| hold()).collect()
}

/// A flood of connections that say nothing kept everybody else out until `first_byte`, and those that idle for ten minutes.
#[test]
fn who_said_nothing_gives_way_first_and_then_the_longest_idle() {
    let service = Service::start(&format!(
        "listen = [\"127.0.0.1:0\", \"[::1]:0\", \"unix:places.sock\"]\n\
         processes = 1\nthreads = 2\n[limits]\nmax_connections = 4\n{PATIENT}"
    ));
    let call = |peer: &mut Peer| {
        assert_eq!(peer.call("sleep", json!({ "ms": 1 }))["out"], "sleep");
    };
    for listener in service.addresses() {
        let connect = || match listener.parse() {
            Ok(address) => Peer::connect(address, Way::Length),
            Err(_) => Peer::by_file(&service, "places.sock", Way::Length),
        };
        let mut begun = connect();
        begun.send_bytes(&framed(r#"{"in":"ping","params":2}"#)[..7]);
        let (mut spoken, mut silent) = (connect(), connect());
        call(&mut spoken);
        let mut later = connect();
        let mut first = connect();
        call(&mut first);
        assert!(silent.is_closed(), "the first that said nothing, at {listener}");
        let mut second = connect();
        call(&mut second);
        assert!(later.is_closed(), "the other one");
        // An answer on its way holds a connection's place too.
        assert_eq!(second.call("sleep", json!({ "ms": 300 }))["out"], "sleep");
        let mut third = connect();
        call(&mut third);
        assert!(spoken.is_closed(), "the longest idle");
        call(&mut first);
        begun.send_bytes(&framed(r#"{"in":"ping","params":2}"#)[7..]);
        assert_eq!(begun.receive()["result"], 2, "who has begun a message may end it");
        for mut peer in [begun, first, second, third] {
            peer.half_close();
            assert!(peer.is_closed());
        }
    }
    service.await_log("limits.max_connections is reached: an idle connection is closed for a new one");
}

#[test]
fn of_those_that_idle_the_address_with_most_gives_way_and_gets_no_place_of_others() {
    let service = room_for(6, PATIENT);
    let connect = |own| {
        let mut wire = Wire::connect_from(own, service.socket_address());
        runs(&mut wire);
        wire
    };
    let mut polite = connect(POLITE);
    let mut greedy: Vec<Wire> = (0..5).map(|_| connect(GREEDY)).collect();
    let_answers_arrive(greedy.last_mut().expect("some"));
    let mut new: Vec<Wire> = (0..2).map(|_| connect(NEW)).collect();
    let_answers_arrive(&mut new[1]);
    for mut wire in greedy.drain(..2) {
        assert!(wire.is_closed());
    }
    // Three are left of it, and it is one of these that makes room for another, again and again.
    for _ in 0..4 {
        let mut wire = connect(GREEDY);
        let_answers_arrive(&mut wire);
        assert!(greedy.remove(0).is_closed());
        greedy.push(wire);
    }
    for wire in [&mut polite].into_iter().chain(&mut new) {
        runs(wire);
    }
}

/// Each of them was left in the backlog, health checks among them.
#[test]
fn where_nobody_gives_way_health_checks_are_answered_and_calls_wait_for_a_place() {
    let service = room_for(3, PATIENT);
    let mut inside = busy(&service, POLITE, 2);
    inside.push(Wire::connect_from(POLITE, service.socket_address()));
    inside[2].send(r#"{"in":"sleep","id":1,"params":{"ms":700}}"#);
    inside[2].send(r#"{"in":"unknown","id":2}"#);
    assert_eq!(code(&inside[2].receive()), -32601);
    let mut outside = service.connect();
    outside.request("sleep", &json!({ "ms": 1 }));
    let mut check = Peer::of(&service, Way::Http);
    for target in ["/healthz", "/readyz"] {
        assert_eq!(page(&mut check, target).status, 200);
    }
    for way in ALL {
        assert_eq!(Peer::of(&service, way).call("ping", json!(way as u8))["result"], way as u8);
    }
    assert!(outside.has_nothing(), "its call waits");
    assert_eq!(inside[2].receive()["out"], "sleep");
    assert_eq!(outside.receive()["out"], "sleep", "it has the place of one that idles by now");
    assert!(inside[2].is_closed());
    assert_eq!(page(&mut check, "/readyz").status, 200);
}

#[test]
fn a_call_for_which_there_is_no_place_in_time_is_refused_in_its_own_words() {
    let service = room_for(3, "queue_wait = \"100ms\"\n");
    let mut inside = busy(&service, POLITE, 3);
    for way in ALL {
        let mut peer = Peer::of(&service, way);
        // What needs no place is answered as ever, before and beside.
        assert_eq!(peer.call("ping", json!(1))["result"], 1);
        match way {
            Way::Http => peer.send_bytes([&post("/sleep", 8, ""), r#"{"ms":1}"#].concat()),
            _ => peer.send(r#"{"in":"sleep","id":7,"params":{"ms":1}}"#),
        }
        let reply = peer.reply();
        assert_eq!(reply.code(), -32000, "{way:?}: {reply:?}");
        if way == Way::Http {
            assert_eq!((reply.status, reply.field("Retry-After")), (503, Some("1")), "{reply:?}");
            assert_eq!(reply.field("Connection"), Some("close"));
        }
        assert!(peer.is_closed(), "it makes room for a health check");
    }
    let mut batch = Peer::of(&service, Way::Stream);
    batch.send(
        r#"[{"jsonrpc":"2.0","id":1,"method":"sleep","params":{"ms":1}},{"jsonrpc":"2.0","method":"sleep"}]"#,
    );
    let answers = batch.receive();
    assert_eq!((answers.as_array().map(Vec::len), &answers[0]["error"]["code"]), (Some(1), &json!(-32000)));
    service.await_log(
        "limits.max_connections is reached and no connection idles: a call of a new one is refused",
    );
    for wire in &mut inside {
        wire.send(r#"{"in":"unknown","id":3}"#);
        assert_eq!(code(&wire.receive()), -32601, "who has a place is served");
    }
}

#[test]
fn whoever_fills_the_reserved_places_keeps_no_health_check_out() {
    let service = room_for(2, PATIENT);
    let _inside = busy(&service, POLITE, 2);
    let silent: Vec<Wire> = (0..3 * RESERVED).map(|_| service.connect()).collect();
    for n in 0..3 {
        // Calls that wait for a place, as many as there are reserved ones; and some that begin a message and don't end it.
        let mut waiting: Vec<Wire> = (0..RESERVED).map(|_| service.connect()).collect();
        for wire in &mut waiting {
            if n == 1 {
                wire.send_bytes(&[9]);
            } else {
                wire.request("sleep", &json!({ "ms": 1 }));
            }
        }
        let mut check = Peer::of(&service, Way::Http);
        assert_eq!(page(&mut check, "/readyz").status, 200);
    }
    drop(silent);
}

/// The moment to look at the door came while it was open, and was the last one.
#[test]
fn a_door_that_was_opened_before_it_was_looked_at_is_looked_at_when_it_is_shut_again() {
    let service = room_for(2, LONG);
    let mut inside = busy(&service, POLITE, 2);
    let mut silent: Vec<Wire> = (1..RESERVED).map(|_| service.connect()).collect();
    let is_in = |mut wire: Wire| {
        assert_eq!(wire.call("ping", json!(1))["result"], 1);
        wire
    };
    drop(is_in(service.connect()));
    let_answers_arrive(&mut inside[0]);
    silent.push(is_in(service.connect()));
    assert_eq!(page(&mut Peer::of(&service, Way::Http), "/readyz").status, 200);
}

/// Whoever took what he was answered, again and again or not at all, was left alone.
#[test]
fn who_goes_on_in_a_reserved_place_or_does_not_read_makes_room_for_another() {
    let service = Service::start(&format!(
        "listen = [\"127.0.0.1:0\", \"unix:places.sock\"]\n\
         processes = 1\nthreads = 8\n[limits]\nmax_connections = 2\n{LONG}"
    ));
    let _inside = busy(&service, POLITE, 2);
    let ping = json!({ "in": "ping", "params": "x".repeat(10_000) }).to_string();
    let mut holding: Vec<Peer> =
        (0..RESERVED).map(|_| Peer::by_file(&service, "places.sock", Way::Length)).collect();
    // More than a Unix socket takes, and less than has a worker stop reading.
    for _ in 0..100 {
        for peer in &mut holding {
            peer.send(&ping);
        }
    }
    assert_eq!(page(&mut Peer::of(&service, Way::Http), "/readyz").status, 200);
    drop(holding);

    let ping = framed(r#"{"in":"ping"}"#);
    let goes_on = |stream: &mut TcpStream| {
        stream.write_all(&ping).is_ok() && stream.read(&mut [0; 64]).is_ok_and(|read| read > 0)
    };
    let mut going_on: Vec<TcpStream> =
        (0..RESERVED).map(|_| TcpStream::connect(service.socket_address()).expect("it accepts")).collect();
    for stream in &mut going_on {
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        assert!(goes_on(stream));
    }
    let mut check = service.connect();
    check.request("ping", &json!(1));
    let begun = Instant::now();
    while check.has_nothing() {
        assert!(begun.elapsed() < PATIENCE, "somebody has ended");
        going_on.retain_mut(goes_on);
    }
    assert_eq!(check.receive()["result"], 1);
}

/// Two workers: whoever has room is left the connection, and where neither has, somebody gives way in one of them.
#[test]
fn nobody_gives_way_while_another_worker_has_room() {
    let service =
        Service::start(&format!("processes = 2\nthreads = 2\n[limits]\nmax_connections = 4\n{PATIENT}"));
    let mut wires: Vec<Wire> = Vec::new();
    for _ in 0..4 {
        let mut wire = service.connect();
        runs(&mut wire);
        wires.push(wire);
    }
    for wire in &mut wires {
        let_answers_arrive(wire);
    }
    for _ in 0..8 {
        let mut wire = service.connect();
        runs(&mut wire);
        // It has room for one more call, which is as good as any event.
        let_answers_arrive(&mut wire);
        let gone = wires.iter().filter(|wire| !wire.has_nothing()).count();
        assert_eq!(gone, 1, "one for each that came");
        wires.retain(Wire::has_nothing);
        wires.push(wire);
    }
    let mut check = Peer::of(&service, Way::Http);
    assert_eq!(page(&mut check, "/readyz").status, 200);
}

/// Whoever went on with a dead worker's connections had more than its part then, and closed some of them for new ones, far below
/// `limits.max_connections`.
#[test]
fn nobody_gives_way_while_a_worker_boots_whose_connections_another_has() {
    let folder = Folder::new();
    let how = folder.path().join("how");
    let mut program = rig();
    program.env("RIG_WORKER_START", format!("@{}", how.display()));
    let config = "processes = 2\nthreads = 2\n[limits]\nmax_connections = 20\n";
    let service = Service::start_with(program, &format!("{config}{PATIENT}"));
    let open = |count: usize| -> Vec<Wire> {
        let mut wires: Vec<Wire> = (0..count).map(|_| service.connect()).collect();
        wires.iter_mut().for_each(runs);
        wires
    };
    let mut wires = open(16);
    std::fs::write(&how, "hang").expect("the folder can be written to");
    send_signal(service.worker_pids()[0], Signal::SIGKILL);
    service.await_log("RIG_WORKER_START hangs");
    wires.extend(open(4));
    assert!(wires.iter().all(Wire::has_nothing), "somebody gave way: {}", service.log_so_far());
    for wire in &mut wires {
        let_answers_arrive(wire);
    }
    // And where it has none somebody does.
    runs(&mut service.connect());
    assert_eq!(wires.iter().filter(|wire| !wire.has_nothing()).count(), 1);
}

/// The part of a worker that booted was nobody's, and from its own part on a worker refused who came.
#[test]
fn a_worker_has_the_places_of_one_that_has_never_been_ready() {
    let folder = Folder::new();
    let how = folder.path().join("how");
    std::fs::write(&how, "hang").expect("the folder can be written to");
    let mut program = rig();
    program.env("RIG_WORKER_START", format!("@{}", how.display()));
    let config = "processes = 2\nthreads = 2\n[limits]\nmax_connections = 8\n";
    let mut service = Service::launch(program, &format!("{config}{PATIENT}"));
    service.await_listening();
    let booting = [service.await_log("RIG_WORKER_START hangs"), service.await_log("RIG_WORKER_START hangs")];
    std::fs::write(&how, "").expect("the folder can be written to");
    let pid = booting[0]["message"].as_str().and_then(|told| told.rsplit(' ').next()?.parse().ok());
    send_signal(pid.expect("its pid"), Signal::SIGKILL);
    service.await_log("worker ready");
    let mut wires: Vec<Wire> = (0..8).map(|_| service.connect()).collect();
    wires.iter_mut().for_each(runs);
    assert!(wires.iter().all(Wire::has_nothing), "somebody gave way: {}", service.log_so_far());
}

/// Calls waited for the room of a worker that takes nobody, and were refused.
#[test]
fn somebody_gives_way_where_the_worker_that_has_room_takes_nobody() {
    let mut program = rig();
    program.env("RIG_PRELOAD", "hang at exit");
    let config = "processes = 2\nthreads = 2\n[limits]\nmax_connections = 8\n";
    let service = Service::start_with(program, &format!("{config}{PATIENT}[timeouts]\nstuck = \"10m\""));
    let mut wires: Vec<(Value, Wire)> = Vec::new();
    for _ in 0..7 {
        let mut wire = service.connect();
        let pid = wire.call("tine.worker", json!({}))["result"]["pid"].clone();
        runs(&mut wire);
        wires.push((pid, wire));
    }
    let on = |pid: &Value| wires.iter().filter(|(other, _)| other == pid).count();
    let pid =
        wires.iter().map(|(pid, _)| pid).find(|pid| on(pid) == 3).expect("4 is one worker's part").clone();
    let (mut ends, mut wires): (Vec<_>, Vec<_>) = wires.into_iter().partition(|(other, _)| *other == pid);
    ends[0].1.request("crash", &json!({ "how": "exit" }));
    service.await_log("the exit hangs");
    for (_, wire) in &mut wires {
        let_answers_arrive(wire);
    }
    for gone in 1..=2 {
        let mut new = service.connect();
        runs(&mut new);
        assert_eq!(wires.iter().filter(|(_, wire)| !wire.has_nothing()).count(), gone);
        let_answers_arrive(&mut new);
        wires.push((Value::Null, new));
    }
}

/// It was given nothing of what the other one had been told while it booted, and closed what it went on with for new ones.
#[test]
fn nobody_gives_way_in_a_worker_whose_part_another_holds_that_is_stopped() {
    let config = "processes = 2\nthreads = 4\n[limits]\nmax_connections = 80\n";
    let service = Service::start(&format!("{config}{PATIENT}[timeouts]\nstuck = \"10m\""));
    let mut wires: Vec<Wire> = (0..10).map(|_| service.connect()).collect();
    wires.iter_mut().for_each(runs);
    let [stopped, dies] = service.worker_pids()[..] else { panic!("two workers") };
    send_signal(stopped, Signal::SIGSTOP);
    kill(dies);
    service.await_log("worker ready");
    let mut new: Vec<Wire> = (0..30).map(|_| service.connect()).collect();
    for wire in &mut new {
        wire.request("sleep", &json!({ "ms": 1 }));
    }
    for wire in &mut new {
        assert_eq!(wire.receive()["out"], "sleep");
    }
    assert!(wires.iter().all(Wire::has_nothing), "somebody gave way: {}", service.log_so_far());
    send_signal(stopped, Signal::SIGCONT);
}

/// One that had not heard yet that it may hold more than at its birth closed some for new ones.
#[test]
fn nobody_gives_way_while_a_worker_goes_on_with_what_another_had() {
    let config = "processes = 1\nthreads = 2\n[limits]\nmax_connections = 40\n";
    let service = Service::start(&format!("{config}{PATIENT}"));
    let mut wires: Vec<Wire> = Vec::new();
    for _ in 0..5 {
        wires.resize_with(30, || service.connect());
        wires.iter_mut().for_each(runs);
        send_signal(service.worker_pids()[0], Signal::SIGKILL);
        let mut new: Vec<Wire> = (0..6).map(|_| service.connect()).collect();
        new.iter_mut().for_each(runs);
        assert!(wires.iter().all(Wire::has_nothing), "somebody gave way: {}", service.log_so_far());
    }
}

/// What it had accepted and was too young to be kept counted for nobody, and the other one accepted as many again.
#[test]
fn whoever_is_let_go_to_a_worker_takes_no_place_that_others_have_there() {
    let config = "processes = 2\nthreads = 2\n[limits]\nmax_connections = 20\n";
    let service =
        Service::start(&format!("{config}{PATIENT}[timeouts]\nkeep_after = \"1h\"\nstuck = \"10m\""));
    let who = |wire: &mut Wire| wire.call("tine.worker", json!({}))["result"]["pid"].as_i64();
    let fill = |pid: i32| -> Vec<Wire> {
        let mut wires: Vec<Wire> = (0..10).map(|_| service.connect()).collect();
        assert!(wires.iter_mut().all(|wire| who(wire) == Some(pid.into())));
        wires
    };
    let [one, other] = service.worker_pids()[..] else { panic!("two workers") };
    send_signal(other, Signal::SIGSTOP);
    let mut kept = fill(one);
    send_signal(one, Signal::SIGSTOP);
    send_signal(other, Signal::SIGCONT);
    let young = fill(other);
    send_signal(one, Signal::SIGCONT);
    kept.iter_mut().for_each(runs);
    // As far as the supervisor knows the one has 10 and the other none.
    let begun = Instant::now();
    while kept.iter_mut().filter_map(who).filter(|pid| *pid == i64::from(other)).count() < 5 {
        assert!(begun.elapsed() < PATIENCE, "none was let go");
    }
    for _ in 0..5 {
        let mut new = service.connect();
        runs(&mut new);
        let_answers_arrive(&mut new);
        kept.push(new);
    }
    let closed = kept.iter().chain(&young).filter(|wire| !wire.has_nothing()).count();
    assert_eq!(closed, 5, "the service had 20");
}

/// A worker without a free thread leaves who comes to others, and one without a place too: neither took anybody.
#[test]
fn health_checks_are_answered_where_every_worker_has_neither_thread_nor_place() {
    let service =
        Service::start(&format!("processes = 2\nthreads = 1\n[limits]\nmax_connections = 4\n{PATIENT}"));
    let _inside = busy(&service, POLITE, 4);
    let calls: Vec<Wire> = (0..4 * RESERVED)
        .map(|_| {
            let mut wire = service.connect();
            wire.request("sleep", &json!({ "ms": 1 }));
            wire
        })
        .collect();
    for _ in 0..3 {
        assert_eq!(page(&mut Peer::of(&service, Way::Http), "/readyz").status, 200);
    }
    drop(calls);
}

/// What waits in a reserved place is lost to nobody when its worker ends.
#[test]
fn a_call_that_waits_for_a_place_is_answered_after_a_reload() {
    let service = Service::start(&format!(
        "processes = 1\nthreads = 8\n[limits]\nmax_connections = 2\n{PATIENT}[timeouts]\nkeep_after = \"0s\"\ndrain = \"2s\""
    ));
    let _inside = busy(&service, POLITE, 2);
    let mut outside = service.connect();
    outside.request("sleep", &json!({ "ms": 1 }));
    assert_eq!(page(&mut Peer::of(&service, Way::Http), "/readyz").status, 200);
    service.signal(Signal::SIGHUP);
    assert_eq!(outside.receive()["out"], "sleep");
}

/// Workers come back at once, however often they end.
const DEATHS: &str =
    "[quarantine]\ncrashes = 0\n[restart]\nmax_restarts = 0\nbackoff = \"1ms\"\nbackoff_max = \"10ms\"\n";

/// The one worker has looked at all that was sent before, and its round is over: the second word comes in another.
fn is_looked_at(service: &Service) {
    let mut check = service.connect();
    for _ in 0..2 {
        assert_eq!(check.call("ping", json!(1))["result"], 1);
    }
}

/// Calls that wait for a place, on connections that were accepted while handlers run, and so are kept.
fn waiting(service: &Service, count: usize, call: &str) -> Vec<Wire> {
    let mut wires: Vec<Wire> = (0..count).map(|_| service.connect()).collect();
    for wire in &mut wires {
        assert_eq!(wire.call("ping", json!(1))["result"], 1);
        wire.send(call);
    }
    wires
}

/// It was closed without a word: what had no place was not kept.
#[test]
fn a_call_that_waits_for_a_place_is_answered_when_its_worker_dies() {
    for by_call in [true, false] {
        let service = room_for(2, &format!("{PATIENT}{DEATHS}[timeouts]\nkeep_after = \"1h\""));
        for way in ALL {
            let mut inside = busy(&service, POLITE, 2);
            let [worker] = service.worker_pids()[..] else { panic!("one worker") };
            // They run by then.
            await_asleep(worker);
            let mut outside: Vec<Peer> = (0..RESERVED / 2).map(|_| Peer::of(&service, way)).collect();
            for peer in &mut outside {
                assert_eq!(peer.call("ping", json!(1))["result"], 1);
                peer.send(r#"{"in":"sleep","id":7,"params":{"ms":1}}"#);
            }
            if by_call {
                inside[0].send(r#"{"in":"crash","params":{"how":"segv"},"id":9}"#);
            } else {
                is_looked_at(&service);
                kill(worker);
            }
            for wire in &mut inside {
                assert_eq!(code(&wire.receive()), -32002);
            }
            for peer in &mut outside {
                assert_eq!(peer.receive()["out"], "sleep", "{way:?}");
            }
        }
    }
}

#[test]
fn a_call_that_gets_no_place_where_its_connection_goes_is_told_so() {
    for victim in 0..2 {
        let service = Service::start(&format!(
            "processes = 2\nthreads = 8\n{DEATHS}[limits]\nmax_connections = 4\nqueue_wait = \"2s\"\n"
        ));
        let mut inside = busy(&service, POLITE, 4);
        let mut outside = waiting(&service, RESERVED, r#"{"in":"sleep","id":1,"params":{"ms":1}}"#);
        kill(service.worker_pids()[victim]);
        for wire in &mut outside {
            let answer = wire.receive();
            assert!(answer["out"] == "sleep" || code(&answer) == -32000, "{answer}");
        }
        for wire in &mut inside {
            wire.send(r#"{"in":"unknown","id":3}"#);
        }
        for mut wire in inside {
            let answer = wire.receive();
            assert!([-32601, -32002].contains(&code(&answer)), "{answer}");
        }
    }
}

/// The places of connections that were handed on were taken by those who waited, and were none of the service's.
#[test]
fn a_death_lets_nobody_in_beyond_those_that_may_be() {
    let service =
        Service::start(&format!("processes = 2\nthreads = 2\n{DEATHS}[limits]\nmax_connections = 8\n{LONG}"));
    let hold = |_| {
        let mut wire = service.connect();
        runs(&mut wire);
        // Who has begun a message does not give way.
        wire.send_bytes(&framed(r#"{"in":"sleep","params":{"ms":1},"id":1}"#)[..6]);
        wire
    };
    let inside: Vec<Wire> = (0..8).map(hold).collect();
    // All of them in one worker leave reserved places for health checks.
    let outside = waiting(&service, RESERVED / 2, r#"{"in":"sleep","id":1,"params":{"ms":1}}"#);
    for victim in 0..2 {
        kill(service.worker_pids()[victim]);
        service.await_log("worker ready");
        service.await_log("a worker releases connections to others");
        for _ in 0..50 {
            assert_eq!(page(&mut Peer::of(&service, Way::Http), "/healthz").status, 200);
        }
        assert!(inside.iter().all(Wire::has_nothing), "they are inside, and say nothing");
        assert!(outside.iter().all(Wire::has_nothing), "they are outside");
    }
}

/// With each death as many would be let in as there are reserved places.
#[test]
fn nobody_has_a_place_because_the_worker_died_in_which_he_waited_for_one() {
    let service = room_for(2, &format!("{LONG}{DEATHS}"));
    let mut inside = busy(&service, POLITE, 2);
    let mut outside = waiting(&service, RESERVED - 1, r#"{"in":"hang","id":1}"#);
    for wire in &mut outside {
        // Answered once the call before it runs.
        wire.send(r#"{"in":"unknown","id":2}"#);
    }
    for round in 0..3 {
        is_looked_at(&service);
        // And the calls inside run.
        kill_at_rest(service.worker_pids()[0]);
        for mut wire in inside.drain(..) {
            assert_eq!(code(&wire.receive()), -32002);
        }
        // They idle, and two of those that wait have their places.
        let until = Instant::now() + PATIENCE;
        while inside.len() < 2 {
            assert!(Instant::now() < until, "two are let in");
            let mut let_in = outside.extract_if(.., |wire| !wire.has_nothing()).collect();
            inside.append(&mut let_in);
        }
        assert_eq!(page(&mut Peer::of(&service, Way::Http), "/readyz").status, 200);
        assert_eq!(inside.len(), 2, "round {round}");
        assert!(outside.iter().all(Wire::has_nothing), "round {round}");
        for wire in &mut inside {
            assert_eq!(code(&wire.receive()), -32601);
        }
    }
}

/// The first listener took every place that became free.
#[test]
fn a_flood_at_one_listener_keeps_nobody_out_at_another() {
    let service = Service::start(&format!(
        "listen = [\"127.0.0.1:0\", \"unix:places.sock\"]\n\
         processes = 1\nthreads = 2\n[limits]\nmax_connections = 2\n{PATIENT}"
    ));
    let address = service.socket_address();
    // They are let in and closed, 16 at a time; the last of them would be answered at once.
    let _flood: Vec<Wire> = (0..2_000).map(|_| Wire::connect(address)).collect();
    let mut last = Wire::connect(address);
    last.send(r#"{"in":"ping","id":1}"#);
    for round in 0..10 {
        let mut check = Peer::by_file(&service, "places.sock", Way::Http);
        assert_eq!(page(&mut check, "/healthz").status, 200);
        assert!(last.has_nothing(), "there is no flood any more in round {round}");
    }
}
