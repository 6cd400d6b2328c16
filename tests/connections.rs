//! A connection belongs to the service: what plain clients, which never reconnect, see of a worker's end.

mod support;

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::proc::{Process, open_descriptors, pid_in, worker_pid};
use support::{PATIENCE, Service, Wire, framed, send_signal};

/// Two workers whose connections are kept from the start.
const TWO: &str = "processes = 2\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"";
const ONE: &str = "processes = 1\nthreads = 2\n[timeouts]\nkeep_after = \"0s\"";

/// A service, and how many connections the supervisor keeps: what it has open beyond what it began with.
struct Kept {
    service: Service,
    without: usize,
}

impl Kept {
    fn start(config: &str) -> Self {
        let service = Service::start(config);
        // What a fork leaves open is closed with the message that reports its end.
        let without = open_descriptors(service.pid());
        Self { service, without }
    }

    /// Waits until the supervisor keeps as many connections.
    fn await_kept(&self, count: usize) {
        let until = Instant::now() + PATIENCE;
        while open_descriptors(self.service.pid()) != self.without + count {
            assert!(
                Instant::now() < until,
                "{} descriptors are open, expected {} and {count} connections; log:\n{}",
                open_descriptors(self.service.pid()),
                self.without,
                self.service.log_so_far()
            );
            std::thread::yield_now();
        }
    }

    fn connect(&self, count: usize) -> Vec<Wire> {
        let wires = (0..count).map(|_| self.service.connect()).collect();
        self.await_kept(count);
        wires
    }

    fn kill(&self, pid: i32) {
        let process = Process::of(pid);
        process.kill();
        process.await_end();
    }
}

fn crashed(answer: &Value, method: &str, cause: &str) {
    assert_eq!(answer["out"], "error", "{answer}");
    assert_eq!(answer["result"]["code"], -32002, "{answer}");
    assert_eq!(answer["result"]["data"], json!({ "method": method, "cause": cause }), "{answer}");
}

#[test]
fn connections_of_a_killed_worker_go_on_and_only_running_calls_fail() {
    let kept = Kept::start(TWO);
    let mut wires = kept.connect(16);
    let pid = worker_pid(&mut wires[0]);
    let mut lost = Vec::new();
    for (index, wire) in wires.iter_mut().enumerate() {
        if worker_pid(wire) == pid && lost.len() < 2 {
            wire.send(&json!({ "in": "hang", "params": null, "id": index }).to_string());
            lost.push(index);
        }
    }
    kept.kill(pid);
    for (index, wire) in wires.iter_mut().enumerate() {
        if lost.contains(&index) {
            let answer = wire.receive();
            crashed(&answer, "hang", "SIGKILL");
            assert_eq!(answer["id"], index);
        }
        assert_eq!(wire.call("echo", json!(index))["result"], index);
        assert_ne!(worker_pid(wire), pid);
    }
}
