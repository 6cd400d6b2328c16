//! No line that a command prints for a person is wider than 80 columns: help, errors, warnings, reports and progress, in a pipe
//! and on any terminal.
//!
//! The help of `bench` had twenty lines that were wider, its report began with one, and failures made `tune`'s table wider still.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::Read;
use std::process::{Command, Stdio};
use std::thread;

use crate::support::programs::{run, unwrapped};
use crate::support::{Folder, Service, await_child, rig, tine};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use unicode_width::UnicodeWidthStr;

const COLUMNS: usize = 80;

/// Fails when a line of what `what` printed is too wide. A progress bar's lines are drawn over each other, and are followed by
/// spaces to the end of the terminal.
fn fits(printed: &str, what: &str) {
    let bare = anstream::adapter::strip_str(printed).to_string();
    for line in bare.split(['\n', '\r']).map(str::trim_end) {
        assert!(line.width() <= COLUMNS, "{what}: {} columns in\n{line}\nof\n{bare}", line.width());
    }
}

/// Runs it with pipes, with each of the widths in its environment; what it printed the last time, without line breaks.
fn ran_with_pipes(command: impl Fn() -> Command + Sync) -> String {
    let run_in = |columns: Option<&str>| {
        let mut command = command();
        command.env_remove("COLUMNS").envs(columns.map(|columns| ("COLUMNS", columns)));
        let ran = run(&mut command, "");
        fits(&ran.stdout, &format!("{command:?}"));
        fits(&ran.stderr, &format!("{command:?}"));
        ran.stdout + &ran.stderr
    };
    let printed = thread::scope(|scope| {
        for columns in [None, Some("40")] {
            scope.spawn(move || run_in(columns));
        }
        run_in(Some("200"))
    });
    assert!(!printed.is_empty(), "it says something");
    unwrapped(&printed)
}

