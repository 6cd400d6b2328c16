//! The kernel bounds how many descriptors of a user are under way from one process to another, for those that are not root's.

mod support;

use std::io::IoSlice;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::process::Command;

use nix::sys::socket::{ControlMessage, MsgFlags, sendmsg};
use nix::unistd::geteuid;
use serde_json::json;
use support::measure::raise_descriptor_limit;
use support::proc::after_setup;
use support::{Service, await_asleep, rig};

/// Descriptors that one message may carry.
const MOST_IN_MESSAGE: usize = 253;

/// More descriptors than `limit` that are under way, as long as this pair is there.
fn under_way(limit: usize) -> (UnixStream, UnixStream) {
    raise_descriptor_limit();
    let pair = UnixStream::pair().expect("two sockets");
    let descriptors = [pair.1.as_raw_fd(); MOST_IN_MESSAGE];
    for _ in 0..=limit / MOST_IN_MESSAGE {
        let message = [ControlMessage::ScmRights(&descriptors)];
        sendmsg::<()>(pair.0.as_raw_fd(), &[IoSlice::new(b"x")], &message, MsgFlags::empty(), None)
            .expect("the socket has room");
    }
    pair
}

/// It was taken for a full line, of which epoll said again and again that it has room.
#[test]
fn a_worker_whose_connections_the_kernel_does_not_pass_on_rests_between_its_attempts() {
    let mut program = rig();
    if geteuid().is_root() {
        let mut bound = Command::new("setpriv");
        bound.args(["--bounding-set=-sys_resource,-sys_admin"]).arg(program.get_program());
        program = bound;
    }
    let config = "processes = 1\nthreads = 1\n[limits]\nqueue_wait = \"60s\"\n";
    let service = Service::start_with(after_setup("ulimit -n 1024", &program), config);
    let [worker] = service.worker_pids()[..] else { panic!("one worker") };
    let under_way = under_way(1024);
    let mut wire = service.connect();
    wire.request("count", &json!({ "of": "runs", "add": 1 }));
    service.await_log("connections can't be kept for now");
    await_asleep(worker);
    drop(under_way);
    assert_eq!(wire.receive()["result"], 1);
}
