//! Whether `tine tune` is right: what it recommends for three handlers, against the full grid.
//!
//! `cargo bench --bench tune` runs `rig tune` for each handler, then measures every setting of the grid itself, in passes
//! that run to and fro, and prints both. It ends with 1 if a recommended setting has less than 0.95 of the best cell, or a
//! smaller one is within noise of it. That takes about ten minutes, more while other programs use the CPUs. Names (`sleep`, `spin`, `mix`) as arguments choose
//! handlers. Without the `--bench` that cargo adds, as in `cargo test --all-targets`, short rounds show that it works.

use std::collections::BTreeSet;
use std::error::Error;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tine::load::{Load, Native};

const HANDLERS: [(&str, &str); 3] =
    [("sleep", r#"{"ms": 10}"#), ("spin", r#"{"us": 1000}"#), ("mix", r#"{"ms": 5, "us": 500}"#)];
const THREADS: [usize; 12] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64];
const CONNECTIONS: usize = 64;

/// What the recommended setting must have of the best cell.
const SHARE: f64 = 0.95;
/// Smaller settings may not come as near as this.
const NOISE: f64 = 0.03;

/// How thoroughly it is measured.
struct Effort {
    passes: usize,
    warm_up: Duration,
    time: Duration,
    /// Arguments of `tune`.
    tune: &'static [&'static str],
    /// How long to wait for a quiet machine before a round.
    patience: Duration,
    /// Whether a wrong answer of `tune` counts; short rounds say little.
    counts: bool,
}

const FULL: Effort = Effort {
    passes: 5,
    warm_up: Duration::from_millis(100),
    time: Duration::from_millis(400),
    tune: &[],
    patience: Duration::from_millis(600),
    counts: true,
};
const SHORT: Effort = Effort {
    passes: 1,
    warm_up: Duration::from_millis(5),
    time: Duration::from_millis(10),
    tune: &["--time", "10ms"],
    patience: Duration::ZERO,
    counts: false,
};

/// Between two looks at how busy the machine is, and what must be idle of it then.
const LOOK: Duration = Duration::from_millis(100);
const QUIET_SHARE: f64 = 0.8;

/// Processes and threads.
type Setting = (usize, usize);
type Anything = Result<(), Box<dyn Error>>;

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let effort = if arguments.iter().any(|argument| argument == "--bench") { FULL } else { SHORT };
    let chosen = |name: &str| arguments.iter().any(|argument| argument == name);
    let all = !HANDLERS.iter().any(|(name, _)| chosen(name));
    let place = Place::new()?;
    let mut wrong = 0;
    for (method, params) in HANDLERS.into_iter().filter(|(name, _)| all || chosen(name)) {
        wrong += u8::from(!check(&place, method, params, &effort)?);
    }
    Ok(if effort.counts { ExitCode::from(wrong) } else { ExitCode::SUCCESS })
}

/// Lets `tune` recommend, measures the grid, prints both; true if the recommendation is right.
fn check(place: &Place, method: &str, params: &str, effort: &Effort) -> Result<bool, Box<dyn Error>> {
    println!("== {method} {params}\n");
    let recommended = place.tune(method, params, effort)?;
    let mut settings: BTreeSet<Setting> = BTreeSet::from([recommended]);
    for processes in steps(2 * std::thread::available_parallelism()?.get()) {
        settings.extend(THREADS.map(|threads| (processes, threads)));
    }
    let mut grid: Vec<(Setting, Vec<f64>)> =
        settings.into_iter().map(|setting| (setting, Vec::new())).collect();
    for pass in 0..effort.passes {
        for index in 0..grid.len() {
            let index = if pass % 2 == 0 { index } else { grid.len() - 1 - index };
            let (setting, rates) = &mut grid[index];
            rates.push(place.rate(*setting, method, params, effort)?);
        }
    }
    let grid: Vec<(Setting, f64)> =
        grid.into_iter().map(|(setting, rates)| (setting, median(rates))).collect();
    print_grid(&grid);

    let (best, most) = grid.iter().copied().max_by(|a, b| a.1.total_cmp(&b.1)).ok_or("a grid")?;
    let rate = grid.iter().find(|(setting, _)| *setting == recommended).ok_or("it is in the grid")?.1;
    let near = |(setting, other): &&(Setting, f64)| {
        size(*setting) < size(recommended) && *other >= rate * (1.0 - NOISE)
    };
    let smaller: Vec<String> = grid
        .iter()
        .filter(near)
        .map(|((processes, threads), other)| format!("{processes} × {threads} with {other:.0}"))
        .collect();
    let share = rate / most;
    println!(
        "\nrecommended {} × {} with {rate:.0} calls/s, best {} × {} with {most:.0}: {share:.3} of it ({SHARE} wanted)",
        recommended.0, recommended.1, best.0, best.1
    );
    println!(
        "smaller and within {:.0} % of it: {}",
        NOISE * 100.0,
        if smaller.is_empty() { "none, as wanted".to_owned() } else { smaller.join(", ") }
    );
    let is_right = share >= SHARE && smaller.is_empty();
    println!("{}\n", if is_right { "right" } else { "WRONG" });
    Ok(is_right)
}

/// Smaller is fewer threads in all, then fewer processes.
fn size((processes, threads): Setting) -> (usize, usize) {
    (processes * threads, processes)
}

fn steps(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(1), |step| Some(step * 2)).take_while(move |&step| step <= most)
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

