//! How much, how many, how long: limits, deadlines, fairness, and what happens where there is no more room.

#[path = "../support/mod.rs"]
mod support;

mod abuse;
mod concurrency;
mod connections;
mod connections_any;
mod deadlines;
mod descriptors;
mod fairness;
mod leaving;
mod limits;
mod moments;
mod overload;
mod per_address;
mod places;
mod relief;
mod terms;
