//! Reload: what a generation is started from, how the next one takes its place, and the exec hand-off.

pub(in crate::supervisor) mod exec_handoff;
pub(in crate::supervisor) mod generation;
pub(in crate::supervisor) mod generations;
pub(in crate::supervisor) mod methods;
