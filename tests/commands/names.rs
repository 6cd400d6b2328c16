//! Clients that are given a host's name, and clients that meet themselves: in a network and a table of hosts of the test's own.
//!
//! Each test runs itself again inside namespaces, where it may change both.

use std::process::Command;
use std::{env, fs};

use crate::support::programs::{Ran, run};
use crate::support::{Folder, Service, tine};
use serde_json::Value;
use tine::{Client, ClientError};

/// Says to a test that it runs in the namespaces.
const INSIDE: &str = "TINE_TEST_INSIDE";

/// Runs this test once more in a network and with mounts of its own; true in there.
fn is_inside(test: &str) -> bool {
    if env::var_os(INSIDE).is_some() {
        return true;
    }
    let unshare = ["--map-root-user", "--mount", "--net", "--"];
    let set_up = "ip link set lo up && mount --bind /etc/hosts /etc/hosts";
    let is_possible = Command::new("unshare").args(unshare).args(["sh", "-c", set_up]).output();
    if !is_possible.is_ok_and(|output| output.status.success()) {
        eprintln!(
            "NOT TESTED: no network namespace for this user, or no unshare (util-linux) or ip (iproute2)"
        );
        return false;
    }
    let this = env::current_exe().expect("a running test");
    let mut again = Command::new("unshare");
    again.args(unshare).args(["sh", "-c", "ip link set lo up && exec \"$0\" \"$@\""]);
    again.arg(this).args(["--exact", &format!("names::{test}"), "--nocapture"]).env(INSIDE, "1");
    let Ran { code, stdout, stderr } = run(&mut again, "");
    assert_eq!(code, Some(0), "{stdout}\n{stderr}");
    false
}

/// A table of hosts in the place of the system's, for this namespace.
struct Hosts(Folder);

impl Hosts {
    fn new(text: &str) -> Self {
        let hosts = Self(Folder::new());
        hosts.say(text);
        let mounted =
            Command::new("mount").arg("--bind").arg(hosts.0.path().join("hosts")).arg("/etc/hosts").status();
        assert!(mounted.expect("mount").success());
        hosts
    }

    fn say(&self, text: &str) {
        fs::write(self.0.path().join("hosts"), text).expect("a file of our own");
    }
}

fn serve_at(address: &str) -> Service {
    Service::start_in(Folder::new(), tine(), &["--listen", address, "--processes", "1", "--threads", "1"])
}

fn port_of(service: &Service) -> &str {
    service.address().rsplit_once(':').expect("a port").1
}

fn call(to: &str, extra: &[&str]) -> Ran {
    run(tine().args(["call", "--to", to, "ping", "1"]).args(extra), "")
}

fn bench(to: &str) -> Ran {
    let quick = ["--duration", "20ms", "--warm-up", "0s", "--connections", "3"];
    run(tine().args(["bench", "--to", to]).args(quick), "")
}

// `localhost` was taken for the first of its addresses, and a server at the other was not found.
#[test]
fn a_server_at_any_address_of_a_name_is_found() {
    if !is_inside("a_server_at_any_address_of_a_name_is_found") {
        return;
    }
    let _hosts = Hosts::new("::1 localhost both\n127.0.0.1 localhost both\n127.0.0.9 both\n");
    for (listen, name) in
        [("[::1]:0", "localhost"), ("127.0.0.1:0", "localhost"), ("[::1]:0", "both"), ("127.0.0.9:0", "both")]
    {
        let service = serve_at(listen);
        let to = format!("{name}:{}", port_of(&service));
        for extra in [&[][..], &["--http"], &["--jsonrpc"]] {
            let ran = call(&to, extra);
            assert_eq!(
                (ran.code, ran.stdout.trim()),
                (Some(0), if extra == ["--jsonrpc"] { "[1]" } else { "1" }),
                "{listen} {to} {ran:?}"
            );
        }
        let ran = bench(&to);
        assert_eq!(ran.code, Some(0), "{listen} {to} {ran:?}");
    }
}

// The address that was found at the start was kept for as long as the client lived.
#[test]
fn a_name_that_moves_is_followed_by_the_next_connection() {
    if !is_inside("a_name_that_moves_is_followed_by_the_next_connection") {
        return;
    }
    let hosts = Hosts::new("127.0.0.2 orders\n");
    let mut first = serve_at("127.0.0.2:0");
    let second = serve_at(&format!("127.0.0.3:{}", port_of(&first)));
    let addr = format!("orders:{}", port_of(&first));
    let client = Client::connect(&addr).expect("a server").retries(1);
    let pid = || client.call::<Value>("tine.worker", &()).expect("a worker")["pid"].as_i64().expect("a pid");
    assert_eq!(pid(), i64::from(first.worker_pids()[0]));
    hosts.say("127.0.0.3 orders\n");
    assert_eq!(first.stop(), Some(0));
    assert_eq!(pid(), i64::from(second.worker_pids()[0]));

    // A name that nobody knows is no server, which passes: the name may come back.
    hosts.say("127.0.0.3 others\n");
    let client = Client::lazy(&addr).expect("it is written as an address is");
    let Err(ClientError::NoServer { addr: named, source }) = client.call::<Value>("ping", &()) else {
        panic!("a server without a name")
    };
    assert_eq!(named, addr);
    assert!(source.to_string().contains("\"orders\""), "{source}");
    hosts.say("127.0.0.3 orders\n");
    client.call::<Value>("ping", &()).expect("the name is back");
}

// The kernel gave the caller the very port that it called, and the client read its own call as an answer.
#[test]
fn a_connection_to_oneself_is_refused() {
    if !is_inside("a_connection_to_oneself_is_refused") {
        return;
    }
    fs::write("/proc/sys/net/ipv4/ip_local_port_range", "40000 40001").expect("root of this network");
    for to in ["127.0.0.1:40000", "[::1]:40001"] {
        for extra in [&[][..], &["--http"], &["--jsonrpc"]] {
            let ran = call(to, extra);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{to} {ran:?}");
            assert!(
                ran.stderr.contains("no server takes calls at") && ran.stderr.contains("refused"),
                "{ran:?}"
            );
        }
        let ran = bench(to);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{to} {ran:?}");
        assert!(ran.stderr.contains("refused"), "{ran:?}");
    }
}
