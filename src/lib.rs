//! A pre-fork RPC server for handlers that block, burn CPU, leak or crash.

mod arena;
mod cli;
mod client;
mod config;
mod fork_processes;
mod line;
mod log;
mod rpc;
mod server;
mod supervisor;
mod sys;
mod template;
mod wire;
mod worker;

pub use client::{Client, ClientError, RemoteError};
pub use fork_processes::{
    DEFAULT_GRACE, DEFAULT_MAX_RESTARTS, ForkError, ForkProcesses, fork_processes, task_id,
};
pub use rpc::{BoxError, Call, Error, Peer, RawJson, Reply, WorkerInfo};
pub use server::{LocalServer, Server};
