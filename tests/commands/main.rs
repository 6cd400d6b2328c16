//! The commands as a user types them, and the client that programs call.

#[path = "../support/mod.rs"]
mod support;

mod bench;
mod check;
mod client;
mod columns;
mod command_line;
mod names;
mod tune;
