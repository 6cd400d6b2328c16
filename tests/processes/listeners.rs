//! Where a service listens: TCP, IPv6, socket files, several at once, and what stands in the way.

use std::fs;
use std::io::Read;
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;

use crate::support::proc::{Process, after_setup, kill};
use crate::support::programs::call_on;
use crate::support::{Folder, PATIENCE, Service, await_gone, rig};
use nix::sys::signal::Signal;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, bind, socket};
use serde_json::{Value, json};

const PING: &str = r#"{"in":"ping","params":"ireader 0"}"#;
const PONG: &str = r#"{"out":"pong","result":"ireader 0"}"#;

fn connect_unix(path: &Path) -> UnixStream {
    let stream = UnixStream::connect(path).expect("the service accepts");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    stream
}

fn listen_on(path: &Path) -> String {
    format!("processes = 1\nthreads = 2\nlisten = [\"unix:{}\"]", path.display())
}

/// Starts a service that can't bind: its exit code, and its log.
fn fails_to_bind(config: &str) -> (Option<i32>, Vec<Value>) {
    let mut service = Service::launch(rig(), config);
    let code = service.await_end().code();
    (code, service.whole_log())
}

fn said(log: &[Value], words: &[&str]) -> bool {
    log.iter().any(|line| {
        let text = line["message"].as_str().unwrap_or_default();
        line["level"] == "ERROR" && words.iter().all(|word| text.contains(word))
    })
}

#[test]
fn ipv4_and_ipv6_at_once() {
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    if !has_ipv6 {
        eprintln!("SKIPPED in part: this machine has no IPv6 loopback, only IPv4 is tried");
    }
    let listen = if has_ipv6 { r#"["127.0.0.1:0", "[::1]:0"]"# } else { r#"["127.0.0.1:0"]"# };
    let mut service = Service::start(&format!("processes = 2\nthreads = 2\nlisten = {listen}"));
    let addresses: Vec<String> = service.addresses().into_iter().map(str::to_owned).collect();
    assert_eq!(addresses.len(), if has_ipv6 { 2 } else { 1 });
    assert!(!has_ipv6 || addresses[1].starts_with("[::1]:"), "{addresses:?}");
    for address in &addresses {
        assert!(!address.ends_with(":0"), "the log names the port that the kernel chose: {address}");
        assert_eq!(call_on(TcpStream::connect(address).expect("it accepts"), PING), PONG);
    }
    assert_eq!(service.stop(), Some(0));
    for address in &addresses {
        assert!(TcpStream::connect(address).is_err(), "{address} still accepts");
    }
}

#[test]
fn a_socket_file_serves_until_it_is_removed_with_the_drained_service() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    let mut service = Service::start(&listen_on(&path));
    assert_eq!(service.address(), format!("unix:{}", path.display()));
    let mut stream = connect_unix(&path);
    assert_eq!(call_on(&stream, PING), PONG);
    // A call that runs when the service is stopped is answered, on a half-closed connection.
    stream.shutdown(std::net::Shutdown::Write).expect("it is open");
    assert_eq!(stream.read(&mut [0; 1]).expect("the end"), 0);
    let running = connect_unix(&path);
    assert_eq!(call_on(&running, PING), PONG);
    assert_eq!(service.stop(), Some(0));
    assert!(!path.exists(), "the socket file is still there");
    assert_eq!((&running).read(&mut [0; 1]).expect("the end"), 0);
}

#[test]
fn several_listeners_of_all_kinds_serve_at_once() {
    let folder = Folder::new();
    let (one, two) = (folder.path().join("one.sock"), folder.path().join("two.sock"));
    let service = Service::start(&format!(
        "processes = 2\nthreads = 2\nlisten = [\"127.0.0.1:0\", \"unix:{}\", \"127.0.0.1:0\", \"unix:{}\"]",
        one.display(),
        two.display()
    ));
    let addresses = service.addresses();
    assert_eq!(addresses.len(), 4);
    assert_ne!(addresses[0], addresses[2]);
    for address in [addresses[0], addresses[2]] {
        assert_eq!(call_on(TcpStream::connect(address).expect("it accepts"), PING), PONG);
    }
    for path in [&one, &two] {
        assert_eq!(call_on(connect_unix(path), PING), PONG);
    }
}

#[test]
fn a_socket_file_has_the_mode_it_is_given() {
    let folder = Folder::new();
    for mode in [0o600, 0o660] {
        let path = folder.path().join(format!("{mode:o}.sock"));
        let _service = Service::start(&format!(
            "processes = 1\nthreads = 1\n[[listener]]\naddress = \"unix:{}\"\nmode = \"0{mode:o}\"",
            path.display()
        ));
        let found = fs::metadata(&path).expect("the socket file is there");
        assert!(found.file_type().is_socket());
        assert_eq!(found.permissions().mode() & 0o777, mode);
    }
}

