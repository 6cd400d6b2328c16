//! The command line: which command, and which process this is.

mod args;
mod bench;
mod call;
mod check;
mod page;
mod params;
mod serve;
mod tune;
mod units;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::error::ErrorKind;

use crate::channel::TEMPLATE_VARIABLE;
use crate::rpc::guard;
use crate::server::Server;
use crate::supervisor;
use crate::template;

use args::{Cli, Command};

impl Server {
    /// Runs the command line: `serve`, `check`, `call`, `bench`, `--help` and the rest, with this server's methods.
    ///
    /// Call it last in `main` and return what it returns. `serve` executes the program anew for its template, with
    /// the same arguments, so what `main` does before this runs in both processes. It must not leave threads
    /// behind.
    ///
    /// The exit codes of `serve` are 0 (drained), 1 (gave up after too many boot failures), 2 (bad command line or
    /// configuration) and 3 (could not bind).
    ///
    /// ```no_run
    /// use tine::{Call, Error, Server};
    ///
    /// fn main() -> std::process::ExitCode {
    ///     Server::new().method("double", |_: &Call, n: i64| Ok::<_, Error>(2 * n)).run()
    /// }
    /// ```
    pub fn run(self) -> ExitCode {
        // Before the command line is looked at, and before anything could start a thread.
        let template_channel = template::inherited_channel();
        let handoff = supervisor::inherited();
        let cli = match Cli::parse_from_args(std::env::args_os()) {
            Ok(cli) => cli,
            Err(error) => {
                // Help goes to standard output, mistakes to standard error; a closed one is no reason to panic.
                match error.kind() {
                    ErrorKind::DisplayVersion => {
                        let _ = writeln!(io::stdout(), "{}", self.own_name());
                    }
                    _ => page::show_clap(&error),
                }
                return exit_code(error.exit_code());
            }
        };
        let service = match self.into_service() {
            Ok(service) => service,
            Err(mistakes) => {
                page::complain(&mistakes.to_string());
                return exit_code(2);
            }
        };
        let code = match (template_channel, cli.command) {
            (Some(Ok(channel)), Command::Serve(args)) => {
                return exit_code(template::run(channel, &serve::overrides(&args.config), service));
            }
            (Some(Ok(_)), _) => {
                page::complain(&format!("{TEMPLATE_VARIABLE} is set, but not for this command"));
                2
            }
            (Some(Err(error)), _) => {
                page::complain(&format!("{TEMPLATE_VARIABLE}: {error}"));
                2
            }
            (None, Command::Serve(args)) => match handoff {
                Some(handoff) => serve::go_on(handoff, &service),
                None => serve::run(&args.config, &service),
            },
            (None, Command::Check(args)) => check::run(&args.config, &service),
            (None, Command::Call(args)) => return call::run(&args),
            (None, Command::Bench(args)) => return bench::run(&args),
            (None, Command::Tune(args)) => tune::run(&args),
        };
        // Nothing that its closures do when they are dropped changes how this ends.
        let _ = guard::guarded(|| drop(service));
        exit_code(code)
    }
}

fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code).unwrap_or(u8::MAX))
}
