//! How processes come and go: boots, signals, reloads, ends, and what is left behind.

#[path = "../support/mod.rs"]
mod support;

mod boot;
mod health;
mod in_place;
mod listeners;
mod log;
mod oom;
mod orphans;
mod quarantine;
mod reload;
mod signals;
mod started;
mod supervision;
mod titles;
