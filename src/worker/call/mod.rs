//! A call, from the message that asks for it to its response.

pub(in crate::worker) mod admission;
mod answer;
pub(in crate::worker) mod arrivals;
mod batch;
mod begin;
pub(in crate::worker) mod caller;
pub(in crate::worker) mod concurrency;
mod decide;
pub(in crate::worker) mod dispatch;
#[cfg(any(test, fuzzing))]
pub(in crate::worker) mod hostile;
mod job;
mod message;
mod places;
pub(in crate::worker) mod queue;
mod run;
mod settle;
#[cfg(test)]
mod tests;
#[cfg(any(test, fuzzing))]
mod threadless;
pub(in crate::worker) mod ticket;
pub(in crate::worker) mod turns;
mod unkept;

pub(in crate::worker) use batch::write_unfinished;
pub(in crate::worker) use job::Job;
