//! `tine check`: what `serve` would refuse is found, and settings that contradict each other are told by both.

use std::fs;
use std::os::unix::net::UnixListener;

use crate::support::programs::{Ran, run, unwrapped};
use crate::support::{Folder, Service, rig, tine};
use nix::sys::signal::Signal;

fn check(folder: &Folder, config: &str) -> Ran {
    fs::write(folder.path().join("config.toml"), config).expect("a folder of our own");
    run(tine().arg("check").current_dir(folder.path()), "")
}

#[test]
fn what_could_not_be_bound_is_found_by_line_and_key() {
    let folder = Folder::new();
    fs::write(folder.path().join("file"), "").expect("a folder of our own");
    let long = "s".repeat(108);
    for (config, expected) in [
        (
            "listen = ['0.0.0.0:80',\n'127.0.0.1:80']".to_owned(),
            "config.toml:2: listen: expected addresses that do not overlap, found \"127.0.0.1:80\", which is a part of \"0.0.0.0:80\" or the same",
        ),
        (
            "listen = ['[::]:80',\n'[::1]:80']".to_owned(),
            "config.toml:2: listen: expected addresses that do not overlap",
        ),
        (
            "listen = ['unix:a.sock', 'unix:./a.sock']".to_owned(),
            "config.toml:1: listen: expected addresses that do not overlap",
        ),
        (
            "\nlisten = ['unix:nowhere/a.sock']".to_owned(),
            "config.toml:2: listen: expected a directory for the socket, found none at nowhere",
        ),
        (
            "[[listener]]\naddress = 'unix:file/a.sock'".to_owned(),
            "config.toml:2: listener.address: expected a directory for the socket, found",
        ),
        (
            "listen = ['unix:file']".to_owned(),
            "config.toml:1: listen: expected a socket or nothing there, found another file at file",
        ),
        (format!("listen = ['unix:/{long}']"), "config.toml:1: listen: expected HOST:PORT"),
    ] {
        let ran = check(&folder, &config);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{config}: {ran:?}");
        assert!(unwrapped(&ran.stderr).starts_with(expected), "{config}: {ran:?}");
        let ran = run(tine().arg("serve").current_dir(folder.path()), "");
        assert!(matches!(ran.code, Some(2 | 3)), "`serve` refuses it too: {config}: {ran:?}");
    }
    let ran = run(tine().args(["check", "--listen", "unix:nowhere/a"]).current_dir(Folder::new().path()), "");
    assert!(ran.code == Some(2) && ran.stderr.starts_with("--listen: expected a directory"), "{ran:?}");
    // A socket that a service listens to is where it should be.
    let _listener = UnixListener::bind(folder.path().join("here.sock")).expect("a free path");
    assert_eq!(check(&folder, "listen = ['unix:here.sock']").code, Some(0));
}

#[test]
fn contradictions_are_warned_of_and_stop_nothing() {
    let folder = Folder::new();
    let ran = check(&folder, "[timeouts]\ndrain = '5s'");
    assert_eq!(ran.code, Some(0), "{ran:?}");
    assert!(ran.stdout.starts_with("config.toml: good\n"), "{ran:?}");
    assert!(
        ran.stderr
            .starts_with("warning: config.toml:2: timeouts.drain: 5s is below `timeouts.request` (30s)"),
        "{ran:?}"
    );
    assert_eq!(check(&folder, "").stderr, "");
}

#[test]
fn the_log_tells_of_contradictions_once_for_each_configuration() {
    let config = "processes = 2\nthreads = 1\n[timeouts]\ndrain = '5s'\n";
    let mut service = Service::start_with(rig(), config);
    let told = |service: &Service, text: &str| {
        service.log_so_far().lines().filter(|line| line.contains(text)).count()
    };
    let mark = service.mark();
    let path = service.folder().join("config.toml");
    let text = fs::read_to_string(&path).expect("the configuration");
    fs::write(&path, text.replace("drain = '5s'", "drain = '6s'")).expect("a folder of our own");
    service.signal(Signal::SIGHUP);
    service.await_text(mark, "reloaded");
    assert_eq!(
        (told(&service, "5s is below"), told(&service, "drain: 6s is below")),
        (1, 1),
        "{}",
        service.log_so_far()
    );
    assert_eq!(service.stop(), Some(0));
}