fn print_grid(grid: &[(Setting, f64)]) {
    let threads: BTreeSet<usize> = grid.iter().map(|((_, threads), _)| *threads).collect();
    let processes: BTreeSet<usize> = grid.iter().map(|((processes, _), _)| *processes).collect();
    let head: String = threads.iter().map(|count| format!("{count:>7}")).collect();
    println!("the grid, calls/s: processes downwards, threads to the right\n     {head}");
    for row in processes {
        let rate =
            |count: &usize| grid.iter().find(|(setting, _)| *setting == (row, *count)).map(|(_, rate)| *rate);
        let cells = threads
            .iter()
            .map(|count| rate(count).map_or("       ".to_owned(), |rate| format!("{rate:>7.0}")));
        println!("{row:>5}{}", cells.collect::<String>());
    }
}

/// The rig, and a folder for its socket and configuration.
struct Place {
    rig: PathBuf,
    folder: PathBuf,
}

impl Place {
    fn new() -> Result<Self, Box<dyn Error>> {
        let mut build = Command::new(env!("CARGO"));
        build.args(["build", "--quiet", "--example", "rig"]).current_dir(env!("CARGO_MANIFEST_DIR"));
        if !cfg!(debug_assertions) {
            build.arg("--release");
        }
        if !build.status()?.success() {
            return Err("the rig can't be built".into());
        }
        let programs = Path::new(env!("CARGO_BIN_EXE_tine")).parent().ok_or("a binary is in a folder")?;
        let folder = std::env::temp_dir().join(format!("tine-bench-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        fs::write(folder.join("config.toml"), "[log]\nformat = \"json\"\n")?;
        Ok(Self { rig: programs.join("examples/rig"), folder })
    }

    /// What `tune` recommends; its output is shown.
    fn tune(&self, method: &str, params: &str, effort: &Effort) -> Result<Setting, Box<dyn Error>> {
        let mut tune = Command::new(&self.rig);
        tune.args(["tune", "--method", method, "--params", params])
            .args(effort.tune)
            .current_dir(&self.folder);
        let out = tune.stderr(Stdio::inherit()).output()?;
        let text = String::from_utf8(out.stdout)?;
        println!("{text}");
        let line = |key: &str| {
            let value = text.lines().rev().find_map(|line| line.strip_prefix(key)?.strip_prefix(" = "));
            value.ok_or(format!("tune names no {key}"))?.parse::<usize>().map_err(|error| error.to_string())
        };
        Ok((line("processes")?, line("threads")?))
    }

    /// Right answers a second in one round.
    fn rate(
        &self,
        setting: Setting,
        method: &str,
        params: &str,
        effort: &Effort,
    ) -> Result<f64, Box<dyn Error>> {
        await_quiet(effort.patience)?;
        let server = Server::start(self, setting)?;
        let load = Load {
            to: server.address.clone(),
            connections: CONNECTIONS,
            warm_up: effort.warm_up,
            duration: effort.time,
            ..Load::default()
        };
        let report = load.run(&Native::new(method, Some(params))?, &AtomicBool::new(false), &mut |_| {})?;
        server.end()?;
        Ok(if report.is_clean() { report.rate() } else { 0.0 })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

/// Waits until other programs leave the CPUs alone, but no longer than `patience`.
fn await_quiet(patience: Duration) -> Anything {
    let begun = Instant::now();
    let mut before = idle_ticks()?;
    while begun.elapsed() < patience {
        std::thread::sleep(LOOK);
        let now = idle_ticks()?;
        if now - before
            >= QUIET_SHARE * LOOK.as_secs_f64() * 100.0 * as_f64(std::thread::available_parallelism()?.get())
        {
            break;
        }
        before = now;
    }
    Ok(())
}

/// Hundredths of a second in which the CPUs had nothing to do.
fn idle_ticks() -> Result<f64, Box<dyn Error>> {
    let text = fs::read_to_string("/proc/stat")?;
    let line = text.lines().next().ok_or("a line for all CPUs")?;
    Ok(line.split_whitespace().nth(4).ok_or("the idle time")?.parse()?)
}

fn as_f64(count: usize) -> f64 {
    f64::from(u32::try_from(count).unwrap_or(u32::MAX))
}

/// A server with all its workers ready, killed when it is dropped.
struct Server {
    child: Child,
    address: String,
}

impl Server {
    fn start(place: &Place, (processes, threads): Setting) -> Result<Self, Box<dyn Error>> {
        let address = format!("unix:{}", place.folder.join("s").display());
        let mut serve = Command::new(&place.rig);
        serve.args(["serve", "--listen", &address, "--processes", &processes.to_string()]);
        serve.args(["--threads", &threads.to_string()]).current_dir(&place.folder);
        let mut child = serve.stdin(Stdio::null()).stderr(Stdio::piped()).spawn()?;
        let log = child.stderr.take().ok_or("standard error is a pipe")?;
        let server = Self { child, address };
        let mut lines = BufReader::new(log).lines();
        let mut ready = 0;
        while ready < processes {
            let line = lines.next().ok_or("the server ended before it was ready")??;
            ready += usize::from(line.contains("worker ready"));
        }
        // Read on, or the server would drop lines and count them.
        std::thread::spawn(move || lines.for_each(drop));
        Ok(server)
    }

    fn end(mut self) -> Anything {
        kill(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGTERM)?;
        let ended = self.child.wait()?;
        if ended.success() {
            Ok(())
        } else {
            Err(format!("expected the server to end with 0, found {ended}").into())
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
