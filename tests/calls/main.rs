//! What is sent and what comes back, in every framing: conversations, byte for byte.

#[path = "../support/mod.rs"]
mod support;

mod bad_input;
mod batches;
mod detection;
mod first_calls;
mod framings;
mod guards;
mod handlers;
mod http;
mod json_rpc;
mod json_texts;
mod pages;
mod protocol;
mod serving;
mod smuggling;
