//! The figures that the project has set itself, each as a ratio of runs that were made by turns.
//!
//!     cargo bench --bench figures              every row
//!     cargo bench --bench figures -- ROW…      some
//!     cargo bench --bench figures -- --list    their names
//!
//! Servers run on one core and loads on another, unless a row says otherwise; README.md beside this has the method.
//! Without the `--bench` that cargo adds, as in `cargo test --all-targets`, one short round of each row shows that it
//! works.

#[path = "../support/mod.rs"]
mod support;

mod adoption;
mod beside;
mod cost;
mod idle;
mod keeping;
mod ping;
mod report;
mod web;

use std::path::PathBuf;
use std::process::ExitCode;

use report::{Figure, markdown};
use support::children;
use support::cores::{Cores, Place};
use support::drive::Lengths;
use support::service;
use tine::BoxError;

/// What every row is measured with.
pub(crate) struct Bench {
    pub(crate) cores: Cores,
    pub(crate) lengths: Lengths,
    pub(crate) is_for_the_record: bool,
    pub(crate) tine: PathBuf,
    pub(crate) rig: PathBuf,
}

struct Row {
    name: &'static str,
    what: &'static str,
    measure: fn(&Bench) -> Result<Vec<Figure>, BoxError>,
}

const ROWS: [Row; 21] = [
    Row {
        name: "ping-64",
        what: "ping, 64 connections, one call at a time, against the echo loop",
        measure: |bench| ping::against_echo(bench, 64, 0.95),
    },
    Row {
        name: "ping-redis",
        what: "ping, 64 connections, one call at a time, against Redis PING",
        measure: |bench| ping::against_redis(bench, 1, 1.05),
    },
    Row {
        name: "ping-1",
        what: "ping, 1 connection, against the echo loop",
        measure: |bench| ping::against_echo(bench, 1, 0.93),
    },
    Row {
        name: "ping-16",
        what: "ping, 16 connections, against the echo loop",
        measure: |bench| ping::against_echo(bench, 16, 0.93),
    },
    Row {
        name: "ping-256",
        what: "ping, 256 connections, against the echo loop",
        measure: |bench| ping::against_echo(bench, 256, 0.93),
    },
    Row {
        name: "pipelined-redis",
        what: "ping, 64 connections, 16 calls deep, against Redis PING 16 deep",
        measure: |bench| ping::against_redis(bench, 16, 1.0),
    },
    Row {
        name: "pipelined-echo",
        what: "ping, 64 connections, 16 calls deep, against the echo loop 16 deep",
        measure: ping::pipelined_against_echo,
    },
    Row {
        name: "http-nginx",
        what: "JSON-RPC ping by POST from wrk, 64 connections, against nginx with an answer that never changes",
        measure: web::against_nginx,
    },
    Row {
        name: "http-actix",
        what: "JSON-RPC ping by POST from wrk, 64 connections, against actix-web doing the same work",
        measure: web::against_actix,
    },
    Row {
        name: "json-rpc",
        what: "JSON-RPC ping behind a length, 64 connections, against the native envelope",
        measure: web::against_native,
    },
    Row {
        name: "sleepers",
        what: "60 connections ping while 4 call a handler that sleeps 50 ms, against no sleepers",
        measure: beside::sleepers,
    },
    Row {
        name: "sleep-pool",
        what: "64 connections call a handler that sleeps 10 ms; 2 processes × 48 threads, unpinned",
        measure: beside::sleep_pool,
    },
    Row {
        name: "flaky",
        what: "32 connections ping beside 32 that call a method that sleeps 20 ms once in 1,000 calls",
        measure: beside::flaky,
    },
    Row {
        name: "idle-10000",
        what: "10,000 silent connections, and 16 others that ping",
        measure: idle::ten_thousand,
    },
    Row {
        name: "spin-scaling",
        what: "a handler that spins 1 ms, threads = 1, 2 processes against 1, unpinned",
        measure: beside::spin_scaling,
    },
    Row {
        name: "watch-cost",
        what: "the watch over the poller: under traffic, and without calls",
        measure: cost::watch,
    },
    Row {
        name: "keeping",
        what: "what connections cost the supervisor, kept ones and short ones",
        measure: keeping::supervisors_part,
    },
    Row {
        name: "visits",
        what: "what it costs that a connection is kept before its first call: one call on each, against a built-in method",
        measure: keeping::visits,
    },
    Row {
        name: "adoption",
        what: "kept connections whose worker is killed: how long their clients wait for the first answer",
        measure: adoption::first_answers,
    },
    Row {
        name: "load-headroom",
        what: "the load generator, 64 connections, 16 calls deep, against the echo loop",
        measure: cost::load_headroom,
    },
    Row {
        name: "load-headroom-tine",
        what: "the load generator, 64 connections, 16 pings deep with every answer checked, against tine",
        measure: cost::load_headroom_tine,
    },
];

fn main() -> Result<ExitCode, BoxError> {
    children::serve_if_child()?;
    let wanted = support::own_arguments();
    if wanted.iter().any(|name| name == "--list") {
        for row in ROWS {
            println!("{:<20} {}", row.name, row.what);
        }
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(unknown) = wanted.iter().find(|name| ROWS.iter().all(|row| row.name != **name)) {
        let names: Vec<&str> = ROWS.iter().map(|row| row.name).collect();
        eprintln!("expected names of rows ({}), found {unknown:?}", names.join(", "));
        return Ok(ExitCode::from(2));
    }
    let cores = Cores::find()?;
    let rig = service::rig()?;
    cores.pin(Place::Load)?;
    let is_for_the_record = support::is_for_the_record();
    let lengths = Lengths::new(is_for_the_record);
    let bench = Bench { cores, lengths, is_for_the_record, tine: service::tine(), rig };

    let (mut figures, mut has_failed) = (Vec::new(), false);
    for row in ROWS.iter().filter(|row| wanted.is_empty() || wanted.iter().any(|name| name == row.name)) {
        println!("{}: {}", row.name, row.what);
        match (row.measure)(&bench) {
            Ok(taken) => {
                for figure in taken {
                    println!("{}", figure.told(is_for_the_record));
                    figures.push((row.name, figure));
                }
            }
            // The others are worth having all the same.
            Err(error) => {
                eprintln!("  {}: {error}", row.name);
                has_failed = true;
            }
        }
    }
    if is_for_the_record {
        println!("\n{}", markdown(&figures));
    }
    Ok(if has_failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}
