//! `tine serve`: the daemon in the foreground.

use std::io;
use std::time::{Duration, Instant};

use crate::config::{self, Overrides, span};
use crate::log;
use crate::rpc::Service;
use crate::supervisor::{self, Listeners, Setup};
use crate::sys::exec::Program;
use crate::sys::signals;

use super::args::ConfigArgs;
use super::page;

/// Bad command line or configuration.
const BAD_CONFIG: i32 = 2;
const CAN_NOT_BIND: i32 = 3;
/// The service gave up, or the kernel refused what it stands on.
const GAVE_UP: i32 = 1;

/// How long an address may be in use before that is an error.
const HELD_BY_THE_LAST: Duration = Duration::from_secs(1);
const TRY_AGAIN: Duration = Duration::from_millis(10);

/// Runs the service to its end; the result is the exit code.
pub(super) fn run(args: &ConfigArgs, service: &Service) -> i32 {
    let (source, config) = match load(args, service) {
        Ok(loaded) => loaded,
        Err(reason) => {
            page::complain(&reason);
            return BAD_CONFIG;
        }
    };
    log::init(&config.log);
    if let Err(error) = signals::write_errors_only() {
        tracing::warn!(%error, "a write that fails may end the service");
    }
    for warning in config::warnings(&source, &config) {
        tracing::warn!("{warning}");
    }
    // All that may be missing is looked for before anybody can connect.
    let program = Program::current().map_err(|error| format!("the supervisor can't go on: {error}"));
    let limits = || supervisor::check_limits(&config, service.method_names().len());
    let program = match program.and_then(|program| limits().map(|()| program)) {
        Ok(program) => program,
        Err(reason) => {
            tracing::error!("{reason}");
            return GAVE_UP;
        }
    };
    let listeners = match bind(&config.listeners) {
        Ok(listeners) => listeners,
        Err(reason) => {
            tracing::error!("{reason}");
            return CAN_NOT_BIND;
        }
    };
    // A file that was found without being named is looked for by its name from now on: without it the service would
    // become another one.
    let found = (source.name != config::DEFAULTS).then(|| source.name.clone().into());
    let config_path = args.config.clone().or(found);
    let ended = supervisor::run(Setup { program, config_path, source, config, listeners }, service.about());
    ended.unwrap_or_else(|error| {
        tracing::error!(%error, "the supervisor can't go on");
        GAVE_UP
    })
}

/// Binds the listeners. The workers of a supervisor that was killed a moment ago may still hold an address, until they have seen
/// that it is gone.
fn bind(wanted: &[config::Listener]) -> Result<Listeners, String> {
    let until = Instant::now() + HELD_BY_THE_LAST;
    loop {
        match Listeners::bind(wanted) {
            Err(error) if error.is_in_use && Instant::now() < until => std::thread::sleep(TRY_AGAIN),
            Err(error) if error.is_in_use => {
                return Err(format!("{} (tried for {})", error.why, span::show(HELD_BY_THE_LAST)));
            }
            bound => return Ok(bound?),
        }
    }
}

/// Goes on with the service that another program has run in this process before; the result is the exit code.
pub(super) fn go_on(handoff: io::Result<supervisor::ExecHandoff>, service: &Service) -> i32 {
    let ended = handoff.and_then(|handoff| {
        log::init(handoff.log());
        signals::write_errors_only()?;
        supervisor::go_on(handoff, service.about())
    });
    ended.unwrap_or_else(|error| {
        // The log may not be there yet.
        page::complain(&format!("the supervisor can't go on: {error}"));
        GAVE_UP
    })
}

/// Reads and checks the configuration that `args` name, also against the methods there are.
pub(super) fn load(args: &ConfigArgs, service: &Service) -> Result<(config::Source, config::Config), String> {
    let source = config::read_source(args.config.as_deref()).map_err(|error| error.to_string())?;
    let config = config::check(&source, &overrides(args)).map_err(|error| error.to_string())?;
    config::check_methods(&source, &service.method_names()).map_err(|error| error.to_string())?;
    Ok((source, config))
}

pub(super) fn overrides(args: &ConfigArgs) -> Overrides {
    Overrides { listen: args.listen.clone(), processes: args.processes, threads: args.threads }
}
