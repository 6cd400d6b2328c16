//! A pre-fork RPC server for handlers that block, burn CPU, leak or crash.
//!
//! A program registers methods and runs the command line; `serve` then answers calls from processes × threads, and
//! a handler that crashes costs one worker, which is replaced.
//!
//! ```no_run
//! use tine::{Call, Error, Server};
//!
//! fn main() -> std::process::ExitCode {
//!     Server::new().method("double", |_: &Call, n: i64| Ok::<_, Error>(2 * n)).run()
//! }
//! ```
//!
//! # The processes
//!
//! ```text
//! supervisor      binds, reaps, restarts; one thread, one epoll loop, no user code
//!   ├── template  the program executed anew: runs preload, forks workers on request
//!   ├── worker 0  poller + watch + pool of threads; state made after the fork
//!   └── worker 1  …
//! ```
//!
//! # A call's way
//!
//! ```text
//! listener → poller → connection → wire (framing) → rpc (envelope → call) ─ quick ─→ handler → answer → connection
//!                                                                        └─ slow ─→ dispatch → pool thread ─┘
//! ```
//!
//! # Where things are
//!
//! `cli` says which process this is; `server` is the public builder; `supervisor`, `template` and `worker` are the
//! three kinds of process; `rpc` turns messages into calls and answers, `wire` bytes into messages; `arena` is what a
//! worker counts where others can read it, `channel` what processes say to each other, `config` what the operator
//! wants, `log` where it is all told; `sys` is the operating system and has all `unsafe` code.
//!
//! Imports point downwards only: cli → server → {supervisor, template} → worker → {rpc, arena, addresses, channel, config} →
//! wire → sys. `log`, `client`, whose `load` measures servers, `fork_processes`, `fail_points`, and `internals` for this project's
//! own benches stand beside. A test reads the `use` lines against this. ARCHITECTURE.md has the map: a call's way by its files, and
//! which files to open for a change.

mod addresses;
mod arena;
mod channel;
mod cli;
mod client;
mod config;
mod fail_points;
mod fork_processes;
#[doc(hidden)]
pub mod internals;
mod log;
mod rpc;
mod server;
mod supervisor;
mod sys;
mod template;
mod wire;
mod worker;

pub use client::{Batch, Client, ClientError, RemoteError, load};
pub use fork_processes::{
    DEFAULT_GRACE, DEFAULT_MAX_RESTARTS, ForkError, ForkProcesses, fork_processes, task_id,
};
pub use rpc::{BoxError, Call, Description, Error, Peer, RawJson, Reply, WorkerInfo};
/// What [`Description`] takes schemas from, in the version it understands.
pub use schemars;
pub use server::{LocalServer, Server};

/// The README's programs compile.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;
