//! A pre-fork RPC server for handlers that block, burn CPU, leak or crash.

mod config;
mod sys;
