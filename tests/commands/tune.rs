//! `tine tune` as a user runs it: what it finds, what it leaves behind, and what it says when it can't.
//!
//! Rounds are short here and the machine may be busy, so nothing is said about which setting wins.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use crate::support::programs::{Ran, run, unwrapped};
use crate::support::{
    Folder, PATIENCE, await_child, await_gone, children_named, children_of, rig, send_signal,
};
use nix::sys::signal::Signal;

/// `rig tune` with its temporary files in `folder`, which is also where it runs.
fn tune(folder: &Folder, arguments: &[&str]) -> Command {
    let mut command = rig();
    command.arg("tune").args(arguments).current_dir(folder.path()).env("TMPDIR", folder.path());
    command
}

fn ran(arguments: &[&str]) -> Ran {
    let folder = Folder::new();
    let ran = run(&mut tune(&folder, arguments), "");
    assert_eq!(files(folder.path()), [""; 0], "{ran:?}");
    ran
}

fn files(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).expect("a folder");
    entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect()
}

/// A figure of the table or of a heat map, `12,345` or `60.5`.
fn number(text: &str) -> f64 {
    text.replace(',', "").parse().unwrap_or_else(|_| panic!("expected a number, found {text}"))
}

#[test]
fn a_bad_command_line_exits_2_and_says_what_was_expected() {
    for (arguments, says) in [
        (&["--params", "{ms: 5}"][..], "--params: the params are not JSON"),
        (&["--program", "no-such-program"], "--program: expected a program that can be executed"),
        (&["--method", "no such method"], "no such method is answered -32601"),
        (&["--method", "sleep", "--params", r#"{"ms":"soon"}"#], "sleep is answered -32602"),
        (&["--config", "missing.toml"], "missing.toml: "),
        (&["--out", "/dev/null/here"], "--out: expected that /dev/null/here can be written"),
        (&["--connections", "0"], "expected a whole number from 1 on"),
    ] {
        let ran = ran(arguments);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{arguments:?}: {ran:?}");
        assert!(
            unwrapped(&ran.stderr).contains(says),
            "{arguments:?}: expected {says:?} in:\n{}",
            ran.stderr
        );
    }
}

#[test]
fn a_bad_config_exits_2_and_names_the_line() {
    let folder = Folder::new();
    fs::write(folder.path().join("config.toml"), "threads = 2\nthraeds = 3\n").expect("our own folder");
    let ran = run(&mut tune(&folder, &["--method", "sleep"]), "");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(2), ""), "{ran:?}");
    assert!(ran.stderr.contains("config.toml:2: thraeds"), "{}", ran.stderr);
    assert_eq!(files(folder.path()), ["config.toml"]);
}

#[test]
fn a_server_that_does_not_start_exits_1_with_the_end_of_its_log() {
    let folder = Folder::new();
    let ran = run(tune(&folder, &["--method", "sleep"]).env("RIG_PRELOAD", "fail"), "");
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(ran.stderr.contains("RIG_PRELOAD asked for it"), "{}", ran.stderr);
    assert_eq!(files(folder.path()), [""; 0]);

    // A program that is none of ours.
    let ran = self::ran(&["--program", "/bin/false"]);
    assert_eq!((ran.code, ran.stdout.as_str()), (Some(1), ""), "{ran:?}");
    assert!(unwrapped(&ran.stderr).contains("it ended (exit status: 1); its log is empty"), "{}", ran.stderr);
}

