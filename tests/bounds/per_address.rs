//! `limits.per_address`: how many connections a client may have in the whole service, whatever becomes of its workers.

use std::fs::OpenOptions;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Instant;

use crate::support::peer::{Peer, Way};
use crate::support::proc::{copy_for_everyone, kill};
use crate::support::{Folder, PATIENCE, Service, Wire, await_gone, rig};
use nix::sys::signal::Signal;
use serde_json::json;

const ONE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
const OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3));

/// Two workers, and so many connections for each address.
fn service(most: usize, more: &str) -> Service {
    Service::start(&format!("{more}processes = 2\nthreads = 2\n[limits]\nper_address = {most}"))
}

/// A connection that is served. None where it was closed.
fn served(own: IpAddr, address: SocketAddr) -> Option<Wire> {
    let mut wire = Wire::connect_from(own, address);
    wire.exchange(r#"{"in":"ping","params":1}"#).map(|_| wire)
}

/// Tries until it is let in: whoever has just been closed is known to be by its worker a moment later.
fn let_in(own: IpAddr, address: SocketAddr) -> Wire {
    let until = Instant::now() + PATIENCE;
    loop {
        if let Some(wire) = served(own, address) {
            return wire;
        }
        assert!(Instant::now() < until, "it is let in again");
    }
}

fn fill(own: IpAddr, service: &Service, most: usize) -> Vec<Wire> {
    let wires: Vec<Wire> = (0..most).map(|_| let_in(own, service.socket_address())).collect();
    assert!(served(own, service.socket_address()).is_none(), "it has {most}");
    wires
}

#[test]
fn a_client_has_as_many_connections_as_it_may_and_one_more_when_one_has_ended() {
    let listeners = "listen = [\"127.0.0.1:0\", \"[::1]:0\", \"unix:many.sock\"]\n";
    let service = service(5, listeners);
    let mut wires = fill(ONE, &service, 5);
    // Others are not touched by that: other addresses, IPv6, and Unix sockets, where nobody is limited.
    let others = fill(OTHER, &service, 5);
    let v6: SocketAddr = service.addresses()[1].parse().expect("an address");
    let by_v6: Vec<Wire> = (0..5).map(|_| let_in("::1".parse().expect("v6"), v6)).collect();
    assert!(served("::1".parse().expect("v6"), v6).is_none());
    let by_file: Vec<Peer> = (0..20)
        .map(|_| {
            let mut peer = Peer::by_file(&service, "many.sock", Way::Length);
            assert_eq!(peer.call("ping", json!(1))["result"], 1);
            peer
        })
        .collect();
    let line = service.await_log("an address has limits.per_address connections (5); another one was closed");
    assert!(line["peer"].as_str().is_some_and(|peer| peer.starts_with("127.0.0.2:")), "{line}");
    for _ in 0..10 {
        wires.remove(0);
        wires.push(let_in(ONE, service.socket_address()));
        assert!(served(ONE, service.socket_address()).is_none());
    }
    for wire in &mut wires {
        assert_eq!(wire.call("ping", json!(1))["result"], 1, "who is in stays in");
    }
    drop((others, by_v6, by_file));
}

/// What a worker has counted went with it, or stayed for ever.
#[test]
fn killed_workers_take_nothing_of_the_count_and_leave_nothing_behind() {
    let service = service(6, "");
    for round in 0..6 {
        let mut wires = fill(ONE, &service, 6);
        for wire in &mut wires {
            // A handler has run on it, so that it is kept.
            assert_eq!(wire.call("sleep", json!({ "ms": 0 }))["out"], "sleep");
        }
        // One of them, or all at once.
        let dies = if round % 3 == 2 { usize::MAX } else { 1 };
        for pid in service.worker_pids().into_iter().take(dies) {
            kill(pid);
        }
        // While they are on their way from one worker to another, and after that.
        for _ in 0..30 {
            assert!(served(ONE, service.socket_address()).is_none(), "a seventh, in round {round}");
        }
        for wire in &mut wires {
            assert_eq!(wire.call("ping", json!(round))["result"], round);
        }
        assert!(served(ONE, service.socket_address()).is_none());
        drop(wires);
    }
    fill(ONE, &service, 6);
}

#[test]
fn a_reload_turns_it_on_and_off_and_keeps_the_count() {
    let service = service(0, "");
    let config = service.folder().join("config.toml");
    let before = std::fs::read_to_string(&config).expect("a file");
    let reload = |most: usize| {
        let (mark, workers) = (service.mark(), service.worker_pids());
        std::fs::write(&config, before.replace("per_address = 0", &format!("per_address = {most}")))
            .expect("a file");
        service.signal(Signal::SIGHUP);
        service.await_text(mark, "reloaded");
        assert!(workers.into_iter().all(|pid| await_gone(pid, PATIENCE)), "what they had is others'");
    };
    let mut wires: Vec<Wire> = (0..8).map(|_| let_in(ONE, service.socket_address())).collect();
    for wire in &mut wires {
        assert_eq!(wire.call("sleep", json!({ "ms": 0 }))["out"], "sleep");
    }
    reload(4);
    for wire in &mut wires {
        assert_eq!(wire.call("sleep", json!({ "ms": 0 }))["out"], "sleep", "nobody is thrown out");
    }
    assert!(served(ONE, service.socket_address()).is_none());
    wires.truncate(3);
    let four = let_in(ONE, service.socket_address());
    assert!(served(ONE, service.socket_address()).is_none());
    reload(0);
    let more: Vec<Wire> = (0..8).map(|_| let_in(ONE, service.socket_address())).collect();
    drop((four, more));
}

/// The supervisor becomes another program; the counts go along.
#[test]
fn a_new_program_in_the_supervisors_place_keeps_the_count() {
    let folder = Folder::new();
    let copy = copy_for_everyone(&rig(), folder.path());
    let program = folder.path().join("program");
    let service = Service::start_with(copy, "processes = 2\nthreads = 2\n[limits]\nper_address = 4");
    let mut wires = fill(ONE, &service, 4);
    for wire in &mut wires {
        assert_eq!(wire.call("sleep", json!({ "ms": 0 }))["out"], "sleep");
    }
    let next = program.with_extension("next");
    std::fs::copy(&program, &next).expect("a copy");
    std::io::Write::write_all(&mut OpenOptions::new().append(true).open(&next).expect("a file"), b"\n")
        .expect("a byte at its end");
    std::fs::rename(&next, &program).expect("in its place");
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "the supervisor runs the new program");
    assert!(served(ONE, service.socket_address()).is_none());
    for (_, pid) in service.adopted_workers() {
        kill(pid);
    }
    assert!(served(ONE, service.socket_address()).is_none());
    for wire in &mut wires {
        assert_eq!(wire.call("ping", json!(1))["result"], 1);
    }
    drop(wires);
    fill(ONE, &service, 4);
}
