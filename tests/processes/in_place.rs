//! A new program takes the supervisor's own place: the same process goes on as another program, and nobody notices.

use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support;
use crate::support::proc::{Process, copy_for_everyone, open_descriptors, status, worker_pid, zombies_of};
use crate::support::{Folder, Over, PATIENCE, Service, await_gone, await_so, code, rig, send_signal};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

const TAKEN_OVER: &str = "the supervisor runs the new program";

/// A service whose program is a copy in a folder of its own.
struct Scene {
    program: PathBuf,
    service: Service,
    /// Goes last.
    _folder: Folder,
}

impl Scene {
    fn new(config: &str) -> Self {
        let folder = Folder::new();
        let copy = copy_for_everyone(&rig(), folder.path());
        let service = Service::start_with(copy, config);
        Self { program: folder.path().join("program"), service, _folder: folder }
    }

    /// Puts a new version in the program's place, as a deployment does: the same with a byte at its end.
    fn deploy(&self) {
        let next = self.program.with_extension("next");
        let made = "cp \"$1\" \"$2\" && echo >> \"$2\" && chmod 755 \"$2\"";
        let done = Command::new("sh").args(["-c", made, "sh"]).args([&self.program, &next]).status();
        assert!(done.expect("a shell").success());
        std::fs::rename(&next, &self.program).expect("in its place");
    }

    /// Deploys and reloads; what the new supervisor says.
    fn take_over(&self) -> Value {
        self.deploy();
        let mark = self.service.mark();
        self.service.signal(Signal::SIGHUP);
        self.service.await_text(mark, TAKEN_OVER)
    }

    fn runs_what_is_there(&self) -> bool {
        let inode = |path: &Path| std::fs::metadata(path).map(|found| found.ino()).ok();
        inode(Path::new(&format!("/proc/{}/exe", self.service.pid()))) == inode(&self.program)
    }
}

#[test]
fn the_supervisor_becomes_the_new_program_and_goes_on_with_all_it_had() {
    let mut scene = Scene::new("listen = [\"127.0.0.1:0\", \"unix:socket\"]\nprocesses = 2\nthreads = 1");
    let pid = scene.service.pid();
    let mut wire = scene.service.connect();
    wire.call("echo", json!("first"));
    assert!(scene.runs_what_is_there());
    let told = scene.take_over();
    assert_eq!(told["generation"], 2, "{told}");
    assert_eq!(told["pid"].as_i64(), Some(i64::from(pid)), "{told}");
    assert_eq!((&told["program"], &told["config"]), (&"program".into(), &"config.toml".into()), "{told}");
    assert_eq!(told["tine"], env!("CARGO_PKG_VERSION"), "{told}");
    assert!(scene.runs_what_is_there());
    assert_eq!(status(pid, "Name").as_deref(), Some("program"));
    let service = &scene.service;

    // Its workers and its template are still its own.
    let workers = service.adopted_workers();
    let mark = service.mark();
    let mut doomed = service.connect_to(0);
    doomed.request("crash", &json!({ "how": "segv" }));
    assert_ne!(service.await_refill(mark, 0), workers[&0]);
    service.signal(Signal::SIGTTIN);
    service.await_refill(mark, 2);
    let descriptors = open_descriptors(pid);
    await_so("who died is reaped", || zombies_of(pid).is_empty());

    // And all of it can be done again.
    assert_eq!(scene.take_over()["generation"], 3);
    assert!(scene.runs_what_is_there());
    let service = &scene.service;
    assert_eq!(worker_pid(&mut service.connect_to(1)), service.workers()[&1]);
    service.call("echo", json!("last"));
    assert!(open_descriptors(pid) <= descriptors, "{descriptors} before");
    let socket = service.folder().join("socket");
    assert!(std::os::unix::net::UnixStream::connect(&socket).is_ok());
    assert_eq!(scene.service.stop(), Some(0));
    assert!(!socket.exists(), "it knows that the file is its own");
    let log = scene.service.whole_log();
    let served = log.iter().find(|line| line["message"] == "served" && line["method"] == "echo");
    assert_eq!(served.expect("the sums go on")["ok"], 2);
}