#[test]
fn only_the_users_of_allow_uids_are_served() {
    let folder = Folder::new();
    let (ours, theirs) = (folder.path().join("ours.sock"), folder.path().join("theirs.sock"));
    let me = nix::unistd::getuid().as_raw();
    let service = Service::start(&format!(
        "processes = 1\nthreads = 1\n\
         [[listener]]\naddress = \"unix:{}\"\nallow_uids = [{me}, {}]\n\
         [[listener]]\naddress = \"unix:{}\"\nallow_uids = [{}]",
        ours.display(),
        me + 1,
        theirs.display(),
        me + 1
    ));
    let mut stranger = connect_unix(&theirs);
    assert_eq!(stranger.read(&mut [0; 1]).expect("the end"), 0);
    let line = service.await_log("allow_uids");
    assert_eq!((&line["uid"], &line["pid"]), (&json!(me), &json!(std::process::id())), "{line}");
    assert_eq!(call_on(connect_unix(&ours), PING), PONG);
}

#[test]
fn a_big_endian_listener_reads_and_writes_big_endian_lengths_beside_a_little_endian_one() {
    let service = Service::start(
        "processes = 1\nthreads = 2\n\
         [[listener]]\naddress = \"127.0.0.1:0\"\nprefix = \"big\"\n\
         [[listener]]\naddress = \"127.0.0.1:0\"",
    );
    let addresses = service.addresses();
    let big = TcpStream::connect(addresses[0]).expect("it accepts");
    big.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
    let receive = || {
        let mut prefix = [0; 4];
        (&big).read_exact(&mut prefix).expect("an answer");
        let mut body = vec![0; u32::from_be_bytes(prefix) as usize];
        (&big).read_exact(&mut body).expect("a whole answer");
        String::from_utf8(body).expect("UTF-8")
    };
    let send = |bytes: &[u8]| std::io::Write::write_all(&mut &big, bytes).expect("the service reads");
    let length = u32::try_from(PING.len()).expect("short");
    send(&[&length.to_be_bytes(), PING.as_bytes()].concat());
    assert_eq!(receive(), PONG);
    send(&[0; 4]);
    assert!(receive().contains("-32600"));
    // Read the other way round this is a length of 2.
    send(&(2_u32 << 24).to_be_bytes());
    assert!(receive().contains("-32003"));
    assert_eq!((&big).read(&mut [0; 1]).expect("the end"), 0);

    assert_eq!(call_on(TcpStream::connect(addresses[1]).expect("it accepts"), PING), PONG);
    // A little-endian length on the big-endian listener is a stranger's.
    let mut wrong = TcpStream::connect(addresses[0]).expect("it accepts");
    std::io::Write::write_all(&mut wrong, &[&length.to_le_bytes(), PING.as_bytes()].concat()).expect("sent");
    assert_eq!(wrong.read(&mut [0; 1]).expect("the end"), 0);
}

#[test]
fn a_port_in_use_exits_3_and_names_the_address() {
    let occupied = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = occupied.local_addr().expect("bound").to_string();
    let folder = Folder::new();
    let path = folder.path().join("first.sock");
    let (code, log) =
        fails_to_bind(&format!("listen = [\"unix:{}\", \"127.0.0.1:0\", \"{address}\"]", path.display()));
    assert_eq!(code, Some(3));
    assert!(said(&log, &[&address, "in use"]), "{log:?}");
    assert!(!path.exists(), "what was bound before is left behind");
}

#[test]
fn an_address_of_another_machine_exits_3_and_names_it() {
    // TEST-NET-1 (RFC 5737), which is nobody's.
    let (code, log) = fails_to_bind("listen = [\"192.0.2.1:0\"]");
    assert_eq!(code, Some(3));
    assert!(said(&log, &["192.0.2.1:0", "not an address of this machine"]), "{log:?}");
}

#[test]
fn a_stale_socket_file_is_replaced() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    // Bound and never listened on: a listener that is dropped may live on for a moment, in a child that another test
    // is just starting.
    let stale = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    bind(stale.as_raw_fd(), &UnixAddr::new(&path).expect("a short path")).expect("the folder can be written");
    assert!(path.exists() && UnixStream::connect(&path).is_err());
    let mut service = Service::start(&listen_on(&path));
    assert_eq!(call_on(connect_unix(&path), PING), PONG);
    // A service that is killed leaves such a file, once its workers have seen that it is gone.
    let workers = service.worker_pids();
    service.signal(nix::sys::signal::Signal::SIGKILL);
    service.await_end();
    assert!(workers.into_iter().all(|pid| await_gone(pid, PATIENCE)));
    assert!(path.exists());
    let service = Service::start(&listen_on(&path));
    assert_eq!(call_on(connect_unix(&path), PING), PONG);
    drop(service);
}

