//! Listeners: binding them, passing them on, and binding them anew where one was lost.

pub(in crate::supervisor) mod bound;
pub(in crate::supervisor) mod lost;
pub(in crate::supervisor) mod watches;