/// Runs it on a terminal so wide; what it printed.
fn ran_on_terminal(mut command: Command, columns: u16) -> String {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("a terminal of ours");
    unlockpt(&terminal).expect("a terminal of ours");
    let name = ptsname(&terminal, Vec::new()).expect("a terminal has a name");
    let size = Winsize { ws_row: 50, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(&terminal, size).expect("a terminal has a size");
    let end = || File::options().read(true).write(true).open(name.to_str().expect("ASCII")).expect("its end");
    command.env("TERM", "xterm").env_remove("COLUMNS");
    command.stdin(Stdio::null()).stdout(end()).stderr(end());
    let mut child = command.spawn().expect("the program starts");
    // Its end of the terminal is the program's alone.
    let what = format!("{command:?} on {columns} columns");
    drop(command);
    let mut printed = Vec::new();
    let (mut terminal, mut piece) = (File::from(terminal), [0; 4096]);
    // When nobody has the other end any more this is EIO.
    while let Ok(count @ 1..) = terminal.read(&mut piece) {
        printed.extend_from_slice(&piece[..count]);
    }
    await_child(&mut child).unwrap_or_else(|| panic!("{what} does not end"));
    let printed = String::from_utf8(printed).expect("UTF-8");
    fits(&printed, &what);
    printed
}

/// The commands that a help text lists.
fn commands(help: &str) -> BTreeSet<String> {
    let listed = help.lines().skip_while(|line| *line != "Commands:").skip(1);
    listed
        .take_while(|line| !line.is_empty())
        .filter(|line| line.starts_with("  ") && !line.starts_with("   "))
        .filter_map(|line| line.split_whitespace().next().map(str::to_owned))
        .collect()
}

/// The help of the program's command `path` and of all below it, each also on terminals.
fn walk(program: fn() -> Command, path: &[String], seen: &mut Vec<String>) {
    let help = || {
        let mut command = program();
        command.args(path).arg("--help");
        command
    };
    assert!(ran_with_pipes(help).contains("Usage: "), "{path:?}");
    let text = run(&mut help(), "").stdout;
    for columns in [20, 80, 200] {
        assert!(ran_on_terminal(help(), columns).contains("Usage"), "{path:?}");
    }
    seen.push(path.join(" "));
    for command in commands(&text).iter().filter(|command| *command != "help") {
        walk(program, &[path, std::slice::from_ref(command)].concat(), seen);
    }
}

#[test]
fn the_help_of_every_command() {
    for program in [tine as fn() -> Command, rig] {
        let mut seen = Vec::new();
        walk(program, &[], &mut seen);
        for command in ["", "serve", "check", "call", "bench", "tune"] {
            assert!(seen.iter().any(|seen| seen == command), "{command:?} is not among {seen:?}");
        }
    }
}

#[test]
fn what_is_wrong_with_a_command_line() {
    let long = "x".repeat(300);
    let words = "several words ".repeat(30);
    for arguments in [
        &[][..],
        &[long.as_str()],
        &["check", "--config", &long],
        &["serve", "--config", &long],
        &["serve", "--listen", &words],
        &["serve", "--processes", &long],
        &["call", "ping", "--timeout", "soon"],
        &["call", "ping", &words],
        &["call", "ping", "--to", &long],
        &["call", "ping", "--to", "127.0.0.1:1", "--http", "--jsonrpc"],
        &["call", &long, &long, &long, &long],
        &["bench", "--params", &long],
        &["bench", "--rate", "fast", "--to", &words],
        &["bench", "--warm-up", &words],
        &["bench", "--to", "127.0.0.1:1", "--duration", "99999999999999999999s"],
        &["bench", "--connections", "18446744073709551615", "--pipeline", "18446744073709551615"],
        &["tune", "--time", &words],
        &["tune", "--program", &long],
        &["tune", "--out", "/dev/null/here/and/there/and/everywhere/else/where/nothing/can/be/written"],
    ] {
        let folder = Folder::new();
        let command = || {
            let mut command = tine();
            command.args(arguments).current_dir(folder.path()).env("TMPDIR", folder.path());
            command
        };
        ran_with_pipes(command);
        ran_on_terminal(command(), 200);
    }
}

#[test]
fn a_configuration_with_its_warnings_and_its_mistakes() {
    let folder = Folder::new();
    let long = "a".repeat(90);
    let listen = (1..9).map(|port| format!("\"unix:{}/{port}\"", folder.path().display()));
    let listen = listen.collect::<Vec<_>>().join(", ");
    for (config, code) in [
        (format!("listen = [{listen}]\nprocesses = 1\n[timeouts]\ndrain = \"1s\"\nrequest = \"2s\""), Some(0)),
        ("[http]\nallow_origins = [\"https://a.example\", \"https://b.example\"]\nhosts = [\"a.example\", \"b.example\", \
          \"c.example\", \"d.example\", \"e.example\"]".to_owned(), Some(0)),
        (format!("{long} = 1\n[limits]\nqueu = 1\n[methods.{long}]\nlater = true"), Some(2)),
        (format!("[methods.{long}]\ntimeout = \"1s\""), Some(2)),
    ] {
        fs::write(folder.path().join("config.toml"), &config).expect("our own folder");
        let check = || {
            let mut check = rig();
            check.arg("check").current_dir(folder.path());
            check
        };
        ran_with_pipes(check);
        ran_on_terminal(check(), 200);
        assert_eq!(run(&mut check(), "").code, code, "{config}");
    }
}

#[test]
fn the_report_of_bench_with_its_errors() {
    let service = Service::start("processes = 1\nthreads = 2");
    let long = format!("a method's name {}字", "that goes on and on ".repeat(20));
    let message = format!(r#"{{"code":17,"message":"{}"}}"#, "no pens ".repeat(30));
    let (to, pid) = (service.address(), service.pid().to_string());
    for (arguments, says) in [
        (&["--pid", &pid][..], "server CPU"),
        (&["--method", &long], "-32601"),
        (&["--method", "fail", "--params", &message], "no pens"),
        // More than can be: the load says that it fell behind.
        (&["--rate", "99999999", "--connections", "1"], "the others waited"),
        (&["--connections", "1", "--pipeline", "1", "--rate", "1234.56789012345"], "1234.56789012345"),
    ] {
        let bench = || {
            let mut bench = tine();
            bench.args(["bench", "--to", to, "--duration", "100ms", "--warm-up", "0s"]);
            bench.args(arguments);
            bench
        };
        thread::scope(|scope| {
            for columns in [40, 200] {
                scope.spawn(move || ran_on_terminal(bench(), columns));
            }
            let printed = ran_with_pipes(bench);
            assert!(printed.contains(says), "{arguments:?}: expected {says:?} in:\n{printed}");
        });
    }
}

fn folder_with(config: &str) -> Folder {
    let folder = Folder::new();
    fs::write(folder.path().join("config.toml"), config).expect("our own folder");
    folder
}

fn tune(folder: &Folder, method: &str, params: &str) -> Command {
    let mut tune = rig();
    tune.args(["tune", "--method", method, "--params", params]);
    tune.current_dir(folder.path()).env("TMPDIR", folder.path());
    tune
}

/// Nobody is refused, however busy the machine is.
const REFUSES_NOBODY: &str = "[limits]\nqueue_wait = \"60s\"";

#[test]
fn the_report_of_tune_with_failures_and_progress() {
    // One thread refuses some of three callers.
    let config = "[limits]\nqueue = 1\nqueue_wait = \"60s\"";
    let params = format!(r#"{{"ms": 10, "for": "{}"}}"#, "字".repeat(200));
    let folder = folder_with(config);
    let mut refusing = tune(&folder, "sleep", &params);
    refusing.args(["--connections", "3", "--time", "50ms"]);
    let printed = ran_on_terminal(refusing, 200);
    for words in ["rounds at most", "error"] {
        assert!(printed.contains(words), "expected {words:?} in:\n{printed}");
    }
}

#[test]
fn the_report_of_tune_with_a_recommendation() {
    let folder = folder_with(REFUSES_NOBODY);
    let mut well = tune(&folder, "ping", "[]");
    well.args(["--connections", "1", "--time", "50ms", "--out", "tuned"]);
    let printed = run(&mut well, "").stdout;
    fits(&printed, "a report with a recommendation");
    assert!(printed.contains("\nprocesses = "), "{printed}");
    fits(
        &fs::read_to_string(folder.path().join("tuned/tune.toml")).expect("the lines to paste"),
        "tune.toml",
    );
}

#[test]
fn why_tune_fails_before_the_first_round() {
    let folder = folder_with(REFUSES_NOBODY);
    for (method, params, says) in [
        ("crash", r#"{"how":"abort"}"#, "its log ends with"),
        ("fail", r#"{"code":17,"message":"no pens"}"#, "no pens"),
        (&"no such method ".repeat(20), "[]", "-32601"),
    ] {
        let printed = ran_with_pipes(|| tune(&folder, method, params));
        assert!(printed.contains(says), "{method}: expected {says:?} in:\n{printed}");
    }
}