#[test]
fn a_method_that_fails_exits_1() {
    let failing = ran(&["--method", "fail", "--params", r#"{"code":17,"message":"no pens"}"#]);
    assert_eq!((failing.code, failing.stdout.as_str()), (Some(1), ""), "{failing:?}");
    assert!(unwrapped(&failing.stderr).contains("found the error 17 (no pens)"), "{}", failing.stderr);
    let crashing = ran(&["--method", "crash", "--params", r#"{"how":"abort"}"#]);
    assert_eq!((crashing.code, crashing.stdout.as_str()), (Some(1), ""), "{crashing:?}");
    assert!(unwrapped(&crashing.stderr).contains("crash was tried, and found: "), "{}", crashing.stderr);
    assert!(unwrapped(&crashing.stderr).contains("-32002"), "{}", crashing.stderr);
    assert!(unwrapped(&crashing.stderr).contains("SIGABRT"), "the log's end is shown: {}", crashing.stderr);
}

#[test]
fn the_files_have_every_round_and_agree_with_the_table() {
    let folder = Folder::new();
    // Longer than a busy machine lets anybody wait for a core: a setting with a round without answers is not recommended.
    let arguments =
        ["--method", "spin", "--params", r#"{"us": 200}"#, "--connections", "1", "--time", "100ms"];
    let ran = run(tune(&folder, &arguments).args(["--out", "new/tuned"]), "");
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{ran:?}");
    assert_eq!(files(folder.path()), ["new"], "socket and log are gone");
    assert!(ran.stdout.starts_with("spin {\"us\": 200}, 1 connection; on "), "{}", ran.stdout);
    assert!(ran.stdout.contains("\nat most "), "{}", ran.stdout);
    let out = folder.path().join("new/tuned");
    let read =
        |name: &str| fs::read_to_string(out.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));

    let csv = read("tune.csv");
    let mut lines = csv.lines();
    let names: Vec<&str> = lines.next().expect("a line of names").split(',').collect();
    let mut rounds: BTreeMap<(String, String), Vec<(f64, bool)>> = BTreeMap::new();
    for line in lines {
        let fields: Vec<&str> = line.split(',').collect();
        assert_eq!(fields.len(), names.len(), "{line}");
        let field = |name| fields[names.iter().position(|found| *found == name).expect(name)];
        let setting = (field("processes").to_owned(), field("threads").to_owned());
        let round = (number(field("calls_per_second")), field("disturbed") == "1");
        rounds.entry(setting).or_default().push(round);
    }

    let table: Vec<Vec<&str>> = ran
        .stdout
        .lines()
        .filter(|line| line.contains(" × ") && line.contains('±'))
        .map(|line| line.trim_start_matches('→').split_whitespace().collect())
        .collect();
    assert_eq!(table.len(), rounds.len(), "a line for each setting\n{}", ran.stdout);
    let maps = [read("throughput.svg"), read("p99.svg")];
    for row in &table {
        let rounds = &rounds[&(row[0].to_owned(), row[2].to_owned())];
        // What was disturbed counts only where hardly anything else is there.
        let take_all = rounds.iter().filter(|(_, disturbed)| !disturbed).count() < 2;
        let counted = rounds.iter().filter(|(_, disturbed)| take_all || !disturbed);
        let mut rates: Vec<f64> = counted.map(|(rate, _)| *rate).collect();
        rates.sort_unstable_by(f64::total_cmp);
        let (low, high) = (rates[(rates.len() - 1) / 2], rates[rates.len() / 2]);
        let median = f64::midpoint(low, high);
        let shown = number(row[3]);
        assert!((shown - median).abs() <= 0.6, "{row:?}: the median of {rates:?} is {median}");
        assert!(maps[0].contains(&format!("\n{}\n", row[3])), "{} is not in the map", row[3]);
    }
    for map in &maps {
        assert!(map.starts_with("<svg") && map.trim_end().ends_with("</svg>"), "{map}");
    }

    let marked = ran.stdout.lines().find(|line| line.starts_with('→')).expect("one is recommended");
    let marked: Vec<&str> = marked.split_whitespace().collect();
    let lines: toml::Table = read("tune.toml").parse().expect("TOML");
    for (key, at) in [("processes", 1), ("threads", 3)] {
        assert_eq!(lines[key].as_integer().map(|count| count.to_string()).as_deref(), Some(marked[at]));
        assert!(ran.stdout.contains(&format!("\n{key} = {}\n", marked[at])), "{}", ran.stdout);
    }
}

/// A `tune` in the middle of its work, with the server that it has started.
struct Tuning {
    child: Child,
    folder: Folder,
    server: i32,
    workers: Vec<i32>,
}

impl Tuning {
    /// Waits until `servers` have been started and the last of them has a worker.
    fn start(servers: usize) -> Self {
        let folder = Folder::new();
        // Few connections: on a busy machine a single thread refuses some of many callers, and nothing would be good then.
        let load = ["--params", r#"{"ms":1}"#, "--time", "200ms", "--connections", "4"];
        let mut command = tune(&folder, &["--method", "sleep"]);
        command.args(load);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it starts");
        let mut tuning = Self { child, folder, server: 0, workers: Vec::new() };
        let begun = Instant::now();
        let mut seen: Vec<i32> = Vec::new();
        while seen.len() < servers || tuning.workers.is_empty() {
            assert!(begun.elapsed() < PATIENCE, "no server number {servers}, only {seen:?}");
            if let Some(&server) = children_of(tuning.pid()).first() {
                if !seen.contains(&server) {
                    seen.push(server);
                }
                tuning.server = server;
                tuning.workers = children_named(server, "tine-worker");
            }
            std::thread::yield_now();
        }
        tuning
    }

    fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    fn signal(&self, signal: Signal) {
        send_signal(self.pid(), signal);
    }

    /// The exit code and what was printed, once `tune` has ended.
    fn end(&mut self) -> (Option<i32>, String) {
        let ended = await_child(&mut self.child).expect("it ends");
        let mut text = String::new();
        let mut out = self.child.stdout.take().expect("a pipe");
        out.read_to_string(&mut text).expect("UTF-8");
        let mut errors = self.child.stderr.take().expect("a pipe");
        errors.read_to_string(&mut text).expect("UTF-8");
        (ended.code(), text)
    }

    fn nothing_runs(&self) {
        for pid in self.workers.iter().chain([&self.server]) {
            assert!(await_gone(*pid, PATIENCE), "process {pid} is still there");
        }
    }
}

impl Drop for Tuning {
    fn drop(&mut self) {
        // Only a failed test gets here with something left to end; the server goes with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn ctrl_c_prints_what_there_is_and_leaves_nothing_behind() {
    for signal in [Signal::SIGINT, Signal::SIGTERM] {
        // The first is the trial's; a few rounds are over then.
        let mut tuning = Tuning::start(5);
        tuning.signal(signal);
        let (code, text) = tuning.end();
        assert_eq!(code, Some(0), "{text}");
        assert!(text.contains("best guess so far: "), "{text}");
        tuning.nothing_runs();
        assert_eq!(files(tuning.folder.path()), [""; 0]);
    }
}

#[test]
fn ctrl_c_before_the_first_round_says_so() {
    let mut tuning = Tuning::start(1);
    tuning.signal(Signal::SIGINT);
    let (code, text) = tuning.end();
    // Or it had been quick, and a round was over.
    assert!(code == Some(1) || text.contains("best guess so far: "), "{code:?}: {text}");
    tuning.nothing_runs();
    assert_eq!(files(tuning.folder.path()), [""; 0]);
}

#[test]
fn a_tune_that_is_killed_takes_its_server_along() {
    let mut tuning = Tuning::start(2);
    tuning.signal(Signal::SIGKILL);
    assert_eq!(tuning.end().0, None);
    tuning.nothing_runs();
}
