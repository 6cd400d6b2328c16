//! `tine check`: whether the configuration and the handlers are good, what would run, and what of it hardly anybody wants.

use std::io::{self, Write};

use crate::config;
use crate::rpc::Service;

use super::args::ConfigArgs;
use super::{page, serve};

/// Prints what would run, or what is wrong; the result is the exit code, 0 or 2.
pub(super) fn run(args: &ConfigArgs, service: &Service) -> i32 {
    let loaded = serve::load(args, service).and_then(|(source, config)| {
        config::check_places(&source, &serve::overrides(args)).map_err(|error| error.to_string())?;
        Ok((source, config))
    });
    match loaded {
        Ok((source, config)) => {
            for warning in config::warnings(&source, &config) {
                page::complain(&format!("warning: {warning}"));
            }
            let methods = service.method_names().join(", ");
            let (head, methods) = (format!("{}: good\n", source.name), format!("methods: {methods}\n"));
            let settings = page::hanging(&config.describe(), config::VALUES_AT);
            let text = page::fit(&head) + &settings + &page::fit(&methods);
            // A reader that has seen enough (`| head`) is no reason to panic.
            let _ = io::stdout().write_all(text.as_bytes());
            0
        }
        Err(reason) => {
            page::complain(&reason);
            2
        }
    }
}
