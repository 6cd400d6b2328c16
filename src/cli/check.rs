//! `tine check`: whether the configuration and the handlers are good, and what would run.

use std::io::{self, Write};

use crate::rpc::Service;

use super::args::ConfigArgs;
use super::serve;

/// Prints what would run, or what is wrong; the result is the exit code, 0 or 2.
pub(super) fn run(args: &ConfigArgs, service: &Service) -> i32 {
    match serve::load(args, service) {
        Ok((source, config)) => {
            let methods = service.method_names().join(", ");
            let text = format!("{}: good\n{}methods: {methods}\n", source.name, config.describe());
            // A reader that has seen enough (`| head`) is no reason to panic.
            let _ = io::stdout().write_all(text.as_bytes());
            0
        }
        Err(reason) => {
            eprintln!("{reason}");
            2
        }
    }
}
