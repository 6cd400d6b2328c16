//! `tine check`: whether the configuration and the handlers are good, and what would run.

use crate::rpc::Service;

use super::args::ConfigArgs;
use super::serve;

/// Prints what would run, or what is wrong; the result is the exit code, 0 or 2.
pub(super) fn run(args: &ConfigArgs, service: &Service) -> i32 {
    match serve::load(args, service) {
        Ok((source, config)) => {
            println!("{}: good", source.name);
            print!("{}", config.describe());
            println!("methods: {}", service.method_names().join(", "));
            0
        }
        Err(reason) => {
            eprintln!("{reason}");
            2
        }
    }
}
