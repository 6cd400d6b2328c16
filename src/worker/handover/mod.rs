//! Connections that outlive their worker: the supervisor is sent duplicates, and other workers go on with them.

pub(in crate::worker) mod adopt;
pub(in crate::worker) mod keep;
pub(in crate::worker) mod leave;
pub(in crate::worker) mod prepare;
