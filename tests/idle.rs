//! Connections that send nothing: what thousands of them cost, and how many there may be.

mod support;

use std::io::Write;
use std::net::TcpStream;
use std::process::Command;

use serde_json::json;
use support::measure::{
    assert_rests, descriptor_limits, descriptors, private_memory, raise_descriptor_limit, threads,
};
use support::{Service, Wire, await_so, rig};

/// Descriptors of this test besides its idle connections.
const OWN: usize = 200;

/// As many as the issue asks for, or as the machine allows.
fn crowd() -> usize {
    const WANTED: usize = 10_000;
    let allowed = usize::try_from(raise_descriptor_limit()).unwrap_or(usize::MAX) - OWN;
    if allowed < WANTED {
        // Past the capture of the test harness: whoever runs this must see it.
        let _ = writeln!(
            std::io::stderr(),
            "tests/idle.rs: the hard descriptor limit allows {allowed} connections instead of {WANTED}"
        );
    }
    WANTED.min(allowed)
}

#[test]
fn ten_thousand_silent_connections_cost_one_thread_nothing_but_a_little_memory() {
    let count = crowd();
    let service = Service::start("processes = 1\nthreads = 1\n[limits]\nmax_connections = 12000");
    let [pid] = service.worker_pids()[..] else { panic!("one worker") };
    let mut probe = service.connect();
    assert_eq!(probe.call("ping", json!(0))["result"], 0);
    let (open_before, memory_before) = (descriptors(pid), private_memory(pid));

    let address = service.socket_address();
    let silent: Vec<TcpStream> =
        (0..count).map(|_| TcpStream::connect(address).expect("the backlog has room")).collect();
    // Each answer is a turn of the poller, in which it accepts what has arrived.
    await_so("all are accepted", || {
        assert_eq!(probe.call("ping", json!(1))["result"], 1);
        descriptors(pid) >= open_before + count
    });

    assert_eq!(threads(pid), 3, "the poller, the watch and the one thread");
    let each = (private_memory(pid) - memory_before) / count;
    let _ = writeln!(std::io::stderr(), "{count} silent connections: {each} bytes of private memory each");
    assert!(each < 2048, "{each} bytes for each silent connection");
    assert_eq!(service.call("ping", json!("beside them"))["result"], "beside them");
    assert_rests(&[pid, service.pid()], || drop(probe.call("sleep", json!({ "ms": 300 }))));

    for stream in silent {
        Wire { stream }.reset();
    }
    await_so("all are closed", || {
        assert_eq!(probe.call("ping", json!(2))["result"], 2);
        descriptors(pid) <= open_before
    });
}

#[test]
fn every_process_of_the_service_has_the_hard_descriptor_limit() {
    let mut low = Command::new("sh");
    low.args(["-c", "ulimit -Sn 200; exec \"$0\" \"$@\""]).arg(rig().get_program());
    let service = Service::start_with(low, "processes = 1\nthreads = 1");
    for pid in [service.pid(), service.worker_pids()[0]] {
        let (soft, hard) = descriptor_limits(pid);
        assert!(soft > 200, "the soft limit was raised, from 200");
        assert_eq!(soft, hard);
    }
}

#[test]
fn a_low_hard_limit_lowers_max_connections_and_the_log_says_so() {
    let mut low = Command::new("sh");
    low.args(["-c", "ulimit -n 100; exec \"$0\" \"$@\""]).arg(rig().get_program());
    let service = Service::launch_and_listen(low, "processes = 1\nthreads = 1");
    let warning = service.await_log("limits.max_connections is lowered from 10000 to ");
    assert_eq!(warning["descriptors"], 100);
    let lowered: usize = warning["message"]
        .as_str()
        .and_then(|text| text.split("10000 to ").nth(1)?.split(':').next()?.parse().ok())
        .expect("a number");
    service.await_log("worker ready");
    // More clients than may be in: each takes the place of the one that has been idle for longest, and nobody runs out of
    // descriptors.
    let mut inside: Vec<Wire> = Vec::new();
    let mut come_in = || {
        let mut wire = service.connect();
        assert_eq!(wire.call("ping", json!(inside.len()))["result"], inside.len());
        inside.push(wire);
        inside[0].has_nothing()
    };
    for _ in 0..3 * lowered {
        come_in();
    }
    // One whose answer was just on its way when all were looked at is passed over that time.
    await_so("the first gives way", || !come_in());
    assert!(inside[0].is_closed());
}
