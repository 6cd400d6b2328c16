//! Time that has passed on a connection has passed for every worker that goes on with it: workers end again and again here, sooner
//! than the time is up that a connection has, and it must be up nonetheless. What was said to a client once stays said.

use std::os::fd::AsFd;
use std::time::Instant;

use crate::support;
use crate::support::kept::Kept;
use crate::support::peer::{Peer, Way, post};
use crate::support::proc::{open_descriptors, timed};
use crate::support::{PATIENCE, at_once, await_gone, send_signal};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

const CONFIG: &str =
    "processes = 1\nthreads = 1\n[restart]\nmax_restarts = 0\n[timeouts]\nkeep_after = \"0s\"\n";

/// The ways in which workers end.
const ENDS: [Signal; 2] = [Signal::SIGKILL, Signal::SIGTERM];

/// Ends the worker that there is, and waits for the next.
fn end_worker(kept: &Kept, how: Signal) {
    let (service, mark) = (&kept.service, kept.service.mark());
    let worker = service.workers()[&0];
    send_signal(worker, how);
    service.await_refill(mark, 0);
    assert!(await_gone(worker, PATIENCE), "worker {worker} stays");
}

/// Ends one worker after the other until it is over, and at least one.
fn end_workers_until(kept: &Kept, how: Signal, is_over: impl Fn() -> bool) {
    let until = Instant::now() + PATIENCE;
    end_worker(kept, how);
    while !is_over() {
        assert!(Instant::now() < until, "its time begins anew with each worker");
        end_worker(kept, how);
    }
}

/// Something can be read from the connection, or its end.
fn has_something(peer: &Peer) -> bool {
    let mut readable = [PollFd::new(peer.stream.as_fd(), PollFlags::POLLIN)];
    poll(&mut readable, PollTimeout::ZERO).is_ok_and(|ready| ready > 0)
}

fn connected(kept: &Kept, way: Way) -> Peer {
    let mut peer = kept.connect_to_speak(way);
    peer.worker();
    peer
}

#[test]
fn half_a_message_has_timeouts_message_whoever_reads_it() {
    at_once(ENDS, |how| {
        let kept = Kept::start(&format!("{CONFIG}message = \"1s\""));
        let mut peer = connected(&kept, Way::Length);
        peer.send_bytes(&Way::Length.framed(r#"{"in":"ping"}"#)[..9]);
        end_workers_until(&kept, how, || has_something(&peer));
        let answer = peer.receive();
        assert_eq!(support::code(&answer), -32600, "{answer}");
        assert!(answer.to_string().contains("timeouts.message"), "{answer}");
    });
}

#[test]
fn an_idle_connection_has_timeouts_idle_whoever_has_it() {
    at_once(ENDS, |how| {
        let kept = Kept::start(&format!("{CONFIG}idle = \"1s\""));
        let mut peer = connected(&kept, Way::Stream);
        end_workers_until(&kept, how, || has_something(&peer));
        assert!(peer.is_closed());
    });
}

#[test]
fn a_connection_that_was_closed_lingers_no_longer_for_having_many_workers() {
    at_once(ENDS, |how| {
        let kept = Kept::start(CONFIG);
        let mut peer = connected(&kept, Way::Http);
        peer.send_bytes("GET / HTTP/7.5\r\n\r\n");
        assert_eq!(peer.reply().status, 505);
        // The client keeps its side open and sends nothing.
        assert!(peer.is_closed());
        end_workers_until(&kept, how, || open_descriptors(kept.service.pid()) == kept.without);
    });
}

/// Time does not run faster either: a worker that goes on with a connection does not take it for older than it is.
#[test]
fn a_connection_that_was_used_just_now_is_not_idle_for_the_next_worker() {
    let kept = Kept::start(&format!("{CONFIG}idle = \"2s\""));
    let mut peer = connected(&kept, Way::Length);
    let ((), took) = timed(|| {
        end_worker(&kept, Signal::SIGKILL);
        peer.worker();
    });
    let ((), idle) = timed(|| assert!(peer.is_closed()));
    assert!(idle.as_millis() > 1_900, "{idle:?}, {took:?} after its worker's end");
}

#[test]
fn a_client_is_told_to_continue_once() {
    at_once([Signal::SIGKILL, Signal::SIGTERM, Signal::SIGHUP], |how| {
        let kept = Kept::start(CONFIG);
        let mut peer = connected(&kept, Way::Http);
        for _ in 0..2 {
            peer.send_bytes(post("/echo", 5, "Expect: 100-continue\r\n"));
            assert_eq!(peer.reply().status, 100);
            for _ in 0..2 {
                if how == Signal::SIGHUP {
                    let mark = kept.service.mark();
                    kept.service.signal(how);
                    kept.service.await_text(mark, "worker ended");
                } else {
                    end_worker(&kept, how);
                }
            }
            peer.send_bytes("\"abc\"");
            let reply = peer.reply();
            assert_eq!((reply.status, &*reply.body), (200, "\"abc\""), "{how}");
        }
    });
}
