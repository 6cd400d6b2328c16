//! The command line: what can be typed, and the sentences that `--help` says about it.
//!
//! `cli` parses with this and hands each command's arguments to its file. Nothing here acts, reads a file or knows
//! the config; a value that only the config can judge goes on as it was typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::page;
use crate::config::span;
use crate::rpc::TINE;

const SERVE_EXIT: &str = "\
Exit codes:
  0  asked to stop
  1  gave up: too many workers ended before they could serve
  2  bad command line or config
  3  could not bind an address";

const CHECK_EXIT: &str = "\
Exit codes:
  0  `serve` would start with this; warnings are on standard error
  2  bad command line or config";

const CALL_EXIT: &str = "\
Standard output is JSON and nothing else: the result, or the error object that
the server answered with.

Exit codes:
  0  a result
  1  an error answer, such as -32001 where the server found that time was up
  2  bad command line; nothing was sent
  3  no answer: no server there, the connection was lost, or nothing came in time

Examples:
  call ping '\"ireader 0\"'
  call echo - < params.json
  call tine.worker --to unix:/run/tine.sock --timeout 500ms
  call echo '[1, 2]' --jsonrpc";

const BENCH_HELP: &str = "\
A closed loop sends the next call of a connection when one is answered. With
--rate calls are due at even distances, and a latency counts from the moment
when its call was due, so a server that stalls can't hide it.

Every answer is checked: the result of `ping` and `echo` to the last byte, of
other methods that it has the same name as the first. A wrong answer or a closed
connection costs that connection, which is made anew.

Ctrl-C ends it and prints what was measured until then; a second one ends it at
once.

--json prints one object:
  to, method, connections, pipeline, rate
      what was asked for; rate is null in a closed loop
  warm_up_s, measured_s
      seconds before and while calls were counted
  interrupted
      true after Ctrl-C
  calls_per_second
      right answers that arrived in the measured time, for each second of it
  calls, errors, wrong, unanswered
      each call that started (--rate: was due) in that time, by how it ended;
      answers are waited for 5s after the end
  closed
      connections that the server closed
  latency_ns
      of `calls`: min, mean, p50, p75, p90, p99, p99.9, p99.99, max
  load_cpu_share
      of one core, that the load itself used
  server_cpu_s, server_cpu_us_per_call
      with --pid, else null
  first_error, first_wrong
      what came in place of an answer, or null

Exit codes:
  0  every call was answered right, or Ctrl-C
  1  some call failed, was answered wrong or not at all, or the server closed a
     connection
  2  bad command line
  3  no server there, or it takes fewer connections

Examples:
  bench
  bench --method echo --params '{\"a\": [1, 2]}' --pipeline 16
  bench --method sleep --params '{\"ms\": 5}' --rate 2000 --duration 1m --json";

const TUNE_EXIT: &str = "\
Starts the server again and again on a socket file of its own, and ends it. Load
and server share the CPUs.

The recommended setting is the smallest (threads in all, then processes) that no
larger one beats by more than noise.

Files in --out: tune.csv (every round), throughput.svg and p99.svg (heat maps),
tune.toml (the lines to paste).

Ctrl-C ends it and prints what there is.

Exit codes:
  0  measured; after Ctrl-C what there was
  1  the server or the method fails, or nothing was measured
  2  bad command line or config, no such method, or params it does not take

Examples:
  tune --method convert --params '{\"file\": \"a.pdf\"}' --out tuned
  tune --program ./orders --config orders.toml --method list";

const ROUND_TIME: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(3600));

/// One command line, understood.
#[derive(Debug, Parser)]
#[command(about = "An RPC server: processes and threads for handlers that block, burn CPU, leak or crash")]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Serve calls in the foreground until told to stop
    #[command(after_help = SERVE_EXIT)]
    Serve(ServeArgs),
    /// Check the config and print what `serve` would run, without running it
    #[command(after_help = CHECK_EXIT)]
    Check(CheckArgs),
    /// Make one call and print its result as JSON
    #[command(after_help = CALL_EXIT)]
    Call(CallArgs),
    /// Put a server under load and measure how fast it answers
    #[command(after_help = BENCH_HELP)]
    Bench(BenchArgs),
    /// Measure which processes × threads fit a method
    #[command(after_help = TUNE_EXIT)]
    Tune(TuneArgs),
}