#[test]
fn a_socket_file_that_somebody_serves_is_left_alone() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    let first = Service::start(&listen_on(&path));
    let (code, log) = fails_to_bind(&listen_on(&path));
    assert_eq!(code, Some(3));
    assert!(said(&log, &[&path.display().to_string(), "in use"]), "{log:?}");
    assert_eq!(call_on(connect_unix(&path), PING), PONG);
    drop(first);
}

#[test]
fn a_file_that_is_no_socket_is_left_alone() {
    let folder = Folder::new();
    let path = folder.path().join("precious.txt");
    fs::write(&path, "precious").expect("the folder can be written");
    let link = folder.path().join("link.sock");
    std::os::unix::fs::symlink(&path, &link).expect("a link");
    for wanted in [&path, &link, &folder.path().to_owned()] {
        let (code, log) = fails_to_bind(&listen_on(wanted));
        assert_eq!(code, Some(3), "{}", wanted.display());
        assert!(said(&log, &[&wanted.display().to_string(), "expected a socket"]), "{log:?}");
    }
    assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    assert!(link.is_symlink());
}

#[test]
fn a_socket_file_in_no_folder_exits_3_and_names_it() {
    let folder = Folder::new();
    let path = folder.path().join("missing/tine.sock");
    let (code, log) = fails_to_bind(&listen_on(&path));
    assert_eq!(code, Some(3));
    assert!(said(&log, &[&path.display().to_string()]), "{log:?}");
}

#[test]
fn a_file_that_took_the_sockets_place_is_not_removed_at_the_end() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    let mut service = Service::start(&listen_on(&path));
    fs::remove_file(&path).expect("removed");
    let _others = UnixListener::bind(&path).expect("somebody else's socket");
    assert_eq!(service.stop(), Some(0));
    assert!(path.exists());
}

/// One TCP and one Unix listener.
fn two_kinds(folder: &Folder) -> String {
    format!(
        "processes = 2\nthreads = 1\nlisten = [\"127.0.0.1:0\", \"unix:{}\"]\n[run]\ngroups_outlive = true\n",
        folder.path().join("tine.sock").display()
    )
}

fn both_serve(service: &Service, folder: &Folder) {
    assert_eq!(call_on(TcpStream::connect(service.address()).expect("it accepts"), PING), PONG);
    assert_eq!(call_on(connect_unix(&folder.path().join("tine.sock")), PING), PONG);
}

/// One `shutdown` ended listening for all workers, and nobody noticed, over reloads too.
#[test]
fn listeners_that_a_handler_shuts_down_are_bound_anew_for_every_worker() {
    let folder = Folder::new();
    let mut service = Service::start(&two_kinds(&folder));
    let workers = service.workers();
    for _ in 0..3 {
        let mark = service.mark();
        service.call("hush", json!(null));
        for address in service.addresses() {
            service.await_since(mark, "word of the listener", |line| {
                line["address"] == address
                    && line["message"].as_str().is_some_and(|text| text.contains("bound anew"))
            });
        }
        both_serve(&service, &folder);
        for slot in 0..2 {
            service.connect_to(slot);
        }
    }
    assert_eq!(service.workers(), workers);
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
    both_serve(&service, &folder);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn a_socket_file_that_was_removed_is_there_again_without_a_reload() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    let mut service = Service::start(&two_kinds(&folder));
    let before = connect_unix(&path);
    assert_eq!(call_on(&before, PING), PONG);
    fs::remove_file(&path).expect("it is there");
    service.await_log("socket file was removed or replaced; it was bound anew");
    both_serve(&service, &folder);
    assert_eq!(call_on(&before, PING), PONG);

    // Another file in its place is nobody's to remove; when it is gone the socket comes back.
    let other = folder.path().join("other");
    fs::write(&other, "precious").expect("the folder can be written");
    fs::rename(&other, &path).expect("it takes the socket's place");
    service.await_log("can't be bound anew");
    assert_eq!(fs::read_to_string(&path).expect("it is left alone"), "precious");
    fs::remove_file(&path).expect("it is there");
    service.await_log("bound anew");
    both_serve(&service, &folder);
    assert_eq!(service.stop(), Some(0));
    assert!(!path.exists());
}