#[test]
fn calls_go_on_while_the_supervisor_becomes_another_program_and_a_worker_dies() {
    let scene = Scene::new("processes = 2\nthreads = 1");
    let (address, over) = (scene.service.socket_address(), Over::default());
    std::thread::scope(|scope| {
        let _told = over.at_the_end();
        let calls = scope.spawn(|| {
            let mut wire = support::Wire::connect(address);
            let mut count = 0;
            while !over.is_so() {
                assert_eq!(wire.call("echo", json!(count))["result"], count);
                count += 1;
            }
            count
        });
        scene.deploy();
        let mark = scene.service.mark();
        scene.service.signal(Signal::SIGHUP);
        scene.service.await_text(mark, TAKEN_OVER);
        over.say();
        assert!(calls.join().expect("every call was answered, on one connection") > 100);
    });
    assert!(scene.runs_what_is_there());
}

/// Epoll sets that a process has open.
fn epoll_sets(pid: i32) -> usize {
    let folder = std::fs::read_dir(format!("/proc/{pid}/fd")).expect("its descriptors").flatten();
    let what = folder.filter_map(|entry| std::fs::read_link(entry.path()).ok());
    what.filter(|what| what.to_string_lossy().ends_with("[eventpoll]")).count()
}

#[test]
fn connections_are_kept_by_the_new_program_too_and_what_pollers_wait_in() {
    let scene = Scene::new("processes = 2\nthreads = 1\n[timeouts]\nkeep_after = \"1ms\"");
    let supervisor = scene.service.pid();
    let mut wire = scene.service.connect();
    wire.call("echo", json!("it is looked at when it says something"));
    assert_eq!(epoll_sets(supervisor), 3, "its own and each worker's");
    scene.take_over();
    assert_eq!(epoll_sets(supervisor), 3);
    let (worker, mark) = (worker_pid(&mut wire), scene.service.mark());
    send_signal(worker, Signal::SIGKILL);
    assert_ne!(worker_pid(&mut wire), worker, "another one goes on with it");
    scene.service.await_text(mark, "worker ready");
    await_so("the dead worker's is closed, and its replacement's is held", || epoll_sets(supervisor) == 3);
    await_so("who died is reaped", || zombies_of(supervisor).is_empty());
}

/// Overwrites the beginning of what a worker shares with the supervisor, as a handler's wild pointer might. The worker has
/// no descriptor of it.
fn scribble(worker: i32, supervisor: i32) {
    let maps = std::fs::read_to_string(format!("/proc/{worker}/maps")).expect("it lives");
    let inode_of = |line: &str| line.split_whitespace().nth(4)?.parse::<u64>().ok();
    let arena = maps.lines().find(|line| line.contains("memfd:tine-arena")).and_then(inode_of);
    let folder = std::fs::read_dir(format!("/proc/{supervisor}/fd")).expect("its descriptors");
    let is_arena = |fd: &PathBuf| std::fs::metadata(fd).is_ok_and(|found| Some(found.ino()) == arena);
    let file = folder.flatten().map(|fd| fd.path()).find(is_arena).expect("the supervisor keeps it");
    let file = std::fs::OpenOptions::new().write(true).open(file).expect("a memfd can be opened anew");
    file.write_all_at(&[0xff; 64], 0).expect("it is writable");
}

