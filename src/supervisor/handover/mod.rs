//! Hand-over: the messages by which connections move from one worker to another.

pub(in crate::supervisor) mod book;
pub(in crate::supervisor) mod hand_over;
