//! The `tine` daemon: the built-in methods, served as the command line says.

use std::process::ExitCode;

fn main() -> ExitCode {
    tine::Server::new().about("tine", env!("CARGO_PKG_VERSION")).run()
}