/// Clients connected into nothing until the child had ended, and the address was taken.
#[test]
fn a_child_that_a_handler_has_forked_keeps_no_listener_when_the_service_has_ended() {
    for signal in [Signal::SIGTERM, Signal::SIGQUIT, Signal::SIGKILL] {
        let folder = Folder::new();
        let mut service = Service::start(&two_kinds(&folder));
        let address = service.address().to_owned();
        let link = folder.path().join("link");
        fs::hard_link(folder.path().join("tine.sock"), &link).expect("a link");
        let child = service.call("fork", json!({ "ms": 60_000 }));
        let child = Process::of(i32::try_from(child["result"].as_i64().expect("a pid")).expect("it fits"));
        let workers = service.worker_pids();
        service.signal(signal);
        service.await_end();
        assert!(workers.into_iter().all(|pid| await_gone(pid, PATIENCE)));
        assert!(TcpStream::connect(&address).is_err(), "{signal}");
        assert!(UnixStream::connect(&link).is_err(), "{signal}");
        assert!(TcpListener::bind(&address).is_ok(), "{signal}");
        drop(child);
    }
}

#[test]
fn a_child_that_a_handler_has_forked_keeps_no_listener_that_a_reload_has_dropped() {
    let folder = Folder::new();
    let service = Service::start(&two_kinds(&folder));
    let address = service.address().to_owned();
    let child = service.call("fork", json!({ "ms": 60_000 }));
    let child = Process::of(i32::try_from(child["result"].as_i64().expect("a pid")).expect("it fits"));
    let file = service.folder().join("config.toml");
    let config = fs::read_to_string(&file).expect("the configuration");
    fs::write(&file, config.replace("\"127.0.0.1:0\", ", "")).expect("it can be written");
    let workers = service.worker_pids();
    service.signal(Signal::SIGHUP);
    service.await_log("reloaded");
    assert!(workers.into_iter().all(|pid| await_gone(pid, PATIENCE)));
    assert!(TcpStream::connect(&address).is_err());
    assert!(TcpListener::bind(&address).is_ok());
    assert_eq!(call_on(connect_unix(&folder.path().join("tine.sock")), PING), PONG);
    drop(child);
}

#[test]
fn a_service_whose_supervisor_was_killed_is_followed_at_once() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    let mut service = Service::start(&two_kinds(&folder));
    for _ in 0..5 {
        let listen = format!("listen = [\"{}\", \"unix:{}\"]", service.address(), path.display());
        kill(service.pid());
        let next = Service::start(&format!("processes = 2\nthreads = 1\n{listen}\n"));
        service.await_end();
        service = next;
        both_serve(&service, &folder);
    }
}

/// The port was open, and nobody behind it: workers were tried again and again.
#[test]
fn a_limit_that_no_worker_could_live_with_ends_the_start_with_its_name() {
    let table = [
        ("ulimit -v 8000000", "RLIMIT_AS (`ulimit -v`) is 7812MiB, and "),
        ("ulimit -f 1000", "RLIMIT_FSIZE (`ulimit -f`) is 512000 bytes, and "),
    ];
    // So many that the allocator's arenas for them are more than all else that a worker has beside its buffers.
    let config = "processes = 1\nthreads = 32";
    let mut needed = Vec::new();
    for (setup, said) in table {
        let mut service = Service::launch(after_setup(setup, &rig()), config);
        assert_eq!(service.await_end().code(), Some(1), "{setup}");
        let log = service.whole_log();
        let text = log.last().and_then(|line| line["message"].as_str()).unwrap_or_default().to_owned();
        let need = text.split_once(said).and_then(|(_, need)| need.split_once("MiB are needed"));
        let need = need.and_then(|(need, _)| need.parse::<u64>().ok());
        needed.push(need.unwrap_or_else(|| panic!("{setup}: {log:?}")));
        assert!(!log.iter().any(|line| line["message"] == "listening"), "{setup}: {log:?}");
    }
    // What is said to be enough is. Threads were refused their stacks where others had made arenas of that.
    let setup = format!("ulimit -v {}; ulimit -f {}", (needed[0] + 1) << 10, (needed[1] + 1) << 11);
    let mut service = Service::start_with(after_setup(&setup, &rig()), config);
    assert_eq!(service.call("ping", json!("ireader 0"))["out"], "pong");
    service.stop();
    assert!(!said(&service.whole_log(), &["can't be started"]));
}

#[test]
fn without_proc_the_start_ends_and_says_so() {
    let hidden = "mount --make-rprivate / && umount -l /proc";
    let mut probe = std::process::Command::new("unshare");
    if !probe.args(["-m", "sh", "-c", hidden]).output().is_ok_and(|done| done.status.success()) {
        eprintln!("SKIPPED: this user may not hide /proc from a program");
        return;
    }
    let mut program = std::process::Command::new("unshare");
    program.args(["-m", "sh", "-c", &format!("{hidden} && exec \"$@\""), "sh"]).arg(rig().get_program());
    let mut service = Service::launch(program, "processes = 1");
    assert_eq!(service.await_end().code(), Some(1));
    assert!(said(&service.whole_log(), &["/proc"]));
}