/// Reloads with a new program, which does not take the supervisor's place as long as the worker is there whose pid is returned: a
/// call of `Wire` hangs in it. With them the mark from which on the log tells of it.
fn reload_beside_one_that_hangs(scene: &Scene) -> (support::Wire, i32, usize) {
    let service = &scene.service;
    let mut wire = service.connect();
    let hangs = worker_pid(&mut wire);
    wire.send(r#"{"in":"hang","id":1}"#);
    wire.send(r#"{"in":"sleep","params":{"ms":1},"id":2}"#);
    assert_eq!(wire.receive()["id"], 2, "the other runs");
    scene.deploy();
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
    (wire, hangs, mark)
}

#[test]
fn a_worker_whose_arena_makes_no_sense_is_replaced_by_the_new_program() {
    let scene = Scene::new("processes = 2\nthreads = 2");
    let service = &scene.service;
    let before = service.worker_pids();
    let (_wire, hangs, mark) = reload_beside_one_that_hangs(&scene);
    let served_by = std::iter::repeat_with(|| worker_pid(&mut service.connect()));
    let doomed = served_by.take(1_000).find(|pid| !before.contains(pid)).expect("the next generation serves");
    scribble(doomed, service.pid());
    send_signal(hangs, Signal::SIGKILL);
    service.await_text(mark, TAKEN_OVER);
    let told = service.await_text(mark, "a worker can't be gone on with");
    assert_eq!(told["pid"], doomed, "{told}");
    let mark = service.mark();
    let slot = told["slot"].as_u64().expect("a slot");
    assert_ne!(service.await_refill(mark, slot), doomed);
    let echoed = service.call("echo", json!("served"));
    assert_eq!(echoed["result"], "served");
}

/// Has the worker at the other end of `wire` start a daemon: a process with a session of its own, whose parent has ended.
fn start_daemon(scene: &Scene, wire: &mut support::Wire) -> Process {
    let file = scene.service.folder().join("daemon");
    // It is in its session by the time it tells its pid.
    let daemon = "(setsid sh -c 'echo $$; exec sleep 600 >/dev/null 2>&1' &)";
    let line = format!("{daemon} | head -n 1 >{}", file.display());
    let answer = wire.call("shell", json!({ "line": line }));
    assert_eq!(answer["result"], 0, "{answer}");
    Process::of(std::fs::read_to_string(file).expect("written").trim().parse().expect("a pid"))
}

/// The new program took all daemons that were there for ones that nobody's handlers had started.
#[test]
fn a_daemon_of_a_handler_ends_with_its_worker_although_another_program_has_taken_over_meanwhile() {
    let scene = Scene::new("processes = 1\nthreads = 2");
    let service = &scene.service;
    let (_wire, hangs, mark) = reload_beside_one_that_hangs(&scene);
    let wires = std::iter::repeat_with(|| service.connect()).take(1_000);
    let mut served_by = wires.map(|mut wire| (worker_pid(&mut wire), wire));
    let (serves, mut wire) = served_by.find(|(pid, _)| *pid != hangs).expect("the next generation serves");
    let daemon = start_daemon(&scene, &mut wire);
    send_signal(hangs, Signal::SIGKILL);
    service.await_text(mark, TAKEN_OVER);
    let mark = service.mark();
    send_signal(serves, Signal::SIGKILL);
    service.await_refill(mark, 0);
    daemon.await_end();
}

#[test]
fn where_the_new_program_cannot_take_its_place_the_supervisor_goes_on_as_it_was() {
    let mut scene = Scene::new("processes = 1\nthreads = 1");
    scene.deploy();
    let service = &scene.service;
    let mark = service.mark();
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "worker ready");
    // The template runs from it already; the supervisor will not be able to.
    std::fs::set_permissions(&scene.program, std::fs::Permissions::from_mode(0o644)).expect("our own file");
    let told = service.await_text(mark, "the supervisor's program can't be replaced; it goes on as it was");
    assert_eq!(told["level"], "ERROR", "{told}");
    assert!(!scene.runs_what_is_there());
    let mark = service.mark();
    // The only connection: one that was closed is open in a worker until that has seen it.
    let mut wire = service.connect();
    assert_eq!(code(&wire.call("crash", json!({ "how": "segv" }))), -32002);
    let next = service.await_refill(mark, 0);
    assert_eq!(wire.call("tine.worker", json!(null))["result"]["generation"], 2);
    let inherited = open_descriptors(next);
    let mark = service.mark();
    send_signal(next, Signal::SIGTERM);
    let after = service.await_refill(mark, 0);
    assert!(await_gone(next, PATIENCE));
    assert_eq!(worker_pid(&mut wire), after);
    let again = open_descriptors(after);
    assert!(again.abs_diff(inherited) <= 1, "{inherited} and {again} descriptors");
    assert_eq!(scene.service.stop(), Some(0));
}

#[test]
fn a_stop_that_comes_in_the_middle_is_not_lost() {
    let mut scene = Scene::new("processes = 1\nthreads = 1");
    scene.deploy();
    let mark = scene.service.mark();
    scene.service.signal(Signal::SIGHUP);
    scene.service.await_text(mark, "reloaded");
    assert_eq!(scene.service.stop(), Some(0));
    scene.service.whole_log();
    assert_eq!(scene.service.count_since(mark, "died"), 0);
}

#[test]
fn a_reload_with_the_same_program_leaves_the_supervisor_as_it_is() {
    let mut scene = Scene::new("processes = 1\nthreads = 1");
    let mark = scene.service.mark();
    scene.service.signal(Signal::SIGHUP);
    scene.service.await_text(mark, "reloaded");
    assert_eq!(scene.service.stop(), Some(0));
    scene.service.whole_log();
    assert_eq!(scene.service.count_since(mark, TAKEN_OVER), 0);
}
