//! A message to a call to its answer: envelopes, errors, the registry of methods and what a handler is told.
//!
//! ```text
//! message ─ message::parse ─→ Request ─ Registry::find ─→ Method ─ invoke(&Call, params) ─→ result
//!    └── walked once (scan), params and id stay places in it ──┘      straight into the output, inside envelope::answer
//! ```
//!
//! The worker calls this, on the poller or on a pool thread. Nothing here knows of sockets, threads or processes.

mod about;
mod builtin;
mod context;
mod discover;
pub(crate) mod envelope;
mod error;
pub(crate) mod guard;
mod json;
mod message;
mod params;
mod registry;
mod reply;
mod scan;
mod service;
pub(crate) mod web;

pub use context::{Call, Peer, WorkerInfo};
pub use discover::Description;
pub use error::Error;
pub use json::RawJson;
pub use reply::Reply;
pub use service::BoxError;

pub(crate) use about::{About, TINE};
pub(crate) use builtin::is_builtin;
pub(crate) use context::{CallParts, States};
pub(crate) use json::Span;
pub(crate) use message::{Batch, Form, Message, Rejected, Request, parse, parse_member};
pub(crate) use registry::{Handler, Method, MethodIndex, Mistakes, Registry, RegistryBuilder};
pub(crate) use service::{Hooks, Service};
