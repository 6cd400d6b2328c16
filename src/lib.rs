//! A pre-fork RPC server for handlers that block, burn CPU, leak or crash.

mod config;
mod fork_processes;
mod sys;

pub use fork_processes::{DEFAULT_GRACE, DEFAULT_MAX_RESTARTS, ForkError, ForkProcesses, fork_processes, task_id};
