//! Servers of other Rust frameworks with one method, `ping`, that answers what it is given.
//!
//! `cargo bench --bench side_by_side -- --build-peers` builds this; the benchmarks start it, with the server's name as the only argument, and reads
//! the address from its first line of output. Each server is written as its own documentation does it.

mod actix_server;
mod tarpc_server;

use std::error::Error;

fn main() -> Result<(), Box<dyn Error>> {
    match std::env::args().nth(1).as_deref() {
        Some("actix-web") => actix_server::serve(),
        Some("tarpc") => tarpc_server::serve(),
        other => Err(format!("expected the name of a server (actix-web, tarpc), found {other:?}").into()),
    }
}