#[derive(Debug, Args)]
pub(crate) struct ServeArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CheckArgs {
    #[command(flatten)]
    pub(crate) config: ConfigArgs,
}

/// Which config, and what stands above it.
#[derive(Debug, Default, Args)]
pub(crate) struct ConfigArgs {
    /// Config file [default: config.toml in the working directory, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Listen here instead of where the config says: HOST:PORT (IPv6 in brackets) or unix:PATH; may be repeated
    #[arg(long, value_name = "ADDR")]
    pub(crate) listen: Vec<String>,
    /// Worker processes, instead of what the config says; 0 is one for each CPU
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole)]
    pub(crate) processes: Option<usize>,
    /// Handler threads in each process, instead of what the config says
    #[arg(long, value_name = "N", allow_negative_numbers = true, value_parser = whole)]
    pub(crate) threads: Option<usize>,
}

#[derive(Debug, Args)]
pub(crate) struct CallArgs {
    /// The method's name, such as ping
    pub(crate) method: String,
    /// The params as JSON, `-` to read them from standard input; without them the call has none
    #[arg(allow_negative_numbers = true)]
    pub(crate) params: Option<String>,
    /// The server's address: HOST:PORT (IPv6 in brackets) or unix:PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) to: String,
    /// How long the call may take, such as 500ms or 1m 30s
    #[arg(long, value_name = "D", default_value = "30s", value_parser = timeout)]
    pub(crate) timeout: Duration,
    /// Call in JSON-RPC 2.0 instead of the native envelope; params that are neither array nor object are sent as an array of one
    #[arg(long = "jsonrpc")]
    pub(crate) json_rpc: bool,
    /// Call by HTTP: POST /METHOD with the params as body
    #[arg(long, conflicts_with = "json_rpc")]
    pub(crate) http: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchArgs {
    /// The server's address: HOST:PORT (IPv6 in brackets) or unix:PATH
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:8080")]
    pub(crate) to: String,
    /// Connections, all open before the first call
    #[arg(long, value_name = "N", default_value_t = 64, allow_negative_numbers = true, value_parser = whole)]
    pub(crate) connections: usize,
    /// Calls in flight on each connection
    #[arg(long, value_name = "N", default_value_t = 1, allow_negative_numbers = true, value_parser = whole)]
    pub(crate) pipeline: usize,
    /// Calls a second over all connections, sent when they are due; without it, as many as are answered
    #[arg(long, value_name = "R", allow_negative_numbers = true)]
    pub(crate) rate: Option<f64>,
    /// How long to measure, such as 500ms or 1m 30s
    #[arg(long, value_name = "D", default_value = "10s", value_parser = measured_time)]
    pub(crate) duration: Duration,
    /// Time under load before anything is counted
    #[arg(long, value_name = "D", default_value = "1s", value_parser = time)]
    pub(crate) warm_up: Duration,
    /// The method to call
    #[arg(long, value_name = "M", default_value = "ping")]
    pub(crate) method: String,
    /// The params as JSON, `-` to read them from standard input; without them the calls have none
    #[arg(long, value_name = "JSON", allow_hyphen_values = true)]
    pub(crate) params: Option<String>,
    /// Also print the CPU time that this process and all below it used for each call: the server's supervisor, or a worker
    #[arg(long, value_name = "PID")]
    pub(crate) pid: Option<u32>,
    /// Print one JSON object and nothing else
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct TuneArgs {
    /// Config file that the server is started with [default: config.toml in the working directory, if there is one]
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// The program whose `serve` is measured [default: this program]
    #[arg(long, value_name = "PATH")]
    pub(crate) program: Option<PathBuf>,
    /// The method to call
    #[arg(long, value_name = "M", default_value = "ping")]
    pub(crate) method: String,
    /// Its params as JSON; without them the calls have none
    #[arg(long, value_name = "JSON", allow_negative_numbers = true)]
    pub(crate) params: Option<String>,
    /// Connections that call at the same time, one call after the other: as many callers as you expect
    #[arg(long, value_name = "N", default_value = "64", allow_negative_numbers = true, value_parser = from_one)]
    pub(crate) connections: usize,
    /// How long a setting is measured in each of its rounds [default: 400ms, longer for slow methods]
    #[arg(long, value_name = "D", value_parser = round_time)]
    pub(crate) time: Option<Duration>,
    /// Folder for the data, heat maps and config lines; made if it is not there
    #[arg(long, value_name = "DIR")]
    pub(crate) out: Option<PathBuf>,
}

impl Cli {
    /// Reads `args`, whose first is the program's path: its file name is what help and errors call the program.
    /// The error may be help that was asked for; it prints itself and knows its exit code. Where it is that the version was asked
    /// for, the caller knows that better.
    pub(crate) fn parse_from_args(args: impl IntoIterator<Item = OsString>) -> Result<Self, clap::Error> {
        let args: Vec<OsString> = args.into_iter().collect();
        let name = args.first().and_then(|path| PathBuf::from(path).file_name().map(OsString::from));
        let name = name.map_or_else(|| "tine".to_owned(), |name| name.to_string_lossy().into_owned());
        let mut command = Self::command().version(TINE).bin_name(name).max_term_width(page::WIDTH);
        let mut matches = command.try_get_matches_from_mut(args)?;
        Self::from_arg_matches_mut(&mut matches).map_err(|error| error.format(&mut command))
    }
}

fn timeout(text: &str) -> Result<Duration, String> {
    some_time(text, "a call")
}

fn measured_time(text: &str) -> Result<Duration, String> {
    some_time(text, "measuring")
}

fn some_time(text: &str, what: &str) -> Result<Duration, String> {
    let time = time(text)?;
    if time.is_zero() { Err(format!("{what} needs some time, such as 500ms")) } else { Ok(time) }
}

fn time(text: &str) -> Result<Duration, String> {
    span::parse(text)
        .map_err(|why| format!("{why}; write a number with its unit, such as 500ms, 30s or 1m 30s"))
}

fn whole(text: &str) -> Result<usize, String> {
    text.parse().map_err(|_| "expected a whole number from 0 on".to_owned())
}

fn from_one(text: &str) -> Result<usize, String> {
    match whole(text) {
        Ok(0) | Err(_) => Err("expected a whole number from 1 on".to_owned()),
        Ok(count) => Ok(count),
    }
}

/// Below some milliseconds the clock's steps would be measured, above an hour nobody waits.
fn round_time(text: &str) -> Result<Duration, String> {
    match span::parse(text) {
        Ok(time) if (ROUND_TIME.0..=ROUND_TIME.1).contains(&time) => Ok(time),
        Ok(_) => Err("expected 10ms to 1h".to_owned()),
        Err(why) => Err(format!("{why}; write a number with its unit, such as 400ms or 2s")),
    }
}

#[cfg(test)]
mod tests {
    use clap::error::ErrorKind;

    use super::*;

    fn parse(line: &[&str]) -> Result<Command, clap::Error> {
        Cli::parse_from_args(line.iter().map(OsString::from)).map(|cli| cli.command)
    }

    fn call(line: &[&str]) -> CallArgs {
        let line: Vec<&str> = ["tine", "call"].iter().chain(line).copied().collect();
        match parse(&line) {
            Ok(Command::Call(args)) => args,
            other => panic!("expected a call, found {other:?}"),
        }
    }

    #[test]
    fn the_definition_holds_together() {
        Cli::command().debug_assert();
    }

    #[test]
    fn serve_and_check_take_the_same_overrides() {
        let overrides = [
            "--config",
            "a.toml",
            "--listen",
            "[::1]:1",
            "--listen",
            "unix:s",
            "--processes",
            "0",
            "--threads",
            "2",
        ];
        for command in ["serve", "check"] {
            let line: Vec<&str> = ["tine", command].iter().chain(&overrides).copied().collect();
            let config = match parse(&line) {
                Ok(Command::Serve(args)) => args.config,
                Ok(Command::Check(args)) => args.config,
                other => panic!("expected {command}, found {other:?}"),
            };
            assert_eq!(config.config, Some(PathBuf::from("a.toml")));
            assert_eq!(config.listen, ["[::1]:1", "unix:s"]);
            assert_eq!((config.processes, config.threads), (Some(0), Some(2)));
        }
    }

    #[test]
    fn a_call_has_an_address_and_a_timeout_without_being_told() {
        let args = call(&["ping"]);
        assert_eq!((args.method.as_str(), args.params.as_deref()), ("ping", None));
        assert_eq!((args.to.as_str(), args.timeout), ("127.0.0.1:8080", Duration::from_secs(30)));
        assert!(!args.json_rpc && !args.http);
        assert!(call(&["ping", "--jsonrpc"]).json_rpc && call(&["ping", "--http"]).http);
    }

    #[test]
    fn params_may_be_a_negative_number_or_standard_input() {
        for params in ["-5", "-1.5e3", "-", "\"--to\"", "[-1]"] {
            assert_eq!(call(&["echo", params, "--timeout", "1m 30s"]).params.as_deref(), Some(params));
        }
    }

    #[test]
    fn a_bad_command_line_exits_2_and_help_exits_0() {
        for bad in [
            &["tine"][..],
            &["tine", "dance"],
            &["tine", "call"],
            &["tine", "serve", "--processes", "-1"],
            &["tine", "serve", "--threads", "many"],
            &["tine", "call", "ping", "--timeout", "0s"],
            &["tine", "call", "ping", "--timeout", "30"],
            &["tine", "call", "ping", "1", "2"],
            &["tine", "call", "ping", "--http", "--jsonrpc"],
            &["tine", "bench", "--duration", "0s"],
            &["tine", "bench", "--warm-up", "soon"],
            &["tine", "bench", "--connections", "-1"],
            &["tine", "bench", "--rate", "fast"],
            &["tine", "bench", "--pid", "0x1"],
            &["tine", "bench", "ping"],
            &["tine", "tune", "--connections", "0"],
            &["tine", "tune", "--connections", "many"],
            &["tine", "tune", "--time", "1ms"],
            &["tine", "tune", "--time", "30"],
            &["tine", "tune", "ping"],
        ] {
            assert_eq!(parse(bad).expect_err("a refusal").exit_code(), 2, "{bad:?}");
        }
        for good in [&["tine", "--help"][..], &["tine", "--version"], &["tine", "serve", "--help"]] {
            assert_eq!(parse(good).expect_err("something to print").exit_code(), 0, "{good:?}");
        }
    }

    #[test]
    fn what_is_no_number_is_told_what_one_is() {
        for bad in [
            &["tine", "serve", "--processes", "-1"][..],
            &["tine", "serve", "--threads", "many"],
            &["tine", "bench", "--connections", "-1"],
            &["tine", "bench", "--pipeline", "1.5"],
            &["tine", "tune", "--connections", "0"],
        ] {
            let refusal = parse(bad).expect_err("a refusal").to_string();
            assert!(refusal.contains("expected a whole number from "), "{bad:?}: {refusal}");
        }
    }

    #[test]
    fn bench_alone_is_what_the_load_is_by_default() {
        let Ok(Command::Bench(args)) = parse(&["tine", "bench"]) else { panic!("expected bench") };
        let load = crate::client::load::Load::default();
        assert_eq!((args.to, args.connections, args.pipeline), (load.to, load.connections, load.pipeline));
        assert_eq!((args.rate, args.warm_up, args.duration), (load.rate, load.warm_up, load.duration));
    }

    #[test]
    fn a_program_goes_by_the_name_it_was_started_as() {
        let version = parse(&["/opt/shop/orders", "--version"]).expect_err("a version");
        assert_eq!(version.kind(), ErrorKind::DisplayVersion);
        let help = parse(&["./orders", "call", "--help"]).expect_err("help").to_string();
        assert!(help.contains("Usage: orders call"), "{help}");
        assert!(!help.contains("tine call"), "{help}");
    }

    #[test]
    fn serves_help_names_its_exit_codes() {
        let help = parse(&["tine", "serve", "--help"]).expect_err("help").to_string();
        assert!(help.contains("3  could not bind"), "{help}");
    }
}
