//! The commands as a user types them: what they print, and how they exit.

use std::fs;
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::Path;

use crate::support;
use crate::support::programs::{Ran, run, unwrapped};
use crate::support::{Folder, Service, rig, tine};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, getsockname, socket};
use serde_json::{Value, json};

fn in_folder(folder: &Folder, arguments: &[&str]) -> Ran {
    run(tine().args(arguments).current_dir(folder.path()), "")
}

fn with_config(config: &str, arguments: &[&str]) -> Ran {
    let folder = Folder::new();
    fs::write(folder.path().join("config.toml"), config).expect("the folder can be written");
    in_folder(&folder, arguments)
}

fn shipped_config() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/config.toml"))
}

/// `tine call` with these arguments, to that service.
fn call(service: &Service, arguments: &[&str], input: &str) -> Ran {
    run(tine().arg("call").args(arguments).args(["--to", service.address()]), input)
}

/// A text log's "worker ready" is not waited for: the kernel keeps callers until a worker takes them.
fn answers_ping(service: &Service) {
    let ran = call(service, &["ping", r#""ireader 0""#], "");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "\"ireader 0\"\n"), "{ran:?}");
}

#[test]
fn check_into_a_pipe_that_nobody_reads_does_not_panic() {
    let (reader, writer) = std::io::pipe().expect("a pipe");
    drop(reader);
    let folder = Folder::new();
    let mut check = tine();
    check.arg("check").current_dir(folder.path()).stdout(writer);
    let ran = check.output().expect("it starts");
    assert_eq!((ran.status.code(), String::from_utf8_lossy(&ran.stderr).as_ref()), (Some(0), ""));
}

#[test]
fn serve_needs_no_config_file() {
    let mut service = Service::start_in(Folder::new(), tine(), &["--listen", "127.0.0.1:0"]);
    answers_ping(&service);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn the_daemon_says_what_it_is_to_whoever_discovers_it() {
    let service = Service::start_in(Folder::new(), tine(), &["--listen", "127.0.0.1:0"]);
    let ran = call(&service, &["rpc.discover"], "");
    let document: Value =
        serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"));
    assert_eq!(document["info"], json!({"title": "tine", "version": env!("CARGO_PKG_VERSION")}));
}

// The log said neither which program it was of nor where the configuration came from.
#[test]
fn the_log_begins_with_the_program_and_where_its_configuration_is_from() {
    let tine = env!("CARGO_PKG_VERSION");
    let listen = ["--listen", "127.0.0.1:0"];
    let here = "listen = [\"127.0.0.1:0\"]\n";
    for (name, version, file, arguments, config) in [
        ("tine", Some(tine), None, &listen[..], "defaults"),
        ("tine", Some(tine), Some("config.toml"), &[], "config.toml"),
        ("rig", None, Some("shop.toml"), &["--config", "shop.toml"], "shop.toml"),
    ] {
        let folder = Folder::new();
        if let Some(file) = file {
            fs::write(folder.path().join(file), here).expect("the folder can be written");
        }
        let program = if name == "rig" { rig() } else { support::tine() };
        let service = Service::start_in(folder, program, arguments);
        let line = service.log_so_far().lines().find(|line| line.contains("listening")).map(str::to_owned);
        let line = line.expect("it listens").replace("\\\"", "\"");
        let version = version.map_or_else(String::new, |version| format!(" version=\"{version}\""));
        let begins = format!(" listening program=\"{name}\"{version} tine=\"{tine}\" pid=");
        assert!(line.contains(&begins), "{line}");
        assert!(line.contains(&format!(" config=\"{config}\" ")), "{line}");
    }
}

#[test]
fn serve_runs_with_the_shipped_config() {
    let folder = Folder::new();
    fs::copy(shipped_config(), folder.path().join("config.toml")).expect("the config is shipped");
    let mut service = Service::start_in(folder, tine(), &["--listen", "127.0.0.1:0"]);
    answers_ping(&service);
    assert_eq!(service.stop(), Some(0));

    // By its path from elsewhere, with everything the command line can override.
    let path = shipped_config().to_str().expect("UTF-8");
    let arguments = [
        "--config",
        path,
        "--listen",
        "127.0.0.1:0",
        "--listen",
        "unix:here.sock",
        "--processes",
        "2",
        "--threads",
        "3",
    ];
    let mut service = Service::start_in(Folder::new(), tine(), &arguments);
    assert_eq!(service.addresses()[1], "unix:here.sock");
    let line = service.log_so_far();
    assert!(line.contains("processes=2") && line.contains("threads=3"), "{line}");
    answers_ping(&service);
    assert_eq!(service.stop(), Some(0));
}

#[test]
fn check_prints_what_would_run_and_exits_0() {
    let folder = Folder::new();
    let ran = in_folder(&folder, &["check"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    for words in
        ["defaults: good", "127.0.0.1:8080", "8 threads", "methods: echo, ping, rpc.discover, tine.methods"]
    {
        assert!(ran.stdout.contains(words), "expected {words:?} in:\n{}", ran.stdout);
    }

    let shipped = run(tine().arg("check").arg("--config").arg(shipped_config()), "");
    assert_eq!((shipped.code, shipped.stderr.as_str()), (Some(0), ""), "{shipped:?}");
    let settings = |ran: &Ran| ran.stdout.lines().skip(1).map(str::to_owned).collect::<Vec<_>>();
    assert_eq!(settings(&shipped), settings(&ran), "the shipped config is not the defaults");

    let config = "listen = [\"[::1]:7\", \"unix:/tmp/x.sock\"]\nprocesses = 3\nthreads = 5\n\
                  [timeouts]\nrequest = \"90s\"\ndrain = \"2m\"\n[methods.ping]\ntimeout = \"2s\"";
    let ran = with_config(config, &["check", "--threads", "6"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    let words =
        ["config.toml: good", "[::1]:7", "unix:/tmp/x.sock", "3 × 6 threads", "1m 30s", "2m", "methods.ping"];
    for words in words {
        assert!(ran.stdout.contains(words), "expected {words:?} in:\n{}", ran.stdout);
    }
}

#[test]
fn check_knows_the_methods_of_the_program_it_is_built_into() {
    let folder = Folder::new();
    let ran = run(rig().arg("check").current_dir(folder.path()), "");
    assert_eq!(ran.code, Some(0));
    assert!(ran.stdout.contains("sleep"), "{ran:?}");
}

#[test]
fn a_broken_config_exits_2_and_names_file_line_and_key() {
    for (config, names) in [
        ("\n\nthread = 5", "config.toml:3: thread: unknown key; did you mean `threads`?"),
        ("threads = 0", "config.toml:1: threads:"),
        ("threads = \"five\"", "config.toml:1: threads:"),
        ("processes = -1", "config.toml:1: processes:"),
        ("[limits]\nqueue = 1\nmax_message = \"16MiB\"", "config.toml:3: limits.max_message:"),
        ("[timeouts]\nrequest = 30", "config.toml:2: timeouts.request:"),
        ("[timeouts]\nrequest = \"30 parsecs\"", "config.toml:2: timeouts.request:"),
        ("listen = \"127.0.0.1:1\"", "config.toml:1: listen:"),
        ("listen = [\"nowhere\"]", "config.toml:1: listen"),
        ("listen = [\"127.0.0.1:1\"]\n[[listener]]\naddress = \"127.0.0.1:2\"", "config.toml:2: listener:"),
        ("[[listener]]\naddress = \"127.0.0.1:2\"\nmode = \"0600\"", "config.toml:3: listener"),
        ("[methods.ping]\ntimeouts = \"1s\"", "config.toml:2: methods.ping.timeouts: unknown key"),
        ("[restart]\nbackoff = \"1m\"\nbackoff_max = \"1s\"", "restart.backoff"),
        ("threads = 1\nthreads = 2", "config.toml:2:"),
        ("threads = ", "config.toml:1:"),
        ("[log]\nlevel = \"loud\"", "config.toml:2: log.level:"),
        ("[http]\nallow_origins = [\"a.example\"]", "config.toml:2: http.allow_origins: expected an origin"),
    ] {
        for command in ["check", "serve"] {
            let ran = with_config(config, &[command]);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{config:?}: {ran:?}");
            assert!(
                unwrapped(&ran.stderr).contains(names),
                "{config:?}: expected {names:?} in:\n{}",
                ran.stderr
            );
        }
    }
}

#[test]
fn every_mistake_of_a_config_is_told_at_once() {
    let ran = with_config("threads = 0\nfoo = 1\n[limits]\nqueue = 0", &["check", "--listen", "nowhere"]);
    assert_eq!(ran.code, Some(2));
    for place in ["--listen: ", "config.toml:1: threads", "config.toml:2: foo", "config.toml:4: limits.queue"]
    {
        assert!(ran.stderr.contains(place), "expected {place:?} in:\n{}", ran.stderr);
    }
}

#[test]
fn settings_of_a_method_there_is_not_exit_2_and_name_it() {
    for command in ["check", "serve"] {
        let ran = with_config("threads = 1\n[methods.nosuch]\ntimeout = \"1s\"", &[command]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains("config.toml:2: methods.nosuch: "), "{}", ran.stderr);
        assert!(ran.stderr.contains("tine.methods"), "it names those there are: {}", ran.stderr);
    }
}

#[test]
fn a_config_that_is_named_and_not_there_exits_2() {
    let folder = Folder::new();
    for command in ["check", "serve"] {
        let ran = in_folder(&folder, &[command, "--config", "missing.toml"]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
        assert!(ran.stderr.contains("missing.toml: "), "{}", ran.stderr);
    }
    let ran = in_folder(&folder, &["check", "--config", "."]);
    assert_eq!(ran.code, Some(2), "{ran:?}");
}

#[test]
fn a_bad_command_line_exits_2_and_starts_nothing() {
    let folder = Folder::new();
    for arguments in [
        &[][..],
        &["dance"],
        &["serve", "--port", "80"],
        &["serve", "now"],
        &["serve", "--threads", "many"],
        &["serve", "--processes", "-1"],
        &["serve", "--listen"],
        &["serve", "--listen", "nowhere"],
        &["serve", "--threads", "0"],
        &["check", "--listen", "127.0.0.1:99999"],
        &["call"],
        &["call", "ping", "1", "2"],
        &["call", "ping", "--timeout", "30"],
        &["call", "ping", "{ms: 5}"],
        &["call", "ping", "--to", "nowhere"],
        &["call", "ping", "--http", "--jsonrpc"],
    ] {
        let ran = in_folder(&folder, arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ran:?}");
        assert!(!ran.stderr.is_empty(), "{arguments:?}: it does not say why");
    }
}

#[test]
fn version_and_help_are_printed_and_exit_0() {
    let folder = Folder::new();
    let version = in_folder(&folder, &["--version"]);
    assert_eq!(version.code, Some(0));
    let tine = env!("CARGO_PKG_VERSION");
    assert_eq!(version.stdout, format!("tine {tine}\n"));
    // A program of somebody's own said tine's version as its own.
    let version = run(rig().arg("--version"), "");
    assert_eq!((version.code, version.stdout), (Some(0), format!("rig (tine {tine})\n")));
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["check", "--help"],
        &["call", "--help"],
        &["tune", "--help"],
    ] {
        let help = in_folder(&folder, arguments);
        assert_eq!((help.code, help.stderr.as_str()), (Some(0), ""), "{arguments:?}");
        assert!(help.stdout.contains("Usage: tine"), "{}", help.stdout);
    }
}

#[test]
fn call_prints_json_and_nothing_else() {
    let service = Service::start("processes = 1\nthreads = 2");
    for (arguments, printed) in [
        (&["ping", r#""ireader 0""#][..], "\"ireader 0\"\n"),
        (&["ping"], "null\n"),
        (&["echo", r#"{"a": 1.50, "b":"\u0041"}"#], "{\"a\": 1.50, \"b\":\"\\u0041\"}\n"),
        (&["echo", "-5"], "-5\n"),
        (&["blob", r#"{"bytes":3}"#], "\"xxx\"\n"),
    ] {
        let ran = call(&service, arguments, "");
        assert_eq!(
            (ran.code, ran.stdout.as_str(), ran.stderr.as_str()),
            (Some(0), printed, ""),
            "{arguments:?}"
        );
    }
    let ran = call(&service, &["echo", "-"], "[\n1 ]\n");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "[\n1 ]\n"), "{ran:?}");
}

#[test]
fn call_exits_1_with_the_error_object_for_an_error_answer() {
    let service = Service::start("processes = 1\nthreads = 2");
    for (arguments, code) in [
        (&["no such method"][..], -32601),
        (&["sleep", r#"{"ms":"soon"}"#], -32602),
        (&["panic", r#"{"message":"asked to"}"#], -32603),
        (&["fail", r#"{"code":17,"message":"no pens","data":[1]}"#], 17),
    ] {
        let ran = call(&service, arguments, "");
        assert_eq!(ran.code, Some(1), "{arguments:?}: {ran:?}");
        let error: Value = serde_json::from_str(&ran.stdout).expect("JSON");
        assert_eq!(error["code"], code, "{error}");
        assert!(error["message"].is_string(), "{error}");
    }
    let ran = call(&service, &["fail", r#"{"code":17,"message":"no pens","data":[1]}"#], "");
    let error: Value = serde_json::from_str(&ran.stdout).expect("JSON");
    assert_eq!(error, json!({ "code": 17, "message": "no pens", "data": [1] }));
    // The time that the caller gives goes with the call, so the server answers in time itself.
    let ran = call(&service, &["hang", "--timeout", "100ms"], "");
    assert_eq!(ran.code, Some(1), "{ran:?}");
    assert!(ran.stdout.contains("-32001"), "{ran:?}");
}

#[test]
fn call_exits_3_when_nobody_answers() {
    // A port that is taken and not listened on, and a socket file that is not there.
    let taken = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None).expect("a socket");
    bind(taken.as_raw_fd(), &SockaddrIn::new(127, 0, 0, 1, 0)).expect("a free port");
    let taken_address: SockaddrIn = getsockname(taken.as_raw_fd()).expect("bound");
    let folder = Folder::new();
    let nobody = format!("unix:{}", folder.path().join("nobody.sock").display());
    for to in [taken_address.to_string(), nobody] {
        let ran = in_folder(&folder, &["call", "ping", "--to", &to]);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{ran:?}");
        assert!(ran.stderr.contains(&to), "{ran:?}");
    }
    // Somebody listens there who never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let to = silent.local_addr().expect("bound").to_string();
    let ran = in_folder(&folder, &["call", "ping", "--to", &to, "--timeout", "50ms"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(3), ""), "{ran:?}");
}

#[test]
fn call_reaches_socket_files_and_ipv6() {
    let folder = Folder::new();
    let path = folder.path().join("tine.sock");
    let has_ipv6 = TcpListener::bind("[::1]:0").is_ok();
    if !has_ipv6 {
        eprintln!("SKIPPED in part: this machine has no IPv6 loopback");
    }
    let ipv6 = if has_ipv6 { ", \"[::1]:0\"" } else { "" };
    let service =
        Service::start(&format!("processes = 1\nthreads = 1\nlisten = [\"unix:{}\"{ipv6}]", path.display()));
    for address in service.addresses() {
        let ran = run(tine().args(["call", "ping", "7", "--to", address]), "");
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), "7\n"), "{ran:?}");
    }
}
